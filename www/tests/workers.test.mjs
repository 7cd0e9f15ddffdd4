// A run of several workers: the numbers of one, the same bits whoever computes, and nobody is left when it is over.

import assert from "node:assert/strict";
import { test } from "node:test";
import { facadePage } from "./support/browser.mjs";
import { data, losses, recipe, train } from "./support/larder.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

const options = { ...recipe.options, steps: 24, batch_size: 4, seq_len: 64, dropout: 0, val_fraction: 0.05, eval_every: 10 };
const LOSS_TOLERANCE = 1e-4;
/** That the browser tells of. */
const CORES = 5;

/** Goes before the worker's script: a worker holds a lock as long as it lives, tells of shares, and has accidents on demand. */
const SEEN = `
  Object.defineProperty(navigator, "hardwareConcurrency", { value: ${CORES} });
  navigator.locks.request(self.name + " " + crypto.randomUUID(), () => new Promise(() => {}));
  if (self.name === "luthier-helper") {
    const shares = new BroadcastChannel("shares");
    const post = self.postMessage.bind(self);
    self.postMessage = (message, options) => {
      if (message.answer instanceof Float32Array) shares.postMessage(message.answer.length);
      post(message, options);
    };
    fetch("https://elsewhere.invalid/").catch(() => {});
    new BroadcastChannel("accidents").onmessage = ({ data }) => {
      if (data === "panic") Promise.reject(new WebAssembly.RuntimeError("unreachable"));
      if (data === "hang") for (;;);
    };
  }
`;

setUp({ inject: SEEN });

async function open(device = "cpu") {
  const page = await facadePage(await browser.newContext(), server);
  await page.evaluate(async (device) => {
    globalThis.shares = 0;
    globalThis.heard = () => {};
    new BroadcastChannel("shares").onmessage = () => (shares++, heard());
    globalThis.helpers = async () => (await navigator.locks.query()).held.filter(({ name }) => name.startsWith("luthier-helper")).length;
    globalThis.gone = async () => {
      for (const end = performance.now() + 5000; performance.now() < end; await new Promise((on) => setTimeout(on, 20))) {
        if ((await helpers()) === 0) return true;
      }
      return false;
    };
    globalThis.requests = [];
    Luthier.onRequest((request) => requests.push(request));
    globalThis.tuner = await nano(device);
  }, device);
  return page;
}

const validations = (events) => events.filter(({ type }) => type === "validation").map(({ evaluation }) => evaluation.loss);

function near(got, wanted, what) {
  wanted.forEach((loss, i) => assert.ok(Math.abs(got[i] - loss) <= LOSS_TOLERANCE * loss, `${what} ${i + 1}: ${loss} and ${got[i]}`));
}

const adapter = (page) => page.evaluate(async () => bytes((await tuner.exportPeft()).at(-1).blob));
const shares = (page) => page.evaluate(() => shares);
const noneLeft = async (page, when) => assert.ok(await page.evaluate(() => gone()), `there are helpers ${when}`);

test("two workers compute the losses of one, write down that they were two, and leave", async () => {
  const measured = {};
  for (const workers of [1, 2]) {
    const page = await open();
    const events = await train(page, { ...options, workers });
    const { summary } = events.find(({ type }) => type === "plan");
    assert.deepEqual([summary.workers, summary.device], [workers, `CPU (wasm, ${workers === 1 ? "1 thread" : "2 workers"})`]);
    assert.equal(summary.memory.helpers * workers, summary.memory.total * (workers - 1));
    assert.equal(events.filter(({ type }) => type === "warning").length, 0, JSON.stringify(events.find(({ type }) => type === "warning")));
    const record = JSON.parse(await page.evaluate(() => tuner.exportRun()));
    assert.equal(record.options.workers, workers === 1 ? null : workers);
    const count = await shares(page);
    assert.ok(workers === 1 ? count === 0 : count > options.steps / 4, `${count} shares of ${options.steps} steps came from a helper`);
    await noneLeft(page, "after the run");
    // The policy of the page rules helpers too, and what they ask for is told.
    const tried = await page.evaluate(() => requests.filter(({ url }) => url.startsWith("https://elsewhere.invalid")));
    assert.deepEqual(tried.map(({ blocked }) => blocked), workers === 1 ? [] : [true]);
    measured[workers] = { events, adapter: await adapter(page) };
    await page.context().close();
  }
  const [one, two] = [1, 2].map((workers) => losses(measured[workers].events));
  assert.deepEqual([one.length, two.length], [options.steps, options.steps]);
  near(two, one, "step");
  const [lonely, shared] = [1, 2].map((workers) => validations(measured[workers].events));
  assert.equal(lonely.length, 4);
  near(shared, lonely, "validation");
  assert.notDeepEqual(measured[1].adapter, measured[2].adapter, "sums in another order round in other places");
});

