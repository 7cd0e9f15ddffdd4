/** Everything that can go wrong, in the form that is shown. */

import type { LuthierErrorData } from "luthier-web";

export function asError(error: unknown): LuthierErrorData {
  if (error && typeof error === "object" && "code" in error && "message" in error) {
    const { code, message, hint } = error as Partial<LuthierErrorData>;
    if (typeof code === "string") return { code, message: String(message), hint: String(hint ?? "") };
  }
  return { code: "internal", message: error instanceof Error ? error.message : String(error), hint: "Reload the page and try again." };
}

export const problem = (code: string, message: string, hint = ""): LuthierErrorData => ({ code, message, hint });
