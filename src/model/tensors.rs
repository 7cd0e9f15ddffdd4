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
    /// The linears' weights are kept as [in, out].
    pub transposed: bool,
}

/// A tensor as a file has it: one of the model's, or several stacked by rows.
#[derive(Clone, Debug)]
pub struct FileTensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub parts: Vec<Tensor>,
    /// As [in, out].
    pub transposed: bool,
}

impl Names {
    /// A linear's name within its layer: `self_attn.q_proj` and the like.
    pub fn module(&self, module: Module) -> &'static str {
        self.modules[module as usize]
    }

    /// The shortest name that is this linear's alone: what PEFT's `target_modules` gets.
    pub fn target(&self, module: Module) -> &'static str {
        let path = self.module(module);
        let last = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
        let shared = self.modules.iter().any(|other| *other != path && last(other) == last(path));
        if shared { path } else { last(path) }
    }

    /// Whether `target` names this linear, as PEFT understands it: by a whole end of its path.
    pub fn is_target(&self, module: Module, target: &str) -> bool {
        let path = self.module(module);
        path == target || path.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
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

    /// A tensor's shape: rows and columns, or a vector's length.
    pub fn shape(&self, tensor: Tensor) -> Vec<usize> {
        match tensor {
            Tensor::Embed | Tensor::Head => vec![self.vocab, self.hidden],
            Tensor::Positions => vec![self.context, self.hidden],
            Tensor::Norm(at) | Tensor::NormBias(at) => vec![self.norm_width(at)],
            Tensor::Weight(site) => <[usize; 2]>::from(self.linear_shape(site.module)).to_vec(),
            Tensor::Bias(site) => vec![self.linear_shape(site.module).0],
        }
    }

    /// Every tensor the model needs, with its shape, outermost first.
    pub fn tensors(&self) -> Vec<(Tensor, Vec<u64>)> {
        let mut all = vec![Tensor::Embed];
        all.extend(self.rope.is_none().then_some(Tensor::Positions));
        let norm = |at| [Some(Tensor::Norm(at)), self.layer_norm.then_some(Tensor::NormBias(at))];
        all.extend(norm(NormAt::Final).into_iter().flatten());
        all.extend((!self.tied).then_some(Tensor::Head));
        for layer in 0..self.layers {
            all.extend(self.layer_norms(layer).into_iter().flat_map(norm).flatten());
            for module in self.modules() {
                let site = Site { layer, module };
                all.push(Tensor::Weight(site));
                all.extend(self.has_bias(module).then_some(Tensor::Bias(site)));
            }
        }
        let shape = |tensor| self.shape(tensor).into_iter().map(|extent| extent as u64).collect();
        all.into_iter().map(|tensor| (tensor, shape(tensor))).collect()
    }

    /// The tensors as files have them that use these names.
    pub fn file_tensors(&self, names: &Names) -> Vec<FileTensor> {
        let mut all: Vec<FileTensor> = Vec::new();
        for (tensor, shape) in self.tensors() {
            let name = names.name(tensor);
            // What is stacked with it, if anything, came a few tensors before.
            if let Some(file) = all.iter_mut().rev().take(8).find(|file| file.name == name) {
                file.shape[0] += shape[0];
                file.parts.push(tensor);
            } else {
                let transposed = names.transposed && matches!(tensor, Tensor::Weight(_));
                all.push(FileTensor { name, shape, parts: vec![tensor], transposed });
            }
        }
        all.iter_mut().filter(|file| file.transposed).for_each(|file| file.shape.reverse());
        all
    }

    /// The row of the file's tensor at which this one begins.
    pub fn first_row(&self, names: &Names, tensor: Tensor) -> usize {
        let (Tensor::Weight(site) | Tensor::Bias(site)) = tensor else { return 0 };
        let before = self.modules().take_while(|module| *module != site.module);
        let stacked = before.filter(|module| names.module(*module) == names.module(site.module));
        stacked.map(|module| self.linear_shape(module).0).sum()
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
