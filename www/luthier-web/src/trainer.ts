/** A run inside the worker: the loop around the engine's steps, with evaluations, probes, checkpoints and the controls. */

import type { Engine, NamedBytes, Work } from "./engine.js";
import { LuthierError } from "./error.js";
import type { Helpers } from "./helpers.js";
import type { Control, Job, Kept, Wanted } from "./protocol.js";
import { RunFiles } from "./store/runs.js";
import type { Evaluation, GeneratedText, ModelInfo, NamedBlob, StepReport, Summary, TrainEvent, TrainOptions } from "./types.js";

/** Lets one call into the engine end before the next begins, and messages be heard in between. */
export type Turn = <T>(work: () => T | Promise<T>) => Promise<T>;
export type Emit = (event: TrainEvent | Kept) => void;
/** Starts the other workers of a run. */
export type Help = (workers: number, options: TrainOptions) => Helpers;

interface Started extends Summary {
  step: number;
}

const PROBE = { temperature: 0, max_new_tokens: 48 };

type End = Extract<TrainEvent, { type: "end" }>;

export class Run {
  /** Steps done. */
  #step = 0;
  /** The last step known to be sound. */
  #reported = 0;
  /** The last step after which the validation loss was measured. */
  #evaluated = -1;
  #wanted: Wanted;
  #checkpointAsked = false;
  #saved = performance.now();
  /** The step that the last checkpoint holds with all that was measured at it; there is no checkpoint of step 0. */
  #savedStep = 0;
  #wake = () => {};
  #files: RunFiles | null = null;
  /** Examples to validate on. */
  #held = 0;
  #workers = 1;
  /** Helpers hold what the engine holds. */
  #kept = 0;
  #helpers: Helpers | null = null;

  constructor(
    private readonly engine: Engine,
    private readonly turn: Turn,
    private readonly job: Job,
    private readonly model: ModelInfo,
    /** Steps between evaluations; 0 means only at the end. */
    private readonly evalEvery: number,
    private readonly help: Help,
    private readonly emit: Emit,
  ) {
    this.#wanted = job.wanted;
  }

  control(what: Control): void {
    if (what === "checkpoint") this.#checkpointAsked = true;
    else this.#wanted = what;
    this.#wake();
  }

  async run(): Promise<void> {
    const summary = await this.#start();
    try {
      await this.#train(summary.steps);
      await this.#end();
    } catch (error) {
      const { code } = LuthierError.data(error);
      // Anything else may go on from the last checkpoint, and stays "running" until then.
      if (code === "diverged") await this.#diverged();
      throw error;
    } finally {
      this.#dismiss();
    }
  }

  // ---- begin, loop, end

  async #start(): Promise<Started> {
    const { store } = this.job;
    if (store && !store.create) this.#files = await RunFiles.reopen(store.id);
    const started = await this.#startEngine();
    this.#step = this.#reported = this.#savedStep = started.step;
    [this.#held, this.#kept] = [started.validation_examples, started.memory.kept_blocks];
    // On a GPU the engine computes all shares itself, where a number is asked for.
    this.#workers = started.memory.helpers > 0 ? started.workers : 1;
    // The bits depend on it: whoever goes on with this run must not choose again.
    this.job.options = { ...this.job.options, workers: started.workers };
    if (store?.create) this.#files = await RunFiles.create(store.id, this.job, this.model, started.steps);
    else await this.#files?.goOn(started.step);
    const { step, ...summary } = started;
    this.emit({ type: "plan", summary, step });
    return started;
  }

