//! LISA (Pan et al. 2024): everything is trained, but not all at the same time. Embeddings, head and last norm always
//! are; of the blocks a few, drawn anew every so many steps. Backward makes no dW for the others.
//!
//! Optimizer states begin anew with each drawing, those of what is always trained among them, so that a step's size
//! does not depend on how long a block had rested. The authors' code (LMFlow) keeps them: a block goes on with the
//! moments and the count of steps it had when it was drawn last. Drawing is as there: uniform, without putting back,
//! blocks alone freeze, the last norm never does. All f32 copies stay on the device: it saves time, not memory.

use super::base::OfTheBase;
use super::method::{Initial, Method, Role};
use crate::model::ModelSpec;
use crate::num::uniform;
use serde_json::Value;

#[derive(Clone, Debug)]
pub struct Lisa {
    /// Everything.
    pub all: OfTheBase,
    /// Blocks trained at a time.
    pub blocks: usize,
    /// Steps between drawings.
    pub interval: u64,
    pub layers: usize,
}

impl Method for Lisa {
    fn name(&self) -> &'static str {
        "lisa"
    }

    fn parts(&self, spec: &ModelSpec) -> Vec<(Role, [usize; 2])> {
        self.all.parts(spec)
    }

    fn initial(&self, role: Role, shape: [usize; 2]) -> Initial {
        self.all.initial(role, shape)
    }

    /// What was trained is a whole model, however it was trained.
    fn config(&self) -> Value {
        self.all.config()
    }

    fn interval(&self) -> Option<u64> {
        Some(self.interval)
    }

    fn drawn(&self, seed: u64, drawing: u64) -> Vec<usize> {
        let mut layers: Vec<usize> = (0..self.layers).collect();
        // Fisher and Yates, as far as it is needed.
        for i in 0..self.blocks {
            let left = (self.layers - i) as f64;
            layers.swap(i, i + (uniform(seed, drawing, i as u64) * left) as usize);
        }
        layers.truncate(self.blocks);
        layers.sort_unstable();
        layers
    }
}
