// Every screen, light and dark, on a laptop and a phone: no accessibility violation, nothing wider than the window, and a
// picture of each in target/screenshots.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { AxeBuilder } from "@axe-core/playwright";
import { SCREENS, goTo, openApp, phase, ready, settings } from "./support/app.mjs";
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

test("the page of models", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await context.newPage();
  await page.goto(`${server.app}models.html?model=smollm2-135m`);
  await page.getByRole("heading", { level: 1 }).waitFor();
  const problems = [];
  await look(page, "models", problems);
  assert.deepEqual(problems, []);
  await context.close();
});
