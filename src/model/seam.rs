//! Where adapters attach: at every linear of a block, by site. The model knows offsets and scales, not methods.

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

/// What an adapter adds at a site: `y = x·Wᵀ + scale·(x·Aᵀ)·Bᵀ`, with dropout on the input of A.
#[derive(Clone, Copy, Debug)]
pub struct LinearPatch {
    pub rank: usize,
    pub scale: f32,
    /// First float of A:[R, I] in the flat parameter buffer.
    pub a: usize,
    /// First float of Bᵀ:[R, O].
    pub b: usize,
    pub dropout: f32,
}

/// The adapter as the model sees it: two flat buffers and a patch at each adapted site.
#[derive(Clone, Debug)]
pub struct Patches {
    pub params: Buf,
    pub grads: Buf,
    pub sites: BTreeMap<Site, LinearPatch>,
}

impl Patches {
    /// Backward stops at this layer.
    pub fn lowest_layer(&self) -> Option<usize> {
        self.sites.keys().next().map(|s| s.layer)
    }

    /// Whether something in the attention half of `layer` is adapted.
    pub fn in_attention(&self, layer: usize) -> bool {
        self.sites.keys().any(|s| s.layer == layer && s.module.is_attention())
    }
}
