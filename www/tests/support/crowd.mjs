// Whether this machine is quiet enough for times to say something: a software GPU takes every core there is.

import assert from "node:assert/strict";
import { availableParallelism, loadavg } from "node:os";

/** Holds a time against its bound, or says why it does not. */
export function judge(what, ms, most) {
  const [[load], cores] = [loadavg(), availableParallelism()];
  const crowded = load > 2 * cores;
  console.log(`${crowded ? `SKIPPED: no judgement where ${load.toFixed(1)} programs want ${cores} cores: ` : ""}${what}: ${Math.round(ms)} ms, failed from ${most} on`);
  if (!crowded) assert.ok(ms < most, `${what}: ${ms} ms`);
}
