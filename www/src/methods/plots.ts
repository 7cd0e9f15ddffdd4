/** Methods compared, drawn: the validation loss over the steps, and what each brought against how much it trained. */

import uPlot from "uplot";
import { METHODS } from "../lib/methods";
import { type Color, axisOf, colors, numeral } from "../lib/plot";
import { short } from "../lib/format";
import { contest, type Entry } from "../state/contest.svelte";

const DASHES = [[], [8, 4], [3, 3], [10, 3, 3, 3]];
/** Losses further apart than this are drawn by their powers of ten. */
const WIDE = 12;
const LABEL = 12;

export const colorOf = (color: Color, { method }: Entry): string => color(`method-${method}`);
const nameOf = ({ method }: Entry): string => METHODS[method]?.name ?? method;
const drawn = (entries: Entry[]): Entry[] => entries.filter(({ curve }) => curve.length > 0);

// ---- validation loss over steps

export function curves(): uPlot.AlignedData {
  const entries = contest.entries;
  const steps = [...new Set(entries.flatMap(({ curve }) => curve.map(({ step }) => step)))].sort((a, b) => a - b);
  return [steps, ...entries.map(({ curve }) => {
    const at = new Map(curve.map(({ step, loss }) => [step, loss]));
    return steps.map((step) => at.get(step) ?? null);
  })];
}

const losses = (): number[] => contest.entries.flatMap(({ curve }) => curve.map(({ loss }) => loss)).filter((loss) => loss > 0);

export function drawCurves(place: HTMLElement): uPlot {
  const color = colors();
  const axis = axisOf(color);
  const wide = Math.max(...losses()) > WIDE * Math.min(...losses());
  return new uPlot({
    ...frame(place),
    padding: [14, 86, 0, 0],
    scales: { x: { time: false, range: (_, _min, max) => [0, Math.max(contest.steps, max ?? 1, 1)] }, y: wide ? { distr: 3 } : { range: room } },
    axes: [axis(24, (n) => (Number.isInteger(n) ? String(n) : "")), wide ? { ...axis(46, numeral), splits: decades } : axis(46, numeral)],
    series: [{}, ...contest.entries.map((entry, i): uPlot.Series => ({
      stroke: colorOf(color, entry), width: 2, dash: DASHES[i % DASHES.length], spanGaps: true,
      points: { show: true, size: 5, fill: colorOf(color, entry), stroke: colorOf(color, entry) },
    }))],
    hooks: { draw: [(plot) => nameLines(plot, color)] },
  }, curves(), place);
}

/** The name of each line at its end. */
function nameLines(plot: uPlot, color: Color): void {
  write(plot, color, drawn(contest.entries).map((entry) => {
    const { step, loss } = entry.curve.at(-1)!;
    const x = plot.valToPos(step, "x", true) + 8 * devicePixelRatio;
    return { text: nameOf(entry), x, y: plot.valToPos(loss, "y", true), color: colorOf(color, entry) };
  }));
}

// ---- what it brought against what it trained

export interface Dot {
  entry: Entry;
  /** Trained parameters. */
  x: number;
  y: number;
  low: number | null;
  high: number | null;
}

export function drawDots(place: HTMLElement, dots: Dot[], before: number | null): uPlot {
  const color = colors();
  const axis = axisOf(color);
  const xs = dots.map(({ x }) => x);
  const values = [...dots.flatMap(({ y, low, high }) => [y, low ?? y, high ?? y]), ...(before === null ? [] : [before])];
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const wide = least > 0 && most > WIDE * least;
  const [from, to] = [Math.min(...xs) / 2, Math.max(...xs) * 2];
  return new uPlot({
    ...frame(place),
    padding: [16, 20, 0, 0],
    scales: { x: { time: false, distr: 3, range: () => [from, to] }, y: wide ? { distr: 3 } : { range: () => room(null, least, most) } },
    axes: [{ ...axis(26, (n) => short(n).replace(".0", "")), splits: () => powers(from, to) }, wide ? { ...axis(50, numeral), splits: decades } : axis(50, numeral)],
    series: [{}, { paths: () => null, points: { show: false } }],
    hooks: { draw: [(plot) => dotsOf(plot, dots, before, color)] },
  }, dotData(dots), place);
}

