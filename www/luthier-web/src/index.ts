/** luthier-web: tunes a language model in this page, in a worker, on the GPU or the CPU. See {@link Luthier}. */

import { type Tuner, compare } from "./compare.js";
import { hasRelaxedSimd } from "./build.js";
import { Connection } from "./connection.js";
import { LuthierError } from "./error.js";
import type { CallName, Calls, Control, Job, Opened, Tuned, Wanted } from "./protocol.js";
import { Queue } from "./queue.js";
import { available } from "./store/opfs.js";
import { onRequest } from "./privacy.js";
import * as models from "./store/models.js";
import * as runs from "./store/runs.js";
import type {
  AdapterFormat, CompareEvent, CompareOptions, DataProbe, DataText, DeviceChoice, DeviceInfo, LuthierStatic, MergeTarget, ModelInfo,
  NamedBlob, OnProgress, OpenOptions, ProbeBudget, Prompt, RunOptions, SamplingOptions, TaskOptions, TrainEvent, TrainOptions,
} from "./types.js";

export * from "./types.js";
export { type SeenRequest, closeWaysOut, watchRequests } from "./privacy.js";
export { CHECKED_BYTES } from "./limits.js";
export { ownOptions, reads } from "./methods.js";
export { LuthierError };

// Worker and engine, written so that bundlers see the files to bring along.
const BASELINE = [new URL("./worker_baseline.js", import.meta.url), new URL("./luthier_bg.wasm", import.meta.url)] as const;
const RELAXED = [new URL("./worker_relaxed.js", import.meta.url), new URL("./luthier_relaxed_bg.wasm", import.meta.url)] as const;

const CHECKPOINT_SECONDS = 30;
/** Restarts after a fault, at most so many within so long. */
const RESTARTS = 3;
const RESTART_WINDOW_MS = 10 * 60_000;
/** Faults that a new worker may not have. */
const RECOVERABLE = new Set(["device_lost", "out_of_memory", "internal"]);

/** A worker that was started for a question without a model, kept for the model that is likely to be opened next. */
let spare: Connection | null = null;

function idle(): Connection {
  if (!spare?.alive) {
    const [script, wasm] = hasRelaxedSimd() ? RELAXED : BASELINE;
    spare = new Connection(script.href, wasm.href);
  }
  return spare;
}

function take(): Connection {
  const connection = idle();
  spare = null;
  return connection;
}

let tables: Promise<Calls["options"]["answer"]> | null = null;

/** What may be set, asked once of an engine without a model. */
function asked(): Promise<Calls["options"]["answer"]> {
  tables ??= idle().call("options", null).catch((error) => {
    tables = null;
    throw error;
  });
  return tables;
}

export const Luthier: LuthierStatic = {
  open: (options) => Instance.open(options),
  benchmark: (device = "auto") => idle().call("benchmark", device),
  kernels: (device = "auto") => idle().call("kernels", device),
  options: async () => (await asked()).options,
  methods: async () => (await asked()).methods,
  canStore: available,
  onRequest,
  runs: runs.list,
  deleteRun: runs.deleteRun,
  runLog: runs.log,
  runAdapter: runs.adapter,
  runRecord: runs.ended,
  models: models.list,
  storedModel: models.open,
  holdModel: models.hold,
  deleteModel: models.deleteModel,
  async storeModel(model, onProgress, signal) {
    await idle().call("storeModel", model, (bytes) => onProgress?.(...bytes), signal);
  },
  async downloadModel(model, onProgress, signal) {
    await idle().call("downloadModel", model, (bytes) => onProgress?.(...bytes), signal);
  },
  async checkModel(name, onProgress, signal) {
    await idle().call("checkModel", name, (bytes) => onProgress?.(...bytes), signal);
  },
};

/** A run under way, from before its lock to after its last word. */
interface Running {
  wanted: Wanted;
  /** The step from which another worker would go on. */
  step: number;
  over: Promise<void>;
}

/** An adapter as it is put on again, and what is written about how it came to be. */
interface Kept {
  files: NamedBlob[];
  record: string | null;
}

/** A run as it is begun: what is wanted of it is asked while it goes on. */
type Begun = Omit<Job, "wanted">;
type Emit = (event: TrainEvent) => void;

