/**
 * Models in OPFS, a folder each. In it `model.json` names the folder that is the model, with the size and SHA-256 of every
 * file; it is written last of all, so a model is whole or it is not there. `growing.json` names the folder of one that is
 * still on its way. What is written is in growing.ts; here is what the page lists, opens and deletes.
 */

import { LuthierError } from "../error.js";
import type { ModelFiles, ModelSource, NamedBlob, StoredFile, StoredModel } from "../types.js";
import { heldNames, take } from "./lock.js";
import { type Folder, available, decodeName, encodeName, folder, names, read, readJson, remove, size } from "./opfs.js";

const MODELS = "models";
export const MANIFEST = "model.json";
export const GROWING = "growing.json";

/** Which folder it is, and where its files come from; null are the user's own. */
export interface Growing {
  folder: string;
  source: ModelSource | null;
}

export interface Manifest extends Growing {
  name: string;
  files: StoredFile[];
}

export const pathOf = (name: string) => [MODELS, encodeName(name)];

const lockName = (name: string) => `luthier-model-${name}`;

const inUse = (name: string) =>
  new LuthierError("locked", `${name} is in use: open on some tab, or being written.`, "Close it there, or wait, and try again.");

/** One tab at a time writes or deletes a model, and none while one has it open. */
export const lock = (name: string): Promise<() => void> => take(lockName(name), inUse(name));

/** Any number of tabs have it open. */
export const hold = (name: string): Promise<() => void> => take(lockName(name), inUse(name), "shared");

export async function list(): Promise<StoredModel[]> {
  if (!(await available())) return [];
  const [stored, held] = await Promise.all([names(await folder([MODELS])), heldNames()]);
  const described = stored.map(decodeName).map((name) => {
    const locked = held.has(lockName(name));
    // One that cannot be read hides no other, and can be deleted.
    return describe(name, locked).catch(() => ({ name, bytes: 0, complete: false, source: null, locked, files: [] }));
  });
  return (await Promise.all(described)).filter((model) => model !== null);
}

async function describe(name: string, locked: boolean): Promise<StoredModel | null> {
  const at = await folder(pathOf(name));
  if (!at) return null;
  const manifest = await readJson<Manifest>(at, MANIFEST);
  const { folder: inner, source = null } = manifest ?? (await readJson<Growing>(at, GROWING)) ?? {};
  const files = inner ? await folder([...pathOf(name), inner]) : null;
  const complete = manifest !== null && "files" in (await look(at, manifest));
  return { name, bytes: files ? await size(files) : 0, complete, source, locked, files: complete ? manifest.files : [] };
}

export async function open(name: string): Promise<ModelFiles> {
  const at = await folder(pathOf(name));
  const manifest = at && (await readJson<Manifest>(at, MANIFEST));
  if (at && manifest) {
    const found = await look(at, manifest);
    if ("files" in found) return { name, files: found.files };
    throw new LuthierError("storage", `${name} in this browser is damaged: ${found.fault}.`, again(manifest));
  }
  const growing = at && (await readJson<Growing>(at, GROWING));
  throw growing
    ? new LuthierError("storage", `${name} is not complete in this browser.`, again(growing))
    : new LuthierError("storage", `${name} is not stored in this browser.`, "Download it on the page of models.");
}

/** What makes a model whole that is not. */
export const again = ({ source }: Growing): string =>
  source ? "Continue its download on the page of models." : "Delete it, and choose its files again.";

export async function deleteModel(name: string): Promise<void> {
  const release = await lock(name);
  try {
    const models = await folder([MODELS]);
    if (models) await remove(models, encodeName(name));
  } finally {
    release();
  }
}

/** All files, each of its right size, or what is wrong with the first that is not. */
async function look(at: Folder, manifest: Manifest): Promise<{ files: NamedBlob[] } | { fault: string }> {
  const inner = await at.getDirectoryHandle(manifest.folder).catch(() => null);
  const files: NamedBlob[] = [];
  for (const { name, bytes } of manifest.files) {
    const blob = inner && (await read(inner, encodeName(name)));
    if (!blob) return { fault: `${name} is missing` };
    if (blob.size !== bytes) return { fault: `${name} has ${blob.size} bytes, expected ${bytes}` };
    files.push({ name, blob });
  }
  return { files };
}
