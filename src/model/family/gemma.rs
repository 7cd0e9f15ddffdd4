//! Gemma 2 and Gemma 3 (text): norms before and after attention and MLP whose weights are kept less 1, embeddings
//! times √C, GeGLU, layers that see only the nearest positions between layers that see all. Gemma 2 caps scores and
//! logits; Gemma 3 norms each head of q and k, and rotates its local layers at frequencies of their own
//! (transformers `modeling_gemma2.py`, `modeling_gemma3.py`; llama.cpp archs `gemma2`, `gemma3`).

use super::keys::{GgufKeys, Keys, WINDOW, activation_name, all_but_every, layer_types, size, under};
use super::llama::{self, config, decoder, gguf_decoder, gguf_keys};
use super::{Family, Names};
use crate::error::Result;
use crate::model::spec::{Local, ModelSpec, Rope, RopeScaling};
use crate::ops::activation::Activation;
use crate::weights::gguf::Metadata;
use serde_json::{Value, json};

const HF: Names = Names {
    post_attention_norm: "post_attention_layernorm",
    mlp_norm: "pre_feedforward_layernorm",
    post_mlp_norm: "post_feedforward_layernorm",
    ..llama::HF
};

pub static GEMMA2: Family = Family {
    name: "gemma2",
    class: "Gemma2ForCausalLM",
    about: "Gemma 2",
    arch: "gemma2",
    hf: HF,
    gguf: llama::GGUF,
    interleaved: false,
    norms_less_one: true,
    from_config: |keys| {
        let spec = gemma(keys, &GEMMA2, 10000.0)?;
        let layers = keys.local_layers(spec.layers, 2)?;
        let local = Some(Local { window: keys.optional_usize("sliding_window")?.unwrap_or(4096), layers, rope: None });
        Ok(ModelSpec { local, attention_cap: cap(keys, ATTENTION_CAP)?, final_cap: cap(keys, FINAL_CAP)?, ..spec })
    },
    from_gguf: |keys| {
        let spec = gguf_gemma(keys, &GEMMA2, 46)?;
        let window = keys.optional_size(WINDOW)?.unwrap_or(4096);
        let local = Some(Local { window, layers: all_but_every(2, spec.layers), rope: None });
        let attention_cap = Some(keys.optional_f32(ATTENTION_CAP)?.unwrap_or(50.0));
        let final_cap = Some(keys.optional_f32(FINAL_CAP)?.unwrap_or(30.0));
        Ok(ModelSpec { local, attention_cap, final_cap, ..spec })
    },
    to_config: gemma_config,
    to_gguf: gemma_keys,
};

pub static GEMMA3: Family = Family {
    name: "gemma3_text",
    class: "Gemma3ForCausalLM",
    about: "Gemma 3, text only",
    arch: "gemma3",
    hf: HF,
    gguf: llama::GGUF,
    interleaved: false,
    norms_less_one: true,
    from_config: |keys| {
        keys.only("use_bidirectional_attention", json!(false))?;
        let spec = gemma(keys, &GEMMA3, 1e6)?;
        let layers = keys.local_layers(spec.layers, keys.optional_usize("sliding_window_pattern")?.unwrap_or(6))?;
        let window = keys.optional_usize("sliding_window")?.unwrap_or(4096);
        let local = Some(Local { window, layers, rope: Some(local_rope(keys)?) });
        let caps = (cap(keys, ATTENTION_CAP)?, cap(keys, FINAL_CAP)?);
        Ok(ModelSpec { local, qk_norm: true, attention_cap: caps.0, final_cap: caps.1, ..spec })
    },
    from_gguf: |keys| {
        let spec = gguf_gemma(keys, &GEMMA3, 62)?;
        let pattern = keys.optional_size(PATTERN)?.unwrap_or(6);
        let theta = keys.optional_f32(LOCAL_THETA)?.unwrap_or(10000.0) as f64;
        let local = Some(Local {
            window: keys.size(WINDOW)?,
            layers: all_but_every(pattern.max(1), spec.layers),
            rope: Some(Rope { theta, scaling: RopeScaling::None }),
        });
        Ok(ModelSpec { local, qk_norm: true, final_cap: keys.optional_f32(FINAL_CAP)?, ..spec })
    },
    to_config: gemma_config,
    to_gguf: |spec| {
        let pattern = spec.local.as_ref().and_then(|local| pattern(&local.layers));
        let rope = spec.local.as_ref().and_then(|local| local.rope.as_ref());
        let theta = rope.map(|rope| (rope.theta as f32).into());
        let mut keys = gemma_keys(spec);
        keys.extend(under(spec.family.arch, [(PATTERN, pattern.map(size)), (LOCAL_THETA, theta)]));
        keys
    },
};

