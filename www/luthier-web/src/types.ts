/**
 * The vocabulary of luthier-web: what goes into the engine and what comes out of it. Names are those of the command
 * line (`--seq-len` is `seq_len`), because the same Rust structures are behind both. Nothing here runs.
 */

import type { SeenRequest } from "./privacy.js";

/** Where the engine computes. "auto" takes a real GPU if there is one, else the CPU; "webgpu" takes a software GPU too. */
export type DeviceChoice = "auto" | "webgpu" | "cpu";

/** A named file; large ones are read by range and are never whole in memory. */
export interface NamedBlob {
  name: string;
  blob: Blob;
}

/** A model: the files of a Hugging Face folder (config.json, *.safetensors, tokenizer.json …) or one .gguf. */
export interface ModelFiles {
  /** What adapters name as their base ("HuggingFaceTB/SmolLM2-135M-Instruct"). */
  name: string;
  files: NamedBlob[];
}

export interface OpenOptions {
  model: ModelFiles;
  /** Default "auto". */
  device?: DeviceChoice;
  /**
   * Whether each product's shaders are measured on this GPU, once, in less than two seconds, and the fastest kept in private
   * storage. Default: on real GPUs. Without storage nothing is measured, since a resumed run is to give the same bits.
   */
  measure?: boolean;
  /** Bytes streamed to the device and in all. */
  onProgress?: (done: number, total: number) => void;
  /** The model was opened again, after a fault of the engine or for another run; maybe on another device than before. */
  onReopen?: (device: DeviceInfo) => void;
}

export interface DeviceInfo {
  kind: "webgpu" | "cpu";
  /** One line for people: adapter, "CPU (wasm, 1 thread)", or "CPU (wasm, up to 3 workers)". */
  description: string;
  /** A GPU that is really the CPU (SwiftShader, lavapipe): works, slowly. */
  software: boolean;
}

/** What {@link LuthierStatic.kernels} measures. Rates are in units of 10⁹ a second. */
export interface KernelBench {
  device: DeviceInfo;
  /** Multiply-adds of f32 in registers, ×2, and bytes read and written by a copy. */
  limits: { gflops: number; gbytes: number };
  /** Of the fastest sample; `of_limit` is the share of what the limits allow. */
  kernels: { kernel: string; shape: string; ms: number; gflops: number; gbytes: number; of_limit: number }[];
}

export interface ModelInfo {
  name: string;
  /** Of the configuration and all weights: two models may have one name. */
  sha256: string;
  family: string;
  parameters: number;
  layers: number;
  hidden: number;
  heads: number;
  kv_heads: number;
  vocab: number;
  /** Positions the model knows: the largest seq_len. */
  context: number;
  /** Storage of the frozen weights: "bf16", "q8_0" … */
  format: string;
  chat_template: boolean;
  /** Values `target_modules` may name. */
  modules: string[];
}

/** Data as given: a file's name says what it is (.jsonl, .json, .csv, .tsv, .txt). */
export interface DataText {
  name: string;
  text: string;
  columns?: Columns;
  /** Leave out records that cannot be used instead of refusing the file. Default false. */
  skip_bad?: boolean;
}

/** Which columns or keys hold what; left out, they are recognised by their usual names. */
export interface Columns {
  prompt?: string;
  completion?: string;
  text?: string;
}

/** One record as the model sees it. `pieces` are tokens in order, decoded one by one. */
export interface PreviewRecord {
  /** 1-based line of the file. */
  line: number;
  pieces: { text: string; supervised: boolean }[];
  tokens: number;
  supervised: number;
  truncated: boolean;
}

