/**
 * Runs in OPFS, a folder each: `record.json`, `data`, `validation`, `log.json`, the last two checkpoints, and when the run
 * has ended `run.json` and the adapters. The page lists and deletes; the worker that trains writes.
 */

import { LuthierError } from "../error.js";
import type { Job } from "../protocol.js";
import type { NamedBytes } from "../engine.js";
import type { AdapterChoice, DataText, ModelInfo, NamedBlob, StoredRun, TrainEvent } from "../types.js";
import { heldNames, take, tryLock } from "./lock.js";
import {
  type Folder, available, decodeName, encodeName, folder, isTemporary, names, read, readJson, remove, size, write,
} from "./opfs.js";

const RUNS = "runs";
const KEPT_CHECKPOINTS = 2;
const CHECKPOINT = /^checkpoint-(\d+)$/;
/** 0 is a file that is none. */
const stepOfCheckpoint = (name: string) => Number(name.match(CHECKPOINT)?.[1] ?? 0);
const RECORD = "record.json";
const LOG = "log.json";
/** What the engine makes of it when it has ended, as `luthier train --from` reads it. */
const ENDED = "run.json";
const ADAPTER = ["adapter_config.json", "adapter_model.safetensors"];
const CHOICES: AdapterChoice[] = ["best", "last"];

/** A file of an adapter, as it is called in the run's folder. */
const adapterName = (choice: AdapterChoice, name: string) => (choice === "best" ? name : `${choice}_${name}`);

/** What is written of a run beside its data. */
export interface RunRecord extends Omit<StoredRun, "bytes" | "locked" | "adapters"> {
  probes: string[];
  every_seconds: number;
  data: Omit<DataText, "text">;
  validation: Omit<DataText, "text"> | null;
}

const pathOf = (id: string) => [RUNS, encodeName(id)];

// ---- one tab a run

const lockName = (id: string) => `luthier-run-${id}`;

const elsewhere = () => new LuthierError("locked", "This run is open in another tab.", "Go on there, or close that tab.");

/** Takes the run for this tab until the returned function is called, or the tab ends. */
export const lock = (id: string): Promise<() => void> => take(lockName(id), elsewhere());

// ---- for the page

export async function list(): Promise<StoredRun[]> {
  if (!(await available())) return [];
  const [runs, locked] = await Promise.all([folder([RUNS]), heldNames()]);
  const ids = (await names(runs)).map(decodeName);
  const one = (id: string, locked: boolean) => describe(id, locked).catch(() => unreadable(id, locked, 0));
  const found = await Promise.all(ids.map((id) => one(id, locked.has(lockName(id)))));
  return found.filter((run) => run !== null).sort((a, b) => b.created.localeCompare(a.created));
}

async function describe(id: string, locked: boolean): Promise<StoredRun | null> {
  const at = await folder(pathOf(id));
  if (!at) return null;
  if (!locked && (await sweep(id, at)) === "gone") return null;
  const there = await names(at);
  if (!there.includes(RECORD)) return null;
  const [record, bytes] = await Promise.all([readJson<RunRecord>(at, RECORD), size(at)]);
  if (!record) return unreadable(id, locked, bytes);
  const { created, model, base_sha256 = null, data_name, options, steps, best, base_loss } = record;
  // A tab may be killed between a checkpoint and the record that tells of it.
  const step = Math.max(record.step, ...there.map(stepOfCheckpoint));
  // Whoever was killed could not say so: the lock can.
  const state = record.state === "running" && !locked ? "interrupted" : record.state;
  const adapters = CHOICES.filter((choice) => ADAPTER.every((name) => there.includes(adapterName(choice, name))));
  const known = { id, created, model, base_sha256, data_name, options, step, steps, state, best, base_loss };
  return { ...known, adapters, locked, bytes };
}

/** Listed all the same, since it takes room and can be deleted. */
function unreadable(id: string, locked: boolean, bytes: number): StoredRun {
  const unknown = { created: "", model: "", base_sha256: null, options: {}, step: 0, steps: 0, best: null, base_loss: null };
  return { ...unknown, id, data_name: id, state: "unreadable", adapters: [], locked, bytes };
}

/** Clears what a killed tab has left: files half written, and a run that never came to its record. */
async function sweep(id: string, at: Folder): Promise<"gone" | "kept"> {
  const stale = (there: string[]) => !there.includes(RECORD) || there.some(isTemporary);
  // A tab at work on it holds its lock, from before there is a folder.
  const release = stale(await names(at)) ? await tryLock(lockName(id)) : null;
  if (!release) return "kept";
  try {
    const there = await names(at);
    for (const name of there.filter(isTemporary)) await remove(at, name);
    if (there.includes(RECORD)) return "kept";
    await removeRun(id);
    return "gone";
  } finally {
    release();
  }
}

async function removeRun(id: string): Promise<void> {
  const runs = await folder([RUNS]);
  if (runs) await remove(runs, encodeName(id));
}

export async function deleteRun(id: string): Promise<void> {
  const release = await lock(id);
  try {
    await removeRun(id);
  } finally {
    release();
  }
}

