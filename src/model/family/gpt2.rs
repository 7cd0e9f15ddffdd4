//! GPT-2: LayerNorm, learned positions, an MLP without a gate, biases everywhere; q, k and v are one tensor, and
//! transformers keeps the linears' weights as [in, out] (transformers `modeling_gpt2.py`, llama.cpp arch `gpt2`).

use super::keys::{activation_name, decimal, size, under};
use super::{Family, Names, llama};
use crate::model::spec::ModelSpec;
use crate::ops::activation::Activation;
use serde_json::json;

pub static FAMILY: Family = Family {
    name: "gpt2",
    class: "GPT2LMHeadModel",
    about: "GPT-2, DistilGPT2",
    arch: "gpt2",
    hf: Names {
        embed: "transformer.wte",
        positions: "transformer.wpe",
        norm: "transformer.ln_f",
        layer: "transformer.h",
        attention_norm: "ln_1",
        mlp_norm: "ln_2",
        modules: ["attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj", "", "mlp.c_fc", "mlp.c_proj"],
        transposed: true,
        ..llama::HF
    },
    gguf: Names {
        modules: ["attn_qkv", "attn_qkv", "attn_qkv", "attn_output", "", "ffn_up", "ffn_down"],
        ..llama::GGUF
    },
    interleaved: false,
    norms_less_one: false,
    from_config: |keys| {
        keys.only("scale_attn_weights", json!(true))?;
        keys.only("scale_attn_by_inverse_layer_idx", json!(false))?;
        keys.only("add_cross_attention", json!(false))?;
        let (hidden, heads) = (keys.usize("n_embd")?, keys.usize("n_head")?);
        Ok(ModelSpec {
            vocab: keys.usize("vocab_size")?,
            hidden,
            layers: keys.usize("n_layer")?,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads.max(1),
            ffn: keys.optional_usize("n_inner")?.unwrap_or(hidden.saturating_mul(4)),
            eps: keys.f64_or("layer_norm_epsilon", 1e-5)? as f32,
            activation: keys.activation("activation_function", "gelu_new")?,
            tied: keys.bool_or("tie_word_embeddings", true)?,
            context: keys.usize("n_positions")?,
            ..gpt2()
        })
    },
    from_gguf: |keys| {
        let (hidden, heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
        Ok(ModelSpec {
            vocab: keys.gguf.checkpoint.get("token_embd.weight")?.rows() as usize,
            hidden,
            layers: keys.size("block_count")?,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads.max(1),
            ffn: keys.size("feed_forward_length")?,
            eps: keys.f32("attention.layer_norm_epsilon")?,
            tied: !keys.has("output.weight"),
            context: keys.size("context_length")?,
            ..gpt2()
        })
    },
    to_config: |spec, _| {
        Ok(json!({
            "architectures": [spec.family.class],
            "model_type": spec.family.name,
            "vocab_size": spec.vocab,
            "n_embd": spec.hidden,
            "n_layer": spec.layers,
            "n_head": spec.heads,
            "n_inner": spec.ffn,
            "n_positions": spec.context,
            "layer_norm_epsilon": decimal(spec.eps),
            "activation_function": activation_name(spec.activation),
            "tie_word_embeddings": spec.tied,
        }))
    },
    to_gguf: |spec| {
        let pairs = [
            ("vocab_size", Some(size(spec.vocab))),
            ("context_length", Some(size(spec.context))),
            ("embedding_length", Some(size(spec.hidden))),
            ("block_count", Some(size(spec.layers))),
            ("feed_forward_length", Some(size(spec.ffn))),
            ("attention.head_count", Some(size(spec.heads))),
            ("attention.layer_norm_epsilon", Some(spec.eps.into())),
        ];
        under(spec.family.arch, pairs)
    },
};

fn gpt2() -> ModelSpec {
    ModelSpec {
        layer_norm: true,
        rope: None,
        gated: false,
        activation: Activation::GeluTanh,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        ..ModelSpec::plain(&FAMILY)
    }
}
