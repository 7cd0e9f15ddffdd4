// The machine as the page finds it: what it says of the graphics there are or are not, and how it trains all the same.

import assert from "node:assert/strict";
import { test } from "node:test";
import { goTo, openApp, phase, ready, settings } from "./support/app.mjs";
import { serve } from "./support/server.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

setUp();

const AGENTS = {
  firefox: "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
  firefoxOnWindows: "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:144.0) Gecko/20100101 Firefox/144.0",
  safari: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15",
  edge: "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/112.0.0.0 Safari/537.36 Edg/112.0.0.0",
  android: "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile Safari/537.36",
};

const ENOUGH = { maxBufferSize: 1 << 28, maxStorageBufferBindingSize: 1 << 28, maxStorageBuffersPerShaderStage: 10 };
const adapter = (limits = {}, info = { vendor: "acme", architecture: "one" }) => ({ info, limits: { ...ENOUGH, ...limits }, features: ["shader-f16"] });

/** What `navigator.gpu` gives, who asks, the case that the card names, and what it says. */
const CASES = [
  ["no API in Firefox on Linux", { gpu: "none", agent: AGENTS.firefox }, "absent", /no WebGPU.*none yet on Linux.*use Chrome.*Meanwhile training goes on the CPU/s],
  ["no API in an older Safari", { gpu: "none", agent: AGENTS.safari }, "absent", /no WebGPU.*Safari has WebGPU since 26.*update the system/s],
  ["no API in an older Edge", { gpu: "none", agent: AGENTS.edge }, "absent", /no WebGPU.*Update: Chrome and Edge/s],
  ["no adapter on Linux", { gpu: null }, "no_adapter", /no graphics device.*Unsafe WebGPU Support.*chrome:\/\/gpu.*Meanwhile/s],
  ["no adapter in Firefox", { gpu: null, agent: AGENTS.firefoxOnWindows }, "no_adapter", /no graphics device(?!.*chrome:).*about:support.*Meanwhile/s],
  ["no adapter in Safari", { gpu: null, agent: AGENTS.safari }, "no_adapter", /no graphics device(?!.*(chrome|about):).*Low Power Mode.*Meanwhile/s],
  ["no adapter on Android", { gpu: null, agent: AGENTS.android }, "no_adapter", /no graphics device.*Android 12/s],
  ["an adapter that throws", { gpu: "throws" }, "no_adapter", /no graphics device/],
  ["a software adapter", { gpu: adapter({}, { description: "SwiftShader Device" }) }, "software", /in software only \(SwiftShader Device\).*CPU path is faster/s],
  ["a fallback adapter", { gpu: adapter({}, { vendor: "acme", isFallbackAdapter: true }) }, "software", /in software only \(acme\)/],
  ["too few buffers", { gpu: adapter({ maxStorageBuffersPerShaderStage: 4 }) }, "too_small", /acme one are too small: 4 storage buffers a kernel, 8 are needed/],
  ["too small buffers", { gpu: adapter({ maxStorageBufferBindingSize: 1 << 25 }) }, "too_small", /too small: 32(\.0)? MiB a buffer, 64(\.0)? MiB are needed/],
];

/** Goes before the worker: there, too, no WebGPU. */
const NO_GPU = `Object.defineProperty(WorkerNavigator.prototype, "gpu", { value: undefined });\n`;

/** Goes before the page's scripts: other graphics than this machine has. */
function instead(gpu) {
  const give = async () => {
    if (gpu === "throws") throw new Error("the driver is gone");
    return gpu && { ...gpu, features: new Set(gpu.features) };
  };
  Object.defineProperty(Navigator.prototype, "gpu", { value: gpu === "none" ? undefined : { requestAdapter: give } });
}

test("the device card says which case it is, and what to do there", async () => {
  for (const [what, { gpu, agent }, expected, words] of CASES) {
    const context = await browser.newContext({ serviceWorkers: "block", ...(agent ? { userAgent: agent } : {}) });
    await context.addInitScript(instead, gpu);
    const page = await openApp(context, server);
    await page.locator(`[data-gpu="${expected}"]`).filter({ hasText: words }).waitFor({ timeout: 10_000 }).catch(async () => {
      assert.fail(`${what}: ${await page.locator('[aria-labelledby="device-title"]').innerText()}`);
    });
    await context.close();
  }
});

