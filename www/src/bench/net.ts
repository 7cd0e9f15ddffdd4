/** A Llama of any size with random weights, as the files of a Hugging Face folder. The peers' bench takes it from here, too. */

/** Width D, layers L, heads H, feed-forward F, vocabulary V (of bytes: 256 at most), positions T. */
export interface Net {
  D: number;
  L: number;
  H: number;
  F: number;
  V: number;
  T: number;
}

/** The net that the peers of benches/peers are compared on. */
export const SMALL: Net = { D: 64, L: 2, H: 4, F: 176, V: 256, T: 64 };

export function files(net: Net): { name: string; blob: Blob }[] {
  const json = (value: unknown) => new Blob([JSON.stringify(value)]);
  const config = {
    model_type: "llama", vocab_size: net.V, hidden_size: net.D, intermediate_size: net.F, num_hidden_layers: net.L,
    num_attention_heads: net.H, num_key_value_heads: net.H, rms_norm_eps: 1e-5, rope_theta: 10000,
    max_position_embeddings: net.T, tie_word_embeddings: true, eos_token_id: 0,
  };
  return [
    { name: "config.json", blob: json(config) },
    { name: "tokenizer.json", blob: json(tokenizer(net)) },
    { name: "tokenizer_config.json", blob: json({ eos_token: alphabet()[0], add_eos_token: false }) },
    { name: "model.safetensors", blob: new Blob(safetensors(tensors(net))) },
  ];
}

/** Lines of JSON, each a text of `length` bytes, which are a token each. */
export function texts(rows: number, length: number): string {
  const byte = (i: number) => String.fromCharCode(97 + (i * 7 + 3) % 26);
  const text = (row: number) => Array.from({ length }, (_, i) => byte(row * 5 + i)).join("");
  return Array.from({ length: rows }, (_, row) => JSON.stringify({ text: text(row) })).join("\n");
}

/** GPT-2's letters for the 256 bytes. */
function alphabet(): string[] {
  const ranges: [number, number][] = [[33, 126], [161, 172], [174, 255]];
  const shown = (byte: number) => ranges.some(([from, to]) => byte >= from && byte <= to);
  let other = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(shown(byte) ? byte : other++));
}

function tokenizer({ V }: Net) {
  const vocab = Object.fromEntries(alphabet().slice(0, V).map((letter, id) => [letter, id]));
  const bytes = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: "1.0", truncation: null, padding: null, added_tokens: [], normalizer: null, pre_tokenizer: bytes,
    post_processor: null, decoder: bytes, model: {
      type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null,
      fuse_unk: false, byte_fallback: false, ignore_merges: false, vocab, merges: [],
    },
  };
}

type Shape = [name: string, shape: number[]];

function tensors({ D, L, F, V }: Net): Shape[] {
  const all: Shape[] = [["model.embed_tokens.weight", [V, D]], ["model.norm.weight", [D]]];
  const linears: Shape[] = [
    ["self_attn.q_proj", [D, D]], ["self_attn.k_proj", [D, D]], ["self_attn.v_proj", [D, D]], ["self_attn.o_proj", [D, D]],
    ["mlp.gate_proj", [F, D]], ["mlp.up_proj", [F, D]], ["mlp.down_proj", [D, F]],
    ["input_layernorm", [D]], ["post_attention_layernorm", [D]],
  ];
  for (let l = 0; l < L; l++) all.push(...linears.map(([name, shape]): Shape => [`model.layers.${l}.${name}.weight`, shape]));
  return all;
}

/** Norms are 1, matrices normal with deviation 0.02. */
function safetensors(all: Shape[]): BlobPart[] {
  const header: Record<string, unknown> = {};
  const values: BlobPart[] = [];
  let at = 0;
  let seed = 1;
  const uniform = () => ((seed = Math.imul(seed, 1664525) + 1013904223 >>> 0) + 0.5) / 2 ** 32;
  const normal = () => 0.02 * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  for (const [name, shape] of all) {
    const numbers = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, shape.length === 1 ? () => 1 : normal);
    header[name] = { dtype: "F32", shape, data_offsets: [at, at += numbers.byteLength] };
    values.push(numbers);
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const padded = new Uint8Array(Math.ceil(text.length / 8) * 8).fill(32);
  padded.set(text);
  return [new BigUint64Array([BigInt(padded.length)]), padded, ...values];
}
