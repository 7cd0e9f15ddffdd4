/** One polite live region: milestones at once, everything else at most every fifteen seconds. */

const QUIET_MS = 15_000;

let last = -Infinity;

export const announcements = $state({ text: "", off: false });

export function announce(text: string, milestone = true): void {
  if (announcements.off || (!milestone && performance.now() - last < QUIET_MS)) return;
  last = performance.now();
  announcements.text = text;
}
