//! The tensors a base model consists of, and their names in the two file formats.

use super::seam::{Module, Site};
use super::spec::ModelSpec;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tensor {
    Embed,
    FinalNorm,
    Head,
    AttentionNorm(usize),
    MlpNorm(usize),
    Weight(Site),
    Bias(Site),
}

impl Tensor {
    /// The block it belongs to, if it belongs to one.
    pub fn layer(self) -> Option<usize> {
        match self {
            Tensor::AttentionNorm(l) | Tensor::MlpNorm(l) => Some(l),
            Tensor::Weight(s) | Tensor::Bias(s) => Some(s.layer),
            Tensor::Embed | Tensor::FinalNorm | Tensor::Head => None,
        }
    }
}

impl ModelSpec {
    /// (out, in) of a linear.
    pub fn linear_shape(&self, module: Module) -> (usize, usize) {
        match module {
            Module::Q => (self.q_width(), self.hidden),
            Module::K | Module::V => (self.kv_width(), self.hidden),
            Module::O => (self.hidden, self.q_width()),
            Module::Gate | Module::Up => (self.ffn, self.hidden),
            Module::Down => (self.hidden, self.ffn),
        }
    }

    pub fn has_bias(&self, module: Module) -> bool {
        if module.is_attention() { self.attention_bias } else { self.mlp_bias }
    }

    /// Every tensor the model needs, with its shape, outermost first.
    pub fn tensors(&self) -> Vec<(Tensor, Vec<u64>)> {
        let (v, c) = (self.vocab as u64, self.hidden as u64);
        let mut all = vec![(Tensor::Embed, vec![v, c]), (Tensor::FinalNorm, vec![c])];
        if !self.tied {
            all.push((Tensor::Head, vec![v, c]));
        }
        for layer in 0..self.layers {
            all.push((Tensor::AttentionNorm(layer), vec![c]));
            all.push((Tensor::MlpNorm(layer), vec![c]));
            for module in Module::ALL {
                let site = Site { layer, module };
                let (o, i) = self.linear_shape(module);
                all.push((Tensor::Weight(site), vec![o as u64, i as u64]));
                if self.has_bias(module) {
                    all.push((Tensor::Bias(site), vec![o as u64]));
                }
            }
        }
        all
    }
}

/// `self_attn.q_proj` and the like.
pub fn module_path(module: Module) -> String {
    format!("{}.{}", if module.is_attention() { "self_attn" } else { "mlp" }, module.name())
}

/// Names of transformers checkpoints.
pub fn hf_name(tensor: Tensor) -> String {
    let site = |s: Site, what: &str| format!("model.layers.{}.{}.{what}", s.layer, module_path(s.module));
    match tensor {
        Tensor::Embed => "model.embed_tokens.weight".into(),
        Tensor::FinalNorm => "model.norm.weight".into(),
        Tensor::Head => "lm_head.weight".into(),
        Tensor::AttentionNorm(l) => format!("model.layers.{l}.input_layernorm.weight"),
        Tensor::MlpNorm(l) => format!("model.layers.{l}.post_attention_layernorm.weight"),
        Tensor::Weight(s) => site(s, "weight"),
        Tensor::Bias(s) => site(s, "bias"),
    }
}

/// GGUF files of arch llama keep the rows of q and k as interleaved pairs, head by head: the head_dim to rearrange by.
pub fn interleaved(spec: &ModelSpec, tensor: Tensor) -> Option<usize> {
    let pairs = match tensor {
        Tensor::Weight(s) | Tensor::Bias(s) => matches!(s.module, Module::Q | Module::K),
        _ => false,
    };
    (pairs && spec.family == "llama").then_some(spec.head_dim)
}

/// Names of GGUF files (llama.cpp `llama-arch.cpp`).
pub fn gguf_name(tensor: Tensor) -> String {
    let module = |m: Module| match m {
        Module::Q => "attn_q",
        Module::K => "attn_k",
        Module::V => "attn_v",
        Module::O => "attn_output",
        Module::Gate => "ffn_gate",
        Module::Up => "ffn_up",
        Module::Down => "ffn_down",
    };
    match tensor {
        Tensor::Embed => "token_embd.weight".into(),
        Tensor::FinalNorm => "output_norm.weight".into(),
        Tensor::Head => "output.weight".into(),
        Tensor::AttentionNorm(l) => format!("blk.{l}.attn_norm.weight"),
        Tensor::MlpNorm(l) => format!("blk.{l}.ffn_norm.weight"),
        Tensor::Weight(s) => format!("blk.{}.{}.weight", s.layer, module(s.module)),
        Tensor::Bias(s) => format!("blk.{}.{}.bias", s.layer, module(s.module)),
    }
}
