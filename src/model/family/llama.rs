//! The Llama family: RMSNorm, rotary half-split positions, grouped kv heads, SwiGLU
//! (transformers `modeling_llama.py`, llama.cpp arch `llama`). The other families begin with what is read here.

use super::keys::{GgufKeys, Keys, activation_name, decimal, rope_scaling, size, under};
use super::{Family, Names};
use crate::error::Result;
use crate::model::spec::{ModelSpec, RopeScaling};
use crate::weights::gguf::Metadata;
use serde_json::{Value, json};

pub static FAMILY: Family = Family {
    name: "llama",
    class: "LlamaForCausalLM",
    about: "SmolLM2, TinyLlama, Llama 2 and 3, and others of that architecture",
    arch: "llama",
    hf: HF,
    gguf: GGUF,
    interleaved: true,
    norms_less_one: false,
    from_config: |keys| {
        let spec = decoder(keys, &FAMILY)?;
        let bias = keys.bool_or("attention_bias", false)?;
        Ok(ModelSpec { qkv_bias: bias, o_bias: bias, mlp_bias: keys.bool_or("mlp_bias", false)?, ..spec })
    },
    from_gguf: |keys| {
        let bias = keys.has("blk.0.attn_q.bias");
        let mlp_bias = keys.has("blk.0.ffn_gate.bias");
        Ok(ModelSpec { qkv_bias: bias, o_bias: bias, mlp_bias, ..gguf_decoder(keys, &FAMILY)? })
    },
    to_config: |spec, file| {
        let mut config = config(spec, file)?;
        config["attention_bias"] = spec.o_bias.into();
        config["mlp_bias"] = spec.mlp_bias.into();
        Ok(config)
    },
    to_gguf: gguf_keys,
};

pub const HF: Names = Names {
    embed: "model.embed_tokens",
    positions: "",
    head: "lm_head",
    norm: "model.norm",
    layer: "model.layers",
    attention_norm: "input_layernorm",
    post_attention_norm: "",
    mlp_norm: "post_attention_layernorm",
    post_mlp_norm: "",
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    modules: [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
    transposed: false,
};

pub const GGUF: Names = Names {
    embed: "token_embd",
    positions: "position_embd",
    head: "output",
    norm: "output_norm",
    layer: "blk",
    attention_norm: "attn_norm",
    post_attention_norm: "post_attention_norm",
    mlp_norm: "ffn_norm",
    post_mlp_norm: "post_ffw_norm",
    q_norm: "attn_q_norm",
    k_norm: "attn_k_norm",
    modules: ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"],
    transposed: false,
};

/// What config.json says of any decoder that is built like Llama; no biases, no norms but two a layer.
pub fn decoder(keys: &Keys, family: &'static Family) -> Result<ModelSpec> {
    let (hidden, heads) = (keys.usize("hidden_size")?, keys.usize("num_attention_heads")?);
    Ok(ModelSpec {
        vocab: keys.usize("vocab_size")?,
        hidden,
        layers: keys.usize("num_hidden_layers")?,
        heads,
        kv_heads: keys.optional_usize("num_key_value_heads")?.unwrap_or(heads),
        head_dim: keys.optional_usize("head_dim")?.unwrap_or(hidden / heads.max(1)),
        ffn: keys.usize("intermediate_size")?,
        eps: keys.f64_or("rms_norm_eps", 1e-6)? as f32,
        rope: Some(keys.rope()?),
        tied: keys.bool_or("tie_word_embeddings", false)?,
        activation: keys.activation("hidden_act", "silu")?,
        context: keys.optional_usize("max_position_embeddings")?.unwrap_or(2048),
        ..ModelSpec::plain(family)
    })
}

/// The same from GGUF metadata.
pub fn gguf_decoder(keys: &GgufKeys, family: &'static Family) -> Result<ModelSpec> {
    let (hidden, heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
    let head_dim = keys.optional_size("attention.key_length")?.unwrap_or(hidden / heads.max(1));
    let embedding = keys.gguf.checkpoint.get("token_embd.weight")?;
    Ok(ModelSpec {
        vocab: embedding.rows() as usize,
        hidden,
        layers: keys.size("block_count")?,
        heads,
        kv_heads: keys.optional_size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: keys.size("feed_forward_length")?,
        eps: keys.f32("attention.layer_norm_rms_epsilon")?,
        rope: Some(keys.rope(head_dim)?),
        tied: !keys.has("output.weight"),
        context: keys.optional_size("context_length")?.unwrap_or(2048),
        ..ModelSpec::plain(family)
    })
}

/// The model of an architecture whose q is as wide as the model, whatever the keys say: llama.cpp opens no other.
pub fn square(spec: ModelSpec) -> ModelSpec {
    ModelSpec { head_dim: spec.hidden / spec.heads.max(1), ..spec }
}

/// The inverse of [`gguf_decoder`]. Frequency scaling that has no key is a tensor, and no matter of the metadata.
pub fn gguf_keys(spec: &ModelSpec) -> Metadata {
    let (rope, sized) = (spec.rope.as_ref(), |n| Some(size(n)));
    let factor = rope.and_then(|rope| match rope.scaling {
        RopeScaling::Linear { factor } => Some(factor as f32),
        _ => None,
    });
    let pairs = [
        ("vocab_size", sized(spec.vocab)),
        ("context_length", sized(spec.context)),
        ("embedding_length", sized(spec.hidden)),
        ("block_count", sized(spec.layers)),
        ("feed_forward_length", sized(spec.ffn)),
        ("attention.head_count", sized(spec.heads)),
        ("attention.head_count_kv", sized(spec.kv_heads)),
        ("attention.key_length", sized(spec.head_dim)),
        ("attention.value_length", sized(spec.head_dim)),
        ("attention.layer_norm_rms_epsilon", Some(spec.eps.into())),
        ("rope.dimension_count", rope.map(|_| size(spec.head_dim))),
        ("rope.freq_base", rope.map(|rope| (rope.theta as f32).into())),
        ("rope.scaling.type", factor.map(|_| "linear".into())),
        ("rope.scaling.factor", factor.map(|factor| factor.into())),
    ];
    under(spec.family.arch, pairs)
}

/// The inverse of [`decoder`].
pub fn config(spec: &ModelSpec, file: &str) -> Result<Value> {
    let mut config = json!({
        "architectures": [spec.family.class],
        "model_type": spec.family.name,
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.ffn,
        "hidden_act": activation_name(spec.activation),
        "rms_norm_eps": decimal(spec.eps),
        "tie_word_embeddings": spec.tied,
        "max_position_embeddings": spec.context,
    });
    if let Some(rope) = &spec.rope {
        config["rope_theta"] = rope.theta.into();
        if let Some(scaling) = rope_scaling(rope, spec.head_dim, file)? {
            config["rope_scaling"] = scaling;
        }
    }
    Ok(config)
}
