// The bench page measures on the CPU and fills every column; how fast is nobody's promise.

import assert from "node:assert/strict";
import { cpus } from "node:os";
import { test } from "node:test";
import { measure } from "./bench.mjs";
import { launch } from "./support/browser.mjs";
import { serve } from "./support/server.mjs";

test("the bench page measures kernels and steps", { timeout: 180_000 }, async () => {
  const server = await serve();
  const browser = await launch();
  try {
    const { device, kernels, steps, workers } = await measure(await browser.newContext(), server, "cpu", true);
    assert.equal(device.kind, "cpu");
    assert.ok(kernels.limits.gflops > 0.1 && kernels.limits.gbytes > 0.01, JSON.stringify(kernels.limits));
    assert.ok(kernels.kernels.length >= 5);
    for (const row of kernels.kernels) {
      for (const key of ["ms", "gflops", "gbytes", "of_limit"]) assert.ok(row[key] > 0, `${row.kernel} ${key}: ${row[key]}`);
    }
    const [small, ...others] = steps;
    assert.deepEqual([small.net, small.method, others.length], ["small", "lora-r8", 0]);
    for (const key of ["median_ms", "best_ms", "tokens_per_s", "first_ms", "mib"]) assert.ok(small[key] > 0, `${key}: ${small[key]}`);
    assert.ok(Math.abs(small.loss_first - Math.log(256)) < 0.2 && small.loss_last < small.loss_first, JSON.stringify(small));
    assert.deepEqual(workers.map((row) => row.workers), [[], [], [1, 2], [1, 2], [1, 2, 4]][Math.min(cpus().length, 4)]);
    for (const row of workers) assert.ok(row.ms > 0 && row.speedup > 0, JSON.stringify(row));
  } finally {
    await browser.close();
    await server.close();
  }
});
