/** A run, from the start or from where it was interrupted: its events become charts, probes and a state. */

import {
  type AdapterChoice, Luthier, type LuthierErrorData, type StoredRun, type TrainEvent, type TrainOptions,
} from "luthier-web";
import { asError } from "../lib/errors";
import { stem } from "../lib/files";
import { bytes, date, fixed, plural } from "../lib/format";
import { nowOn } from "./adapters";
import { announce } from "./announce.svelte";
import { app, guarded, type ProbeRound } from "./app.svelte";
import { confirmed } from "./confirm.svelte";
import { leaveContest } from "./contest.svelte";
import { lookAtStorage } from "./machine";
import { openNamed } from "./model";
import { defaults } from "../lib/settings";
import { rememberPace } from "./settings";

/** Steps before anything is said about the time left. */
const STEPS_FOR_ETA = 5;
/** Between redraws: charts are for people. */
const REDRAW_MS = 250;

export interface Point {
  step: number;
  loss: number;
}

/** Grows with every step, so it is no reactive state: `run.tick` says that there is more to draw. */
export class Series {
  step: number[] = [];
  loss: number[] = [];
  lr: number[] = [];
  grad_norm: number[] = [];
  tokens_per_sec: number[] = [];
  validation: Point[] = [];
}

class Run {
  id = $state<string | null>(null);
  /** In this browser, from where it goes on when the tab was closed. */
  stored = $state(false);
  options: TrainOptions = {};
  series = new Series();
  tick = $state(0);
  /** Steps done and to do. */
  at = $state(0);
  of = $state(0);
  dataName = $state("");
  stem = "";
  probes = $state.raw<string[]>([]);
  rounds = $state.raw<ProbeRound[]>([]);
  best = $state.raw<Point | null>(null);
  baseLoss = $state<number | null>(null);
  accuracy = $state<number | null>(null);
  savedAt = $state<number | null>(null);
  warnings = $state.raw<{ step: number; error: LuthierErrorData }[]>([]);
  reason = $state<"done" | "stopped" | "diverged" | null>(null);
  /** What came out: the best by validation, where there was one, and the last step. */
  outcome = $state.raw<{ best: Point | null; step: number } | null>(null);
  /** The adapter of it that is on the model. */
  choice = $state<AdapterChoice>("best");
  /** Seconds at work, pauses left out, and what is left of them. */
  elapsed = $state(0);
  left = $state<number | null>(null);
}

export const run = new Run();

export function forgetRun(): void {
  Object.assign(run, { id: null, stored: false, options: {}, outcome: null, choice: "best", series: new Series(), at: 0, of: 0, probes: [], rounds: [], best: null });
  Object.assign(run, { baseLoss: null, accuracy: null, savedAt: null, warnings: [], reason: null, elapsed: 0, left: null });
  run.tick++;
  [app.phase, app.tuned, app.scores, app.forgetting, app.duels] = ["idle", null, [], null, []];
  delete app.errors.train;
}

/** By the time, and by chance where two begin in the same second. */
export const newId = (): string => `${new Date().toISOString().slice(0, 19).replace(/:/g, "-")}-${Math.random().toString(36).slice(2, 6)}`;

// ---- what the user does

export async function train(): Promise<void> {
  const { api, data, options, validation } = app;
  if (!api || !data || app.busy) return;
  forgetRun();
  leaveContest();
  const probes = app.probes.map((probe) => probe.trim()).filter(Boolean);
  const id = newId();
  const store = app.storable ? { store: { id } } : {};
  [run.id, run.stored, run.options] = [id, app.storable, options];
  [run.probes, run.dataName, run.stem] = [probes, app.sample?.title ?? data.name, stem(data.name)];
  await follow(api.train(data, { options, probes, ...store, ...(validation && { validation: validation.data }) }));
}

export async function goOn(id: string): Promise<void> {
  const stored = app.runs.find((run) => run.id === id);
  if (!stored || app.busy || !(await openNamed(stored.model, stored.base_sha256)) || !app.api) return;
  forgetRun();
  leaveContest();
  app.step = "train";
  [run.stored, run.options] = [true, { ...defaults(app.rows), ...stored.options }];
  Object.assign(run, { id, dataName: stored.data_name, stem: stem(stored.data_name), best: stored.best, baseLoss: stored.base_loss, of: stored.steps });
  // The charts begin where they ended; without them the run goes on all the same.
  const log = await Luthier.runLog(id).catch(() => []);
  for (const event of log) if (event.type !== "plan") take(event);
  await follow(app.api.resume(id));
}

