//! The Llama family: RMSNorm, rotary half-split positions, grouped kv heads, SwiGLU
//! (transformers `modeling_llama.py`, llama.cpp arch `llama`).

use super::Keys;
use crate::error::{Error, Result};
use crate::model::spec::{ModelSpec, Rope, RopeScaling};
use crate::weights::{Gguf, gguf};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub fn from_config(keys: &Keys) -> Result<ModelSpec> {
    let act = keys.str_or("hidden_act", "silu")?;
    if act != "silu" {
        return Err(unsupported(keys.file, format!("hidden_act '{act}' is not supported"), "supported: silu"));
    }
    let (hidden, heads) = (keys.usize("hidden_size")?, keys.usize("num_attention_heads")?);
    Ok(ModelSpec {
        family: "llama".into(),
        vocab: keys.usize("vocab_size")?,
        hidden,
        layers: keys.usize("num_hidden_layers")?,
        heads,
        kv_heads: keys.optional_usize("num_key_value_heads")?.unwrap_or(heads),
        head_dim: keys.optional_usize("head_dim")?.unwrap_or(hidden / heads.max(1)),
        ffn: keys.usize("intermediate_size")?,
        eps: keys.f64_or("rms_norm_eps", 1e-6)? as f32,
        rope: rope(keys)?,
        tied: keys.bool_or("tie_word_embeddings", false)?,
        attention_bias: keys.bool_or("attention_bias", false)?,
        mlp_bias: keys.bool_or("mlp_bias", false)?,
        context: keys.optional_usize("max_position_embeddings")?.unwrap_or(2048),
    })
}

/// Both generations: `rope_parameters` (transformers 5) holds theta and scaling, before it `rope_theta` stood beside
/// `rope_scaling` with `type` or `rope_type`.
fn rope(keys: &Keys) -> Result<Rope> {
    let (name, object) = match &keys.config["rope_parameters"] {
        Value::Null => ("rope_scaling", &keys.config["rope_scaling"]),
        new => ("rope_parameters", new),
    };
    if !(object.is_null() || object.is_object()) {
        return Err(keys.bad(name, &format!("is {object}, expected an object")));
    }
    let inner = Keys { config: object, file: keys.file };
    let theta = match &object["rope_theta"] {
        Value::Null => keys.f64_or("rope_theta", 10000.0)?,
        _ => inner.f64_or("rope_theta", 10000.0)?,
    };
    let number = |key: &str| match object[key].as_f64() {
        Some(v) if v > 0.0 => Ok(v),
        _ => Err(keys.bad(&format!("{name}.{key}"), &format!("is {}, expected a positive number", object[key]))),
    };
    let kind = inner.str_or("rope_type", inner.str_or("type", "default")?)?;
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")?,
        },
        other => {
            let what = format!("rope scaling '{other}' is not supported");
            return Err(unsupported(keys.file, what, "supported: default, linear, llama3"));
        }
    };
    Ok(Rope { theta, scaling })
}

fn unsupported(file: &str, what: String, hint: &str) -> Error {
    Error::Unsupported { file: file.into(), what, hint: hint.into() }
}

