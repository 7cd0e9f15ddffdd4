/** The bundled sample data and model: everything here comes from this page's own server. */

import type { DataText, LuthierErrorData, ModelFiles, TrainOptions } from "luthier-web";
import { problem } from "./errors";

export interface Sample {
  id: string;
  title: string;
  about: string;
  train: string;
  heldout: { title: string; file: string }[];
  probes: string[];
  /** What suits the bundled model. */
  options: TrainOptions;
}

/** A question and the answer that should come back. */
export interface Exchange {
  prompt: string;
  expected: string;
}

/** Examples that are kept from training. */
export interface HeldOut {
  title: string;
  data: DataText;
  examples: number;
  exchanges: Exchange[];
}

const NANO_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];

export async function samples(): Promise<Sample[]> {
  return JSON.parse(await (await get("demo/gallery/index.json")).text());
}

export async function sampleData(sample: Sample): Promise<DataText> {
  return { name: `${sample.id}.jsonl`, text: await (await get(`demo/${sample.train}`)).text() };
}

export async function sampleHeldOut(sample: Sample): Promise<HeldOut[]> {
  return Promise.all(
    sample.heldout.map(async ({ title, file }) => {
      const text = await (await get(`demo/${file}`)).text();
      const known = exchanges(text);
      return { title, data: { name: file, text }, examples: known.length, exchanges: known };
    }),
  );
}

export async function nano(): Promise<ModelFiles> {
  const files = NANO_FILES.map(async (name) => ({ name, blob: await (await get(`models/nano/${name}`)).blob() }));
  return { name: "nano", files: await Promise.all(files) };
}

/** Question and answer of each line that has both; a chat counts by its first question and the answer to it. */
export function exchanges(jsonl: string): Exchange[] {
  return jsonl.split("\n").flatMap((line) => {
    if (!line.trim()) return [];
    try {
      return exchange(JSON.parse(line));
    } catch {
      return [];
    }
  });
}

type Turn = { role?: string; content?: unknown };

function exchange(record: Record<string, unknown>): Exchange[] {
  const messages = Array.isArray(record.messages) ? (record.messages as Turn[]) : [];
  const turn = (role: string) => messages.find((message) => message?.role === role)?.content;
  const prompt = record.prompt ?? record.instruction ?? record.question ?? turn("user");
  const expected = record.completion ?? record.output ?? record.response ?? record.answer ?? turn("assistant");
  return typeof prompt === "string" && typeof expected === "string" ? [{ prompt, expected }] : [];
}

async function get(path: string): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path);
  } catch {
    throw unreachable(path, "there was no answer");
  }
  if (response.ok) return response;
  throw unreachable(path, `the server answered ${response.status}`);
}

const unreachable = (path: string, why: string): LuthierErrorData =>
  problem("io", `${path} did not load: ${why}.`, "Look at the connection to the server this page came from, and try again.");
