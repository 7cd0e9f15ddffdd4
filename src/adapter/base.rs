//! Methods that train tensors of the base themselves: the norms (Zhao et al. 2024), the biases (BitFit, Ben Zaken et
//! al. 2022), the last blocks, or everything. The base's own copies stay as they are; trained ones take their place.
//!
//! Where a model has no biases, BitFit gives it some that start at zero: transformers' `attention_bias` and `mlp_bias`.

use super::method::{Initial, Method, Role};
use crate::model::tensors::Tensor;
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

impl Method for Tensors {
    fn name(&self) -> &'static str {
        match self {
            Tensors::Norms => "norm",
            Tensors::Biases => "bitfit",
            Tensors::Last(_) => "last-k",
            Tensors::All => "full",
        }
    }

    fn parts(&self, spec: &ModelSpec) -> Vec<(Role, [usize; 2])> {
        if *self == Tensors::Biases {
            let sites = (0..spec.layers).flat_map(|layer| Module::ALL.map(|module| Site { layer, module }));
            let bias = |site: Site| (Role::Base(Tensor::Bias(site)), [1, spec.linear_shape(site.module).0]);
            return sites.map(bias).collect();
        }
        let tensors = spec.tensors().into_iter().filter(|(tensor, _)| self.trains(*tensor, spec));
        let part = |(tensor, shape): (Tensor, Vec<u64>)| match shape[..] {
            // The embedding and the head have whole groups of 4 rows on the device.
            [rows, cols] => (Role::Base(tensor), [(rows as usize).next_multiple_of(4), cols as usize]),
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
        let targets = ["input_layernorm", "post_attention_layernorm", "norm"];
        match self {
            Tensors::Norms => json!({ "peft_type": "LN_TUNING", "target_modules": targets, "modules_to_save": null }),
            Tensors::Last(k) => json!({ "luthier_method": self.name(), "last_k": k }),
            Tensors::Biases | Tensors::All => json!({ "luthier_method": self.name() }),
        }
    }
}

impl Tensors {
    fn trains(&self, tensor: Tensor, spec: &ModelSpec) -> bool {
        match self {
            Tensors::Norms => matches!(tensor, Tensor::AttentionNorm(_) | Tensor::MlpNorm(_) | Tensor::FinalNorm),
            Tensors::Biases => matches!(tensor, Tensor::Bias(_)),
            Tensors::Last(k) => tensor.layer().is_some_and(|layer| layer + k >= spec.layers),
            Tensors::All => true,
        }
    }
}
