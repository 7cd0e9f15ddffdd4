//! Where adapters attach: at every linear of a block, by site; in place of tensors of the base; and as rows that stand
//! before the text. The model knows offsets and scales, not methods.
//!
//! One formula for all that happens at a linear with x:[N,I], W:[O,I], A:[R,I], B:[O,R], gains g:[O] and h:[I]:
//!
//! ```text
//! x' = h ∘ x     u = x'·Aᵀ     z = x'·Wᵀ + s·u·Bᵀ     y = g ∘ z + b   or   g ∘ (z + b)
//! dz = g ∘ dy    dg = Σ_n dy ∘ z    du = s·dz·B    dB = s·dzᵀ·u    dA = duᵀ·x'
//! dx' = dz·W + du·A    dh = Σ_n dx' ∘ x    dx = h ∘ dx'    db = Σ_n dy    dW = dzᵀ·x'
//! ```

use super::tensors::Tensor;
use crate::ops::gain::Vector;
use crate::ops::gather::NONE;
use crate::plan::Buf;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Module {
    pub const ALL: [Module; 7] = [Module::Q, Module::K, Module::V, Module::O, Module::Gate, Module::Up, Module::Down];

    /// The name PEFT's `target_modules` uses.
    pub fn name(self) -> &'static str {
        match self {
            Module::Q => "q_proj",
            Module::K => "k_proj",
            Module::V => "v_proj",
            Module::O => "o_proj",
            Module::Gate => "gate_proj",
            Module::Up => "up_proj",
            Module::Down => "down_proj",
        }
    }

    pub fn is_attention(self) -> bool {
        matches!(self, Module::Q | Module::K | Module::V | Module::O)
    }
}

/// One linear of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    pub layer: usize,
    pub module: Module,
}

/// A low-rank update: `s·(x·Aᵀ)·Bᵀ`, with dropout on the input of A.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRankPatch {
    pub rank: usize,
    /// The first ranks, which are trained; the others are frozen.
    pub trained: usize,
    pub scale: f32,
    /// First float of A:[R, I] in the flat parameter buffer.
    pub a: usize,
    /// First float of Bᵀ:[R, O].
    pub b: usize,
    pub dropout: f32,
}

/// What multiplies the output of a linear.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gain {
    /// g itself is trained, at this float; the bias lies inside of it.
    Learned(usize),
    /// g = m / ‖W + s·B·A‖ by rows, m at this float; the bias lies outside.
    Magnitude(usize),
}

/// What an adapter adds at a linear.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinearPatch {
    pub low_rank: Option<LowRankPatch>,
    pub gain: Option<Gain>,
    /// First float of the gain h on the input.
    pub input_gain: Option<usize>,
}

/// Rows of a table in the flat buffer that stand before the text: their embeddings, or each layer's keys and values.
#[derive(Clone, Debug)]
pub struct Virtual {
    pub tokens: usize,
    /// First float of the embeddings [tokens, C].
    pub embeddings: Option<usize>,
    /// For each layer the first float of its keys and of its values, [tokens, kv width] each; keys are not rotated.
    pub prefix: Vec<(usize, usize)>,
}

/// Set in ids that name a row of the adapter's table instead of a token of the vocabulary.
const VIRTUAL: u32 = 1 << 31;

/// The ids of virtual tokens, in order.
pub fn virtual_ids(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|row| VIRTUAL | row).collect()
}

/// Ids of the vocabulary (0 under virtual tokens), and for each the row of the adapter's table, or [`NONE`].
pub fn split_virtual(ids: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let split = |id: &u32| if id & VIRTUAL != 0 { (0, id & !VIRTUAL) } else { (*id, NONE) };
    ids.iter().map(split).unzip()
}

/// The adapter as the model sees it: two flat buffers and what they hold where.
#[derive(Clone, Debug)]
pub struct Patches {
    pub params: Buf,
    pub grads: Buf,
    pub sites: BTreeMap<Site, LinearPatch>,
    /// Tensors of the base whose trained copy lies at this float.
    pub replaced: BTreeMap<Tensor, usize>,
    pub rows: Option<Virtual>,
    /// Σ W² by rows, where a gain needs it.
    pub squares: BTreeMap<Site, Buf>,
    /// Blocks whose replaced tensors get gradients; without it all do.
    pub active: Option<Vec<usize>>,
}

impl Patches {
    pub fn param(&self, off: usize) -> Vector {
        Vector { buf: self.params, off }
    }

    pub fn grad(&self, off: usize) -> Vector {
        Vector { buf: self.grads, off }
    }

    /// Whether the trained copy of a tensor is trained now.
    pub fn is_active(&self, tensor: Tensor) -> bool {
        match (&self.active, tensor.layer()) {
            (Some(active), Some(layer)) => active.contains(&layer),
            _ => true,
        }
    }

    /// Backward stops at this layer: nothing below it is trained. The number of layers, where none is.
    pub fn lowest_layer(&self, layers: usize) -> usize {
        let sites = self.sites.keys().map(|s| s.layer);
        let tensors = self.replaced.keys().filter_map(|t| t.layer());
        let prefix = self.rows.iter().filter(|r| !r.prefix.is_empty()).map(|_| 0);
        if self.embeds() { 0 } else { sites.chain(tensors).chain(prefix).min().unwrap_or(layers) }
    }

    /// Whether the gradient of the embedded tokens is asked for.
    pub fn embeds(&self) -> bool {
        [Tensor::Embed, Tensor::Positions].iter().any(|t| self.replaced.contains_key(t))
            || self.rows.as_ref().is_some_and(|r| r.embeddings.is_some())
    }

    /// Whether something in the attention half of `layer` is trained.
    pub fn in_attention(&self, layer: usize) -> bool {
        let tensor = |t: &Tensor| t.layer() == Some(layer) && t.in_attention();
        self.sites.keys().any(|s| s.layer == layer && s.module.is_attention())
            || self.replaced.keys().any(tensor)
            || self.rows.as_ref().is_some_and(|r| !r.prefix.is_empty())
    }
}
