//! The base model with the adapter folded in, as a Hugging Face folder that needs neither Luthier nor PEFT.
//!
//! Everything is handed to a sink piece by piece: no tensor is ever whole in memory. A base from a GGUF file comes out
//! as transformers has it, with the rows of q and k in its order and the configuration and tokenizer files it expects.

use super::method::Adapter;
use crate::error::{Error, Result};
use crate::model::family::LLAMA;
use crate::model::load::Opened;
use crate::model::tensors::Tensor;
use crate::model::{ModelSpec, family};
use crate::weights::{ModelFiles, TokenizerFiles};
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// `--dtype`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
pub enum Dtype {
    F32,
    F16,
    #[default]
    Bf16,
}

impl Dtype {
    pub fn bytes(self) -> u64 {
        if self == Dtype::F32 { 4 } else { 2 }
    }

    /// As safetensors' header and config.json name it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Dtype::F32 => ("F32", "float32"),
            Dtype::F16 => ("F16", "float16"),
            Dtype::Bf16 => ("BF16", "bfloat16"),
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    }
}

/// Where transformers begins a new file.
const SHARD: u64 = 5_000_000_000;

/// A file of weights: its name and what is in it.
struct Shard {
    name: String,
    tensors: Vec<(Tensor, Vec<u64>)>,
}

/// Hands the merged model over: `sink` gets a file's name and its next bytes, one file after the other.
pub async fn merge(
    files: &ModelFiles,
    adapter: &Adapter,
    flat: &[f32],
    dtype: Dtype,
    sink: impl AsyncFnMut(&str, &[u8]) -> Result<()>,
) -> Result<()> {
    merge_sharded(files, adapter, flat, dtype, SHARD, sink).await
}

/// [`merge`] with files of at most about `shard` bytes.
pub async fn merge_sharded(
    files: &ModelFiles,
    adapter: &Adapter,
    flat: &[f32],
    dtype: Dtype,
    shard: u64,
    mut sink: impl AsyncFnMut(&str, &[u8]) -> Result<()>,
) -> Result<()> {
    let opened = Opened::new(files).await?;
    let spec = adapter.folded_spec(&opened.spec)?;
    for (name, bytes) in companions(files, &spec, dtype).await? {
        sink(&name, &bytes).await?;
    }
    let shards = shards(&spec, dtype, shard);
    if shards.len() > 1 {
        sink("model.safetensors.index.json", &index(&opened.spec, &shards, dtype)).await?;
    }
    for shard in &shards {
        sink(&shard.name, &header(&opened.spec, shard, dtype)).await?;
        for (tensor, shape) in &shard.tensors {
            let mut each = async |row0: usize, mut values: Vec<f32>| {
                adapter.fold(flat, *tensor, shape, row0, &mut values);
                check(&opened.spec, *tensor, dtype, &values)?;
                sink(&shard.name, &dtype.encode(&values)).await
            };
            match opened.spec.tensors().iter().any(|(known, _)| known == tensor) {
                true => opened.read(*tensor, each).await?,
                // A bias that the base does not have.
                false => each(0, vec![0.0; shape.iter().product::<u64>() as usize]).await?,
            }
        }
    }
    Ok(())
}

fn check(spec: &ModelSpec, tensor: Tensor, dtype: Dtype, values: &[f32]) -> Result<()> {
    let largest = if dtype == Dtype::F16 { f16::MAX.to_f32() } else { f32::MAX };
    match values.iter().find(|v| v.is_nan() || v.abs() > largest) {
        None => Ok(()),
        Some(v) => Err(Error::Unsupported {
            file: spec.hf_name(tensor),
            what: format!("a merged weight is {v}, the largest {} is {largest}", dtype.names().1),
            hint: "use bf16 or f32".into(),
        }),
    }
}

fn shards(spec: &ModelSpec, dtype: Dtype, most: u64) -> Vec<Shard> {
    let bytes = |shape: &[u64]| shape.iter().product::<u64>() * dtype.bytes();
    let (mut parts, mut held) = (Vec::<Shard>::new(), 0);
    for (tensor, shape) in spec.tensors() {
        let size = bytes(&shape);
        if parts.is_empty() || held + size > most {
            parts.push(Shard { name: String::new(), tensors: Vec::new() });
            held = 0;
        }
        held += size;
        parts.last_mut().expect("one was just begun").tensors.push((tensor, shape));
    }
    let n = parts.len();
    let name = |i: usize| match n {
        1 => "model.safetensors".to_string(),
        _ => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
    };
    parts.into_iter().enumerate().map(|(i, part)| Shard { name: name(i), ..part }).collect()
}

