/** A stand-in for the engine, in development only (`?fake`): answers of the right shape, without wasm or GPU. */

import type {
  DataText, LuthierApi, LuthierStatic, ModelFiles, OptionRow, Preview, PreviewRecord, Prompt, SamplingOptions, StoredRun, Summary,
  TrainEvent, TrainOptions,
} from "luthier-web";

const wait = (ms: number) => new Promise((done) => setTimeout(done, ms));

const row = (name: string, type: OptionRow["type"], value: OptionRow["default"], help: string, choices?: string[]) =>
  ({ name, flag: `--${name.replaceAll("_", "-")}`, help, type, default: value, ...(choices && { choices }) }) as OptionRow;

const ROWS = [
  row("rank", "integer", 8, "Rank of the low-rank update: more can learn more, and costs more."),
  row("alpha", "number", 16, "Strength of the update: it is scaled by alpha / rank (rsLoRA: alpha / √rank)."),
  row("dropout", "number", 0, "Probability of dropping an input of the update while training."),
  row("rslora", "boolean", false, "Scale by alpha / √rank."),
  row("target_modules", "text", "all-linear", "Which linears to adapt: all-linear, or names separated by commas (q_proj,v_proj ...)."),
  row("lr", "number", 5e-4, "Peak learning rate."),
  row("schedule", "choice", "linear", "How the learning rate goes down after the warm-up.", ["constant", "linear", "cosine"]),
  row("warmup_steps", "integer", 0, "Steps over which the learning rate rises."),
  row("weight_decay", "number", 0, "Decoupled weight decay of AdamW."),
  row("max_grad_norm", "number", 1, "Gradients are scaled down to this global norm; 0 turns it off."),
  row("epochs", "number", 3, "Passes over the data."),
  row("steps", "integer", null, "Optimizer steps, instead of epochs."),
  row("batch_size", "integer", 4, "Rows of a micro-batch."),
  row("seq_len", "integer", 256, "Tokens of a row; longer examples are cut."),
  row("grad_accum", "integer", 1, "Micro-batches of an optimizer step."),
  row("seed", "integer", 0, "Everything random follows from it."),
  row("no_shuffle", "boolean", false, "Keep the order of the file."),
  row("no_packing", "boolean", false, "One example a row."),
  row("eval_every", "integer", 0, "Steps between evaluations on the validation data; 0 means only at the end."),
  row("val_fraction", "number", 0.1, "Share of the data held out for validation when no validation file is given."),
  row("kept_blocks", "integer", null, "Blocks whose activations are kept; the others are recomputed."),
  row("memory_gib", "number", 4, "GiB the run may use; decides --kept-blocks."),
];

const DEVICE = { kind: "cpu" as const, description: "CPU (wasm, 1 thread)", software: false };

function preview({ text, columns }: DataText, seqLen = 512, limit = 24): Preview {
  const lines = text.split("\n");
  const records: PreviewRecord[] = [];
  const problems: Preview["problems"] = [];
  const lengths: number[] = [];
  let supervisedTokens = 0;
  lines.forEach((line, i) => {
    if (!line.trim()) return;
    let parsed: { prompt: string; completion: string };
    try {
      parsed = JSON.parse(line);
    } catch {
      problems.push({ line: i + 1, message: `expected value at column 1: ${JSON.stringify(line.slice(0, 12))} is no JSON` });
      return;
    }
    const split = (s: string, supervised: boolean) => (String(s).match(/\s?\w+|\s?[^\w\s]+|\s+/g) ?? []).map((t) => ({ text: t, supervised }));
    const pieces = [
      ...split("<|im_start|>user\n", false), ...split(parsed.prompt, false),
      ...split("<|im_end|>\n<|im_start|>assistant\n", false), ...split(parsed.completion, true), { text: "<|im_end|>", supervised: true },
    ];
    const supervised = pieces.filter((p) => p.supervised).length;
    lengths.push(pieces.length);
    supervisedTokens += supervised;
    if (records.length < limit) records.push({ line: i + 1, pieces: pieces.slice(0, seqLen), tokens: pieces.length, supervised, truncated: pieces.length > seqLen });
  });
  const longest = Math.max(0, ...lengths);
  const edges = Array.from({ length: 13 }, (_, i) => Math.round((i * (longest + 1)) / 12));
  return {
    kind: "prompt/completion", columns: ["prompt", "completion"], mapping: { prompt: "prompt", completion: "completion", ...columns },
    rows: lines.slice(0, 5).flatMap((line) => { try { const r = JSON.parse(line); return [[r.prompt, r.completion]]; } catch { return []; } }),
    records, examples: lengths.length, truncated: lengths.filter((l) => l > seqLen).length, duplicates: 3,
    tokens: lengths.reduce((a, b) => a + b, 0), supervised_tokens: supervisedTokens, longest, bad: problems.length,
    histogram: { edges, counts: edges.slice(1).map((e, i) => lengths.filter((l) => l >= edges[i]! && l < e).length) }, problems,
  };
}

