//! What differs between models, as data. A family file turns `config.json` or GGUF metadata into a [`ModelSpec`].

use super::family::Family;
use crate::error::{Error, Result};
use crate::ops::activation::Activation;

#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// What files of its kind call things.
    pub family: &'static Family,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub eps: f32,
    /// LayerNorm, with biases, where others have RMSNorm.
    pub layer_norm: bool,
    /// None: positions are learned, and added to the embedding.
    pub rope: Option<Rope>,
    /// Layers that see only what is near.
    pub local: Option<Local>,
    /// The head is the embedding matrix.
    pub tied: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    pub o_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// RMSNorm of each head of q and k, before they are rotated.
    pub qk_norm: bool,
    /// A norm after attention and one after the MLP, before each joins the residual stream.
    pub post_norms: bool,
    pub activation: Activation,
    /// The MLP has a gate.
    pub gated: bool,
    /// Factor of the token embeddings.
    pub embed_scale: f32,
    /// Scores are divided by the root of this; None is head_dim.
    pub query_scalar: Option<f32>,
    /// Soft caps of attention's scores and of the final logits.
    pub attention_cap: Option<f32>,
    pub final_cap: Option<f32>,
    /// Positions the model was trained for.
    pub context: usize,
}

/// Layers that attend to the nearest positions only.
#[derive(Clone, Debug, PartialEq)]
pub struct Local {
    /// Positions that a token sees, its own among them.
    pub window: usize,
    /// By layer, whether it is one of them.
    pub layers: Vec<bool>,
    /// How these are rotated, where it is not as the others are.
    pub rope: Option<Rope>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions divided by a factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_context: f64,
    },
    /// A divisor for each frequency (GGUF's `rope_freqs.weight`).
    Divisors(Vec<f32>),
}

impl Rope {
    /// Radians a position for each of the D/2 pairs (formulas: transformers `modeling_rope_utils.py`).
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let base = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        match &self.scaling {
            RopeScaling::None => base.collect(),
            RopeScaling::Linear { factor } => base.map(|f| f / factor).collect(),
            RopeScaling::Divisors(d) => base.zip(d).map(|(f, d)| f / *d as f64).collect(),
            RopeScaling::Llama3 { factor, low, high, original_context } => base
                .map(|f| {
                    let wavelength = 2.0 * std::f64::consts::PI / f;
                    let smooth = ((original_context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                })
                .collect(),
        }
    }

    /// The Llama 3 scaling that has these divisors, if it is one that Meta's models use.
    pub fn llama3_of(&self, divisors: &[f32], head_dim: usize) -> Option<RopeScaling> {
        let factor = divisors.iter().fold(0f32, |most, d| most.max(*d)).round() as f64;
        let scaling = RopeScaling::Llama3 { factor, low: 1.0, high: 4.0, original_context: 8192.0 };
        let plain = Rope { scaling: RopeScaling::None, ..self.clone() }.frequencies(head_dim);
        let scaled = Rope { scaling: scaling.clone(), ..self.clone() }.frequencies(head_dim);
        let close = |((plain, scaled), d): ((&f64, &f64), &f32)| (plain / scaled / *d as f64 - 1.0).abs() < 1e-3;
        (divisors.len() == plain.len() && plain.iter().zip(&scaled).zip(divisors).all(close)).then_some(scaling)
    }

    /// What llama.cpp divides the frequencies by, for scalings that it has no key for.
    pub fn divisors(&self, head_dim: usize) -> Option<Vec<f32>> {
        match &self.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } => None,
            RopeScaling::Divisors(divisors) => Some(divisors.clone()),
            RopeScaling::Llama3 { .. } => {
                let plain = Rope { scaling: RopeScaling::None, ..self.clone() }.frequencies(head_dim);
                let divisors = plain.iter().zip(self.frequencies(head_dim)).map(|(plain, scaled)| plain / scaled);
                Some(divisors.map(|d| d as f32).collect())
            }
        }
    }

    /// (cos, sin) of every position and pair: [positions, D/2, 2].
    pub fn table(&self, head_dim: usize, positions: usize) -> Vec<f32> {
        let frequencies = self.frequencies(head_dim);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        angles.flat_map(|a| [a.cos() as f32, a.sin() as f32]).collect()
    }
}

/// Layers, heads or widths beyond these are a broken file, not a model.
pub const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 20;
const MAX_CONTEXT: usize = 1 << 28;

