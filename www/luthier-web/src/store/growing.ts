/**
 * How models come into the store, in the worker: downloaded, or copied from files at hand, into a folder of their own that
 * becomes the model when every file in it has its right size and SHA-256.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { LuthierError } from "../error.js";
import type { DownloadFile, ModelDownload, ModelFiles, ModelSource, StoredFile } from "../types.js";
import { GROWING, type Growing, MANIFEST, type Manifest, again, lock, pathOf } from "./models.js";
import { type Folder, encodeName, folder, names, openSync, read, readJson, remove, write } from "./opfs.js";

const PIECE = 8 << 20;
/** A connection over which nothing has come for so long is taken for dead. */
const STALL_SECONDS = 30;

type Progress = (done: number, total: number) => void;
type Hash = ReturnType<typeof sha256.create>;

/** Downloads what is missing of a model. What came earlier, of the same revision, is checked and kept. */
export function downloadModel(model: ModelDownload, progress: Progress, signal: AbortSignal): Promise<void> {
  const { name, source = null, files, stall_seconds = STALL_SECONDS } = model;
  const sum = new Tally(files, progress);
  return grow(name, source, source?.revision ?? "any revision", async (into) => {
    const stored: StoredFile[] = [];
    for (const file of files) stored.push(await download(into, file, sum, new Watch(signal, stall_seconds)));
    return stored;
  });
}

/** Copies files that are at hand. Nothing could go on with half a copy, so none is left. */
export async function storeModel(model: ModelFiles, progress: Progress, signal: AbortSignal): Promise<void> {
  const sum = new Tally(model.files.map(({ name, blob }) => ({ name, bytes: blob.size })), progress);
  await grow(model.name, null, `copied ${new Date().toISOString()}`, async (into) => {
    const stored: StoredFile[] = [];
    for (const { name, blob } of model.files) stored.push(await copy(into, name, blob, sum, new Watch(signal, Infinity)));
    return stored;
  });
}

/** Reads every file again. What is not as it was stored is removed, and the model is incomplete until it has come again. */
export async function checkModel(name: string, progress: Progress, signal: AbortSignal): Promise<void> {
  const release = await lock(name);
  try {
    const at = await folder(pathOf(name), true);
    const manifest = await readJson<Manifest>(at, MANIFEST);
    if (!manifest) throw new LuthierError("storage", `${name} is not complete in this browser.`, "Continue its download.");
    const faults = await damaged(at, manifest, new Tally(manifest.files, progress), new Watch(signal, Infinity));
    if (faults.length === 0) return;
    await write(at, GROWING, JSON.stringify({ folder: manifest.folder, source: manifest.source } satisfies Growing));
    await remove(at, MANIFEST);
    const inner = await at.getDirectoryHandle(manifest.folder, { create: true });
    for (const { file } of faults) await remove(inner, encodeName(file));
    const what = faults.map(({ file, fault }) => `${file} ${fault}`).join("; ");
    throw new LuthierError("malformed", `${name} was damaged in the store: ${what}.`, again(manifest));
  } finally {
    release();
  }
}

// ---- a folder that becomes a model

async function grow(
  name: string,
  source: ModelSource | null,
  key: string,
  fill: (into: Folder) => Promise<StoredFile[]>,
): Promise<void> {
  const release = await lock(name);
  try {
    const at = await folder(pathOf(name), true);
    const inner = encodeName(key);
    const before = await readJson<Manifest>(at, MANIFEST);
    await keepOnly(at, [MANIFEST, GROWING, inner, before?.folder]);
    const into = await at.getDirectoryHandle(inner, { create: true });
    await write(at, GROWING, JSON.stringify({ folder: inner, source } satisfies Growing));
    try {
      const files = await fill(into);
      await write(at, MANIFEST, JSON.stringify({ name, folder: inner, source, files } satisfies Manifest));
    } catch (error) {
      if (!source) await keepOnly(at, [MANIFEST, before?.folder]);
      if (!source && !before) await remove((await folder(pathOf(name).slice(0, -1), true)), encodeName(name));
      throw error;
    }
    await keepOnly(at, [MANIFEST, inner]);
  } finally {
    release();
  }
}

async function keepOnly(at: Folder, kept: (string | undefined)[]): Promise<void> {
  for (const name of await names(at)) if (!kept.includes(name)) await remove(at, name);
}

