//! Adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`, names as peft 0.21 writes them.

use super::factors::Factors;
use super::lora::{Lora, LoraConfig, all_sites};
use super::{BASE_SHA256, BaseName, Files};
use crate::error::{Error, Result};
use crate::model::tensors::module_path;
use crate::model::{ModelSpec, Module, Site};
use crate::weights::{Checkpoint, Source, safetensors};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";
const PLAIN: &str = "only plain LoRA on linear layers is read";

/// What PEFT calls a linear.
fn path(site: Site) -> String {
    format!("model.layers.{}.{}", site.layer, module_path(site.module))
}

fn key(site: Site, factor: &str) -> String {
    format!("{PREFIX}{}.lora_{factor}.weight", path(site))
}

/// The linear whose factor A has this name.
fn site(name: &str) -> Option<Site> {
    let (layer, rest) = name.strip_prefix(PREFIX)?.strip_prefix("model.layers.")?.split_once('.')?;
    let module = rest.strip_suffix(".lora_A.weight")?;
    let module = Module::ALL.into_iter().find(|m| module_path(*m) == module)?;
    Some(Site { layer: layer.parse().ok()?, module })
}

/// The adapter as PEFT would write it.
pub fn files<'a>(lora: &Lora, flat: &[f32], base: impl Into<BaseName<'a>>) -> Result<Files> {
    let BaseName { name: base, sha256 } = base.into();
    let mut tensors = Vec::new();
    for Factors { site, rank, a, b } in lora.factors(flat) {
        let (r, (o, i)) = (rank as u64, lora.shapes[&site]);
        tensors.push((key(site, "A"), vec![r, i as u64], a));
        tensors.push((key(site, "B"), vec![o as u64, r], b));
    }
    let metadata: Vec<_> = sha256.map(|sha256| (BASE_SHA256, sha256)).into_iter().collect();
    let weights = safetensors::to_bytes(&tensors, &metadata)?;
    let config = serde_json::to_vec_pretty(&config_json(lora, base)).expect("plain JSON");
    Ok(vec![(CONFIG.into(), config), (WEIGHTS.into(), weights)])
}

/// The decimal that a person would write: 0.1 is not 0.10000000149011612.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().expect("a number's own text is a number")
}

