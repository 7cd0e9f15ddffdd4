/** Several methods tuned one after the other on the same data: what each brought so far. */

import type { CompareEvent, LuthierErrorData, Method, TaskFigure, Tried } from "luthier-web";
import { stem } from "../lib/files";
import { fixed } from "../lib/format";
import { METHODS, merges, rateFor } from "../lib/methods";
import { nowOn } from "./adapters";
import { announce } from "./announce.svelte";
import { app, guarded, type Tuned } from "./app.svelte";
import { guessTask } from "./ask";
import { lookAtStorage } from "./machine";
import { forgetRun, type Point, labelOf, listRuns, newId } from "./run.svelte";

export interface Entry {
  method: Method;
  state: "waiting" | "training" | "measuring" | "done" | "stopped" | "failed";
  /** Validations so far. */
  curve: Point[];
  tried: Tried | null;
  measured: Extract<CompareEvent, { type: "measured" }> | null;
  error: LuthierErrorData | null;
}

class Contest {
  phase = $state<"idle" | "running" | "stopping" | "ended">("idle");
  entries = $state.raw<Entry[]>([]);
  untuned = $state.raw<TaskFigure | null>(null);
  /** The set of questions that is asked besides, by its place; null is none. */
  set = $state<number | null>(0);
  steps = $state(0);
  /** The engine cannot be asked to skip what is not a run. */
  skippable = $state(false);
  dataName = $state("");
  stem = "";
  stored = false;
}

export const contest = new Contest();

let controller: AbortController | null = null;

const nameOf = (method: Method): string => METHODS[method]?.name ?? method;

/** The validation before any training: the same for all, but for those that put something before the text from the start. */
export const startOf = (entries: Entry[]): number | null =>
  entries.filter(({ method }) => merges(app.methods, method)).flatMap(({ curve }) => curve.filter(({ step }) => step === 0))[0]?.loss ?? null;

export async function compareMethods(): Promise<void> {
  const { api, data, form, validation } = app;
  if (!api || !data || app.busy || app.compared.length === 0) return;
  forgetRun();
  controller = new AbortController();
  const held = contest.set === null ? undefined : app.heldOut[contest.set];
  const entry = (method: Method): Entry => ({ method, state: "waiting", curve: [], tried: null, measured: null, error: null });
  Object.assign(contest, { phase: "running", entries: app.compared.map(entry), untuned: null, steps: 0 });
  Object.assign(contest, { dataName: app.sample?.title ?? data.name, stem: stem(data.name), stored: app.storable });
  app.contest = { what: "Opening the model anew", done: 0, total: 0 };
  await guarded("train", async () => {
    if (held) await guessTask();
    const task = app.task ?? app.guessed;
    const { lr, ...options } = form;
    const methods = app.compared.map((method) => ({ method, ...(app.rate && { lr: rateFor(app.methods, method, app.rate) }) }));
    const events = api.compare(data, {
      methods, options, signal: controller!.signal,
      ...(validation && { validation: validation.data }),
      ...(held && { test: { data: held.data, ...(task && { task }) } }),
      ...(app.storable && { store: { id: newId() } }),
    });
    for await (const event of events) take(event);
  });
  end();
  await Promise.all([listRuns(), lookAtStorage()]);
}

/** Ends it now; what is finished is kept. */
export function stopContest(): void {
  contest.phase = "stopping";
  controller?.abort();
}

/** Ends the run under way after its step, measures what it brought, and goes on with the next method. */
export async function skip(): Promise<void> {
  contest.skippable = false;
  await guarded("train", async () => app.api?.stop());
}

/** Back to the settings; the adapters stay with the others that the model has. */
export function leaveContest(): void {
  Object.assign(contest, { phase: "idle", entries: [], untuned: null });
  delete app.errors.train;
}

/** Puts a method's adapter on the model. */
export async function useTried(tried: Tried): Promise<boolean> {
  return guarded("train", async () => {
    await app.api?.useAdapter(tried.adapter);
    nowOn(tunedBy(tried));
  });
}

// ---- what the engine says

const change = (index: number, patch: Partial<Entry>): void => {
  contest.entries = contest.entries.map((entry, i) => (i === index ? { ...entry, ...patch } : entry));
};

function take(event: CompareEvent): void {
  switch (event.type) {
    case "untuned":
      contest.untuned = event.task;
      break;
    case "run":
      runSays(event);
      break;
    case "tried":
      change(event.index, { state: "measuring", tried: event.tried });
      app.adapters = [...app.adapters, tunedBy(event.tried)];
      app.contest = { what: `${nameOf(event.tried.method)}: measuring what it cost`, done: 0, total: 0 };
      break;
    case "asking": {
      const who = event.index === null ? "the untuned model" : nameOf(contest.entries[event.index]!.method);
      app.contest = { what: `Asking ${who}`, done: event.done, total: event.total };
      break;
    }
    case "measured":
      change(event.index, { state: "done", measured: event });
      announce(`${nameOf(event.method)}: validation loss ${fixed(contest.entries[event.index]!.tried?.best?.loss, 3)}.`);
      break;
    case "failed":
      contest.skippable = false;
      change(event.index, { state: "failed", error: event.error });
      announce(`${nameOf(event.method)} failed: ${event.error.message}`);
  }
}

function runSays({ index, method, event }: Extract<CompareEvent, { type: "run" }>): void {
  const entry = contest.entries[index]!;
  const what = `Tuning by ${nameOf(method)}`;
  switch (event.type) {
    case "plan":
      contest.steps = Math.max(contest.steps, event.summary.steps);
      contest.skippable = true;
      change(index, { state: "training", curve: entry.curve.filter(({ step }) => step <= event.step) });
      app.contest = { what, done: event.step, total: event.summary.steps };
      break;
    case "step":
      app.contest = { what, done: event.report.step, total: app.contest?.total ?? 0 };
      break;
    case "validation":
      change(index, { curve: [...entry.curve, { step: event.step, loss: event.evaluation.loss }] });
      break;
    case "end":
      contest.skippable = false;
  }
}

/** What of it stays, and the best of it on the model. */
function end(): void {
  contest.entries = contest.entries.map((entry) => (["done", "failed"].includes(entry.state) ? entry : { ...entry, state: "stopped" as const }));
  [contest.phase, contest.skippable, app.contest] = ["ended", false, null];
  const best = bestOf(contest.entries);
  announce(`The comparison has ended. ${best ? `${nameOf(best.method)} has the lowest validation loss.` : ""}`);
  if (best?.tried) void useTried(best.tried);
}

/** The lowest validation loss of those that came to their end; without validation data, the first. */
export function bestOf(entries: Entry[]): Entry | null {
  const loss = ({ tried }: Entry) => tried?.best?.loss ?? Infinity;
  return entries.filter(({ tried }) => tried).reduce<Entry | null>((a, b) => (a && loss(a) <= loss(b) ? a : b), null);
}

const tunedBy = ({ adapter, method, step }: Tried): Tuned => ({
  name: adapter, from: "run", label: labelOf(contest.dataName, step), method, stem: contest.stem, ...(contest.stored && { id: adapter }),
});
