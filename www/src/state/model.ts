/** Opening, keeping and deleting models. */

import { type DeviceInfo, Luthier, type LuthierErrorData, type ModelFiles, type StoredModel } from "luthier-web";
import { asError, problem } from "../lib/errors";
import { modelOf } from "../lib/files";
import { bytes } from "../lib/format";
import { nano } from "../lib/gallery";
import { announce } from "./announce.svelte";
import { app, guarded } from "./app.svelte";
import { confirmed } from "./confirm.svelte";
import { leaveContest } from "./contest.svelte";
import { readData } from "./data";
import { forgetRun } from "./run.svelte";
import { lookAtStorage } from "./machine";

/** Only the last of several openings counts. */
let latest = 0;
/** What would bring the open model again, on another device. */
let reopen: (() => Promise<boolean>) | null = null;

export const openNano = (): Promise<boolean> => open("nano", nano);

/** Lets other tabs delete the stored model that was open here. */
let letGo = (): void => {};

export const openStored = (name: string): Promise<boolean> =>
  open(name, async () => {
    // While it is open nobody deletes it: after a fault its files are read again.
    const release = await Luthier.holdModel(name);
    letGo();
    letGo = release;
    return Luthier.storedModel(name);
  });

export async function openLocal(files: File[]): Promise<boolean> {
  return guarded("model", async () => {
    const model = modelOf(files);
    if (await open(model.name, async () => model)) app.local = model;
  });
}

/** By the name that a link or a stored run has for it; a run knows its hash too, since names may be the same. */
export async function openNamed(name: string, sha256: string | null = null): Promise<boolean> {
  const another = sha256 !== null && app.model !== null && app.model.sha256 !== sha256;
  if (app.model?.name === name && !another) return true;
  if (name === "nano") return openNano();
  if (app.stored.some((model) => model.complete && model.name === name)) return openStored(name);
  const what = app.model?.name === name ? `The ${name} that is open is another model of the same name` : `The model ${name} is not in this browser`;
  app.errors.model = problem("data", `${what}.`, "Download it, or choose its files, below; then go on.");
  app.step = "model";
  return false;
}

/** Opens another model in place of the open one, which comes back where that fails: then it says why. */
export async function openInstead(name: string): Promise<LuthierErrorData | null> {
  const [before, local] = [reopen, app.local];
  if (await openNamed(name)) return null;
  const why = app.errors.model ?? problem("cancelled", `${name} was not opened.`);
  // Unless it was never closed, or somebody opens yet another one.
  if (!app.model && !app.opening && (await before?.())) app.local = local;
  return why;
}

export async function changeDevice(): Promise<void> {
  app.bench = null;
  if (app.model && reopen) await reopen();
}

async function open(name: string, get: () => Promise<ModelFiles>): Promise<boolean> {
  if (app.busy) {
    const [what, where] = app.probing ? ["A probe", "Try"] : [app.contest ? "A comparison" : "A run", "Train"];
    app.errors.model = problem("setting", `${what} is under way on this model.`, `Stop it first, on the ${where} step.`);
    return false;
  }
  const mine = ++latest;
  const current = () => mine === latest;
  delete app.errors.model;
  close();
  app.opening = { what: name, done: 0, total: 0 };
  reopen = () => open(name, get);
  try {
    const onProgress = (done: number, total: number) => {
      // Later it is opened again by itself, which is nobody's concern.
      if (current() && !app.api) app.opening = { what: name, done, total };
    };
    const onReopen = (device: DeviceInfo) => {
      if (current()) app.device = device;
    };
    const api = await Luthier.open({ model: await get(), device: app.choice, onProgress, onReopen });
    if (!current()) {
      api.close();
      return false;
    }
    [app.api, app.model, app.device] = [api, api.model, api.device];
    app.sampling.chat = api.model.chat_template;
    announce(`The model ${name} is open on ${api.device.description}.`);
    // Not waited for: what is wrong with the data is said at the data.
    void readData();
    return true;
  } catch (error) {
    if (current()) app.errors.model = asError(error);
    return false;
  } finally {
    if (current()) app.opening = null;
  }
}

function close(): void {
  app.api?.close();
  letGo();
  [app.api, app.model, app.device, app.local, app.preview, app.summary] = [null, null, null, null, null, null];
  [app.baseAnswers, app.adapters, app.exported] = [[], [], null];
  forgetRun();
  leaveContest();
}

// ---- the store

export async function listModels(): Promise<void> {
  await guarded("model", async () => {
    app.stored = await Luthier.models();
  });
}

/** Why a stored model cannot be deleted now; null: it can. */
export function inUse({ name, locked }: StoredModel): string | null {
  if (app.opening?.what === name) return "It is being opened.";
  // The user's own files may have the name of their copy; then the copy is not what is open.
  if (app.model?.name === name && !app.local) return "It is open: open another model to delete it.";
  return locked ? "In use: open on another tab, or being written there." : null;
}

export async function deleteModel({ name, bytes: size, source }: StoredModel): Promise<void> {
  const back = source ? "It can be downloaded again." : "It came from your own files, which stay where they are.";
  const text = `${bytes(size)} of ${name} in this browser. ${back}`;
  if (!(await confirmed({ title: "Delete this model?", text, action: "Delete" }))) return;
  if (await guarded("model", () => Luthier.deleteModel(name))) announce(`${name} was deleted from this browser.`);
  await Promise.all([listModels(), lookAtStorage()]);
}

/** Copies the user's own files into the store, so that they need not be chosen again. */
export async function keepModel(): Promise<void> {
  const model = app.local;
  if (!model) return;
  const what = `Copying ${model.name}`;
  const kept = await guarded("model", () => Luthier.storeModel(model, (done, total) => (app.opening = { what, done, total })));
  app.opening = null;
  if (kept) announce(`A copy of ${model.name} is kept in this browser.`);
  await Promise.all([listModels(), lookAtStorage()]);
}
