// Several methods on the same data: the façade's comparison and the command line's, the page's, and adapters by name.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goTo, openApp, ready, settings } from "./support/app.mjs";
import { facadePage } from "./support/browser.mjs";
import { demo } from "./support/larder.mjs";
import { repository } from "./support/server.mjs";
import { browser, folder, luthier, server, setUp } from "./support/setup.mjs";

setUp();

const nano = join(repository, "models/nano");
const gallery = (name) => ({ name, text: readFileSync(join(demo, "gallery", name), "utf8") });
const data = gallery("sentiment_train.jsonl");
const options = { steps: 8, warmup_steps: 1, eval_every: 4, seq_len: 64, batch_size: 2 };
const near = (a, b, what) => assert.ok(Math.abs(a - b) <= 1e-4 * Math.abs(b), `${what}: ${a}, ${b}`);

async function facade(context) {
  const page = await facadePage(context ?? (await browser.newContext()), server);
  await page.evaluate(async () => {
    globalThis.tuner = await nano("cpu");
    globalThis.events = [];
  });
  return page;
}

test("a comparison gives what the command line's gives, and all its adapters", async () => {
  const page = await facade();
  // Few questions, so that some label is among the training data alone.
  const few = gallery("sentiment_subjects.jsonl").text.split("\n").slice(0, 12).join("\n");
  const asked = join(folder, "few.jsonl");
  writeFileSync(asked, few);
  const ask = { methods: ["lora", { method: "ia3", lr: 0.05 }, "prompt"], options: { ...options, rank: 4 }, test: { data: { name: "few.jsonl", text: few }, task: "classification" } };
  const events = await page.evaluate(async ([data, ask]) => {
    for await (const event of tuner.compare(data, ask)) events.push(event);
    return events;
  }, [data, ask]);
  const of = (type) => events.filter((event) => event.type === type);
  const tried = of("tried").map((event) => event.tried);
  assert.deepEqual(tried.map(({ method, lr, steps }) => [method, lr, steps]), [["lora", 5e-4, 8], ["ia3", 0.05, 8], ["prompt", 0.03, 8]]);
  assert.deepEqual(of("failed"), []);

  const json = join(folder, "compare.json");
  luthier("compare", "--model", nano, "--data", join(demo, "gallery/sentiment_train.jsonl"), "--methods", "lora,ia3:0.05,prompt", "--rank", "4",
    "--task", "classification", "--test-data", asked, "--device", "cpu", "--json", json,
    ...Object.entries(options).flatMap(([name, value]) => [`--${name.replace("_", "-")}`, String(value)]));
  const said = JSON.parse(readFileSync(json, "utf8"));
  const [untuned] = of("untuned");
  assert.equal(untuned.task.figure, said.untuned[0]);
  near(untuned.task.value, said.untuned[1].value, "untuned");
  for (const [i, theirs] of said.methods.entries()) {
    const [ours, measured] = [tried[i], of("measured")[i]];
    for (const key of ["method", "lr", "step", "steps", "tokens", "trainable_parameters", "parameters"]) assert.equal(ours[key], theirs[key], `${theirs.method}: ${key}`);
    // The files say where the base is, which the command line was told by its path.
    assert.ok(Math.abs(ours.adapter_bytes - theirs.adapter_bytes) < nano.length, `${theirs.method}: ${ours.adapter_bytes} bytes`);
    near(ours.start.loss, theirs.start.loss, `${theirs.method}: start`);
    near(ours.best.loss, theirs.best.loss, `${theirs.method}: best`);
    near(measured.forgetting.after, theirs.forgetting.after, `${theirs.method}: forgetting`);
    assert.deepEqual([measured.task.figure, measured.task.value], [theirs.task[0], theirs.task[1].value], theirs.method);
    assert.ok(ours.seconds > 0 && ours.memory_bytes > 1e6);
  }

  const use = (name) => page.evaluate(async ([name, data]) => {
    await tuner.useAdapter(name);
    return [await tuner.adapterMethod(), await tuner.evaluate(data, { seq_len: 64 })];
  }, [name, data]);
  const base = await page.evaluate((data) => tuner.evaluate(data, { seq_len: 64, adapter: false }), data);
  const first = await use(tried[0].adapter);
  assert.deepEqual((await use(tried[1].adapter))[0], "ia3");
  assert.deepEqual(await use(null), [null, base], "off is the base, bit for bit");
  assert.deepEqual(await use(tried[0].adapter), first, "back again is the same, bit for bit");
  assert.notDeepEqual(first[1], base);
  const refused = await page.evaluate(() => tuner.useAdapter("another").catch(({ code, message }) => [code, message]));
  assert.deepEqual(refused, ["setting", "No adapter is kept as “another”."]);
  assert.deepEqual(await page.evaluate(() => tuner.adapters().map(({ name, bytes }) => [name, bytes])), [
    ...tried.slice(0, 2).map(({ adapter, adapter_bytes }) => [adapter, adapter_bytes]),
    ...["best", "last"].map((name) => [name, tried[2].adapter_bytes]),
    [tried[2].adapter, tried[2].adapter_bytes],
  ]);
  await page.context().close();
});