/** What was found in the data, before anything is trained. */
export interface Preview {
  /** "messages", "prompt/completion", "instruction", "conversations", "text"; "unknown" until columns are named. */
  kind: string;
  /** Column names of the file, for mapping (CSV/TSV header or the keys of the first JSON record). */
  columns: string[];
  /** What each role was mapped to. */
  mapping: Columns;
  /** First rows as they are in the file, cell by cell in the order of `columns`. */
  rows: string[][];
  records: PreviewRecord[];
  examples: number;
  truncated: number;
  duplicates: number;
  tokens: number;
  supervised_tokens: number;
  longest: number;
  /** Token lengths: `counts[i]` examples have `edges[i] <= length < edges[i + 1]`. */
  histogram: { edges: number[]; counts: number[] };
  /** Records that cannot be used, by line; the first thousand. */
  problems: { line: number; message: string }[];
  /** All records that cannot be used. */
  bad: number;
}

/** Bytes of a run, known before anything is allocated. */
export interface MemoryPlan {
  weights: number;
  adapter: number;
  activations: number;
  /** Inputs, staging, tables, kernel parameters. */
  other: number;
  /** All of this again, in each of the other workers. */
  helpers: number;
  total: number;
  kept_blocks: number;
  blocks: number;
}

/** What a run is about to do. */
export interface Summary {
  device: string;
  examples: number;
  validation_examples: number;
  /** Records left out because they could not be used, where that was asked for. */
  skipped: number;
  truncated: number;
  /** Of the truncated, those that lost tokens to be learned. */
  lost_targets: number;
  /** Examples with nothing to learn, which are passed over. */
  without_targets: number;
  duplicates: number;
  tokens: number;
  supervised_tokens: number;
  rows: number;
  steps: number;
  trainable_parameters: number;
  /** Of the trainable, those that stand in place of none of the base's. */
  added_parameters: number;
  /** Of the base. */
  parameters: number;
  /** The line that PEFT prints. */
  trainable: string;
  /** Those that each step is dealt to: see {@link TrainOptions}. */
  workers: number;
  memory: MemoryPlan;
  /** What to do where memory is short: a half sentence; options are named as on the command line. */
  lower: string;
}

/** What is trained. */
export type Method = "lora" | "dora" | "ia3" | "prompt" | "prefix" | "norm" | "bitfit" | "last-k" | "full" | "lisa";

/** A method as a form offers it. */
export interface MethodRow {
  name: Method;
  /** The learning rate to start from. */
  lr: number;
  /** Options that it reads; those that no method names are read by all. */
  options: (keyof TrainOptions)[];
  /** PEFT opens its adapter. */
  in_peft: boolean;
  /** It can be folded into the weights: {@link LuthierApi.exportMerged}. */
  merges: boolean;
}

/**
 * Flags of `luthier train` in snake_case; see {@link OptionRow} for the table they come from.
 *
 * `workers`: on the CPU each step's rows are dealt to so many web workers, each with a copy of the model. Left out, there are
 * as many as there are cores but one, at most 8, no more than rows, and no more than fit together into `memory_gib` and into a quarter of
 * the machine's memory (1 GiB where the browser does not tell); WebGPU has
 * one, and computes the shares in turn where a number is asked for. The bits of a run depend on the number, so a run that goes on keeps it.
 */
export type TrainOptions = Partial<{
  method: Method;
  rank: number;
  alpha: number;
  dropout: number;
  rslora: boolean;
  /** Null is the method's own, as with `lr`. */
  target_modules: string | null;
  rank_pattern: string | null;
  alpha_pattern: string | null;
  loraplus_lr_ratio: number;
  init_lora_weights: "kaiming" | "gaussian" | "pissa" | "olora";
  num_virtual_tokens: number;
  prompt_tuning_init: string;
  prompt_tuning_init_text: string;
  last_k: number;
  lisa_blocks: number;
  lisa_interval: number;
  lr: number | null;
  schedule: "constant" | "linear" | "cosine";
  warmup_steps: number;
  optim: "adamw" | "adamw_8bit";
  weight_decay: number;
  max_grad_norm: number;
  epochs: number;
  steps: number | null;
  batch_size: number;
  seq_len: number;
  grad_accum: number;
  seed: number;
  no_shuffle: boolean;
  no_packing: boolean;
  eval_every: number;
  val_fraction: number;
  kept_blocks: number | null;
  /** What the widest activations are kept as between forward and backward: bf16 takes half the memory. */
  activations: "f32" | "bf16";
  memory_gib: number;
  workers: number | null;
}>;

