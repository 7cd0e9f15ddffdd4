/** The learning curve: held-out loss over the examples learned from, the law through it, and what it is measured against. */

import type { DataProbe } from "luthier-web";
import uPlot from "uplot";
import { axisOf, colors, numeral } from "../lib/plot";

/** Places at which the law is drawn. */
const PLACES = 40;

/** From the smallest part to twice the data. */
export function curveData({ verdict: { curve, law, control } }: DataProbe): uPlot.AlignedData {
  const sizes = curve.map(([size]) => size);
  const [from, to] = [Math.min(...sizes), 2 * Math.max(...sizes)];
  const [a, b, c] = law;
  const places = Array.from({ length: PLACES + 1 }, (_, i) => from * (to / from) ** (i / PLACES));
  const xs = [...new Set([...places, ...sizes])].sort((x, y) => x - y);
  // Two runs of one size stand in two series.
  const drawn = (nth: number) => xs.map((x) => curve.filter(([size]) => size === x)[nth]?.[1] ?? null);
  return [xs, xs.map((x) => a + b * x ** -c), drawn(0), drawn(1), xs.map(() => control)];
}

export function drawCurve(probe: DataProbe, place: HTMLElement): uPlot {
  const color = colors();
  const axis = axisOf(color);
  const sizes = [...new Set(probe.verdict.curve.map(([size]) => size))].sort((a, b) => a - b);
  const ticks = [...sizes, 2 * sizes.at(-1)!];
  const dots: uPlot.Series = { paths: () => null, points: { show: true, size: 9, fill: color("varnish"), stroke: color("card"), width: 1.5 } };
  const line = (name: string, dash: number[]): uPlot.Series => ({ stroke: color(name), width: 1.6, dash, points: { show: false } });
  return new uPlot({
    width: Math.max(50, place.clientWidth),
    height: place.clientHeight,
    legend: { show: false },
    cursor: { show: false },
    padding: [14, 18, 0, 0],
    scales: { x: { time: false, distr: 3, log: 2 }, y: { range: (_, _min, max) => [0, (max ?? 1) * 1.08] } },
    axes: [{ ...axis(24, (n) => String(Math.round(n))), splits: () => ticks }, axis(40, numeral)],
    series: [{}, line("varnish", []), dots, dots, line("train", [7, 5])],
    hooks: { draw: [(plot) => beyond(plot, sizes.at(-1)!, color("quiet"))] },
  }, curveData(probe), place);
}

/** What lies beyond the data is told apart: nobody has measured it. */
function beyond(plot: uPlot, size: number, color: string): void {
  const { ctx, bbox } = plot;
  const x = plot.valToPos(size, "x", true);
  ctx.save();
  ctx.fillStyle = ctx.strokeStyle = color;
  ctx.globalAlpha = 0.1;
  ctx.fillRect(x, bbox.top, bbox.left + bbox.width - x, bbox.height);
  ctx.globalAlpha = 1;
  ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = "right";
  ctx.fillText("foreseen", bbox.left + bbox.width - 6 * devicePixelRatio, bbox.top + bbox.height - 8 * devicePixelRatio);
  ctx.restore();
}
