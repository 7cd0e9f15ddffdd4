/** The six steps: what each is called, and what it has found or still needs, in a few words. */

import { app, rightOf, STEPS, type StepId } from "../state/app.svelte";
import { contest, type Entry } from "../state/contest.svelte";
import { run } from "../state/run.svelte";
import { fixed, grouped, percent, plural, short } from "../lib/format";

export const TITLES: Record<StepId, { name: string; title: string; lead: string }> = {
  model: { name: "Model", title: "Choose a model", lead: "A small language model is the instrument; your examples will tune it." },
  data: { name: "Data", title: "Give it examples", lead: "A few hundred questions with the answers you want. They are read here and go nowhere." },
  try: { name: "Try", title: "Ask it first", lead: "Hear the model as it is, and find out what it could learn, before a long run." },
  train: { name: "Train", title: "Train", lead: "Say how much of the model learns, and for how long; what suits it is filled in." },
  compare: { name: "Compare", title: "Before and after", lead: "The same questions, the same seed: the base model and the tuned one." },
  keep: { name: "Keep", title: "Keep what was learned", lead: "Take the adapter with you, in files that other tools open." },
};

export interface Status {
  done: boolean;
  text: string;
}

export function status(step: StepId): Status {
  return STATUS[step]();
}

const pending = (text: string): Status => ({ done: false, text });
const done = (text: string): Status => ({ done: true, text });

const ended = (entries: Entry[]): number => entries.filter(({ tried }) => tried).length;

const STATUS: Record<StepId, () => Status> = {
  model() {
    if (app.opening) return pending("opening …");
    return app.model ? done(`${app.model.name.split("/").pop()}, ${short(app.model.parameters)}`) : pending("none yet");
  },
  data() {
    if (app.reading) return pending("reading …");
    if (app.preview) return { done: app.preview.examples > 0, text: plural(app.preview.examples, "example") };
    return pending(app.data && !app.model ? "needs a model" : "none yet");
  },
  try() {
    if (app.probing) return pending("probing …");
    if (app.found) return done({ clear: "learnable", some: "learnable in part", none: "no potential shown" }[app.found.verdict.potential]);
    const answered = app.baseAnswers.filter((answer) => answer !== null).length;
    if (answered > 0) return done(plural(answered, "answer"));
    return pending(app.model ? plural(app.probes.length, "question") : "needs a model");
  },
  train() {
    if (app.contest) return pending(`comparing, ${Math.min(contest.entries.length, 1 + ended(contest.entries))} of ${contest.entries.length}`);
    if (contest.phase === "ended") return done(`${plural(ended(contest.entries), "method")} compared`);
    switch (app.phase) {
      case "starting":
        return pending("starting …");
      case "running":
        return pending(`${percent(run.at, run.of)}, loss ${fixed(run.series.loss.at(-1), 2)}`);
      case "paused":
        return pending(`paused at ${grouped(run.at)}`);
      case "stopping":
        return pending("stopping …");
      case "failed":
        return pending("failed");
      case "ended":
        return done(run.best ? `loss ${fixed(run.best.loss, 3)}` : plural(run.at, "step"));
      default:
        return pending(app.ready ? "ready" : app.model ? "needs data" : "needs a model");
    }
  },
  compare() {
    const total = app.scores.reduce((sum, { report }) => sum + report.items, 0);
    const tuned = app.scores.reduce((sum, score) => sum + rightOf(score, "tuned"), 0);
    if (app.scores[0]?.report.task === "text") return done("measured");
    if (total > 0) return done(`${tuned} of ${total} right`);
    return pending(app.tuned ? "ready" : "needs an adapter");
  },
  keep() {
    if (app.tuned) return pending("ready");
    return pending(app.runs.length > 0 ? plural(app.runs.length, "stored run") : "needs an adapter");
  },
};

/** To another step; its heading takes the focus, so that it is read. */
export function goTo(step: StepId): void {
  app.step = step;
  requestAnimationFrame(() => {
    document.getElementById("main")?.scrollTo({ top: 0 });
    window.scrollTo({ top: 0 });
    document.getElementById("step-title")?.focus({ preventScroll: true });
  });
}

export const numberOf = (step: StepId): number => STEPS.indexOf(step) + 1;
