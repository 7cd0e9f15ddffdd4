/** The data: read, seen as the model sees it, and taken back. */

import type { Columns, DataText } from "luthier-web";
import { exchanges, sampleData, sampleHeldOut, samples, type Sample } from "../lib/gallery";
import { announce } from "./announce.svelte";
import { app, guarded } from "./app.svelte";
import { plural } from "../lib/format";

/** Records shown with their tokens. */
const SHOWN = 24;
const PROBES = 4;
/** The largest text taken: it is held whole, as is everything made of it. */
export const LARGEST_TEXT = 256 << 20;

export async function loadGallery(): Promise<void> {
  await guarded("data", async () => {
    app.samples = await samples();
  });
}

export async function useSample(sample: Sample): Promise<void> {
  await guarded("data", async () => {
    app.reading = true;
    try {
      const [data, heldOut] = await Promise.all([sampleData(sample), sampleHeldOut(sample)]);
      take(data);
      [app.sample, app.heldOut, app.probes] = [sample, heldOut, [...sample.probes]];
    } finally {
      app.reading = false;
    }
    await readData();
  });
}

export async function useFile(file: File): Promise<void> {
  await guarded("data", async () => {
    take({ name: file.name, text: await textOf(file) });
    await readData();
  });
}

/** Characters are never guessed: a model would learn the wrong ones in silence. */
async function textOf(file: File): Promise<string> {
  if (file.size > LARGEST_TEXT) {
    throw { code: "data", message: `${file.name} has ${file.size} bytes; up to ${LARGEST_TEXT} are read.`, hint: "Split it: tuning needs far less." };
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  try {
    return new TextDecoder(encodingOf(bytes), { fatal: true }).decode(bytes);
  } catch {
    // The engine knows many kinds of file by their first bytes, and says what to do with each.
    const start = new TextDecoder().decode(bytes.subarray(0, 64));
    await app.api?.preview({ name: file.name, text: start, skip_bad: true }, { limit: 0 });
    throw { code: "data", message: `${file.name} is no UTF-8 text.`, hint: "Save it as UTF-8; if it is no text at all, export it as JSONL or CSV." };
  }
}

const encodingOf = ([first, second]: Uint8Array): string =>
  first === 0xff && second === 0xfe ? "utf-16le" : first === 0xfe && second === 0xff ? "utf-16be" : "utf-8";

/** Validation data of the user's own; they are read as the data are, with the same columns. */
export async function useValidation(file: File): Promise<void> {
  await guarded("data", async () => {
    const { api, data } = app;
    if (!api || !data) return;
    const validation = { ...data, name: file.name, text: await textOf(file) };
    const { examples, bad, problems } = await api.preview(validation, { limit: 0 });
    if (examples === 0) {
      const why = problems[0] ? ` Line ${problems[0].line}: ${problems[0].message}` : "";
      throw { code: "data", message: `${file.name} holds no example to validate on.${why}`, hint: "It is read like the data, by the same columns." };
    }
    // Other data may have come meanwhile.
    if (app.data !== data) return;
    app.validation = { data: validation, examples, bad };
    announce(`${plural(examples, "example")} to validate on.`);
  });
}

export function forgetValidation(): void {
  app.validation = null;
}

export async function useText(name: string, text: string): Promise<void> {
  take({ name, text });
  await readData();
}

/** Questions with known answers, to compare on. */
export async function useHeldOut(file: File): Promise<void> {
  await guarded("compare", async () => {
    if (!app.api) throw { code: "setting", message: "A test needs a model.", hint: "Open one, on the Model step." };
    const data = { ...app.data, name: file.name, text: await textOf(file), skip_bad: true };
    const { examples } = await app.api.preview(data, { limit: 0 });
    if (examples === 0) {
      throw { code: "data", message: `${file.name} holds no example.`, hint: "JSONL with prompt and completion, messages or text; or columns named as in the data." };
    }
    app.heldOut = [{ title: file.name, data, examples, exchanges: exchanges(data.text) }];
    [app.scores, app.forgetting, app.task, app.guessed] = [[], null, null, null];
  });
}

export async function mapColumns(columns: Columns): Promise<void> {
  if (!app.data) return;
  app.data = { ...app.data, columns };
  // It was read by the columns of before.
  app.validation = null;
  await readData();
}

/** Bad records are listed and left out; the command line, which shows nothing, refuses them unless told otherwise. */
function take(data: DataText): void {
  [app.data, app.sample, app.heldOut] = [{ ...data, skip_bad: true }, null, []];
  [app.probes, app.preview, app.summary, app.validation] = [[], null, null, null];
  [app.baseAnswers, app.scores, app.forgetting, app.found, app.task, app.guessed] = [[], [], null, null, null, null];
}

let latest = 0;

/** Reads the data with the open model's tokenizer; without a model it waits for one. */
export async function readData(): Promise<void> {
  const { api, data } = app;
  if (!api || !data) return;
  const mine = ++latest;
  app.reading = true;
  await guarded("data", async () => {
    // The length of rows follows from the data, so they are read once to see them and again as they will be cut.
    const look = (seq_len: number) => api.preview(data, { seq_len, limit: SHOWN });
    const { context } = api.model;
    let preview = await look(Math.min(app.chosen.seq_len || context, context));
    if (mine !== latest) return;
    app.preview = preview;
    const { seq_len } = app.options;
    if (seq_len && seq_len < context && preview.longest > seq_len) preview = await look(seq_len);
    if (mine !== latest) return;
    app.preview = preview;
    if (app.probes.length === 0) app.probes = questions();
    announce(`${plural(preview.examples, "example")} read, ${plural(preview.bad, "bad line")}.`);
  });
  if (mine === latest) app.reading = false;
}

/** The first questions of the data, where none came with it. */
function questions(): string[] {
  const { columns = [], mapping, rows = [] } = app.preview ?? {};
  const at = columns.indexOf(mapping?.prompt ?? "");
  const cells = at < 0 ? exchanges(app.data?.text.slice(0, 1 << 20) ?? "").map(({ prompt }) => prompt) : rows.map((row) => row[at] ?? "");
  return [...new Set(cells.filter(Boolean))].slice(0, PROBES);
}
