// The page: starts the worker, shows what it posts. `?run=webgpu|cpu|auto` starts at once, `?device=…` only chooses,
// `?steps=N` overrides the recipe, `?report=1` forwards every message to the server (headless runs).

import { drawCurve } from "./curve.js";

const SHOWN_ROWS = 6;
const SETS = { values: "New values in known phrasings", phrasings: "Phrasings never seen" };

const query = new URLSearchParams(location.search);
const byId = (id) => document.getElementById(id);
const show = (id, text) => (byId(id).textContent = text);

let worker = null;
let losses = [];
let stepTimes = [];
let rows = {};
let scores = {};

// ---- the device, before anything runs

async function describeDevice() {
  const cpu = "the CPU will do the work, through WebAssembly.";
  if (!window.isSecureContext) return `WebGPU needs a secure page (https, or this machine itself): ${cpu}`;
  if (!navigator.gpu) return `This browser has no WebGPU: ${cpu}`;
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return `This browser has WebGPU but found no GPU that it may use: ${cpu}`;
  const { vendor, architecture, description, isFallbackAdapter } = adapter.info ?? {};
  const name = description || [vendor, architecture].filter(Boolean).join(" ") || "unnamed";
  if (isFallbackAdapter) return `WebGPU is there, but in software only (${name}), which is slower: ${cpu}`;
  return `WebGPU is there: ${name}.`;
}

// ---- a run

function start() {
  reset();
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => receive(data);
  worker.onerror = ({ message }) => fail("worker", message || "The worker could not start.");
  worker.postMessage({ device: byId("choice").value, steps: Number(query.get("steps")) || undefined });
  setRunning(true);
}

function stop(status) {
  worker?.terminate();
  worker = null;
  setRunning(false);
  show("status", status);
  byId("progress").value = 0;
}

function reset() {
  [losses, stepTimes, rows, scores] = [[], [], {}, {}];
  for (const id of ["error", "answers", "adapter"]) byId(id).hidden = true;
  byId("tables").replaceChildren();
  byId("downloads").replaceChildren();
  show("numbers", "");
  drawCurve(byId("curve"), losses);
}

function setRunning(running) {
  show("tune", running ? "Stop" : "Tune");
  byId("choice").disabled = running;
}

// ---- messages of the worker (listed in worker.js)

const handlers = {
  log({ text }) {
    show("status", `${text} …`);
    byId("progress").value = 0;
  },
  device({ device }) {
    show("device", `Running on ${device}.`);
  },
  plan({ summary }) {
    const parts = Object.entries(summary).filter(([, value]) => ["number", "string"].includes(typeof value));
    show("numbers", parts.map(([key, value]) => `${key.replaceAll("_", " ")}: ${value}`).join(" · "));
  },
  progress({ done, total }) {
    byId("progress").value = done / total;
  },
  step(report) {
    losses.push(report.loss);
    stepTimes.push(performance.now());
    byId("progress").value = report.step / report.steps;
    show("numbers", stepLine(report));
    drawCurve(byId("curve"), losses, report.steps);
  },
  score({ phase, set, exact, total, rows: answered }) {
    scores[set] = { ...scores[set], [phase]: `${exact} of ${total}` };
    answered.forEach((row, i) => {
      rows[set] ??= [];
      rows[set][i] = { ...rows[set][i], prompt: row.prompt, expected: row.expected, [phase]: row.answer };
    });
    renderAnswers();
  },
  adapter({ files }) {
    byId("downloads").replaceChildren(...files.map(downloadButton));
    byId("adapter").hidden = false;
  },
  done({ seconds }) {
    stop(`Done in ${duration(seconds)}.`);
  },
  error({ code, message, hint }) {
    stop("Stopped by an error.");
    show("error-message", message);
    show("error-hint", hint);
    show("error-code", code);
    byId("error").hidden = false;
  },
};

