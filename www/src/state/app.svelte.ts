/** All that the page knows, in one place. Modules beside this one change it; components show it. */

import type {
  Agreement, DataProbe, DataText, DeviceChoice, DeviceInfo, Forgetting, GeneratedText, LuthierApi, LuthierErrorData, Method,
  MethodRow, ModelFiles, ModelInfo, OptionRow, Preview, StoredModel, StoredRun, Summary, Task, TaskReport, TrainOptions,
} from "luthier-web";
import { asError } from "../lib/errors";
import type { HeldOut, Sample } from "../lib/gallery";
import type { GpuReport, StorageReport } from "../lib/gpu";
import { ownOptions } from "luthier-web";
import { rateFor } from "../lib/methods";
import { type Link, defaults, suggest } from "../lib/settings";

export const STEPS = ["model", "data", "try", "train", "compare", "keep"] as const;
export type StepId = (typeof STEPS)[number];

export type Phase = "idle" | "starting" | "running" | "paused" | "stopping" | "ended" | "failed";

export interface Progress {
  what: string;
  done: number;
  total: number;
}

/** A question and what was said to it; null is nothing yet. */
export interface Duel {
  prompt: string;
  base: string | null;
  tuned: string | null;
  /** The next one goes on with this conversation. */
  open: boolean;
}

export const unasked = (prompt: string, open = false): Duel => ({ prompt, base: null, tuned: null, open });

/** What the tuned model is worth on a set of held-out examples. */
export interface Score {
  title: string;
  report: TaskReport;
}

export const rightOf = ({ report }: Score, side: "base" | "tuned"): number =>
  report.examples.filter(({ systems }) => systems[side]?.right).length;

export interface ProbeRound {
  step: number;
  texts: GeneratedText[];
}

export interface Validation {
  data: DataText;
  examples: number;
  bad: number;
}

/** What is on the model beside its own weights. */
export interface Tuned {
  /** What the engine keeps it under. */
  name: string;
  from: "run" | "file" | "history";
  /** Of the run it came from, where that is stored: there it stays, whatever becomes of the model. */
  id?: string;
  label: string;
  method: Method;
  /** What downloads are called after, beside the model. */
  stem: string;
}

class App {
  step = $state<StepId>("model");

  // ---- machine
  gpu = $state.raw<GpuReport | null>(null);
  storage = $state.raw<StorageReport | null>(null);
  /** Runs and models can be kept in this browser. */
  storable = $state(true);
  choice = $state<DeviceChoice>("auto");
  bench = $state.raw<{ device: DeviceInfo; gflops: number } | null>(null);
  benching = $state(false);

  // ---- model
  api = $state.raw<LuthierApi | null>(null);
  model = $state.raw<ModelInfo | null>(null);
  device = $state.raw<DeviceInfo | null>(null);
  opening = $state.raw<Progress | null>(null);
  /** The files that are open, if they are the user's own: they can be kept in the browser. */
  local = $state.raw<ModelFiles | null>(null);
  stored = $state.raw<StoredModel[]>([]);

  // ---- data
  samples = $state.raw<Sample[]>([]);
  sample = $state.raw<Sample | null>(null);
  data = $state.raw<DataText | null>(null);
  heldOut = $state.raw<HeldOut[]>([]);
  preview = $state.raw<Preview | null>(null);
  reading = $state(false);
  /** The user's own validation data, in place of a share of the data. */
  validation = $state.raw<Validation | null>(null);

  // ---- try
  probes = $state<string[]>([]);
  baseAnswers = $state<(string | null)[]>([]);
  asking = $state(false);
  sampling = $state({ max_new_tokens: 48, temperature: 0, seed: 0, chat: true });

  // ---- the probe of the data
  minutes = $state(1);
  /** What the probe that is under way, or was made last, was given. */
  budget = $state.raw({ seconds: 60, since: 0 });
  probing = $state.raw<Progress | null>(null);
  found = $state.raw<DataProbe | null>(null);

  // ---- settings
  rows = $state.raw<OptionRow[]>([]);
  methods = $state.raw<MethodRow[]>([]);
  /** What the user, or a link, has set; everything else follows model and data. */
  chosen = $state.raw<TrainOptions>({});
  summary = $state.raw<Summary | null>(null);
  estimating = $state(false);
  link = $state.raw<Link | null>(null);

  // ---- run
  phase = $state<Phase>("idle");
  runs = $state.raw<StoredRun[]>([]);
  tuned = $state.raw<Tuned | null>(null);
  /** All adapters that this model had since it was opened; one of them is on it, or none. */
  adapters = $state.raw<Tuned[]>([]);
  /** Several methods are compared instead of one, these. */
  several = $state(false);
  compared = $state.raw<Method[]>(["lora", "dora", "ia3"]);
  /** How far the comparison of methods is. */
  contest = $state.raw<Progress | null>(null);

  // ---- compare and keep
  duels = $state<Duel[]>([]);
  scores = $state.raw<Score[]>([]);
  forgetting = $state.raw<Forgetting | null>(null);
  /** What the held-out examples look like, and what the user says they are. */
  guessed = $state.raw<Task | null>(null);
  task = $state.raw<Task | null>(null);
  comparing = $state.raw<Progress | null>(null);
  /** What is compared are the held-out examples. */
  scoring = $state(false);
  exporting = $state.raw<Progress | null>(null);
  /** What was exported last and how it compares with the live model; null where it was too large to be loaded again. */
  exported = $state.raw<{ what: string; agreement: Agreement | null; written?: boolean } | null>(null);

  /** What went wrong, where it is shown. */
  errors = $state<Partial<Record<StepId | "settings" | "device" | "history", LuthierErrorData>>>({});

  // ---- what follows
  private suits: TrainOptions = $derived.by(() => {
    if (!this.model) return {};
    const tiny = this.model.parameters < 2e7;
    return { ...suggest(this.model, this.preview), ...(tiny ? this.sample?.options : {}) };
  });
  /** The learning rate that suits LoRA; those of other methods follow it. */
  rate: number | null = $derived(this.suits.lr ?? null);
  method: Method = $derived(this.chosen.method ?? "lora");
  /** What the form says, whatever the method. */
  form: TrainOptions = $derived({
    ...defaults(this.rows), ...this.suits, ...(this.rate && { lr: rateFor(this.methods, this.method, this.rate) }), ...this.chosen,
  });
  /** What other methods alone read has no place among them. */
  options: TrainOptions = $derived(ownOptions(this.methods, this.method, this.form));
  /** A run is under way. */
  running: boolean = $derived(["starting", "running", "paused", "stopping"].includes(this.phase));
  /** The model has no time for anything else. */
  busy: boolean = $derived(this.running || this.probing !== null || this.contest !== null);
  ready: boolean = $derived(this.model !== null && this.preview !== null && this.preview.examples > 0);
}

export const app = new App();

/** Runs something that may fail; what fails is shown at its place. */
export async function guarded(place: keyof App["errors"], work: () => Promise<void>): Promise<boolean> {
  delete app.errors[place];
  try {
    await work();
    return true;
  } catch (error) {
    // What the user has ended is no error.
    const what = asError(error);
    if (what.code !== "cancelled") app.errors[place] = what;
    return false;
  }
}
