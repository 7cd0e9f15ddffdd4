// What happens between opening a model and its first step on WebGPU: pipelines are made ahead, and shaders measured once,
// kept in the browser's storage, and taken from there when the page comes again.

import assert from "node:assert/strict";
import { test } from "node:test";
import { facadePage } from "./support/browser.mjs";
import { serve } from "./support/server.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

/** Goes before the worker: counts the buffers that shaders are tried on. */
const COUNT = `{
  globalThis.trials = 0;
  const { createBuffer } = GPUDevice.prototype;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    if (descriptor.label === "trial") trials++;
    return createBuffer.call(this, descriptor);
  };
}\n`;

/** The first of all pipelines is refused. */
const SPOIL = `{
  const { createComputePipeline } = GPUDevice.prototype;
  globalThis.refused = 0;
  GPUDevice.prototype.createComputePipeline = function ({ ...descriptor }) {
    if (refused === 0) {
      descriptor.compute = { ...descriptor.compute, entryPoint: "nothing" };
      refused++;
    }
    return createComputePipeline.call(this, descriptor);
  };
}\n`;

/** A device that is lost over its first pipeline. */
const LOSE = `{
  const { createComputePipeline } = GPUDevice.prototype;
  GPUDevice.prototype.createComputePipeline = function (descriptor) {
    this.destroy();
    return createComputePipeline.call(this, descriptor);
  };
}\n`;

const NO_STORAGE = "delete StorageManager.prototype.getDirectory;\n";

setUp({ inject: COUNT });

/** Opens nano on WebGPU and takes a step: its loss, how many buffers were tried, and the files of what was measured. */
async function step(page, measure) {
  const loss = await page.evaluate(async (measure) => {
    const tuner = await nano("webgpu", { measure });
    const lines = Array.from({ length: 12 }, (_, i) => JSON.stringify({ prompt: `Put ${i} apples on ${i}`, completion: `put ${i}` }));
    const options = { batch_size: 2, seq_len: 64, steps: 1, val_fraction: 0 };
    let loss;
    for await (const event of tuner.train({ name: "data.jsonl", text: lines.join("\n") }, { options })) {
      if (event.type === "step") loss = event.report.loss;
    }
    return loss;
  }, measure);
  const trials = await page.workers().at(-1).evaluate("trials");
  const files = await page.evaluate(async () => {
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle("tune").catch(() => null);
    const files = {};
    if (folder) for await (const [name, handle] of folder.entries()) files[name] = await (await handle.getFile()).text();
    return files;
  });
  return { loss, trials, files };
}

test("what was measured is kept, and taken after a reload", async () => {
  const context = await browser.newContext();
  const first = await step(await facadePage(context, server), true);
  assert.ok(first.trials > 0, "nothing was measured");
  const [[name, text], ...others] = Object.entries(first.files);
  assert.match(name, /^\S*swiftshader\S*\.json$/i);
  assert.deepEqual(others, []);
  const tuned = Object.entries(JSON.parse(text));
  assert.ok(tuned.length > 0 && tuned.every(([step, shader]) => /^matmul\.|^low_rank\./.test(step) && /^[a-z_]+( |$)/.test(shader)), text);
  // The same page in the same browser, some day later.
  const second = await step(await facadePage(context, server), true);
  assert.deepEqual(second, { ...first, trials: 0 });
  await context.close();
});

test("software GPUs are not measured unless one asks for it", async () => {
  const context = await browser.newContext();
  const { trials, files } = await step(await facadePage(context, server));
  assert.deepEqual({ trials, files }, { trials: 0, files: {} });
  await context.close();
});

test("nothing is measured where it cannot be kept", async (t) => {
  const bare = await serve({ inject: COUNT + NO_STORAGE });
  t.after(bare.close);
  const context = await browser.newContext();
  const { loss, trials } = await step(await facadePage(context, bare), true);
  assert.equal(trials, 0);
  assert.ok(loss > 0);
  await context.close();
});

test("what goes wrong with a pipeline made ahead is forgotten", async (t) => {
  const spoiled = await serve({ inject: COUNT + SPOIL });
  t.after(spoiled.close);
  const losses = [];
  for (const [from, refused] of [[spoiled, 1], [server, undefined]]) {
    const context = await browser.newContext();
    const page = await facadePage(context, from);
    losses.push((await step(page)).loss);
    assert.equal(await page.workers().at(-1).evaluate("globalThis.refused"), refused);
    await context.close();
  }
  assert.ok(losses[0] > 0);
  assert.equal(losses[0], losses[1]);
});

test("a device that is lost while pipelines are made ahead is said to be", async (t) => {
  const losing = await serve({ inject: COUNT + LOSE });
  t.after(losing.close);
  const context = await browser.newContext();
  const page = await facadePage(context, losing);
  await assert.rejects(step(page), /lost|destroyed/i);
  await context.close();
});
