/** uPlot, dressed: what each chart draws. */

import uPlot from "uplot";
import { type Color, axisOf, colors, numeral } from "../lib/plot";
import { run } from "../state/run.svelte";

export type ChartKind = "loss" | "lr" | "grad_norm" | "tokens_per_sec";

/** Weight of the past in the smoothed loss. */
const SMOOTHING = 0.75;

export function dataOf(kind: ChartKind): uPlot.AlignedData {
  const { step, validation } = run.series;
  if (kind !== "loss") return [step, run.series[kind]];
  // Validations also happen where no step is reported: before the first, and in a log that was cut.
  const steps = [...new Set([...step, ...validation.map((point) => point.step)])].sort((a, b) => a - b);
  const train = new Map(step.map((at, i) => [at, run.series.loss[i] ?? null]));
  const measured = new Map(validation.map((point) => [point.step, point.loss]));
  const values = steps.map((at) => train.get(at) ?? null);
  return [steps, values, smooth(values), steps.map((at) => measured.get(at) ?? null)];
}

function smooth(values: (number | null)[]): (number | null)[] {
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null || !Number.isFinite(value)) return null;
    mean = SMOOTHING * mean + (1 - SMOOTHING) * value;
    weight = SMOOTHING * weight + (1 - SMOOTHING);
    return mean / weight;
  });
}

export function chart(kind: ChartKind, place: HTMLElement): uPlot {
  const color = colors();
  const axis = axisOf(color);
  const options: uPlot.Options = {
    width: Math.max(50, place.clientWidth),
    height: place.clientHeight,
    legend: { show: false },
    cursor: { show: false },
    padding: [10, 16, 0, 0],
    scales: {
      x: { time: false, range: (_, min, max) => [Math.min(0, min ?? 0), Math.max(run.of, max ?? 1, 1)] },
      y: { range: (_, min, max) => [Math.min(0, min ?? 0), (max ?? 1) * 1.06 || 1] },
    },
    axes: [axis(22, (n) => (Number.isInteger(n) ? String(n) : "")), axis(46, numeral)],
    series: [{}, ...lines(kind, color)],
    hooks: kind === "loss" ? { draw: [(plot) => markBest(plot, color)] } : {},
  };
  if (kind !== "loss") options.axes![1]!.space = 26;
  return new uPlot(options, dataOf(kind), place);
}

function lines(kind: ChartKind, color: Color): uPlot.Series[] {
  const points = { show: false };
  if (kind !== "loss") return [{ stroke: color("train"), width: 1.6, points }];
  return [
    { stroke: `${color("train")}66`, width: 1, points },
    { stroke: color("train"), width: 2, points },
    { stroke: color("valid"), width: 2, dash: [6, 4], spanGaps: true, points: { show: true, size: 7, fill: color("valid"), stroke: color("valid") } },
  ];
}

/** A ring and a word at the best validation. */
function markBest(plot: uPlot, color: Color): void {
  const { best } = run;
  if (!best || best.step === 0) return;
  const { ctx } = plot;
  const ratio = devicePixelRatio;
  const x = plot.valToPos(best.step, "x", true);
  const y = plot.valToPos(best.loss, "y", true);
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = color("ink");
  ctx.lineWidth = 2 * ratio;
  ctx.beginPath();
  ctx.arc(x, y, 7 * ratio, 0, 2 * Math.PI);
  ctx.stroke();
  ctx.font = `600 ${12 * ratio}px system-ui, sans-serif`;
  ctx.textAlign = x > plot.bbox.left + plot.bbox.width - 40 * ratio ? "right" : "center";
  ctx.fillText("best", x, y - 13 * ratio);
  ctx.restore();
}
