/** The worker, whatever its engine: owns wasm and the device, and answers what the page asks. One worker is one engine. */

import type { Engine, EngineModule, NamedBytes } from "./engine.js";
import { LuthierError } from "./error.js";
import { Helpers, gibToSpare, workersToSpare } from "./helpers.js";
import { closeWaysOut, onRequest, watchRequests } from "./privacy.js";
import type { CallName, Calls, Opened, Question, Reply } from "./protocol.js";
import { CHECKED_BYTES } from "./limits.js";
import { checkModel, downloadModel, storeModel } from "./store/growing.js";
import * as tuning from "./store/tuning.js";
import { Run } from "./trainer.js";
import type { Agreement, Method, ModelFiles, ModelInfo, NamedBlob, OptionRow, TrainOptions } from "./types.js";

const reply = (message: Reply, transfer: Transferable[] = []) => self.postMessage(message, { transfer });

closeWaysOut();
watchRequests((request) => reply({ request }));
// Those of helpers.
onRequest((request) => reply({ request }));

// ---- the engine

let module: EngineModule;
let wasm: string | WebAssembly.Module = "";
let loaded: Promise<unknown> | null = null;
let session: Engine | null = null;
let info: ModelInfo | null = null;
let opened: ModelFiles | null = null;
let run: Run | null = null;

async function engine(): Promise<EngineModule> {
  loaded ??= module.default({ module_or_path: wasm });
  await loaded;
  return module;
}

function model(): Engine {
  if (session) return session;
  throw new LuthierError("internal", "No model is open in this worker.");
}

let last: Promise<unknown> = Promise.resolve();

/** One call into the engine at a time, and a turn of the event loop after each, in which messages are heard. */
function turn<T>(work: () => T | Promise<T>): Promise<T> {
  const mine = last.then(work).then(keepTuned);
  last = mine.then(breathe, breathe);
  return mine;
}

/** What was measured is kept before anything follows from it: a run that is resumed is to give the same bits. */
async function keepTuned<T>(result: T): Promise<T> {
  const tuned = session?.newly_tuned();
  if (tuned) await tuning.keep(tuned);
  return result;
}

const { port1, port2 } = new MessageChannel();

/** Unlike a timer, a message is not slowed down in a page that is hidden. */
function breathe(): Promise<void> {
  return new Promise((heard) => {
    port1.onmessage = () => heard();
    port2.postMessage(null);
  });
}

// ---- what may be asked

interface Context<K extends CallName> {
  emit(event: Calls[K]["event"], transfer?: Transferable[]): void;
  signal: AbortSignal;
}

type Handlers = { [K in CallName]: (ask: Calls[K]["ask"], context: Context<K>) => Promise<Calls[K]["answer"]> };

