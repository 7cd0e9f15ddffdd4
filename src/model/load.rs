//! Streams a checkpoint into the buffers of a decoder, some rows at a time: no file and no tensor is held whole.

use super::decoder::Decoder;
use super::family;
use super::spec::{ModelSpec, RopeScaling};
use super::tensors::{Tensor, gguf_name, hf_name, interleaved};
use crate::device::Device;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::WeightFormat;
use crate::plan::Plan;
use crate::weights::{Checkpoint, ModelFiles};

/// Bytes of f32 values read at a time.
const PIECE: usize = 8 << 20;

const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// A base model on a device.
pub struct Base {
    pub plan: Plan,
    pub device: Device,
    pub decoder: Decoder,
    /// SHA-256 of the configuration and of all weights as they lie on the device.
    pub sha256: String,
}

impl Base {
    /// Declares, allocates and streams. `progress` gets bytes done and in all.
    pub async fn load(files: &ModelFiles, mut device: Device, progress: impl FnMut(u64, u64)) -> Result<Base> {
        let opened = Opened::new(files).await?;
        let mut plan = Plan::default();
        let decoder = opened.declare(&mut plan, device.max_binding())?;
        device.prepare(&plan).await?;
        let sha256 = opened.stream(&decoder, &mut device, progress).await?;
        Ok(Base { plan, device, decoder, sha256 })
    }

    /// The model as a plan, with nothing allocated and nothing read but its headers: for estimates.
    pub async fn planned(files: &ModelFiles, device: Device) -> Result<Base> {
        let opened = Opened::new(files).await?;
        let mut plan = Plan::default();
        let decoder = opened.declare(&mut plan, device.max_binding())?;
        Ok(Base { plan, device, decoder, sha256: String::new() })
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.decoder.spec
    }
}

/// A checkpoint whose configuration and tensors were checked against each other.
pub struct Opened<'a> {
    pub spec: ModelSpec,
    files: &'a ModelFiles,
}

impl<'a> Opened<'a> {
    /// Reads the configuration and checks every tensor's name and shape; no weights are read yet.
    pub async fn new(files: &'a ModelFiles) -> Result<Opened<'a>> {
        let mut spec = family::spec(files)?;
        let checkpoint = files.checkpoint();
        if matches!(files, ModelFiles::Hf { .. }) && !spec.tied && !checkpoint.has("lm_head.weight") {
            spec.tied = true; // transformers leaves a tied head out of the file, also where config.json does not say so
        }
        let opened = Opened { spec, files };
        let wanted: Vec<(String, Vec<u64>)> =
            opened.spec.tensors().into_iter().map(|(t, shape)| (opened.name(t), shape)).collect();
        checkpoint.expect(wanted.iter().cloned())?;
        let names: Vec<String> = wanted.into_iter().map(|(name, _)| name).collect();
        let hint = "the configuration asks for a smaller or simpler model than the weights are of";
        checkpoint.expect_no_more(&names, |name| opened.is_part(name), hint)?;
        opened.rope_divisors().await
    }

    /// Whether a tensor belongs to the decoder: not a value head or what else a training program may have left, not
    /// rotary frequencies, which follow from the configuration, and not the copy that is the head of a tied model.
    fn is_part(&self, name: &str) -> bool {
        let decoder =
            ["model.", "lm_head.", "blk.", "output", "token_embd"].iter().any(|start| name.starts_with(start));
        let copy = self.spec.tied && name == self.name(Tensor::Head);
        decoder && !copy && !name.ends_with("rotary_emb.inv_freq")
    }

    /// Llama 3's frequency scaling comes as a tensor in GGUF files.
    async fn rope_divisors(mut self) -> Result<Opened<'a>> {
        let checkpoint = self.files.checkpoint();
        if matches!(self.files, ModelFiles::Gguf { .. }) && checkpoint.has(ROPE_DIVISORS) {
            let half = self.spec.head_dim as u64 / 2;
            checkpoint.expect([(ROPE_DIVISORS.to_string(), vec![half])])?;
            let divisors = checkpoint.read_f32(checkpoint.get(ROPE_DIVISORS)?).await?;
            self.spec.rope.scaling = RopeScaling::Divisors(divisors);
        }
        Ok(self)
    }

    /// What the model's file calls a tensor.
    pub fn name(&self, tensor: Tensor) -> String {
        match self.files {
            ModelFiles::Hf { .. } => hf_name(tensor),
            ModelFiles::Gguf { .. } => gguf_name(tensor),
        }
    }

    /// How a tensor is kept: as stored where a shader reads that format, else as bf16.
    pub fn format(&self, tensor: Tensor) -> WeightFormat {
        self.files.checkpoint().get(&self.name(tensor)).map_or(WeightFormat::F32, |info| info.stored.default_format())
    }

    pub fn declare(&self, plan: &mut Plan, max_binding: u64) -> Result<Decoder> {
        for (tensor, shape) in self.spec.tensors().into_iter().filter(|(_, shape)| shape.len() == 2) {
            let (format, cols) = (self.format(tensor), shape[1] as usize);
            if !cols.is_multiple_of(format.granule()) {
                let what = format!("{} has rows of {cols} values", self.name(tensor));
                let hint = format!("{} needs a multiple of {}", format.name(), format.granule());
                return Err(Error::Unsupported { file: self.files.checkpoint().name().into(), what, hint });
            }
        }
        Ok(Decoder::declare(plan, &self.spec, |t| self.format(t), max_binding))
    }

