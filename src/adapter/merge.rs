//! The base model with the adapter folded in: a model that needs neither Luthier nor PEFT.
//!
//! Here is what every format has in common: the merged tensors, some rows at a time. `hf` and `gguf_model` write them.
//! All goes to a sink piece by piece: no tensor is ever whole in memory.

use super::method::Adapter;
use super::{gguf_model, hf};
use crate::error::{Error, Result};
use crate::model::ModelSpec;
use crate::model::load::Opened;
use crate::model::tensors::Tensor;
use crate::weights::{ModelFiles, StoredType, encode};
use serde::{Deserialize, Serialize};

/// `--dtype`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
#[allow(non_camel_case_types)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    #[cfg_attr(not(target_arch = "wasm32"), value(name = "q8_0"))]
    Q8_0,
    #[cfg_attr(not(target_arch = "wasm32"), value(name = "q4_0"))]
    Q4_0,
    #[cfg_attr(not(target_arch = "wasm32"), value(name = "q4_1"))]
    Q4_1,
}

impl Dtype {
    pub fn stored(self) -> StoredType {
        match self {
            Dtype::F32 => StoredType::F32,
            Dtype::F16 => StoredType::F16,
            Dtype::Bf16 => StoredType::BF16,
            Dtype::Q8_0 => StoredType::Q8_0,
            Dtype::Q4_0 => StoredType::Q4_0,
            Dtype::Q4_1 => StoredType::Q4_1,
        }
    }

    /// As people write it: "bf16", "q8_0".
    pub fn name(self) -> String {
        self.stored().name().to_lowercase()
    }
}

/// `--format`: a Hugging Face folder, or one file for llama.cpp and what is built on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
pub enum ModelFormat {
    #[default]
    Hf,
    Gguf,
}

/// What a merged model is written as.
#[derive(Clone, Debug)]
pub struct Target {
    pub format: ModelFormat,
    pub dtype: Dtype,
    /// What the model is called, and so is its GGUF file.
    pub name: String,
    /// Bytes at which a Hugging Face folder begins a new file of weights.
    pub shard: u64,
}

impl Target {
    pub fn new(format: ModelFormat, dtype: Dtype, name: &str) -> Target {
        Target { format, dtype, name: name.into(), shard: hf::SHARD }
    }
}

/// Hands the merged model over: `sink` gets a file's name and its next bytes, one file after the other.
pub async fn merge(
    files: &ModelFiles,
    adapter: &Adapter,
    flat: &[f32],
    target: &Target,
    sink: impl AsyncFnMut(&str, &[u8]) -> Result<()>,
) -> Result<()> {
    let opened = Opened::new(files).await?;
    let merged = Merged { spec: adapter.folded_spec(&opened.spec)?, opened, adapter, flat };
    match target.format {
        ModelFormat::Hf => hf::Folder::new(files, &merged.spec, target).await?.write(&merged, sink).await,
        ModelFormat::Gguf => gguf_model::File::new(files, &merged.spec, target)?.write(&merged, sink).await,
    }
}

/// Bytes that [`merge`] will hand over, all files together; also whether it can be done at all.
pub async fn size(files: &ModelFiles, adapter: &Adapter, target: &Target) -> Result<u64> {
    let spec = adapter.folded_spec(&Opened::new(files).await?.spec)?;
    match target.format {
        ModelFormat::Hf => Ok(hf::Folder::new(files, &spec, target).await?.bytes()),
        ModelFormat::Gguf => Ok(gguf_model::File::new(files, &spec, target)?.bytes()),
    }
}

/// The tensors of the merged model.
pub(super) struct Merged<'a> {
    opened: Opened<'a>,
    pub spec: ModelSpec,
    adapter: &'a Adapter,
    flat: &'a [f32],
}

impl Merged<'_> {
    /// A tensor's values, some rows at a time and as transformers has them.
    pub async fn read(&self, tensor: Tensor, mut each: impl AsyncFnMut(Vec<f32>) -> Result<()>) -> Result<()> {
        let mut folded = async |row0: usize, mut values: Vec<f32>| {
            self.adapter.fold(&self.spec, self.flat, tensor, row0, &mut values);
            each(values).await
        };
        match self.opened.spec.tensors().iter().any(|(known, _)| *known == tensor) {
            true => self.opened.read(tensor, folded).await,
            // A bias that the base does not have.
            false => folded(0, vec![0.0; self.spec.shape(tensor).iter().product()]).await,
        }
    }
}

/// Values as a file stores them; one that has no place there is named with its tensor.
pub(super) fn encoded(name: &str, stored: StoredType, values: &[f32]) -> Result<Vec<u8>> {
    encode(stored, values).map_err(|(_, what)| Error::Unsupported {
        file: name.into(),
        what: format!("a merged weight {what}"),
        hint: "use bf16 or f32".into(),
    })
}
