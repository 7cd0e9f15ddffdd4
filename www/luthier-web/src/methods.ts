/** Which settings are a method's, by the table that the engine gives. */

import type { Method, MethodRow, TrainOptions } from "./types.js";

/** Whether a method reads an option: those that no method names are read by all. */
export function reads(table: MethodRow[], method: Method, option: string): boolean {
  const names = (row: MethodRow | undefined) => row?.options.some((name) => name === option) ?? false;
  const own = table.find(({ name }) => name === method);
  return !own || names(own) || !table.some(names);
}

/** The options as a method takes them: those that only other methods read are left out. */
export function ownOptions(table: MethodRow[], method: Method, options: TrainOptions): TrainOptions {
  const own = Object.entries(options).filter(([name]) => reads(table, method, name));
  return { ...(Object.fromEntries(own) as TrainOptions), method };
}
