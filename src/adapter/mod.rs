//! What is trained: one file a method, the names other tools know it by, and its way into the base's weights.

pub mod base;
pub mod combine;
pub mod dora;
pub mod factors;
pub mod fold;
pub mod gguf;
mod gguf_model;
mod hf;
pub mod ia3;
mod linalg;
pub mod lisa;
pub mod lora;
pub mod merge;
pub mod method;
pub mod methods;
pub mod mlx;
pub mod peft;
pub mod prefix;
pub mod prompt;

pub use lora::{Lora, LoraConfig};
pub use method::{Adapter, Initial, Method, Part, Role};
pub use methods::{Kind, Settings};

use crate::error::{Error, Result};
use crate::model::ModelSpec;
use crate::weights::{Gguf, Source, safetensors};
use serde::{Deserialize, Serialize};

/// Files by name, as they come to lie in a folder.
pub type Files = Vec<(String, Vec<u8>)>;

/// Whose adapter files: Hugging Face's PEFT, llama.cpp (with Ollama and wllama), Apple's mlx-lm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
pub enum Format {
    #[default]
    Peft,
    Gguf,
    Mlx,
}

/// The base model of an adapter: what it is called and, where that is known, its hash.
#[derive(Clone, Copy, Debug)]
pub struct BaseName<'a> {
    pub name: &'a str,
    pub sha256: Option<&'a str>,
}

impl<'a> From<&'a str> for BaseName<'a> {
    fn from(name: &'a str) -> Self {
        BaseName { name, sha256: None }
    }
}

/// Where metadata hold the base's hash: no format has a place for it, and all pass over metadata they do not know.
const BASE_SHA256: &str = "base_sha256";

/// What things are called in an adapter's files.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    pub base: BaseName<'a>,
    /// The adapter itself: a GGUF file carries it, and is called so.
    pub tuned: &'a str,
}

/// An adapter's files in a format.
pub fn files(format: Format, adapter: &Adapter, flat: &[f32], spec: &ModelSpec, names: Names) -> Result<Files> {
    match format {
        Format::Peft => peft::files(adapter, flat, names.base),
        Format::Mlx => mlx::files(adapter, flat, spec, names.base),
        Format::Gguf => {
            let bytes = gguf::to_bytes(adapter, flat, spec, names.base, names.tuned)?;
            Ok(vec![(format!("{}.gguf", names.tuned), bytes)])
        }
    }
}

/// Reads an adapter from its files, whichever format they are in.
pub async fn read(files: &[Source], spec: &ModelSpec) -> Result<(Adapter, Vec<f32>)> {
    let find = |name: &str| files.iter().find(|f| f.file_name() == name);
    if let Some(file) = files.iter().find(|f| f.file_name().ends_with(".gguf")) {
        return gguf::read(file.clone(), spec).await;
    }
    match (find(peft::CONFIG), find(peft::WEIGHTS), find(mlx::WEIGHTS)) {
        (Some(config), Some(weights), _) => peft::read(config, weights.clone(), spec).await,
        (Some(config), None, Some(weights)) => mlx::read(config, weights.clone(), spec).await,
        (config, ..) => {
            let file = files.first().map_or("the adapter's files", Source::name);
            let missing = if config.is_some() { peft::WEIGHTS } else { peft::CONFIG };
            let hint = format!(
                "an adapter is {} with {} (PEFT) or {} (mlx-lm), or one .gguf file",
                peft::CONFIG,
                peft::WEIGHTS,
                mlx::WEIGHTS
            );
            Err(Error::Unsupported { file: file.into(), what: format!("{missing} is missing"), hint })
        }
    }
}

/// The hash of the base an adapter was tuned on, where its files say it: those that Luthier wrote do.
pub async fn base_sha256(files: &[Source]) -> Result<Option<String>> {
    for file in files {
        if file.file_name().ends_with(".gguf") {
            let gguf = Gguf::open(file.clone()).await?;
            return Ok(gguf.optional(&gguf::base_sha256_key(), Gguf::str)?.map(String::from));
        }
        if file.file_name().ends_with(".safetensors") {
            return Ok(safetensors::open(vec![file.clone()], None).await?.metadata.remove(BASE_SHA256));
        }
    }
    Ok(None)
}

/// Reads an adapter's folder, or its .gguf file.
#[cfg(not(target_arch = "wasm32"))]
pub fn open(path: &std::path::Path, spec: &ModelSpec) -> Result<(Adapter, Vec<f32>)> {
    pollster::block_on(read(&sources(path)?, spec))
}

/// The files of an adapter: those in its folder, or the one .gguf file.
#[cfg(not(target_arch = "wasm32"))]
pub fn sources(path: &std::path::Path) -> Result<Vec<Source>> {
    if path.is_file() || path.extension().is_some_and(|e| e == "gguf") {
        return Ok(vec![Source::file(path)?]);
    }
    let names = [peft::CONFIG, peft::WEIGHTS, mlx::WEIGHTS].map(|name| path.join(name));
    let files = names.iter().filter(|file| file.exists()).map(Source::file).collect::<Result<Vec<_>>>()?;
    if files.is_empty() {
        // Says which file it is that cannot be read, and why.
        Source::file(path.join(peft::CONFIG))?;
    }
    Ok(files)
}

fn malformed(source: &Source, at: &str, what: String) -> Error {
    let hint = format!("use the {at} that belongs to the adapter");
    Error::Malformed { file: source.name().into(), at: at.into(), what, hint }
}

/// A setting that cannot be was read from a file: that is wrong, not a setting of this run.
fn of_the_file(error: Error, source: &Source, at: &str) -> Error {
    match error {
        Error::Setting { what, .. } => malformed(source, at, what),
        other => other,
    }
}
