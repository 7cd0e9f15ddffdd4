//! LoRA (Hu et al. 2021) and rsLoRA (Kalajdzievski 2023): `ΔW = s·B·A`, s = alpha/r or alpha/√r.
//!
//! All factors lie in one flat buffer, each at a multiple of 4 floats: A:[R, I] and the transposed Bᵀ:[R, O] of every
//! adapted linear, in order of layer and module. Gradients and Adam's moments have the same layout. Where a family
//! fuses linears into one tensor (GPT-2's c_attn), the parts have one A and each its rows of B, as PEFT has them; only
//! dropout draws a mask for each part where PEFT draws one.

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

/// `--target-modules`: `all-linear`, or names of the model's linears separated by commas.
pub fn target_modules(text: &str, spec: &ModelSpec) -> Result<Vec<Module>> {
    let wanted: Vec<&str> = text.split(',').map(str::trim).filter(|s| !s.is_empty()).collect();
    if wanted == ["all-linear"] {
        return Ok(spec.modules().collect());
    }
    let names = &spec.family.hf;
    let unknown: Vec<&str> =
        wanted.iter().copied().filter(|name| !spec.modules().any(|m| names.is_target(m, name))).collect();
    if !unknown.is_empty() || wanted.is_empty() {
        let what = format!(
            "'{}' matches no linear of the model",
            if wanted.is_empty() { text.to_string() } else { unknown.join(", ") }
        );
        let hint = format!("use all-linear, or some of {}", targets(spec.family, spec.modules()).join(", "));
        return Err(Error::setting("target-modules", what, hint));
    }
    Ok(spec.modules().filter(|m| wanted.iter().any(|name| names.is_target(*m, name))).collect())
}

/// What PEFT's `target_modules` calls these: each name once, also where it is of several fused into one.
pub fn targets(family: &Family, modules: impl IntoIterator<Item = Module>) -> Vec<&'static str> {
    let mut names: Vec<&str> = modules.into_iter().map(|module| family.hf.target(module)).collect();
    names.dedup();
    names
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

/// Every linear of these kinds that the model has, and what is fused with it: that can only be adapted as a whole.
pub fn all_sites(spec: &ModelSpec, modules: &[Module]) -> BTreeSet<Site> {
    let names = &spec.family.hf;
    let wanted = |module: &Module| modules.iter().any(|other| names.module(*other) == names.module(*module));
    let modules: Vec<Module> = spec.modules().filter(wanted).collect();
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
        let sites: Vec<Site> = sites.into_iter().collect();
        for fused in sites.chunk_by(|a, b| spec.family.hf.path(*a) == spec.family.hf.path(*b)) {
            lora.add(fused, spec);
        }
        Ok(lora)
    }

    /// The adapted linears as files have them: those of one name are one, with one A and their Bs stacked by rows.
    pub fn linears(&self) -> Vec<Vec<Site>> {
        let (sites, names): (Vec<Site>, _) = (self.sites.keys().copied().collect(), &self.family.hf);
        sites.chunk_by(|a, b| names.path(*a) == names.path(*b)).map(<[Site]>::to_vec).collect()
    }

    /// Appends a linear of one or several parts, whose A is the same.
    fn add(&mut self, parts: &[Site], spec: &ModelSpec) {
        let (rank, a) = (self.config.rank, self.len);
        self.len = (a + rank * spec.linear_shape(parts[0].module).1).next_multiple_of(4);
        for site in parts {
            let (o, i) = spec.linear_shape(site.module);
            let patch = LinearPatch { rank, scale: self.config.scale(), a, b: self.len, dropout: self.config.dropout };
            self.len = (self.len + rank * o).next_multiple_of(4);
            self.sites.insert(*site, patch);
            self.shapes.insert(*site, (o, i));
        }
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
        let widths =
            |parts: &Vec<Site>| self.shapes[&parts[0]].1 + parts.iter().map(|site| self.shapes[site].0).sum::<usize>();
        self.linears().iter().map(|parts| (self.config.rank * widths(parts)) as u64).sum()
    }

    /// PEFT's initialisation: A uniform in ±1/√I (kaiming_uniform with a = √5), B zero. A pure function of the seed.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        let mut flat = vec![0.0; self.len];
        for (k, parts) in self.linears().iter().enumerate() {
            let (patch, width) = (self.sites[&parts[0]], self.shapes[&parts[0]].1);
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