  /** From the newest checkpoint that can be read, else from the beginning, which gives the same bits, only later. */
  async #startEngine(): Promise<Started> {
    const { data, validation, options, checkpoint } = this.job;
    const start = (from: Uint8Array | undefined) => this.turn(() =>
      this.engine.start_training(JSON.stringify(data), validation && JSON.stringify(validation), JSON.stringify(options), from),
    );
    for await (const stored of this.#files?.checkpoints() ?? []) {
      try {
        return JSON.parse(await start(stored));
      } catch (error) {
        // A damaged one is why there are two; one of another run must not be passed over in silence.
        if (LuthierError.data(error).code !== "malformed") throw error;
        this.#warn(error);
      }
    }
    return JSON.parse(await start(checkpoint));
  }

  async #train(steps: number): Promise<void> {
    let done = this.#step >= steps;
    while (!done && !this.#wanted.stopped) {
      if (this.#wanted.paused) {
        await this.#pause();
        continue;
      }
      await this.#gather("step");
      const result = JSON.parse(await this.turn(() => this.engine.step()));
      ({ step: this.#step, done } = result);
      this.#report(result.reports);
      if (this.#step === 1) await this.#lookBack();
      if (done || (this.evalEvery > 0 && this.#step % this.evalEvery === 0)) await this.#evaluate();
      if (this.#due()) await this.#checkpoint();
    }
  }

  /** The shares of the work to come, each in its turn. The engine computes those that no helper brings. */
  async #gather(of: Work): Promise<void> {
    if (this.#workers === 1) return;
    if (of === "step") this.#helpers ??= this.help(this.#workers, { ...this.job.options, kept_blocks: this.#kept });
    const { engine, turn } = this;
    const helpers = this.#helpers;
    if (helpers?.ready) {
      helpers.ask(of, this.#step, await turn(() => engine.parameters()));
      const start = performance.now();
      await turn(() => engine.compute_share(of));
      for await (const share of helpers.shares((performance.now() - start) / 1000)) {
        await turn(() => (share ? engine.add_share(of, share) : engine.compute_share(of)));
      }
    }
    for (const error of helpers?.failures() ?? []) this.#warn(error);
  }

  /** Frees the helpers' memory. */
  #dismiss(): void {
    this.#helpers?.close();
    this.#helpers = null;
  }

  async #end(): Promise<void> {
    const reason = this.#wanted.stopped ? "stopped" : "done";
    await this.#drain();
    // The best adapter is among those measured, so the last one has to be.
    if (this.#step > 0 && this.#evaluated < this.#step) await this.#evaluate();
    this.#dismiss();
    if (reason === "stopped") await this.#checkpoint();
    await this.#keep(reason, this.#step, await this.#best());
  }

  /** The step that was not finite was not taken: the engine holds the adapter of the last sound one. */
  async #diverged(): Promise<void> {
    const step = this.#reported;
    if (step === 0) return this.#files?.end("failed", step, null);
    const best = await this.#best();
    // What was before training is no result, and nobody has measured what came after it.
    await this.#keep("diverged", step, best && best.step > 0 ? best : null);
  }

  #best(): Promise<End["best"]> {
    return this.turn(() => JSON.parse(this.engine.best()));
  }

  /** Puts the best adapter on the model, and hands over what came out, the last adapter too where it is another. */
  async #keep(reason: End["reason"], step: number, best: End["best"]): Promise<void> {
    const adapter = () => this.turn(() => this.engine.adapter_files());
    const last = best && best.step < step ? await adapter() : null;
    if (last) await this.turn(() => this.engine.use_best());
    const files = { best: await adapter(), last, record: await this.turn(() => this.engine.run_json()) };
    this.emit({ type: "tuned", tuned: { ...files, best: asBlobs(files.best), last: last && asBlobs(last) } });
    try {
      await this.#files?.end(reason === "diverged" ? "failed" : reason, step, files);
    } catch (error) {
      // A full disk is no reason to lose what was learned either: it is on the model, and can still be taken away.
      this.#warn(error);
    }
    this.emit({ type: "end", step, reason, best });
  }

  // ---- what happens between steps

  #report(reports: StepReport[]): void {
    for (const report of reports) this.#tell({ type: "step", report });
    this.#reported = reports.at(-1)?.step ?? this.#reported;
  }

  /** Takes the reports of steps that are still under way, so that everything is told in order. */
  async #drain(): Promise<void> {
    this.#report(JSON.parse(await this.turn(() => this.engine.reports())));
  }

  async #evaluate(): Promise<void> {
    await this.#drain();
    this.#evaluated = this.#step;
    // A checkpoint from before does not know of it.
    this.#savedStep = -1;
    if (this.#held > 0) await this.#gather("validation");
    this.#validated(this.#step, await this.turn(() => this.engine.validate()));
    await this.#probe(this.#step, true);
  }

  #validated(step: number, json: string): void {
    const measured: (Evaluation & { best: boolean }) | null = JSON.parse(json);
    if (!measured) return;
    const { best, ...evaluation } = measured;
    this.#tell({ type: "validation", step, evaluation, best });
  }

  /** What was before training can be measured when somebody already sees that the run is going. */
  async #lookBack(): Promise<void> {
    await this.#drain();
    this.#validated(0, await this.turn(() => this.engine.validate_start()));
    await this.#probe(0, false);
  }

  async #probe(step: number, adapter: boolean): Promise<void> {
    if (this.job.probes.length === 0) return;
    const options = JSON.stringify({ ...PROBE, adapter });
    const ask = () => this.engine.generate(JSON.stringify(this.job.probes), options, () => undefined);
    const texts: GeneratedText[] = JSON.parse(await this.turn(ask));
    this.#tell({ type: "probe", step, texts });
  }

  #due(): boolean {
    return this.#checkpointAsked || performance.now() - this.#saved > 1000 * this.job.every_seconds;
  }

  async #checkpoint(): Promise<void> {
    this.#checkpointAsked = false;
    if (this.#step > 0 && this.#step !== this.#savedStep) await this.#save();
    this.#saved = performance.now();
  }

  async #save(): Promise<void> {
    await this.#drain();
    const checkpoint = await this.turn(() => this.engine.checkpoint());
    const bytes = checkpoint.byteLength;
    if (!this.#files) this.emit({ type: "kept", checkpoint });
    else if (!(await this.#write(checkpoint))) return;
    this.#savedStep = this.#step;
    this.emit({ type: "checkpoint", step: this.#step, bytes });
  }

  /** A full disk is no reason to lose the run: it goes on, and says so. */
  async #write(checkpoint: Uint8Array): Promise<boolean> {
    try {
      await this.#files?.checkpoint(this.#step, checkpoint);
      return true;
    } catch (error) {
      this.#warn(error);
      return false;
    }
  }

  async #pause(): Promise<void> {
    this.#dismiss();
    await this.#checkpoint();
    this.emit({ type: "paused", step: this.#step });
    while (this.#wanted.paused && !this.#wanted.stopped) {
      await new Promise<void>((wake) => (this.#wake = wake));
      if (this.#due()) await this.#checkpoint();
    }
  }

  #warn(error: unknown): void {
    this.emit({ type: "warning", step: this.#step, error: LuthierError.data(error) });
  }

  #tell(event: TrainEvent): void {
    this.#files?.note(event);
    this.emit(event);
  }
}

const asBlobs = (files: NamedBytes[]): NamedBlob[] => files.map(({ name, bytes }) => ({ name, blob: new Blob([bytes]) }));