test("a paused run, whose tab is closed, of two workers goes on bit-exactly, with two workers", async () => {
  const shuffled = { ...options, dropout: 0.1, workers: 2 };
  const whole = await open();
  const events = await train(whole, shuffled);
  const expected = await adapter(whole);
  await whole.context().close();

  const page = await open();
  await page.evaluate(async ([data, options]) => {
    globalThis.run = tuner.train(data, { options, store: { id: "two", every_seconds: 600 } });
    for (let paused = false; !paused; ) {
      const { value } = await run.next();
      if (value.type === "step" && shares > 2) tuner.pause();
      paused = value.type === "paused";
    }
  }, [data("train"), shuffled]);
  await noneLeft(page, "in a pause");
  const resumed = await facadePage(page.context(), server);
  await page.close();
  const rest = await resumed.evaluate(async () => {
    globalThis.tuner = await nano("cpu");
    const events = [];
    for await (const event of tuner.resume("two")) events.push(event);
    return events;
  });
  const { step, summary } = rest.find(({ type }) => type === "plan");
  assert.ok(step > 0 && step < options.steps && summary.workers === 2, `step ${step}, ${summary.workers} workers`);
  assert.deepEqual(losses(rest), losses(events).slice(step));
  const later = events.filter((event) => event.step > step);
  assert.deepEqual(validations(rest), validations(later));
  assert.deepEqual(await adapter(resumed), expected);
  await resumed.context().close();
});

for (const accident of ["panic", "hang"]) {
  test(`the bits are the same when a helper is lost: ${accident}`, async () => {
    const asked = { ...options, val_fraction: 0, workers: 2 };
    const page = await open();
    const expected = losses(await train(page, asked));
    await page.evaluate((accident) => {
      const accidents = new BroadcastChannel("accidents");
      heard = () => shares === before + 3 && accidents.postMessage(accident);
      globalThis.before = shares;
    }, accident);
    const events = await train(page, asked);
    const warnings = events.filter(({ type }) => type === "warning");
    assert.equal(warnings.length, 1);
    assert.match(warnings[0].error.message, /Worker 2 of the run was lost/);
    assert.equal(events.at(-1).reason, "done");
    assert.deepEqual(losses(events), expected);
    assert.ok((await page.evaluate(() => shares - before)) < expected.length, "the helper was lost before the end");
    await noneLeft(page, "after it");
    await page.context().close();
  });
}

test("helpers end with a run that is stopped, and with the model", async () => {
  const page = await open();
  const asked = { ...options, steps: 400, val_fraction: 0, workers: 2 };
  /** Until a helper has brought a share. */
  const begin = () => page.evaluate(async ([data, options]) => {
    const seen = shares;
    globalThis.run = tuner.train(data, { options });
    while (shares === seen) await run.next();
  }, [data("train"), asked]);
  await begin();
  assert.equal(await page.evaluate(() => helpers()), 1);
  await page.evaluate(() => tuner.discard());
  await noneLeft(page, "after the run was discarded");
  await begin();
  await page.evaluate(() => tuner.close());
  await noneLeft(page, "after the model was closed");
  await page.context().close();
});

test("left to itself a run has as many workers as there are cores to spare, rows, and room", async () => {
  const page = await open();
  assert.equal(await page.evaluate(() => tuner.device.description), `CPU (wasm, up to ${CORES - 1} workers)`);
  const plan = (options) => page.evaluate(([data, options]) => tuner.estimate(data, options), [data("train"), options]);
  for (const [batch_size, grad_accum, expected] of [[8, 1, 4], [3, 1, 3], [1, 2, 2], [1, 1, 1]]) {
    assert.equal((await plan({ ...options, batch_size, grad_accum })).workers, expected, `${batch_size} x ${grad_accum}`);
  }
  const { memory } = await plan({ ...options, batch_size: 8 });
  const half = memory.total / 2 / 2 ** 30;
  const cramped = await plan({ ...options, batch_size: 8, memory_gib: half });
  assert.ok(cramped.workers < 4 || cramped.memory.kept_blocks < memory.kept_blocks);
  assert.ok(cramped.memory.total <= half * 2 ** 30, `${cramped.memory.total}`);
  await page.context().close();
});

test("WebGPU has one worker, which computes the shares of several where they are asked for", async () => {
  const page = await open("webgpu");
  const plan = (options) => page.evaluate(([data, options]) => tuner.estimate(data, options), [data("train"), options]);
  assert.equal((await plan({ batch_size: 8 })).workers, 1);
  const asked = { ...options, steps: 2, batch_size: 2, val_fraction: 0, workers: 2 };
  const { workers, memory } = await plan(asked);
  assert.deepEqual([workers, memory.helpers], [2, 0]);
  const events = await train(page, asked);
  assert.equal(losses(events).length, 2);
  const seen = await page.evaluate(() => requests.some(({ url }) => url.startsWith("https://elsewhere.invalid")));
  assert.ok(!seen && (await shares(page)) === 0, "no helper was started");
  await page.context().close();
});
