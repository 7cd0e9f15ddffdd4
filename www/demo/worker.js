// The worker owns the engine: it loads it, asks the base model, trains, asks again, and posts what happens. Messages:
//   {type: "log", text}                                    a stage begins
//   {type: "device", device}                               what the engine runs on
//   {type: "plan", summary}                                rows, tokens, trainable parameters, memory
//   {type: "progress", done, total}                        how far the stage is
//   {type: "step", step, steps, loss, lr, tokens_per_sec, val_loss?, …}
//   {type: "score", phase, set, exact, total, rows}        phase "before" or "after"; rows {prompt, expected, answer}
//   {type: "adapter", files}                               files of {name, bytes}
//   {type: "done", seconds}
//   {type: "error", code, message, hint}
// The page renders them; a headless run forwards them, the adapter apart, to the server that started it.

const SETS = ["values", "phrasings"];
/** Prompts asked at a time: few enough for progress to show on a slow device. */
const PROMPTS = 16;

// A panic reaches us as "unreachable"; what it had to say went to console.error just before.
let lastConsoleError = "";
const consoleError = console.error;
console.error = (...parts) => {
  lastConsoleError = parts.join(" ");
  consoleError(...parts);
};

const say = (message, transfer = []) => self.postMessage(message, transfer);

// A panic in a future of the engine's never comes back through the promise that waits for it.
self.addEventListener("error", (event) => {
  event.preventDefault();
  say(failure(event.error ?? event.message));
});

self.onmessage = async ({ data: { device, steps } }) => {
  const start = performance.now();
  try {
    await run(device, steps);
    say({ type: "done", seconds: (performance.now() - start) / 1000 });
  } catch (error) {
    say(failure(error));
  }
};

async function run(device, steps) {
  say({ type: "log", text: "Loading the engine and the model" });
  const recipe = JSON.parse(await text("recipe.json"));
  const { default: init, Session } = await import("./pkg/luthier.js");
  await init();
  const session = await Session.create(await Promise.all(recipe.model.map(modelFile)), { device, name: "nano" });
  say({ type: "device", device: JSON.parse(session.device()).description });

  const heldOut = {};
  for (const set of SETS) heldOut[set] = (await text(recipe.data[set])).split("\n").filter(Boolean).map(exchange);
  const generation = { max_new_tokens: recipe.max_new_tokens, temperature: 0, chat: true };

  say({ type: "log", text: "Asking the base model" });
  await score(session, heldOut, "before", { ...generation, adapter: false });
  say({ type: "log", text: "Training" });
  await train(session, recipe, steps);
  say({ type: "log", text: "Asking the tuned model" });
  await score(session, heldOut, "after", { ...generation, adapter: true });

  const files = (await session.adapter_files()).map(({ name, bytes }) => ({ name, bytes: bytes.slice() }));
  say({ type: "adapter", files }, files.map((file) => file.bytes.buffer));
}

async function train(session, recipe, steps) {
  const options = { ...recipe.options, ...(steps && { steps }) };
  const data = await text(recipe.data.train);
  const name = recipe.data.train.split("/").pop();
  const given = JSON.stringify({ name, text: data });
  const summary = JSON.parse(await session.start_training(given, undefined, JSON.stringify(options)));
  say({ type: "plan", summary });
  for (let done = false; !done; ) {
    const result = JSON.parse(await session.step());
    for (const report of result.reports) say({ type: "step", steps: options.steps, ...report });
    done = result.done;
  }
}

/** Asks all held-out questions; an answer is right when it equals the expected one but for space around it. */
async function score(session, heldOut, phase, options) {
  const total = SETS.reduce((sum, set) => sum + heldOut[set].length, 0);
  let done = 0;
  for (const set of SETS) {
    const rows = [];
    for (let at = 0; at < heldOut[set].length; at += PROMPTS) {
      const asked = heldOut[set].slice(at, at + PROMPTS);
      const prompts = JSON.stringify(asked.map((row) => row.prompt));
      const answers = JSON.parse(await session.generate(prompts, JSON.stringify(options)));
      asked.forEach((row, i) => rows.push({ ...row, answer: answers[i].text }));
      done += asked.length;
      say({ type: "progress", done, total });
    }
    const exact = rows.filter((row) => row.answer.trim() === row.expected.trim()).length;
    say({ type: "score", phase, set, exact, total: rows.length, rows });
  }
}

/** A line of a demo file: what is asked and what should come back. */
function exchange(line) {
  const { prompt, completion } = JSON.parse(line);
  return { prompt, expected: completion };
}

async function modelFile(name) {
  return { name, blob: await (await get(`models/nano/${name}`)).blob() };
}

async function text(path) {
  return (await get(path)).text();
}

async function get(path) {
  const response = await fetch(path);
  if (response.ok) return response;
  throw { code: "fetch", message: `${path}: the server answered ${response.status}`, hint: "Reload the page." };
}

/** The engine throws {code, message, hint}; anything else is a fault of ours or the browser's. */
function failure(error) {
  if (error?.code && error?.message) {
    return { type: "error", code: String(error.code), message: String(error.message), hint: String(error.hint ?? "") };
  }
  const message = (error instanceof WebAssembly.RuntimeError && lastConsoleError) || String(error?.message ?? error);
  return { type: "error", code: "internal", message, hint: "Reload the page and try the other device." };
}