/** One option as the form shows it: the same table that makes the command line's flags. */
export interface OptionRow {
  /** snake_case key of {@link TrainOptions}. */
  name: keyof TrainOptions;
  /** "--seq-len" */
  flag: string;
  help: string;
  type: "integer" | "number" | "boolean" | "text" | "choice";
  choices?: string[];
  default: number | boolean | string | null;
}

export interface StepReport {
  step: number;
  /** Mean negative log-likelihood of the step's supervised tokens, in nats. */
  loss: number;
  lr: number;
  grad_norm: number;
  tokens: number;
  supervised_tokens: number;
  tokens_per_sec: number;
}

export interface Evaluation {
  loss: number;
  perplexity: number;
  accuracy: number;
  supervised_tokens: number;
  tokens: number;
}

/** A figure with the interval that holds it in 95 of 100 draws; null is none that can be told. */
export interface Estimate {
  value: number | null;
  low: number | null;
  high: number | null;
}

/** How long a probe may take. */
export interface ProbeBudget {
  /** Default 2. */
  minutes?: number;
  /** Steps of each short run, instead of as many as fit the minutes. */
  steps?: number | null;
}

/** What ruins runs, with the lines of the data that it is about. */
export interface Finding {
  kind:
    | "leakage" | "contradiction" | "label-noise" | "no-target" | "truncation" | "no-end" | "imbalance" | "learning-rate"
    | "repetition";
  what: string;
  lines: number[];
}

/** What short runs on parts of the data say: can this model learn them, and what would help. */
export interface DataProbe {
  verdict: {
    potential: "clear" | "some" | "none";
    /** Held-out loss in nats a token: untuned, tuned on all data, and tuned on the same data with the answers mixed up. */
    base: number;
    tuned: number;
    control: number;
    /** Percent of the control's loss, and of the base's, that the tuned model is without. */
    learned: Estimate;
    gained: Estimate;
    /** Points of percent by which more held-out answers are exactly right than by the control or a constant answer; null of texts. */
    more_right: Estimate | null;
    /** (examples, held-out loss, percent of the answers exactly right) at the end of each short run. */
    curve: [examples: number, loss: number, exact: number][];
    /** a, b, c of the law a + b·n^-c through them. */
    law: [a: number, b: number, c: number];
    /** What the full run comes to, by held-out loss and percent of answers exactly right (of texts null); null where the probe was too short. */
    foreseen: { loss: Estimate; exact: Estimate | null } | null;
    /** How much lower the loss of the full run would be with twice the data, in percent. */
    twice_the_data: Estimate;
    more_data: boolean;
    more_training: boolean;
    stop_at: number | null;
    /** The verdict in plain words, a sentence each. */
    words: string[];
  };
  findings: Finding[];
  examples: number;
  held_out: number;
  steps: number;
  /** The learning rate of the short runs: as asked, or the one that learned fastest where the asked one is far off. */
  lr: number;
  rates: [rate: number, loss: number | null][];
  /** What the whole run would take here; memory in bytes. */
  full_run: { steps: number; minutes: number; memory: number };
  seconds: number;
}

/** What kind of answers data ask for, and so how they are measured. */
export type Task = "classification" | "extraction" | "translation" | "facts" | "commands" | "bfcl" | "text";

export interface TaskOptions {
  /** Left out, it is guessed from the data. */
  task?: Task;
  /** Who is asked. Left out, all are. */
  systems?: SystemName[];
  /** What the model was tuned on: labels that the test lacks, and the constant answer to compare with. */
  known?: DataText;
  seq_len?: number;
  batch_size?: number;
  seed?: number;
}

/** What an answer is worth. */
export interface Marked {
  output: string;
  right: boolean;
  /** Why not, where the task can tell. */
  why?: string;
}

export type SystemName = "tuned" | "base" | "constant";

