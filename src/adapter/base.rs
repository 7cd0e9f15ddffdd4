//! Methods that train tensors of the base themselves: the norms (Zhao et al. 2024), the biases (BitFit, Ben Zaken et
//! al. 2022), the last blocks, or everything. The base's own copies stay as they are; trained ones take their place.
//!
//! Where a Llama has no biases, BitFit gives it some that start at zero: transformers' `attention_bias` and `mlp_bias`.

use super::method::{Initial, Method, Role};
use crate::model::family::{Family, LLAMA};
use crate::model::tensors::{NormAt, Tensor};
use crate::model::{ModelSpec, Module, Site};
use serde_json::{Value, json};

/// Which tensors are trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tensors {
    Norms,
    Biases,
    /// All of the last blocks.
    Last(usize),
    All,
}

#[derive(Clone, Copy, Debug)]
pub struct OfTheBase {
    pub which: Tensors,
    /// Whose names the files use.
    family: &'static Family,
    /// Whether heads have norms too.
    qk_norm: bool,
}

impl Tensors {
    /// What `--method` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Tensors::Norms => "norm",
            Tensors::Biases => "bitfit",
            Tensors::Last(_) => "last-k",
            Tensors::All => "full",
        }
    }

    fn trains(self, tensor: Tensor, spec: &ModelSpec) -> bool {
        match self {
            Tensors::Norms => matches!(tensor, Tensor::Norm(_) | Tensor::NormBias(_)),
            Tensors::Biases => matches!(tensor, Tensor::Bias(_) | Tensor::NormBias(_)),
            Tensors::Last(k) => tensor.layer().is_some_and(|layer| layer + k >= spec.layers),
            Tensors::All => true,
        }
    }
}

impl Method for OfTheBase {
    fn name(&self) -> &'static str {
        self.which.name()
    }

    fn parts(&self, spec: &ModelSpec) -> Vec<(Role, [usize; 2])> {
        if self.which == Tensors::Biases && *spec.family == LLAMA {
            let sites = (0..spec.layers).flat_map(|layer| Module::ALL.map(|module| Site { layer, module }));
            let bias = |site: Site| (Role::Base(Tensor::Bias(site)), [1, spec.linear_shape(site.module).0]);
            return sites.map(bias).collect();
        }
        let tensors = spec.tensors().into_iter().filter(|(tensor, _)| self.which.trains(*tensor, spec));
        let part = |(tensor, shape): (Tensor, Vec<u64>)| match (tensor, &shape[..]) {
            // The embedding and the head have whole groups of 4 rows on the device.
            (Tensor::Embed | Tensor::Head, _) => (Role::Base(tensor), [spec.padded_vocab(), spec.hidden]),
            (_, [rows, cols]) => (Role::Base(tensor), [*rows as usize, *cols as usize]),
            _ => (Role::Base(tensor), [1, shape[0] as usize]),
        };
        tensors.map(part).collect()
    }

    fn initial(&self, role: Role, _shape: [usize; 2]) -> Initial {
        match role {
            Role::Base(tensor) => Initial::Base(tensor),
            _ => Initial::Zero,
        }
    }

    fn config(&self) -> Value {
        match self.which {
            Tensors::Norms => {
                json!({ "peft_type": "LN_TUNING", "target_modules": self.norms(), "modules_to_save": null })
            }
            Tensors::Last(k) => json!({ "luthier_method": self.name(), "last_k": k }),
            Tensors::Biases | Tensors::All => json!({ "luthier_method": self.name() }),
        }
    }
}

impl OfTheBase {
    pub fn new(which: Tensors, spec: &ModelSpec) -> OfTheBase {
        OfTheBase { which, family: spec.family, qk_norm: spec.qk_norm }
    }

    /// The last names of the model's norms, as `target_modules` has them.
    fn norms(&self) -> Vec<&'static str> {
        let names = &self.family.hf;
        let of_a_layer = [NormAt::Attention(0), NormAt::PostAttention(0), NormAt::Mlp(0), NormAt::PostMlp(0)];
        let of_heads = [NormAt::Q(0), NormAt::K(0)];
        let of_heads = of_heads.into_iter().filter(|_| self.qk_norm);
        let all = of_a_layer.into_iter().chain(of_heads).chain([NormAt::Final]);
        let last = |name: &'static str| name.rsplit_once('.').map_or(name, |(_, last)| last);
        all.map(|at| last(names.norm_name(at))).filter(|name| !name.is_empty()).collect()
    }
}
