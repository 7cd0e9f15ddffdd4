/**
 * The other workers of a run on the CPU. Each holds the same model and has planned the same run; it gets the parameters before
 * a step and gives back the gradients of its share (`src/train/shares.rs`). Whatever it does not give, the engine computes
 * itself, to the same bits: nobody waits for a helper that is not there yet, or not any more.
 */

import { Connection } from "./connection.js";
import type { Work } from "./engine.js";
import { LuthierError } from "./error.js";
import type { Shared } from "./protocol.js";
import type { ModelFiles } from "./types.js";

const MOST = 8;
/** A helper is given up when it takes longer than the engine for its own share by so many seconds, and so many times. */
const PATIENCE_SECONDS = 10;
const PATIENCE_TIMES = 20;

/** With the engine's own; one core is left to the page. Some browsers have no workers in workers. */
export function workersToSpare(): number {
  const cores = typeof Worker === "undefined" ? 1 : (navigator.hardwareConcurrency ?? 1);
  return Math.max(1, Math.min(MOST, cores - 1));
}

/** What all of them may take: a quarter of the memory, of which browsers tell 8 GiB at most; 1 GiB where they do not. */
export const gibToSpare = (): number => ((navigator as Navigator & WorkerNavigator).deviceMemory ?? 4) / 4;

export class Helpers {
  readonly #all: Helper[];

  /** `sha256` says which run it is that they must have planned. */
  constructor(count: number, compiled: WebAssembly.Module, model: ModelFiles, run: Shared, sha256: string) {
    this.#all = Array.from({ length: count }, (_, i) => new Helper(i + 1, compiled, model, run, sha256));
  }

  /** There is one to ask. */
  get ready(): boolean {
    return this.#all.some(({ ready }) => ready);
  }

  /** Has those that are ready begin with their shares. */
  ask(of: Work, step: number, parameters: Float32Array): void {
    for (const helper of this.#all) helper.ask(of, step, parameters);
  }

  /** The shares in their order, null where there is none; the engine took `seconds` for its own. */
  async *shares(seconds: number): AsyncGenerator<Float32Array | null> {
    for (const helper of this.#all) yield await helper.share(PATIENCE_SECONDS + PATIENCE_TIMES * seconds);
  }

  /** Why helpers were lost since this was asked last. */
  failures(): LuthierError[] {
    return this.#all.flatMap((helper) => helper.failure() ?? []);
  }

  close(): void {
    for (const helper of this.#all) helper.close();
  }
}

class Helper {
  #connection: Connection | null = null;
  #state: "joining" | "ready" | "gone" = "joining";
  #share: Promise<Float32Array | null> = Promise.resolve(null);
  #failure: LuthierError | null = null;

  constructor(private readonly worker: number, compiled: WebAssembly.Module, model: ModelFiles, run: Shared, sha256: string) {
    this.#join(compiled, model, run, sha256).catch((error) => this.#fail(error));
  }

  get ready(): boolean {
    return this.#state === "ready";
  }

  async #join(compiled: WebAssembly.Module, model: ModelFiles, run: Shared, sha256: string): Promise<void> {
    const { data, validation, options } = run;
    this.#connection = new Connection(import.meta.url, compiled, "luthier-helper");
    await this.#connection.call("open", { model, device: "cpu" });
    const joined = await this.#connection.call("join", { data, options, ...(validation && { validation }) });
    if (joined !== sha256) {
      const short = (hash: string) => hash.slice(0, 12);
      throw new LuthierError("mismatch", `it has planned the run ${short(joined)}, the engine ${short(sha256)}.`);
    }
    this.#state = "ready";
  }

  ask(of: Work, step: number, parameters: Float32Array): void {
    if (!this.ready || !this.#connection) return;
    const asked = this.#connection.call("share", { worker: this.worker, of, step, parameters });
    this.#share = asked.catch((error) => this.#fail(error));
  }

  /** What it was asked for, once. */
  share(seconds: number): Promise<Float32Array | null> {
    const share = this.#share;
    this.#share = Promise.resolve(null);
    const late = new LuthierError("internal", `it has not answered for ${Math.ceil(seconds)} seconds.`);
    return within(seconds, share, () => this.#fail(late));
  }

  #fail(error: unknown): null {
    if (this.#state === "gone") return null;
    const { code, message } = LuthierError.data(error);
    const hint = "The run goes on with the same numbers; the engine computes this share itself, which takes longer.";
    this.#failure = new LuthierError(code, `Worker ${this.worker + 1} of the run was lost: ${message}`, hint);
    this.close();
    return null;
  }

  failure(): LuthierError | null {
    const failure = this.#failure;
    this.#failure = null;
    return failure;
  }

  close(): void {
    this.#state = "gone";
    this.#connection?.close();
  }
}

/** What comes within so many seconds; those that the machine sleeps do not count. */
function within<T>(seconds: number, promise: Promise<T>, late: () => T): Promise<T> {
  return new Promise((resolve, reject) => {
    let left = Math.ceil(seconds);
    const timer = setInterval(() => --left <= 0 && resolve(late()), 1000);
    promise.then(resolve, reject).finally(() => clearInterval(timer));
  });
}
