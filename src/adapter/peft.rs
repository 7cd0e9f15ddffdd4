//! Adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`, names as peft 0.21 writes them.
//! PEFT stores B as [O, R]; the flat buffer holds Bᵀ, so B is transposed on the way in and out.

use super::lora::{Lora, LoraConfig};
use crate::error::{Error, Result};
use crate::model::tensors::module_path;
use crate::model::{ModelSpec, Module, Site};
use crate::weights::{Checkpoint, Source, safetensors};
use serde_json::{Value, json};

pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// The files of an adapter folder: name and bytes.
pub type Files = Vec<(String, Vec<u8>)>;

fn key(site: Site, factor: &str) -> String {
    format!("base_model.model.model.layers.{}.{}.lora_{factor}.weight", site.layer, module_path(site.module))
}

/// The adapter as PEFT would write it; `base` is what the base model is called.
pub fn files(lora: &Lora, flat: &[f32], base: &str) -> Result<Files> {
    let mut tensors = Vec::new();
    for (site, patch) in &lora.sites {
        let (o, i) = lora.shapes[site];
        let r = patch.rank;
        let a = flat[patch.a..patch.a + r * i].to_vec();
        let b = transpose(&flat[patch.b..patch.b + r * o], r, o);
        tensors.push((key(*site, "A"), vec![r as u64, i as u64], a));
        tensors.push((key(*site, "B"), vec![o as u64, r as u64], b));
    }
    let weights = safetensors::to_bytes(&tensors, &[("format", "pt")])?;
    let config = serde_json::to_vec_pretty(&config_json(&lora.config, base)).expect("plain JSON");
    Ok(vec![(CONFIG.into(), config), (WEIGHTS.into(), weights)])
}

fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| x[r * cols + c])).collect()
}

fn config_json(c: &LoraConfig, base: &str) -> Value {
    // Whole numbers as integers: that is how PEFT writes them.
    let alpha = if c.alpha.fract() == 0.0 { json!(c.alpha as i64) } else { json!(c.alpha) };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": c.rank,
        "lora_alpha": alpha,
        "lora_dropout": c.dropout,
        "use_rslora": c.rslora,
        "use_dora": false,
        "target_modules": c.modules.iter().map(|m| m.name()).collect::<Vec<_>>(),
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "revision": null
    })
}

/// Reads an adapter folder's files for a model: the layout and the flat parameters.
pub async fn read(config: &Source, weights: Source, spec: &ModelSpec) -> Result<(Lora, Vec<f32>)> {
    let (settings, base) = read_config(config).await?;
    let lora = Lora::new(spec, settings)?;
    let checkpoint = safetensors::open(vec![weights], None).await?;
    expect(&checkpoint, &lora).map_err(|e| for_another_model(e, base))?;
    let mut flat = vec![0.0; lora.len];
    for (site, patch) in &lora.sites {
        let (o, i) = lora.shapes[site];
        let a = checkpoint.read_f32(checkpoint.get(&key(*site, "A"))?).await?;
        let b = checkpoint.read_f32(checkpoint.get(&key(*site, "B"))?).await?;
        flat[patch.a..patch.a + patch.rank * i].copy_from_slice(&a);
        flat[patch.b..patch.b + patch.rank * o].copy_from_slice(&transpose(&b, o, patch.rank));
    }
    Ok((lora, flat))
}

/// `adapter_config.json` and the name of the base model it was trained on.
pub async fn read_config(config: &Source) -> Result<(LoraConfig, Option<String>)> {
    let text = config.text(1 << 20).await?;
    let value: Value = serde_json::from_str(&text).map_err(|e| malformed(config, format!("is not JSON: {e}")))?;
    let base = value["base_model_name_or_path"].as_str().map(String::from);
    Ok((lora_config(&value, config)?, base))
}

/// Every factor in its shape, and nothing else: an adapter with parts that would be ignored is refused.
fn expect(checkpoint: &Checkpoint, lora: &Lora) -> Result<()> {
    let wanted: Vec<(String, Vec<u64>)> = lora
        .sites
        .iter()
        .flat_map(|(site, patch)| {
            let (o, i) = lora.shapes[site];
            let r = patch.rank as u64;
            [(key(*site, "A"), vec![r, i as u64]), (key(*site, "B"), vec![o as u64, r])]
        })
        .collect();
    checkpoint.expect(wanted.iter().cloned())?;
    let known: std::collections::HashSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    let extra: Vec<String> = checkpoint
        .tensors
        .keys()
        .chain(checkpoint.refused.keys())
        .filter(|name| !known.contains(name.as_str()))
        .map(|name| format!("tensor '{name}' belongs to nothing that is read here"))
        .collect();
    if extra.is_empty() {
        return Ok(());
    }
    Err(Error::Mismatch {
        file: checkpoint.name().into(),
        problems: extra,
        hint: "only plain LoRA on linear layers is read".into(),
    })
}

