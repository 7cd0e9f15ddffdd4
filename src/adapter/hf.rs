//! The merged model as a Hugging Face folder, which transformers, vLLM, mlx-lm and most other tools open.
//!
//! A base from a GGUF file comes out as transformers has it, with the configuration and tokenizer files it expects.

use super::Files;
use super::factors::transpose;
use super::merge::{Dtype, Merged, Target, encoded};
use crate::error::{Error, Result};
use crate::model::family::LLAMA;
use crate::model::tensors::FileTensor;
use crate::model::{ModelSpec, family};
use crate::weights::{ModelFiles, StoredType, TokenizerFiles};
use serde_json::{Map, Value, json};

/// Where transformers begins a new file.
pub const SHARD: u64 = 5_000_000_000;

/// A file of weights: its name and what is in it.
struct Shard {
    name: String,
    tensors: Vec<FileTensor>,
}

/// The files to come.
pub(super) struct Folder {
    small: Files,
    shards: Vec<Shard>,
    stored: StoredType,
}

/// As config.json names a type.
fn name(dtype: Dtype) -> Result<&'static str> {
    match dtype {
        Dtype::F32 => Ok("float32"),
        Dtype::F16 => Ok("float16"),
        Dtype::Bf16 => Ok("bfloat16"),
        other => {
            let what = format!("is {}, which a Hugging Face folder does not hold", other.name());
            Err(Error::setting("dtype", what, "use f32, f16 or bf16, or --format gguf"))
        }
    }
}

impl Folder {
    pub async fn new(files: &ModelFiles, spec: &ModelSpec, target: &Target) -> Result<Folder> {
        let name = name(target.dtype)?;
        let stored = target.dtype.stored();
        let shards = shards(spec, stored, target.shard);
        let mut small = companions(files, spec, name).await?;
        if shards.len() > 1 {
            small.push(("model.safetensors.index.json".into(), index(&shards, stored)));
        }
        Ok(Folder { small, shards, stored })
    }

    pub fn bytes(&self) -> u64 {
        let small: usize = self.small.iter().map(|(_, bytes)| bytes.len()).sum();
        let data = |shard: &Shard| shard.tensors.iter().map(|t| bytes(&t.shape, self.stored)).sum::<u64>();
        let large = self.shards.iter().map(|shard| header(shard, self.stored).len() as u64 + data(shard));
        small as u64 + large.sum::<u64>()
    }

    pub async fn write(&self, merged: &Merged<'_>, mut sink: impl AsyncFnMut(&str, &[u8]) -> Result<()>) -> Result<()> {
        for (name, bytes) in &self.small {
            sink(name, bytes).await?;
        }
        for shard in &self.shards {
            sink(&shard.name, &header(shard, self.stored)).await?;
            for file in &shard.tensors {
                self.write_tensor(merged, file, async |bytes| sink(&shard.name, bytes).await).await?;
            }
        }
        Ok(())
    }

    /// The parts one after the other; those that lie turned, at once.
    async fn write_tensor(
        &self,
        merged: &Merged<'_>,
        file: &FileTensor,
        mut sink: impl AsyncFnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut columns = Vec::new();
        for tensor in &file.parts {
            let each = async |values: Vec<f32>| match file.transposed {
                true => {
                    columns.extend(values);
                    Ok(())
                }
                false => sink(&encoded(&file.name, self.stored, &values)?).await,
            };
            merged.read(*tensor, each).await?;
        }
        if !file.transposed {
            return Ok(());
        }
        let width = file.shape[0] as usize;
        sink(&encoded(&file.name, self.stored, &transpose(&columns, columns.len() / width, width))?).await
    }
}

fn bytes(shape: &[u64], stored: StoredType) -> u64 {
    shape.iter().product::<u64>() * stored.block_bytes()
}

fn shards(spec: &ModelSpec, stored: StoredType, most: u64) -> Vec<Shard> {
    let (mut parts, mut held) = (Vec::<Shard>::new(), 0);
    for tensor in spec.file_tensors(&spec.family.hf) {
        let size = bytes(&tensor.shape, stored);
        if parts.is_empty() || held + size > most {
            parts.push(Shard { name: String::new(), tensors: Vec::new() });
            held = 0;
        }
        held += size;
        parts.last_mut().expect("one was just begun").tensors.push(tensor);
    }
    let n = parts.len();
    let name = |i: usize| match n {
        1 => "model.safetensors".to_string(),
        _ => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
    };
    parts.into_iter().enumerate().map(|(i, part)| Shard { name: name(i), ..part }).collect()
}

fn index(shards: &[Shard], stored: StoredType) -> Vec<u8> {
    let all = || shards.iter().flat_map(|s| s.tensors.iter().map(move |t| (s, t)));
    let total: u64 = all().map(|(_, t)| bytes(&t.shape, stored)).sum();
    let map: Map<String, Value> = all().map(|(s, t)| (t.name.clone(), s.name.clone().into())).collect();
    pretty(&json!({ "metadata": { "total_size": total }, "weight_map": map }))
}

/// Length and JSON of a safetensors file, padded so that the data begin at a multiple of 8.
fn header(shard: &Shard, stored: StoredType) -> Vec<u8> {
    let mut entries = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut at = 0;
    for FileTensor { name, shape, .. } in &shard.tensors {
        let end = at + bytes(shape, stored);
        entries.insert(name.clone(), json!({ "dtype": stored.name(), "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), text.as_slice()].concat()
}

fn pretty(value: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("plain JSON")
}

/// Configuration and tokenizer: those of the base's folder, or made from the GGUF file's metadata.
async fn companions(files: &ModelFiles, spec: &ModelSpec, dtype: &str) -> Result<Files> {
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
    config[key] = dtype.into();
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
