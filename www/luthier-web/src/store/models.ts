/**
 * Models in OPFS, a folder each: `model.json` says what belongs to it; a file that is still growing is called `.part`, goes
 * on where it broke off, and gets its name when its length and SHA-256 are right.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { LuthierError } from "../error.js";
import type { DownloadFile, ModelFiles, NamedBlob, StoredModel } from "../types.js";
import { type Folder, available, decodeName, encodeName, folder, names, openSync, read, readJson, remove, size, write } from "./opfs.js";

const MODELS = "models";
const MANIFEST = "model.json";
const PIECE = 8 << 20;

type Progress = (done: number, total: number) => void;
type Hash = ReturnType<typeof sha256.create>;

interface Manifest {
  name: string;
  files: { name: string; bytes: number | null; sha256: string | null }[];
}

const pathOf = (name: string) => [MODELS, encodeName(name)];

// ---- for the page

export async function list(): Promise<StoredModel[]> {
  if (!(await available())) return [];
  // What cannot be read at all is none of ours, and no reason to hide the others.
  const each = (name: string) => describe(decodeName(name)).catch(() => null);
  const found = await Promise.all((await names(await folder([MODELS]))).map(each));
  return found.filter((model) => model !== null);
}

async function describe(name: string): Promise<StoredModel | null> {
  const at = await folder(pathOf(name));
  return at && { name, bytes: await size(at), complete: (await files(at)) !== null };
}

export async function open(name: string): Promise<ModelFiles> {
  const at = await folder(pathOf(name));
  const found = at && (await files(at));
  if (found) return { name, files: found };
  throw at
    ? new LuthierError("storage", `The download of ${name} is not complete.`, "Continue it on the page of models.")
    : new LuthierError("storage", `${name} is not stored in this browser.`, "Download it on the page of models.");
}

export async function deleteModel(name: string): Promise<void> {
  const models = await folder([MODELS]);
  if (models) await remove(models, encodeName(name));
}

/** All files of the model, or null while some are missing. */
async function files(at: Folder): Promise<NamedBlob[] | null> {
  const manifest = await readJson<Manifest>(at, MANIFEST);
  if (!Array.isArray(manifest?.files)) return null;
  const found: NamedBlob[] = [];
  for (const { name } of manifest.files) {
    const blob = await read(at, encodeName(name));
    if (!blob) return null;
    found.push({ name, blob });
  }
  return found;
}

// ---- for the worker

/** Copies files that are at hand into the store. */
export async function storeModel(model: ModelFiles, progress: Progress, cancelled: () => boolean): Promise<void> {
  const at = await begin(model.name, model.files.map(({ name, blob }) => ({ name, bytes: blob.size, sha256: null })));
  const total = model.files.reduce((sum, { blob }) => sum + blob.size, 0);
  let done = 0;
  for (const { name, blob } of model.files) {
    const file = await Part.open(at, name);
    try {
      file.restart();
      await pour(blob.stream(), file, (bytes) => progress((done += bytes), total), cancelled);
    } finally {
      file.close();
    }
    await file.finish();
  }
}

/** Downloads what is missing of a model. */
export async function downloadModel(
  name: string,
  wanted: DownloadFile[],
  progress: Progress,
  cancelled: () => boolean,
): Promise<void> {
  const at = await begin(name, wanted.map(({ name, bytes = null, sha256 = null }) => ({ name, bytes, sha256 })));
  const sum = new Tally(wanted, progress);
  for (const file of wanted) {
    const there = await read(at, encodeName(file.name));
    if (there) sum.whole(file.name, there.size);
    else await download(at, file, sum, cancelled);
  }
}

/** Bytes of several files, of which some do not know their length before they are asked for. */
class Tally {
  readonly #done = new Map<string, number>();
  readonly #total = new Map<string, number>();

  constructor(
    files: DownloadFile[],
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

  whole(name: string, bytes: number): void {
    this.set(name, bytes, bytes);
  }
}

async function begin(name: string, files: Manifest["files"]): Promise<Folder> {
  const at = await folder(pathOf(name), true);
  await write(at, MANIFEST, JSON.stringify({ name, files } satisfies Manifest));
  return at;
}

async function download(at: Folder, file: DownloadFile, sum: Tally, cancelled: () => boolean): Promise<void> {
  const part = await Part.open(at, file.name);
  try {
    // What an earlier try has written counts, and must be hashed as well.
    await part.rehash();
    const response = await get(file, part.bytes);
    if (response && part.bytes > 0 && response.status !== 206) part.restart();
    const left = Number(response?.headers.get("content-length"));
    const total = file.bytes ?? (left > 0 ? part.bytes + left : undefined);
    const tell = () => sum.set(file.name, part.bytes, total);
    tell();
    if (response?.body) await pour(response.body, part, tell, cancelled);
    check(file, part, total);
  } catch (error) {
    // Bytes that turned out wrong would be wrong again next time.
    if (error instanceof LuthierError && error.code === "malformed") part.restart();
    throw error;
  } finally {
    part.close();
  }
  await part.finish();
}

/** Asks for a file from a byte on; null where nothing is left of it. */
async function get(file: DownloadFile, from: number): Promise<Response | null> {
  if (file.bytes !== undefined && from === file.bytes) return null;
  const headers: HeadersInit = from > 0 ? { Range: `bytes=${from}-` } : {};
  const response = await fetch(file.url, { headers, referrerPolicy: "no-referrer", credentials: "omit" }).catch(() => null);
  if (!response) throw broken(file.name, "the connection failed");
  if (response.status === 416) return null;
  if (!response.ok) throw refused(file.name, response.status);
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

async function pour(
  stream: ReadableStream<Uint8Array>,
  part: Part,
  tell: (bytes: number) => void,
  cancelled: () => boolean,
): Promise<void> {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(() => Promise.reject(broken(part.name, "the connection broke off")));
    if (done) return;
    part.append(value);
    tell(value.byteLength);
    if (!cancelled()) continue;
    await reader.cancel();
    throw new LuthierError("cancelled", "The download was stopped.", "It goes on where it stopped.");
  }
}

function check(file: DownloadFile, part: Part, total: number | undefined): void {
  if (total !== undefined && part.bytes < total) throw broken(file.name, `${part.bytes} of ${total} bytes came`);
  const hash = part.hash();
  const wrong = (what: string) => new LuthierError("malformed", `${file.name}: ${what}.`, "Download it again.");
  if (total !== undefined && part.bytes > total) throw wrong(`has ${part.bytes} bytes, expected ${total}`);
  if (file.sha256 && file.sha256 !== hash) throw wrong(`its SHA-256 is ${hash}, expected ${file.sha256}`);
}

/** A file that grows, hashed on the way. */
class Part {
  #hash: Hash = sha256.create();
  bytes = 0;

  private constructor(
    readonly name: string,
    private readonly handle: FileSystemFileHandle,
    private readonly file: FileSystemSyncAccessHandle,
  ) {}

  static async open(at: Folder, name: string): Promise<Part> {
    const handle = await at.getFileHandle(`${encodeName(name)}.part`, { create: true });
    return new Part(name, handle, await openSync(handle));
  }

  async rehash(): Promise<void> {
    const piece = new Uint8Array(PIECE);
    for (let length = this.file.getSize(); this.bytes < length; ) {
      const read = this.file.read(piece, { at: this.bytes });
      this.#hash.update(piece.subarray(0, read));
      this.bytes += read;
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

  async finish(): Promise<void> {
    await this.handle.move(encodeName(this.name));
  }
}
