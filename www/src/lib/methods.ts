/** What can be trained, in words; what each method reads and needs is the engine's to say. */

import type { Method, MethodRow } from "luthier-web";

export const METHODS: Record<Method, { name: string; about: string }> = {
  lora: { name: "LoRA", about: "Learns two thin matrices beside each weight: small, quick, and what most people use." },
  dora: { name: "DoRA", about: "LoRA that learns each row's length apart from its direction: a little slower, meant to come closer to tuning everything." },
  ia3: { name: "(IA)³", about: "Learns how loud keys, values and the feed-forward are: very few numbers, for small changes." },
  prompt: { name: "Prompt", about: "Learns an invisible prompt before every question; the model itself stays as it is." },
  prefix: { name: "Prefix", about: "Learns invisible words that every layer hears before the text: a prompt with more room." },
  norm: { name: "Norms", about: "Learns only the weights of the normalisations: a handful of numbers, for a change of tone." },
  bitfit: { name: "Biases", about: "Learns only the biases: a handful of numbers, for small changes." },
  "last-k": { name: "Last blocks", about: "Learns all weights of the last blocks: a deep change, in the part that speaks." },
  full: { name: "All weights", about: "Learns every weight: it can learn the most and forget the most, and needs the most memory." },
  lisa: { name: "All, in turns", about: "Learns every weight, but only a few blocks at a time: quicker than all weights at once, with as much memory." },
};

const rowOf = (rows: MethodRow[], method: Method) => rows.find(({ name }) => name === method);

/** The learning rate that goes with a method, where LoRA would get this one. */
export function rateFor(rows: MethodRow[], method: Method, lora: number): number {
  const [own, usual] = [rowOf(rows, method)?.lr, rowOf(rows, "lora")?.lr];
  return own && usual ? Number(((lora * own) / usual).toPrecision(3)) : lora;
}

/** What becomes of an adapter, where it is not what everybody expects. */
export const inPeft = (rows: MethodRow[], method: Method): boolean => rowOf(rows, method)?.in_peft ?? true;
export const merges = (rows: MethodRow[], method: Method): boolean => rowOf(rows, method)?.merges ?? true;
