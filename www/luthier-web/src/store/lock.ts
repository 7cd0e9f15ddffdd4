/** Web Locks: who is at work on what is stored, known to all tabs. They end with the tab that holds them. */

import { LuthierError } from "../error.js";

/** Takes a name until the returned function is called, or the tab ends; whoever comes second gets the error `taken`. */
export async function take(name: string, taken: LuthierError, mode: LockMode = "exclusive"): Promise<() => void> {
  if (!navigator.locks) {
    const hint = "Open this page by https, or from this machine itself (http://localhost).";
    throw new LuthierError("storage", "This browser offers the page no storage that tabs can share.", hint);
  }
  // A page that was just reloaded lets go a moment later.
  for (let tries = 5; ; tries--) {
    const release = await tryLock(name, mode);
    if (release) return release;
    if (tries === 0) throw taken;
    await new Promise((again) => setTimeout(again, 200));
  }
}

/** Null where somebody else has it. */
export function tryLock(name: string, mode: LockMode = "exclusive"): Promise<(() => void) | null> {
  return new Promise((taken, failed) => {
    const hold = (lock: Lock | null) => lock ? new Promise<void>((release) => taken(release)) : taken(null);
    navigator.locks.request(name, { mode, ifAvailable: true }, hold).catch(failed);
  });
}

export async function heldNames(): Promise<Set<string | undefined>> {
  const { held = [] } = (await navigator.locks?.query()) ?? {};
  return new Set(held.map(({ name }) => name));
}