/// Shapes that do not fit mean, nearly always, that this is not the base the adapter was trained on.
fn for_another_model(mut error: Error, base: Option<String>) -> Error {
    if let (Error::Mismatch { hint, .. }, Some(base)) = (&mut error, base) {
        *hint = format!("the adapter was trained on '{base}': use it with that model");
    }
    error
}

fn malformed(config: &Source, what: String) -> Error {
    let hint = format!("use the {CONFIG} that belongs to the adapter");
    Error::Malformed { file: config.name().into(), at: CONFIG.into(), what, hint }
}

fn unsupported(config: &Source, what: String) -> Error {
    Error::Unsupported { file: config.name().into(), what, hint: "only plain LoRA on linear layers is read".into() }
}

fn lora_config(v: &Value, config: &Source) -> Result<LoraConfig> {
    match v["peft_type"].as_str() {
        Some("LORA") => {}
        other => return Err(unsupported(config, format!("peft_type is {}", other.unwrap_or("missing")))),
    }
    for (name, plain) in [
        ("use_dora", json!(false)),
        ("bias", json!("none")),
        ("lora_bias", json!(false)),
        ("modules_to_save", json!([])),
    ] {
        let given = &v[name];
        if !given.is_null() && *given != plain {
            return Err(unsupported(config, format!("{name} is {given}")));
        }
    }
    for name in ["rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication"] {
        if !(v[name].is_null() || v[name].as_object().is_some_and(|o| o.is_empty())) {
            return Err(unsupported(config, format!("{name} is {}", v[name])));
        }
    }
    // PEFT's defaults where a key is left out.
    let rank = match &v["r"] {
        Value::Null => 8,
        r => r.as_u64().ok_or_else(|| malformed(config, format!("r is {r}")))? as usize,
    };
    let alpha = match &v["lora_alpha"] {
        Value::Null => 8.0,
        a => a.as_f64().ok_or_else(|| malformed(config, format!("lora_alpha is {a}")))? as f32,
    };
    Ok(LoraConfig {
        rank,
        alpha,
        dropout: v["lora_dropout"].as_f64().unwrap_or(0.0) as f32,
        rslora: v["use_rslora"].as_bool().unwrap_or(false),
        modules: modules(&v["target_modules"], config)?,
    })
}

/// `target_modules` as a list of suffixes or full paths, or PEFT's "all-linear"; Llama's default is q and v.
fn modules(v: &Value, config: &Source) -> Result<Vec<Module>> {
    let names: Vec<&str> = match v {
        Value::Null => vec!["q_proj", "v_proj"],
        Value::String(s) if s == "all-linear" => return Ok(Module::ALL.to_vec()),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        other => return Err(unsupported(config, format!("target_modules is {other}"))),
    };
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_string();
    for name in &names {
        if !Module::ALL.iter().any(|m| m.name() == last(name)) {
            return Err(unsupported(config, format!("target_modules holds '{name}'")));
        }
    }
    Ok(Module::ALL.into_iter().filter(|m| names.iter().any(|n| last(n) == m.name())).collect())
}

/// Reads an adapter folder.
#[cfg(not(target_arch = "wasm32"))]
pub fn open(folder: &std::path::Path, spec: &ModelSpec) -> Result<(Lora, Vec<f32>)> {
    let (config, weights) = (Source::file(folder.join(CONFIG))?, Source::file(folder.join(WEIGHTS))?);
    pollster::block_on(read(&config, weights, spec))
}

/// Writes an adapter folder; each file appears whole or not at all.
#[cfg(not(target_arch = "wasm32"))]
pub fn write(folder: &std::path::Path, files: &Files) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder.display().to_string(), e))?;
    for (name, bytes) in files {
        crate::weights::atomic_write(folder.join(name), bytes)?;
    }
    Ok(())
}
