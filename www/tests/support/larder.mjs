// The demo's task: what is trained, and what counts as learnt.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { repository } from "./server.mjs";

export const demo = join(repository, "demo");
export const recipe = JSON.parse(readFileSync(join(demo, "recipe.json"), "utf8"));
export const data = (set) => ({ name: recipe.data[set], text: readFileSync(join(demo, recipe.data[set]), "utf8") });

export const rows = (set) => data(set).text.split("\n").filter(Boolean).map(JSON.parse);

/** Answers that are exactly the expected ones, but for space around them. */
export async function exact(page, set, adapter) {
  const asked = rows(set);
  const options = { max_new_tokens: recipe.max_new_tokens, temperature: 0, adapter };
  const prompts = asked.map(({ prompt }) => prompt);
  const answers = await page.evaluate(([prompts, options]) => tuner.generate(prompts, options), [prompts, options]);
  return asked.filter(({ completion }, i) => answers[i].text.trim() === completion.trim()).length;
}

/** Trains in the page, on `tuner`; returns all events. */
export function train(page, options, run = {}) {
  const job = [data("train"), { options: { ...recipe.options, val_fraction: 0, ...options }, ...run }];
  return page.evaluate(async ([data, run]) => {
    const events = [];
    for await (const event of tuner.train(data, run)) events.push(event);
    return events;
  }, job);
}

export const losses = (events) => events.filter(({ type }) => type === "step").map(({ report }) => report.loss);
