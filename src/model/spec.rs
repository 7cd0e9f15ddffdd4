//! What differs between models, as data. A family file turns `config.json` or GGUF metadata into a [`ModelSpec`].

use crate::error::{Error, Result};

#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// `model_type` of config.json, or `general.architecture`.
    pub family: String,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub eps: f32,
    pub rope: Rope,
    /// The head is the embedding matrix.
    pub tied: bool,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// Positions the model was trained for.
    pub context: usize,
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
const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 20;

impl ModelSpec {
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

    /// Weights and biases of the base model.
    pub fn parameters(&self) -> u64 {
        let (c, q, kv, f) = (self.hidden as u64, self.q_width() as u64, self.kv_width() as u64, self.ffn as u64);
        let attention_bias = if self.attention_bias { q + 2 * kv + c } else { 0 };
        let mlp_bias = if self.mlp_bias { 2 * f + c } else { 0 };
        let layer = 2 * c * q + 2 * c * kv + 3 * c * f + 2 * c + attention_bias + mlp_bias;
        let embeddings = self.vocab as u64 * c * if self.tied { 1 } else { 2 };
        embeddings + layer * self.layers as u64 + c
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
        need(self.rope.theta > 1.0, format!("rope_theta is {}", self.rope.theta));
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