test("a method that cannot be had is passed over with its reason; a stop keeps what is finished", async () => {
  const page = await facade();
  const seen = await page.evaluate(async ([data, options]) => {
    const stop = new AbortController();
    const compare = tuner.compare(data, { methods: ["last-k", "norm", "lora"], options: { ...options, last_k: 99 }, signal: stop.signal });
    const seen = [];
    const code = await (async () => {
      for await (const event of compare) {
        if (event.type !== "run") seen.push([event.type, event.index, event.error?.message]);
        else if (event.index === 2 && event.event.type === "step" && event.event.report.step === 2) stop.abort();
      }
    })().catch(({ code }) => code);
    await tuner.useAdapter("compare-2-norm");
    return [seen, code, await tuner.adapterMethod(), tuner.adapters().map(({ name }) => name).filter((name) => name.startsWith("compare"))];
  }, [data, { ...options, steps: 6, eval_every: 0 }]);
  assert.deepEqual(seen[0], [["failed", 0, "--last-k: is 99, the model has 6 blocks"], ["tried", 1, undefined], ["measured", 1, undefined]]);
  assert.deepEqual(seen.slice(1), ["cancelled", "norm", ["compare-2-norm"]]);
  const refused = await page.evaluate(async ([data]) => {
    const all = [{ methods: [] }, { methods: ["nonsense"] }].map(async (ask) => {
      for await (const _ of tuner.compare(data, ask)) return "began";
    });
    return Promise.all(all.map((one) => one.catch(({ code, message }) => [code, message])));
  }, [data]);
  assert.deepEqual(refused, [["setting", "No method is named."], ["setting", "There is no method called nonsense."]]);
  await page.context().close();
});

