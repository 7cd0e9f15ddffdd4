//! LoRA (Hu et al. 2021) and rsLoRA (Kalajdzievski 2023): `ΔW = s·B·A`, s = alpha/r or alpha/√r.
//!
//! All factors lie in one flat buffer, each at a multiple of 4 floats: A:[R, I] and the transposed Bᵀ:[R, O] of every
//! adapted linear, in order of layer and module. Gradients and Adam's moments have the same layout.

use crate::error::{Error, Result};
use crate::model::family::Family;
use crate::model::{LinearPatch, ModelSpec, Module, Patches, Site};
use crate::num::uniform;
use crate::plan::{Buf, Elem, Plan};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f32,
    pub dropout: f32,
    pub rslora: bool,
    /// The adapted modules.
    pub modules: Vec<Module>,
}

/// `--target-modules`: `all-linear`, or suffixes separated by commas.
pub fn target_modules(text: &str) -> Result<Vec<Module>> {
    let wanted: Vec<&str> = text.split(',').map(str::trim).filter(|s| !s.is_empty()).collect();
    if wanted == ["all-linear"] {
        return Ok(Module::ALL.to_vec());
    }
    let names = Module::ALL.map(Module::name).join(", ");
    let unknown: Vec<&str> = wanted.iter().copied().filter(|w| !Module::ALL.iter().any(|m| m.name() == *w)).collect();
    if !unknown.is_empty() || wanted.is_empty() {
        let what = format!(
            "'{}' matches no linear of the model",
            if wanted.is_empty() { text.to_string() } else { unknown.join(", ") }
        );
        return Err(Error::setting("target-modules", what, format!("use all-linear, or some of {names}")));
    }
    Ok(Module::ALL.into_iter().filter(|m| wanted.contains(&m.name())).collect())
}

impl LoraConfig {
    pub fn check(self, spec: &ModelSpec) -> Result<LoraConfig> {
        let widest = spec.hidden.max(spec.ffn).max(spec.q_width());
        if self.rank == 0 || self.rank > widest {
            let what = format!("the rank is {}, expected 1 to {widest}", self.rank);
            return Err(Error::setting("rank", what, "8 or 16 is a good start"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(Error::setting(
                "alpha",
                format!("alpha is {}, expected more than 0", self.alpha),
                "twice the rank is a good start",
            ));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::setting(
                "dropout",
                format!("dropout is {}, expected 0 to below 1", self.dropout),
                "0 or 0.05",
            ));
        }
        Ok(self)
    }

    pub fn scale(&self) -> f32 {
        if self.rslora { self.alpha / (self.rank as f32).sqrt() } else { self.alpha / self.rank as f32 }
    }
}

/// Every linear of these kinds.
pub fn all_sites(spec: &ModelSpec, modules: &[Module]) -> BTreeSet<Site> {
    (0..spec.layers).flat_map(|layer| modules.iter().map(move |module| Site { layer, module: *module })).collect()
}

/// The layout of an adapter on a model: where each factor lies in the flat buffer.
#[derive(Clone, Debug)]
pub struct Lora {
    pub config: LoraConfig,
    /// Whose names the files use.
    pub family: &'static Family,
    pub sites: BTreeMap<Site, LinearPatch>,
    pub shapes: BTreeMap<Site, (usize, usize)>,
    /// Floats of the flat buffer, padding included.
    pub len: usize,
    /// Whether the modules are adapted in every layer.
    pub complete: bool,
}

impl Lora {
    /// The modules of the configuration in every layer.
    pub fn new(spec: &ModelSpec, config: LoraConfig) -> Result<Lora> {
        let sites = all_sites(spec, &config.modules);
        Lora::at(sites, spec, config)
    }

    /// Some linears only. The configuration's modules become those that occur.
    pub fn at(sites: BTreeSet<Site>, spec: &ModelSpec, config: LoraConfig) -> Result<Lora> {
        let occurs = |module: &Module| sites.iter().any(|site| site.module == *module);
        let modules = Module::ALL.into_iter().filter(occurs).collect();
        let config = LoraConfig { modules, ..config.check(spec)? };
        let complete = sites == all_sites(spec, &config.modules);
        let mut lora =
            Lora { family: spec.family, sites: BTreeMap::new(), shapes: BTreeMap::new(), len: 0, complete, config };
        for site in sites {
            lora.add(site, spec.linear_shape(site.module));
        }
        Ok(lora)
    }

    fn add(&mut self, site: Site, (o, i): (usize, usize)) {
        let rank = self.config.rank;
        let a = self.len;
        let b = (a + rank * i).next_multiple_of(4);
        self.len = (b + rank * o).next_multiple_of(4);
        let patch = LinearPatch { rank, scale: self.config.scale(), a, b, dropout: self.config.dropout };
        self.sites.insert(site, patch);
        self.shapes.insert(site, (o, i));
    }

    /// What the flat buffer's meaning depends on.
    pub fn layout(&self) -> String {
        match self.complete {
            true => format!("{:?}", self.config),
            false => format!("{:?} at {:?}", self.config, self.sites.keys()),
        }
    }

    /// Numbers that are trained, without padding.
    pub fn parameters(&self) -> u64 {
        self.shapes.values().map(|(o, i)| (self.config.rank * (o + i)) as u64).sum()
    }

    /// PEFT's initialisation: A uniform in ±1/√I (kaiming_uniform with a = √5), B zero. A pure function of the seed.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        let mut flat = vec![0.0; self.len];
        for (k, (site, patch)) in self.sites.iter().enumerate() {
            let width = self.shapes[site].1;
            let bound = 1.0 / (width as f64).sqrt();
            for (j, a) in flat[patch.a..patch.a + patch.rank * width].iter_mut().enumerate() {
                *a = ((2.0 * uniform(seed, k as u64, j as u64) - 1.0) * bound) as f32;
            }
        }
        flat
    }

    /// Declares the buffers the model reads and adds gradients to.
    pub fn declare(&self, plan: &mut Plan, train: bool) -> Patches {
        let params = plan.persistent("adapter", Elem::Float, self.len);
        let grads = if train { plan.persistent("adapter gradients", Elem::Float, self.len) } else { Buf(params.0) };
        Patches { params, grads, sites: self.sites.clone() }
    }
}
