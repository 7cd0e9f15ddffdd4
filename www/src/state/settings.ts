/** Settings as the user changes them, and the plan that follows. */

import { type DataText, Luthier, type LuthierApi, type LuthierErrorData, type Method, type OptionRow, type Summary, type TrainOptions, ownOptions } from "luthier-web";
import { asError } from "../lib/errors";
import { fromHash, pace, secondsOfRun, toHash } from "../lib/settings";
import { app, guarded } from "./app.svelte";
import { readData } from "./data";

export async function loadOptions(): Promise<void> {
  await guarded("settings", async () => {
    [app.rows, app.methods] = await Promise.all([Luthier.options(), Luthier.methods()]);
    const link = fromHash(location.hash, app.rows);
    app.chosen = link.options;
    if (link.methods.length > 0) [app.several, app.compared] = [true, link.methods];
    if (link.model || link.sample || link.methods.length > 0 || Object.keys(link.options).length > 0) app.link = link;
  });
}

export function setOption(row: OptionRow, value: TrainOptions[keyof TrainOptions]): void {
  const follows = row.name === "steps" && typeof value === "number" ? pace(value) : {};
  // What was chosen for another method says nothing of this one.
  const { lr, target_modules, ...rest } = app.chosen;
  app.chosen = { ...(row.name === "method" ? rest : app.chosen), ...follows, [row.name]: value };
  if (row.name === "seq_len") void readData();
}

/** Adds a method to those compared, or takes it out; they stay in the order of the table. */
export function toggleMethod(method: Method): void {
  const wanted = app.compared.includes(method) ? app.compared.filter((one) => one !== method) : [...app.compared, method];
  app.compared = app.methods.map(({ name }) => name).filter((name) => wanted.includes(name));
}

export function resetOptions(): void {
  app.chosen = {};
  void readData();
}

/** A link to this page with these settings, a bundled sample's name, and never data. */
export function settingsLink(): string {
  const model = app.local ? null : (app.model?.name ?? null);
  const hash = toHash({ options: app.chosen, methods: app.several ? app.compared : [], model, sample: app.sample?.id ?? null });
  return `${location.origin}${location.pathname}#${hash}`;
}

let latest = 0;

/** What a run with these settings would be; the last question wins. */
export async function estimate(): Promise<void> {
  const { api, data, options, validation } = app;
  if (!api || !data || app.busy) return;
  const mine = ++latest;
  app.estimating = true;
  let summary: Summary | null = null;
  const planned = await guarded("settings", async () => {
    summary = await api.estimate(data, options, validation?.data);
  });
  if (!planned && mine === latest) summary = await tooLarge(api, data, options);
  if (mine === latest) [app.summary, app.estimating] = [summary, false];
}

/** More than any machine has, GiB. */
const ENDLESS = 2 ** 20;

/** The least that a run refused for its memory would take, so that the message has its picture; null: it was refused for something else. */
async function tooLarge(api: LuthierApi, data: DataText, options: TrainOptions): Promise<Summary | null> {
  const least = { ...options, kept_blocks: options.kept_blocks ?? 0, workers: options.workers ?? 1, memory_gib: ENDLESS };
  const summary = await api.estimate(data, least).catch(() => null);
  return summary && summary.memory.total > (options.memory_gib ?? 4) * 2 ** 30 ? summary : null;
}

/** A method of those compared: what its run would be, or why it cannot be. */
export type Planned = { method: Method } & ({ summary: Summary } | { error: LuthierErrorData });

/** What the runs of all the methods that are compared would be; null where another question came meanwhile. */
export async function estimateAll(): Promise<Planned[] | null> {
  const { api, data, form, validation, methods, compared } = app;
  if (!api || !data || app.busy) return null;
  const mine = ++latest;
  const { lr, ...shared } = form;
  const plans: Planned[] = [];
  for (const method of compared) {
    const plan = api.estimate(data, ownOptions(methods, method, shared), validation?.data);
    plans.push(await plan.then((summary) => ({ method, summary }), (error) => ({ method, error: asError(error) })));
    if (mine !== latest) return null;
  }
  return plans;
}

// ---- how long it takes

const paceKey = () => `luthier-pace ${app.model?.name} ${app.device?.description}`;

/** Remembers how fast a run was, which says more than any measurement before. */
export function rememberPace(tokensPerSecond: number): void {
  if (Number.isFinite(tokensPerSecond)) localStorage.setItem(paceKey(), String(Math.round(tokensPerSecond)));
}

/** Tokens a second of the last run of this model on this device; 0 is none. */
export const paceBefore = (): number => Number(localStorage.getItem(paceKey()));

/** Seconds that a run would take, and how that is known. */
export function timeEstimate(summary: Summary | null): { seconds: number; from: string } | null {
  const { form: options, bench } = app;
  if (!summary) return null;
  const before = paceBefore();
  const tokens = (options.batch_size ?? 4) * (options.seq_len ?? 256) * (options.grad_accum ?? 1) * summary.steps;
  if (before > 0) return { seconds: tokens / before, from: "as fast as your last run" };
  return bench && { seconds: secondsOfRun(summary, options, bench.gflops), from: "by the two-second measurement" };
}
