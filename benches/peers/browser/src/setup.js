// What all pages share: the net, the data and what is reported of a run.

// Width D, layers L, heads H, feed-forward F, vocabulary V; B rows of T tokens; rank R.
export const defaults = {
  D: 64, L: 2, H: 4, F: 176, V: 256, T: 64, B: 4, R: 8, alpha: 16, lora: true, steps: 20, warmup: 3,
};

// [in, out] of the projections of a block.
export const projections = ({ D, F }) => ({
  q: [D, D], k: [D, D], v: [D, D], o: [D, D], gate: [D, F], up: [D, F], down: [F, D],
});

export const inputIds = ({ B, T, V }) => Int32Array.from({ length: B * T }, (_, i) => (i * 7 + 3) % V);
export const targetIds = ({ B, T, V }) => Int32Array.from({ length: B * T }, (_, i) => ((i + 1) * 7 + 3) % V);
export const frequencies = half => Array.from({ length: half }, (_, i) => 10000 ** (-i / half));

// Runs `step` (which resolves to the loss when the device is done) and reports its times after the warm-up.
export async function measure(o, trainable, step) {
  const times = [], losses = [];
  for (let i = 1; i <= o.warmup + o.steps; i++) {
    const start = performance.now();
    losses.push(await step(i));
    times.push(performance.now() - start);
  }
  const sorted = times.slice(o.warmup).sort((a, b) => a - b);
  const median = sorted[sorted.length >> 1];
  return {
    case: o.lora ? 'lora' : 'full', batch: o.B, tokens: o.T, trainable, steps: o.steps,
    first_ms: +times[0].toFixed(1), median_ms: +median.toFixed(2), min_ms: +sorted[0].toFixed(2),
    tokens_per_s: +(o.B * o.T / median * 1e3).toFixed(1),
    loss_first: +losses[0].toFixed(4), loss_last: +losses.at(-1).toFixed(4),
  };
}
