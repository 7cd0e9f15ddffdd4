/** The browser's private file system (OPFS) with the few operations the stores need. */

import { LuthierError } from "../error.js";

export type Folder = FileSystemDirectoryHandle;

/** A folder below the root; null where it does not exist and is not to be made. */
export async function folder(path: string[], create: true): Promise<Folder>;
export async function folder(path: string[], create?: boolean): Promise<Folder | null>;
export async function folder(path: string[], create = false): Promise<Folder | null> {
  let at = await root();
  for (const name of path) {
    const next = await existing(at.getDirectoryHandle(name, { create }));
    if (!next) return null;
    at = next;
  }
  return at;
}

/** Whether there is private storage, and locks to keep tabs apart: not over plain http, nor in some private windows. */
export async function available(): Promise<boolean> {
  return navigator.locks !== undefined && root().then(() => true, () => false);
}

async function root(): Promise<Folder> {
  if (navigator.storage?.getDirectory) return navigator.storage.getDirectory();
  const hint = "Use https (or this machine itself), and not a private window.";
  throw new LuthierError("storage", "This browser gives the page no private storage here.", hint);
}

export async function read(folder: Folder, name: string): Promise<File | null> {
  const handle = await existing(folder.getFileHandle(name));
  return handle && handle.getFile();
}

/** Null also where the file is no JSON: whatever it told is lost, and the rest of the folder may still be of use. */
export async function readJson<T>(folder: Folder, name: string): Promise<T | null> {
  const file = await read(folder, name);
  try {
    return file && (JSON.parse(await file.text()) as T);
  } catch {
    return null;
  }
}

export async function remove(folder: Folder, name: string): Promise<void> {
  await existing(folder.removeEntry(name, { recursive: true }));
}

export async function names(folder: Folder | null): Promise<string[]> {
  const found: string[] = [];
  if (folder) for await (const name of folder.keys()) found.push(name);
  return found.sort();
}

/** Bytes of the files in a folder. */
export async function size(folder: Folder): Promise<number> {
  const files = await Promise.all((await names(folder)).map((name) => read(folder, name)));
  return files.reduce((sum, file) => sum + (file?.size ?? 0), 0);
}

async function existing<T>(found: Promise<T>): Promise<T | null> {
  try {
    return await found;
  } catch (error) {
    if (error instanceof DOMException && error.name === "NotFoundError") return null;
    throw error;
  }
}

/** Names with any characters as names that OPFS takes. */
export const encodeName = (name: string): string => encodeURIComponent(name).replaceAll(".", "%2E");
export function decodeName(name: string): string {
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

/** What a write leaves behind that was cut off: see {@link write}. */
export const isTemporary = (name: string): boolean => name.endsWith(".tmp");

// ---- in workers only

/**
 * Writes a file whole or not at all: another name first, flushed, then moved. Who is killed in between leaves the old
 * file, and a `.tmp` that nobody reads.
 */
export async function write(folder: Folder, name: string, content: Uint8Array | string): Promise<void> {
  const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
  const temporary = await folder.getFileHandle(`${name}.tmp`, { create: true });
  const file = await openSync(temporary);
  try {
    file.truncate(0);
    if (file.write(bytes, { at: 0 }) !== bytes.byteLength) throw new DOMException("", "QuotaExceededError");
    file.flush();
  } finally {
    file.close();
  }
  await temporary.move(name);
}

/** A page that was just reloaded may still hold the file for a moment. */
export async function openSync(handle: FileSystemFileHandle): Promise<FileSystemSyncAccessHandle> {
  for (let wait = 50; ; wait *= 2) {
    try {
      return await handle.createSyncAccessHandle();
    } catch (error) {
      if (wait > 1000 || !(error instanceof DOMException && error.name === "NoModificationAllowedError")) throw error;
      await new Promise((again) => setTimeout(again, wait));
    }
  }
}
