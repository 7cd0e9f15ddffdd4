//! Adapters as llama.cpp reads them (`llama-adapter.cpp`; Ollama and wllama with it): one GGUF file, no tokenizer.
//!
//! Its loader computes `alpha / rank · B·A`, rank being the tensor's own, and knows no other scale: rsLoRA's √ goes
//! into alpha, and where linears differ in more than rank, what is left into B. Its tensors are named
//! after the base's in GGUF, and where the base's rows are in another order (q and k of arch llama) so are B's.

use super::factors::{self, Factors};
use super::lora::{Lora, LoraConfig, Pattern};
use super::method::Adapter;
use super::{BASE_SHA256, BaseName};
use crate::error::{Error, Result};
use crate::model::load::{half_split, interleave};
use crate::model::tensors::{Tensor, interleaved};
use crate::model::{ModelSpec, Site};
use crate::weights::gguf::{Gguf, Value};
use crate::weights::gguf_write::{self, Planned};
use crate::weights::{Source, StoredType, encode};
use std::collections::BTreeMap;

const ALPHA: &str = "adapter.lora.alpha";
const PLAIN: &str = "only plain LoRA on the linears of the blocks is read";

/// What the file calls a factor; `factor` is "a" or "b".
fn name(spec: &ModelSpec, site: Site, factor: &str) -> String {
    format!("{}.lora_{factor}", spec.gguf_name(Tensor::Weight(site)))
}

/// The bytes of the file; `base` is what the base model is called, `tuned` what the adapter is.
pub fn to_bytes(adapter: &Adapter, flat: &[f32], spec: &ModelSpec, base: BaseName, tuned: &str) -> Result<Vec<u8>> {
    let factors = adapter.factors(flat, "a GGUF adapter")?;
    factors::unstacked(spec, &spec.family.gguf, &factors, "GGUF")?;
    let alpha = alpha(&factors);
    let mut tensors = Vec::new();
    for part in factors {
        let scale = alpha / part.rank as f32;
        let part = part.scaled(scale);
        let ((o, i), r) = (part.shape(), part.rank);
        let b = match interleaved(spec, Tensor::Weight(part.site)) {
            Some(head_dim) => interleave(&part.b, r, head_dim),
            None => part.b.clone(),
        };
        for (factor, shape, values) in [("a", [r, i], part.a.clone()), ("b", [o, r], b)] {
            let shape = shape.map(|extent| extent as u64).to_vec();
            let planned = Planned { name: name(spec, part.site, factor), shape, stored: StoredType::F32 };
            tensors.push((planned, values));
        }
    }
    let planned: Vec<Planned> = tensors.iter().map(|(planned, _)| planned.clone()).collect();
    let mut out = gguf_write::header(&metadata(alpha, spec, base, tuned), &planned);
    for (planned, values) in &tensors {
        let bytes = encode(planned.stored, values).map_err(|(i, what)| {
            Error::device(format!("number {i} of {}: {what}", planned.name), "nothing was written")
        })?;
        out.extend(bytes);
        out.extend(planned.padding());
    }
    Ok(out)
}

/// alpha of the first linear. A scale of alpha/rank is exact only for some ranks: what is nearly whole was whole.
fn alpha(factors: &[Factors]) -> f32 {
    let alpha = factors.first().map_or(1.0, |first| first.scale * first.rank as f32);
    if (alpha - alpha.round()).abs() <= 4.0 * f32::EPSILON * alpha { alpha.round() } else { alpha }
}

fn metadata(alpha: f32, spec: &ModelSpec, base: BaseName, tuned: &str) -> BTreeMap<String, Value> {
    let (organization, base_name) = base.name.rsplit_once('/').unwrap_or(("", base.name));
    let mut pairs: BTreeMap<String, Value> = [
        ("general.architecture", spec.family.arch.into()),
        ("general.type", "adapter".into()),
        ("general.name", tuned.into()),
        ("general.base_model.count", 1u32.into()),
        ("general.base_model.0.name", base_name.into()),
        ("adapter.type", "lora".into()),
        (ALPHA, alpha.into()),
    ]
    .map(|(key, value): (&str, Value)| (key.to_string(), value))
    .into();
    if !organization.is_empty() {
        pairs.insert("general.base_model.0.organization".into(), organization.into());
    }
    if let Some(sha256) = base.sha256 {
        pairs.insert(base_sha256_key(), sha256.into());
    }
    pairs
}

/// A key of our own, under our name, as llama.cpp asks of others.
pub(super) fn base_sha256_key() -> String {
    format!("luthier.{BASE_SHA256}")
}