class Instance implements Tuner {
  #connection: Connection;
  #opened: Opened;
  /** The worker has trained, or there is an adapter in it: a run begins, and the base comes back, in a fresh one. */
  #used = false;
  #run: Running | null = null;
  /** The adapter on the model, to be put on again in another worker. */
  #on: Kept | null = null;
  /** Adapters by name, and those of them that this worker holds. */
  #shelf = new Map<string, Kept>();
  #held = new Set<string>();
  #probing = false;
  /** Under way after a fault outside a run, or after a probe. */
  #mending: Promise<void> | null = null;
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
    return this.#ask("preview", { data, options });
  }

  estimate(data: DataText, options: TrainOptions = {}, validation?: DataText) {
    return this.#ask("estimate", { data, options, ...(validation && { validation }) });
  }

  // ---- runs

  async *train(data: DataText, run: RunOptions = {}): AsyncGenerator<TrainEvent> {
    const { options = {}, validation, probes = [], store, signal } = run;
    const every_seconds = store?.every_seconds ?? CHECKPOINT_SECONDS;
    const stored = store && { store: { id: store.id, create: true } };
    const job = { data, options, probes, every_seconds, ...(validation && { validation }), ...stored };
    yield* this.#follow(async () => job, store?.id, signal);
  }

  async *resume(id: string, { signal }: { signal?: AbortSignal } = {}): AsyncGenerator<TrainEvent> {
    const load = async (): Promise<Begun> => {
      const { record, data, validation } = await runs.load(id);
      this.#checkBase(record);
      const { probes, every_seconds } = record;
      // It goes on with the workers that it was begun with, whatever cores there are now.
      const options = { workers: 1, ...record.options };
      return { data, options, probes, every_seconds, store: { id, create: false }, ...(validation && { validation }) };
    };
    yield* this.#follow(load, id, signal);
  }

  /** The engine checks what its checkpoints say; a run may have none yet. */
  #checkBase({ model, base_sha256 }: runs.RunRecord): void {
    const { name, sha256 } = this.model;
    if (!base_sha256 || base_sha256 === sha256) return;
    const short = (hash: string) => hash.slice(0, 12);
    const what = `The run was begun on another base model: the sha256 of ${model} begins ${short(base_sha256)}, that of ${name}`;
    throw new LuthierError("mismatch", `${what} begins ${short(sha256)}.`, "Open the model of the run, then go on.");
  }

  pause = () => this.#want({ paused: true });
  unpause = () => this.#want({ paused: false });

  async stop(): Promise<void> {
    const over = this.#run?.over;
    await this.#want({ stopped: true });
    await over;
  }

  async discard(): Promise<void> {
    await this.stop();
    this.#begin();
    if (this.#used) await this.#reopen();
  }

  async *compare(data: DataText, ask: CompareOptions): AsyncGenerator<CompareEvent> {
    this.#checkFree();
    yield* compare(this, (await asked()).methods, data, ask);
  }

  beginAfresh(): void {
    this.#used = true;
  }

  // ---- adapters

  /** What the last run has left is gone when another begins. */
  #begin(): void {
    this.#on = null;
    for (const choice of ["best", "last"]) this.#shelf.delete(choice);
  }

  /** What came out of a run: the best is on the model. */
  #ended({ best, last, record }: Tuned): void {
    this.#on = { files: best, record };
    this.#shelf.set("best", this.#on);
    this.#shelf.set("last", last ? { files: last, record } : this.#on);
  }

  async keepAdapter(name: string): Promise<void> {
    if (!this.#on) throw new LuthierError("setting", "There is no adapter on the model.", "Train one, or load one.");
    const on = this.#on;
    await this.#ask("keepAdapter", name);
    this.#shelf.set(name, on);
    this.#held.add(name);
  }

  adapters(): { name: string; bytes: number }[] {
    const size = ({ files }: Kept) => files.reduce((sum, { blob }) => sum + blob.size, 0);
    return [...this.#shelf].map(([name, kept]) => ({ name, bytes: size(kept) }));
  }

  async useAdapter(name: string | null): Promise<void> {
    const kept = name === null ? null : this.#shelf.get(name);
    if (kept === undefined) {
      const known = [...this.#shelf.keys()].join(", ");
      throw new LuthierError("setting", `No adapter is kept as “${name}”.`, known ? `There are: ${known}.` : "Train one, or load one.");
    }
    if (kept && !this.#held.has(name!)) return this.#fetch(name!, kept);
    await this.#ask("useAdapter", name);
    this.#on = kept;
  }

  /** Another worker has it no longer, or never had it: it comes from its files. */
  async #fetch(name: string, kept: Kept): Promise<void> {
    await this.#put(kept);
    await this.#ask("keepAdapter", name);
    this.#held.add(name);
  }

  /** Told to the worker, if there is one that listens, and kept for those that take the run up after it. */
  async #want(wish: Partial<Wanted>): Promise<void> {
    if (!this.#run) return;
    await this.#tell(Object.assign(this.#run.wanted, wish));
  }

  async #tell(control: Control): Promise<void> {
    // A worker that dies of something else has nothing to answer to this.
    await this.#connection.call("control", control).catch(() => {});
  }

  /** The events of a run, which goes on whether or not somebody takes them. */
  async *#follow(begin: () => Promise<Begun>, id?: string, signal?: AbortSignal): AsyncGenerator<TrainEvent> {
    this.#checkFree();
    const queue = new Queue<TrainEvent>();
    const run: Running = { wanted: { paused: false, stopped: false }, step: 0, over: Promise.resolve() };
    // Before anything is waited for: what is asked from now on is asked of this run.
    this.#run = run;
    const over = this.#locked(run, begin, id, (event) => queue.push(event));
    run.over = over.then(() => queue.end(), (error) => queue.fail(error));
    const stop = () => void this.stop();
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop);
    try {
      yield* queue;
    } finally {
      signal?.removeEventListener("abort", stop);
      // Whoever leaves the loop keeps what was learned, once the current step is done.
      if (this.#run === run) await this.stop();
    }
    if (signal?.aborted) throw new LuthierError("cancelled", "The run was stopped.", "What was learned so far is kept.");
  }

  /** One run at a time here, and one tab a stored run. */
  async #locked(run: Running, begin: () => Promise<Begun>, id: string | undefined, emit: Emit): Promise<void> {
    let unlock = () => {};
    const unwatch = watchLeaving(() => void this.#tell("checkpoint"));
    try {
      if (id !== undefined) unlock = await runs.lock(id);
      const job: Job = { ...(await begin()), wanted: run.wanted };
      await this.#mending?.catch(() => {});
      await this.#restarting(job, run, emit);
    } finally {
      unwatch();
      unlock();
      this.#run = null;
    }
  }

  /** Goes on from the last checkpoint when the worker or its device dies. */
  async #restarting(job: Job, run: Running, emit: Emit): Promise<void> {
    const { store } = job;
    const faults: number[] = [];
    for (;;) {
      try {
        if (this.#used || !this.#connection.alive) await this.#reopen();
        return await this.#attempt(job, run, emit);
      } catch (error) {
        if (!this.#isFault(error)) throw error;
        faults.push(performance.now());
        const recent = faults.filter((at) => performance.now() - at < RESTART_WINDOW_MS).length;
        if (recent > RESTARTS) throw error;
        emit({ type: "restart", step: run.step, attempt: recent, error: LuthierError.data(error) });
        // The worker may have died when the run was on disk, but before it could say so.
        if (store?.create) store.create = !(await runs.exists(store.id));
      }
    }
  }

  /** One try. `job` and `run` learn from where another one would go on. */
  async #attempt(job: Job, run: Running, emit: Emit): Promise<void> {
    this.#begin();
    this.#used = true;
    await this.#connection.call("train", job, (event) => {
      if (event.type === "kept") job.checkpoint = event.checkpoint;
      else if (event.type === "tuned") this.#ended(event.tuned);
      else emit(event);
      if (event.type === "plan") job.options = { ...job.options, workers: event.summary.workers };
      if (event.type === "plan" && job.store) job.store.create = false;
      if (event.type === "plan" || event.type === "checkpoint") run.step = event.step;
    });
  }

  #checkFree(): void {
    if (!this.#run && !this.#probing) return;
    const what = this.#run ? "A run" : "A probe";
    throw new LuthierError("setting", `${what} is under way on this model.`, "Stop it first, or open the model again.");
  }

  // ---- use

  generate(
    prompts: Prompt[],
    options: SamplingOptions = {},
    onText?: (prompt: number, piece: string) => void,
    signal?: AbortSignal,
  ) {
    return this.#ask("generate", { prompts, options }, (piece) => onText?.(...piece), signal);
  }

  evaluate(data: DataText, options: { seq_len?: number; batch_size?: number; adapter?: boolean } = {}) {
    return this.#ask("evaluate", { data, options });
  }

  /** It uses up the one run of a worker, so it gets a fresh one, and leaves a fresh one. */
  async probe(
    data: DataText,
    { options = {}, budget = {}, test }: { options?: TrainOptions; budget?: ProbeBudget; test?: DataText } = {},
    onProgress?: OnProgress,
    signal?: AbortSignal,
  ): Promise<DataProbe> {
    this.#checkFree();
    this.#probing = true;
    try {
      await this.#mending?.catch(() => {});
      if (this.#used) await this.#reopen();
      this.#used = true;
      const ask = { data, options, budget, ...(test && { test }) };
      return await this.#stoppable(this.#ask("probe", ask, (said) => onProgress?.(...said)), signal);
    } finally {
      if (!this.#closed) this.#mend();
      this.#probing = false;
    }
  }

  /** A worker that computes hears nothing: to stop it is to take another, with the model and its adapter. */
  async #stoppable<T>(answer: Promise<T>, signal?: AbortSignal): Promise<T> {
    const stop = () => this.#mend(new LuthierError("cancelled", "It was stopped."));
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop);
    try {
      return await answer;
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  guessTask(data: DataText) {
    return this.#ask("guessTask", data);
  }

  assess(data: DataText, options: TaskOptions = {}, onProgress?: OnProgress, signal?: AbortSignal) {
    return this.#stoppable(this.#ask("assess", { data, options }, (said) => onProgress?.(...said)), signal);
  }

  forgetting() {
    return this.#ask("forgetting", null);
  }

  adapterMethod() {
    return this.#ask("adapterMethod", null);
  }

  async exportPeft() {
    return (await this.exportAdapter("peft", "adapter")).files;
  }

  exportAdapter(format: AdapterFormat, name: string) {
    return this.#ask("exportAdapter", { format, name });
  }

  exportMerged(target: Partial<MergeTarget> = {}, onProgress?: (done: number, total: number) => void) {
    const whole: MergeTarget = { format: "hf", dtype: target.format === "gguf" ? "f16" : "bf16", name: "merged", ...target };
    return this.#ask("exportMerged", whole, (bytes) => onProgress?.(...bytes));
  }

  mergedSize(target: MergeTarget) {
    return this.#ask("mergedSize", target);
  }

  /** Of a run that has ended it is here: a worker that took its place knows of none. */
  async exportRun() {
    return this.#on?.record ?? this.#ask("exportRun", null);
  }

  importPeft(files: NamedBlob[]) {
    return this.#put({ files, record: null });
  }

  async #put(adapter: Kept) {
    const otherBase = await this.#ask("importPeft", adapter.files);
    [this.#used, this.#on] = [true, adapter];
    return otherBase;
  }

  close(): void {
    this.#closed = true;
    this.#connection.close();
  }

  // ---- faults

  #isFault(error: unknown): error is LuthierError {
    return !this.#closed && error instanceof LuthierError && RECOVERABLE.has(error.code);
  }

  /** Asks the worker. A fault of the engine is for whoever asked; the next one finds the model open again. */
  async #ask<K extends CallName>(
    name: K,
    ask: Calls[K]["ask"],
    onEvent?: (event: Calls[K]["event"]) => void,
    signal?: AbortSignal,
  ): Promise<Calls[K]["answer"]> {
    if (!this.#connection.alive && !this.#run && !this.#closed) this.#mend();
    await this.#mending;
    const connection = this.#connection;
    try {
      return await connection.call(name, ask, onEvent, signal);
    } catch (error) {
      // A run looks after itself.
      if (this.#run || !this.#isFault(error)) throw error;
      if (connection === this.#connection) this.#mend(error);
      const again = this.#on ? "The model is opened again, with its adapter" : "The model is opened again";
      throw new LuthierError(error.code, error.message, `${again}: try once more. If it fails again, choose the other device.`);
    }
  }

  /** The same model with the same adapter in a fresh worker; where that fails too, whoever asks next gets to know. */
  #mend(reason?: LuthierError): void {
    if (this.#mending) return;
    const mend = async () => {
      try {
        await this.#reopen(reason);
        if (!this.#on) return;
        await this.#connection.call("importPeft", this.#on.files);
        this.#used = true;
      } catch (error) {
        // Without its adapter the model must not answer.
        this.#connection.close(LuthierError.from(LuthierError.data(error)));
        throw error;
      } finally {
        this.#mending = null;
      }
    };
    this.#mending = mend();
    // Nobody may be waiting for it.
    this.#mending.catch(() => {});
  }

  /** The same model in a fresh worker. */
  async #reopen(reason?: LuthierError): Promise<void> {
    this.#connection.close(reason);
    this.#used = false;
    this.#held.clear();
    this.#connection = take();
    if (this.#closed) this.#connection.close();
    this.#opened = await openModel(this.#connection, this.options).catch((error) => {
      // A worker without a model is of no use to the next one who asks.
      this.#connection.close(error);
      throw error;
    });
    this.options.onReopen?.(this.device);
  }
}

function openModel(connection: Connection, options: OpenOptions): Promise<Opened> {
  const device: DeviceChoice = options.device ?? "auto";
  return connection.call("open", { model: options.model, device, measure: options.measure }, (bytes) => options.onProgress?.(...bytes));
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
