// What data, methods and answers are worth: the probe before a run, methods other than LoRA, tasks judged after one.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { unzipSync } from "fflate";
import { goTo, openApp, phase, ready, settings } from "./support/app.mjs";
import { judge } from "./support/crowd.mjs";
import { facadePage } from "./support/browser.mjs";
import { data, demo, losses, recipe, train } from "./support/larder.mjs";
import { repository } from "./support/server.mjs";
import { browser, folder, luthier, server, setUp } from "./support/setup.mjs";

const short = { ...recipe.options, steps: 12, warmup_steps: 2, batch_size: 2, seq_len: 64, eval_every: 0 };
const nano = join(repository, "models/nano");

const MINUTE_MS = 60_000;

setUp();

async function open() {
  const page = await facadePage(await browser.newContext(), server);
  await page.evaluate(async () => (globalThis.tuner = await nano("cpu")));
  return page;
}

const gallery = (name) => ({ name, text: readFileSync(join(demo, "gallery", name), "utf8") });

test("a probe gives a verdict, and leaves the model and its adapter as they were", async () => {
  const page = await open();
  await train(page, short);
  const measure = () => page.evaluate((data) => tuner.evaluate(data), data("phrasings"));
  const before = await measure();
  const { probe, said } = await page.evaluate(async ([data, options]) => {
    const said = [];
    const probe = await tuner.probe(data, { options, budget: { steps: 12 } }, (what, done, total) => said.push([what, done, total]));
    return { probe, said };
  }, [data("train"), { lr: 5e-3, seq_len: 64 }]);
  assert.equal(probe.verdict.potential, "clear", probe.verdict.words.join(" "));
  assert.ok(probe.verdict.tuned < probe.verdict.control && probe.verdict.tuned < probe.verdict.base);
  assert.equal(probe.steps, 12);
  assert.ok(probe.full_run.steps > 0 && probe.full_run.memory > 1e6);
  assert.ok(said.length > 6 && said.every(([what, done, total]) => what && done <= total), JSON.stringify(said));
  assert.deepEqual(await measure(), before, "the adapter of before is on the model again");
  assert.equal(await page.evaluate(() => tuner.adapterMethod()), "lora");
  await page.context().close();
});

test("a probe that is stopped is over at once; data that are too few are refused", async () => {
  const page = await open();
  const code = await page.evaluate(async (data) => {
    const controller = new AbortController();
    const stop = () => controller.abort();
    const busy = tuner.probe(data, { budget: { minutes: 60 } }, stop, controller.signal).catch(({ code }) => code);
    const [refused] = await Promise.all([tuner.probe(data).catch(({ message }) => message)]);
    return [refused, await busy, (await tuner.preview(data)).examples];
  }, gallery("sentiment_train.jsonl"));
  assert.deepEqual(code, ["A probe is under way on this model.", "cancelled", 360]);
  const few = { name: "few.jsonl", text: gallery("sentiment_train.jsonl").text.split("\n").slice(0, 9).join("\n") };
  const said = await page.evaluate((few) => tuner.probe(few).catch(({ code, message }) => [code, message]), few);
  assert.equal(said[0], "data");
  assert.match(said[1], /9 records are too few/);
  await page.context().close();
});

test("judging that is stopped leaves the adapter on the model", async () => {
  const page = await open();
  await train(page, { ...short, method: "ia3", lr: 0.1 });
  const asked = await page.evaluate(async (test) => {
    const before = await tuner.evaluate(test);
    const controller = new AbortController();
    const code = await tuner.assess(test, {}, () => controller.abort(), controller.signal).catch(({ code }) => code);
    return [code, JSON.stringify(before) === JSON.stringify(await tuner.evaluate(test)), await tuner.adapterMethod()];
  }, data("values"));
  assert.deepEqual(asked, ["cancelled", true, "ia3"]);
  await page.context().close();
});