/// Reads such a file for a model: the layout and the flat parameters.
pub async fn read(source: Source, spec: &ModelSpec) -> Result<(Adapter, Vec<f32>)> {
    let gguf = Gguf::open(source.clone()).await?;
    check_kind(&gguf, spec)?;
    let ranks = ranks(&gguf, spec)?;
    let alpha = gguf.optional(ALPHA, Gguf::f32)?.unwrap_or(0.0);
    if alpha < 0.0 {
        return Err(unsupported(&gguf, format!("{ALPHA} is {alpha}, expected 0 or more")));
    }
    // Without alpha llama.cpp scales by 1.
    let alpha_of = |r: usize| if alpha == 0.0 { r as f32 } else { alpha };
    let rank = *ranks.values().max().expect("at least one linear is adapted");
    let others: Vec<(String, usize)> =
        ranks.iter().filter(|(_, r)| **r != rank).map(|(site, r)| (spec.family.hf.path(*site), *r)).collect();
    let alphas = others.iter().map(|(path, r)| (path.clone(), alpha_of(*r)));
    let config = LoraConfig {
        rank,
        alpha: alpha_of(rank),
        alpha_pattern: Pattern(if alpha == 0.0 { alphas.collect() } else { Vec::new() }),
        rank_pattern: Pattern(others),
        ..Default::default()
    };
    let lora = Lora::at(ranks.keys().copied().collect(), spec, config)
        .map_err(|e| super::of_the_file(e, &source, "lora_b"))?;
    let adapter = Adapter::new(spec, lora);
    let mut factors = Vec::new();
    for (&site, &r) in &ranks {
        let mut values = [Vec::new(), Vec::new()];
        for (values, factor) in values.iter_mut().zip(["a", "b"]) {
            *values = gguf.checkpoint.read_f32(gguf.checkpoint.get(&name(spec, site, factor))?).await?;
        }
        let [a, b] = values;
        let b = match interleaved(spec, Tensor::Weight(site)) {
            Some(head_dim) => half_split(&b, r, head_dim),
            None => b,
        };
        factors.push(Factors { site, rank: r, scale: alpha_of(r) / r as f32, a, b });
    }
    let flat = adapter.flat(&factors);
    Ok((adapter, flat))
}

/// An adapter, of the right kind, for the right architecture.
fn check_kind(gguf: &Gguf, spec: &ModelSpec) -> Result<()> {
    for (key, wanted) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let given = gguf.optional(key, Gguf::str)?.unwrap_or("missing");
        if given != wanted {
            let hint = format!("an adapter has '{wanted}' there; a model is opened with --model");
            return Err(Error::Unsupported { file: gguf.name().into(), what: format!("{key} is {given}"), hint });
        }
    }
    if gguf.metadata.contains_key("adapter.alora.invocation_tokens") {
        return Err(unsupported(gguf, "an activated adapter (adapter.alora.invocation_tokens)".into()));
    }
    let (given, wanted) = (gguf.architecture()?, spec.family.arch);
    if given == wanted {
        return Ok(());
    }
    let problems = vec![format!("the adapter is for architecture '{given}', the model is of '{wanted}'")];
    Err(Error::Mismatch { file: gguf.name().into(), problems, hint: other_base(gguf) })
}

/// The adapted linears with their ranks; every tensor is a factor of one, in its shape.
fn ranks(gguf: &Gguf, spec: &ModelSpec) -> Result<BTreeMap<Site, usize>> {
    let checkpoint = &gguf.checkpoint;
    let sites = (0..spec.layers).flat_map(|layer| spec.modules().map(move |module| Site { layer, module }));
    let adapted: Vec<Site> =
        sites.filter(|site| ["a", "b"].iter().any(|f| checkpoint.has(&name(spec, *site, f)))).collect();
    let (mut ranks, mut wanted) = (BTreeMap::new(), Vec::new());
    for site in adapted {
        let (o, i) = spec.linear_shape(site.module);
        // B's rows tell the rank, as they do in llama.cpp; A has to agree.
        let r = checkpoint.get(&name(spec, site, "b"))?.cols();
        ranks.insert(site, r as usize);
        wanted.extend([(name(spec, site, "a"), vec![r, i as u64]), (name(spec, site, "b"), vec![o as u64, r])]);
    }
    checkpoint.expect(wanted.iter().cloned()).map_err(|error| match error {
        Error::Mismatch { file, problems, .. } => Error::Mismatch { file, problems, hint: other_base(gguf) },
        other => other,
    })?;
    let names: Vec<String> = wanted.into_iter().map(|(name, _)| name).collect();
    checkpoint.expect_no_more(&names, |_| true, PLAIN)?;
    if ranks.is_empty() { Err(unsupported(gguf, "no lora_a of a linear layer is in it".into())) } else { Ok(ranks) }
}

fn other_base(gguf: &Gguf) -> String {
    let base = gguf.optional("general.base_model.0.name", Gguf::str).ok().flatten().unwrap_or("another model");
    format!("the adapter was trained on '{base}': use it with that model")
}

fn unsupported(gguf: &Gguf, what: String) -> Error {
    Error::Unsupported { file: gguf.name().into(), what, hint: PLAIN.into() }
}
