// Luthier's own step on the same net, through the same wasm as its page: random weights in a Hugging Face folder made here.
import { measure, projections } from './setup.js';

export async function run(o, device = 'webgpu') {
  if (!o.lora) throw new Error('luthier tunes LoRA only: leave lora=0 out');
  const { default: init, Session } = await import('/pkg/luthier.js');
  await init({ module_or_path: '/pkg/luthier_bg.wasm' });
  const session = await Session.create(model(o), { device, name: 'small' }, () => {});
  const options = {
    rank: o.R, alpha: o.alpha, batch_size: o.B, seq_len: o.T, steps: o.warmup + o.steps, lr: 1e-3,
    val_fraction: 0, no_shuffle: true, no_packing: true,
  };
  const data = JSON.stringify({ name: 'bench.jsonl', text: rows(o) });
  const summary = JSON.parse(await session.start_training(data, undefined, JSON.stringify(options), undefined));
  return { on: JSON.parse(session.device()).description, ...await measure(o, summary.trainable_parameters, async () => {
    const { reports } = JSON.parse(await session.step());
    reports.push(...JSON.parse(await session.reports()));
    return reports.at(-1).loss;
  }) };
}

// B texts of T bytes, each a token.
function rows({ B, T }) {
  const byte = i => String.fromCharCode(97 + (i * 7 + 3) % 26);
  const text = row => Array.from({ length: T }, (_, i) => byte(row * 5 + i)).join('');
  return Array.from({ length: B }, (_, row) => JSON.stringify({ text: text(row) })).join('\n');
}

function model(o) {
  const json = value => new Blob([JSON.stringify(value)]);
  return [
    { name: 'config.json', blob: json({
      model_type: 'llama', vocab_size: o.V, hidden_size: o.D, intermediate_size: o.F, num_hidden_layers: o.L,
      num_attention_heads: o.H, num_key_value_heads: o.H, rms_norm_eps: 1e-5, rope_theta: 10000,
      max_position_embeddings: o.T, tie_word_embeddings: true, eos_token_id: 0,
    }) },
    { name: 'tokenizer.json', blob: json(tokenizer(o)) },
    { name: 'tokenizer_config.json', blob: json({ eos_token: alphabet()[0], add_eos_token: false }) },
    { name: 'model.safetensors', blob: new Blob(safetensors(tensors(o))) },
  ];
}

// GPT-2's letters for the 256 bytes.
function alphabet() {
  const shown = [[33, 126], [161, 172], [174, 255]].flatMap(([a, b]) => Array.from({ length: b - a + 1 }, (_, i) => a + i));
  let other = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(shown.includes(byte) ? byte : other++));
}

function tokenizer({ V }) {
  const vocab = Object.fromEntries(alphabet().slice(0, V).map((letter, id) => [letter, id]));
  const bytes = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: '1.0', truncation: null, padding: null, added_tokens: [], normalizer: null, pre_tokenizer: bytes,
    post_processor: null, decoder: bytes, model: {
      type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null,
      fuse_unk: false, byte_fallback: false, ignore_merges: false, vocab, merges: [],
    },
  };
}

function tensors(o) {
  const all = [['model.embed_tokens.weight', [o.V, o.D]], ['model.norm.weight', [o.D]]];
  const parts = { q: 'self_attn.q_proj', k: 'self_attn.k_proj', v: 'self_attn.v_proj', o: 'self_attn.o_proj',
    gate: 'mlp.gate_proj', up: 'mlp.up_proj', down: 'mlp.down_proj' };
  for (let l = 0; l < o.L; l++) {
    for (const [name, [input, output]] of Object.entries(projections(o))) {
      all.push([`model.layers.${l}.${parts[name]}.weight`, [output, input]]);
    }
    for (const norm of ['input_layernorm', 'post_attention_layernorm']) {
      all.push([`model.layers.${l}.${norm}.weight`, [o.D]]);
    }
  }
  return all;
}

// Norms are 1, matrices normal with deviation 0.02.
function safetensors(all) {
  const header = {}, parts = [];
  let at = 0, seed = 1;
  const uniform = () => ((seed = Math.imul(seed, 1664525) + 1013904223 >>> 0) + 0.5) / 2 ** 32;
  const normal = () => 0.02 * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  for (const [name, shape] of all) {
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, shape.length === 1 ? () => 1 : normal);
    header[name] = { dtype: 'F32', shape, data_offsets: [at, at += values.byteLength] };
    parts.push(values);
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const padded = new Uint8Array(Math.ceil(text.length / 8) * 8).fill(32);
  padded.set(text);
  return [new BigUint64Array([BigInt(padded.length)]), padded, ...parts];
}
