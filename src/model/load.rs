//! Streams a checkpoint into the buffers of a decoder, some rows at a time: no file and no tensor is held whole.

use super::decoder::Decoder;
use super::family;
use super::spec::{ModelSpec, RopeScaling};
use super::tensors::{Names, Tensor, interleaved};
use crate::device::Device;
use crate::digest::Beside;
use crate::error::{Error, Result};
use crate::format::{WeightFormat, pack};
use crate::plan::Plan;
use crate::weights::ModelFiles;

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
    pub async fn load(files: &ModelFiles, device: Device, progress: impl FnMut(u64, u64)) -> Result<Base> {
        Base::load_beside(files, device, |_| {}, progress).await
    }

    /// [`Base::load`] with something begun just before the weights are read, which goes on beside that.
    pub async fn load_beside(
        files: &ModelFiles,
        device: Device,
        begin: impl FnOnce(&mut Base),
        progress: impl FnMut(u64, u64),
    ) -> Result<Base> {
        let opened = Opened::new(files).await?;
        let mut base = opened.planned(device)?;
        base.device.prepare(&base.plan).await?;
        begin(&mut base);
        base.sha256 = opened.stream(&base.decoder, &mut base.device, progress).await?;
        Ok(base)
    }

    /// The model as a plan, with nothing allocated and nothing read but its headers: for estimates.
    pub async fn planned(files: &ModelFiles, device: Device) -> Result<Base> {
        Opened::new(files).await?.planned(device)
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.decoder.spec
    }
}

/// A checkpoint whose configuration and tensors were checked against each other.
pub struct Opened<'a> {
    pub spec: ModelSpec,
    files: &'a ModelFiles,
    /// The file leaves out the first part of transformers' names, `model.` and the like.
    bare: bool,
}

