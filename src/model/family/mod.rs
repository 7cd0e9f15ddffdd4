//! Families: one file each, `config.json` or GGUF metadata -> [`ModelSpec`]. Dense decoders only.

mod llama;

use super::spec::ModelSpec;
use crate::error::{Error, Result};
use crate::weights::{Gguf, ModelFiles, gguf};
use serde_json::Value;
use std::collections::BTreeMap;

const KNOWN: &str = "llama (SmolLM2, TinyLlama, Llama 2 and 3, and others of that architecture)";

pub fn spec(files: &ModelFiles) -> Result<ModelSpec> {
    match files {
        ModelFiles::Hf { config, checkpoint, .. } => from_config(config, checkpoint.name()),
        ModelFiles::Gguf { gguf, .. } => from_gguf(gguf),
    }
}

fn from_config(config: &Value, file: &str) -> Result<ModelSpec> {
    match config["model_type"].as_str() {
        Some("llama") => llama::from_config(&Keys { config, file })?.check(file),
        Some(other) => Err(unknown(file, other)),
        None => Err(Error::Malformed {
            file: file.into(),
            at: "config.json".into(),
            what: "\"model_type\" is missing".into(),
            hint: "use the config.json that belongs to the weights".into(),
        }),
    }
}

fn from_gguf(gguf: &Gguf) -> Result<ModelSpec> {
    match gguf.architecture()? {
        "llama" => llama::from_gguf(gguf)?.check(gguf.name()),
        other => Err(unknown(gguf.name(), other)),
    }
}

/// `config.json` for a model that came without, as transformers reads it.
pub fn to_config(spec: &ModelSpec, file: &str) -> Result<Value> {
    match spec.family.as_str() {
        "llama" => llama::to_config(spec, file),
        other => Err(unknown(file, other)),
    }
}

/// The model's keys in a GGUF file, for a model that came without.
pub fn to_gguf(spec: &ModelSpec, file: &str) -> Result<BTreeMap<String, gguf::Value>> {
    match spec.family.as_str() {
        "llama" => Ok(llama::to_gguf(spec)),
        other => Err(unknown(file, other)),
    }
}

/// `general.architecture` of the family's GGUF files.
pub fn gguf_architecture(spec: &ModelSpec) -> &str {
    &spec.family
}

fn unknown(file: &str, family: &str) -> Error {
    Error::Unsupported {
        file: file.into(),
        what: format!("the architecture '{family}' is not supported"),
        hint: format!("supported: {KNOWN}"),
    }
}

/// Typed access to config.json with errors that name file and key.
struct Keys<'a> {
    config: &'a Value,
    file: &'a str,
}

impl Keys<'_> {
    fn bad(&self, key: &str, what: &str) -> Error {
        Error::Malformed {
            file: self.file.into(),
            at: format!("config.json: \"{key}\""),
            what: what.into(),
            hint: "use the config.json that belongs to the weights".into(),
        }
    }

    fn usize(&self, key: &str) -> Result<usize> {
        self.optional_usize(key)?.ok_or_else(|| self.bad(key, "is missing"))
    }

    fn optional_usize(&self, key: &str) -> Result<Option<usize>> {
        match &self.config[key] {
            Value::Null => Ok(None),
            value => match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
                Some(v) => Ok(Some(v)),
                None => Err(self.bad(key, &format!("is {value}, expected a whole number"))),
            },
        }
    }

    fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        match &self.config[key] {
            Value::Null => Ok(default),
            value => value.as_f64().ok_or_else(|| self.bad(key, &format!("is {value}, expected a number"))),
        }
    }

    fn str_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        match &self.config[key] {
            Value::Null => Ok(default),
            value => value.as_str().ok_or_else(|| self.bad(key, &format!("is {value}, expected text"))),
        }
    }

    fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        match &self.config[key] {
            Value::Null => Ok(default),
            value => value.as_bool().ok_or_else(|| self.bad(key, &format!("is {value}, expected true or false"))),
        }
    }
}