impl ModelSpec {
    /// Of no size yet, and with none of what not every family has.
    pub fn plain(family: &'static Family) -> ModelSpec {
        ModelSpec {
            family,
            vocab: 0,
            hidden: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            ffn: 0,
            eps: 1e-5,
            layer_norm: false,
            rope: Some(Rope { theta: 10000.0, scaling: RopeScaling::None }),
            local: None,
            tied: false,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            post_norms: false,
            activation: Activation::Silu,
            gated: true,
            embed_scale: 1.0,
            query_scalar: None,
            attention_cap: None,
            final_cap: None,
            context: 0,
        }
    }

    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The vocabulary rounded up to whole groups of 4: rows of the head's matrix.
    pub fn padded_vocab(&self) -> usize {
        self.vocab.next_multiple_of(4)
    }

    /// Factor of attention's scores.
    pub fn score_scale(&self) -> f32 {
        1.0 / self.query_scalar.unwrap_or(self.head_dim as f32).sqrt()
    }

    fn local(&self, layer: usize) -> Option<&Local> {
        self.local.as_ref().filter(|local| local.layers[layer])
    }

    /// Positions that a token sees in a layer; 0 for all before it.
    pub fn window(&self, layer: usize) -> usize {
        self.local(layer).map_or(0, |local| local.window)
    }

    /// The same model for readers that know no windows: where all layers have one, up to its length.
    pub fn within_windows(&self) -> ModelSpec {
        match &self.local {
            Some(local) if local.rope.is_none() && local.layers.iter().all(|local| *local) => {
                ModelSpec { context: local.window.min(self.context), local: None, ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    /// The rotary tables that some layer uses.
    fn ropes(&self) -> impl Iterator<Item = &Rope> {
        self.rope.iter().chain(self.local.iter().flat_map(|local| &local.rope))
    }

    /// Floats of [`ModelSpec::rope_table`].
    pub fn rope_len(&self, positions: usize) -> usize {
        self.ropes().count() * positions * self.head_dim
    }

    /// The rotary tables for so many positions, one after the other.
    pub fn rope_table(&self, positions: usize) -> Vec<f32> {
        self.ropes().flat_map(|rope| rope.table(self.head_dim, positions)).collect()
    }

    /// Where in it position 0 of a layer is; None where positions are learned.
    pub fn rope_first(&self, layer: usize, positions: usize) -> Option<usize> {
        self.rope.as_ref()?;
        let own = self.local(layer).is_some_and(|local| local.rope.is_some());
        Some(if own { positions } else { 0 })
    }

    /// Weights and biases of the base model.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<u64>()).sum()
    }

    /// Refuses sizes that cannot be a model, and those the kernels do not cover.
    pub fn check(self, file: &str) -> Result<ModelSpec> {
        let mut problems = Vec::new();
        let mut need = |ok: bool, what: String| {
            if !ok {
                problems.push(what);
            }
        };
        for (name, value, max) in [
            ("vocab_size", self.vocab, MAX_WIDTH),
            ("hidden_size", self.hidden, MAX_WIDTH),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", self.heads, MAX_LAYERS),
            ("num_key_value_heads", self.kv_heads, MAX_LAYERS),
            ("head_dim", self.head_dim, 256),
            ("intermediate_size", self.ffn, MAX_WIDTH),
            ("max_position_embeddings", self.context, MAX_CONTEXT),
        ] {
            need((1..=max).contains(&value), format!("{name} is {value}, expected 1 to {max}"));
        }
        if self.kv_heads > 0 {
            let what = format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.heads, self.kv_heads
            );
            need(self.heads.is_multiple_of(self.kv_heads), what);
        }
        for (name, value) in
            [("hidden_size", self.hidden), ("head_dim", self.head_dim), ("intermediate_size", self.ffn)]
        {
            need(value.is_multiple_of(4), format!("{name} {value} is not a multiple of 4, which the kernels need"));
        }
        need(self.eps > 0.0 && self.eps < 1.0, format!("rms_norm_eps is {}", self.eps));
        for rope in self.ropes() {
            need(rope.theta > 1.0, format!("rope_theta is {}", rope.theta));
        }
        if let Some(local) = &self.local {
            need(local.window > 0, "sliding_window is 0".into());
            let what = format!("{} layers have a type, the model has {}", local.layers.len(), self.layers);
            need(local.layers.len() == self.layers, what);
        }
        for (name, value) in [
            ("query_pre_attn_scalar", self.query_scalar),
            ("attn_logit_softcapping", self.attention_cap),
            ("final_logit_softcapping", self.final_cap),
        ] {
            let what = format!("{name} is {}, expected more than 0", value.unwrap_or_default());
            need(value.is_none_or(|v| v.is_finite() && v > 0.0), what);
        }
        if problems.is_empty() {
            return Ok(self);
        }
        Err(Error::Mismatch {
            file: file.into(),
            problems,
            hint: "the file is damaged or not a supported model".into(),
        })
    }
}
