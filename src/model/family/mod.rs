//! Families: one file each, `config.json` or GGUF metadata -> [`ModelSpec`], and what its files call the tensors.
//! Dense decoders only. Every family is told as its difference from Llama.

mod gemma;
mod gguf;
mod gpt2;
mod keys;
mod llama;
mod mistral;
mod phi3;
mod qwen;

use super::spec::ModelSpec;
use super::tensors::{Names, Tensor};
use crate::error::{Error, Result};
use crate::weights::gguf::Metadata;
use crate::weights::{Gguf, ModelFiles};
use keys::{GgufKeys, Keys, unsupported};
use serde_json::Value;

pub use gguf::to_gguf;
pub use llama::FAMILY as LLAMA;

/// A family: its names, and the way from its files to a specification and back.
pub struct Family {
    /// `model_type` of config.json.
    pub name: &'static str,
    /// The class that transformers loads it with.
    pub class: &'static str,
    /// What to call it in a list of what is supported.
    about: &'static str,
    /// `general.architecture` of GGUF files.
    pub arch: &'static str,
    pub hf: Names,
    pub gguf: Names,
    /// GGUF files keep the rows of q and k in interleaved pairs.
    pub interleaved: bool,
    /// transformers' files keep the weights of norms less 1 (GGUF files whole).
    pub norms_less_one: bool,
    from_config: fn(&Keys) -> Result<ModelSpec>,
    from_gguf: fn(&GgufKeys) -> Result<ModelSpec>,
    /// The inverse of `from_config`.
    to_config: fn(&ModelSpec, &str) -> Result<Value>,
    /// The inverse of `from_gguf`, as far as there are keys.
    to_gguf: fn(&ModelSpec) -> Metadata,
}

/// The first of an architecture reads its GGUF files.
static FAMILIES: [&Family; 8] = [
    &llama::FAMILY,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &mistral::FAMILY,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gpt2::FAMILY,
    &phi3::FAMILY,
];

impl Family {
    /// What transformers' files hold a tensor less: 1 or 0.
    pub fn less(&self, tensor: Tensor) -> f32 {
        if self.norms_less_one && matches!(tensor, Tensor::Norm(_)) { 1.0 } else { 0.0 }
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.name == other.name
    }
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{:?}", self.name)
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

pub fn spec(files: &ModelFiles) -> Result<ModelSpec> {
    match files {
        ModelFiles::Hf { config, checkpoint, .. } => from_config(config, checkpoint.name()),
        ModelFiles::Gguf { gguf, .. } => from_gguf(gguf),
    }
}

pub fn from_config(config: &Value, file: &str) -> Result<ModelSpec> {
    let Some(name) = config["model_type"].as_str() else {
        return Err(Error::Malformed {
            file: file.into(),
            at: "config.json".into(),
            what: "\"model_type\" is missing".into(),
            hint: "use the config.json that belongs to the weights".into(),
        });
    };
    match FAMILIES.iter().find(|family| family.name == name) {
        Some(family) => (family.from_config)(&Keys { config, file })?.check(file),
        None if config["text_config"].is_object() => {
            let what = format!("the architecture '{name}' is of more than text");
            Err(unsupported(file, what, "only models of text alone are supported"))
        }
        None => Err(unknown(file, name)),
    }
}

fn from_gguf(gguf: &Gguf) -> Result<ModelSpec> {
    let arch = gguf.architecture()?;
    match FAMILIES.iter().find(|family| family.arch == arch) {
        Some(family) => (family.from_gguf)(&GgufKeys { gguf, arch: family.arch })?.check(gguf.name()),
        None => Err(unknown(gguf.name(), arch)),
    }
}

/// `config.json` for a model that came without, as transformers reads it.
pub fn to_config(spec: &ModelSpec, file: &str) -> Result<Value> {
    (spec.family.to_config)(spec, file)
}

fn unknown(file: &str, family: &str) -> Error {
    let known: Vec<String> = FAMILIES.iter().map(|family| format!("{} ({})", family.name, family.about)).collect();
    unsupported(
        file,
        format!("the architecture '{family}' is not supported"),
        &format!("supported: {}", known.join(", ")),
    )
}
