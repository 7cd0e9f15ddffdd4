// Over plain http the browser withholds storage, locks and WebGPU: the page trains all the same, and says what it cannot do.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goTo, openApp, phase, ready, settings } from "./support/app.mjs";
import { facadePage } from "./support/browser.mjs";
import { data, losses, recipe, train } from "./support/larder.mjs";
import { browser, folder, server, setUp } from "./support/setup.mjs";

/** A name that is not this machine's own: only https would make it secure. */
const HOST = "insecure.test";

setUp({}, [`--host-resolver-rules=MAP ${HOST} 127.0.0.1`]);

const elsewhere = () => {
  const named = (url) => url.replace("127.0.0.1", HOST);
  return { ...server, origin: named(server.origin), app: named(server.app) };
};

test("the page trains, says that the run will not be saved, and hands the adapter over", async () => {
  const page = await openApp(await browser.newContext(), elsewhere(), settings({ steps: 60, eval_every: 30, seq_len: 64, batch_size: 2 }));
  assert.equal(await page.evaluate(() => window.isSecureContext), false);
  await ready(page);
  await goTo(page, "train");
  await page.locator("[data-unsaved]").getByText("Runs are not saved here").waitFor();
  await page.locator("#train-start").click();
  await page.getByText("This run is not saved: it ends with this tab.").waitFor();
  await phase(page, "ended");
  await goTo(page, "keep");
  await page.getByText("this browser lets the page keep nothing here").waitFor();
  const [file] = await Promise.all([page.waitForEvent("download"), page.locator("#download-peft").click()]);
  await file.saveAs(join(folder, "adapter.zip"));
  assert.ok(readFileSync(join(folder, "adapter.zip")).length > 100_000);
  assert.deepEqual(page.problems, []);

  await goTo(page, "train");
  await page.locator("#train-again").click();
  await page.locator("#train-start").click();
  await page.locator('[data-phase="starting"], [data-phase="running"]').waitFor();
  await page.getByRole("button", { name: "Discard …" }).click();
  await page.locator("[data-confirm]").click();
  await page.locator("#train-start").waitFor();
  assert.equal(await page.locator("[data-error]").count(), 0);
  await page.context().close();
});

test("the page of models says that none can be kept", async () => {
  const page = await (await browser.newContext()).newPage();
  await page.goto(`${elsewhere().app}models.html`);
  await page.getByText("This browser lets the page keep nothing here").waitFor();
  await page.context().close();
});

test("the package lists nothing and refuses, in words, to store", async () => {
  const page = await facadePage(await browser.newContext(), elsewhere());
  await page.evaluate(async () => (globalThis.tuner = await nano("cpu")));
  assert.deepEqual(await page.evaluate(async () => [await Luthier.canStore(), await Luthier.runs(), await Luthier.models()]), [false, [], []]);
  const options = { steps: 2, seq_len: 64, batch_size: 2 };
  const refused = await page.evaluate(([data, options]) =>
    tuner.train(data, { options, store: { id: "here" } }).next().then(() => null, ({ code, hint }) => ({ code, hint })), [data("train"), options]);
  assert.equal(refused?.code, "storage");
  assert.match(refused.hint, /https/);
  assert.equal(losses(await train(page, { ...recipe.options, ...options })).length, 2);
  await page.context().close();
});
