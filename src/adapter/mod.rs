//! What is trained: one file a method, the names other tools know it by, and its way into the base's weights.

pub mod factors;
pub mod gguf;
mod gguf_model;
mod hf;
pub mod lora;
pub mod merge;
pub mod mlx;
pub mod peft;

pub use lora::{Lora, LoraConfig};

use crate::error::{Error, Result};
use crate::model::ModelSpec;
use crate::weights::Source;
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

/// What things are called in an adapter's files.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The base model, where others find it.
    pub base: &'a str,
    /// The adapter itself: a GGUF file carries it, and is called so.
    pub tuned: &'a str,
}

/// An adapter's files in a format.
pub fn files(format: Format, lora: &Lora, flat: &[f32], spec: &ModelSpec, names: Names) -> Result<Files> {
    match format {
        Format::Peft => peft::files(lora, flat, names.base),
        Format::Mlx => mlx::files(lora, flat, spec, names.base),
        Format::Gguf => {
            let bytes = gguf::to_bytes(lora, flat, spec, names.base, names.tuned)?;
            Ok(vec![(format!("{}.gguf", names.tuned), bytes)])
        }
    }
}

/// Reads an adapter from its files, whichever format they are in.
pub async fn read(files: &[Source], spec: &ModelSpec) -> Result<(Lora, Vec<f32>)> {
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

/// Reads an adapter's folder, or its .gguf file.
#[cfg(not(target_arch = "wasm32"))]
pub fn open(path: &std::path::Path, spec: &ModelSpec) -> Result<(Lora, Vec<f32>)> {
    if !path.is_dir() {
        return pollster::block_on(read(&[Source::file(path)?], spec));
    }
    let names = [peft::CONFIG, peft::WEIGHTS, mlx::WEIGHTS].map(|name| path.join(name));
    let files = names.iter().filter(|file| file.exists()).map(Source::file).collect::<Result<Vec<_>>>()?;
    if files.is_empty() {
        // Says which file it is that cannot be read, and why.
        Source::file(path.join(peft::CONFIG))?;
    }
    pollster::block_on(read(&files, spec))
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