pub fn from_gguf(gguf: &Gguf) -> Result<ModelSpec> {
    let key = |name: &str| format!("llama.{name}");
    let size = |name: &str| gguf.u32(&key(name)).map(|v| v as usize);
    let optional = |name: &str| gguf.optional(&key(name), Gguf::u32).map(|v| v.map(|v| v as usize));
    let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
    let head_dim = optional("attention.key_length")?.unwrap_or(hidden / heads.max(1));
    if let Some(rotated) = optional("rope.dimension_count")?.filter(|rotated| *rotated != head_dim) {
        let what = format!("llama.rope.dimension_count is {rotated}, and heads have {head_dim} dimensions");
        return Err(unsupported(gguf.name(), what, "only heads that are rotated as a whole are supported"));
    }
    let checkpoint = &gguf.checkpoint;
    let vocab = checkpoint.get("token_embd.weight")?.rows() as usize;
    Ok(ModelSpec {
        family: "llama".into(),
        vocab,
        hidden,
        layers: size("block_count")?,
        heads,
        kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: size("feed_forward_length")?,
        eps: gguf.f32(&key("attention.layer_norm_rms_epsilon"))?,
        rope: Rope {
            theta: gguf.optional(&key("rope.freq_base"), Gguf::f32)?.unwrap_or(10000.0) as f64,
            scaling: gguf_scaling(gguf)?,
        },
        tied: !checkpoint.has("output.weight"),
        attention_bias: checkpoint.has("blk.0.attn_q.bias"),
        mlp_bias: checkpoint.has("blk.0.ffn_gate.bias"),
        context: optional("context_length")?.unwrap_or(2048),
    })
}

/// The inverse of [`from_gguf`]. Frequency scaling that has no key is a tensor, and no matter of the metadata.
pub fn to_gguf(spec: &ModelSpec) -> BTreeMap<String, gguf::Value> {
    let size = |n: usize| gguf::Value::from(n as u32);
    let mut pairs = vec![
        ("vocab_size", size(spec.vocab)),
        ("context_length", size(spec.context)),
        ("embedding_length", size(spec.hidden)),
        ("block_count", size(spec.layers)),
        ("feed_forward_length", size(spec.ffn)),
        ("attention.head_count", size(spec.heads)),
        ("attention.head_count_kv", size(spec.kv_heads)),
        ("attention.key_length", size(spec.head_dim)),
        ("attention.value_length", size(spec.head_dim)),
        ("attention.layer_norm_rms_epsilon", spec.eps.into()),
        ("rope.dimension_count", size(spec.head_dim)),
        ("rope.freq_base", (spec.rope.theta as f32).into()),
    ];
    if let RopeScaling::Linear { factor } = spec.rope.scaling {
        pairs.extend([("rope.scaling.type", "linear".into()), ("rope.scaling.factor", (factor as f32).into())]);
    }
    pairs.into_iter().map(|(key, value)| (format!("llama.{key}"), value)).collect()
}

/// The inverse of [`from_config`].
pub fn to_config(spec: &ModelSpec, file: &str) -> Result<Value> {
    // The shortest decimal that is this f32: 1e-5 and not 9.999999747378752e-6.
    let eps: f64 = spec.eps.to_string().parse().expect("a number");
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.ffn,
        "hidden_act": "silu",
        "rms_norm_eps": eps,
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": spec.tied,
        "attention_bias": spec.attention_bias,
        "mlp_bias": spec.mlp_bias,
        "max_position_embeddings": spec.context,
    });
    let scaling = match &spec.rope.scaling {
        RopeScaling::Divisors(divisors) => spec.rope.llama3_of(divisors, spec.head_dim).ok_or_else(|| {
            let what = "its rope_freqs.weight is not Llama 3's, and config.json has no name for it".into();
            unsupported(file, what, "merge on the model's safetensors instead")
        })?,
        other => other.clone(),
    };
    match scaling {
        RopeScaling::Linear { factor } => config["rope_scaling"] = json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low, high, original_context } => {
            config["rope_scaling"] = json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original_context as u64,
            });
        }
        RopeScaling::None | RopeScaling::Divisors(_) => {}
    }
    Ok(config)
}

/// `rope_freqs.weight`, where present, is read by the loader; here only metadata count.
fn gguf_scaling(gguf: &Gguf) -> Result<RopeScaling> {
    match gguf.optional("llama.rope.scaling.type", Gguf::str)? {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: gguf.f32("llama.rope.scaling.factor")? as f64 }),
        Some(other) => {
            let what = format!("rope scaling '{other}' is not supported");
            Err(unsupported(gguf.name(), what, "supported: none, linear, and rope_freqs.weight"))
        }
    }
}