/** Answers of the tuned model, of the base and of a constant to the same items. */
export interface TaskReport {
  task: Task;
  items: number;
  /** Figures by name, the one that matters most first; "constant" is missing where there is none. */
  systems: { name: SystemName; note?: string; figures: Record<string, Estimate> }[];
  comparisons: ({ figure: string; of: SystemName; with: SystemName; verdict: "better" | "worse" | "no difference shown" } & Estimate)[];
  examples: ({ line: number; input: string; expected: string; systems: Partial<Record<SystemName, Marked>> } & Marked)[];
}

/** What tuning cost: the loss on plain sentences, before and after. */
export interface Forgetting {
  sentences: number;
  before: number;
  after: number;
  /** Nats a token; above 0 the model has become worse. */
  change: Estimate;
  verdict: "no difference shown" | "worse: it has forgotten" | "better";
}

/** What was done, how much of it there is, in all. */
export type OnProgress = (what: string, done: number, total: number) => void;

/** What comes out of a run, in order. */
export type TrainEvent =
  | { type: "plan"; summary: Summary; /** Steps done before, when the run was resumed. */ step: number }
  | { type: "step"; report: StepReport }
  | { type: "validation"; step: number; evaluation: Evaluation; best: boolean }
  | { type: "probe"; step: number; texts: GeneratedText[] }
  | { type: "checkpoint"; step: number; bytes: number }
  | { type: "paused"; step: number }
  /** Something went wrong that does not end the run: a checkpoint could not be written or read, a helper was lost. */
  | { type: "warning"; step: number; error: LuthierErrorData }
  /** The engine died (device lost, out of memory, a fault of ours); what follows goes on from this step. */
  | { type: "restart"; step: number; attempt: number; error: LuthierErrorData }
  /**
   * The adapter of `best`, the best by validation, is on the model; without one, that of `step`. A best step of 0 says
   * that validation never improved: its adapter changes nothing. After "diverged" the error itself is thrown.
   */
  | { type: "end"; step: number; reason: "done" | "stopped" | "diverged"; best: { step: number; loss: number } | null };

/** Of a run that has ended: the adapter that its validation liked best, or that of its last step where it is another. */
export type AdapterChoice = "best" | "last";

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

/**
 * What is asked: a text, or a conversation that the model goes on with. Of a conversation too long for the model's
 * context the oldest turns are dropped, never the system's words or the last question.
 */
export type Prompt = string | ChatMessage[];

export interface SamplingOptions {
  max_new_tokens?: number;
  /** 0 is greedy. */
  temperature?: number;
  top_p?: number;
  top_k?: number;
  seed?: number;
  /** Use the adapter, if there is one. Default true. */
  adapter?: boolean;
  /** Put prompts through the chat template, a text as a user turn; conversations need it. Default true. */
  chat?: boolean;
}

export interface GeneratedText {
  text: string;
  tokens: number;
  finish: "stop" | "length" | "cancelled";
}

/** Every error the engine throws. */
export interface LuthierErrorData {
  /**
   * "io", "malformed", "unsupported", "mismatch", "data", "setting", "device", "diverged" as the engine says them;
   * "device_lost", "out_of_memory", "locked", "storage", "checkpoint", "cancelled", "internal" besides.
   */
  code: string;
  message: string;
  hint: string;
}

/** A probe: prompts asked again at each validation, greedily. */
export interface RunOptions {
  options?: TrainOptions;
  validation?: DataText;
  probes?: string[];
  /**
   * Keeps checkpoints of the run in this browser's private storage (OPFS), so that it survives the tab. Where there is
   * none (see {@link LuthierStatic.canStore}) a run that asks for it is refused.
   */
  store?: { id: string; every_seconds?: number };
  signal?: AbortSignal;
}

/** What is compared: a method, at a learning rate of its own where one is named. */
export interface MethodChoice {
  method: Method;
  lr?: number;
}

