/** The engine as wasm-bindgen exports it: JSON in and out, errors as plain `{ code, message, hint }`. */

import type { AdapterFormat, LuthierErrorData, MergeTarget, NamedBlob } from "./types.js";

export interface NamedBytes {
  name: string;
  bytes: Uint8Array<ArrayBuffer>;
}

/** What is dealt to several workers. */
export type Work = "step" | "validation";

export interface Engine {
  device(): string;
  info(): string;
  preview(name: string, text: string, options: string): string;
  estimate(
    name: string,
    text: string,
    columns: string,
    validation: string | undefined,
    options: string,
  ): Promise<string>;
  start_training(
    data: string,
    validation: string | undefined,
    options: string,
    checkpoint: Uint8Array | undefined,
  ): Promise<string>;
  step(): Promise<string>;
  parameters(): Promise<Float32Array>;
  compute_share(of: Work): Promise<void>;
  add_share(of: Work, share: Float32Array): void;
  share_of(of: Work, step: number, parameters: Float32Array, worker: number): Promise<Float32Array>;
  run_sha256(): string;
  reports(): Promise<string>;
  validate(): Promise<string>;
  validate_start(): Promise<string>;
  checkpoint(): Promise<Uint8Array>;
  /** `{ step, loss }` or null. */
  best(): string;
  use_best(): string;
  generate(
    prompts: string,
    options: string,
    on_text: (prompt: number, piece: string) => boolean | undefined,
  ): Promise<string>;
  evaluate(data: string, options: string): Promise<string>;
  probe(
    data: string,
    test: string | undefined,
    options: string,
    budget: string,
    progress: (what: string, done: number, total: number) => void,
  ): Promise<string>;
  assess(data: string, options: string, progress: (what: string, done: number, total: number) => void): Promise<string>;
  forgetting(): Promise<string>;
  method(): string | undefined;
  adapter_files(): Promise<NamedBytes[]>;
  keep_adapter(name: string): void;
  use_adapter(name: string | undefined): void;
  load_adapter(files: NamedBytes[]): Promise<LuthierErrorData | null>;
  exported(format: AdapterFormat, tuned: string): Promise<NamedBytes[]>;
  check_adapter(files: NamedBytes[]): Promise<string>;
  merged(target: MergeTarget, sink: (name: string, chunk: Uint8Array<ArrayBuffer>) => void): Promise<void>;
  merged_size(target: MergeTarget): Promise<number>;
  check_merged(files: NamedBlob[], target: MergeTarget): Promise<string>;
  modelfile(gguf: string): string;
  run_json(): string;
  /** What was measured of the GPU and not handed out yet. */
  newly_tuned(): string | undefined;
}

export interface EngineModule {
  default(wasm: { module_or_path: string | WebAssembly.Module }): Promise<unknown>;
  compiled(): WebAssembly.Module;
  option_table(): string;
  method_table(): string;
  guess_task(data: string): string;
  benchmark(device: string): Promise<string>;
  benchmark_kernels(device: string): Promise<string>;
  Session: {
    create(
      files: NamedBlob[],
      options: { device: string; name: string; measure: boolean | undefined; workers: number; workers_gib: number },
      progress: (done: number, total: number) => void,
      kept: (gpu: string) => Promise<string | null>,
    ): Promise<Engine>;
  };
}
