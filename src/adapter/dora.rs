//! DoRA (Liu et al. 2024): each row of `W + s·B·A` is brought to a learned length m, which starts as the row's own.

use super::lora::Lora;
use super::method::{Initial, LowRank, Method, Role};
use crate::model::tensors::Tensor;
use crate::model::{ModelSpec, Site};
use serde_json::Value;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Dora(pub Lora);

impl Method for Dora {
    fn name(&self) -> &'static str {
        "dora"
    }

    fn parts(&self, spec: &ModelSpec) -> Vec<(Role, [usize; 2])> {
        let magnitude = |site: &Site| (Role::Magnitude(*site), [1, spec.linear_shape(site.module).0]);
        let mut parts = self.0.parts(spec);
        parts.extend(self.0.sites.iter().map(magnitude));
        parts
    }

    fn initial(&self, role: Role, shape: [usize; 2]) -> Initial {
        match role {
            Role::Magnitude(site) => Initial::RowNorms(Tensor::Weight(site)),
            _ => self.0.initial(role, shape),
        }
    }

    fn low_rank(&self, site: Site) -> LowRank {
        self.0.low_rank(site)
    }

    fn rate(&self, role: Role) -> f32 {
        self.0.rate(role)
    }

    fn with_ratio(&self, ratio: f32) -> Option<Arc<dyn Method>> {
        Some(Arc::new(Dora(self.0.at_ratio(ratio))))
    }

    fn config(&self) -> Value {
        let mut config = self.0.config();
        config["use_dora"] = true.into();
        config
    }
}