/** uPlot wants its x in order. */
export function dotData(dots: Dot[]): uPlot.AlignedData {
  const sorted = [...dots].sort((a, b) => a.x - b.x);
  return [sorted.map(({ x }) => x), sorted.map(({ y }) => y)];
}

function dotsOf(plot: uPlot, dots: Dot[], before: number | null, color: Color): void {
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  const y = (value: number) => plot.valToPos(value, "y", true);
  ctx.save();
  ctx.lineWidth = 1.6 * ratio;
  if (before !== null) {
    ctx.strokeStyle = color("quiet");
    ctx.setLineDash([5 * ratio, 4 * ratio]);
    line(ctx, bbox.left, y(before), bbox.left + bbox.width, y(before));
    ctx.setLineDash([]);
  }
  for (const dot of dots) {
    const x = plot.valToPos(dot.x, "x", true);
    ctx.strokeStyle = ctx.fillStyle = colorOf(color, dot.entry);
    if (dot.low !== null && dot.high !== null) line(ctx, x, y(dot.low), x, y(dot.high));
    ctx.beginPath();
    ctx.arc(x, y(dot.y), 5 * ratio, 0, 2 * Math.PI);
    ctx.fill();
  }
  ctx.restore();
  const labels = dots.map(({ entry, x, y: value }): Label => {
    const at = plot.valToPos(x, "x", true);
    const right = at > bbox.left + 0.7 * bbox.width;
    return { text: nameOf(entry), x: at + (right ? -10 : 10) * ratio, y: y(value) - 6 * ratio, color: colorOf(color, entry), align: right ? "right" : "left" };
  });
  if (before !== null) labels.push({ text: "before", x: bbox.left + 4 * ratio, y: y(before) - 9 * ratio, color: color("quiet") });
  write(plot, color, labels);
}

// ---- what both share

const frame = (place: HTMLElement) => ({
  width: Math.max(50, place.clientWidth), height: place.clientHeight, legend: { show: false }, cursor: { show: false },
});

/** From 0, unless it goes below, with some air above. */
const room = (_: unknown, min: number | null, max: number | null): [number, number] => {
  const [low, high] = [Math.min(0, min ?? 0), Math.max(0, max ?? 1)];
  const air = 0.08 * (high - low || 1);
  return [low < 0 ? low - air : 0, high + air];
};

/** 0.1, 0.2, 0.5, 1 … between two numbers. */
function decades(_: uPlot, __: number, min: number, max: number): number[] {
  const marks = [];
  for (let ten = 10 ** Math.floor(Math.log10(min)); ten <= max; ten *= 10) marks.push(ten, 2 * ten, 5 * ten);
  return marks.filter((mark) => mark >= min && mark <= max);
}

function powers(from: number, to: number): number[] {
  const marks = [];
  for (let ten = 10 ** Math.floor(Math.log10(from)); ten <= to; ten *= 10) marks.push(ten);
  return marks.filter((mark) => mark >= from);
}

function line(ctx: CanvasRenderingContext2D, x0: number, y0: number, x1: number, y1: number): void {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}

interface Label {
  text: string;
  x: number;
  y: number;
  color: string;
  align?: CanvasTextAlign;
}

/** Words on the drawing, with the card behind them; those that would lie on one another are moved apart. */
function write(plot: uPlot, color: Color, labels: Label[]): void {
  const { ctx } = plot;
  ctx.save();
  ctx.font = `600 ${LABEL * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textBaseline = "middle";
  ctx.lineJoin = "round";
  ctx.lineWidth = 3 * devicePixelRatio;
  ctx.strokeStyle = color("card");
  const put: { left: number; right: number; y: number }[] = [];
  const apart = (LABEL + 2) * devicePixelRatio;
  for (const { text, x, y, color: paint, align = "left" } of [...labels].sort((a, b) => a.y - b.y)) {
    const width = ctx.measureText(text).width;
    const left = align === "right" ? x - width : x;
    const beside = put.filter((other) => left < other.right && other.left < left + width);
    const at = Math.max(y, ...beside.map((other) => other.y + apart));
    put.push({ left, right: left + width, y: at });
    [ctx.fillStyle, ctx.textAlign] = [paint, align];
    ctx.strokeText(text, x, at);
    ctx.fillText(text, x, at);
  }
  ctx.restore();
}