    /// Streams all weights to the device, which has prepared the plan. `progress` gets bytes done and in all. Returns
    /// the base's SHA-256.
    pub async fn stream(
        &self,
        decoder: &Decoder,
        device: &mut Device,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<String> {
        let mut digest = Digest::default();
        digest.add(format!("{:?}", self.spec).as_bytes());
        let checkpoint = self.files.checkpoint();
        let tensors = self.spec.tensors();
        let size = |t: Tensor| checkpoint.get(&self.name(t)).map_or(0, |i| i.bytes);
        let total = tensors.iter().map(|(t, _)| size(*t)).sum();
        let mut done = 0;
        for (tensor, shape) in tensors {
            digest.add(format!("{} {shape:?} {}", hf_name(tensor), self.format(tensor).name()).as_bytes());
            match decoder.vector(tensor) {
                Some(buf) => {
                    let values = checkpoint.read_f32(checkpoint.get(&self.name(tensor))?).await?;
                    let values = self.arranged(tensor, values);
                    digest.add(bytemuck::cast_slice(&values));
                    device.write_floats(buf, 0, &values);
                }
                None => self.stream_matrix(checkpoint, decoder, device, tensor, &mut digest).await?,
            }
            device.flush();
            done += size(tensor);
            progress(done, total);
        }
        Ok(digest.hex())
    }

    async fn stream_matrix(
        &self,
        checkpoint: &Checkpoint,
        decoder: &Decoder,
        device: &mut Device,
        tensor: Tensor,
        digest: &mut Digest,
    ) -> Result<()> {
        let w = decoder.matrix(tensor).expect("a tensor is a vector or a matrix");
        let info = checkpoint.get(&self.name(tensor))?;
        let stride = w.format.words(w.cols);
        let piece = self.piece(tensor, w.cols);
        for row0 in (0..info.rows() as usize).step_by(piece) {
            let rows = piece.min(info.rows() as usize - row0);
            let words = checkpoint.read_rows(info, row0 as u64, rows as u64, w.format).await?;
            let words = match self.interleaved(tensor) {
                Some(head_dim) => half_split(&words, stride, head_dim),
                None => words,
            };
            digest.add(bytemuck::cast_slice(&words));
            for shard in &w.shards {
                let (lo, hi) = (row0.max(shard.row0), (row0 + rows).min(shard.row0 + shard.rows));
                if lo < hi {
                    device.write(
                        shard.buf,
                        (lo - shard.row0) * stride,
                        &words[(lo - row0) * stride..(hi - row0) * stride],
                    );
                }
            }
        }
        Ok(())
    }

    /// Rows read at a time: whole heads where they may have to be rearranged, which happens within a piece.
    fn piece(&self, tensor: Tensor, cols: usize) -> usize {
        let unit = interleaved(&self.spec, tensor).unwrap_or(4);
        (PIECE / (cols * 4) / unit * unit).max(unit)
    }

    /// A tensor's values as f32 in transformers' order of rows, some rows at a time: `each` gets the first row and the
    /// values. A vector is one row.
    pub async fn read(&self, tensor: Tensor, mut each: impl AsyncFnMut(usize, Vec<f32>) -> Result<()>) -> Result<()> {
        let checkpoint = self.files.checkpoint();
        let info = checkpoint.get(&self.name(tensor))?;
        if info.shape.len() < 2 {
            return each(0, self.arranged(tensor, checkpoint.read_f32(info).await?)).await;
        }
        let (all, cols) = (info.rows() as usize, info.cols() as usize);
        let piece = self.piece(tensor, cols);
        for row0 in (0..all).step_by(piece) {
            let rows = piece.min(all - row0);
            let values = checkpoint.read_rows_f32(info, row0 as u64, rows as u64).await?;
            let values = match self.interleaved(tensor) {
                Some(head_dim) => half_split(&values, cols, head_dim),
                None => values,
            };
            each(row0, values).await?;
        }
        Ok(())
    }

    /// The head_dim to rearrange a tensor's rows by, where its file has them in pairs.
    fn interleaved(&self, tensor: Tensor) -> Option<usize> {
        interleaved(&self.spec, tensor).filter(|_| matches!(self.files, ModelFiles::Gguf { .. }))
    }

    fn arranged(&self, tensor: Tensor, values: Vec<f32>) -> Vec<f32> {
        match self.interleaved(tensor) {
            Some(head_dim) => half_split(&values, 1, head_dim),
            None => values,
        }
    }
}

/// Rows of `stride` elements from (0, D/2, 1, D/2 + 1 …)-interleaved to half-split order within each head:
/// out[i] = in[2i], out[i + D/2] = in[2i + 1].
pub fn half_split<T: Copy>(rows: &[T], stride: usize, head_dim: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * stride) {
        for parity in 0..2 {
            for i in 0..head_dim / 2 {
                out.extend_from_slice(&head[(2 * i + parity) * stride..][..stride]);
            }
        }
    }
    out
}

/// The inverse of [`half_split`].
pub fn interleave<T: Copy>(rows: &[T], stride: usize, head_dim: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * stride) {
        for i in 0..head_dim {
            out.extend_from_slice(&head[(i / 2 + i % 2 * (head_dim / 2)) * stride..][..stride]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{half_split, interleave};

    #[test]
    fn interleaved_rows_become_half_split() {
        // llama.cpp's converter writes hf rows 0..8 of one head in the order 0 4 1 5 2 6 3 7.
        assert_eq!(half_split(&[0, 4, 1, 5, 2, 6, 3, 7], 1, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(half_split(&[0, 0, 2, 2, 1, 1, 3, 3], 2, 4), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(interleave(&[0, 1, 2, 3, 4, 5, 6, 7], 1, 8), [0, 4, 1, 5, 2, 6, 3, 7]);
        let two_heads: Vec<usize> = (0..24).collect();
        assert_eq!(half_split(&interleave(&two_heads, 2, 6), 2, 6), two_heads);
    }
}
