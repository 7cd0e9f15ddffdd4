/** Everything that can go wrong, in the form that is shown. */

import type { LuthierErrorData } from "luthier-web";
import { TITLES } from "./settings";

export function asError(error: unknown): LuthierErrorData {
  if (error && typeof error === "object" && "code" in error && "message" in error) {
    const { code, message, hint } = error as Partial<LuthierErrorData>;
    if (typeof code === "string") return { code, message: String(message), hint: String(hint ?? "") };
  }
  return { code: "internal", message: error instanceof Error ? error.message : String(error), hint: "Reload the page and try again." };
}

export const problem = (code: string, message: string, hint = ""): LuthierErrorData => ({ code, message, hint });

const NAMES: Record<string, string | undefined> = { ...TITLES, device: "Device", minutes: "Time" };

const PHRASES: [engine: string, here: string][] = [
  ["with `luthier inspect data`", "on the Data step"],
  ["name the columns with --prompt-column and --completion-column, or --text-column", "say which columns they are, below"],
  // The step says what is written by the same words: “Hugging Face folder”.
  [" (--format hf)", ""],
];

/** The engine speaks as its command line does; here things are called as the page calls them. */
export const inWords = (text: string): string =>
  PHRASES.reduce((said, [engine, here]) => said.replace(engine, here), text).replace(/--([a-z]+(?:-[a-z]+)*)/g, (flag, name: string) => {
    const title = NAMES[name.replaceAll("-", "_")];
    return title ? `“${title}”` : flag;
  });
