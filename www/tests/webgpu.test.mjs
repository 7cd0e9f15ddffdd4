// The page on WebGPU, here a software one: the same three clicks, and what it says when the GPU has no more room.

import assert from "node:assert/strict";
import { test } from "node:test";
import { firstStep, openApp, phase, ready, scored, settings } from "./support/app.mjs";
import { judge } from "./support/crowd.mjs";
import { facadePage } from "./support/browser.mjs";
import { serve } from "./support/server.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

/** From the click to the first step on the screen: what is promised, and where noise of a busy machine ends. */
const FIRST_STEP_MS = 2000;
// Its compiling takes twice as long on some processors as on others.
const TOO_LATE_MS = 8000;

/** Half of what the settings would take, and the share of held-out answers, in percent, that must be right after it. */
const LEARNT_STEPS = 60;
const LEARNT = 30;

/** Goes before the worker: a device that has no more than this, where its own memory would be found too large to fill. */
const ROOM = 12 << 20;
const SMALL_DEVICE = `{
  const { createBuffer, pushErrorScope, popErrorScope } = GPUDevice.prototype;
  let taken = 0;
  const scopes = [];
  Object.assign(GPUDevice.prototype, {
    createBuffer(descriptor) {
      taken += descriptor.size;
      return createBuffer.call(this, descriptor);
    },
    pushErrorScope(filter) {
      scopes.push(filter);
      return pushErrorScope.call(this, filter);
    },
    async popErrorScope() {
      const full = scopes.pop() === "out-of-memory" && taken > ${ROOM};
      const error = await popErrorScope.call(this);
      return full ? new GPUOutOfMemoryError("the device is full") : error;
    },
  });
}\n`;

setUp();

async function onGpu(server, options) {
  const page = await openApp(await browser.newContext({ serviceWorkers: "block" }), server, settings(options));
  await page.locator("#device").selectOption("webgpu");
  await ready(page);
  return page;
}

test("three clicks train on WebGPU: the first step is soon there, and what was held out is answered right", async () => {
  const page = await onGpu(server, { steps: LEARNT_STEPS, eval_every: 0, val_fraction: 0.02 });
  const first = await firstStep(page);
  judge(`first step of nano on WebGPU after the click, promised: ${FIRST_STEP_MS} ms`, first, TOO_LATE_MS);
  await phase(page, "ended", 300_000);
  await page.getByRole("heading", { name: `Done: ${LEARNT_STEPS} steps` }).waitFor();
  await page.locator(".head").getByText(/WebGPU|SwiftShader/i).waitFor();
  const scores = await scored(page);
  console.log(`right on WebGPU after ${LEARNT_STEPS} steps, in percent: ${JSON.stringify(scores)}`);
  for (const { before, after } of scores) assert.ok(before < 20 && after >= LEARNT, JSON.stringify(scores));
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("a GPU without room for the run is said to be so, with what to lower, in the page's own words", async (t) => {
  const small = await serve({ inject: SMALL_DEVICE });
  t.after(small.close);
  const page = await onGpu(small, { steps: 2, warmup_steps: 1, eval_every: 0, val_fraction: 0.02 });
  await page.locator("#train-now").click();
  await phase(page, "failed");
  const alert = page.locator('[data-error="out_of_memory"]');
  await alert.getByText(/no room for \d+\.\d MiB on the GPU: .*Out of Memory/i).waitFor();
  await alert.getByText("lower “Batch”, “Row length” or “Kept blocks”, set “Kept as” to bf16, or take a smaller model").waitFor();
  await page.locator("#train-again").click();
  await page.getByRole("heading", { name: "Settings" }).waitFor();
  await page.context().close();
});

/** Goes before the worker: the engine's memory, which only grows, can be asked for. */
const WATCHED = `{
  const { instantiateStreaming, instantiate } = WebAssembly;
  const watch = (made) => (globalThis.engine = (made.instance ?? made).exports.memory, made);
  WebAssembly.instantiateStreaming = async (...args) => watch(await instantiateStreaming(...args));
  WebAssembly.instantiate = async (...args) => watch(await instantiate(...args));
}\n`;
const MIB = 2 ** 20;

test("weights stream to the GPU: the engine never holds more than a fraction of a model's file", async (t) => {
  const host = await serve({ inject: WATCHED });
  t.after(host.close);
  const page = await facadePage(await browser.newContext(), host);
  const size = await page.evaluate(async () => {
    const config = { ...JSON.parse(await text("models/nano/config.json")), hidden_size: 512, intermediate_size: 1536, num_hidden_layers: 8, num_attention_heads: 8, num_key_value_heads: 8, head_dim: 64 };
    const file = await weights(config);
    const json = (name, value) => ({ name, blob: new Blob([value]) });
    const files = [json("config.json", JSON.stringify(config)), { name: "model.safetensors", blob: file }];
    for (const name of ["tokenizer.json", "tokenizer_config.json"]) files.push(json(name, await text(`models/nano/${name}`)));
    globalThis.tuner = await Luthier.open({ model: { name: "wide", files }, device: "webgpu" });
    return file.size;

    /** All weights a Llama has, with a zero in each place, two bytes each. */
    async function weights({ hidden_size: c, intermediate_size: f, num_hidden_layers: layers, vocab_size: vocab }) {
      const tensors = { "model.embed_tokens.weight": [vocab, c], "model.norm.weight": [c], "lm_head.weight": [vocab, c] };
      for (let i = 0; i < layers; i++) {
        const at = `model.layers.${i}`;
        for (const norm of ["input_layernorm", "post_attention_layernorm"]) tensors[`${at}.${norm}.weight`] = [c];
        for (const name of ["q", "k", "v", "o"]) tensors[`${at}.self_attn.${name}_proj.weight`] = [c, c];
        for (const name of ["gate", "up"]) tensors[`${at}.mlp.${name}_proj.weight`] = [f, c];
        tensors[`${at}.mlp.down_proj.weight`] = [c, f];
      }
      let end = 0;
      const header = {};
      for (const [name, shape] of Object.entries(tensors)) {
        const bytes = 2 * shape.reduce((a, b) => a * b);
        header[name] = { dtype: "BF16", shape, data_offsets: [end, (end += bytes)] };
      }
      const head = new TextEncoder().encode(JSON.stringify(header));
      const length = new Uint8Array(new BigUint64Array([BigInt(head.length)]).buffer);
      return new Blob([length, head, new Uint8Array(end)]);
    }
  });
  const held = await page.workers().at(-1).evaluate("engine.buffer.byteLength");
  console.log(`the engine held ${(held / MIB).toFixed(1)} MiB of a file of ${(size / MIB).toFixed(1)} MiB`);
  assert.ok(size > 48 * MIB, `${size}`);
  assert.ok(held < size / 2, `${held} of ${size}`);
  await page.context().close();
});
