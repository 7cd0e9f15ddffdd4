// The loss curve: every step thin, their running mean bold, in an SVG as wide as the page gives.

const NAMESPACE = "http://www.w3.org/2000/svg";
const MARGIN = { left: 36, right: 8, top: 8, bottom: 20 };
/** Distances between grid lines to choose from: the smallest that needs at most five. */
const GRID = [0.1, 0.2, 0.5, 1, 2, 5];

/** Draws losses (a step each) over an axis of `steps`; a loss that is no number leaves a gap. */
export function drawCurve(svg, losses, steps = svg.dataset.steps) {
  svg.dataset.steps = steps ?? losses.length;
  const { clientWidth: width, clientHeight: height } = svg;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const known = losses.filter(Number.isFinite);
  const highest = Math.max(0.1, ...known);
  const grid = GRID.find((distance) => highest <= 5 * distance) ?? highest / 5;
  const top = grid * Math.ceil(highest / grid);
  const last = Math.max(2, losses.length, Number(svg.dataset.steps) || 0);
  const x = (step) => MARGIN.left + ((step - 1) / (last - 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (loss) => height - MARGIN.bottom - (loss / top) * (height - MARGIN.top - MARGIN.bottom);
  const place = (loss, i) => (Number.isFinite(loss) ? `${x(i + 1).toFixed(1)},${y(loss).toFixed(1)}` : null);
  svg.replaceChildren(
    shape("line", { x1: x(1), x2: x(last), y1: y(0), y2: y(0) }),
    ...(known.length ? axes(grid, top, last, x, y) : []),
    ...pieces(losses.map(place)).map((points) => shape("polyline", { points, class: "raw" })),
    ...pieces(runningMean(losses).map(place)).map((points) => shape("polyline", { points })),
  );
  svg.setAttribute("aria-label", known.length ? spoken(losses, known) : "Loss curve, empty so far");
}

function axes(grid, top, last, x, y) {
  const marks = Array.from({ length: Math.round(top / grid) + 1 }, (_, i) => grid * i);
  const lines = marks.flatMap((loss) => [
    shape("line", { x1: x(1), x2: x(last), y1: y(loss), y2: y(loss) }),
    label(loss.toFixed(1), { x: x(1) - 6, y: y(loss) + 4, "text-anchor": "end" }),
  ]);
  const bottom = y(0) + 16;
  const steps = [label("step 1", { x: x(1), y: bottom }), label(last, { x: x(last), y: bottom, "text-anchor": "end" })];
  return [...lines, ...steps];
}

/** Runs of known points between gaps, as polyline attributes. */
function pieces(points) {
  const runs = [[]];
  for (const point of points) point === null ? runs.push([]) : runs.at(-1).push(point);
  return runs.filter((run) => run.length > 1).map((run) => run.join(" "));
}

function runningMean(losses) {
  let mean;
  return losses.map((loss) => {
    if (!Number.isFinite(loss)) return loss;
    mean = mean === undefined ? loss : 0.7 * mean + 0.3 * loss;
    return mean;
  });
}

function spoken(losses, known) {
  return `Loss curve: from ${known[0].toFixed(2)} to ${known.at(-1).toFixed(2)} in ${losses.length} steps`;
}

function label(text, attributes) {
  const made = shape("text", attributes);
  made.textContent = text;
  return made;
}

function shape(tag, attributes) {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
