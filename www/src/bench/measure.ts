/** What the bench page measures: kernels, and whole steps as the page's users get them, through the façade. */

import { type DeviceChoice, type DeviceInfo, type KernelBench, Luthier, type ModelFiles, type TrainOptions } from "luthier-web";
import { SMALL, files, texts } from "./net";

export interface StepRow {
  net: string;
  method: string;
  /** Rows x tokens. */
  batch: string;
  median_ms: number;
  best_ms: number;
  /** Median of the second half, when all is there that takes part. */
  settled_ms: number;
  tokens_per_s: number;
  /** From the click to the first loss: planning, compiling and the step itself. */
  first_ms: number;
  mib: number;
  loss_first: number;
  loss_last: number;
}

/** A step on the CPU by so many workers. */
export interface WorkersRow {
  net: string;
  batch: string;
  workers: number;
  /** `settled_ms`, the least of the rounds. */
  ms: number;
  /** How many times faster than one worker. */
  speedup: number;
}

export interface Measured {
  device: DeviceInfo;
  browser: string;
  kernels: KernelBench;
  steps: StepRow[];
  /** Empty on a GPU, and where there is one core. */
  workers: WorkersRow[];
}

interface Case {
  net: "small" | "nano";
  method: "lora" | "full";
  batch_size: number;
  seq_len: number;
  steps: number;
}

const CASES: Case[] = [
  { net: "small", method: "lora", batch_size: 4, seq_len: 64, steps: 20 },
  { net: "small", method: "full", batch_size: 4, seq_len: 64, steps: 20 },
  { net: "nano", method: "lora", batch_size: 4, seq_len: 128, steps: 12 },
];

/** Steps by several workers, in rounds that take turns, so that what else the machine does is the same for all. */
const SHARED: Case[] = [
  { net: "small", method: "lora", batch_size: 4, seq_len: 64, steps: 120 },
  { net: "nano", method: "lora", batch_size: 4, seq_len: 128, steps: 30 },
];
const ROUNDS = 3;

/** `quick` leaves all but the first case of steps out. */
export async function measure(choice: DeviceChoice, quick: boolean, say: (what: string) => void): Promise<Measured> {
  say("kernels");
  const kernels = await Luthier.kernels(choice);
  const rows: StepRow[] = [];
  for (const one of quick ? CASES.slice(0, 1) : CASES) {
    say(`steps of ${one.net}, ${one.method}`);
    rows.push(await steps(choice, one));
  }
  const workers: WorkersRow[] = [];
  if (kernels.device.kind === "cpu") {
    for (const one of quick ? SHARED.slice(0, 1) : SHARED) {
      say(`steps of ${one.net}, by several workers`);
      workers.push(...(await shared(one, quick ? 1 : ROUNDS)));
    }
  }
  return { device: kernels.device, browser: navigator.userAgent, kernels, steps: rows, workers };
}

/** By 1, 2, 4 … workers, as many as there are cores and rows. */
async function shared(one: Case, rounds: number): Promise<WorkersRow[]> {
  const most = Math.min(navigator.hardwareConcurrency, one.batch_size);
  const counts = [1, 2, 4, 8].filter((workers) => workers <= most);
  const least = counts.map(() => Infinity);
  for (let round = 0; round < rounds; round++) {
    for (const [i, workers] of counts.entries()) {
      const { settled_ms } = await steps("cpu", one, workers);
      least[i] = Math.min(least[i]!, settled_ms);
    }
  }
  const row = (workers: number, i: number) =>
    ({ net: one.net, batch: `${one.batch_size}x${one.seq_len}`, workers, ms: least[i]!, speedup: least[0]! / least[i]! });
  return counts.length > 1 ? counts.map(row) : [];
}

async function steps(device: DeviceChoice, { net, method, batch_size, seq_len, steps }: Case, workers = 1): Promise<StepRow> {
  const luthier = await Luthier.open({ model: net === "small" ? { name: net, files: files(SMALL) } : await nano(), device });
  try {
    const options: TrainOptions = {
      method, rank: 8, alpha: 16, batch_size, seq_len, steps, lr: 1e-3, val_fraction: 0, no_shuffle: true, no_packing: true, workers,
    };
    const start = performance.now();
    let first_ms = 0;
    let mib = 0;
    const losses: number[] = [];
    const times: number[] = [];
    for await (const event of luthier.train({ name: "bench.jsonl", text: texts(batch_size, seq_len) }, { options })) {
      if (event.type === "plan") mib = event.summary.memory.total / 2 ** 20;
      if (event.type !== "step") continue;
      losses.push(event.report.loss);
      if (losses.length === 1) first_ms = performance.now() - start;
      // Steps that are read together share their time.
      else times.push((1e3 * event.report.tokens) / event.report.tokens_per_sec);
    }
    const settled_ms = median(times.slice(times.length >> 1));
    const median_ms = median(times);
    return {
      net, method: method === "lora" ? "lora-r8" : method, batch: `${batch_size}x${seq_len}`,
      median_ms, best_ms: Math.min(...times), tokens_per_s: (1e3 * batch_size * seq_len) / median_ms, first_ms, mib, settled_ms,
      loss_first: losses[0] ?? NaN, loss_last: losses.at(-1) ?? NaN,
    };
  } finally {
    luthier.close();
  }
}

const median = (values: number[]) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? NaN;

/** The bundled model. */
async function nano(): Promise<ModelFiles> {
  const names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
  const blob = async (name: string) => ({ name, blob: await (await fetch(`models/nano/${name}`)).blob() });
  return { name: "nano", files: await Promise.all(names.map(blob)) };
}