/** What a run needs to go on. */
export async function load(id: string): Promise<{ record: RunRecord; data: DataText; validation?: DataText }> {
  const at = await open(id);
  const record = await recordOf(at, id);
  const text = async (name: string) => {
    const file = await read(at, name);
    if (file) return file.text();
    throw new LuthierError("storage", `The ${name} of run ${id} is gone.`, "Delete the run, and start another one.");
  };
  return {
    record,
    data: { ...record.data, text: await text("data") },
    ...(record.validation && { validation: { ...record.validation, text: await text("validation") } }),
  };
}

/** Of a run that can go on. */
async function recordOf(at: Folder, id: string): Promise<RunRecord> {
  if (!(await read(at, RECORD))) throw unknown(id);
  const record = await readJson<RunRecord>(at, RECORD);
  if (!record) throw new LuthierError("storage", `The record of run ${id} cannot be read.`, "Delete the run, and start another one.");
  if (record.state === "done") throw new LuthierError("setting", "This run has ended.", "Start a new one, or load its adapter.");
  return record;
}

/** Whether a run of this name has begun. */
export async function exists(id: string): Promise<boolean> {
  const at = await folder(pathOf(id));
  return at !== null && (await read(at, RECORD)) !== null;
}

/** What happened so far, for charts; a run goes on without it. */
export async function log(id: string): Promise<TrainEvent[]> {
  const log = await readJson<TrainEvent[]>(await open(id), LOG);
  return Array.isArray(log) ? log : [];
}

/** An adapter of a run that has ended, as PEFT files. */
export async function adapter(id: string, choice: AdapterChoice = "best"): Promise<NamedBlob[]> {
  const at = await open(id);
  return Promise.all(ADAPTER.map(async (name) => {
    const blob = await read(at, adapterName(choice, name));
    if (blob) return { name, blob };
    throw new LuthierError("storage", `Run ${id} has no such adapter.`, "Continue it; adapters are written when a run ends.");
  }));
}

/** What `luthier train --from` replays. */
export async function ended(id: string): Promise<string> {
  const file = await read(await open(id), ENDED);
  if (file) return file.text();
  throw new LuthierError("storage", `Run ${id} has no run.json yet.`, "Continue it; it is written when the run ends.");
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

/** What comes out of a run. */
interface Results {
  best: NamedBytes[];
  last: NamedBytes[] | null;
  record: string;
}

/** A stored run while it trains. Writes are in an order in which any of them may be the last one that happens. */
export class RunFiles {
  private constructor(
    readonly folder: Folder,
    readonly record: RunRecord,
    readonly log: TrainEvent[],
  ) {}

  static async create(id: string, job: Job, model: ModelInfo, steps: number): Promise<RunFiles> {
    if (await exists(id)) {
      throw new LuthierError("storage", `There is a stored run ${id} already.`, "Give this one another name.");
    }
    // A try before this one may have been cut off.
    await removeRun(id);
    const at = await folder(pathOf(id), true);
    const described = ({ text, ...data }: DataText) => data;
    const record: RunRecord = {
      id, created: new Date().toISOString(), model: model.name, base_sha256: model.sha256, data_name: job.data.name, options: job.options, step: 0, steps,
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
    return new RunFiles(at, await recordOf(at, id), await log(id));
  }

  /** Checkpoints from the newest to the oldest: the newest may be damaged. */
  async *checkpoints(): AsyncGenerator<Uint8Array> {
    for (const name of (await this.#checkpointNames()).reverse()) {
      const file = await read(this.folder, name);
      if (file) yield new Uint8Array(await file.arrayBuffer());
    }
  }

  /** Forgets what came after the step from which the run goes on: a checkpoint there is a damaged one. */
  async goOn(step: number): Promise<void> {
    const kept = this.log.filter((event) => stepOf(event) <= step);
    this.log.splice(0, this.log.length, ...kept);
    Object.assign(this.record, { step, state: "running" });
    if (this.record.best && this.record.best.step > step) this.record.best = bestOf(kept);
    await this.#writeRecord();
    const later = (await this.#checkpointNames()).filter((name) => stepOfCheckpoint(name) > step);
    for (const name of later) await remove(this.folder, name);
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
  async end(state: "done" | "stopped" | "failed", step: number, results: Results | null): Promise<void> {
    if (results) await this.#writeResults(results);
    Object.assign(this.record, { state, step });
    await this.#writeRecord();
    if (state === "done") for (const name of await this.#checkpointNames()) await remove(this.folder, name);
  }

  async #writeResults({ record, ...adapters }: Results): Promise<void> {
    await write(this.folder, ENDED, record);
    for (const choice of CHOICES) {
      const files = adapters[choice];
      for (const { name, bytes } of files ?? []) await write(this.folder, adapterName(choice, name), bytes);
      // One from an earlier end of this run.
      if (!files) for (const name of ADAPTER) await remove(this.folder, adapterName(choice, name));
    }
  }

  async #writeRecord(): Promise<void> {
    await write(this.folder, LOG, JSON.stringify(this.log));
    await write(this.folder, RECORD, JSON.stringify(this.record));
  }

  async #checkpointNames(): Promise<string[]> {
    return (await names(this.folder)).filter((name) => CHECKPOINT.test(name));
  }
}

function bestOf(log: TrainEvent[]): RunRecord["best"] {
  const validations = log.filter((event) => event.type === "validation");
  const best = validations.findLast((event) => event.best);
  return best ? { step: best.step, loss: best.evaluation.loss } : null;
}

function stepOf(event: TrainEvent): number {
  if (event.type === "step") return event.report.step;
  return "step" in event ? event.step : 0;
}