async function copy(into: Folder, name: string, blob: Blob, sum: Tally, watch: Watch): Promise<StoredFile> {
  const file = await GrowingFile.open(into, name);
  try {
    await pour(blob.stream(), file, () => sum.set(name, file.bytes), watch);
    return { name, bytes: file.bytes, sha256: file.hash(), sha256_by: null };
  } finally {
    file.close();
  }
}

async function damaged(at: Folder, manifest: Manifest, sum: Tally, watch: Watch): Promise<{ file: string; fault: string }[]> {
  const inner = await at.getDirectoryHandle(manifest.folder, { create: true });
  const faults: { file: string; fault: string }[] = [];
  for (const { name, bytes, sha256: expected } of manifest.files) {
    const file = (await read(inner, encodeName(name))) && (await GrowingFile.open(inner, name));
    try {
      await file?.rehash(() => sum.set(name, file.bytes), watch);
      if (!file) faults.push({ file: name, fault: "is missing" });
      else if (file.bytes !== bytes) faults.push({ file: name, fault: `has ${file.bytes} bytes, expected ${bytes}` });
      else if (file.hash() !== expected) faults.push({ file: name, fault: `has the SHA-256 ${file.hash()}, expected ${expected}` });
    } finally {
      file?.close();
    }
  }
  return faults;
}

/** Bytes of several files, of which some do not know their length before they are asked for. */
class Tally {
  readonly #done = new Map<string, number>();
  readonly #total = new Map<string, number>();

  constructor(
    files: { name: string; bytes?: number }[],
    private readonly progress: Progress,
  ) {
    for (const { name, bytes } of files) this.#total.set(name, bytes ?? 0);
  }

