/** Several methods on the same data with the same steps, one after the other: what each brought, and what it cost. */

import { LuthierError } from "./error.js";
import { ownOptions } from "./methods.js";
import { Queue } from "./queue.js";
import type {
  CompareEvent, CompareOptions, DataText, LuthierApi, Method, MethodRow, RunOptions, SystemName, TaskFigure, TrainEvent, TrainOptions, Tried,
} from "./types.js";

/** As `luthier compare` asks. */
const ASKED_TOGETHER = 8;

/** `beginAfresh` has the next run begin in a fresh worker: what answering took is no memory of that run's. */
export interface Tuner extends LuthierApi {
  beginAfresh(): void;
}

/** Ends when all methods are through, or when it is left or aborted; what was finished by then is kept. */
export async function* compare(tuner: Tuner, table: MethodRow[], data: DataText, ask: CompareOptions): AsyncGenerator<CompareEvent> {
  const queue = new Queue<CompareEvent>();
  const stop = new AbortController();
  const abort = () => stop.abort();
  if (ask.signal?.aborted) abort();
  ask.signal?.addEventListener("abort", abort);
  const work = new Comparison(tuner, table, data, ask, stop.signal, (event) => queue.push(event)).run();
  const over = work.then(() => queue.end(), (error) => queue.fail(error));
  try {
    yield* queue;
  } finally {
    ask.signal?.removeEventListener("abort", abort);
    abort();
    await over;
  }
}

/** One method, as it is to be tuned. */
interface Turn {
  index: number;
  method: Method;
  options: TrainOptions;
  /** What its run and its adapter are called. */
  id: string;
}

class Comparison {
  constructor(
    private readonly tuner: Tuner,
    private readonly table: MethodRow[],
    private readonly data: DataText,
    private readonly ask: CompareOptions,
    private readonly signal: AbortSignal,
    private readonly emit: (event: CompareEvent) => void,
  ) {}

  async run(): Promise<void> {
    const turns = this.ask.methods.map((choice, index) => this.#turn(choice, index));
    if (turns.length === 0) throw new LuthierError("setting", "No method is named.", `There are ${this.#names()}.`);
    if (this.ask.test) this.emit({ type: "untuned", task: await this.#ask("base", null) });
    this.tuner.beginAfresh();
    for (const turn of turns) {
      try {
        await this.#try(turn);
      } catch (error) {
        if (this.signal.aborted) throw new LuthierError("cancelled", "The comparison was stopped.", "What was finished is kept.");
        // One that cannot be had here is no reason to go without the others.
        this.emit({ type: "failed", index: turn.index, method: turn.method, error: LuthierError.data(error) });
      }
    }
  }

  #names = () => this.table.map(({ name }) => name).join(", ");

  #turn(choice: CompareOptions["methods"][number], index: number): Turn {
    const { method, lr } = typeof choice === "string" ? { method: choice } : choice;
    const row = this.table.find(({ name }) => name === method);
    if (!row) throw new LuthierError("setting", `There is no method called ${method}.`, `There are ${this.#names()}.`);
    const { options = {}, store } = this.ask;
    const own = { ...ownOptions(this.table, method, options), lr: lr ?? options.lr ?? row.lr };
    return { index, method, options: own, id: `${store?.id ?? "compare"}-${index + 1}-${method}` };
  }

  async #try(turn: Turn): Promise<void> {
    const { index, method, id } = turn;
    const { validation, store } = this.ask;
    const notes = new Notes();
    const job: RunOptions = { options: turn.options, signal: this.signal };
    if (validation) job.validation = validation;
    if (store) job.store = { ...store, id };
    for await (const event of this.tuner.train(this.data, job)) {
      notes.take(event);
      this.emit({ type: "run", index, method, event });
    }
    await this.tuner.keepAdapter(id);
    const adapter_bytes = this.tuner.adapters().find(({ name }) => name === id)?.bytes ?? 0;
    this.emit({ type: "tried", index, tried: notes.tried(turn, adapter_bytes) });
    const task = this.ask.test ? await this.#ask("tuned", index) : null;
    this.signal.throwIfAborted();
    this.emit({ type: "measured", index, method, forgetting: await this.tuner.forgetting(), task });
  }

  /** The task's first figure of the model, with its adapter or without. */
  async #ask(system: SystemName, index: number | null): Promise<TaskFigure> {
    const { data, task } = this.ask.test!;
    const { seq_len } = this.ask.options ?? {};
    const asking = { known: this.data, systems: [system], batch_size: ASKED_TOGETHER, ...(task && { task }), ...(seq_len && { seq_len }) };
    const onProgress = (_: string, done: number, total: number) => this.emit({ type: "asking", index, done, total });
    const report = await this.tuner.assess(data, asking, onProgress, this.signal);
    const [figure, estimate] = Object.entries(report.systems[0]!.figures)[0]!;
    return { task: report.task, figure, ...estimate };
  }
}

/** What a run says of itself, gathered. */
class Notes {
  #plan: Extract<TrainEvent, { type: "plan" }> | null = null;
  #validations: Extract<TrainEvent, { type: "validation" }>[] = [];
  #end: Extract<TrainEvent, { type: "end" }> | null = null;
  #seconds = 0;
  /** When the step began that is told of next. */
  #since = performance.now();

  take(event: TrainEvent): void {
    const now = performance.now();
    if (event.type === "step") this.#seconds += (now - this.#since) / 1000;
    else if (event.type === "plan") this.#plan = event;
    else if (event.type === "validation") this.#validations.push(event);
    else if (event.type === "restart") this.#validations = this.#validations.filter(({ step }) => step <= event.step);
    else if (event.type === "end") this.#end = event;
    this.#since = now;
  }

  tried({ method, options, id }: Turn, adapter_bytes: number): Tried {
    const { summary } = this.#plan!;
    const { batch_size = 4, seq_len = 256, grad_accum = 1, lr } = options;
    const best = this.#end?.best ?? null;
    // One that was stopped has done fewer than were planned.
    const steps = this.#end?.step ?? summary.steps;
    const at = (step: number) => this.#validations.find((validation) => validation.step === step)?.evaluation ?? null;
    return {
      method,
      lr: lr!,
      start: at(0),
      best: best && at(best.step),
      step: best?.step ?? steps,
      steps,
      tokens: steps * batch_size * seq_len * grad_accum,
      trainable_parameters: summary.trainable_parameters,
      parameters: summary.parameters + summary.added_parameters,
      adapter_bytes,
      memory_bytes: summary.memory.total,
      seconds: this.#seconds,
      adapter: id,
    };
  }
}
