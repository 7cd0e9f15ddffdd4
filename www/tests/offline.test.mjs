// The page after its first visit, without a network.

import assert from "node:assert/strict";
import { test } from "node:test";
import { serve } from "./support/server.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

setUp();

test("the page reloads, and opens the bundled model and data, with the server gone", async () => {
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(server.app);
  await page.evaluate(() => navigator.serviceWorker.ready.then(() => null));
  await server.close();
  await context.setOffline(true);
  await page.reload();
  await page.getByRole("heading", { level: 1 }).waitFor();
  const sizes = await page.evaluate(async () => {
    const size = async (path) => (await (await fetch(path)).blob()).size;
    return Promise.all(["models/nano/model.safetensors", "demo/train.jsonl", "models.html"].map(size));
  });
  for (const size of sizes) assert.ok(size > 500);
  await page.evaluate(() => fetch("not-kept").then(() => Promise.reject(new Error("this must fail")), () => null));
  await context.close();
});

test("the manifest can be installed", async () => {
  const again = await serve();
  const page = await browser.newPage();
  await page.goto(again.app);
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
  await again.close();
});
