/** Kinds of answers, and what the figures that measure them are called. */

import type { Estimate, SystemName, Task } from "luthier-web";
import { fixed } from "./format";

export const TASKS: Record<Task, { name: string; about: string }> = {
  commands: { name: "Command lines", about: "Right is the same command, flag by flag; the program and the flags are also counted apart." },
  facts: { name: "Short answers", about: "Right is the same answer, but for case and articles." },
  classification: { name: "Labels", about: "The likeliest label of those in the data is taken; macro-F1 gives each label the same weight." },
  extraction: { name: "JSON fields", about: "Right is the same JSON; fields are also counted one by one." },
  translation: { name: "Translation", about: "chrF and BLEU say how much of the expected sentence is there; right is the very same." },
  bfcl: { name: "Function calls", about: "Right is a call that the line's own functions allow, with the expected arguments." },
  text: { name: "Plain text", about: "How well the next words are foreseen: the loss, lower is better." },
};

const FIGURES: Record<string, string | undefined> = {
  macro_f1: "macro-F1", chrf: "chrF", bleu: "BLEU", valid_json: "valid JSON", field_f1: "field F1", flag_f1: "flag F1",
};

export const figureName = (name: string): string => FIGURES[name] ?? name.replaceAll("_", " ");

export const SYSTEMS: Record<SystemName, string> = { tuned: "tuned", base: "base", constant: "constant answer" };

/** "83.8 [75.0, 91.2]": figures are out of 100 but for the loss of texts. */
export function interval(e: Estimate, task: Task): string {
  const digits = task === "text" ? 3 : 1;
  return `${fixed(e.value, digits)} [${fixed(e.low, digits)}, ${fixed(e.high, digits)}]`;
}

/** "+82.5 [73.8, 91.2]" */
export function change(e: Estimate, digits: number): string {
  const signed = (n: number | null) => `${n !== null && n > 0 ? "+" : ""}${fixed(n, digits)}`.replace("-", "−");
  return `${signed(e.value)} [${signed(e.low)}, ${signed(e.high)}]`;
}
