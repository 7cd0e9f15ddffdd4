// Nothing is deleted without a question, and nothing is said to be deleted that is not.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goTo, openApp, phase, ready, settings } from "./support/app.mjs";
import { repository } from "./support/server.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

setUp();

const status = (page) => page.locator('[role="status"]');
const dialog = (page, name) => page.getByRole("alertdialog", { name });

test("a run: Escape keeps it, a deletion that fails is not announced, one that succeeds is", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await openApp(context, server, settings({ steps: 2, warmup_steps: 0, eval_every: 0, seq_len: 64, batch_size: 1 }));
  await ready(page);
  await page.locator("#train-now").click();
  await phase(page, "ended");
  await goTo(page, "keep");
  const remove = page.getByRole("button", { name: "Delete" });
  const question = dialog(page, "Delete this run?");

  await remove.click();
  await question.getByText("2 steps").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement?.textContent), "Keep it", "the focus is where nothing is lost");
  await page.keyboard.press("Escape");
  await question.waitFor({ state: "hidden" });
  await remove.waitFor();

  const [id] = await page.evaluate(async () => {
    const found = [];
    const runs = await (await navigator.storage.getDirectory()).getDirectoryHandle("runs");
    for await (const name of runs.keys()) found.push(name);
    return found;
  });
  const other = await context.newPage();
  await other.goto(`${server.app}blank.html`);
  await other.evaluate((id) => new Promise((held) => {
    navigator.locks.request(`luthier-run-${decodeURIComponent(id)}`, () => new Promise(() => held()));
  }), id);
  await remove.click();
  await question.locator("[data-confirm]").click();
  await page.locator('[data-error="locked"]').waitFor();
  assert.doesNotMatch(await status(page).innerText(), /deleted/);
  await remove.waitFor();

  await other.close();
  await remove.click();
  await question.locator("[data-confirm]").click();
  await status(page).filter({ hasText: "The run was deleted." }).waitFor();
  await page.getByText("None yet.").waitFor();
  await context.close();
});

test("a run under way: discarding it asks, and it goes on meanwhile", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await openApp(context, server, settings({ steps: 4000, eval_every: 0, seq_len: 64, batch_size: 1 }));
  await ready(page);
  await page.locator("#train-now").click();
  await page.locator('[data-phase="running"]').getByText(/Step [1-9]/).waitFor({ timeout: 60_000 });
  const discard = page.getByRole("button", { name: "Discard …" });
  await discard.click();
  await dialog(page, "Discard this run?").waitFor();
  const asked = await page.locator('progress[aria-label="Steps"]').evaluate(({ value }) => value);
  await page.waitForFunction((asked) => document.querySelector('progress[aria-label="Steps"]').value > asked, asked);
  await dialog(page, "Discard this run?").getByRole("button", { name: "Keep it" }).click();
  await phase(page, "running");
  await discard.click();
  await dialog(page, "Discard this run?").locator("[data-confirm]").click();
  await status(page).filter({ hasText: "The run was discarded." }).waitFor();
  await goTo(page, "keep");
  await page.getByText("None yet.").waitFor();
  await context.close();
});

test("a model: not while it is open, here or in another tab", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await openApp(context, server);
  const nano = ["config.json", "tokenizer.json", "model.safetensors"].map((name) => ({
    name, mimeType: "application/octet-stream", buffer: readFileSync(join(repository, "models/nano", name)),
  }));
  await page.locator("#model-files").setInputFiles(nano);
  await page.getByRole("button", { name: "Keep a copy" }).click();
  const row = page.locator('[data-stored="local model"]');
  const remove = (row) => row.getByRole("button", { name: "Delete" });
  await row.getByRole("button", { name: "Use" }).click();
  await row.getByText("It is open: open another model to delete it.").waitFor();
  assert.ok(await remove(row).isDisabled());

  const second = await openApp(context, server);
  const there = second.locator('[data-stored="local model"]');
  await there.getByText("In use: open on another tab").waitFor();
  assert.ok(await remove(there).isDisabled());

  await page.locator("#start-nano").click();
  await goTo(page, "model");
  await page.getByRole("heading", { name: "nano", exact: true }).waitFor();
  await remove(row).click();
  await dialog(page, "Delete this model?").getByText("your own files, which stay where they are").waitFor();
  await dialog(page, "Delete this model?").locator("[data-confirm]").click();
  await status(page).filter({ hasText: "local model was deleted" }).waitFor();
  assert.equal(await row.count(), 0);
  await context.close();
});
