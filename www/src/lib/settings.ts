/** Settings: what suits a model and its data, how they are grouped, what they cost, and a link that carries them. */

import type { Method, ModelInfo, OptionRow, Preview, Summary, TrainOptions } from "luthier-web";

/** Shown at once; all others wait behind “All settings”. Any row of the engine's table that is not named here is in “Other”. */
export const BASIC: (keyof TrainOptions)[] = [
  "method", "steps", "lr", "rank", "num_virtual_tokens", "last_k", "lisa_blocks", "batch_size", "seq_len", "eval_every",
];

export const GROUPS: { title: string; names: (keyof TrainOptions)[] }[] = [
  {
    title: "Adapter",
    names: [
      "alpha", "rslora", "dropout", "target_modules", "rank_pattern", "alpha_pattern", "loraplus_lr_ratio", "init_lora_weights", "lisa_interval", "prompt_tuning_init",
      "prompt_tuning_init_text",
    ],
  },
  { title: "Schedule", names: ["epochs", "schedule", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "grad_accum"] },
  { title: "Data", names: ["val_fraction", "no_shuffle", "no_packing", "seed"] },
  { title: "Memory and cores", names: ["memory_gib", "kept_blocks", "activations", "workers"] },
];

/** What people call them; the engine's own name stands beside it. */
export const TITLES: Partial<Record<keyof TrainOptions, string>> = {
  method: "Method", rank_pattern: "Other ranks", alpha_pattern: "Other alphas", loraplus_lr_ratio: "LoRA+ ratio",
  num_virtual_tokens: "Virtual tokens", prompt_tuning_init: "Prompt begins as", prompt_tuning_init_text: "Its first words", last_k: "Blocks", lisa_blocks: "Blocks at a time",
  lisa_interval: "Steps a turn", init_lora_weights: "Factors begin as",
  steps: "Steps", epochs: "Epochs", lr: "Learning rate", schedule: "Schedule", warmup_steps: "Warm-up", optim: "Optimizer", rank: "Rank", alpha: "Alpha",
  dropout: "Dropout", rslora: "Rank-stabilised", target_modules: "Adapted parts", batch_size: "Batch", seq_len: "Row length",
  grad_accum: "Micro-batches", weight_decay: "Weight decay", max_grad_norm: "Gradient clip", seed: "Seed", no_shuffle: "Keep the order",
  no_packing: "No packing", eval_every: "Evaluate every", val_fraction: "Held out", kept_blocks: "Kept blocks", activations: "Kept as", memory_gib: "Memory, GiB",
  workers: "Workers",
};

export const defaults = (rows: OptionRow[]): TrainOptions => Object.fromEntries(rows.map((row) => [row.name, row.default]));

// ---- what suits

const SEQ_LENS = [64, 128, 256, 512];

/** Small models take, and need, larger steps. */
function learningRate(parameters: number): number {
  if (parameters < 2e7) return 5e-3;
  return parameters < 5e8 ? 1e-3 : 5e-4;
}

export function suggest(model: ModelInfo, preview: Preview | null): TrainOptions {
  const lr = learningRate(model.parameters);
  if (!preview) return { lr };
  const fits = SEQ_LENS.find((length) => length >= preview.longest) ?? SEQ_LENS.at(-1)!;
  const seq_len = Math.min(Math.max(fits, 128), model.context);
  const batch_size = 4;
  const stepsPerEpoch = Math.max(1, preview.tokens / (seq_len * batch_size));
  const steps = Math.min(300, Math.max(60, Math.round((3 * stepsPerEpoch) / 10) * 10));
  return { lr, seq_len, batch_size, steps, ...pace(steps) };
}

/** Warm-up and evaluations that go with a number of steps. */
export function pace(steps: number): TrainOptions {
  return { warmup_steps: Math.min(10, Math.ceil(steps / 10)), eval_every: Math.max(1, Math.round(steps / 8)) };
}

// ---- what it costs

export type Fit = "fits" | "tight" | "too large";

/** Where a 32-bit wasm memory ends, of which each worker has its own; a GPU has what the user says it may use. */
const WASM_BYTES = 4 * 2 ** 30;

export function memoryLimit(kind: "webgpu" | "cpu", memoryGib: number, workers: number): number {
  const allowed = memoryGib * 2 ** 30;
  return kind === "cpu" ? Math.min(allowed, workers * WASM_BYTES) : allowed;
}

export function fit(total: number, limit: number): Fit {
  if (total > limit) return "too large";
  return total > 0.75 * limit ? "tight" : "fits";
}

/** Products of a training step: 4 per parameter and token, 2 more if it is learned itself or in a block computed again. */
export function secondsOfRun(summary: Summary, options: TrainOptions, gflops: number): number {
  const { blocks, kept_blocks } = summary.memory;
  const learned = Math.min(1, summary.trainable_parameters / summary.parameters);
  const perParameter = 4 + 2 * learned + 2 * (blocks ? (blocks - kept_blocks) / blocks : 0);
  const tokens = (options.batch_size ?? 4) * (options.seq_len ?? 256) * (options.grad_accum ?? 1) * summary.steps;
  // What is no product takes its time too: half as much again, from runs of nano.
  return (1.5 * perParameter * summary.parameters * tokens) / (gflops * 1e9 * summary.workers);
}

// ---- a link that carries them

export interface Link {
  options: TrainOptions;
  /** Those to be compared, where that is what the link is for. */
  methods: Method[];
  model: string | null;
  sample: string | null;
}

export function toHash({ options, methods, model, sample }: Link): string {
  const parameters = new URLSearchParams();
  if (model) parameters.set("model", model);
  if (sample) parameters.set("data", sample);
  if (methods.length > 0) parameters.set("methods", methods.join(","));
  for (const [name, value] of Object.entries(options)) {
    if (value !== null && value !== undefined) parameters.set(name, String(value));
  }
  return parameters.toString();
}

/** Reads what the option table knows and passes over the rest: a link may be older or newer than the page. */
export function fromHash(hash: string, rows: OptionRow[]): Link {
  const parameters = new URLSearchParams(hash.replace(/^#/, ""));
  const options: Record<string, unknown> = {};
  for (const row of rows) {
    const text = parameters.get(row.name);
    const value = text === null ? undefined : parse(row, text);
    if (value !== undefined) options[row.name] = value;
  }
  const known = rows.find(({ name }) => name === "method")?.choices ?? [];
  const named = new Set((parameters.get("methods") ?? "").split(","));
  const methods = known.filter((name) => named.has(name)) as Method[];
  return { options, methods, model: parameters.get("model"), sample: parameters.get("data") };
}

/** The value of a field; undefined where the text is none. An empty number is null: “not set”. */
export function parse(row: OptionRow, text: string): number | boolean | string | null | undefined {
  if (row.type === "boolean") return text === "true";
  if (row.type === "choice") return row.choices?.includes(text) ? text : undefined;
  if (row.type === "text") return text.trim() === "" && row.default === null ? null : text;
  if (text.trim() === "") return null;
  const value = Number(text);
  return Number.isFinite(value) && (row.type === "number" || Number.isInteger(value)) ? value : undefined;
}
