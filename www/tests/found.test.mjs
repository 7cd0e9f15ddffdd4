// What is found in data: columns that say nothing by their names, lengths, what is cut, said twice, or cannot be used.

import assert from "node:assert/strict";
import { test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { drop, goTo, openApp, phase, settings } from "./support/app.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

setUp();

async function opened(options) {
  const page = await openApp(await browser.newContext({ serviceWorkers: "block" }), server, settings(options));
  await page.locator("#start-nano").click();
  await page.getByText("Choose a set, or bring a file.").waitFor();
  return page;
}

/** What was found: each figure by its name. */
const figures = (page) => page.evaluate(() => Object.fromEntries(
  [...document.querySelectorAll("[data-found] .numbers div")].map((div) => [div.querySelector("dt").textContent, Number(div.querySelector("dd").textContent)])));

/** Waits until these figures are among what was found. */
async function found(page, expected) {
  const known = async () => Object.fromEntries(Object.entries(await figures(page)).filter(([name]) => name in expected));
  for (let tries = 0; tries < 50; tries++) {
    if (isDeepStrictEqual(await known(), expected)) return;
    await page.waitForTimeout(100);
  }
  assert.deepEqual(await known(), expected);
}

const jsonl = (rows) => rows.map((row) => JSON.stringify(row)).join("\n");

test("columns are said by hand, the examples follow at once, and the run learns from them", async () => {
  const page = await opened({ steps: 4, warmup_steps: 1, eval_every: 0, seq_len: 64, batch_size: 2 });
  const rows = Array.from({ length: 20 }, (_, i) => ({ id: i, foo: `How many is ${i}?`, bar: `It is ${i}.` }));
  await drop(page, "Choose a file …", "keys.jsonl", jsonl(rows));
  await page.getByText("Which column holds what is not clear").waitFor();
  await found(page, { examples: 0 });
  assert.ok(await page.locator("#train-now").isDisabled());
  const heads = page.locator('[aria-labelledby="columns-title"] thead th');
  assert.deepEqual((await heads.allTextContents()).sort(), ["bar", "foo", "id"]);
  const column = (role) => page.locator(`[data-column="${role}"]`);

  await column("prompt").selectOption("foo");
  await column("completion").selectOption("bar");
  await page.locator("[data-found] .tag").getByText("prompt/completion").waitFor();
  await found(page, { examples: 20, "bad lines": 0 });
  // The answer is what is learned, the question is not.
  const [read, learned] = (await page.locator('[aria-labelledby="tokens-title"] p.sr').textContent()).split("It learns to write:");
  assert.match(read, /How many is 0\?/);
  assert.match(learned, /^ It is 0\./);

  await column("text").selectOption("bar");
  await page.locator("[data-found] .tag").getByText("text", { exact: true }).waitFor();
  assert.equal(await column("prompt").inputValue(), "");
  await column("prompt").selectOption("bar");
  await column("completion").selectOption("foo");
  await page.locator("[data-found] .tag").getByText("prompt/completion").waitFor();
  await page.locator("#train-now:enabled").click();
  await phase(page, "ended");
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("lengths, what is cut, what is twice there and what cannot be used are counted", async () => {
  const page = await opened({ seq_len: 64 });
  const short = Array.from({ length: 10 }, (_, i) => ({ prompt: `Put ${i} apples on shelf ${i}`, completion: `put apples ${i} ${i}` }));
  const long = Array.from({ length: 3 }, (_, i) => ({ prompt: `List ${i}`, completion: Array.from({ length: 20 }, (_, k) => `apples ${k}`).join(", ") }));
  const lines = [...jsonl(short).split("\n"), ...jsonl(long).split("\n"), JSON.stringify(short[0]), JSON.stringify(short[1]), "{ no", '{"prompt": 3}'];
  await drop(page, "Choose a file …", "mixed.jsonl", lines.join("\n"));
  await page.locator("[data-found]").getByText("Found in mixed.jsonl").waitFor();
  await found(page, { examples: 15, "cut at 64": 3, duplicates: 2, "bad lines": 2 });
  const problems = await page.locator(".problems li").allTextContents();
  assert.deepEqual(problems.map((text) => text.match(/line (\d+)/)[1]), ["16", "17"]);

  const histogram = page.locator("figure", { hasText: "Lengths, in tokens" });
  assert.ok((await histogram.locator("rect").count()) > 1);
  await histogram.getByText("As a table").click();
  const counts = (await histogram.locator("tbody td.number").allTextContents()).map(Number);
  assert.equal(counts.reduce((sum, count) => sum + count, 0), 15, "each example is in one range");
  assert.equal(await histogram.locator("line.limit").count(), 1, "where rows are cut");

  await goTo(page, "train");
  await page.locator("#option-seq_len").fill("256");
  await page.locator("#option-seq_len").blur();
  await goTo(page, "data");
  await found(page, { "cut at 256": 0, examples: 15 });
  await page.context().close();
});
