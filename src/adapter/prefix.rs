//! Prefix tuning (Li & Liang 2021): learned keys and values before each text in every layer, without rotary angles, as
//! PEFT's cache entries. There is no reparametrisation: PEFT saves a prefix without it too.

use super::method::{Initial, Method, Role};
use super::prompt::DEVIATION;
use crate::model::ModelSpec;
use serde_json::{Value, json};

#[derive(Clone, Debug)]
pub struct Prefix {
    pub tokens: usize,
    /// Of keys and values.
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
}

impl Prefix {
    pub fn new(spec: &ModelSpec, tokens: usize) -> Prefix {
        Prefix { tokens, width: spec.kv_width(), layers: spec.layers, heads: spec.kv_heads }
    }
}

impl Method for Prefix {
    fn name(&self) -> &'static str {
        "prefix"
    }

    fn parts(&self, spec: &ModelSpec) -> Vec<(Role, [usize; 2])> {
        let shape = [self.tokens, spec.kv_width()];
        (0..spec.layers).flat_map(|l| [(Role::PrefixK(l), shape), (Role::PrefixV(l), shape)]).collect()
    }

    fn initial(&self, _role: Role, _shape: [usize; 2]) -> Initial {
        Initial::Normal(DEVIATION)
    }

    fn virtual_tokens(&self) -> usize {
        self.tokens
    }

    fn config(&self) -> Value {
        json!({
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": self.tokens,
            "token_dim": self.width,
            "num_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": self.width,
            "prefix_projection": false,
        })
    }
}
