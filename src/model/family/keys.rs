//! Typed access to `config.json` and to GGUF metadata, with errors that name file and key; rotary settings in all the
//! ways files tell them.

use crate::error::{Error, Result};
use crate::model::spec::{Local, MAX_LAYERS, Rope, RopeScaling};
use crate::ops::activation::Activation;
use crate::weights::Gguf;
use crate::weights::gguf::{self, Metadata};
use serde_json::{Value, json};

pub fn unsupported(file: &str, what: String, hint: &str) -> Error {
    Error::Unsupported { file: file.into(), what, hint: hint.into() }
}

/// config.json
pub struct Keys<'a> {
    pub config: &'a Value,
    pub file: &'a str,
}

impl Keys<'_> {
    pub fn bad(&self, key: &str, what: &str) -> Error {
        Error::Malformed {
            file: self.file.into(),
            at: format!("config.json: \"{key}\""),
            what: what.into(),
            hint: "use the config.json that belongs to the weights".into(),
        }
    }

    pub fn usize(&self, key: &str) -> Result<usize> {
        self.optional_usize(key)?.ok_or_else(|| self.bad(key, "is missing"))
    }

    pub fn optional_usize(&self, key: &str) -> Result<Option<usize>> {
        match &self.config[key] {
            Value::Null => Ok(None),
            value => match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
                Some(v) => Ok(Some(v)),
                None => Err(self.bad(key, &format!("is {value}, expected a whole number"))),
            },
        }
    }

    pub fn optional_f64(&self, key: &str) -> Result<Option<f64>> {
        match &self.config[key] {
            Value::Null => Ok(None),
            value => value.as_f64().map(Some).ok_or_else(|| self.bad(key, &format!("is {value}, expected a number"))),
        }
    }

    pub fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.optional_f64(key)?.unwrap_or(default))
    }

    pub fn str_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        match &self.config[key] {
            Value::Null => Ok(default),
            value => value.as_str().ok_or_else(|| self.bad(key, &format!("is {value}, expected text"))),
        }
    }

    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        match &self.config[key] {
            Value::Null => Ok(default),
            value => value.as_bool().ok_or_else(|| self.bad(key, &format!("is {value}, expected true or false"))),
        }
    }

    /// Refuses a setting that is not the one that is covered.
    pub fn only(&self, key: &str, covered: Value) -> Result<()> {
        let given = &self.config[key];
        if given.is_null() || *given == covered || given.is_number() && given.as_f64() == covered.as_f64() {
            return Ok(());
        }
        if std::mem::discriminant(given) != std::mem::discriminant(&covered) {
            return Err(self.bad(key, &format!("is {given}, expected something like {covered}")));
        }
        let what = format!("\"{key}\" is {given} in config.json");
        Err(unsupported(self.file, what, &format!("only {covered} is supported")))
    }

    pub fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        match self.str_or(key, default)? {
            "silu" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            other => {
                let what = format!("\"{key}\" is \"{other}\" in config.json");
                Err(unsupported(self.file, what, "supported: silu, gelu_pytorch_tanh, gelu_new"))
            }
        }
    }

    /// By layer, whether it sees only what is near: what `layer_types` says, else all but every `pattern`th.
    pub fn local_layers(&self, layers: usize, pattern: usize) -> Result<Vec<bool>> {
        let Some(types) = self.config["layer_types"].as_array() else { return Ok(all_but_every(pattern, layers)) };
        let local = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => {
                let what = format!("a layer is of the type {kind}");
                Err(unsupported(self.file, what, "supported: full_attention, sliding_attention"))
            }
        };
        types.iter().map(local).collect()
    }

    /// Both generations: `rope_parameters` (transformers 5) holds theta and scaling, before it `rope_theta` stood
    /// beside `rope_scaling` with `type` or `rope_type`.
    pub fn rope(&self) -> Result<Rope> {
        let (name, object) = match &self.config["rope_parameters"] {
            Value::Null => ("rope_scaling", &self.config["rope_scaling"]),
            new => ("rope_parameters", new),
        };
        let theta = self.f64_or("rope_theta", 10000.0)?;
        self.only("partial_rotary_factor", json!(1.0))?;
        self.rope_in(name, object, theta)
    }

    /// Rotary settings from an object called `name`; `theta` where it says nothing else.
    pub fn rope_in(&self, name: &str, object: &Value, theta: f64) -> Result<Rope> {
        if !(object.is_null() || object.is_object()) {
            return Err(self.bad(name, &format!("is {object}, expected an object")));
        }
        let inner = Keys { config: object, file: self.file };
        let theta = inner.f64_or("rope_theta", theta)?;
        inner.only("partial_rotary_factor", json!(1.0))?;
        let number = |key: &str| match object[key].as_f64() {
            Some(v) if v > 0.0 => Ok(v),
            _ => Err(self.bad(&format!("{name}.{key}"), &format!("is {}, expected a positive number", object[key]))),
        };
        let kind = inner.str_or("rope_type", inner.str_or("type", "default")?)?;
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: number("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original_context: number("original_max_position_embeddings")?,
            },
            other => {
                let what = format!("rope scaling '{other}' is not supported");
                return Err(unsupported(self.file, what, "supported: default, linear, llama3"));
            }
        };
        Ok(Rope { theta, scaling })
    }
}

