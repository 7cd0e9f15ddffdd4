/** What comes out: adapters, merged models, run files; and adapters that come back in. */

import { type AdapterChoice, type AdapterFormat, type Agreement, Luthier, type LuthierApi, type MergeTarget, type NamedBlob } from "luthier-web";
import { adapterOf, download, folderPicker, saveInto, stem, zip } from "../lib/files";
import { nowOn } from "./adapters";
import { announce } from "./announce.svelte";
import { type Tuned, app, guarded } from "./app.svelte";
import { adapterName, forgetRun, labelOf } from "./run.svelte";
import { openInstead, openNamed } from "./model";

/** What files are called after: letters that every file system takes. */
export const fileStem = (): string =>
  `${app.model?.name.split("/").pop() ?? "model"}-${app.tuned?.stem ?? "tuned"}`.toLowerCase().replace(/[^a-z0-9.-]+/g, "-");

/** `work` answers how what was made compares with the live model, where that was measured. */
async function exported(what: string, work: (api: LuthierApi) => Promise<Agreement | null | void>, written = false): Promise<void> {
  const { api } = app;
  if (!api) return;
  app.exporting = { what, done: 0, total: 0 };
  app.exported = null;
  const done = await guarded("keep", async () => {
    const agreement = await work(api);
    if (agreement !== undefined) app.exported = { what, agreement, written };
  });
  if (done) announce(`${what} is done.`);
  app.exporting = null;
}

/** One file as it is, several as a zip. */
export const downloadAdapter = (format: AdapterFormat): Promise<void> =>
  exported("The adapter", async (api) => {
    const name = `${fileStem()}-${app.tuned?.method ?? "lora"}`;
    const { files, agreement } = await api.exportAdapter(format, name);
    if (files.length === 1) download(files[0]!.name, files[0]!.blob);
    else download(`${name}.zip`, await zip(name, files));
    return agreement;
  });

export const downloadRun = (): Promise<void> =>
  exported("The run file", async (api) => {
    const text = await (app.tuned?.from === "history" && app.tuned.id ? Luthier.runRecord(app.tuned.id) : api.exportRun());
    download("run.json", new Blob([text], { type: "application/json" }));
  });

/** The largest model that goes through memory as a zip. */
const ZIPPED = 512 << 20;

/** A small one as a zip; a large one into a folder where the browser can write one, else file by file. */
export async function downloadMerged(target: MergeTarget, size: number): Promise<void> {
  const small = size < ZIPPED;
  // The picker must be asked for by the click itself, before anything is waited for.
  const picker = small ? null : folderPicker();
  let place: Awaited<ReturnType<NonNullable<typeof picker>>> | null = null;
  try {
    place = picker ? await picker({ mode: "readwrite" }) : null;
  } catch {
    return; // The user chose no folder.
  }
  await exported("The merged model", async (api) => {
    const onProgress = (done: number, total: number) => (app.exporting = { what: "The merged model", done, total });
    const { files, agreement } = await api.exportMerged(target, onProgress);
    if (small) download(`${target.name}.zip`, await zip(target.name, files));
    else if (place) await saveInto(place, target.name, files);
    else for (const { name, blob } of files) download(name, blob);
    return agreement;
  }, place !== null);
}

/**
 * Opens another base, of those kept in this browser, with the adapter that is on this one: what is merged into weights that
 * were never rounded stays as it is. Where that base cannot be opened, this one comes back, and the adapter with it.
 */
export async function carryTo(base: string): Promise<void> {
  const { api, tuned } = app;
  if (!api || !tuned) return;
  let files: NamedBlob[] = [];
  const taken = await guarded("keep", async () => {
    ({ files } = await api.exportAdapter("peft", fileStem()));
  });
  if (!taken) return;
  const refused = await openInstead(base);
  await guarded("keep", async () => {
    // Nothing was closed, or nothing could be opened.
    if (!app.api || app.api === api) return;
    // That it was learned on another base is what was asked for.
    await app.api.importPeft(files);
    await arrived(app.api, { ...tuned, ...(tuned.id ? { from: "history" } : { from: "file", name: "file 1" }) });
    announce(`The adapter is on ${app.model?.name}.`);
  });
  if (refused) app.errors.keep = refused;
}

/** A stored run's adapter as a file. */
export async function downloadStored(id: string): Promise<void> {
  const name = `${id}-${app.runs.find((run) => run.id === id)?.options.method ?? "lora"}`;
  await guarded("history", async () => download(`${name}.zip`, await zip(name, await Luthier.runAdapter(id))));
}

/** An adapter that came from elsewhere is on the model, and is kept with the others. */
async function arrived(api: LuthierApi, tuned: Tuned): Promise<void> {
  await api.keepAdapter(tuned.name);
  forgetRun();
  nowOn(tuned);
}

/** Puts a stored run's adapter on its model. */
export async function openStoredRun(id: string, choice: AdapterChoice = "best"): Promise<void> {
  const stored = app.runs.find((run) => run.id === id);
  if (!stored || !(await openNamed(stored.model, stored.base_sha256)) || !app.api) return;
  const { api } = app;
  await guarded("history", async () => {
    const otherBase = await api.importPeft(await Luthier.runAdapter(id, choice));
    const step = choice === "best" ? (stored.best?.step ?? stored.step) : stored.step;
    const what = { label: labelOf(stored.data_name, step), method: stored.options.method ?? "lora", stem: stem(stored.data_name) };
    await arrived(api, { ...what, name: adapterName(id, choice), from: "history", id });
    if (otherBase) app.errors.compare = otherBase;
    app.step = "compare";
  });
}

export async function loadAdapter(files: File[]): Promise<void> {
  await guarded("keep", async () => {
    const { api } = app;
    if (!api) throw { code: "setting", message: "An adapter needs its base model.", hint: "Open that first, on the Model step." };
    const otherBase = await api.importPeft(await adapterOf(files));
    if (otherBase) app.errors.keep = otherBase;
    const method = (await api.adapterMethod()) ?? "lora";
    const label = files.map(({ name }) => name).join(", ");
    // Files of the same name may hold different adapters.
    const count = app.adapters.filter(({ from }) => from === "file").length;
    await arrived(api, { name: `file ${count + 1}`, from: "file", label, method, stem: "loaded" });
    announce("The adapter is on the model.");
  });
}
