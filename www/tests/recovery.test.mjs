// No work is lost: a killed tab, a lost device, a panic, a second tab, a damaged checkpoint; and no wish either.

import assert from "node:assert/strict";
import { test } from "node:test";
import { facadePage } from "./support/browser.mjs";
import { data, losses, recipe, train } from "./support/larder.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

/** Dropout, shuffling and moments of 8 bits, so that resuming has to restore more than the weights. */
const options = {
  ...recipe.options, steps: 16, batch_size: 2, seq_len: 64, dropout: 0.1, val_fraction: 0.05, eval_every: 5, optim: "adamw_8bit",
};
const small = { ...options, steps: 8, eval_every: 0, val_fraction: 0, optim: "adamw" };

/** Goes before the worker's script: what happens to users only by accident, on demand. */
const FAULTS = `
  const request = globalThis.GPUAdapter?.prototype.requestDevice;
  let device;
  if (request) GPUAdapter.prototype.requestDevice = async function (...args) { return (device = await request.apply(this, args)); };
  new BroadcastChannel("faults").onmessage = ({ data }) => {
    if (data === "device") device.destroy();
    if (data === "panic") Promise.reject(new WebAssembly.RuntimeError("unreachable"));
  };
`;

setUp({ inject: FAULTS });

async function open(context, device = "cpu") {
  const page = await facadePage(context, server);
  await page.evaluate(async (device) => (globalThis.tuner = await nano(device)), device);
  return page;
}

const adapter = (page) => page.evaluate(async () => bytes((await tuner.exportPeft()).at(-1).blob));

/** Starts a stored run and returns once `steps` steps are done and a checkpoint is written; the run goes on. */
async function startRun(page, id, steps) {
  await page.evaluate(async ([data, id, steps, options]) => {
    globalThis.run = tuner.train(data, { options, store: { id, every_seconds: 0.1 } });
    for (let step = 0, safe = 0; step < steps || !safe; ) {
      const { value } = await run.next();
      if (value.type === "step") step = value.report.step;
      if (value.type === "checkpoint") safe = value.step;
    }
  }, [data("train"), id, steps, options]);
}

const resume = (page, id) => page.evaluate(async (id) => {
  const events = [];
  for await (const event of tuner.resume(id)) events.push(event);
  return events;
}, id);

const runs = (page) => page.evaluate(() => Luthier.runs());

/** As the system does it: nothing in the page runs any more. */
async function kill(page) {
  const gone = new Promise((crashed) => page.once("crash", crashed));
  const devtools = await page.context().newCDPSession(page);
  devtools.send("Page.crash").catch(() => {});
  await gone;
}

test("a run in a killed tab goes on bit-exactly", async () => {
  const context = await browser.newContext();
  const whole = await open(context);
  const events = await train(whole, options, { store: { id: "whole" } });
  const expected = await adapter(whole);
  await whole.close();

  const killed = await open(context);
  await startRun(killed, "killed", 7);
  await kill(killed);

  const page = await open(context);
  const [found] = await runs(page);
  assert.deepEqual([found.id, found.state, found.locked], ["killed", "interrupted", false]);
  assert.ok(found.step > 0 && found.step < options.steps, `step ${found.step}`);
  const rest = await resume(page, "killed");
  assert.equal(rest[0].step, found.step);
  assert.deepEqual(losses(rest), losses(events).slice(found.step));
  assert.deepEqual(await adapter(page), expected);
  assert.deepEqual(rest.at(-1), events.at(-1));

  const { state, base_loss, best } = (await runs(page))[0];
  const validations = events.filter(({ type }) => type === "validation");
  assert.deepEqual([state, base_loss], ["done", validations[0].evaluation.loss]);
  assert.deepEqual(best, validations.filter(({ best }) => best).map(({ step, evaluation: { loss } }) => ({ step, loss })).at(-1));
  const log = await page.evaluate(() => Luthier.runLog("killed"));
  assert.deepEqual(losses(log), losses(events));
  const stored = await page.evaluate(async () => bytes((await Luthier.runAdapter("killed")).at(-1).blob));
  assert.deepEqual(stored, expected);
  await context.close();
});

test("a damaged checkpoint is passed over, with a warning", async () => {
  const context = await browser.newContext();
  const page = await open(context);
  await startRun(page, "damaged", 6);
  await page.evaluate(async () => { await tuner.stop(); for await (const _ of run); });
  const newest = await page.evaluate(async () => {
    let at = await navigator.storage.getDirectory();
    for (const name of ["runs", "damaged"]) at = await at.getDirectoryHandle(name);
    const names = [];
    for await (const name of at.keys()) if (name.startsWith("checkpoint-")) names.push(name);
    const file = await at.getFileHandle(names.sort().at(-1));
    const writable = await file.createWritable({ keepExistingData: true });
    await writable.write({ type: "write", position: 5000, data: new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]) });
    await writable.close();
    return Number(names.at(-1).split("-")[1]);
  });
  const events = await resume(page, "damaged");
  const plan = events.find(({ type }) => type === "plan");
  assert.equal(events[0].type, "warning");
  assert.equal(events[0].error.code, "malformed");
  assert.ok(plan.step > 0 && plan.step < newest, `from ${plan.step}, the newest was ${newest}`);
  assert.equal(events.at(-1).reason, "done");
  await context.close();
});