/** Back to the settings; what was learned stays on the model until another run begins. */
export function showSettings(): void {
  app.phase = "idle";
  delete app.errors.train;
}

export async function pause(): Promise<void> {
  await guarded("train", async () => app.api?.pause());
}

export async function unpause(): Promise<void> {
  clock.resume();
  app.phase = "running";
  await guarded("train", async () => app.api?.unpause());
}

export async function stop(): Promise<void> {
  app.phase = "stopping";
  await guarded("train", async () => app.api?.stop());
}

/** Ends the run and forgets what it learned, here and in the store. */
export async function discard(): Promise<void> {
  const { api } = app;
  const text = `What was learned in ${plural(run.at, "step")}, and its checkpoints, will be gone.`;
  if (!(await confirmed({ title: "Discard this run?", text, action: "Discard" })) || !app.running) return;
  const id = run.stored ? run.id : null;
  app.phase = "stopping";
  await guarded("train", async () => api?.discard());
  forgetRun();
  // Beside the list, where a run that could not be deleted still stands and can be tried again.
  const deleted = !id || (await guarded("history", () => Luthier.deleteRun(id)));
  if (!deleted) return;
  announce("The run was discarded.");
  await listRuns();
}

/** Puts the other adapter of the run that has ended on the model. */
export async function choose(choice: AdapterChoice): Promise<void> {
  await guarded("train", async () => {
    await app.api?.useAdapter(choice);
    run.choice = choice;
    nowTuned();
  });
}

export async function listRuns(): Promise<void> {
  await guarded("history", async () => {
    app.runs = await Luthier.runs();
  });
}

export async function deleteRun({ id, data_name, created, step, bytes: size }: StoredRun): Promise<void> {
  const text = `“${data_name}”, begun ${date(created)}, ${plural(step, "step")}, ${bytes(size)}: what it learned will be gone.`;
  if (!(await confirmed({ title: "Delete this run?", text, action: "Delete" }))) return;
  if (!(await guarded("history", () => Luthier.deleteRun(id)))) return;
  // Its files are gone; the one on the model stays until another takes its place.
  app.adapters = app.adapters.filter((adapter) => adapter.from !== "history" || adapter.id !== id || adapter.name === app.tuned?.name);
  announce("The run was deleted.");
  await Promise.all([listRuns(), lookAtStorage()]);
}

// ---- what the engine says

/** Seconds at work, from the first step seen: what is before it (building the plan, the first evaluation) is no pace. */
const clock = {
  started: 0,
  first: 0,
  pausedAt: 0,
  paused: 0,
  start(at: number) {
    Object.assign(clock, { started: performance.now(), first: at, pausedAt: 0, paused: 0 });
  },
  pause() {
    clock.pausedAt ||= performance.now();
  },
  resume() {
    if (clock.pausedAt) clock.paused += performance.now() - clock.pausedAt;
    clock.pausedAt = 0;
  },
  seconds: () => ((clock.pausedAt || performance.now()) - clock.started - clock.paused) / 1000,
};

async function follow(events: AsyncIterable<TrainEvent>): Promise<void> {
  app.phase = "starting";
  delete app.errors.train;
  clock.start(0);
  const { id } = run;
  try {
    for await (const event of events) take(event);
  } catch (error) {
    // A run that was discarded meanwhile has nothing more to say.
    if (run.id !== id) return;
    [app.phase, app.errors.train] = ["failed", asError(error)];
    announce(`The run failed: ${app.errors.train.message}`);
  }
  redraw();
  await Promise.all([listRuns(), lookAtStorage()]);
}

