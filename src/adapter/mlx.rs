//! Adapters as mlx-lm reads them (`mlx_lm/tuner/utils.py`, `load_adapters`): `adapters.safetensors` and
//! `adapter_config.json`. Its factors are Aᵀ:[I, R] and Bᵀ:[R, O], and its scale is the whole of s: no alpha, no rank
//! in it.

use super::factors::{self, Factors, transpose};
use super::lora::{Lora, LoraConfig};
use super::method::Adapter;
use super::{BASE_SHA256, BaseName, Files};
use crate::error::{Error, Result};
use crate::model::{ModelSpec, Module, Site};
use crate::weights::{Checkpoint, Source, safetensors};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapters.safetensors";

const PLAIN: &str = "only plain LoRA on the linears of the blocks is read";

fn key(spec: &ModelSpec, site: Site, factor: &str) -> String {
    format!("{}.lora_{factor}", spec.family.hf.path(site))
}

/// One rank and one scale hold for all: smaller ranks get zeros, other scales go into B. Linears that `keys` names and
/// that are not in the file stay as they are: mlx-lm begins with B = 0.
pub fn files(adapter: &Adapter, flat: &[f32], spec: &ModelSpec, base: BaseName) -> Result<Files> {
    let factors = adapter.factors(flat, "an mlx-lm adapter")?;
    factors::unstacked(spec, &spec.family.hf, &factors, "mlx-lm")?;
    let rank = factors.iter().map(|part| part.rank).max().unwrap_or(1);
    let scale = factors.first().map_or(1.0, |first| first.scale);
    let dropout = factors.first().map_or(0.0, |first| adapter.method.low_rank(first.site).dropout);
    let adapted = |module: &Module| factors.iter().any(|part| part.site.module == *module);
    let keys: Vec<String> = Module::ALL.into_iter().filter(adapted).map(|m| spec.family.hf.module(m).into()).collect();
    let mut tensors = Vec::new();
    for part in &factors {
        let part = part.widened(rank).scaled(scale);
        let (o, i) = part.shape();
        tensors.push((key(spec, part.site, "a"), vec![i as u64, rank as u64], transpose(&part.a, rank, i)));
        tensors.push((key(spec, part.site, "b"), vec![rank as u64, o as u64], transpose(&part.b, o, rank)));
    }
    let config = json!({
        "fine_tune_type": "lora",
        "model": base.name,
        "num_layers": spec.layers,
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": dropout,
            "keys": keys,
        },
    });
    let metadata: Vec<_> = base.sha256.map(|sha256| (BASE_SHA256, sha256)).into_iter().collect();
    let config = serde_json::to_vec_pretty(&config).expect("plain JSON");
    Ok(vec![(CONFIG.into(), config), (WEIGHTS.into(), safetensors::to_bytes(&tensors, &metadata)?)])
}

/// Reads such a folder's files for a model.
pub async fn read(config: &Source, weights: Source, spec: &ModelSpec) -> Result<(Adapter, Vec<f32>)> {
    let settings = read_config(config).await?;
    let checkpoint = safetensors::open(vec![weights], None).await?;
    let sites = sites(&checkpoint, &settings, spec)?;
    let (rank, scale) = (settings.rank, settings.scale());
    let lora = Lora::at(sites.clone(), spec, settings).map_err(|e| super::of_the_file(e, config, CONFIG))?;
    let adapter = Adapter::new(spec, lora);
    let mut factors = Vec::new();
    for site in sites {
        let (o, i) = spec.linear_shape(site.module);
        let a = checkpoint.read_f32(checkpoint.get(&key(spec, site, "a"))?).await?;
        let b = checkpoint.read_f32(checkpoint.get(&key(spec, site, "b"))?).await?;
        factors.push(Factors { site, rank, scale, a: transpose(&a, i, rank), b: transpose(&b, rank, o) });
    }
    let flat = adapter.flat(&factors);
    Ok((adapter, flat))
}

async fn read_config(config: &Source) -> Result<LoraConfig> {
    let text = config.text(1 << 20).await?;
    let bad = |what: String| super::malformed(config, CONFIG, what);
    let value: Value = serde_json::from_str(&text).map_err(|e| bad(format!("is not JSON: {e}")))?;
    match value["fine_tune_type"].as_str() {
        Some("lora") | None => {}
        Some(other) => return Err(unsupported(config.name(), format!("fine_tune_type is {other}"))),
    }
    let given = &value["lora_parameters"];
    let number =
        |name: &str| given[name].as_f64().ok_or_else(|| bad(format!("lora_parameters.{name} is {}", given[name])));
    let rank =
        given["rank"].as_u64().ok_or_else(|| bad(format!("lora_parameters.rank is {}", given["rank"])))? as usize;
    let alpha = (number("scale")? * rank as f64) as f32;
    let dropout = if given["dropout"].is_null() { 0.0 } else { number("dropout")? as f32 };
    Ok(LoraConfig { rank, alpha, dropout, modules: Vec::new(), ..Default::default() })
}

/// The linears in the file, each with both factors in their shapes, and nothing else.
fn sites(checkpoint: &Checkpoint, settings: &LoraConfig, spec: &ModelSpec) -> Result<BTreeSet<Site>> {
    let all = (0..spec.layers).flat_map(|layer| spec.modules().map(move |module| Site { layer, module }));
    let sites: BTreeSet<Site> = all.filter(|site| checkpoint.has(&key(spec, *site, "a"))).collect();
    let r = settings.rank as u64;
    let factors = sites.iter().flat_map(|site| {
        let (o, i) = spec.linear_shape(site.module);
        [(key(spec, *site, "a"), vec![i as u64, r]), (key(spec, *site, "b"), vec![r, o as u64])]
    });
    let wanted: Vec<(String, Vec<u64>)> = factors.collect();
    checkpoint.expect(wanted.iter().cloned())?;
    let names: Vec<String> = wanted.into_iter().map(|(name, _)| name).collect();
    checkpoint.expect_no_more(&names, |_| true, PLAIN)?;
    match sites.is_empty() {
        true => Err(unsupported(checkpoint.name(), "no lora_a of a linear layer is in it".into())),
        false => Ok(sites),
    }
}

fn unsupported(file: &str, what: String) -> Error {
    Error::Unsupported { file: file.into(), what, hint: PLAIN.into() }
}
