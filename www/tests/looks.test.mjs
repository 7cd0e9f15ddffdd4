// Every screen, light and dark, on a laptop and a phone: no accessibility violation, nothing wider than the window, and a
// picture of each in target/screenshots.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { AxeBuilder } from "@axe-core/playwright";
import { SCREENS, goTo, openApp, phase, ready, settings } from "./support/app.mjs";
import { facadePage } from "./support/browser.mjs";
import { repository } from "./support/server.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
const WINDOWS = { laptop: { width: 1366, height: 768 }, phone: { width: 390, height: 844 } };
const pictures = join(process.env.CARGO_TARGET_DIR ?? join(repository, "target"), "screenshots");

mkdirSync(pictures, { recursive: true });
setUp();

async function look(page, screen, problems) {
  for (const [window, size] of Object.entries(WINDOWS)) {
    await page.setViewportSize(size);
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      const where = `${screen}-${window}-${colorScheme}`;
      await page.screenshot({ path: join(pictures, `${where}.png`), fullPage: window === "phone" });
      const { violations } = await new AxeBuilder({ page }).withTags(RULES).analyze();
      for (const { id, nodes } of violations) problems.push(`${where}: ${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`);
      const beyond = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      if (beyond > 0) problems.push(`${where}: ${beyond} pixels wider than the window`);
    }
  }
}

test("every screen of the app", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const short = settings({ steps: 24, warmup_steps: 2, eval_every: 6, seq_len: 64, batch_size: 2 });
  const page = await openApp(context, server, short);
  const problems = [];
  await look(page, "start", problems);
  await ready(page);
  await look(page, "data", problems);
  await goTo(page, "try");
  await look(page, "try", problems);
  await goTo(page, "train");
  await look(page, "settings", problems);
  await page.locator("#train-start").click();
  await phase(page, "ended");
  for (const screen of SCREENS.filter((screen) => !["data", "try"].includes(screen))) {
    await goTo(page, screen);
    await look(page, screen, problems);
  }
  assert.deepEqual(problems, []);
  assert.deepEqual(page.problems, []);
  await context.close();
});

test("a run on its way, every dialog, and a run to be continued", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await openApp(context, server, settings({ steps: 4000, eval_every: 0, seq_len: 64, batch_size: 1 }));
  const problems = [];
  await ready(page);
  await page.locator("#train-now").click();
  await page.locator('[data-phase="running"]').getByText(/Step \d{2}/).waitFor({ timeout: 60_000 });
  await look(page, "running", problems);
  await page.locator("#pause").click();
  await phase(page, "paused");
  await look(page, "paused", problems);
  await page.getByRole("button", { name: "Discard …" }).click();
  await page.getByRole("alertdialog").waitFor();
  await look(page, "dialog-discard", problems);
  await page.keyboard.press("Escape");
  await page.locator(".private").click();
  const privacy = page.getByRole("dialog");
  await privacy.waitFor();
  const parts = await privacy.locator("summary").all();
  assert.equal(parts.length, 3);
  for (const part of parts) await part.click();
  await look(page, "dialog-privacy", problems);
  assert.deepEqual(page.problems, []);
  await page.close({ runBeforeUnload: false });

  const again = await openApp(context, server);
  await again.locator("#continue-run").waitFor();
  await look(again, "continue", problems);
  await again.getByRole("button", { name: "Delete it" }).click();
  await again.getByRole("alertdialog").waitFor();
  await look(again, "dialog-delete", problems);
  assert.deepEqual(problems, []);
  assert.deepEqual(again.problems, []);
  await context.close();
});

