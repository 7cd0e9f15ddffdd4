//! The tensors a base model consists of, and what the two file formats call them.

use super::seam::{Module, Site};
use super::spec::ModelSpec;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tensor {
    Embed,
    /// Learned positions.
    Positions,
    Head,
    Norm(NormAt),
    NormBias(NormAt),
    Weight(Site),
    Bias(Site),
}

impl Tensor {
    /// The block it belongs to, if it belongs to one.
    pub fn layer(self) -> Option<usize> {
        match self {
            Tensor::Norm(at) | Tensor::NormBias(at) => at.layer(),
            Tensor::Weight(s) | Tensor::Bias(s) => Some(s.layer),
            Tensor::Embed | Tensor::Positions | Tensor::Head => None,
        }
    }

    /// Whether it belongs to the attention half of its block.
    pub fn in_attention(self) -> bool {
        match self {
            Tensor::Norm(at) | Tensor::NormBias(at) => {
                matches!(at, NormAt::Attention(_) | NormAt::PostAttention(_) | NormAt::Q(_) | NormAt::K(_))
            }
            Tensor::Weight(s) | Tensor::Bias(s) => s.module.is_attention(),
            Tensor::Embed | Tensor::Positions | Tensor::Head => false,
        }
    }
}

/// Which norm, and in which layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NormAt {
    Final,
    /// Before attention.
    Attention(usize),
    /// After attention, before it joins the residual stream.
    PostAttention(usize),
    /// Before the MLP.
    Mlp(usize),
    PostMlp(usize),
    /// Of each head of q, before it is rotated.
    Q(usize),
    K(usize),
}

impl NormAt {
    fn layer(self) -> Option<usize> {
        match self {
            NormAt::Final => None,
            NormAt::Attention(l)
            | NormAt::PostAttention(l)
            | NormAt::Mlp(l)
            | NormAt::PostMlp(l)
            | NormAt::Q(l)
            | NormAt::K(l) => Some(l),
        }
    }
}

/// What a family's files call its tensors, `.weight` and `.bias` left out. Modules of one name are one tensor there,
/// stacked by rows in the order of [`Module::ALL`]; an empty name is of a part that the family lacks.
#[derive(Debug)]
pub struct Names {
    pub embed: &'static str,
    pub positions: &'static str,
    pub head: &'static str,
    pub norm: &'static str,
    /// Followed by the layer's number.
    pub layer: &'static str,
    pub attention_norm: &'static str,
    pub post_attention_norm: &'static str,
    pub mlp_norm: &'static str,
    pub post_mlp_norm: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    /// By [`Module`]: q, k, v, o, gate, up, down.
    pub modules: [&'static str; 7],
}

impl Names {
    /// A linear's name within its layer: `self_attn.q_proj` and the like.
    pub fn module(&self, module: Module) -> &'static str {
        self.modules[module as usize]
    }

    /// `model.layers.3.self_attn.q_proj` and the like: what PEFT calls a linear.
    pub fn path(&self, site: Site) -> String {
        format!("{}.{}.{}", self.layer, site.layer, self.module(site.module))
    }

    /// A norm's name within its layer; the last one's is whole.
    pub fn norm_name(&self, at: NormAt) -> &'static str {
        match at {
            NormAt::Final => self.norm,
            NormAt::Attention(_) => self.attention_norm,
            NormAt::PostAttention(_) => self.post_attention_norm,
            NormAt::Mlp(_) => self.mlp_norm,
            NormAt::PostMlp(_) => self.post_mlp_norm,
            NormAt::Q(_) => self.q_norm,
            NormAt::K(_) => self.k_norm,
        }
    }

    fn norm(&self, at: NormAt) -> String {
        let name = self.norm_name(at);
        at.layer().map_or(name.into(), |layer| format!("{}.{layer}.{name}", self.layer))
    }

    pub fn name(&self, tensor: Tensor) -> String {
        match tensor {
            Tensor::Embed => format!("{}.weight", self.embed),
            Tensor::Positions => format!("{}.weight", self.positions),
            Tensor::Head => format!("{}.weight", self.head),
            Tensor::Norm(at) => format!("{}.weight", self.norm(at)),
            Tensor::NormBias(at) => format!("{}.bias", self.norm(at)),
            Tensor::Weight(s) => format!("{}.weight", self.path(s)),
            Tensor::Bias(s) => format!("{}.bias", self.path(s)),
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
        match module {
            Module::Q | Module::K | Module::V => self.qkv_bias,
            Module::O => self.o_bias,
            Module::Gate | Module::Up | Module::Down => self.mlp_bias,
        }
    }

    /// The linears of a layer.
    pub fn modules(&self) -> impl Iterator<Item = Module> {
        Module::ALL.into_iter().filter(|module| self.gated || *module != Module::Gate)
    }

    /// The norms of a layer.
    fn layer_norms(&self, layer: usize) -> Vec<NormAt> {
        let mut norms = vec![NormAt::Attention(layer), NormAt::Mlp(layer)];
        if self.post_norms {
            norms.extend([NormAt::PostAttention(layer), NormAt::PostMlp(layer)]);
        }
        if self.qk_norm {
            norms.extend([NormAt::Q(layer), NormAt::K(layer)]);
        }
        norms
    }

    /// Values of a norm's weight.
    pub fn norm_width(&self, at: NormAt) -> usize {
        if matches!(at, NormAt::Q(_) | NormAt::K(_)) { self.head_dim } else { self.hidden }
    }

    /// Every tensor the model needs, with its shape, outermost first.
    pub fn tensors(&self) -> Vec<(Tensor, Vec<u64>)> {
        let (v, c) = (self.vocab as u64, self.hidden as u64);
        let mut all = vec![(Tensor::Embed, vec![v, c])];
        if self.rope.is_none() {
            all.push((Tensor::Positions, vec![self.context as u64, c]));
        }
        let norms = |all: &mut Vec<_>, at: NormAt| {
            all.push((Tensor::Norm(at), vec![self.norm_width(at) as u64]));
            if self.layer_norm {
                all.push((Tensor::NormBias(at), vec![self.norm_width(at) as u64]));
            }
        };
        norms(&mut all, NormAt::Final);
        if !self.tied {
            all.push((Tensor::Head, vec![v, c]));
        }
        for layer in 0..self.layers {
            self.layer_norms(layer).into_iter().for_each(|at| norms(&mut all, at));
            for module in self.modules() {
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

    /// Names of transformers checkpoints.
    pub fn hf_name(&self, tensor: Tensor) -> String {
        self.family.hf.name(tensor)
    }

    /// Names of GGUF files (llama.cpp `llama-arch.cpp`).
    pub fn gguf_name(&self, tensor: Tensor) -> String {
        self.family.gguf.name(tensor)
    }
}

/// GGUF files of arch llama keep the rows of q and k as interleaved pairs, head by head: the head_dim to rearrange by.
pub fn interleaved(spec: &ModelSpec, tensor: Tensor) -> Option<usize> {
    let pairs = match tensor {
        Tensor::Weight(s) | Tensor::Bias(s) => matches!(s.module, Module::Q | Module::K),
        _ => false,
    };
    (pairs && spec.family.interleaved).then_some(spec.head_dim)
}