/** Several methods under one budget: the same data, steps and seed. */
export interface CompareOptions {
  methods: (Method | MethodChoice)[];
  /** For all of them; each reads what it has a setting for. An `lr` here is taken by those that name none. */
  options?: TrainOptions;
  validation?: DataText;
  /** Also asks each tuned model, and the untuned one, for the answers of this. */
  test?: { data: DataText; task?: Task };
  /** Keeps each run in this browser's private storage, as `train` does; their ids begin with this one. */
  store?: { id: string; every_seconds?: number };
  signal?: AbortSignal;
}

/** The figure that matters most for a task. */
export type TaskFigure = { task: Task; figure: string } & Estimate;

/** What a method brought, and what it cost; named as `luthier compare --json` names it. */
export interface Tried {
  method: Method;
  lr: number;
  /** The validation before the first step. */
  start: Evaluation | null;
  /** The best validation, and its step. */
  best: Evaluation | null;
  step: number;
  steps: number;
  /** Tokens of the text that were trained on. */
  tokens: number;
  trainable_parameters: number;
  /** Of the base with the adapter. */
  parameters: number;
  /** Of the adapter's files. */
  adapter_bytes: number;
  /** What the run held on its device. */
  memory_bytes: number;
  /** Of the steps alone. */
  seconds: number;
  /** Its name for {@link LuthierApi.useAdapter}, and the id of its run where it is stored. */
  adapter: string;
}

/** What comes out of a comparison, in order; `index` is the place among the methods. */
export type CompareEvent =
  /** How the model does without any adapter, where there is a test. */
  | { type: "untuned"; task: TaskFigure }
  | { type: "run"; index: number; method: Method; event: TrainEvent }
  /** The run of a method has ended; its adapter is kept. */
  | { type: "tried"; index: number; tried: Tried }
  /** Questions of the test that were answered; an index of null is the untuned model's. */
  | { type: "asking"; index: number | null; done: number; total: number }
  | { type: "measured"; index: number; method: Method; forgetting: Forgetting; task: TaskFigure | null }
  /** This one could not be had; the others go on. */
  | { type: "failed"; index: number; method: Method; error: LuthierErrorData };

/** A run as the store lists it, newest first. */
export interface StoredRun {
  id: string;
  /** ISO 8601. */
  created: string;
  model: string;
  /** {@link ModelInfo.sha256} of that model; null of a run from before it was noted. */
  base_sha256: string | null;
  data_name: string;
  options: TrainOptions;
  step: number;
  steps: number;
  /** Of one that is "unreadable" only id and bytes are known; it can be deleted. */
  state: "running" | "interrupted" | "stopped" | "done" | "failed" | "unreadable";
  /** Best validation loss so far and its step. */
  best: { step: number; loss: number } | null;
  /** Loss before training, on the validation data. */
  base_loss: number | null;
  /** What {@link LuthierStatic.runAdapter} has of it. */
  adapters: AdapterChoice[];
  bytes: number;
  /** Another tab is at work on it now. */
  locked: boolean;
}

/** A file to download into the store; a length and SHA-256 that are known in advance are checked. */
export interface DownloadFile {
  name: string;
  url: string;
  bytes?: number;
  sha256?: string;
  /** Who says that this is its SHA-256; kept with the file, to be shown. */
  sha256_by?: string;
}

/** Where a model was downloaded from, and which state of it. */
export interface ModelSource {
  url: string;
  revision: string;
}

export interface ModelDownload {
  name: string;
  source?: ModelSource;
  files: DownloadFile[];
  /** The download fails when nothing has come for so long. Default 30. */
  stall_seconds?: number;
}

/** A file as it was stored. */
export interface StoredFile {
  name: string;
  bytes: number;
  sha256: string;
  /** Who knew the SHA-256 in advance; null: nobody did, it was computed when the file was stored. */
  sha256_by: string | null;
}

/** A model kept in this browser's private storage. */
export interface StoredModel {
  name: string;
  bytes: number;
  /** All files are there, each with the size it was stored with. */
  complete: boolean;
  /** Null: copied from files at hand, so nothing can go on with it if it is not complete. */
  source: ModelSource | null;
  /** Some tab has it open, or is writing, checking or deleting it. */
  locked: boolean;
  /** Empty while it is not complete. */
  files: StoredFile[];
}