function take(event: TrainEvent): void {
  switch (event.type) {
    case "plan":
      app.summary = event.summary;
      run.of = event.summary.steps;
      // Where the newest checkpoint was damaged, the run goes on from before what the charts show.
      cutAfter(event.step);
      if (app.phase === "starting") app.phase = "running";
      break;
    case "step":
      step(event.report);
      break;
    case "validation":
      validated(event);
      break;
    case "probe":
      run.rounds = [...run.rounds, { step: event.step, texts: event.texts }];
      break;
    case "checkpoint":
      run.savedAt = event.step;
      break;
    case "paused":
      clock.pause();
      app.phase = "paused";
      announce(`Paused after step ${event.step}.`);
      break;
    case "warning":
      run.warnings = [...run.warnings, event];
      break;
    case "restart":
      cutAfter(event.step);
      run.warnings = [...run.warnings, event];
      announce(`The engine was restarted and goes on from step ${event.step}.`);
      break;
    case "end":
      end(event);
  }
}

function step(report: Extract<TrainEvent, { type: "step" }>["report"]): void {
  const { series } = run;
  series.step.push(report.step);
  for (const key of ["loss", "lr", "grad_norm", "tokens_per_sec"] as const) series[key].push(report[key]);
  run.at = report.step;
  soon();
  announce(`Step ${report.step} of ${run.of}, loss ${fixed(report.loss, 2)}.`, false);
}

function validated({ step, evaluation, best }: Extract<TrainEvent, { type: "validation" }>): void {
  run.series.validation.push({ step, loss: evaluation.loss });
  if (step === 0) run.baseLoss = evaluation.loss;
  if (best) run.best = { step, loss: evaluation.loss };
  run.accuracy = evaluation.accuracy;
  soon();
  announce(`Validation loss ${fixed(evaluation.loss, 2)} at step ${step}.`, false);
}

function end({ step, reason, best }: Extract<TrainEvent, { type: "end" }>): void {
  [run.at, run.reason, run.best] = [step, reason, best ?? run.best];
  [run.outcome, run.choice] = [{ best, step }, "best"];
  run.elapsed = clock.seconds();
  const { batch_size, seq_len, grad_accum } = run.options;
  const tokens = (batch_size ?? 0) * (seq_len ?? 0) * (grad_accum ?? 1);
  if (step - clock.first >= STEPS_FOR_ETA) rememberPace(((step - clock.first) * tokens) / run.elapsed);
  app.phase = "ended";
  nowTuned();
  if (reason === "diverged") return; // The error says it.
  announce(reason === "done" ? `Training is done after ${plural(step, "step")}.` : `Stopped after step ${step}; what was learned is kept.`);
}

/** What is on the model now, and has not been asked anything; it is kept, to be come back to after another. */
function nowTuned(): void {
  const { best, step } = run.outcome ?? { best: null, step: run.at };
  const from = run.choice === "best" ? (best?.step ?? step) : step;
  const name = adapterName(run.id ?? "run", run.choice);
  const id = run.stored && run.id ? { id: run.id } : {};
  nowOn({ name, from: "run", ...id, label: labelOf(run.dataName, from), method: run.options.method ?? "lora", stem: run.stem }, run.probes);
  void guarded("train", async () => app.api?.keepAdapter(name));
}

/** What an adapter of a run is kept under. */
export const adapterName = (id: string, choice: AdapterChoice): string => (choice === "best" ? id : `${id} ${choice}`);

/** What an adapter is called. */
export const labelOf = (data: string, step: number): string => `${data}, ${step === 0 ? "untouched" : plural(step, "step")}`;

/** What came after the step from which the run goes on is told again. */
function cutAfter(last: number): void {
  const { series } = run;
  const length = series.step.filter((step) => step <= last).length;
  for (const key of ["step", "loss", "lr", "grad_norm", "tokens_per_sec"] as const) series[key].length = length;
  series.validation = series.validation.filter(({ step }) => step <= last);
  run.rounds = run.rounds.filter(({ step }) => step <= last);
  if (run.best && run.best.step > last) run.best = series.validation.reduce<Point | null>((a, b) => (a && a.loss <= b.loss ? a : b), null);
  run.at = last;
  clock.start(last);
  soon();
}

// ---- drawing

let drawing: ReturnType<typeof setTimeout> | undefined;

function soon(): void {
  drawing ??= setTimeout(redraw, REDRAW_MS);
}

function redraw(): void {
  clearTimeout(drawing);
  drawing = undefined;
  run.tick++;
  if (!app.running) return;
  run.elapsed = clock.seconds();
  const done = run.at - clock.first;
  run.left = done >= STEPS_FOR_ETA ? (run.elapsed / done) * (run.of - run.at) : null;
}
