/** Adapters that the open model has: which one answers. */

import { announce } from "./announce.svelte";
import { app, guarded, type Tuned, unasked } from "./app.svelte";

/** This one is on the model now, or none: what was asked of the one before no longer counts. */
export function nowOn(tuned: Tuned | null, questions: string[] = app.probes): void {
  app.tuned = tuned;
  if (tuned) app.adapters = [...app.adapters.filter(({ name }) => name !== tuned.name), tuned];
  app.duels = questions.filter((question) => question.trim()).map((question) => unasked(question));
  [app.scores, app.forgetting] = [[], null];
}

/** Puts another of them on the model; null takes it off. */
export async function switchTo(name: string | null): Promise<void> {
  const tuned = app.adapters.find((adapter) => adapter.name === name) ?? null;
  const done = await guarded("compare", async () => app.api?.useAdapter(tuned?.name ?? null));
  if (!done) return;
  nowOn(tuned);
  announce(tuned ? `On the model now: ${tuned.label}.` : "The model is its base now.");
}