/// All layers local, where there is a window.
pub fn everywhere(window: Option<usize>, layers: usize) -> Option<Local> {
    window.map(|window| Local { window, layers: vec![true; layers.min(MAX_LAYERS)], rope: None })
}

/// Local layers, and a global one after every `pattern - 1` of them.
pub fn all_but_every(pattern: usize, layers: usize) -> Vec<bool> {
    (1..=layers.min(MAX_LAYERS)).map(|layer| !layer.is_multiple_of(pattern)).collect()
}

/// `layer_types` of config.json.
pub fn layer_types(local: &[bool]) -> Value {
    local.iter().map(|local| if *local { "sliding_attention" } else { "full_attention" }).collect()
}

/// An activation as config.json names it.
pub fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    }
}

/// The shortest decimal that is this f32: 1e-5 and not 9.999999747378752e-6.
pub fn decimal(x: f32) -> f64 {
    x.to_string().parse().expect("a number")
}

/// `rope_scaling` of config.json, where there is one. Its inverse is [`Keys::rope_in`].
pub fn rope_scaling(rope: &Rope, head_dim: usize, file: &str) -> Result<Option<Value>> {
    let scaling = match &rope.scaling {
        RopeScaling::Divisors(divisors) => rope.llama3_of(divisors, head_dim).ok_or_else(|| {
            let what = "its rope_freqs.weight is not Llama 3's, and config.json has no name for it".into();
            unsupported(file, what, "merge on the model's safetensors instead")
        })?,
        other => other.clone(),
    };
    Ok(match scaling {
        RopeScaling::Linear { factor } => Some(json!({ "rope_type": "linear", "factor": factor })),
        RopeScaling::Llama3 { factor, low, high, original_context } => Some(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original_context as u64,
        })),
        RopeScaling::None | RopeScaling::Divisors(_) => None,
    })
}

/// The key of a GGUF file for the sliding window.
pub const WINDOW: &str = "attention.sliding_window";

/// Keys of a GGUF file under an architecture's prefix; those without a value are left out.
pub fn under<const N: usize>(arch: &str, pairs: [(&str, Option<gguf::Value>); N]) -> Metadata {
    pairs.into_iter().filter_map(|(key, value)| Some((format!("{arch}.{key}"), value?))).collect()
}

/// A size as GGUF has it; [`ModelSpec::check`](crate::model::spec::ModelSpec::check) keeps it small enough.
pub fn size(n: usize) -> gguf::Value {
    (n as u32).into()
}

/// GGUF metadata under an architecture's prefix.
pub struct GgufKeys<'a> {
    pub gguf: &'a Gguf,
    pub arch: &'static str,
}

impl GgufKeys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    pub fn size(&self, name: &str) -> Result<usize> {
        self.gguf.u32(&self.key(name)).map(|v| v as usize)
    }

    pub fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        self.gguf.optional(&self.key(name), Gguf::u32).map(|v| v.map(|v| v as usize))
    }

    pub fn f32(&self, name: &str) -> Result<f32> {
        self.gguf.f32(&self.key(name))
    }

    pub fn optional_f32(&self, name: &str) -> Result<Option<f32>> {
        self.gguf.optional(&self.key(name), Gguf::f32)
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.gguf.checkpoint.has(tensor)
    }

    /// `rope_freqs.weight`, where present, is read by the loader; here only metadata count.
    pub fn rope(&self, head_dim: usize) -> Result<Rope> {
        if let Some(rotated) = self.optional_size("rope.dimension_count")?.filter(|rotated| *rotated != head_dim) {
            let what =
                format!("{} is {rotated}, and heads have {head_dim} dimensions", self.key("rope.dimension_count"));
            return Err(unsupported(self.gguf.name(), what, "only heads that are rotated as a whole are supported"));
        }
        let theta = self.optional_f32("rope.freq_base")?.unwrap_or(10000.0) as f64;
        let scaling = match self.gguf.optional(&self.key("rope.scaling.type"), Gguf::str)? {
            None | Some("none") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: self.f32("rope.scaling.factor")? as f64 },
            Some(other) => {
                let what = format!("rope scaling '{other}' is not supported");
                return Err(unsupported(self.gguf.name(), what, "supported: none, linear, and rope_freqs.weight"));
            }
        };
        Ok(Rope { theta, scaling })
    }
}
