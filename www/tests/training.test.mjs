// luthier-web trains: the same numbers on both back ends and natively, a task learnt, an adapter that the command line reads.

import assert from "node:assert/strict";
import { appendFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { WITHOUT_RELAXED_SIMD, facadePage } from "./support/browser.mjs";
import { data, demo, exact, losses, recipe, rows, train } from "./support/larder.mjs";
import { repository } from "./support/server.mjs";
import { browser, folder, luthier, server, setUp } from "./support/setup.mjs";

/** Of the held-out rows with new values in known phrasings, the share the tuned model must answer exactly. */
const LEARNT = 0.8;
const COMPARED_STEPS = 20;
const LOSS_TOLERANCE = 1e-4;
const nano = join(repository, "models/nano");

setUp();

/** `old` is a browser without relaxed SIMD. */
async function open(device, old = false) {
  const context = await browser.newContext();
  if (old) await context.addInitScript(WITHOUT_RELAXED_SIMD);
  const page = await facadePage(context, server);
  const { kind } = await page.evaluate(async (device) => (globalThis.tuner = await nano(device)).device, device);
  assert.equal(kind, device);
  return page;
}

test("the CPU back end learns the demo's task, and the command line reads the adapter", async () => {
  const page = await open("cpu");
  const before = await exact(page, "values", false);
  const events = await train(page, {}, { probes: [rows("phrasings")[0].prompt] });
  const after = await exact(page, "values", true);
  console.log(`exact on new values, CPU: ${before} before, ${after} after, of ${rows("values").length}`);
  assert.ok(after > before && after >= LEARNT * rows("values").length);
  assert.equal(events.at(0).type, "plan");
  assert.deepEqual(losses(events).length, recipe.options.steps);
  assert.equal(events.at(-1).type, "end");
  assert.equal(events.at(-1).reason, "done");
  assert.deepEqual(events.filter(({ type }) => type === "probe").map(({ step }) => step), [0, recipe.options.steps]);

  const here = await page.evaluate((data) => tuner.evaluate(data), data("phrasings"));
  const loss = (...model) => {
    const said = luthier("eval", "--device", "cpu", "--data", join(demo, recipe.data.phrasings), ...model);
    return Number(said.match(/mean NLL\s+([\d.]+)/)[1]);
  };
  const adapter = await save(page, "adapter", "exportPeft()");
  close(loss("--model", nano, "--adapter", adapter), here.loss, 1e-3, "loss with the adapter, natively and here");
  const merged = await save(page, "merged", "exportMerged({ dtype: 'f32' }).then(({ files }) => files)");
  close(loss("--model", merged), here.loss, 1e-3, "loss of the merged model, natively and here");
  const target = "{ format: 'gguf', dtype: 'q8_0', name: 'tuned' }";
  const gguf = await save(page, "gguf", `exportMerged(${target}).then((merged) => (globalThis.merged = merged).files)`);
  close(loss("--model", join(gguf, "tuned.gguf")), here.loss, 0.02, "loss of the merged GGUF file");
  assert.match(readFileSync(join(gguf, "tuned.Modelfile"), "utf8"), /^FROM \.\/tuned\.gguf\nTEMPLATE/);
  const told = await page.evaluate(`(async () => ({
    agreement: merged.agreement,
    size: await tuner.mergedSize(${target}),
    real: merged.files.find(({ name }) => name.endsWith(".gguf")).blob.size,
  }))()`);
  assert.equal(told.size, told.real);
  assert.ok(told.agreement.kl < 0.05 * told.agreement.moved, JSON.stringify(told.agreement));
  for (const format of ["gguf", "mlx"]) {
    const other = await save(page, `as_${format}`, `exportAdapter("${format}", "tuned").then(({ files }) => files)`);
    const path = format === "gguf" ? join(other, "tuned.gguf") : other;
    close(loss("--model", nano, "--adapter", path), here.loss, 1e-3, `loss with the adapter as ${format}`);
  }
  await page.context().close();
});

/** Writes what the façade exports into a folder, and returns that. */
async function save(page, name, exported) {
  const target = join(folder, name);
  mkdirSync(target);
  const write = `write_${name}`;
  await page.exposeFunction(write, (name, chunk) => appendFileSync(join(target, name), Buffer.from(chunk, "base64")));
  await page.evaluate(`(async () => {
    for (const { name, blob } of await tuner.${exported}) {
      for (let at = 0; at < blob.size; at += 300_000) {
        const bytes = new Uint8Array(await blob.slice(at, at + 300_000).arrayBuffer());
        await ${write}(name, btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")));
      }
    }
  })()`);
  return target;
}

test("WebGPU, the CPU in wasm, two workers on it, with relaxed SIMD or without, and the command line, which replays their run, \
compute the same losses", async () => {
  const measured = {};
  for (const [device, workers, old] of [["cpu", 1, false], ["webgpu", 1, false], ["cpu", 2, true], ["cpu", 2, false]]) {
    server.requests.length = 0;
    const page = await open(device, old);
    assert.deepEqual(server.requests.filter((path) => path.endsWith(".wasm")), [`/luthier-web/dist/luthier${old ? "" : "_relaxed"}_bg.wasm`]);
    measured[`${device} ${workers}${old ? " old" : ""}`] = losses(await train(page, { steps: COMPARED_STEPS, workers }));
    writeFileSync(join(folder, "run.json"), await page.evaluate(() => tuner.exportRun()));
    await page.context().close();
  }
  measured.native = replayed(join(folder, "run.json"));
  for (const values of Object.values(measured)) {
    assert.equal(values.length, COMPARED_STEPS);
    values.forEach((loss, i) => close(loss, measured.native[i], LOSS_TOLERANCE, `loss of step ${i + 1}`));
  }
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  assert.ok(mean(measured["webgpu 1"].slice(-5)) < 0.8 * mean(measured["webgpu 1"].slice(0, 5)), "the loss falls on WebGPU");
});

function replayed(run) {
  const log = join(folder, "log.jsonl");
  luthier("train", "--from", run, "--model", nano, "--device", "cpu", "--data", join(demo, recipe.data.train),
    "--out", join(folder, "native"), "--log-json", log);
  const lines = readFileSync(log, "utf8").split("\n").filter(Boolean).map(JSON.parse);
  return lines.filter((line) => "loss" in line && "lr" in line).map(({ loss }) => loss);
}

function close(a, b, tolerance, what) {
  assert.ok(Math.abs(a - b) <= tolerance * Math.abs(b), `${what}: ${a} and ${b}`);
}
