import type { LuthierErrorData } from "./types.js";

/** What the façade throws: the engine's errors and its own, all of one shape. */
export class LuthierError extends Error implements LuthierErrorData {
  override readonly name = "LuthierError";

  constructor(
    readonly code: string,
    message: string,
    readonly hint = "",
  ) {
    super(message);
  }

  static from({ code, message, hint }: LuthierErrorData): LuthierError {
    return new LuthierError(code, message, hint);
  }

  /** As it crosses from worker to page, where a class would be lost. */
  static data(error: unknown): LuthierErrorData {
    if (isErrorData(error)) return { code: error.code, message: error.message, hint: error.hint ?? "" };
    if (error instanceof DOMException && error.name === "QuotaExceededError") {
      const hint = "Delete stored models or runs, or free some disk space.";
      return { code: "storage", message: "This browser's private storage is full.", hint };
    }
    return { code: "internal", message: messageOf(error), hint: "Reload the page. If it happens again, choose the other device." };
  }
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function isErrorData(error: unknown): error is LuthierErrorData {
  const { code, message } = (error ?? {}) as Partial<LuthierErrorData>;
  return typeof code === "string" && typeof message === "string";
}