test("a second tab is told that the run is under way, and can neither resume nor delete it", async () => {
  const context = await browser.newContext();
  const first = await open(context);
  await startRun(first, "one", 3);
  await first.evaluate(() => tuner.pause());
  const second = await open(context);
  assert.deepEqual((await runs(second)).map(({ id, state, locked }) => [id, state, locked]), [["one", "running", true]]);
  const refused = (work) => second.evaluate(`(${work})().then(() => null, ({ code, hint }) => ({ code, hint }))`);
  const resumed = await refused("async () => { for await (const event of tuner.resume('one')); }");
  const deleted = await refused("() => Luthier.deleteRun('one')");
  assert.equal(resumed?.code, "locked");
  assert.equal(deleted?.code, "locked");
  await first.close();
  await second.evaluate(() => Luthier.deleteRun("one"));
  assert.deepEqual(await runs(second), []);
  await context.close();
});

for (const [fault, device, code] of [["panic", "cpu", "internal"], ["device", "webgpu", "device_lost"]]) {
  test(`a run goes on after a fault of the engine: ${fault}`, async () => {
    const context = await browser.newContext();
    const page = await open(context, device);
    const events = await page.evaluate(async ([data, options, fault]) => {
      const events = [];
      let thrown = false;
      for await (const event of tuner.train(data, { options, store: { id: "faulty", every_seconds: 0.1 } })) {
        events.push(event);
        if (event.type !== "checkpoint" || thrown) continue;
        new BroadcastChannel("faults").postMessage(fault);
        thrown = true;
      }
      return events;
    }, [data("train"), small, fault]);
    const restart = events.find(({ type }) => type === "restart");
    assert.equal(restart?.error.code, code);
    assert.equal(events[events.indexOf(restart) + 1].step, restart.step);
    assert.equal(events.at(-1).reason, "done");
    const recovered = await adapter(page);
    await train(page, small);
    assert.deepEqual(recovered, await adapter(page));
    await context.close();
  });
}

/** Trains on `tuner` and, at each event, does what `at` (source of a function of the event) says. */
const trainAnd = (page, at, run = {}) => page.evaluate(`(async () => {
  const fault = (what) => new BroadcastChannel("faults").postMessage(what);
  const at = ${at};
  const events = [];
  for await (const event of tuner.train(...${JSON.stringify([data("train"), { options: small, ...run }])})) {
    events.push(event);
    at(event, events);
  }
  return events;
})()`);

const kinds = (events) => events.map(({ type }) => type).filter((type) => type !== "checkpoint");

test("stop, asked while a run is starting, is heard", async () => {
  const context = await browser.newContext();
  const page = await open(context);
  const stopped = (run) => page.evaluate(`(async () => {
    const run = ${run};
    const first = run.next();
    await tuner.stop();
    const events = [(await first).value];
    for await (const event of run) events.push(event);
    return events;
  })()`);
  const begun = await stopped(`tuner.train(...${JSON.stringify([data("train"), { options: small, store: { id: "early" } }])})`);
  // The second one begins in a fresh worker, and reads what is stored before.
  for (const events of [begun, await stopped('tuner.resume("early")')]) {
    assert.deepEqual(events.map(({ type, step }) => [type, step]), [["plan", 0], ["end", 0]]);
    assert.equal(events.at(-1).reason, "stopped");
  }
  assert.deepEqual((await runs(page)).map(({ state, step, locked }) => [state, step, locked]), [["stopped", 0, false]]);
  const rest = await resume(page, "early");
  assert.deepEqual([losses(rest).length, rest.at(-1).reason], [small.steps, "done"]);
  await context.close();
});

test("a paused run is paused again by the worker that takes it up, and goes on when it is told to", async () => {
  const context = await browser.newContext();
  const page = await open(context);
  const events = await trainAnd(page, `(event, events) => {
    if (event.type === "plan" && events.length === 1) tuner.pause();
    if (event.type !== "paused") return;
    if (events.some(({ type }) => type === "restart")) tuner.unpause();
    else fault("panic");
  }`);
  const restart = kinds(events).indexOf("restart");
  assert.deepEqual(kinds(events).slice(restart, restart + 3), ["restart", "plan", "paused"]);
  assert.equal(events.filter(({ type }) => type === "paused").length, 2);
  assert.equal(events.at(-1).reason, "done");
  assert.deepEqual(new Set(losses(events)).size, small.steps);
  await context.close();
});