fn index(spec: &ModelSpec, shards: &[Shard], dtype: Dtype) -> Vec<u8> {
    let all = || shards.iter().flat_map(|s| s.tensors.iter().map(move |(t, shape)| (s, *t, shape)));
    let total: u64 = all().map(|(.., shape)| shape.iter().product::<u64>() * dtype.bytes()).sum();
    let map: Map<String, Value> = all().map(|(s, t, _)| (spec.hf_name(t), s.name.clone().into())).collect();
    pretty(&json!({ "metadata": { "total_size": total }, "weight_map": map }))
}

/// Length and JSON of a safetensors file, padded so that the data begin at a multiple of 8.
fn header(spec: &ModelSpec, shard: &Shard, dtype: Dtype) -> Vec<u8> {
    let mut entries = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut at = 0;
    for (tensor, shape) in &shard.tensors {
        let end = at + shape.iter().product::<u64>() * dtype.bytes();
        entries.insert(
            spec.hf_name(*tensor),
            json!({ "dtype": dtype.names().0, "shape": shape, "data_offsets": [at, end] }),
        );
        at = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), text.as_slice()].concat()
}

fn pretty(value: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("plain JSON")
}

type Files = Vec<(String, Vec<u8>)>;

/// Configuration and tokenizer: those of the base's folder, or made from the GGUF file's metadata.
async fn companions(files: &ModelFiles, spec: &ModelSpec, dtype: Dtype) -> Result<Files> {
    let mut out = Vec::new();
    let mut config = match files {
        ModelFiles::Hf { config, companions, .. } => {
            for source in companions {
                out.push((source.file_name().to_string(), source.read(0, source.len() as usize).await?));
            }
            config.clone()
        }
        ModelFiles::Gguf { tokenizer, gguf } => {
            let mut config = family::to_config(spec, gguf.name())?;
            out.extend(gguf_companions(tokenizer, &mut config));
            config
        }
    };
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = dtype.names().1.into();
    config["tie_word_embeddings"] = spec.tied.into();
    if *spec.family == LLAMA && spec.o_bias {
        (config["attention_bias"], config["mlp_bias"]) = (true.into(), spec.mlp_bias.into());
    }
    out.push(("config.json".into(), pretty(&config)));
    Ok(out)
}

/// Tokenizer files for a model that came without, and the special tokens for its configuration.
fn gguf_companions(tokenizer: &TokenizerFiles, config: &mut Value) -> Files {
    let parsed: Value = serde_json::from_str(&tokenizer.tokenizer_json).unwrap_or_default();
    let text = |id: Option<u32>| id.and_then(|id| token_text(&parsed, id));
    let mut settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "bos_token": text(tokenizer.bos),
        "eos_token": text(tokenizer.eos.first().copied()),
        "pad_token": text(tokenizer.pad),
        "clean_up_tokenization_spaces": false,
    });
    if let Some(template) = &tokenizer.chat_template {
        settings["chat_template"] = template.as_str().into();
    }
    let mut generation = json!({});
    for (key, id) in [
        ("bos_token_id", tokenizer.bos.map(Value::from)),
        ("eos_token_id", (!tokenizer.eos.is_empty()).then(|| json!(tokenizer.eos))),
        ("pad_token_id", tokenizer.pad.map(Value::from)),
    ] {
        if let Some(id) = id {
            generation[key] = id.clone();
            config[key] = id;
        }
    }
    vec![
        ("tokenizer.json".into(), tokenizer.tokenizer_json.clone().into_bytes()),
        ("tokenizer_config.json".into(), pretty(&settings)),
        ("generation_config.json".into(), pretty(&generation)),
    ]
}

fn token_text(tokenizer: &Value, id: u32) -> Option<String> {
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let added = added.filter(|token| token["id"] == id).find_map(|token| token["content"].as_str());
    if let Some(text) = added {
        return Some(text.to_string());
    }
    let vocab = &tokenizer["model"]["vocab"];
    if let Some(list) = vocab.as_array() {
        return list.get(id as usize)?[0].as_str().map(String::from); // Unigram: [text, score]
    }
    vocab.as_object()?.iter().find(|(_, value)| **value == id).map(|(text, _)| text.clone())
}
