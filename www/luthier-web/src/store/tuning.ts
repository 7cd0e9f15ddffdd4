/** Which shaders were measured to be fastest, in OPFS: a file for each GPU. In the worker only. */

import { available, encodeName, folder, readJson, write } from "./opfs.js";

const FOLDER = ["tune"];

type Tuned = Record<string, string>;

let file: string | null = null;

/** What was measured on this GPU, "{}" where nothing was; null where nothing can be kept. */
export async function kept(gpu: string): Promise<string | null> {
  if (!(await available())) return null;
  try {
    const { vendor, architecture } = (await adapter()) ?? {};
    file = `${encodeName([gpu, vendor, architecture].join(" "))}.json`;
    const tuned = await read(file);
    // Written at once, to see that it can be: what is measured must be there when a run is resumed.
    await save(file, tuned);
    return JSON.stringify(tuned);
  } catch {
    return (file = null);
  }
}

/** Adds to what is kept. Another tab may have measured meanwhile: what was there first stays. */
export async function keep(tuned: string): Promise<void> {
  if (file) await save(file, { ...JSON.parse(tuned), ...(await read(file)) }).catch((error) => console.warn(error));
}

/** Browsers name the maker here, and not in the description that the engine sees. */
async function adapter(): Promise<GPUAdapterInfo | undefined> {
  return (await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" }))?.info;
}

async function read(file: string): Promise<Tuned> {
  return (await readJson<Tuned>(await folder(FOLDER, true), file)) ?? {};
}

async function save(file: string, tuned: Tuned): Promise<void> {
  await write(await folder(FOLDER, true), file, JSON.stringify(tuned, null, 1));
}