test("each method trains in wasm, by the table that the engine gives", async () => {
  const page = await open();
  const methods = await page.evaluate(() => Luthier.methods());
  const choices = await page.evaluate(async () => (await Luthier.options()).find(({ name }) => name === "method").choices);
  assert.deepEqual(methods.map(({ name }) => name), choices);
  const rate = methods.find(({ name }) => name === "lora").lr;
  const some = { name: "some.jsonl", text: data("train").text.split("\n").slice(0, 60).join("\n") };
  const untuned = await page.evaluate(async (data) => (await tuner.evaluate(data, { seq_len: 64, adapter: false })).loss, some);
  for (const { name, lr } of methods) {
    // The bundled model takes ten times what large ones do.
    const events = await train(page, { ...short, steps: 8, method: name, lr: (5e-3 * lr) / rate, batch_size: 4 });
    const run = losses(events);
    assert.equal(run.length, 8, name);
    assert.ok(run.every(Number.isFinite), `${name}: ${run}`);
    const [base, tuned] = await page.evaluate(async (data) => {
      const loss = async (adapter) => (await tuner.evaluate(data, { seq_len: 64, adapter })).loss;
      return [await loss(false), await loss(true)];
    }, some);
    assert.equal(base, untuned, name);
    assert.ok(tuned < untuned, `${name}: ${untuned}, tuned ${tuned}`);
    assert.match(events[0].summary.trainable, /^trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: [\d.]+$/);
    assert.equal(await page.evaluate(() => tuner.adapterMethod()), name);
  }
  await page.context().close();
});

const context = () => browser.newContext({ serviceWorkers: "block", viewport: { width: 1366, height: 768 } });

async function download(page, selector) {
  const [file] = await Promise.all([page.waitForEvent("download"), page.locator(selector).click()]);
  const path = join(folder, file.suggestedFilename());
  await file.saveAs(path);
  return path;
}

function unpack(path) {
  const target = path.replace(/\.zip$/, "");
  for (const [name, bytes] of Object.entries(unzipSync(readFileSync(path)))) {
    const file = join(target, name.split("/").at(-1));
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, bytes);
  }
  return target;
}

/** The command line's held-out loss of a model. */
const heldOut = (...model) => Number(luthier("eval", ...model, "--data", join(demo, "heldout_values.jsonl"), "--device", "cpu").match(/mean NLL\s+([\d.]+)/)[1]);

