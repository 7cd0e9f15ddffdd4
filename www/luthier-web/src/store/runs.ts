/**
 * Runs in OPFS, a folder each: `record.json`, `data`, `validation`, `log.json`, the last two checkpoints, and when the run
 * has ended the adapter. The page lists and deletes; the worker that trains writes.
 */

import { LuthierError } from "../error.js";
import type { Job } from "../protocol.js";
import type { DataText, NamedBlob, StoredRun, TrainEvent } from "../types.js";
import { type Folder, decodeName, encodeName, folder, names, read, readJson, remove, size, write } from "./opfs.js";

const RUNS = "runs";
const KEPT_CHECKPOINTS = 2;
const CHECKPOINT = /^checkpoint-(\d+)$/;
const ADAPTER = ["adapter_config.json", "adapter_model.safetensors"];

/** What is written of a run beside its data. */
export interface RunRecord extends Omit<StoredRun, "bytes" | "locked"> {
  probes: string[];
  every_seconds: number;
  data: Omit<DataText, "text">;
  validation: Omit<DataText, "text"> | null;
}

const pathOf = (id: string) => [RUNS, encodeName(id)];

// ---- one tab a run

const lockName = (id: string) => `luthier-run-${id}`;

/** Takes the run for this tab until the returned function is called, or the tab ends. */
export async function lock(id: string): Promise<() => void> {
  if (!navigator.locks) throw new LuthierError("storage", "Runs cannot be stored here.", "Use https.");
  // A page that was just reloaded lets go a moment later.
  for (let tries = 5; ; tries--) {
    const release = await tryLock(lockName(id));
    if (release) return release;
    if (tries === 0) throw new LuthierError("locked", "This run is open in another tab.", "Go on there, or close that tab.");
    await new Promise((again) => setTimeout(again, 200));
  }
}

function tryLock(name: string): Promise<(() => void) | null> {
  return new Promise((taken, failed) => {
    const hold = (lock: Lock | null) => lock ? new Promise<void>((release) => taken(release)) : taken(null);
    navigator.locks.request(name, { ifAvailable: true }, hold).catch(failed);
  });
}

async function lockedNames(): Promise<Set<string | undefined>> {
  const { held = [] } = (await navigator.locks?.query()) ?? {};
  return new Set(held.map(({ name }) => name));
}

// ---- for the page

export async function list(): Promise<StoredRun[]> {
  const [runs, locked] = await Promise.all([folder([RUNS]), lockedNames()]);
  const ids = (await names(runs)).map(decodeName);
  const found = await Promise.all(ids.map((id) => describe(id, locked.has(lockName(id)))));
  return found.filter((run) => run !== null).sort((a, b) => b.created.localeCompare(a.created));
}

async function describe(id: string, locked: boolean): Promise<StoredRun | null> {
  const at = await folder(pathOf(id));
  const record = at && (await readJson<RunRecord>(at, "record.json"));
  if (!record) return null;
  const { created, model, data_name, options, step, steps, best, base_loss } = record;
  // Whoever was killed could not say so: the lock can.
  const state = record.state === "running" && !locked ? "interrupted" : record.state;
  return { id, created, model, data_name, options, step, steps, state, best, base_loss, locked, bytes: await size(at) };
}

export async function deleteRun(id: string): Promise<void> {
  const release = await lock(id);
  try {
    const runs = await folder([RUNS]);
    if (runs) await remove(runs, encodeName(id));
  } finally {
    release();
  }
}

/** What a run needs to go on. */
export async function load(id: string): Promise<{ record: RunRecord; data: DataText; validation?: DataText }> {
  const at = await open(id);
  const record = await readJson<RunRecord>(at, "record.json");
  if (!record) throw unknown(id);
  const text = async (name: string) => (await (await read(at, name))?.text()) ?? "";
  return {
    record,
    data: { ...record.data, text: await text("data") },
    ...(record.validation && { validation: { ...record.validation, text: await text("validation") } }),
  };
}

/** What happened so far, for charts. */
export async function log(id: string): Promise<TrainEvent[]> {
  return (await readJson<TrainEvent[]>(await open(id), "log.json")) ?? [];
}

