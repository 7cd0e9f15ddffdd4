/** The probe: short runs on parts of the data, before a long one. */

import { announce } from "./announce.svelte";
import { app, guarded } from "./app.svelte";
import { setOption } from "./settings";

let controller: AbortController | null = null;

export async function probeData(): Promise<void> {
  const { api, data, options, minutes, heldOut } = app;
  if (!api || !data || app.busy || app.asking || app.comparing) return;
  controller = new AbortController();
  [app.found, app.budget] = [null, { seconds: 60 * minutes, since: performance.now() }];
  app.probing = { what: "Building the plan", done: 0, total: 0 };
  const onProgress = (what: string, done: number, total: number) => (app.probing = { what: said(what), done, total });
  await guarded("try", async () => {
    // Held-out examples are looked through for those that the data hold.
    const test = heldOut.length === 1 && heldOut[0] ? { test: heldOut[0].data } : {};
    const found = await api.probe(data, { options, budget: { minutes }, ...test }, onProgress, controller?.signal);
    if (app.data === data) app.found = found;
    announce(`The probe is done. ${found.verdict.words[0]}`);
  });
  app.probing = null;
}

export function stopProbe(): void {
  controller?.abort();
}

/** The engine's words for what it does, in the page's. */
function said(what: string): string {
  if (what === "learning rates") return "Trying learning rates";
  if (what === "control") return "Tuning on mixed-up answers, for comparison";
  return `${what.charAt(0).toUpperCase()}${what.slice(1)} examples`;
}

/** Takes the learning rate that learned fastest. */
export function takeRate(lr: number): void {
  const row = app.rows.find(({ name }) => name === "lr");
  if (row) setOption(row, lr);
}