test("DoRA, chosen on the page, trains; the command line reads its adapter; the link and the history name it", async () => {
  const page = await openApp(await context(), server, settings({ steps: 40, warmup_steps: 2, eval_every: 20, seq_len: 64 }));
  await ready(page);
  await goTo(page, "train");
  const field = (name) => page.locator(`#option-${name}`);
  await field("rank").waitFor();
  assert.equal(await field("lr").inputValue(), "5e-3");
  await page.getByLabel("Prompt", { exact: true }).check();
  await field("num_virtual_tokens").waitFor();
  assert.equal(await field("rank").count(), 0, "a prompt has no rank");
  assert.equal(await field("lr").inputValue(), "0.3", "the suggested rate follows the method");
  await page.getByLabel("DoRA").check();
  await field("rank").waitFor();
  assert.equal(await field("num_virtual_tokens").count(), 0);
  assert.equal(await field("lr").inputValue(), "5e-3");
  await page.getByText(/^trainable params: 1\d\d,\d+ \|\| all params/).waitFor();
  await page.getByRole("button", { name: "Copy a link to these" }).click();
  assert.match(await page.getByLabel(/Settings only/).inputValue(), /[#&]method=dora/);
  await page.locator("#train-start").click();
  await phase(page, "ended");
  await goTo(page, "keep");
  await page.getByText("DoRA 8, 5e-3").waitFor();
  const adapter = unpack(await download(page, "#download-peft"));
  assert.equal(JSON.parse(readFileSync(join(adapter, "adapter_config.json"), "utf8")).use_dora, true);
  const [before, after] = [heldOut("--model", nano), heldOut("--model", nano, "--adapter", adapter)];
  assert.ok(after < 0.5 * before, `${before}, with the adapter ${after}`);
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("what cannot be merged, and what PEFT does not know, is said where it matters", async () => {
  for (const [method, note, merged] of [["prefix", "[data-no-merge]", false], ["bitfit", "[data-no-peft]", true]]) {
    const page = await openApp(await context(), server, settings({ method, steps: 4, warmup_steps: 0, eval_every: 0, seq_len: 64, batch_size: 2 }));
    await ready(page);
    await page.locator("#train-now").click();
    await phase(page, "ended");
    await goTo(page, "keep");
    await page.locator(note).waitFor();
    assert.equal(await page.locator("#download-merged").isEnabled(), merged, method);
    if (merged) {
      const model = unpack(await download(page, "#download-merged"));
      const [before, after] = [heldOut("--model", nano), heldOut("--model", model)];
      assert.ok(after < before, `${before}, merged ${after}`);
    }
    assert.deepEqual(page.problems, []);
    await page.context().close();
  }
});

test("the page probes a bundled set, takes the rate it found, and trains", async () => {
  const page = await openApp(await context(), server, settings({ steps: 6, warmup_steps: 0, lr: 1e-4, eval_every: 0, seq_len: 64 }));
  await ready(page);
  await goTo(page, "try");
  await page.locator("#probe-minutes").selectOption("0.5");
  const asked = performance.now();
  await page.locator("#probe").click();
  await page.locator("[data-probing] progress").waitFor();
  await page.locator("[data-found-potential]").waitFor({ timeout: 180_000 });
  judge("the probe's verdict on nano, promised: a minute", performance.now() - asked, MINUTE_MS);
  assert.match(await page.locator("[data-found-potential]").getAttribute("data-found-potential"), /^(clear|some)$/);
  await page.locator('[data-finding="learning-rate"]').getByText(/“Learning rate” 1e-4 is too low/).waitFor();
  await page.getByText("The numbers as a table").click();
  await page.getByRole("cell", { name: /examples, foreseen/ }).waitFor();
  await page.locator("#take-rate").click();
  await goTo(page, "train");
  assert.notEqual(await page.locator("#option-lr").inputValue(), "1e-4");
  await page.locator("#train-start").click();
  await phase(page, "ended");

  await goTo(page, "try");
  await page.locator("#probe").click();
  await page.locator("[data-probing] progress[value]").waitFor();
  await page.locator("#stop-probe").click();
  await page.locator("#probe:enabled").waitFor();
  await goTo(page, "compare");
  await page.locator("#score:enabled").waitFor();
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("held-out examples are judged by their task, with intervals, failures to look at, and what it cost", async () => {
  const page = await openApp(await context(), server, settings({ steps: 40, warmup_steps: 4, eval_every: 0, seq_len: 64 }));
  await ready(page, "sentiment");
  const begun = performance.now();
  await page.locator("#train-now").click();
  await phase(page, "ended");
  await goTo(page, "compare");
  assert.equal(await page.locator("#task").inputValue(), "classification", "by its looks");
  await page.locator("#score:enabled").click();
  await page.locator("[data-forgetting]").waitFor({ timeout: 120_000 });
  judge("a run of nano judged by its task, promised: a minute", performance.now() - begun, MINUTE_MS);
  const sets = page.locator(".scores > li");
  assert.equal(await sets.count(), 2);
  const first = sets.first();
  await first.getByText("All figures").click();
  const head = await first.locator("table").first().locator("thead th").allTextContents();
  assert.deepEqual(head, ["", "base", "tuned", "constant answer"]);
  const accuracy = await first.getByRole("row", { name: /^accuracy/ }).textContent();
  assert.match(accuracy, /\d+\.\d \[\d+\.\d, \d+\.\d\].*\[.*\[/);
  const answers = page.locator("[data-examples]").first();
  await answers.getByText("Every answer").click();
  const rows = answers.locator("tbody tr");
  const all = await rows.count();
  await answers.locator('[data-filter="wrong"]').click();
  const wrong = await rows.count();
  const [, right, total] = (await first.locator(".big").textContent()).match(/after: (\d+) of (\d+)/);
  assert.ok(all > wrong, "not all are failures");
  assert.equal(wrong, Math.min(40, Number(total) - Number(right)));
  assert.equal(await answers.locator('[data-right="true"]').count(), 0);
  await page.locator("#task").selectOption("facts");
  assert.equal(await page.locator("[data-scores]").count(), 0, "other figures have to be asked for");
  assert.deepEqual(page.problems, []);
  await page.context().close();
});