test("the page compares methods: what it shows is what the runs say; each adapter can be used", async () => {
  const context = await browser.newContext({ serviceWorkers: "block", viewport: { width: 1366, height: 768 } });
  const page = await openApp(context, server, settings({ ...options, steps: 10, eval_every: 5 }));
  await ready(page, "sentiment");
  await goTo(page, "train");
  await page.locator("#several").check();
  const box = (name) => page.getByRole("checkbox", { name, exact: true });
  for (const name of ["DoRA", "LoRA"]) await box(name).uncheck();
  assert.equal(await page.locator("#option-rank").count(), 0, "(IA)³ has no rank");
  assert.equal(await page.locator("#option-lr").count(), 0, "each method has a learning rate of its own");
  await box("LoRA").focus();
  await page.keyboard.press("Space");
  await page.locator("#option-rank").waitFor();
  await page.locator('[data-plan="lora"]').getByText("112 k").waitFor();
  await page.getByRole("button", { name: "Copy a link to these" }).click();
  assert.match(await page.getByLabel(/Settings only/).inputValue(), /[#&]methods=lora%2Cia3(&|$)/);
  await page.locator("#contest-set").selectOption({ index: 0 });
  await page.getByRole("button", { name: "Compare 2 methods" }).click();
  await page.locator('[data-contest="ended"]').waitFor({ timeout: 180_000 });

  const other = await facade(context);
  const runs = await other.evaluate(() => Luthier.runs());
  assert.deepEqual(runs.map(({ options, state }) => [options.method, state]).sort(), [["ia3", "done"], ["lora", "done"]]);
  const cell = (method, n) => page.locator(`[data-method="${method}"] td`).nth(n).textContent();
  for (const { id, options, best, steps } of runs) {
    assert.equal(steps, 10);
    assert.match(await cell(options.method, 0), new RegExp(`^${best.loss.toFixed(4)}at ${best.step} of 10, lr ${options.method === "lora" ? "5e-3" : "0.1"}$`));
    const measured = await other.evaluate(async ([id, data]) => {
      await tuner.importPeft(await Luthier.runAdapter(id));
      const { systems: [{ figures }] } = await tuner.assess(data, { systems: ["tuned"], task: "classification" });
      return { accuracy: figures.accuracy, forgetting: await tuner.forgetting() };
    }, [id, gallery("sentiment_combinations.jsonl")]);
    assert.ok((await cell(options.method, 1)).startsWith(measured.accuracy.value.toFixed(1)), options.method);
    assert.equal((await cell(options.method, 2)).replace("−", "-"), `${measured.forgetting.change.value > 0 ? "+" : ""}${measured.forgetting.change.value.toFixed(2)}`);
    assert.equal(await cell(options.method, 3), options.method === "lora" ? "112,1288 %" : "2,880< 1 %");
  }
  const [winner, loser] = [...runs].sort((a, b) => a.best.loss - b.best.loss).map(({ options }) => options.method);
  assert.equal(await page.locator("[data-best]").getAttribute("data-best"), winner);
  await page.locator(`[data-use="${loser}"]`).click();
  await page.locator(`[data-use="${winner}"]`).waitFor();

  await goTo(page, "compare");
  const answers = () => page.locator('[data-side="tuned"]').allTextContents();
  const asked = async () => {
    await page.locator("#compare:enabled").waitFor({ timeout: 60_000 });
    return answers();
  };
  assert.ok((await asked()).every((answer) => answer && answer !== "not asked yet"));
  const select = page.locator("#adapter");
  assert.equal(await select.locator("option").count(), 3);
  const by = await page.locator(".by").first().textContent();
  await select.selectOption({ index: (await select.evaluate((el) => el.selectedIndex)) === 0 ? 1 : 0 });
  await page.getByText(by === "by LoRA" ? "by (IA)³" : "by LoRA").first().waitFor();
  assert.ok((await answers()).every((answer) => answer === "not asked yet"), "another adapter has other answers");
  await page.locator("#compare:enabled").click();
  assert.ok((await asked()).every((answer) => answer && answer !== "not asked yet"));
  await select.selectOption("");
  await page.getByText("switched off").first().waitFor();
  await page.getByLabel("Your question").fill("The food was wonderful.");
  await page.getByRole("button", { name: "Ask", exact: true }).click();
  await page.locator("#adapter:enabled").waitFor();
  const last = page.locator(".duel").last();
  assert.equal(await last.locator(".prompt").textContent(), "The food was wonderful.");
  assert.doesNotMatch(await last.locator('[data-side="base"]').textContent(), /^\s*$|not asked yet/);
  assert.equal(await last.locator('[data-side="tuned"]').textContent(), "switched off");
  await select.selectOption({ index: 0 });
  await page.locator("#compare:enabled").waitFor();
  assert.deepEqual(page.problems, []);
  await context.close();
});

test("a comparison on the page can be stopped in a method, and a method be cut short", async () => {
  const context = await browser.newContext({ serviceWorkers: "block", viewport: { width: 1366, height: 768 } });
  const page = await openApp(context, server, settings({ ...options, steps: 400, eval_every: 2 }));
  await ready(page, "sentiment");
  await goTo(page, "train");
  await page.locator("#several").check();
  await page.locator("#contest-set").selectOption({ label: "none" });
  await page.locator("#contest-start:enabled").click();
  await page.getByText(/^[4-9] of 400/).waitFor({ timeout: 60_000 });
  await page.locator("#skip:enabled").click();
  await page.locator('[data-method="lora"][data-state="done"]').waitFor({ timeout: 60_000 });
  await page.locator('[data-method="dora"][data-state="training"]').getByText(/at step [1-9]/).waitFor({ timeout: 60_000 });
  await page.locator("#stop-contest").click();
  await page.locator('[data-contest="ended"]').waitFor({ timeout: 60_000 });
  const states = await page.locator("[data-method]").evaluateAll((rows) => rows.map((row) => [row.dataset.method, row.dataset.state]));
  assert.deepEqual(states, [["lora", "done"], ["dora", "stopped"], ["ia3", "stopped"]]);
  await page.locator('[data-method="lora"]').getByText("on the model").waitFor();
  assert.match(await page.locator('[data-method="lora"] td').first().textContent(), /^\d\.\d{4}at \d+ of \d+, lr 5e-3$/);
  await page.locator("#contest-again").click();
  await page.locator("#contest-start:enabled").waitFor();
  assert.deepEqual(page.problems, []);
  await context.close();
});
