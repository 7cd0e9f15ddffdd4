/** luthier-web: tunes a language model in this page, in a worker, on the GPU or the CPU. See {@link Luthier}. */

import { Connection } from "./connection.js";
import { LuthierError } from "./error.js";
import type { Control, Job, Opened } from "./protocol.js";
import { Queue } from "./queue.js";
import * as models from "./store/models.js";
import * as runs from "./store/runs.js";
import type {
  AdapterFormat, DataText, DeviceChoice, DeviceInfo, LuthierApi, LuthierStatic, MergeTarget, ModelInfo, NamedBlob, OpenOptions,
  OptionRow, Prompt, RunOptions, SamplingOptions, TrainEvent, TrainOptions,
} from "./types.js";

export * from "./types.js";
export { LuthierError };

const CHECKPOINT_SECONDS = 30;
/** Restarts after a fault, at most so many within so long. */
const RESTARTS = 3;
const RESTART_WINDOW_MS = 10 * 60_000;
/** Faults that a new worker may not have. */
const RECOVERABLE = new Set(["device_lost", "out_of_memory", "internal"]);

/** A worker that was started for a question without a model, kept for the model that is likely to be opened next. */
let spare: Connection | null = null;

function idle(): Connection {
  if (!spare?.alive) spare = new Connection();
  return spare;
}

function take(): Connection {
  const connection = idle();
  spare = null;
  return connection;
}

let optionRows: Promise<OptionRow[]> | null = null;

export const Luthier: LuthierStatic = {
  open: (options) => Instance.open(options),
  benchmark: (device = "auto") => idle().call("benchmark", device),
  options() {
    optionRows ??= idle().call("options", null).catch((error) => {
      optionRows = null;
      throw error;
    });
    return optionRows;
  },
  runs: runs.list,
  deleteRun: runs.deleteRun,
  runLog: runs.log,
  runAdapter: runs.adapter,
  models: models.list,
  storedModel: models.open,
  deleteModel: models.deleteModel,
  async storeModel(model, onProgress, signal) {
    await idle().call("storeModel", model, (bytes) => onProgress?.(...bytes), signal);
  },
  async downloadModel(name, files, onProgress, signal) {
    await idle().call("downloadModel", { name, files }, (bytes) => onProgress?.(...bytes), signal);
  },
};

class Instance implements LuthierApi {
  #connection: Connection;
  #opened: Opened;
  /** There is an adapter on the model; a run begins, and the base comes back, in a fresh worker. */
  #adapted = false;
  /** From the first event that somebody waits for to the last. */
  #running = false;
  /** Ends when the worker has nothing more to do for the run. */
  #training: Promise<unknown> = Promise.resolve();
  #closed = false;

  private constructor(
    private readonly options: OpenOptions,
    connection: Connection,
    opened: Opened,
  ) {
    this.#connection = connection;
    this.#opened = opened;
  }

  static async open(options: OpenOptions): Promise<Instance> {
    const connection = take();
    return new Instance(options, connection, await openModel(connection, options));
  }

  get device(): DeviceInfo {
    return this.#opened.device;
  }

  get model(): ModelInfo {
    return this.#opened.model;
  }

  preview(data: DataText, options: { seq_len?: number; limit?: number } = {}) {
    return this.#connection.call("preview", { data, options });
  }

  estimate(data: DataText, options: TrainOptions = {}, validation?: DataText) {
    return this.#connection.call("estimate", { data, options, ...(validation && { validation }) });
  }

  // ---- runs

  async *train(data: DataText, run: RunOptions = {}): AsyncGenerator<TrainEvent> {
    const { options = {}, validation, probes = [], store, signal } = run;
    const every_seconds = store?.every_seconds ?? CHECKPOINT_SECONDS;
    const job: Job = { data, options, probes, every_seconds, ...(validation && { validation }) };
    yield* this.#locked({ ...job, ...(store && { store: { id: store.id, create: true } }) }, signal);
  }

  async *resume(id: string, { signal }: { signal?: AbortSignal } = {}): AsyncGenerator<TrainEvent> {
    const { record: { options, probes, every_seconds, state }, data, validation } = await runs.load(id);
    if (state === "done") throw new LuthierError("setting", "This run has ended.", "Start a new one, or load its adapter.");
    const job: Job = { data, options, probes, every_seconds, store: { id, create: false } };
    yield* this.#locked({ ...job, ...(validation && { validation }) }, signal);
  }

  pause = () => this.#control("pause");
  unpause = () => this.#control("unpause");

  async stop(): Promise<void> {
    await this.#control("stop");
    await this.#training;
  }