test("the probe, methods, and answers judged", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await openApp(context, server, settings({ steps: 40, warmup_steps: 4, eval_every: 0, seq_len: 64 }));
  const problems = [];
  await ready(page);
  await goTo(page, "try");
  await page.locator("#probe-minutes").selectOption("0.5");
  await page.locator("#probe").click();
  await page.locator("[data-probing] progress[value]").waitFor();
  await page.locator("#probe-title").scrollIntoViewIfNeeded();
  await look(page, "probing", problems);
  await page.locator("[data-found-potential]").waitFor({ timeout: 180_000 });
  await page.getByText("The numbers as a table").click();
  await page.locator("#probe-title").evaluate((title) => title.scrollIntoView());
  await look(page, "probed", problems);
  await goTo(page, "train");
  for (const method of ["Prompt", "DoRA"]) {
    await page.getByLabel(method, { exact: true }).check();
    await page.getByText(/^trainable params/).waitFor();
    await look(page, `method-${method}`, problems);
  }
  await page.locator("#train-start").click();
  await phase(page, "ended");
  await goTo(page, "compare");
  await page.locator("#score:enabled").click();
  await page.locator("[data-forgetting]").waitFor({ timeout: 120_000 });
  await look(page, "scores", problems);
  await page.getByText("All figures").first().click();
  await page.getByText("Every answer").first().click();
  await look(page, "answers", problems);
  assert.deepEqual(problems, []);
  assert.deepEqual(page.problems, []);
  await context.close();
});

test("methods compared", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await openApp(context, server, settings({ steps: 20, warmup_steps: 2, eval_every: 5, seq_len: 64, last_k: 99 }));
  const problems = [];
  await ready(page, "sentiment");
  await goTo(page, "train");
  await page.locator("#several").check();
  await page.getByRole("checkbox", { name: "Last blocks" }).check();
  await page.locator('[data-plan="last-k"]').getByText("the model has 6 blocks").waitFor();
  await look(page, "several", problems);
  await page.locator("#contest-start").click();
  await page.locator('[data-method="dora"][data-state="training"]').waitFor({ timeout: 60_000 });
  await look(page, "comparing", problems);
  await page.locator('[data-contest="ended"]').waitFor({ timeout: 120_000 });
  await look(page, "compared", problems);
  await page.locator("#contest-figure").selectOption("task");
  await look(page, "compared-by-task", problems);
  await page.locator("#contest-figure").selectOption("forgetting");
  await look(page, "compared-by-forgetting", problems);
  await goTo(page, "compare");
  await page.locator("#compare:enabled").waitFor({ timeout: 60_000 });
  await look(page, "adapters", problems);
  assert.deepEqual(problems, []);
  assert.deepEqual(page.problems, []);
  await context.close();
});

test("what a prefix and all weights leave to keep", async () => {
  const problems = [];
  for (const method of ["prefix", "full"]) {
    const context = await browser.newContext({ serviceWorkers: "block" });
    const page = await openApp(context, server, settings({ method, steps: 4, warmup_steps: 0, eval_every: 0, seq_len: 64, batch_size: 2 }));
    await ready(page);
    await page.locator("#train-now").click();
    await phase(page, "ended");
    await goTo(page, "keep");
    await look(page, `keep-${method}`, problems);
    await context.close();
  }
  assert.deepEqual(problems, []);
});

test("a run that failed", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const diverging = { steps: 50, warmup_steps: 0, lr: 1e30, max_grad_norm: 0, eval_every: 0, seq_len: 64, batch_size: 1 };
  const page = await openApp(context, server, settings(diverging));
  const problems = [];
  await ready(page);
  await page.locator("#train-now").click();
  await phase(page, "failed");
  await page.locator('[data-error="diverged"]').waitFor();
  await look(page, "failed", problems);
  assert.deepEqual(problems, []);
  await context.close();
});

test("the page of models, with one of them here", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const facade = await facadePage(context, server);
  await facade.evaluate(() => {
    const file = (name, known) => ({ name, url: new URL(`models/nano/${name}`, location.href).href, ...known });
    const source = { url: "https://huggingface.co", revision: "0123456789abcdef" };
    return Luthier.downloadModel({ name: "HuggingFaceTB/SmolLM2-135M", source, files: [file("config.json"), file("model.safetensors")] });
  });
  await facade.close();
  const page = await context.newPage();
  await page.goto(`${server.app}models.html?model=smollm2-135m`);
  const row = page.getByTestId("hub-smollm2-135m");
  await row.getByText("complete, revision 01234567").waitFor();
  await row.getByText("Its files, and how they were checked").click();
  const problems = [];
  await look(page, "models", problems);
  await row.getByRole("button", { name: "Delete" }).click();
  await page.getByRole("alertdialog").waitFor();
  await look(page, "dialog-models", problems);
  assert.deepEqual(problems, []);
  await context.close();
});
