/**
 * What page and worker say to each other, and a worker and its helpers. One asks; the other sends events meanwhile and one
 * answer at the end.
 */

import type { Work } from "./engine.js";
import type { SeenRequest } from "./privacy.js";
import type {
  AdapterFormat, Agreement, DataProbe, DataText, DeviceChoice, DeviceInfo, Evaluation, Forgetting, GeneratedText, KernelBench, LuthierErrorData,
  Merged, MergeTarget, Method, MethodRow, ModelDownload, ModelFiles, ModelInfo, NamedBlob, OptionRow, Preview, ProbeBudget, Prompt,
  SamplingOptions, Summary, Task, TaskOptions, TaskReport, TrainEvent, TrainOptions,
} from "./types.js";

export interface Opened {
  device: DeviceInfo;
  model: ModelInfo;
}

/** How the user wants a run to be. */
export interface Wanted {
  paused: boolean;
  stopped: boolean;
}

/** A run as each worker that takes it up gets it. */
export interface Job {
  wanted: Wanted;
  data: DataText;
  validation?: DataText;
  options: TrainOptions;
  probes: string[];
  /** Where checkpoints go; without it they are handed to the page, which keeps the last. */
  store?: { id: string; create: boolean };
  every_seconds: number;
  /** Goes on from here; a stored run finds its own. */
  checkpoint?: Uint8Array;
}

/** What a helper needs of a run to compute shares of its steps. */
export type Shared = Pick<Job, "data" | "validation" | "options">;

/** What came out of a run. */
export interface Tuned {
  /** The one on the model: the best by validation, where there was one. */
  best: NamedBlob[];
  /** That of the last step, where it is another. */
  last: NamedBlob[] | null;
  /** run.json */
  record: string;
}

/** What the page keeps because the worker may die: the last checkpoint of a run that is not stored, and what comes out. */
export type Kept = { type: "kept"; checkpoint: Uint8Array } | { type: "tuned"; tuned: Tuned };

export type Control = Wanted | "checkpoint";

type Bytes = [done: number, total: number];
type Said = [what: string, done: number, total: number];
type Call<Ask, Answer, Event = never> = { ask: Ask; answer: Answer; event: Event };

export interface Calls {
  open: Call<{ model: ModelFiles; device: DeviceChoice; measure?: boolean | undefined }, Opened, Bytes>;
  benchmark: Call<DeviceChoice, { device: DeviceInfo; gflops: number }>;
  kernels: Call<DeviceChoice, KernelBench>;
  options: Call<null, { options: OptionRow[]; methods: MethodRow[] }>;
  preview: Call<{ data: DataText; options: { seq_len?: number; limit?: number } }, Preview>;
  estimate: Call<{ data: DataText; validation?: DataText; options: TrainOptions }, Summary>;
  train: Call<Job, null, TrainEvent | Kept>;
  control: Call<Control, null>;
  /** Of a helper: it takes part in a run, and says by a hash in which. */
  join: Call<Shared, string>;
  /** Of a helper: what is dealt to it of a step (from 0), or of the validation after it. */
  share: Call<{ worker: number; of: Work; step: number; parameters: Float32Array }, Float32Array>;
  generate: Call<{ prompts: Prompt[]; options: SamplingOptions }, GeneratedText[], [prompt: number, piece: string]>;
  evaluate: Call<{ data: DataText; options: object }, Evaluation>;
  probe: Call<{ data: DataText; test?: DataText; options: TrainOptions; budget: ProbeBudget }, DataProbe, Said>;
  guessTask: Call<DataText, Task>;
  assess: Call<{ data: DataText; options: TaskOptions }, TaskReport, Said>;
  forgetting: Call<null, Forgetting>;
  adapterMethod: Call<null, Method | null>;
  exportAdapter: Call<{ format: AdapterFormat; name: string }, { files: NamedBlob[]; agreement: Agreement }>;
  exportMerged: Call<MergeTarget, Merged, Bytes>;
  mergedSize: Call<MergeTarget, number>;
  exportRun: Call<null, string>;
  keepAdapter: Call<string, null>;
  /** One that was kept in this very worker; null is none. */
  useAdapter: Call<string | null, null>;
  importPeft: Call<NamedBlob[], LuthierErrorData | null>;
  storeModel: Call<ModelFiles, null, Bytes>;
  downloadModel: Call<ModelDownload, null, Bytes>;
  checkModel: Call<string, null, Bytes>;
}

export type CallName = keyof Calls;

/** To the worker. `wasm` is the engine, or where it lies: a worker that starts from a blob cannot find it by itself. */
export type Question =
  | { [K in CallName]: { id: number; name: K; ask: Calls[K]["ask"]; wasm: string | WebAssembly.Module } }[CallName]
  | { cancel: number };

/** From the worker. After `fatal` it must be ended: a panic leaves the engine's memory in no known state. */
export type Reply =
  | { id: number; event: unknown }
  | { id: number; answer: unknown }
  | { id: number; error: LuthierErrorData }
  | { request: SeenRequest }
  | { fatal: LuthierErrorData };
