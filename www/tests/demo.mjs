// `cargo xtask demo --headless`: the bundled model learns the demo's task through luthier-web, and what it learnt is printed.
// Arguments: device (webgpu or cpu), steps.

import { facadePage, launch } from "./support/browser.mjs";
import { data, exact, recipe, rows } from "./support/larder.mjs";
import { serve } from "./support/server.mjs";

const [device = "cpu", steps = recipe.options.steps] = process.argv.slice(2);
const start = performance.now();
const server = await serve();
const browser = await launch();
try {
  const page = await facadePage(await browser.newContext(), server);
  await page.exposeFunction("tell", tell);
  const { kind, description } = await page.evaluate(async (device) => (globalThis.tuner = await nano(device)).device, device);
  console.log(`--- ${device} in headless Chromium: ${description}`);
  if (kind !== device) throw new Error(`asked for ${device}, the engine runs on ${description}`);
  await scores(page, "before", false);
  await page.evaluate(async ([data, options]) => {
    for await (const event of tuner.train(data, { options })) await tell(event, options.steps);
  }, [data("train"), { ...recipe.options, steps: Number(steps) }]);
  await scores(page, "after", true);
  console.log(`done in ${((performance.now() - start) / 1000).toFixed(0)} s`);
} finally {
  await browser.close();
  await server.close();
}

function tell(event, steps) {
  if (event.type === "plan") console.log("plan:", JSON.stringify(event.summary));
  if (event.type === "validation") console.log(`validation loss ${event.evaluation.loss.toFixed(4)} at step ${event.step}`);
  if (event.type === "restart" || event.type === "warning") console.log(`${event.type}: ${event.error.message}`);
  if (event.type !== "step") return;
  const { step, loss, tokens_per_sec } = event.report;
  if (step > 1 && step < steps && step % 10 > 0) return;
  console.log(`step ${step} of ${steps}  loss ${loss.toFixed(4)}  ${Math.round(tokens_per_sec)} tokens/s`);
}

async function scores(page, phase, adapter) {
  for (const set of ["values", "phrasings"]) {
    const total = rows(set).length;
    const right = await exact(page, set, adapter);
    console.log(`${set}, ${phase} tuning: ${right} of ${total} exact (${Math.round((100 * right) / total)} %)`);
  }
}