  set(name: string, done: number, total?: number): void {
    this.#done.set(name, done);
    this.#total.set(name, Math.max(done, total ?? this.#total.get(name) ?? 0));
    const sum = (counts: Map<string, number>) => [...counts.values()].reduce((a, b) => a + b, 0);
    this.progress(sum(this.#done), sum(this.#total));
  }
}

// ---- one download

/** Ends a request when somebody has had enough, or when nothing has come for too long. */
class Watch {
  readonly #stalled = new AbortController();
  readonly signal: AbortSignal;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly user: AbortSignal,
    private readonly seconds: number,
  ) {
    this.signal = AbortSignal.any([user, this.#stalled.signal]);
  }

  /** Something came, or was asked for. */
  alive(): void {
    this.rest();
    if (Number.isFinite(this.seconds)) this.#timer = setTimeout(() => this.#stalled.abort(), 1000 * this.seconds);
  }

  rest(): void {
    clearTimeout(this.#timer);
  }

  /** Why it ended; `otherwise` is what the connection looks like. */
  why(name: string, otherwise: string): LuthierError {
    if (this.user.aborted) return new LuthierError("cancelled", "This was stopped.", "What has come so far is kept.");
    return broken(name, this.#stalled.signal.aborted ? `nothing came for ${this.seconds} s` : otherwise);
  }
}

async function download(into: Folder, wanted: DownloadFile, sum: Tally, watch: Watch): Promise<StoredFile> {
  const { name, sha256_by = null } = wanted;
  const file = await GrowingFile.open(into, name);
  try {
    // What an earlier try has written counts, if it is right as far as can be told.
    await file.rehash(() => sum.set(name, file.bytes), watch);
    if (wanted.bytes !== undefined && file.bytes >= wanted.bytes && faultOf(wanted, file, wanted.bytes)) file.restart();
    const total = await fetchRest(wanted, file, sum, watch);
    if (total !== undefined && file.bytes < total) throw broken(name, `${file.bytes} of ${total} bytes came`);
    const fault = faultOf(wanted, file, total);
    if (fault) {
      // Bytes that turned out wrong would be wrong again next time.
      file.restart();
      throw new LuthierError("malformed", `${name} ${fault}.`, "Download it again.");
    }
    return { name, bytes: file.bytes, sha256: file.hash(), sha256_by: wanted.sha256 ? (sha256_by ?? "who asked for it") : null };
  } finally {
    watch.rest();
    file.close();
  }
}

/** Brings what is not there yet; the bytes of the whole, as far as anybody says. */
async function fetchRest(wanted: DownloadFile, file: GrowingFile, sum: Tally, watch: Watch): Promise<number | undefined> {
  const response = file.bytes === wanted.bytes ? null : await get(wanted, file.bytes, watch);
  if (response && file.bytes > 0 && response.status !== 206) file.restart();
  const left = Number(response?.headers.get("content-length"));
  const total = wanted.bytes ?? (left > 0 ? file.bytes + left : undefined);
  const tell = () => sum.set(wanted.name, file.bytes, total);
  tell();
  if (response?.body) await pour(response.body, file, tell, watch);
  return total;
}

/** Asks for a file from a byte on; null where the server says that nothing is left of it. */
async function get({ name, url }: DownloadFile, from: number, watch: Watch): Promise<Response | null> {
  const headers: HeadersInit = from > 0 ? { Range: `bytes=${from}-` } : {};
  watch.alive();
  const asked = fetch(url, { headers, signal: watch.signal, referrerPolicy: "no-referrer", credentials: "omit" });
  const response = await asked.catch(() => Promise.reject(watch.why(name, "the connection failed")));
  if (response.status === 416) return null;
  if (!response.ok) throw refused(name, response.status);
  return response;
}

function refused(name: string, status: number): LuthierError {
  const gated = status === 401 || status === 403;
  const hint = gated
    ? "This model asks for a licence to be accepted: download it with your account and choose its folder instead."
    : "Try again later.";
  return new LuthierError("io", `${name}: the server answered ${status}.`, hint);
}

function broken(name: string, why: string): LuthierError {
  return new LuthierError("io", `${name}: ${why}.`, "Try again: the download goes on where it broke off.");
}

/** So that it can be stopped: messages are heard between two turns only, and what is at hand comes without any. */
const breathe = () => new Promise((heard) => setTimeout(heard));

async function pour(stream: ReadableStream<Uint8Array>, file: GrowingFile, tell: () => void, watch: Watch): Promise<void> {
  const reader = stream.getReader();
  for (let since = 0; ; ) {
    watch.alive();
    const read = reader.read().catch(() => Promise.reject(watch.why(file.name, "the connection broke off")));
    const { done, value } = await read;
    if (done) return;
    file.append(value);
    tell();
    if ((since += value.byteLength) >= PIECE) {
      since = 0;
      await breathe();
    }
    if (!watch.signal.aborted) continue;
    await reader.cancel().catch(() => {});
    throw watch.why(file.name, "the connection broke off");
  }
}

/** What is wrong with a file of which nothing more is to come. */
function faultOf({ sha256 }: DownloadFile, file: GrowingFile, total: number | undefined): string | null {
  if (total !== undefined && file.bytes !== total) return `has ${file.bytes} bytes, expected ${total}`;
  const hash = file.hash();
  return sha256 && sha256 !== hash ? `has the SHA-256 ${hash}, expected ${sha256}` : null;
}

/** A file that grows, hashed on the way. */
class GrowingFile {
  #hash: Hash = sha256.create();
  bytes = 0;

  private constructor(
    readonly name: string,
    private readonly file: FileSystemSyncAccessHandle,
  ) {}

  static async open(at: Folder, name: string): Promise<GrowingFile> {
    return new GrowingFile(name, await openSync(await at.getFileHandle(encodeName(name), { create: true })));
  }

  /** Reads what is there already. */
  async rehash(tell: () => void, watch: Watch): Promise<void> {
    const piece = new Uint8Array(PIECE);
    for (let length = this.file.getSize(); this.bytes < length; tell()) {
      const read = this.file.read(piece, { at: this.bytes });
      this.#hash.update(piece.subarray(0, read));
      this.bytes += read;
      await breathe();
      if (watch.signal.aborted) throw watch.why(this.name, "reading it was ended");
    }
  }

  restart(): void {
    this.file.truncate(0);
    this.#hash = sha256.create();
    this.bytes = 0;
  }

  append(bytes: Uint8Array): void {
    const written = this.file.write(bytes, { at: this.bytes });
    if (written !== bytes.byteLength) throw new DOMException("", "QuotaExceededError");
    this.#hash.update(bytes);
    this.bytes += written;
  }

  hash(): string {
    return bytesToHex(this.#hash.clone().digest());
  }

  close(): void {
    this.file.flush();
    this.file.close();
  }
}