/// Left over in some files: rotary frequencies and causal masks, which follow from the configuration.
const LEFTOVERS: [&str; 3] = ["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];

fn without_root(name: &str) -> &str {
    name.split_once('.').map_or(name, |(_, rest)| rest)
}

impl<'a> Opened<'a> {
    /// Reads the configuration and checks every tensor's name and shape; no weights are read yet.
    pub async fn new(files: &'a ModelFiles) -> Result<Opened<'a>> {
        let mut opened = Opened { spec: family::spec(files)?, files, bare: false };
        let checkpoint = files.checkpoint();
        if matches!(files, ModelFiles::Hf { .. }) {
            let embed = opened.name(Tensor::Embed);
            opened.bare = !checkpoint.has(&embed) && checkpoint.has(without_root(&embed));
            // transformers leaves a tied head out of the file, also where config.json does not say so
            opened.spec.tied |= !checkpoint.has(&opened.name(Tensor::Head));
        }
        let wanted = opened.spec.file_tensors(opened.names());
        let wanted: Vec<(String, Vec<u64>)> =
            wanted.into_iter().map(|file| (opened.in_file(file.name), file.shape)).collect();
        checkpoint.expect(wanted.iter().cloned())?;
        let names: Vec<String> = wanted.into_iter().map(|(name, _)| name).collect();
        let hint = "the configuration asks for a smaller or simpler model than the weights are of";
        checkpoint.expect_no_more(&names, |name| opened.is_part(name), hint)?;
        opened.rope_divisors().await
    }

    /// Whether a tensor belongs to the decoder: not a value head or what else a training program may have left, and
    /// not the copy that is the head of a tied model.
    fn is_part(&self, name: &str) -> bool {
        let names = self.names();
        let stems = [names.embed, names.positions, names.norm, names.layer, names.head];
        let below = |stem: &str| !stem.is_empty() && name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.'));
        let decoder = match (self.files, self.bare) {
            (ModelFiles::Gguf { .. }, _) => stems.into_iter().any(below),
            (_, true) => stems.into_iter().any(|stem| below(without_root(stem))),
            (_, false) => stems.into_iter().any(|stem| below(stem.split('.').next().unwrap_or(stem))),
        };
        let copy = self.spec.tied && name == self.name(Tensor::Head);
        decoder && !copy && !LEFTOVERS.iter().any(|end| name.ends_with(end))
    }

    /// Llama 3's frequency scaling comes as a tensor in GGUF files.
    async fn rope_divisors(mut self) -> Result<Opened<'a>> {
        let checkpoint = self.files.checkpoint();
        if matches!(self.files, ModelFiles::Gguf { .. }) && checkpoint.has(ROPE_DIVISORS) {
            let half = self.spec.head_dim as u64 / 2;
            checkpoint.expect([(ROPE_DIVISORS.to_string(), vec![half])])?;
            let divisors = checkpoint.read_f32(checkpoint.get(ROPE_DIVISORS)?).await?;
            if let Some(rope) = &mut self.spec.rope {
                rope.scaling = RopeScaling::Divisors(divisors);
            }
        }
        Ok(self)
    }

    fn names(&self) -> &'static Names {
        match self.files {
            ModelFiles::Hf { .. } => &self.spec.family.hf,
            ModelFiles::Gguf { .. } => &self.spec.family.gguf,
        }
    }

    /// What the model's file calls a tensor; several may be parts of one.
    pub fn name(&self, tensor: Tensor) -> String {
        self.in_file(self.names().name(tensor))
    }

    fn in_file(&self, name: String) -> String {
        if self.bare && !name.starts_with(self.names().head) { without_root(&name).into() } else { name }
    }

    /// Bytes of the file that are the tensor's.
    pub fn bytes(&self, tensor: Tensor, shape: &[u64]) -> u64 {
        let Ok(info) = self.files.checkpoint().get(&self.name(tensor)) else { return 0 };
        let all = info.rows() * info.cols();
        (info.bytes as u128 * shape.iter().product::<u64>() as u128 / all.max(1) as u128) as u64
    }

    /// How a tensor is kept: as stored where a shader reads that format, else as bf16.
    pub fn format(&self, tensor: Tensor) -> WeightFormat {
        self.files.checkpoint().get(&self.name(tensor)).map_or(WeightFormat::F32, |info| info.stored.default_format())
    }

    fn planned(&self, device: Device) -> Result<Base> {
        let mut plan = Plan::default();
        let decoder = self.declare(&mut plan, device.max_binding())?;
        Ok(Base { plan, device, decoder, sha256: String::new() })
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
        let mut digest = Beside::start();
        digest.add(format!("{:?}", self.spec).into_bytes());
        let tensors = self.spec.tensors();
        let total = tensors.iter().map(|(t, shape)| self.bytes(*t, shape)).sum();
        let mut done = 0;
        for (tensor, shape) in tensors {
            digest.add(format!("{} {shape:?} {}", self.spec.hf_name(tensor), self.format(tensor).name()).into_bytes());
            match decoder.vector(tensor) {
                Some(at) => {
                    let mut values = self.vector(tensor, shape[0] as usize).await?;
                    if self.less_one(tensor) && matches!(self.files, ModelFiles::Hf { .. }) {
                        values.iter_mut().for_each(|w| *w += 1.0);
                    }
                    device.write_floats(at.buf, at.off, &values);
                    digest.add(values);
                }
                None => self.stream_matrix(decoder, device, tensor, shape[0] as usize, &mut digest).await?,
            }
            device.flush();
            done += self.bytes(tensor, &shape);
            progress(done, total);
        }
        Ok(digest.finish().hex())
    }

    async fn stream_matrix(
        &self,
        decoder: &Decoder,
        device: &mut Device,
        tensor: Tensor,
        all: usize,
        digest: &mut Beside,
    ) -> Result<()> {
        let w = decoder.matrix(tensor).expect("a tensor is a vector or a matrix");
        let stride = w.format.words(w.cols);
        let piece = self.piece(tensor, w.cols, all);
        for row0 in (0..all).step_by(piece) {
            let rows = piece.min(all - row0);
            let words = match self.is_transposed(tensor) {
                true => pack(w.format, &self.transposed(tensor, rows).await?),
                false => self.rows(tensor, w.format, row0, rows).await?,
            };
            let words = match self.interleaved(tensor) {
                Some(head_dim) => half_split(&words, stride, head_dim),
                None => words,
            };
            for shard in &w.shards {
                let (lo, hi) = (row0.max(shard.row0), (row0 + rows).min(shard.row0 + shard.rows));
                if lo < hi {
                    device.write(
                        shard.buf,
                        shard.offset + (lo - shard.row0) * stride,
                        &words[(lo - row0) * stride..(hi - row0) * stride],
                    );
                }
            }
            digest.add(words);
        }
        Ok(())
    }

    /// Rows read at a time: whole heads, so that the rows of a head can be rearranged within a piece; all of a tensor
    /// that has to be turned.
    fn piece(&self, tensor: Tensor, cols: usize, all: usize) -> usize {
        if self.is_transposed(tensor) {
            return all.max(1);
        }
        // Also where the rows are in order: whoever reads may want them in the other.
        let unit = interleaved(&self.spec, tensor).unwrap_or(4);
        (PIECE / (cols * 4) / unit * unit).max(unit)
    }

    fn is_transposed(&self, tensor: Tensor) -> bool {
        self.names().transposed && matches!(tensor, Tensor::Weight(_))
    }

    /// The first row of the file's tensor that is this one's.
    fn first_row(&self, tensor: Tensor) -> usize {
        self.spec.first_row(self.names(), tensor)
    }

    async fn rows(&self, tensor: Tensor, format: WeightFormat, row0: usize, rows: usize) -> Result<Vec<u32>> {
        let checkpoint = self.files.checkpoint();
        let row0 = (self.first_row(tensor) + row0) as u64;
        checkpoint.read_rows(checkpoint.get(&self.name(tensor))?, row0, rows as u64, format).await
    }

    /// All `rows` of a matrix that the file has as [in, out], alone or beside others.
    async fn transposed(&self, tensor: Tensor, rows: usize) -> Result<Vec<f32>> {
        let (checkpoint, first) = (self.files.checkpoint(), self.first_row(tensor));
        let info = checkpoint.get(&self.name(tensor))?;
        let (values, width) = (checkpoint.read_f32(info).await?, info.cols() as usize);
        Ok((first..first + rows).flat_map(|o| values.iter().skip(o).step_by(width).copied()).collect())
    }

    /// A vector of `len` values.
    async fn vector(&self, tensor: Tensor, len: usize) -> Result<Vec<f32>> {
        let (checkpoint, first) = (self.files.checkpoint(), self.first_row(tensor));
        let values = checkpoint.read_f32(checkpoint.get(&self.name(tensor))?).await?;
        let values = values[first..first + len].to_vec();
        Ok(match self.interleaved(tensor) {
            Some(head_dim) => half_split(&values, 1, head_dim),
            None => values,
        })
    }

    /// Whether transformers' files hold a tensor less 1.
    fn less_one(&self, tensor: Tensor) -> bool {
        self.spec.family.less(tensor) > 0.0
    }

    /// A tensor's values as f32 as transformers has them: its order of rows, its norms; some rows at a time: `each`
    /// gets the first row and the values. A vector is one row.
    pub async fn read(&self, tensor: Tensor, mut each: impl AsyncFnMut(usize, Vec<f32>) -> Result<()>) -> Result<()> {
        let shape = self.spec.shape(tensor);
        let [all, cols] = shape[..] else {
            let mut values = self.vector(tensor, shape[0]).await?;
            if self.less_one(tensor) && matches!(self.files, ModelFiles::Gguf { .. }) {
                values.iter_mut().for_each(|w| *w -= 1.0);
            }
            return each(0, values).await;
        };
        let piece = self.piece(tensor, cols, all);
        for row0 in (0..all).step_by(piece) {
            let rows = piece.min(all - row0);
            let values = match self.is_transposed(tensor) {
                true => self.transposed(tensor, rows).await?,
                false => {
                    self.rows(tensor, WeightFormat::F32, row0, rows).await?.into_iter().map(f32::from_bits).collect()
                }
            };
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
