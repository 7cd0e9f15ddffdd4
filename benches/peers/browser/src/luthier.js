// Luthier's own step on the same net, through the same wasm as its page: random weights.
import { hasRelaxedSimd } from '../../../../www/luthier-web/src/build.ts';
import { files, texts } from '../../../../www/src/bench/net.ts';
import { measure } from './setup.js';

export async function run(o, device = 'webgpu') {
  const engine = hasRelaxedSimd() ? '/pkg/luthier_relaxed' : '/pkg/luthier';
  const { default: init, Session } = await import(`${engine}.js`);
  await init({ module_or_path: `${engine}_bg.wasm` });
  const session = await Session.create(files(o), { device, name: 'small' }, () => {});
  const options = {
    ...(o.lora ? { rank: o.R, alpha: o.alpha } : { method: 'full' }), batch_size: o.B, seq_len: o.T, steps: o.warmup + o.steps, lr: 1e-3,
    val_fraction: 0, no_shuffle: true, no_packing: true,
  };
  const data = JSON.stringify({ name: 'bench.jsonl', text: texts(o.B, o.T) });
  const summary = JSON.parse(await session.start_training(data, undefined, JSON.stringify(options), undefined));
  return { on: JSON.parse(session.device()).description, ...await measure(o, summary.trainable_parameters, async () => {
    const { reports } = JSON.parse(await session.step());
    reports.push(...JSON.parse(await session.reports()));
    return reports.at(-1).loss;
  }) };
}