/** Whose adapter files: PEFT's folder, one GGUF file for llama.cpp and Ollama, mlx-lm's folder. */
export type AdapterFormat = "peft" | "gguf" | "mlx";

export type MergeDtype = "f32" | "f16" | "bf16" | "q8_0" | "q4_0" | "q4_1";

/** What a merged model is written as: a Hugging Face folder (f32, f16, bf16), or one GGUF file of this name. */
export interface MergeTarget {
  format: "hf" | "gguf";
  dtype: MergeDtype;
  name: string;
}

/** How far an export, read back, is from the live model on a fixed text of so many tokens. */
export interface Agreement {
  tokens: number;
  /** Mean Kullback–Leibler divergence of the next token, in nats. */
  kl: number;
  /** That of the base without the adapter: what `kl` is little or much of. */
  moved: number;
  /** Share of positions where both find the same token likeliest. */
  same_choice: number;
  loss: number;
  other_loss: number;
  logits_apart: number;
}

/** A merged model. `agreement` is null where the model has more than `CHECKED_BYTES`, too many to be loaded a second time. */
export interface Merged {
  files: NamedBlob[];
  agreement: Agreement | null;
}

/**
 * The façade (`index.ts` implements it; the application uses nothing else). One instance is one worker with one engine;
 * `train` on an instance that has trained before starts a fresh worker on the same model by itself. When the engine fails
 * outside a run, whoever asked gets the error, and the next call finds the model opened again, with its adapter.
 */
export interface LuthierApi {
  readonly device: DeviceInfo;
  readonly model: ModelInfo;
  /** What the model would see of this data. */
  preview(data: DataText, options?: { seq_len?: number; limit?: number }): Promise<Preview>;
  /** The plan of a run, without allocating anything. */
  estimate(data: DataText, options?: TrainOptions, validation?: DataText): Promise<Summary>;
  /** Trains; breaking out of the loop or `stop()` keeps what was learned. */
  train(data: DataText, run?: RunOptions): AsyncIterable<TrainEvent>;
  /** Goes on with a stored run, bit-exactly; its data and options are in the store. */
  resume(id: string, run?: { signal?: AbortSignal }): AsyncIterable<TrainEvent>;
  /** Like `unpause` and `stop` it counts from the moment it is asked, also while the run is still starting or restarting. */
  pause(): Promise<void>;
  unpause(): Promise<void>;
  /** Ends the run after the current step; the adapter (the best one by validation) stays on the model. */
  stop(): Promise<void>;
  /**
   * Tunes by one method after the other and measures each. Leaving the loop or aborting stops at once; the runs that had
   * ended by then are kept. The last one's adapter stays on the model, all are to be had by `useAdapter`.
   */
  compare(data: DataText, ask: CompareOptions): AsyncIterable<CompareEvent>;
  /** Keeps the adapter that is on the model under a name, in place of one that had it, until the model is closed. */
  keepAdapter(name: string): Promise<void>;
  /** What `useAdapter` can put on the model: what was kept, and "best" and "last" of the run that ended last. */
  adapters(): { name: string; bytes: number }[];
  /** Puts a kept adapter on the model in place of the one there; null takes it off: the model is its base again. */
  useAdapter(name: string | null): Promise<void>;
  /** Forgets the adapter: back to the base model. */
  discard(): Promise<void>;
  generate(
    prompts: Prompt[],
    options?: SamplingOptions,
    onText?: (prompt: number, piece: string) => void,
    signal?: AbortSignal,
  ): Promise<GeneratedText[]>;
  evaluate(data: DataText, options?: { seq_len?: number; batch_size?: number; adapter?: boolean }): Promise<Evaluation>;
  /**
   * Short runs on parts of the data, before a long one. Nothing is left of them: the model is opened again, with the
   * adapter it had, as it is when the probe is aborted.
   */
  probe(
    data: DataText,
    ask?: { options?: TrainOptions; budget?: ProbeBudget; test?: DataText },
    onProgress?: OnProgress,
    signal?: AbortSignal,
  ): Promise<DataProbe>;
  guessTask(data: DataText): Promise<Task>;
  /** Asks the tuned model and the base everything in the data, and judges the answers. */
  assess(data: DataText, options?: TaskOptions, onProgress?: OnProgress, signal?: AbortSignal): Promise<TaskReport>;
  /** What the adapter on the model cost. */
  forgetting(): Promise<Forgetting>;
  /** Of the adapter on the model. */
  adapterMethod(): Promise<Method | null>;
  /** adapter_config.json and adapter_model.safetensors, as PEFT reads them. */
  exportPeft(): Promise<NamedBlob[]>;
  /** The adapter in a format, read back and compared; `name` is what it is called. */
  exportAdapter(format: AdapterFormat, name: string): Promise<{ files: NamedBlob[]; agreement: Agreement }>;
  /** The base with the adapter added in, read back and compared; a GGUF file brings Ollama's Modelfile. */
  exportMerged(target?: Partial<MergeTarget>, onProgress?: (done: number, total: number) => void): Promise<Merged>;
  /** Bytes that `exportMerged` will make; an error where the base cannot be written so. */
  mergedSize(target: MergeTarget): Promise<number>;
  /** What `luthier train --from run.json` replays. */
  exportRun(): Promise<string>;
  /** Puts an adapter on the model: PEFT's files, or those of llama.cpp or mlx-lm. What comes back is to be told to people:
   * it was tuned on another base. */
  importPeft(files: NamedBlob[]): Promise<LuthierErrorData | null>;
  close(): void;
}

