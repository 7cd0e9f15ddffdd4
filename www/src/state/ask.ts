/** Asking the model: the base before, base and tuned side by side, and on questions with known answers. */

import type { ChatMessage, Prompt, Task } from "luthier-web";
import { announce } from "./announce.svelte";
import { app, guarded, type Duel, rightOf, unasked } from "./app.svelte";

let controller: AbortController | null = null;

export function cancel(): void {
  controller?.abort();
}

/** Asks with or without the adapter; each answer grows through `onText`. */
async function ask(prompts: Prompt[], adapter: boolean, onText: (i: number, text: string) => void): Promise<string[]> {
  const { api, sampling } = app;
  if (!api || prompts.length === 0) return [];
  const grown = prompts.map(() => "");
  const growing = (i: number, piece: string) => {
    grown[i] += piece;
    onText(i, grown[i] ?? "");
  };
  controller = new AbortController();
  // A field that was emptied says nothing.
  const said = Object.fromEntries(Object.entries(sampling).filter(([, value]) => value !== null));
  const answers = await api.generate(prompts, { ...said, adapter }, growing, controller.signal);
  answers.forEach(({ text }, i) => onText(i, text));
  return answers.map(({ text }) => text);
}

export async function askBase(): Promise<void> {
  app.asking = true;
  await guarded("try", async () => {
    app.probes = app.probes.filter((probe) => probe.trim());
    const prompts = [...app.probes];
    app.baseAnswers = prompts.map(() => null);
    await ask(prompts, false, (i, text) => (app.baseAnswers[i] = text));
    announce("The base model has answered.");
  });
  app.asking = false;
}

export type Side = "base" | "tuned";
const BOTH: Side[] = ["base", "tuned"];

/** Asks the duels from `from` on: first the base, then the tuned model, with the same seed. */
export async function compare(from = 0, sides = BOTH): Promise<void> {
  await guarded("compare", async () => {
    for (const [i, side] of sides.entries()) {
      app.comparing = { what: side === "base" ? "Asking the base model" : "Asking the tuned model", done: i, total: sides.length };
      if (!(await askSide(from, side))) return;
    }
    announce("All questions are answered.");
  });
  app.comparing = null;
}

/** Questions that wait for no answer are asked together; false is that the user had enough. */
async function askSide(from: number, side: Side): Promise<boolean> {
  const turns = app.duels.map((_, i) => turnOf(i));
  for (const turn of [...new Set(turns.slice(from))].sort((a, b) => a - b)) {
    const asked = [...turns.keys()].filter((i) => i >= from && turns[i] === turn);
    await ask(asked.map((i) => promptOf(i, side)), side === "tuned", (at, text) => {
      const duel = app.duels[asked[at] ?? -1];
      if (duel) duel[side] = text;
    });
    if (controller?.signal.aborted) return false;
  }
  return true;
}

export async function askOne(prompt: string, whom: Side | "both"): Promise<void> {
  app.duels.push(unasked(prompt, true));
  await compare(app.duels.length - 1, whom === "both" ? BOTH : [whom]);
}

// ---- conversations

/** Whether the duel goes on with the one above it. */
export const follows = (i: number): boolean => app.duels[i - 1]?.open ?? false;

/** Duels of the same conversation above this one. */
const turnOf = (i: number): number => (follows(i) ? 1 + turnOf(i - 1) : 0);

/** What a side is asked: its own conversation so far, without the questions that it was not asked. */
function promptOf(i: number, side: Side): Prompt {
  const prompt = app.duels[i]?.prompt ?? "";
  const before = app.duels.slice(i - turnOf(i), i).flatMap((duel) => exchangeOf(duel, side));
  // Plain text knows no turns.
  if (!app.sampling.chat || before.length === 0) return prompt;
  return [...before, { role: "user", content: prompt }];
}

function exchangeOf({ prompt, ...answers }: Duel, side: Side): ChatMessage[] {
  const answer = answers[side];
  return answer === null ? [] : [{ role: "user", content: prompt }, { role: "assistant", content: answer }];
}

/** The next question goes on with nothing. */
export function newConversation(): void {
  const last = app.duels.at(-1);
  if (last) last.open = false;
}

// ---- examples with known answers

/** What the held-out examples are taken for. */
export async function guessTask(): Promise<void> {
  const { api, heldOut: [set] } = app;
  if (!api || !set || app.guessed) return;
  await guarded("compare", async () => {
    const guessed = await api.guessTask(set.data);
    if (app.heldOut[0] === set) app.guessed = guessed;
  });
}

export function chooseTask(task: Task): void {
  [app.task, app.scores] = [task, []];
}

/** Both models answer all held-out examples; then what tuning cost is measured. */
export async function score(): Promise<void> {
  const { api, data, options, heldOut } = app;
  if (!api) return;
  controller = new AbortController();
  const { signal } = controller;
  app.scoring = true;
  await guarded("compare", async () => {
    await guessTask();
    app.scores = [];
    const { seq_len, batch_size } = options;
    const asking = { task: app.task ?? app.guessed ?? "facts", seq_len, batch_size, ...(data && { known: data }) };
    for (const { title, data: test } of heldOut) {
      const what = (who: string) => `${title}: asking the ${who} model`;
      app.comparing = { what: what("tuned"), done: 0, total: 0 };
      const report = await api.assess(test, asking, (who, done, total) => (app.comparing = { what: what(who), done, total }), signal);
      app.scores = [...app.scores, { title, report }];
    }
    app.comparing = { what: "Measuring what it cost", done: 0, total: 0 };
    app.forgetting = await api.forgetting();
    announce(app.scores.map((s) => `${s.title}: ${rightOf(s, "base")} of ${s.report.items} right before, ${rightOf(s, "tuned")} after.`).join(" "));
  });
  [app.comparing, app.scoring] = [null, false];
}
