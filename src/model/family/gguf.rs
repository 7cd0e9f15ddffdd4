//! A model's keys in a GGUF file, for a model that came without.
//!
//! Of most settings there is no key: readers take them for granted, and what they take for granted of a family stands
//! in its `from_gguf`. So the keys are read back here, and a model that would come out as another one is refused.

use super::keys::{GgufKeys, activation_name, decimal};
use crate::error::{Error, Result};
use crate::model::spec::{ModelSpec, Rope, RopeScaling};
use crate::model::tensors::FileTensor;
use crate::weights::gguf::Metadata;
use crate::weights::{Checkpoint, Gguf, StoredType, TensorInfo};
use serde_json::{Value, json};

/// The keys, or why no file can hold the model; `file` is the base's.
pub fn to_gguf(spec: &ModelSpec, file: &str) -> Result<Metadata> {
    let arch = spec.family.arch;
    let gguf = Gguf { metadata: (spec.family.to_gguf)(spec), checkpoint: tensors(spec) };
    let read = (spec.family.from_gguf)(&GgufKeys { gguf: &gguf, arch })?;
    let [own, read] = [spec, &read].map(|spec| settings(&spec.within_windows()));
    let differ = own.into_iter().zip(read).filter(|(own, read)| own != read);
    let told = |((name, own), (_, read))| format!("{name} is {own}, and in a GGUF file of {arch} it is {read}");
    let problems: Vec<String> = differ.map(told).collect();
    if problems.is_empty() {
        return Ok(gguf.metadata);
    }
    let hint = "no GGUF file can hold this model: write a Hugging Face folder instead (--format hf)";
    Err(Error::Mismatch { file: file.into(), problems, hint: hint.into() })
}

/// The tensors of the file, with no data: presence and shape tell readers some settings.
fn tensors(spec: &ModelSpec) -> Checkpoint {
    let info = |FileTensor { name, shape, .. }: FileTensor| {
        let nowhere = TensorInfo { name: name.clone(), stored: StoredType::F32, shape, source: 0, offset: 0, bytes: 0 };
        (name, nowhere)
    };
    let tensors = spec.file_tensors(&spec.family.gguf).into_iter().map(info).collect();
    Checkpoint { tensors, ..Default::default() }
}

/// All that makes a model what it is, mostly by the names of config.json.
fn settings(spec: &ModelSpec) -> [(&'static str, Value); 26] {
    let local = spec.local.as_ref();
    let global: Option<Vec<usize>> =
        local.map(|local| (0..local.layers.len()).filter(|layer| !local.layers[*layer]).collect());
    let number = |x: Option<f32>| json!(x.map(decimal));
    [
        ("vocab_size", json!(spec.vocab)),
        ("hidden_size", json!(spec.hidden)),
        ("num_hidden_layers", json!(spec.layers)),
        ("num_attention_heads", json!(spec.heads)),
        ("num_key_value_heads", json!(spec.kv_heads)),
        ("head_dim", json!(spec.head_dim)),
        ("intermediate_size", json!(spec.ffn)),
        ("max_position_embeddings", json!(spec.context)),
        ("the norms' epsilon", number(Some(spec.eps))),
        ("having LayerNorm", json!(spec.layer_norm)),
        ("rope_parameters", rope(spec, spec.rope.as_ref())),
        ("rope_parameters of local layers", rope(spec, local.and_then(|local| local.rope.as_ref()))),
        ("sliding_window", json!(local.map(|local| local.window))),
        ("layers with full_attention", json!(global)),
        ("tie_word_embeddings", json!(spec.tied)),
        ("bias of q, k and v", json!(spec.qkv_bias)),
        ("bias of attention's output", json!(spec.o_bias)),
        ("mlp_bias", json!(spec.mlp_bias)),
        ("norm of q and k", json!(spec.qk_norm)),
        ("norm after attention", json!(spec.post_norms)),
        ("hidden_act", json!(activation_name(spec.activation))),
        ("gate of the MLP", json!(spec.gated)),
        ("factor of embeddings", number(Some(spec.embed_scale))),
        ("query_pre_attn_scalar", number(Some(spec.query_scalar.unwrap_or(spec.head_dim as f32)))),
        ("attn_logit_softcapping", number(spec.attention_cap)),
        ("final_logit_softcapping", number(spec.final_cap)),
    ]
}

/// Divisors of the frequencies are a tensor, which llama.cpp reads in files of `llama` alone.
fn rope(spec: &ModelSpec, rope: Option<&Rope>) -> Value {
    let scaling = |rope: &Rope| match rope.scaling {
        RopeScaling::None => json!("default"),
        RopeScaling::Linear { factor } => json!({ "linear": decimal(factor as f32) }),
        RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) if spec.family.arch == "llama" => json!("default"),
        RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) => json!("llama3"),
    };
    rope.map_or(Value::Null, |rope| json!({ "rope_theta": decimal(rope.theta as f32), "scaling": scaling(rope) }))
}