/** The adapter of a run that has ended, as PEFT files. */
export async function adapter(id: string): Promise<NamedBlob[]> {
  const at = await open(id);
  const files = await Promise.all(ADAPTER.map(async (name) => ({ name, blob: await read(at, name) })));
  return files.map(({ name, blob }) => {
    if (blob) return { name, blob };
    throw new LuthierError("storage", `Run ${id} has no adapter yet.`, "Continue it; it is written when the run ends.");
  });
}

async function open(id: string): Promise<Folder> {
  const at = await folder(pathOf(id));
  if (at) return at;
  throw unknown(id);
}

function unknown(id: string): LuthierError {
  return new LuthierError("storage", `There is no stored run ${id}.`, "It may have been deleted in another tab.");
}

// ---- for the worker

interface Written {
  name: string;
  bytes: Uint8Array | string;
}

/** A stored run while it trains. Writes are in an order in which any of them may be the last one that happens. */
export class RunFiles {
  private constructor(
    readonly folder: Folder,
    readonly record: RunRecord,
    readonly log: TrainEvent[],
  ) {}

  static async create(id: string, job: Job, model: string, steps: number): Promise<RunFiles> {
    if (await folder(pathOf(id))) {
      throw new LuthierError("storage", `There is a stored run ${id} already.`, "Give this one another name.");
    }
    const at = await folder(pathOf(id), true);
    const described = (data: DataText) => ({ name: data.name, ...(data.columns && { columns: data.columns }) });
    const record: RunRecord = {
      id, created: new Date().toISOString(), model, data_name: job.data.name, options: job.options, step: 0, steps,
      state: "running", best: null, base_loss: null, probes: job.probes, every_seconds: job.every_seconds,
      data: described(job.data), validation: job.validation ? described(job.validation) : null,
    };
    const files = new RunFiles(at, record, []);
    await write(at, "data", job.data.text);
    if (job.validation) await write(at, "validation", job.validation.text);
    await files.#writeRecord();
    return files;
  }

  static async reopen(id: string): Promise<RunFiles> {
    const at = await open(id);
    const record = await readJson<RunRecord>(at, "record.json");
    if (!record) throw unknown(id);
    return new RunFiles(at, record, await log(id));
  }

  /** Checkpoints from the newest to the oldest: the newest may be damaged. */
  async *checkpoints(): AsyncGenerator<Uint8Array> {
    for (const name of (await this.#checkpointNames()).reverse()) {
      const file = await read(this.folder, name);
      if (file) yield new Uint8Array(await file.arrayBuffer());
    }
  }

  /** Forgets what was logged after the step from which the run goes on. */
  async goOn(step: number): Promise<void> {
    const kept = this.log.filter((event) => stepOf(event) <= step);
    this.log.splice(0, this.log.length, ...kept);
    Object.assign(this.record, { step, state: "running" });
    await this.#writeRecord();
  }

  note(event: TrainEvent): void {
    if (event.type === "step" || event.type === "probe") this.log.push(event);
    if (event.type !== "validation") return;
    this.log.push(event);
    const { step, evaluation: { loss }, best } = event;
    if (step === 0) this.record.base_loss = loss;
    if (best) this.record.best = { step, loss };
  }

  async checkpoint(step: number, bytes: Uint8Array): Promise<void> {
    await write(this.folder, `checkpoint-${String(step).padStart(10, "0")}`, bytes);
    this.record.step = step;
    await this.#writeRecord();
    const old = (await this.#checkpointNames()).slice(0, -KEPT_CHECKPOINTS);
    for (const name of old) await remove(this.folder, name);
  }

  /** A stopped run may go on, so it keeps its checkpoints; one that is done needs them no more. */
  async end(state: "done" | "stopped" | "failed", step: number, files: Written[]): Promise<void> {
    for (const { name, bytes } of files) await write(this.folder, name, bytes);
    Object.assign(this.record, { state, step });
    await this.#writeRecord();
    if (state === "done") for (const name of await this.#checkpointNames()) await remove(this.folder, name);
  }

  async #writeRecord(): Promise<void> {
    await write(this.folder, "log.json", JSON.stringify(this.log));
    await write(this.folder, "record.json", JSON.stringify(this.record));
  }

  async #checkpointNames(): Promise<string[]> {
    return (await names(this.folder)).filter((name) => CHECKPOINT.test(name));
  }
}

function stepOf(event: TrainEvent): number {
  if (event.type === "step") return event.report.step;
  return "step" in event ? event.step : 0;
}