function receive(message) {
  handlers[message.type](message);
  if (message.type !== "adapter") report(message);
}

// ---- rendering

const number = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits) : "not a number");

function duration(seconds) {
  return seconds < 60 ? `${Math.round(seconds)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

function stepLine({ step, steps, loss, tokens_per_sec, val_loss }) {
  const parts = [`step ${step} of ${steps}`, `loss ${number(loss, 4)}`];
  if (val_loss !== undefined) parts.push(`validation ${number(val_loss, 4)}`);
  if (Number.isFinite(tokens_per_sec)) parts.push(`${Math.round(tokens_per_sec)} tokens/s`);
  const left = remaining(steps - step);
  return [...parts, left].filter(Boolean).join(" · ");
}

/** Seconds left by the mean pace, once a few steps have shown it. */
function remaining(steps) {
  if (stepTimes.length < 5 || steps === 0) return "";
  const pace = (stepTimes.at(-1) - stepTimes[0]) / (stepTimes.length - 1);
  return `${duration((pace * steps) / 1000)} left`;
}

function renderAnswers() {
  byId("answers").hidden = false;
  byId("summary").replaceChildren(
    ...Object.entries(scores).map(([set, { before, after }]) =>
      element("li", `${SETS[set]}: ${before} exact before${after ? `, ${after} after` : ""}`),
    ),
  );
  byId("tables").replaceChildren(...Object.keys(rows).flatMap((set) => [element("h3", SETS[set]), table(rows[set])]));
}

function table(answered) {
  const columns = ["Request", "Base model", "Tuned model", "Expected"];
  const head = element("thead");
  head.append(withChildren("tr", columns.map((name) => Object.assign(element("th", name), { scope: "col" }))));
  const body = withChildren("tbody", spread(answered).map(({ prompt, before, after, expected }) => {
    const cells = [element("td", prompt), answer(before, expected), answer(after, expected), element("td", expected)];
    cells.at(-1).className = "code";
    cells.forEach((cell, i) => (cell.dataset.label = columns[i]));
    return withChildren("tr", cells);
  }));
  return withChildren("table", [head, body]);
}

/** A few rows from everywhere in the set, which is sorted by command. */
function spread(answered) {
  const distance = Math.ceil(answered.length / SHOWN_ROWS);
  return answered.filter((_, i) => i % distance === 0);
}

/** An answer is marked by a sign and not by colour alone. */
function answer(text, expected) {
  if (text === undefined) return element("td", "…");
  const right = text.trim() === expected.trim();
  const cell = element("td", `${right ? "✓" : "✗"} ${text.trim() || "(nothing)"}`);
  cell.className = `code ${right ? "right" : "wrong"}`;
  return cell;
}

function downloadButton({ name, bytes }) {
  const button = element("button", `Download ${name}`);
  button.type = "button";
  button.onclick = () => {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([bytes]));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  };
  return button;
}

function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function withChildren(tag, children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

// ---- telling the server that started a headless run

let sending = Promise.resolve();

function report(message) {
  if (query.get("report") !== "1") return;
  const body = JSON.stringify(message);
  // One after the other, so that lines arrive in order. Nobody to tell means nobody waits for the run.
  sending = sending.then(() => fetch("/report", { method: "POST", body })).catch(() => worker?.terminate());
}

function fail(code, message) {
  receive({ type: "error", code, message, hint: "Reload the page." });
}

window.addEventListener("error", (event) => fail("page", event.message));
window.addEventListener("unhandledrejection", (event) => fail("page", String(event.reason?.message ?? event.reason)));
window.addEventListener("resize", () => drawCurve(byId("curve"), losses));

// ---- begin

byId("choice").value = query.get("run") ?? query.get("device") ?? "auto";
byId("tune").onclick = () => (worker ? stop("Stopped.") : start());
drawCurve(byId("curve"), losses);
show("device", await describeDevice());
if (query.has("run")) start();