fn config_json(lora: &Lora, base: &str) -> Value {
    let c = &lora.config;
    // Whole numbers as integers: that is how PEFT writes them.
    let alpha = if c.alpha.fract() == 0.0 { json!(c.alpha as i64) } else { json!(decimal(c.alpha)) };
    let targets: Vec<String> = match lora.complete {
        true => c.modules.iter().map(|m| m.name().to_string()).collect(),
        false => lora.sites.keys().map(|site| path(*site)).collect(),
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": c.rank,
        "lora_alpha": alpha,
        "lora_dropout": decimal(c.dropout),
        "use_rslora": c.rslora,
        "use_dora": false,
        "target_modules": targets,
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
    let checkpoint = safetensors::open(vec![weights], None).await?;
    let sites = sites(&checkpoint, &settings, spec, base.as_deref())?;
    let lora = Lora::at(sites, spec, settings).map_err(|e| super::of_the_file(e, config, CONFIG))?;
    expect(&checkpoint, &lora, base.as_deref())?;
    let mut factors = Vec::new();
    for (&site, patch) in &lora.sites {
        let a = checkpoint.read_f32(checkpoint.get(&key(site, "A"))?).await?;
        let b = checkpoint.read_f32(checkpoint.get(&key(site, "B"))?).await?;
        factors.push(Factors { site, rank: patch.rank, a, b });
    }
    let flat = lora.flat(&factors);
    Ok((lora, flat))
}

/// `adapter_config.json` and the name of the base model it was trained on. Its modules are those that the file names
/// plainly for all layers.
pub async fn read_config(config: &Source) -> Result<(LoraConfig, Option<String>)> {
    let text = config.text(1 << 20).await?;
    let value: Value = serde_json::from_str(&text).map_err(|e| malformed(config, format!("is not JSON: {e}")))?;
    let base = value["base_model_name_or_path"].as_str().map(String::from);
    Ok((lora_config(&value, config)?, base))
}

/// The linears whose weights are in the file (`target_modules` may be a regular expression over them), and those that
/// should be.
fn sites(
    checkpoint: &Checkpoint,
    settings: &LoraConfig,
    spec: &ModelSpec,
    base: Option<&str>,
) -> Result<BTreeSet<Site>> {
    let mut sites = all_sites(spec, &settings.modules);
    sites.extend(checkpoint.names().filter_map(|name| site(name)));
    let problem = match sites.last() {
        None => "no lora_A weight of a linear layer is in it".to_string(),
        Some(last) if last.layer >= spec.layers => {
            format!("layer {} is adapted, and the model has {}, from 0", last.layer, spec.layers)
        }
        Some(_) => return Ok(sites),
    };
    let hint = if sites.is_empty() { PLAIN.into() } else { other_base(base) };
    Err(Error::Mismatch { file: checkpoint.name().into(), problems: vec![problem], hint })
}

/// Every factor in its shape, and nothing else: an adapter with parts that would be ignored is refused.
fn expect(checkpoint: &Checkpoint, lora: &Lora, base: Option<&str>) -> Result<()> {
    let factors = lora.sites.iter().flat_map(|(site, patch)| {
        let ((o, i), r) = (lora.shapes[site], patch.rank as u64);
        [(key(*site, "A"), vec![r, i as u64]), (key(*site, "B"), vec![o as u64, r])]
    });
    let (names, shapes): (Vec<String>, Vec<Vec<u64>>) = factors.unzip();
    let shape = |name: &String| checkpoint.tensors.get(name).map(|tensor| &tensor.shape);
    let other_model = names.iter().zip(&shapes).any(|(name, wanted)| shape(name).is_some_and(|is| is != wanted));
    checkpoint.expect(names.iter().cloned().zip(shapes)).map_err(|mut error| {
        if let (Error::Mismatch { hint, .. }, true) = (&mut error, other_model) {
            *hint = other_base(base);
        }
        error
    })?;
    checkpoint.expect_no_more(&names, |_| true, PLAIN)
}

/// Shapes that do not fit mean, nearly always, that this is not the base the adapter was trained on.
fn other_base(base: Option<&str>) -> String {
    format!("the adapter was trained on '{}': use it with that model", base.unwrap_or("another model"))
}

fn malformed(config: &Source, what: String) -> Error {
    super::malformed(config, CONFIG, what)
}

fn unsupported(config: &Source, what: String) -> Error {
    Error::Unsupported { file: config.name().into(), what, hint: PLAIN.into() }
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
        ("use_qalora", json!(false)),
        ("alora_invocation_tokens", json!(null)),
        ("modules_to_save", json!([])),
    ] {
        let given = &v[name];
        if !given.is_null() && *given != plain {
            return Err(unsupported(config, format!("{name} is {given}")));
        }
    }
    for name in ["rank_pattern", "alpha_pattern", "layer_replication"] {
        if !(v[name].is_null() || v[name].as_object().is_some_and(|o| o.is_empty())) {
            return Err(unsupported(config, format!("{name} is {}", v[name])));
        }
    }
    plain_init(&v["init_lora_weights"], config)?;
    // PEFT's defaults where a key is left out.
    Ok(LoraConfig {
        rank: typed(v, config, "r", Value::as_u64)?.unwrap_or(8) as usize,
        alpha: typed(v, config, "lora_alpha", Value::as_f64)?.unwrap_or(8.0) as f32,
        dropout: typed(v, config, "lora_dropout", Value::as_f64)?.unwrap_or(0.0) as f32,
        rslora: typed(v, config, "use_rslora", Value::as_bool)?.unwrap_or(false),
        modules: modules(v, config)?,
    })
}

/// A setting in its type, or None where it is left out; a setting of another type is not a setting left out.
fn typed<T>(v: &Value, config: &Source, name: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
    match &v[name] {
        Value::Null => Ok(None),
        given => read(given).map(Some).ok_or_else(|| malformed(config, format!("{name} is {given}"))),
    }
}

/// Some initialisations (PiSSA, OLoRA, CorDA, LoftQ …) change the base as well: their factors mean nothing without it.
fn plain_init(given: &Value, config: &Source) -> Result<()> {
    let plain = match given {
        Value::Null | Value::Bool(_) => true,
        given => given.as_str().is_some_and(|name| ["gaussian", "orthogonal", "eva"].contains(&name)),
    };
    if plain {
        return Ok(());
    }
    let what = format!("init_lora_weights is {given}, which changes the weights of the base model");
    let hint = "save it with PEFT's `path_initial_model_for_weight_conversion`, which makes it plain LoRA".into();
    Err(Error::Unsupported { file: config.name().into(), what, hint })
}

/// What `target_modules` names plainly, for all layers; none where it holds paths or a regular expression, or where
/// some layers are left out. Then the names of the weights tell.
fn modules(v: &Value, config: &Source) -> Result<Vec<Module>> {
    let names: Vec<&str> = match &v["target_modules"] {
        Value::Null => return Ok(Vec::new()),
        Value::String(text) if text == "all-linear" => Module::ALL.map(Module::name).to_vec(),
        Value::String(_) => return Ok(Vec::new()),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        other => return Err(malformed(config, format!("target_modules is {other}"))),
    };
    let some_layers = !v["layers_to_transform"].is_null() || !v["exclude_modules"].is_null();
    let plain = names.iter().all(|name| Module::ALL.iter().any(|m| m.name() == *name));
    let named = |m: &Module| plain && !some_layers && names.contains(&m.name());
    Ok(Module::ALL.into_iter().filter(named).collect())
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