const handlers: Handlers = {
  async open({ model: { name, files }, device, measure }, { emit }): Promise<Opened> {
    const { Session } = await engine();
    const options = { device, name, measure, workers: workersToSpare(), workers_gib: gibToSpare() };
    const progress = (done: number, total: number) => emit([done, total]);
    session = await turn(() => Session.create(files, options, progress, tuning.kept));
    opened = { name, files };
    const model: ModelInfo = JSON.parse(session.info());
    info = model;
    return { device: JSON.parse(session.device()), model };
  },

  async benchmark(device) {
    const { benchmark } = await engine();
    return JSON.parse(await turn(() => benchmark(device)));
  },

  async kernels(device) {
    const { benchmark_kernels } = await engine();
    return JSON.parse(await turn(() => benchmark_kernels(device)));
  },

  async options() {
    const { option_table, method_table } = await engine();
    return { options: JSON.parse(option_table()), methods: JSON.parse(method_table()) };
  },

  async preview({ data, options }) {
    const given = JSON.stringify({ ...options, columns: data.columns ?? {} });
    return JSON.parse(await turn(() => model().preview(data.name, data.text, given)));
  },

  async estimate({ data, validation, options }) {
    const columns = JSON.stringify(data.columns ?? {});
    const others = validation && JSON.stringify(validation);
    return JSON.parse(await turn(() => model().estimate(data.name, data.text, columns, others, JSON.stringify(options))));
  },

  async train(job, { emit }) {
    // Before anything is waited for: what is asked of the run next must find it.
    const help = (workers: number, options: TrainOptions) =>
      new Helpers(workers - 1, module.compiled(), opened!, { ...job, options }, model().run_sha256());
    run = new Run(model(), turn, job, info!, job.options.eval_every ?? defaultOf("eval_every"), help, emit);
    try {
      await run.run();
    } finally {
      run = null;
    }
    return null;
  },

  async control(what) {
    run?.control(what);
    return null;
  },

  async join({ data, validation, options }) {
    const others = validation && JSON.stringify(validation);
    await turn(() => model().start_training(JSON.stringify(data), others, JSON.stringify(options), undefined));
    return model().run_sha256();
  },

  async share({ of, step, parameters, worker }) {
    return turn(() => model().share_of(of, step, parameters, worker));
  },

  async generate({ prompts, options }, { emit, signal }) {
    const onText = (prompt: number, piece: string) => {
      emit([prompt, piece]);
      return !signal.aborted;
    };
    return JSON.parse(await turn(() => model().generate(JSON.stringify(prompts), JSON.stringify(options), onText)));
  },

  async evaluate({ data, options }) {
    return JSON.parse(await turn(() => model().evaluate(JSON.stringify(data), JSON.stringify(options))));
  },

  async probe({ data, test, options, budget }, { emit }) {
    const others = test && JSON.stringify(test);
    const say = (...said: [string, number, number]) => emit(said);
    return JSON.parse(await turn(() => model().probe(JSON.stringify(data), others, JSON.stringify(options), JSON.stringify(budget), say)));
  },

  async guessTask(data) {
    return JSON.parse((await engine()).guess_task(JSON.stringify(data)));
  },

  async assess({ data, options }, { emit }) {
    const say = (...said: [string, number, number]) => emit(said);
    return JSON.parse(await turn(() => model().assess(JSON.stringify(data), JSON.stringify(options), say)));
  },

  async forgetting() {
    return JSON.parse(await turn(() => model().forgetting()));
  },

  async adapterMethod() {
    return (await turn(() => model().method() as Method | undefined)) ?? null;
  },

  async exportAdapter({ format, name }) {
    const files = await turn(() => model().exported(format, name));
    // Only what was read back and is the adapter on the model is given out.
    const agreement: Agreement = JSON.parse(await turn(() => model().check_adapter(files)));
    return { files: files.map(({ name, bytes }) => ({ name, blob: new Blob([bytes]) })), agreement };
  },

  async mergedSize(target) {
    return turn(() => model().merged_size(target));
  },

  async exportMerged(target, { emit }) {
    // Blobs are the browser's, which keeps large ones on disk: the model is never whole in memory.
    const parts = new Map<string, Blob[]>();
    let done = 0;
    const bytes = await turn(() => model().merged_size(target));
    await turn(() => model().merged(target, (name, chunk) => {
      parts.set(name, [...(parts.get(name) ?? []), new Blob([chunk])]);
      done += chunk.byteLength;
      emit([done, bytes]);
    }));
    const files: NamedBlob[] = [...parts].map(([name, chunks]) => ({ name, blob: new Blob(chunks) }));
    const agreement: Agreement | null =
      bytes <= CHECKED_BYTES ? JSON.parse(await turn(() => model().check_merged(files, target))) : null;
    if (target.format === "gguf") {
      files.push({ name: `${target.name}.Modelfile`, blob: new Blob([model().modelfile(`${target.name}.gguf`)]) });
    }
    return { files, agreement };
  },

  async exportRun() {
    return turn(() => model().run_json());
  },

  async keepAdapter(name) {
    await turn(() => model().keep_adapter(name));
    return null;
  },

  async useAdapter(name) {
    await turn(() => model().use_adapter(name ?? undefined));
    return null;
  },

  async importPeft(files) {
    const read: NamedBytes[] = [];
    for (const { name, blob } of files) read.push({ name, bytes: new Uint8Array(await blob.arrayBuffer()) });
    return turn(() => model().load_adapter(read));
  },

  async storeModel(model, { emit, signal }) {
    await storeModel(model, (done, total) => emit([done, total]), signal);
    return null;
  },

  async downloadModel(model, { emit, signal }) {
    await downloadModel(model, (done, total) => emit([done, total]), signal);
    return null;
  },

  async checkModel(name, { emit, signal }) {
    await checkModel(name, (done, total) => emit([done, total]), signal);
    return null;
  },
};

/** Of an engine that is loaded: a model is open. */
function defaultOf(name: OptionRow["name"]): number {
  const rows: OptionRow[] = JSON.parse(module.option_table());
  return Number(rows.find((row) => row.name === name)?.default ?? 0);
}

// ---- messages

const underway = new Map<number, AbortController>();

/** Hears and answers, with this engine. */
export function serve(engine: EngineModule): void {
  module = engine;
  self.onmessage = ({ data }: MessageEvent<Question>) => {
    if ("cancel" in data) underway.get(data.cancel)?.abort();
    else void answer(data.id, data.name, data.ask, data.wasm);
  };
}

async function answer<K extends CallName>(id: number, name: K, ask: Calls[K]["ask"], from: typeof wasm): Promise<void> {
  wasm = from;
  const stop = new AbortController();
  underway.set(id, stop);
  const context: Context<K> = { emit: (event, transfer) => reply({ id, event }, transfer), signal: stop.signal };
  try {
    const answer = await handlers[name](ask, context);
    reply({ id, answer }, answer instanceof Float32Array ? [answer.buffer as ArrayBuffer] : []);
  } catch (error) {
    if (isPanic(error)) die(error);
    else reply({ id, error: LuthierError.data(error) });
  } finally {
    underway.delete(id);
  }
}

// ---- panics

// A panic reaches us as a trap; what it had to say went to console.error just before.
let lastConsoleError = "";
const consoleError = console.error;
console.error = (...parts: unknown[]) => {
  lastConsoleError = parts.join(" ");
  consoleError(...parts);
};

const isPanic = (error: unknown) => error instanceof WebAssembly.RuntimeError;

function die(error: unknown): void {
  const { code, message, hint } = LuthierError.data(error);
  // The first lines say what and where; the stack of a stripped wasm says nothing.
  const said = isPanic(error) && lastConsoleError.split("\n\nStack:")[0];
  reply({ fatal: { code, message: said || message, hint } });
}

// A panic in a future of the engine's never comes back through the promise that waits for it.
self.addEventListener("error", (event) => {
  event.preventDefault();
  die(event.error ?? event.message);
});
self.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  die(event.reason);
});
