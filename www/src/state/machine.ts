/** The machine: what it offers and how fast it is. */

import { Luthier } from "luthier-web";
import { probeGpu, probeStorage } from "../lib/gpu";
import { app, guarded } from "./app.svelte";

export async function lookAtMachine(): Promise<void> {
  app.storable = await Luthier.canStore();
  [app.gpu, app.storage] = await Promise.all([probeGpu(), probeStorage()]);
}

export async function lookAtStorage(): Promise<void> {
  app.storage = await probeStorage();
}

export async function persist(): Promise<void> {
  await navigator.storage.persist();
  await lookAtStorage();
}

export async function measure(): Promise<void> {
  if (app.benching) return;
  app.benching = true;
  await guarded("device", async () => {
    app.bench = await Luthier.benchmark(app.choice);
  });
  app.benching = false;
}