const ATTENTION_CAP: &str = "attn_logit_softcapping";
const FINAL_CAP: &str = "final_logit_softcapping";
const PATTERN: &str = "attention.sliding_window_pattern";
const LOCAL_THETA: &str = "rope.freq_base_swa";

fn cap(keys: &Keys, key: &str) -> Result<Option<f32>> {
    Ok(keys.optional_f64(key)?.map(|cap| cap as f32))
}

/// What both have of Gemma; `theta` where the file says nothing.
fn gemma(keys: &Keys, family: &'static Family, theta: f64) -> Result<ModelSpec> {
    let bias = keys.bool_or("attention_bias", false)?;
    let head_dim = keys.optional_usize("head_dim")?.unwrap_or(256);
    let scalar = keys.f64_or("query_pre_attn_scalar", 256.0)? as f32;
    let spec = common(decoder(keys, family)?);
    Ok(ModelSpec {
        head_dim,
        rope: Some(global_rope(keys, theta)?),
        tied: keys.bool_or("tie_word_embeddings", true)?,
        activation: keys.activation("hidden_activation", "gelu_pytorch_tanh")?,
        query_scalar: (scalar != head_dim as f32).then_some(scalar),
        qkv_bias: bias,
        o_bias: bias,
        ..spec
    })
}

fn common(spec: ModelSpec) -> ModelSpec {
    let embed_scale = (spec.hidden as f32).sqrt();
    ModelSpec { post_norms: true, activation: Activation::GeluTanh, embed_scale, ..spec }
}

/// llama.cpp tells the model of `largest` layers, the only one whose scores are not divided by √head_dim, by its depth;
/// it divides whole numbers.
fn gguf_gemma(keys: &GgufKeys, family: &'static Family, largest: usize) -> Result<ModelSpec> {
    let spec = common(gguf_decoder(keys, family)?);
    let scalar = (spec.layers == largest).then_some((spec.hidden / spec.heads.max(1)) as f32);
    Ok(ModelSpec { query_scalar: scalar, ..spec })
}

/// transformers 5 keeps Gemma 3's rotary settings by type of layer; before it `rope_scaling` was the global layers'.
fn global_rope(keys: &Keys, theta: f64) -> Result<Rope> {
    let theta = keys.f64_or("rope_theta", theta)?;
    match &keys.config["rope_parameters"] {
        Value::Null => keys.rope_in("rope_scaling", &keys.config["rope_scaling"], theta),
        nested if nested["full_attention"].is_object() => {
            keys.rope_in("rope_parameters.full_attention", &nested["full_attention"], theta)
        }
        plain => keys.rope_in("rope_parameters", plain, theta),
    }
}

fn local_rope(keys: &Keys) -> Result<Rope> {
    let theta = keys.f64_or("rope_local_base_freq", 10000.0)?;
    keys.rope_in("rope_parameters.sliding_attention", &keys.config["rope_parameters"]["sliding_attention"], theta)
}

fn gemma_config(spec: &ModelSpec, file: &str) -> Result<Value> {
    let mut config = config(spec, file)?;
    config["hidden_activation"] = activation_name(spec.activation).into();
    config["query_pre_attn_scalar"] = spec.query_scalar.unwrap_or(spec.head_dim as f32).into();
    config["attention_bias"] = spec.o_bias.into();
    config[ATTENTION_CAP] = spec.attention_cap.into();
    config[FINAL_CAP] = spec.final_cap.into();
    if let Some(local) = &spec.local {
        config["sliding_window"] = local.window.into();
        config["layer_types"] = layer_types(&local.layers);
        if let Some(rope) = &local.rope {
            config["rope_local_base_freq"] = rope.theta.into();
        }
    }
    Ok(config)
}

/// What both have in a GGUF file.
fn gemma_keys(spec: &ModelSpec) -> Metadata {
    let mut keys = gguf_keys(spec);
    let pairs = [
        (WINDOW, spec.local.as_ref().map(|local| size(local.window))),
        (ATTENTION_CAP, spec.attention_cap.map(|cap| cap.into())),
        (FINAL_CAP, spec.final_cap.map(|cap| cap.into())),
    ];
    keys.extend(under(spec.family.arch, pairs));
    keys
}

/// The inverse of [`all_but_every`]: that of the published models where several are.
fn pattern(local: &[bool]) -> Option<usize> {
    [6].into_iter().chain(1..=local.len() + 1).find(|pattern| all_but_every(*pattern, local.len()) == local)
}