  async discard(): Promise<void> {
    await this.stop();
    if (this.#adapted) await this.#reopen();
  }

  async #control(what: Control): Promise<void> {
    if (this.#running && this.#connection.alive) await this.#connection.call("control", what);
  }

  /** One run at a time here, and one tab a stored run. */
  async *#locked(job: Job, signal?: AbortSignal): AsyncGenerator<TrainEvent> {
    if (this.#running) {
      throw new LuthierError("setting", "A run is under way on this model.", "Stop it first, or open the model again.");
    }
    this.#running = true;
    let unlock = () => {};
    const unwatch = watchLeaving(() => void this.#control("checkpoint").catch(() => {}));
    try {
      if (job.store) unlock = await runs.lock(job.store.id);
      if (this.#adapted) await this.#reopen();
      this.#adapted = true;
      yield* this.#restarting(job, signal);
    } finally {
      unwatch();
      unlock();
      this.#running = false;
    }
  }

  /** Goes on from the last checkpoint when the worker or its device dies. */
  async *#restarting(job: Job, signal?: AbortSignal): AsyncGenerator<TrainEvent> {
    const faults: number[] = [];
    for (;;) {
      const last = { step: 0 };
      try {
        return yield* this.#attempt(job, last, signal);
      } catch (error) {
        if (this.#closed || !(error instanceof LuthierError) || !RECOVERABLE.has(error.code)) throw error;
        faults.push(performance.now());
        const recent = faults.filter((at) => performance.now() - at < RESTART_WINDOW_MS).length;
        if (recent > RESTARTS) throw error;
        yield { type: "restart", step: last.step, attempt: recent, error: LuthierError.data(error) };
        await this.#reopen();
        this.#adapted = true;
      }
    }
  }

  /** The events of one try, as the worker sends them. `job` and `last` learn from where another one would go on. */
  async *#attempt(job: Job, last: { step: number }, signal?: AbortSignal): AsyncGenerator<TrainEvent> {
    const queue = new Queue<TrainEvent>();
    const connection = this.#connection;
    const stop = () => void connection.call("control", "stop").catch(() => {});
    const training = connection.call("train", job, (event) => {
      if (event.type === "kept") job.checkpoint = event.checkpoint;
      else queue.push(event);
      if (event.type === "plan" && job.store) job.store.create = false;
      if (event.type === "plan" || event.type === "checkpoint") last.step = event.step;
    });
    this.#training = training.then(() => queue.end(), (error) => queue.fail(error));
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop);
    try {
      yield* queue;
    } finally {
      signal?.removeEventListener("abort", stop);
      // Whoever leaves the loop keeps what was learned, once the current step is done.
      stop();
      await this.#training;
    }
    if (signal?.aborted) throw new LuthierError("cancelled", "The run was stopped.", "What was learned so far is kept.");
  }

  // ---- use

  generate(
    prompts: Prompt[],
    options: SamplingOptions = {},
    onText?: (prompt: number, piece: string) => void,
    signal?: AbortSignal,
  ) {
    return this.#connection.call("generate", { prompts, options }, (piece) => onText?.(...piece), signal);
  }

  evaluate(data: DataText, options: { seq_len?: number; batch_size?: number; adapter?: boolean } = {}) {
    return this.#connection.call("evaluate", { data, options });
  }

  async exportPeft() {
    return (await this.exportAdapter("peft", "adapter")).files;
  }

  exportAdapter(format: AdapterFormat, name: string) {
    return this.#connection.call("exportAdapter", { format, name });
  }

  exportMerged(target: Partial<MergeTarget> = {}, onProgress?: (done: number, total: number) => void) {
    const whole: MergeTarget = { format: "hf", dtype: target.format === "gguf" ? "f16" : "bf16", name: "merged", ...target };
    return this.#connection.call("exportMerged", whole, (bytes) => onProgress?.(...bytes));
  }

  mergedSize(target: MergeTarget) {
    return this.#connection.call("mergedSize", target);
  }

  exportRun() {
    return this.#connection.call("exportRun", null);
  }

  async importPeft(files: NamedBlob[]): Promise<void> {
    await this.#connection.call("importPeft", files);
    this.#adapted = true;
  }

  close(): void {
    this.#closed = true;
    this.#connection.close();
  }

  /** The same model in a fresh worker. */
  async #reopen(): Promise<void> {
    this.#connection.close();
    this.#connection = take();
    if (this.#closed) this.#connection.close();
    this.#opened = await openModel(this.#connection, this.options);
    this.#adapted = false;
  }
}

function openModel(connection: Connection, options: OpenOptions): Promise<Opened> {
  const device: DeviceChoice = options.device ?? "auto";
  return connection.call("open", { model: options.model, device }, (bytes) => options.onProgress?.(...bytes));
}

/** A hidden page may be ended without another word. */
function watchLeaving(leaving: () => void): () => void {
  const hidden = () => document.visibilityState === "hidden" && leaving();
  document.addEventListener("visibilitychange", hidden);
  window.addEventListener("pagehide", leaving);
  return () => {
    document.removeEventListener("visibilitychange", hidden);
    window.removeEventListener("pagehide", leaving);
  };
}