/** Static side of the façade. */
export interface LuthierStatic {
  open(options: OpenOptions): Promise<LuthierApi>;
  /** Multiply-adds a second of a product the size of this engine's, ×2, in GFLOP/s; takes about two seconds. */
  benchmark(device?: DeviceChoice): Promise<{ device: DeviceInfo; gflops: number }>;
  /** The kernels that a step spends its time in, beside what the device can do at most; takes some seconds. */
  kernels(device?: DeviceChoice): Promise<KernelBench>;
  options(): Promise<OptionRow[]>;
  methods(): Promise<MethodRow[]>;
  /** Whether runs and models can be kept in this browser: not over plain http, nor in some private windows. */
  canStore(): Promise<boolean>;
  /** Tells of every request that the engine's workers make or are refused, until the returned function is called. */
  onRequest(heard: (request: SeenRequest) => void): () => void;
  /** Empty where nothing can be kept, as is `models`. */
  runs(): Promise<StoredRun[]>;
  deleteRun(id: string): Promise<void>;
  /** What a stored run has reported so far, in order. */
  runLog(id: string): Promise<TrainEvent[]>;
  /** An adapter of a stored run that has ended, as PEFT files: for {@link LuthierApi.importPeft} or a download. */
  runAdapter(id: string, choice?: AdapterChoice): Promise<NamedBlob[]>;
  /** run.json of a stored run that has ended: what `luthier train --from` replays. */
  runRecord(id: string): Promise<string>;
  models(): Promise<StoredModel[]>;
  /** Opens a stored model's files. */
  storedModel(name: string): Promise<ModelFiles>;
  /** Keeps all tabs from changing or deleting a stored model until the returned function is called, or this tab ends. */
  holdModel(name: string): Promise<() => void>;
  deleteModel(name: string): Promise<void>;
  /** Copies files into the store. */
  storeModel(model: ModelFiles, onProgress?: (done: number, total: number) => void, signal?: AbortSignal): Promise<void>;
  /** Downloads a model into the store; what an earlier try has brought of the same revision is not asked for again. */
  downloadModel(model: ModelDownload, onProgress?: (done: number, total: number) => void, signal?: AbortSignal): Promise<void>;
  /** Reads a stored model again and compares sizes and hashes; what is damaged is removed, and named in the error. */
  checkModel(name: string, onProgress?: (done: number, total: number) => void, signal?: AbortSignal): Promise<void>;
}
