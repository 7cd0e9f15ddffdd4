// A Llama-shaped training step in jax-js: forward, backward and AdamW in one jit.
// An array is consumed by what uses it; `.ref` keeps it for one more use.
import { init, defaultDevice, numpy as np, random, jit, valueAndGrad, nn, blockUntilReady, tree } from '@jax-js/jax';
import { frequencies, inputIds, measure, projections, targetIds } from './setup.js';

export async function run(o) {
  if (!(await init('webgpu')).includes('webgpu')) throw new Error('jax-js finds no WebGPU');
  defaultDevice('webgpu');
  const { base, adapter } = weights(o);
  const { cos, sin } = angles(o);
  await blockUntilReady([base, adapter, cos, sin]);

  const update = updater(o);
  let trained = o.lora ? adapter : base;
  const frozen = o.lora ? base : {};
  let m = zerosLike(trained), v = zerosLike(trained);
  const size = Object.values(trained).reduce((sum, x) => sum + x.size, 0);
  return measure(o, size, async t => {
    const correction = np.array([1 / (1 - 0.9 ** t), 1 / (1 - 0.999 ** t)]);
    const ids = np.array(inputIds(o)), targets = np.array(targetIds(o));
    let loss;
    [loss, trained, m, v] = update(trained, tree.ref(frozen), cos.ref, sin.ref, m, v, correction, ids, targets);
    const value = await loss.jsAsync();
    await blockUntilReady(trained);
    return value;
  });
}

function weights(o) {
  let seed = 1;
  const normal = shape => random.normal(random.key(seed++), shape).mul(0.02);
  const base = { embed: normal([o.V, o.D]), norm: np.ones([o.D]) }, adapter = {};
  for (let l = 0; l < o.L; l++) {
    for (const [name, [input, output]] of Object.entries(projections(o))) {
      base[name + l] = normal([input, output]);
      if (!o.lora) continue;
      adapter['A' + name + l] = normal([input, o.R]);
      adapter['B' + name + l] = np.zeros([o.R, output]);
    }
    base['attention_norm' + l] = np.ones([o.D]);
    base['mlp_norm' + l] = np.ones([o.D]);
  }
  return { base, adapter };
}

function angles({ T, D, H }) {
  const half = D / H / 2;
  const angle = np.outer(np.arange(T).astype(np.float32), np.array(frequencies(half)));
  return { cos: np.cos(angle.ref).reshape([1, T, 1, half]), sin: np.sin(angle).reshape([1, T, 1, half]) };
}

function zerosLike(arrays) {
  return Object.fromEntries(Object.entries(arrays).map(([k, x]) => [k, np.zeros(x.shape)]));
}

function rmsNorm(x, w) {
  const mean = np.mean(np.square(x.ref), -1, { keepdims: true });
  return x.mul(np.reciprocal(np.sqrt(mean.add(1e-5)))).mul(w);
}

function rotate(x, cos, sin, half) {
  const a = x.ref.slice([], [], [], [0, half]), b = x.slice([], [], [], [half]);
  return np.concatenate([a.ref.mul(cos.ref).sub(b.ref.mul(sin.ref)), b.mul(cos).add(a.mul(sin))], -1);
}

// Mean cross-entropy of a batch.
function lossFunction(o) {
  const { D, L, H, V, T, B, R, lora } = o;
  const half = D / H / 2;
  return (trained, frozen, cos, sin, ids, targets) => {
    const p = lora ? frozen : trained;
    const linear = (x, name) => {
      if (!lora) return np.dot(x, p[name].ref);
      const low = np.dot(np.dot(x.ref, trained['A' + name].ref), trained['B' + name].ref);
      return np.dot(x, p[name].ref).add(low.mul(o.alpha / R));
    };
    const heads = x => x.reshape([B, T, H, D / H]);
    let x = np.dot(nn.oneHot(ids, V), p.embed.ref).reshape([B, T, D]);
    for (let l = 0; l < L; l++) {
      const h = rmsNorm(x.ref, p['attention_norm' + l].ref);
      const q = rotate(heads(linear(h.ref, 'q' + l)), cos.ref, sin.ref, half);
      const k = rotate(heads(linear(h.ref, 'k' + l)), cos.ref, sin.ref, half);
      const v = heads(linear(h, 'v' + l));
      const attended = nn.dotProductAttention(q, k, v, { isCausal: true }).reshape([B, T, D]);
      x = x.add(linear(attended, 'o' + l));
      const z = rmsNorm(x.ref, p['mlp_norm' + l].ref);
      x = x.add(linear(nn.silu(linear(z.ref, 'gate' + l)).mul(linear(z, 'up' + l)), 'down' + l));
    }
    const logits = np.dot(rmsNorm(x, p.norm.ref).reshape([B * T, D]), np.transpose(p.embed.ref));
    const loss = nn.logSoftmax(logits, -1).mul(nn.oneHot(targets, V)).sum().mul(-1 / (B * T));
    tree.dispose([trained, frozen, cos, sin]);
    return loss;
  };
}

// (parameters, moments) -> (loss, new parameters, new moments).
function updater(o) {
  const lossAndGradients = valueAndGrad(lossFunction(o));
  return jit((trained, frozen, cos, sin, m, v, correction, ids, targets) => {
    const [loss, gradients] = lossAndGradients(tree.ref(trained), frozen, cos, sin, ids, targets);
    const c1 = correction.ref.slice(0), c2 = correction.slice(1);
    const newTrained = {}, newM = {}, newV = {};
    for (const k in trained) {
      const m1 = m[k].mul(0.9).add(gradients[k].ref.mul(0.1));
      const v1 = v[k].mul(0.999).add(np.square(gradients[k]).mul(0.001));
      const change = m1.ref.mul(c1.ref).div(np.sqrt(v1.ref.mul(c2.ref)).add(1e-8));
      newTrained[k] = trained[k].mul(1 - 1e-3 * 0.01).sub(change.mul(1e-3));
      newM[k] = m1;
      newV[k] = v1;
    }
    tree.dispose([c1, c2]);
    return [loss, newTrained, newM, newV];
  });
}
