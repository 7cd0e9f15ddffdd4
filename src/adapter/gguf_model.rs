//! The merged model as one GGUF file, for llama.cpp, Ollama, wllama and what else is built on ggml.
//!
//! Metadata of a GGUF base are carried over; those of a Hugging Face folder are written from its configuration and its
//! tokenizer. Matrices get the type that was asked for, with llama.cpp's exceptions; vectors stay f32.

use super::merge::{Dtype, Merged, Target, encoded};
use crate::error::Result;
use crate::model::load::interleave;
use crate::model::tensors::{FileTensor, Tensor, interleaved};
use crate::model::{ModelSpec, family};
use crate::weights::gguf::{Metadata, Value};
use crate::weights::gguf_write::{self, Planned};
use crate::weights::{ModelFiles, StoredType, encode, gguf_tokenizer, gguf_vocabulary};

/// The file to come.
pub(super) struct File {
    name: String,
    header: Vec<u8>,
    /// Divisors of the rotary frequencies, where the model has such; the first of the tensors then.
    divisors: Option<(Planned, Vec<f32>)>,
    tensors: Vec<(Vec<Tensor>, Planned)>,
}

impl File {
    pub fn new(files: &ModelFiles, spec: &ModelSpec, target: &Target) -> Result<File> {
        let divisors = spec.rope.as_ref().and_then(|rope| rope.divisors(spec.head_dim)).map(|values| {
            let shape = vec![values.len() as u64];
            (Planned { name: "rope_freqs.weight".into(), shape, stored: StoredType::F32 }, values)
        });
        let planned = |FileTensor { name, shape, parts, .. }: FileTensor| {
            let stored = stored(parts[0], &shape, target.dtype);
            (parts, Planned { name, shape, stored })
        };
        let names = &spec.family.gguf;
        assert!(!names.transposed, "GGUF files hold matrices as [out, in]");
        let tensors: Vec<(Vec<Tensor>, Planned)> = spec.file_tensors(names).into_iter().map(planned).collect();
        let first = divisors.iter().map(|(planned, _)| planned);
        let all: Vec<Planned> = first.chain(tensors.iter().map(|(_, planned)| planned)).cloned().collect();
        let header = gguf_write::header(&metadata(files, spec, target)?, &all);
        Ok(File { name: format!("{}.gguf", target.name), header, divisors, tensors })
    }

    pub fn bytes(&self) -> u64 {
        let planned = self.divisors.iter().map(|(p, _)| p).chain(self.tensors.iter().map(|(_, p)| p));
        self.header.len() as u64 + planned.map(|p| p.bytes() + p.padding().len() as u64).sum::<u64>()
    }

    pub async fn write(&self, merged: &Merged<'_>, mut sink: impl AsyncFnMut(&str, &[u8]) -> Result<()>) -> Result<()> {
        sink(&self.name, &self.header).await?;
        if let Some((planned, values)) = &self.divisors {
            let bytes = encode(planned.stored, values).expect("divisors are finite numbers");
            sink(&self.name, &[bytes, planned.padding()].concat()).await?;
        }
        for (parts, planned) in &self.tensors {
            let cols = if planned.shape.len() == 2 { planned.shape[1] as usize } else { 1 };
            for &tensor in parts {
                let (order, less) = (interleaved(&merged.spec, tensor), merged.spec.family.less(tensor));
                let each = async |mut values: Vec<f32>| {
                    values.iter_mut().for_each(|w| *w += less);
                    let values = match order {
                        Some(head_dim) => interleave(&values, cols, head_dim),
                        None => values,
                    };
                    sink(&self.name, &encoded(&planned.name, planned.stored, &values)?).await
                };
                merged.read(tensor, each).await?;
            }
            sink(&self.name, &planned.padding()).await?;
        }
        Ok(())
    }
}

/// As llama.cpp's quantiser decides: vectors and learned positions are f32, rows that are no whole blocks f16, and the
/// embedding and the head of a 4-bit model, which are looked at most closely, have 8 bits.
fn stored(tensor: Tensor, shape: &[u64], dtype: Dtype) -> StoredType {
    let wanted = match (dtype, tensor) {
        (Dtype::Q4_0 | Dtype::Q4_1, Tensor::Embed | Tensor::Head) => StoredType::Q8_0,
        (_, Tensor::Positions) => StoredType::F32,
        _ => dtype.stored(),
    };
    match shape {
        [_, cols] if cols.is_multiple_of(wanted.block_values()) => wanted,
        [_, _] => StoredType::F16,
        _ => StoredType::F32,
    }
}

/// `general.file_type` (llama.cpp's `llama_ftype`).
fn file_type(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Q4_0 => 2,
        Dtype::Q4_1 => 3,
        Dtype::Q8_0 => 7,
        Dtype::Bf16 => 32,
    }
}

fn metadata(files: &ModelFiles, spec: &ModelSpec, target: &Target) -> Result<Metadata> {
    let mut pairs = match files {
        ModelFiles::Gguf { gguf, .. } => {
            let name = gguf_tokenizer::named_like(gguf, &target.name)?;
            gguf.metadata.clone().into_iter().chain([("general.name".into(), name.into())]).collect()
        }
        ModelFiles::Hf { tokenizer, checkpoint, .. } => {
            let mut pairs = family::to_gguf(spec, checkpoint.name())?;
            pairs.extend(gguf_vocabulary::metadata(tokenizer, spec.vocab, &target.name)?);
            pairs
        }
    };
    // The base's own alignment is not kept, and it is one file whatever the base was.
    pairs.retain(|key, _| key != "general.alignment" && !key.starts_with("split."));
    let architecture = spec.family.arch.to_string();
    for (key, value) in [
        ("general.architecture", Value::Str(architecture)),
        ("general.type", "model".into()),
        ("general.file_type", file_type(target.dtype).into()),
        ("general.quantization_version", 2u32.into()),
    ] {
        pairs.insert(key.into(), value);
    }
    Ok(pairs)
}
