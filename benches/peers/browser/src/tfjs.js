// The same training step in TensorFlow.js on WebGPU, with its own Adam.
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-webgpu';
import '@tensorflow/tfjs-core/dist/register_all_gradients';
import { frequencies, inputIds, measure, projections, targetIds } from './setup.js';

export async function run(o) {
  if (!await tf.setBackend('webgpu')) throw new Error('tfjs finds no WebGPU');
  await tf.ready();
  const p = weights(o);
  const trained = Object.values(p).filter(x => x.trainable);
  const loss = lossFunction(o, p);
  const optimizer = tf.train.adam(1e-3);
  const size = trained.reduce((sum, x) => sum + x.size, 0);
  return measure(o, size, async () => {
    const value = optimizer.minimize(loss, true, trained);
    const [number] = await value.data();
    value.dispose();
    await tf.backend().queue.onSubmittedWorkDone();
    return number;
  });
}

function weights(o) {
  const p = {};
  const base = (name, x) => { p[name] = tf.variable(x, !o.lora, name); };
  base('embed', tf.randomNormal([o.V, o.D], 0, 0.02));
  base('norm', tf.ones([o.D]));
  for (let l = 0; l < o.L; l++) {
    for (const [name, [input, output]] of Object.entries(projections(o))) {
      base(name + l, tf.randomNormal([input, output], 0, 0.02));
      if (!o.lora) continue;
      p['A' + name + l] = tf.variable(tf.randomNormal([input, o.R], 0, 0.02), true);
      p['B' + name + l] = tf.variable(tf.zeros([o.R, output]), true);
    }
    base('attention_norm' + l, tf.ones([o.D]));
    base('mlp_norm' + l, tf.ones([o.D]));
  }
  return p;
}

const rmsNorm = (x, w) => tf.mul(tf.mul(x, tf.rsqrt(tf.add(tf.mean(tf.square(x), -1, true), 1e-5))), w);

function tables({ D, H, T, V, ...o }) {
  const half = D / H / 2;
  const angle = tf.outerProduct(tf.range(0, T), tf.tensor1d(frequencies(half)));
  const mask = Array.from({ length: T }, (_, i) => Array.from({ length: T }, (_, j) => (j <= i ? 0 : -1e9)));
  const oneHot = ids => tf.cast(tf.oneHot(tf.tensor1d(ids, 'int32'), V), 'float32');
  return {
    cos: tf.reshape(tf.cos(angle), [1, 1, T, half]), sin: tf.reshape(tf.sin(angle), [1, 1, T, half]),
    mask: tf.tensor4d([[mask]]), inputs: oneHot(inputIds({ T, V, ...o })), targets: oneHot(targetIds({ T, V, ...o })),
  };
}

// Mean cross-entropy of a batch.
function lossFunction(o, p) {
  const { D, L, H, T, B, R, lora } = o;
  const half = D / H / 2;
  const { cos, sin, mask, inputs, targets } = tables(o);
  const linear = (x, name) => {
    const y = tf.matMul(x, p[name]);
    return lora ? tf.add(y, tf.mul(tf.matMul(tf.matMul(x, p['A' + name]), p['B' + name]), o.alpha / R)) : y;
  };
  const heads = x => tf.transpose(tf.reshape(x, [B, T, H, D / H]), [0, 2, 1, 3]);
  const rotate = x => {
    const [a, b] = tf.split(x, 2, 3);
    return tf.concat([tf.sub(tf.mul(a, cos), tf.mul(b, sin)), tf.add(tf.mul(b, cos), tf.mul(a, sin))], -1);
  };
  const attention = h => {
    const [q, k, v] = ['q', 'k', 'v'].map(name => heads(h(name)));
    const scores = tf.mul(tf.matMul(rotate(q), rotate(k), false, true), 1 / Math.sqrt(D / H));
    const attended = tf.matMul(tf.softmax(tf.add(scores, mask)), v);
    return tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), [B * T, D]);
  };
  return () => {
    let x = tf.matMul(inputs, p.embed);
    for (let l = 0; l < L; l++) {
      const h = rmsNorm(x, p['attention_norm' + l]);
      x = tf.add(x, linear(attention(name => linear(h, name + l)), 'o' + l));
      const z = rmsNorm(x, p['mlp_norm' + l]);
      const gate = linear(z, 'gate' + l);
      x = tf.add(x, linear(tf.mul(tf.mul(gate, tf.sigmoid(gate)), linear(z, 'up' + l)), 'down' + l));
    }
    const logits = tf.matMul(rmsNorm(x, p.norm), p.embed, false, true);
    return tf.mul(tf.sum(tf.mul(tf.logSoftmax(logits), targets)), -1 / (B * T));
  };
}
