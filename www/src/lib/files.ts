/** Files in and out: what was dropped, zips, downloads. */

import type { ModelFiles, NamedBlob } from "luthier-web";
import { unzipSync, zipSync, type Zippable } from "fflate";
import { problem } from "./errors";

// ---- in

const MODEL_FILE = /(\.safetensors|\.gguf|\.json|\.model|\.txt|\.jinja)$/i;

/** A model from chosen or dropped files: one .gguf, or the files of a Hugging Face folder. */
export function modelOf(files: File[]): ModelFiles {
  const gguf = files.find((file) => /\.gguf$/i.test(file.name));
  if (gguf) return { name: stem(gguf.name), files: [{ name: gguf.name, blob: gguf }] };
  const found = files.filter((file) => MODEL_FILE.test(file.name));
  const missing = [
    found.some((file) => file.name === "config.json") ? "" : "config.json",
    found.some((file) => file.name.endsWith(".safetensors")) ? "" : "a .safetensors file",
    found.some((file) => /tokenizer/.test(file.name)) ? "" : "tokenizer.json",
  ].filter(Boolean);
  if (missing.length > 0) {
    const seen = files.slice(0, 4).map((file) => file.name).join(", ") || "nothing";
    throw problem("malformed", `That is no model folder: ${missing.join(" and ")} missing. Found: ${seen}.`,
      "Choose one .gguf file, or all files of a Hugging Face folder (config.json, *.safetensors, tokenizer.json).");
  }
  return { name: nameOf(found), files: found.map((file) => ({ name: file.name, blob: file })) };
}

/** The folder that a dropped file came from; a chosen one says it itself. */
const folders = new WeakMap<File, string>();

/** What people call the model: its folder, else its weights, where their name says more than that they are weights. */
function nameOf(files: File[]): string {
  const folder = files.map((file) => file.webkitRelativePath.split("/").at(-2) || folders.get(file)).find(Boolean);
  const weights = files.find((file) => file.name.endsWith(".safetensors") && !/^(pytorch_)?model\b/.test(file.name));
  return folder ?? (weights ? stem(weights.name) : "local model");
}

export const stem = (name: string): string => name.replace(/\.[^.]+$/, "");

const ADAPTER_FILE = /^(adapter_config\.json|adapter_model\.safetensors|adapters\.safetensors)$/;

/** An adapter from its two files, from a zip that this page writes, or from llama.cpp's one file. */
export async function adapterOf(files: File[]): Promise<NamedBlob[]> {
  const gguf = files.find((file) => /\.gguf$/i.test(file.name));
  if (gguf) return [{ name: gguf.name, blob: gguf }];
  const zip = files.find((file) => /\.zip$/i.test(file.name));
  const found = zip ? await unzip(zip) : files.map((file) => ({ name: file.name, blob: file as Blob }));
  const adapter = found.filter(({ name }) => ADAPTER_FILE.test(name));
  if (adapter.length < 2) {
    throw problem("malformed", `An adapter is adapter_config.json and adapter_model.safetensors; found: ${found.map((f) => f.name).join(", ") || "nothing"}.`,
      "Choose both files of the PEFT folder, a zip of it, or a .gguf adapter.");
  }
  return adapter;
}

async function unzip(zip: File): Promise<NamedBlob[]> {
  try {
    const entries = Object.entries(unzipSync(new Uint8Array(await zip.arrayBuffer())));
    return entries.map(([path, bytes]) => ({ name: path.split("/").pop()!, blob: new Blob([bytes as BlobPart]) }));
  } catch {
    throw problem("malformed", `${zip.name} cannot be opened as a zip.`, "Unpack it and choose the two files in it.");
  }
}

async function fileOf(entry: FileSystemFileEntry): Promise<File> {
  const file = await new Promise<File>((done, fail) => entry.file(done, fail));
  const folder = entry.fullPath.split("/").at(-2);
  if (folder) folders.set(file, folder);
  return file;
}

/** All files of a drop, folders opened. */
export async function dropped(transfer: DataTransfer): Promise<File[]> {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry !== null && entry !== undefined);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  return (await Promise.all(entries.map(filesOf))).flat();
}

async function filesOf(entry: FileSystemEntry): Promise<File[]> {
  if (entry.isFile) return [await fileOf(entry as FileSystemFileEntry)];
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const files: File[] = [];
  // A reader gives its entries by the hundred, until it gives none.
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((done, fail) => reader.readEntries(done, fail));
    if (some.length === 0) return files;
    files.push(...(await Promise.all(some.filter((child) => child.isFile).map(filesOf))).flat());
  }
}

// ---- out

/** A zip that keeps the files as they are: weights do not get smaller. */
export async function zip(folder: string, files: NamedBlob[]): Promise<Blob> {
  const entries: Zippable = {};
  for (const { name, blob } of files) entries[`${folder}/${name}`] = [new Uint8Array(await blob.arrayBuffer()), { level: 0 }];
  return new Blob([zipSync(entries) as BlobPart], { type: "application/zip" });
}

export function download(name: string, blob: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The browser reads it after this turn; a minute is plenty.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

interface SaveFolder {
  getDirectoryHandle(name: string, options: { create: boolean }): Promise<FileSystemDirectoryHandle>;
}
type Picker = (options: { mode: "readwrite" }) => Promise<SaveFolder>;

/** A folder of the disk to write to, where the browser has such a thing; must be asked for by a click. */
export const folderPicker = (): Picker | null => (window as { showDirectoryPicker?: Picker }).showDirectoryPicker?.bind(window) ?? null;

export async function saveInto(place: SaveFolder, folder: string, files: NamedBlob[]): Promise<void> {
  const target = await place.getDirectoryHandle(folder, { create: true });
  for (const { name, blob } of files) {
    const handle = await target.getFileHandle(name, { create: true });
    await blob.stream().pipeTo(await handle.createWritable());
    await checkWritten(name, blob, await handle.getFile());
  }
}

const PIECE = 16 << 20;

/** What the disk has is read again, a piece at a time, and is what was to be written, or it is said. */
export async function checkWritten(name: string, meant: Blob, written: Blob): Promise<void> {
  const damaged = (what: string) => problem("storage", `${name} was not written as it should be: ${what}.`, "Save it again, to another disk if need be.");
  if (meant.size !== written.size) throw damaged(`it has ${written.size} bytes, not ${meant.size}`);
  for (let at = 0; at < meant.size; at += PIECE) {
    const [a, b] = await Promise.all([meant, written].map(async (blob) => new Uint8Array(await blob.slice(at, at + PIECE).arrayBuffer())));
    if (a!.some((byte, i) => byte !== b![i])) throw damaged(`it differs somewhere after byte ${at}`);
  }
}