class FakeApi implements LuthierApi {
  readonly device = DEVICE;
  readonly model;
  #paused = false;
  #stopped = false;
  #learned = 0;

  constructor(files: ModelFiles) {
    this.model = {
      name: files.name, family: "llama", parameters: 1_369_728, layers: 6, hidden: 128, heads: 4, kv_heads: 2, vocab: 2048,
      context: 512, format: "bf16", chat_template: true, modules: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    };
  }
  async preview(data: DataText, o: { seq_len?: number; limit?: number } = {}) {
    await wait(150);
    return preview(data, o.seq_len, o.limit);
  }
  async estimate(data: DataText, o: TrainOptions = {}, validation?: DataText): Promise<Summary> {
    await wait(60);
    const p = preview(data, o.seq_len);
    const [weights, adapter, activations, other] = [2.7e6, 224e3 * (o.rank ?? 8), 58e3 * (o.batch_size ?? 4) * (o.seq_len ?? 256), 4e4];
    return {
      device: DEVICE.description, examples: validation ? p.examples : Math.round(p.examples * 0.9), validation_examples: validation ? preview(validation).examples : Math.round(p.examples * 0.1),
      skipped: p.bad, truncated: p.truncated, lost_targets: 0, without_targets: 0, duplicates: p.duplicates, tokens: p.tokens, supervised_tokens: p.supervised_tokens,
      rows: 191, steps: o.steps ?? 140, trainable_parameters: 14016 * (o.rank ?? 8), parameters: 1_481_856,
      memory: { weights, adapter, activations, other, total: weights + adapter + activations + other, kept_blocks: 6, blocks: 6 },
    };
  }
  async *train(data: DataText, run: { options?: TrainOptions; probes?: string[] } = {}): AsyncGenerator<TrainEvent> {
    this.#stopped = this.#paused = false;
    const summary = await this.estimate(data, run.options);
    await wait(400);
    yield { type: "plan", summary, step: 0 };
    let best = { step: 0, loss: 3.97 };
    for (let step = 0; step <= summary.steps && !this.#stopped; step++) {
      while (this.#paused && !this.#stopped) await wait(50);
      const clean = 0.05 + 3.9 * Math.exp(-step / 22);
      if (step > 0) {
        await wait(40);
        yield { type: "step", report: { step, loss: clean * (0.85 + 0.3 * Math.random()), lr: 5e-3 * Math.min(step / 10, 1 - step / summary.steps), grad_norm: 0.4 + 2 * Math.exp(-step / 30) * Math.random(), tokens: 512, supervised_tokens: 190, tokens_per_sec: 5200 + 300 * Math.random() } };
      }
      this.#learned = step / summary.steps;
      if (step % (run.options?.eval_every || 1e9) === 0 || step === summary.steps) {
        const loss = clean + 0.03 + (step > 100 ? (step - 100) * 0.0004 : 0);
        if (loss < best.loss) best = { step, loss };
        yield { type: "validation", step, best: best.step === step, evaluation: { loss, perplexity: Math.exp(loss), accuracy: 1 - loss / 6, supervised_tokens: 900, tokens: 2400 } };
        yield { type: "probe", step, texts: (run.probes ?? []).map((p) => ({ text: answer(p, this.#learned), tokens: 9, finish: "stop" as const })) };
      }
      if (step % 40 === 39) yield { type: "checkpoint", step, bytes: 1_400_000 };
      if (this.#paused) yield { type: "paused", step };
    }
    yield { type: "end", step: summary.steps, reason: this.#stopped ? "stopped" : "done", best };
  }
  async *resume(): AsyncGenerator<TrainEvent> {}
  async pause() { this.#paused = true; }
  async unpause() { this.#paused = false; }
  async stop() { this.#stopped = true; }
  async discard() { this.#stopped = true; this.#learned = 0; await wait(100); }
  async generate(prompts: Prompt[], o: SamplingOptions = {}, onText?: (i: number, piece: string) => void) {
    const out = [];
    for (const [i, prompt] of prompts.entries()) {
      const text = answer(typeof prompt === "string" ? prompt : (prompt.at(-1)?.content ?? ""), o.adapter === false ? 0 : this.#learned);
      for (const piece of text.match(/\s?\S+/g) ?? []) { await wait(prompts.length > 8 ? 1 : 25); onText?.(i, piece); }
      out.push({ text, tokens: 8, finish: "stop" as const });
    }
    return out;
  }
  async evaluate() { return { loss: 0.1, perplexity: 1.1, accuracy: 0.98, supervised_tokens: 100, tokens: 300 }; }
  async exportPeft() { return [{ name: "adapter_config.json", blob: new Blob(["{}"]) }, { name: "adapter_model.safetensors", blob: new Blob(["x"]) }]; }
  async exportMerged() { return this.exportPeft(); }
  async exportRun() { return "{}"; }
  async importPeft() { this.#learned = 1; }
  close() {}
}

function answer(prompt: string, learned: number): string {
  const words = prompt.toLowerCase().replace(/[^a-z0-9 -]/g, "").split(" ");
  if (learned < 0.2) return `find . -name "*.${words.at(-1)}" -exec grep -l ${words[1] ?? ""} {} \\;`;
  const number = prompt.match(/\d+/g) ?? [];
  return `larder ${learned < 0.6 ? "list" : "add"} ${words[3] ?? "eggs"} --count ${number[0] ?? 3} --shelf ${number[1] ?? 1}`;
}

const RUN: StoredRun = {
  id: "2026-11-20T10-00-00-abcd", created: "2026-11-20T10:00:00Z", model: "nano", data_name: "A private command-line tool", options: { rank: 8, lr: 5e-3 },
  step: 140, steps: 140, state: "done", best: { step: 120, loss: 0.0421 }, base_loss: 3.97, bytes: 2_900_000, locked: false,
};

export const Fake: LuthierStatic = {
  async open({ model, onProgress }) {
    for (let i = 1; i <= 4; i++) { await wait(60); onProgress?.(i * 7e5, 2.8e6); }
    return new FakeApi(model);
  },
  async benchmark() { await wait(800); return { device: DEVICE, gflops: 14.2 }; },
  async options() { return ROWS; },
  async runs() {
    const interrupted: StoredRun = { ...RUN, id: "2026-11-22T18-12-00-wxyz", created: "2026-11-22T18:12:00Z", step: 56, state: "interrupted" };
    return new URLSearchParams(location.search).has("interrupted") ? [interrupted, RUN] : [RUN];
  },
  async deleteRun() {},
  async runLog() { return []; },
  async runAdapter() { return []; },
  async models() { return [{ name: "HuggingFaceTB/SmolLM2-135M-Instruct", bytes: 271e6, complete: true }]; },
  async storedModel(name) { return { name, files: [] }; },
  async deleteModel() {},
  async storeModel() {},
  async downloadModel() {},
};
