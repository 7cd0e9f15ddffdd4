/** Opening, keeping and deleting models. */

import { Luthier, type ModelFiles, type StoredModel } from "luthier-web";
import { asError, problem } from "../lib/errors";
import { modelOf } from "../lib/files";
import { nano } from "../lib/gallery";
import { announce } from "./announce.svelte";
import { app, guarded } from "./app.svelte";
import { readData } from "./data";
import { forgetRun } from "./run.svelte";
import { lookAtStorage } from "./machine";

/** Only the last of several openings counts. */
let latest = 0;
/** What would bring the open model again, on another device. */
let reopen: (() => Promise<boolean>) | null = null;

export const openNano = (): Promise<boolean> => open("nano", nano);

export const openStored = (name: string): Promise<boolean> => open(name, () => Luthier.storedModel(name));

export async function openLocal(files: File[]): Promise<boolean> {
  return guarded("model", async () => {
    const model = modelOf(files);
    if (await open(model.name, async () => model)) app.local = model;
  });
}

/** By the name that a link or a stored run has for it. */
export async function openNamed(name: string): Promise<boolean> {
  if (app.model?.name === name) return true;
  if (name === "nano") return openNano();
  if (app.stored.some((model) => model.complete && model.name === name)) return openStored(name);
  app.errors.model = problem("data", `The model ${name} is not in this browser.`, "Download it, or choose its files, below; then go on.");
  app.step = "model";
  return false;
}

export async function changeDevice(): Promise<void> {
  app.bench = null;
  if (app.model && reopen) await reopen();
}

async function open(name: string, get: () => Promise<ModelFiles>): Promise<boolean> {
  if (app.busy) {
    app.errors.model = problem("setting", "A run is under way on this model.", "Stop it first, on the Train step.");
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
      if (current()) app.opening = { what: name, done, total };
    };
    const api = await Luthier.open({ model: await get(), device: app.choice, onProgress });
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
  [app.api, app.model, app.device, app.local, app.preview, app.summary] = [null, null, null, null, null, null];
  app.baseAnswers = [];
  forgetRun();
}

// ---- the store

export async function listModels(): Promise<void> {
  await guarded("model", async () => {
    app.stored = await Luthier.models();
  });
}

export async function deleteModel({ name }: StoredModel): Promise<void> {
  await guarded("model", () => Luthier.deleteModel(name));
  await Promise.all([listModels(), lookAtStorage()]);
}

/** Copies the user's own files into the store, so that they need not be chosen again. */
export async function keepModel(): Promise<void> {
  const model = app.local;
  if (!model) return;
  const what = `Copying ${model.name}`;
  await guarded("model", () => Luthier.storeModel(model, (done, total) => (app.opening = { what, done, total })));
  app.opening = null;
  await Promise.all([listModels(), lookAtStorage()]);
}