test("a run that is discarded while it restarts leaves the base model", async () => {
  const context = await browser.newContext();
  const page = await open(context);
  const events = await trainAnd(page, `(event, events) => {
    if (event.type === "checkpoint" && !events.some(({ type }) => type === "restart")) fault("panic");
    if (event.type === "restart") globalThis.discarded = tuner.discard();
  }`, { store: { id: "unwanted", every_seconds: 0.1 } });
  const after = events.slice(events.findIndex(({ type }) => type === "restart"));
  assert.deepEqual([losses(after), after.at(-1).reason], [[], "stopped"]);
  const code = await page.evaluate(async () => {
    await discarded;
    return tuner.exportPeft().then(() => null, ({ code }) => code);
  });
  assert.equal(code, "setting", "there is no adapter");
  await context.close();
});

for (const [fault, device, code] of [["panic", "cpu", "internal"], ["device", "webgpu", "device_lost"]]) {
  test(`a fault outside a run costs an answer at most: ${fault}`, async () => {
    const context = await browser.newContext();
    const page = await open(context, device);
    await train(page, { ...small, steps: 4 });
    const ask = () => page.evaluate(async () => (await tuner.generate(["Put 3 eggs on shelf 1"], { max_new_tokens: 8 }))[0].text);
    const [before, answer, record] = [await adapter(page), await ask(), await page.evaluate(() => tuner.exportRun())];
    const worker = page.workers().at(-1);
    const error = await page.evaluate(async (fault) => {
      const asked = tuner.generate(["Put"], { max_new_tokens: 4 }).then(() => null, (error) => error);
      new BroadcastChannel("faults").postMessage(fault);
      // Where the answer came before the fault did, the next question meets it.
      const { code, hint } = (await asked) ?? (await tuner.generate(["Put"], { max_new_tokens: 4 }).then(() => ({}), (error) => error));
      return { code, hint };
    }, fault);
    // A panic that nobody waits for is mended before the next question.
    if (fault === "device" || error.code) {
      assert.equal(error.code, code);
      assert.match(error.hint, /opened again, with its adapter/);
    }
    assert.equal(await ask(), answer);
    assert.notEqual(page.workers().at(-1), worker, "the worker that met the fault is replaced");
    assert.deepEqual(await adapter(page), before);
    assert.equal(await page.evaluate(() => tuner.exportRun()), record);
    await context.close();
  });
}

test("what a killed tab left is swept, what another tab is making is not, and what cannot be read hides nothing else", async () => {
  const context = await browser.newContext();
  const page = await open(context);
  await train(page, small, { store: { id: "good" } });
  const other = await open(context);
  await other.evaluate(() => new Promise((held) => navigator.locks.request("luthier-run-beginning", () => (held(), new Promise(() => {})))));
  const inOpfs = (work) => page.evaluate(`(async () => {
    const root = await navigator.storage.getDirectory();
    const folder = async (...path) => path.reduce(async (at, name) => (await at).getDirectoryHandle(name, { create: true }), root);
    const write = async (at, name, text) => {
      const file = await (await at.getFileHandle(name, { create: true })).createWritable();
      await file.write(text);
      await file.close();
    };
    const names = async (at) => { const all = []; for await (const name of at.keys()) all.push(name); return all.sort(); };
    return (${work})(folder, write, names);
  })()`);
  await inOpfs(`async (folder, write) => {
    for (const id of ["ghost", "beginning"]) await write(await folder("runs", id), "data", "half a l");
    await write(await folder("runs", "good"), "record.json.tmp", "{");
    await write(await folder("runs", "good"), "log.json", "[{");
    await write(await folder("runs", "broken"), "record.json", '{"id": "bro');
    await write(await folder("runs"), "stray", "no folder at all");
    await write(await folder("models", "torn"), "model.json", "{");
    await write(await folder("models", "100%"), "model.json", "{}");
  }`);
  const listed = (await runs(page)).map(({ id, state }) => [id, state]).sort();
  assert.deepEqual(listed, [["broken", "unreadable"], ["good", "done"], ["stray", "unreadable"]]);
  const left = await inOpfs(`async (folder, write, names) => [await names(await folder("runs")), await names(await folder("runs", "good"))]`);
  assert.deepEqual(left[0], ["beginning", "broken", "good", "stray"]);
  assert.ok(left[1].includes("record.json") && !left[1].some((name) => name.endsWith(".tmp")), left[1]);
  assert.deepEqual(await page.evaluate(() => Luthier.runLog("good")), []);
  assert.equal(JSON.parse(await page.evaluate(() => Luthier.runRecord("good"))).results.step, small.steps);
  // A folder with a name that is none of ours is passed over.
  const models = await page.evaluate(() => Luthier.models());
  assert.deepEqual(models.map(({ name, complete }) => [name, complete]), [["torn", false]]);

  // The name of the ghost is free again.
  await train(page, { ...small, steps: 2 }, { store: { id: "ghost" } });
  for (const id of ["broken", "stray"]) await page.evaluate((id) => Luthier.deleteRun(id), id);
  assert.deepEqual((await runs(page)).map(({ id }) => id).sort(), ["ghost", "good"]);
  await context.close();
});
