// The page after its first visit: without a network, and when a new version of it is there.

import assert from "node:assert/strict";
import { test } from "node:test";
import { openApp, ready, settings } from "./support/app.mjs";
import { WITHOUT_RELAXED_SIMD } from "./support/browser.mjs";
import { serve } from "./support/server.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

setUp();

for (const [which, old] of [["a browser with relaxed SIMD", false], ["any other", true]]) test(`with the server gone the page reloads, starts its engine, opens the bundled model, and trains, with a helper, in ${which}`, async (t) => {
  const host = await serve({ inject: `if (self.name === "luthier-helper") new BroadcastChannel("helpers").postMessage("here");\n` });
  t.after(host.close);
  const context = await browser.newContext();
  if (old) await context.addInitScript(WITHOUT_RELAXED_SIMD);
  const page = await openApp(context, host);
  await page.evaluate(() => navigator.serviceWorker.ready.then(() => null));
  await host.close();
  await context.setOffline(true);
  await page.goto(host.app + settings({ steps: 60, warmup_steps: 0, eval_every: 0, seq_len: 64, batch_size: 2, workers: 2 }));
  await page.reload();
  await page.evaluate(() => (new BroadcastChannel("helpers").onmessage = () => (window.helped = true)) && null);
  await ready(page);
  await page.locator("#train-now").click();
  await page.locator('[data-phase="ended"]').getByText("Done: 60 steps").waitFor({ timeout: 60_000 });
  assert.ok(await page.evaluate(() => window.helped), "a helper was started from what is kept");
  await page.evaluate(() => fetch("not-kept").then(() => Promise.reject(new Error("this must fail")), () => null));
  await page.goto(`${host.app}models.html`);
  await page.getByRole("heading", { name: "Models" }).waitFor();
  await context.close();
});

test("a new version takes over when the user says so, in the only tab; the old one's files go", async (t) => {
  let version = "one";
  const host = await serve({ alter: (path, body) => path.endsWith("service-worker.js")
    ? { body: String(body).replace(/VERSION = "\w+"/, `VERSION = "${version}"`) } : {} });
  t.after(host.close);
  const context = await browser.newContext();
  const page = await openApp(context, host);
  const caches = () => page.evaluate(async () => (await caches.keys()).map((name) => name.split(" ").at(-1)));
  const controlled = () => page.evaluate(() => navigator.serviceWorker.ready.then(() => navigator.serviceWorker.controller !== null));
  await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
  assert.deepEqual(await caches(), ["one"]);
  assert.equal(await page.locator("#update").count(), 0, "the first version is no update");

  version = "two";
  await page.reload();
  await page.locator("#update").waitFor();
  assert.deepEqual((await caches()).sort(), ["one", "two"]);
  const second = await openApp(context, host);
  await page.evaluate(() => (window.before = true));
  await page.locator("#update").click();
  await page.getByText("Luthier is open in 2 tabs").waitFor();
  assert.deepEqual((await caches()).sort(), ["one", "two"], "another tab may still need the old files");
  await second.close();

  await page.locator("#update").click();
  await page.waitForFunction(() => !window.before);
  assert.ok(await controlled());
  await page.locator("#start-nano").waitFor();
  // Asked from here: a promise counts as true in waitForFunction.
  for (let tries = 0; tries < 100 && (await caches()).includes("one"); tries++) await page.waitForTimeout(100);
  assert.deepEqual(await caches(), ["two"]);
  assert.equal(await page.locator("#update").count(), 0);
  await context.close();
});

test("the manifest can be installed", async () => {
  const page = await browser.newPage();
  await page.goto(server.app);
  const devtools = await page.context().newCDPSession(page);
  const { errors, data } = await devtools.send("Page.getAppManifest");
  assert.deepEqual(errors, []);
  const manifest = JSON.parse(data);
  const icons = await Promise.all(manifest.icons.map(({ src }) => page.evaluate(async (src) => {
    const image = Object.assign(new Image(), { src });
    await image.decode();
    return [image.naturalWidth, image.naturalHeight];
  }, src)));
  assert.ok(icons.some(([width]) => width === 192) && icons.some(([width]) => width === 512));
  const { installabilityErrors } = await devtools.send("Page.getInstallabilityErrors");
  assert.deepEqual(installabilityErrors.filter(({ errorId }) => errorId !== "in-incognito"), []);
  await page.close();
});