test("graphics without fault are named, with their limits, and no advice", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  await context.addInitScript(instead, adapter());
  const page = await openApp(context, server);
  const card = page.locator('[aria-labelledby="device-title"]');
  await card.getByText("256 MiB").waitFor();
  await card.getByText("Computes on acme one.").waitFor();
  assert.match(await card.innerText(), /f16 · subgroups\s+yes · no/);
  assert.equal(await page.locator("[data-gpu]").count(), 0);
  await context.close();
});

test("without WebGPU the same page trains on the CPU, and says how long it will take", async (t) => {
  const bare = await serve({ inject: NO_GPU });
  t.after(bare.close);
  const context = await browser.newContext({ serviceWorkers: "block" });
  await context.addInitScript(instead, "none");
  const page = await openApp(context, bare, settings({ steps: 6, warmup_steps: 1, eval_every: 0, seq_len: 64, batch_size: 2 }));
  await page.locator('[data-gpu="absent"]').waitFor();
  await ready(page);
  await goTo(page, "train");
  await page.locator(".plan").getByText("by the two-second measurement").waitFor({ timeout: 30_000 });
  assert.match(await page.locator(".plan .time b").textContent(), /second|minute/);
  await page.locator(".plan").getByText(/^the CPU|^CPU/i).waitFor();
  await page.locator("#train-start").click();
  await phase(page, "ended");
  assert.deepEqual(page.problems, []);
  await context.close();
});

test("a device that was asked for and is not there is said, and the CPU offered", async (t) => {
  const bare = await serve({ inject: NO_GPU });
  t.after(bare.close);
  const page = await openApp(await browser.newContext({ serviceWorkers: "block" }), bare);
  await page.locator("#device").selectOption("webgpu");
  await page.locator("#start-nano").click();
  await page.locator("[data-error]").filter({ hasText: /no GPU adapter was found.*use “Device” cpu, or a browser that has WebGPU/s }).waitFor({ timeout: 10_000 }).catch(async () => {
    assert.fail(await page.locator("main").innerText());
  });
  await goTo(page, "model");
  await page.locator("#device").selectOption("cpu");
  await page.locator("#start-nano").click();
  await goTo(page, "model");
  await page.locator('[aria-labelledby="device-title"]').getByText(/Computes on .*CPU/).waitFor();
  await page.context().close();
});

test("memory is green, amber or red by what may be used, and red says what to lower", async () => {
  const page = await openApp(await browser.newContext({ serviceWorkers: "block" }), server, settings({ workers: 1, kept_blocks: 0 }));
  await ready(page);
  await goTo(page, "train");
  await page.locator('[data-memory="fits"]').waitFor();
  await page.getByText("All settings").first().click();
  const total = await page.locator("#memory-title").textContent();
  const [, amount, unit] = total.match(/Memory: ([\d.]+) (MiB|GiB)/);
  const gib = Number(amount) / (unit === "MiB" ? 1024 : 1);
  const allow = async (share) => {
    const field = page.locator("#option-memory_gib");
    await field.fill(String(gib * share));
    await field.blur();
  };
  await allow(1.1);
  await page.locator('[data-memory="tight"]').waitFor();
  await page.locator(".plan .note").getByText(/To need less: lower “Batch”.* or .*, or take a model that is smaller/).waitFor();
  assert.equal(await page.locator("[data-error]").count(), 0);
  await allow(0.9);
  await page.locator('[data-memory="too large"]').waitFor();
  await page.locator("[data-error]").filter({ hasText: /needs at least \d+\.\d MiB, allowed are \d+\.\d MiB/ }).waitFor();
  assert.equal(await page.locator("#memory-title").textContent(), total, "the smallest there is");
  await allow(2);
  await page.locator("[data-error]").waitFor({ state: "detached" });
  await page.locator('[data-memory="fits"]').waitFor();
  // What is wrong with something else has no plan.
  await page.locator("#option-seq_len").fill("100000");
  await page.locator("#option-seq_len").blur();
  await page.getByText("None yet: see the message.").waitFor();
  await page.context().close();
});
