//! Prompt tuning (Lester et al. 2021): learned embeddings before each text, and nothing else.
//!
//! They start as the embeddings of a text, or of tokens drawn from the vocabulary: both lie where the model expects
//! inputs. PEFT's RANDOM is a standard normal, some twenty times as large as any embedding of a small model; ours has
//! the deviation that embeddings are initialised with.

use super::method::{Initial, Method, Role};
use crate::model::ModelSpec;
use serde_json::{Value, json};

#[derive(Clone, Debug)]
pub struct Prompt {
    pub tokens: usize,
    pub start: Start,
    /// What PEFT's configuration wants to know of the model.
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    Text(String),
    Vocabulary,
    Random,
}

/// The usual deviation of a model's weights before training (`initializer_range` of transformers' configurations).
pub const DEVIATION: f64 = 0.02;

impl Prompt {
    pub fn new(spec: &ModelSpec, tokens: usize, start: Start) -> Prompt {
        Prompt { tokens, start, width: spec.hidden, layers: spec.layers, heads: spec.heads }
    }
}

impl Method for Prompt {
    fn name(&self) -> &'static str {
        "prompt"
    }

    fn parts(&self, spec: &ModelSpec) -> Vec<(Role, [usize; 2])> {
        vec![(Role::Prompt, [self.tokens, spec.hidden])]
    }

    fn initial(&self, _role: Role, _shape: [usize; 2]) -> Initial {
        match &self.start {
            Start::Text(text) => Initial::Text(text.clone()),
            Start::Vocabulary => Initial::Vocabulary,
            Start::Random => Initial::Normal(DEVIATION),
        }
    }

    fn virtual_tokens(&self) -> usize {
        self.tokens
    }

    fn config(&self) -> Value {
        json!({
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": self.tokens,
            "token_dim": self.width,
            "num_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_transformer_submodules": 1,
            // The start is over: PEFT would want a tokenizer for TEXT when it reads this.
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": null,
            "tokenizer_name_or_path": null,
        })
    }
}
