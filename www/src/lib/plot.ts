/** uPlot in the page's colours: what all charts have in common. */

import type uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { rate } from "./format";

/** A colour of tokens.css, by its name there, as the theme has it now. */
export type Color = (name: string) => string;

export function colors(): Color {
  const css = getComputedStyle(document.documentElement);
  return (name) => css.getPropertyValue(`--${name}`).trim();
}

/** A short number for an axis. */
export const numeral = (n: number): string =>
  Math.abs(n) >= 1000 ? `${n / 1000}k` : n !== 0 && Math.abs(n) < 0.01 ? rate(n) : String(Number(n.toPrecision(4)));

export const axisOf = (color: Color) => (size: number, values?: (n: number) => string): uPlot.Axis => ({
  stroke: color("quiet"), font: "12px system-ui, sans-serif", size, gap: 4,
  grid: { stroke: color("line"), width: 1 },
  ticks: { show: false },
  // A logarithmic axis leaves out marks that have no room.
  ...(values && { values: (_: uPlot, splits: (number | null)[]) => splits.map((n) => (n === null ? "" : values(n))) }),
});
