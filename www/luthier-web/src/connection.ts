/** One worker, seen from who started it: questions out, events and answers back, and what happens when it dies. */

import { LuthierError } from "./error.js";
import { tellAll } from "./privacy.js";
import type { CallName, Calls, Question, Reply } from "./protocol.js";

interface Pending {
  answer: (value: never) => void;
  error: (error: LuthierError) => void;
  event: (event: never) => void;
}

export class Connection {
  readonly #worker: Worker;
  readonly #pending = new Map<number, Pending>();
  #last = 0;
  #end: LuthierError | null = null;

  /** `script` is the worker's; `wasm` the engine as it lies somewhere, or as it was compiled here. */
  constructor(script: string, private readonly wasm: string | WebAssembly.Module, name = "luthier") {
    const start = bootstrap(script);
    this.#worker = new Worker(trusted(start), { type: "module", name });
    this.#worker.onmessage = ({ data }: MessageEvent<Reply>) => this.#receive(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      const hint = "Reload the page; a strict Content-Security-Policy needs `worker-src 'self' blob:`.";
      this.close(new LuthierError("internal", event.message || "The engine's worker could not be loaded.", hint));
    };
    // Long after the worker has read it, also on a slow machine.
    setTimeout(() => URL.revokeObjectURL(start), 60_000);
  }

  get alive(): boolean {
    return this.#end === null;
  }

  call<K extends CallName>(
    name: K,
    ask: Calls[K]["ask"],
    onEvent: (event: Calls[K]["event"]) => void = () => {},
    signal?: AbortSignal,
  ): Promise<Calls[K]["answer"]> {
    if (this.#end) return Promise.reject(this.#end);
    const id = ++this.#last;
    const cancel = () => this.#worker.postMessage({ cancel: id } satisfies Question);
    const answered = new Promise<Calls[K]["answer"]>((answer, error) => {
      this.#pending.set(id, { answer, error, event: onEvent });
      this.#worker.postMessage({ id, name, ask, wasm: this.wasm });
      if (signal?.aborted) cancel();
      signal?.addEventListener("abort", cancel);
    });
    return answered.finally(() => signal?.removeEventListener("abort", cancel));
  }

  /** Ends the worker; whatever still waits for it gets the reason. */
  close(reason = new LuthierError("cancelled", "The model was closed.")): void {
    if (this.#end) return;
    this.#end = reason;
    this.#worker.terminate();
    for (const pending of this.#pending.values()) pending.error(reason);
    this.#pending.clear();
  }

  #receive(reply: Reply): void {
    if ("request" in reply) return tellAll(reply.request);
    if ("fatal" in reply) return this.close(LuthierError.from(reply.fatal));
    const pending = this.#pending.get(reply.id);
    if (!pending) return;
    if ("event" in reply) return pending.event(reply.event as never);
    this.#pending.delete(reply.id);
    if ("error" in reply) pending.error(LuthierError.from(reply.error));
    else pending.answer(reply.answer as never);
  }
}

/**
 * A worker that starts from a URL is ruled by the headers of that URL, which many hosts cannot set; one that starts from
 * a blob inherits the Content-Security-Policy of the page, its <meta> included.
 */
function bootstrap(script: string): string {
  return URL.createObjectURL(new Blob([`import ${JSON.stringify(script)};`], { type: "text/javascript" }));
}

let policy: TrustedTypePolicy | undefined;

/** A page under Trusted Types must name this policy in its own; it lets nothing through but what was made here. */
function trusted(start: string): string {
  const ours = (url: string) => {
    if (url.startsWith("blob:")) return url;
    throw new TypeError("luthier-worker: only the worker's own start is trusted");
  };
  policy ??= globalThis.trustedTypes?.createPolicy("luthier-worker", { createScriptURL: ours });
  return policy?.createScriptURL(start) ?? start;
}
