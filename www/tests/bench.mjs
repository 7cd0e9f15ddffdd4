// `cargo xtask bench --browser`: the bench page in headless Chromium, on WebGPU and on the CPU, as tables or as JSON.
// Arguments: [--device webgpu|cpu] [--quick] [--hardware] [--no-relaxed-simd] [--json FILE]. Without --hardware WebGPU is
// SwiftShader; --no-relaxed-simd measures the engine that browsers without it load.

import { renameSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { WITHOUT_RELAXED_SIMD, launch } from "./support/browser.mjs";
import { serve } from "./support/server.mjs";

const PATIENCE_MS = 15 * 60_000;

/** What the page measures on one device. */
export async function measure(context, server, device, quick) {
  const page = await context.newPage();
  page.on("pageerror", (error) => console.error("page:", error.message));
  await page.goto(`${server.app}bench.html`);
  await page.getByRole("combobox").selectOption(device);
  if (quick) await page.getByLabel("Only the first net").check();
  await page.getByRole("button", { name: "Measure" }).click();
  const json = page.locator("#json");
  const problem = page.getByRole("alert");
  await json.or(problem).waitFor({ state: "attached", timeout: PATIENCE_MS });
  if (await problem.count() > 0) throw new Error(`${device}: ${await problem.textContent()}`);
  const measured = JSON.parse(await json.textContent());
  await page.close();
  return measured;
}

function print({ device, kernels, steps, workers }) {
  const { gflops, gbytes } = kernels.limits;
  console.log(`\n${device.description}: at most ${gflops.toFixed(0)} GFLOP/s of multiply-adds, ${gbytes.toFixed(1)} GB/s of copying\n`);
  table(["kernel", "shape", "ms", "GFLOP/s", "GB/s", "of limit"], kernels.kernels.map((row) =>
    [row.kernel, row.shape, row.ms.toFixed(2), row.gflops.toFixed(1), row.gbytes.toFixed(1), `${Math.round(100 * row.of_limit)} %`]));
  console.log();
  table(["net", "method", "batch", "median ms", "best ms", "tokens/s", "first ms", "MiB"], steps.map((row) =>
    [row.net, row.method, row.batch, ...[row.median_ms, row.best_ms].map((ms) => ms.toFixed(1)),
      ...[row.tokens_per_s, row.first_ms, row.mib].map((x) => x.toFixed(0))]));
  if (workers.length === 0) return;
  console.log();
  table(["net", "batch", "workers", "ms a step", "times faster"], workers.map((row) =>
    [row.net, row.batch, String(row.workers), row.ms.toFixed(1), row.speedup.toFixed(2)]));
}

function table(head, rows) {
  const widths = head.map((name, i) => Math.max(name.length, ...rows.map((row) => row[i].length)));
  const line = (cells) => console.log(`| ${cells.map((cell, i) => cell.padEnd(widths[i])).join(" | ")} |`);
  line(head);
  line(widths.map((width) => "-".repeat(width)));
  rows.forEach(line);
}

async function main() {
  const flag = { type: "boolean", default: false };
  const { values } = parseArgs({ options: { device: { type: "string" }, quick: flag, hardware: flag, "no-relaxed-simd": flag, json: { type: "string" } } });
  const server = await serve();
  const browser = await launch([], values.hardware);
  const all = [];
  try {
    for (const device of values.device ? [values.device] : ["webgpu", "cpu"]) {
      const context = await browser.newContext();
      if (values["no-relaxed-simd"]) await context.addInitScript(WITHOUT_RELAXED_SIMD);
      const measured = await measure(context, server, device, values.quick);
      all.push(measured);
      print(measured);
    }
  } finally {
    await browser.close();
    await server.close();
  }
  if (!values.json) return;
  writeFileSync(`${values.json}.tmp`, `${JSON.stringify(all, null, 1)}\n`);
  renameSync(`${values.json}.tmp`, values.json);
}

if (process.argv[1] === import.meta.filename) await main();
