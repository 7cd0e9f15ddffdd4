//! LoRA (Hu et al. 2021) and rsLoRA (Kalajdzievski 2023): `ΔW = s·B·A`, s = alpha/r or alpha/√r; rank and alpha may
//! differ from linear to linear, and B may learn faster than A (LoRA+, Hayou et al. 2024).
//!
//! Parts: A:[R, I] and the transposed Bᵀ:[R, O] of every adapted linear, in order of layer and module. Where a family
//! fuses linears into one tensor (GPT-2's c_attn), they have one A and each its rows of B, as PEFT has them; only
//! dropout draws a mask for each where PEFT draws one.

use super::method::{Initial, LowRank, Method, Role, Taken};
use super::peft;
use crate::error::{Error, Result};
use crate::model::family::Family;
use crate::model::{ModelSpec, Module, Site};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f32,
    pub dropout: f32,
    pub rslora: bool,
    /// The adapted modules.
    pub modules: Vec<Module>,
    /// Other ranks and alphas, for the linears whose path ends in a name.
    pub rank_pattern: Pattern<usize>,
    pub alpha_pattern: Pattern<f32>,
    /// How many times A's learning rate B learns with.
    pub ratio: f32,
    /// What A and B start as.
    pub start: Start,
}

/// `--init-lora-weights`, by PEFT's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// A uniform in ±1/√I, B zero.
    #[default]
    Kaiming,
    /// A normal with deviation 1/r, B zero.
    Gaussian,
    /// The weight's principal part (PiSSA, Meng et al. 2024), or its first columns (OLoRA, Büyükakyüz 2024). The base
    /// stays as it is: frozen factors take the part back, so what is trained is plain LoRA of twice the rank.
    Taken(Taken),
}

impl Start {
    pub const NAMES: [&'static str; 4] = ["kaiming", "gaussian", "pissa", "olora"];

    pub fn parse(text: &str) -> Result<Start> {
        Ok(match text {
            "kaiming" => Start::Kaiming,
            "gaussian" => Start::Gaussian,
            "pissa" => Start::Taken(Taken::Principal),
            "olora" => Start::Taken(Taken::Leading),
            other => {
                let what = format!("is '{other}', expected {}", Start::NAMES.join(", "));
                return Err(Error::setting("init-lora-weights", what, "kaiming is LoRA's own"));
            }
        })
    }
}

impl Default for LoraConfig {
    /// PEFT's defaults, at all linears.
    fn default() -> Self {
        LoraConfig {
            rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            rslora: false,
            modules: Module::ALL.to_vec(),
            rank_pattern: Pattern::default(),
            alpha_pattern: Pattern::default(),
            ratio: 1.0,
            start: Start::Kaiming,
        }
    }
}

/// A setting that differs from linear to linear: by the end of its path, whole names only (`q_proj`,
/// `layers.0.self_attn.q_proj`). The first that fits counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pattern<T>(pub Vec<(String, T)>);

impl<T: Copy> Pattern<T> {
    fn get(&self, path: &str) -> Option<T> {
        self.0.iter().find(|(name, _)| ends_in(path, name)).map(|(_, value)| *value)
    }

    /// A name that fits no linear.
    fn unused(&self, paths: &[String]) -> Option<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).find(|name| !paths.iter().any(|path| ends_in(path, name)))
    }
}

/// Whether a linear's path ends in `name`, a whole one.
fn ends_in(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl<T: std::str::FromStr> Pattern<T> {
    /// `q_proj=16,layers.0.mlp.down_proj=4`
    pub fn parse(flag: &str, text: &str) -> Result<Pattern<T>> {
        let one = |item: &str| {
            let (name, value) = item.split_once('=')?;
            Some((name.trim().to_string(), value.trim().parse().ok()?))
        };
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let parsed: Option<Vec<_>> = items.map(one).collect();
        parsed.map(Pattern).ok_or_else(|| {
            let what = format!("is '{text}', expected NAME=NUMBER pairs separated by commas");
            Error::setting(flag, what, "such as q_proj=16,layers.0.mlp.down_proj=4")
        })
    }
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
        if let Some((name, rank)) = self.rank_pattern.0.iter().find(|(_, rank)| *rank == 0 || *rank > widest) {
            let what = format!("the rank of {name} is {rank}, expected 1 to {widest}");
            return Err(Error::setting("rank-pattern", what, "8 or 16 is a good start"));
        }
        if let Some((name, alpha)) = self.alpha_pattern.0.iter().find(|(_, a)| !(a.is_finite() && *a > 0.0)) {
            let what = format!("alpha of {name} is {alpha}, expected more than 0");
            return Err(Error::setting("alpha-pattern", what, "twice the rank is a good start"));
        }
        check_ratio(self.ratio)?;
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

    /// The scale where no pattern says otherwise.
    pub fn scale(&self) -> f32 {
        self.scaled(self.alpha, self.rank)
    }

    fn scaled(&self, alpha: f32, rank: usize) -> f32 {
        if self.rslora { alpha / (rank as f32).sqrt() } else { alpha / rank as f32 }
    }

    /// The rank at a linear, by its path.
    pub fn rank_at(&self, path: &str) -> usize {
        self.rank_pattern.get(path).unwrap_or(self.rank)
    }

    fn scale_at(&self, path: &str) -> f32 {
        self.scaled(self.alpha_pattern.get(path).unwrap_or(self.alpha), self.rank_at(path))
    }
}

/// Refuses a ratio of learning rates that cannot work.
pub fn check_ratio(ratio: f32) -> Result<()> {
    match ratio.is_finite() && ratio > 0.0 {
        true => Ok(()),
        false => {
            let what = format!("is {ratio}, expected more than 0");
            Err(Error::setting("loraplus-lr-ratio", what, "1 is plain LoRA; the paper found 16 good"))
        }
    }
}

/// Every linear of these kinds that the model has, and what is fused with it: that can only be adapted as a whole.
pub fn all_sites(spec: &ModelSpec, modules: &[Module]) -> BTreeSet<Site> {
    let names = &spec.family.hf;
    let wanted = |module: &Module| modules.iter().any(|other| names.module(*other) == names.module(*module));
    let modules: Vec<Module> = spec.modules().filter(wanted).collect();
    (0..spec.layers).flat_map(|layer| modules.iter().map(move |module| Site { layer, module: *module })).collect()
}

/// LoRA at some linears of a model.
#[derive(Clone, Debug)]
pub struct Lora {
    pub config: LoraConfig,
    /// Whose names the files use.
    pub family: &'static Family,
    pub sites: BTreeSet<Site>,
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
        let paths: Vec<String> = sites.iter().map(|site| spec.family.hf.path(*site)).collect();
        for (flag, unused) in [
            ("rank-pattern", config.rank_pattern.unused(&paths)),
            ("alpha-pattern", config.alpha_pattern.unused(&paths)),
        ] {
            if let Some(name) = unused {
                let what = format!("'{name}' is the end of no adapted linear's path");
                return Err(Error::setting(flag, what, "name modules (q_proj) or paths (layers.0.self_attn.q_proj)"));
            }
        }
        let complete = sites == all_sites(spec, &config.modules);
        Ok(Lora { family: spec.family, complete, sites, config })
    }
}

impl Lora {
    pub fn at_ratio(&self, ratio: f32) -> Lora {
        Lora { config: LoraConfig { ratio, ..self.config.clone() }, ..self.clone() }
    }

    /// Whether it starts as a part of the weights, and has frozen factors that take it back.
    fn takes(&self) -> bool {
        matches!(self.config.start, Start::Taken(_))
    }

    /// The adapted linears as files have them: those of one name are one.
    fn linears(&self) -> Vec<Vec<Site>> {
        let sites: Vec<Site> = self.sites.iter().copied().collect();
        sites.chunk_by(|a, b| self.path(*a) == self.path(*b)).map(<[Site]>::to_vec).collect()
    }

    /// What PEFT calls a linear.
    fn path(&self, site: Site) -> String {
        self.family.hf.path(site)
    }
}

impl Method for Lora {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn parts(&self, spec: &ModelSpec) -> Vec<(Role, [usize; 2])> {
        let mut parts = Vec::new();
        for linear in self.linears() {
            let (path, i) = (self.path(linear[0]), spec.linear_shape(linear[0].module).1);
            let r = self.config.rank_at(&path) * if self.takes() { 2 } else { 1 };
            parts.push((Role::A(linear[0]), [r, i]));
            parts.extend(linear.iter().map(|site| (Role::B(*site), [r, spec.linear_shape(site.module).0])));
        }
        parts
    }

    /// PEFT's initialisation: A uniform in ±1/√I (kaiming_uniform with a = √5), B zero.
    fn initial(&self, role: Role, [_, cols]: [usize; 2]) -> Initial {
        match role {
            Role::A(site) => match self.config.start {
                Start::Kaiming => Initial::Uniform(1.0 / (cols as f64).sqrt()),
                Start::Gaussian => Initial::Normal(1.0 / self.config.rank_at(&self.path(site)) as f64),
                Start::Taken(taken) => Initial::Factor(taken),
            },
            _ => Initial::Zero,
        }
    }

    fn low_rank(&self, site: Site) -> LowRank {
        let path = self.path(site);
        let frozen = if self.takes() { self.config.rank_at(&path) } else { 0 };
        LowRank { scale: self.config.scale_at(&path), dropout: self.config.dropout, frozen }
    }

    fn rate(&self, role: Role) -> f32 {
        if matches!(role, Role::B(_)) { self.config.ratio } else { 1.0 }
    }

    fn with_ratio(&self, ratio: f32) -> Option<Arc<dyn Method>> {
        Some(Arc::new(self.at_ratio(ratio)))
    }

    fn config(&self) -> Value {
        let c = &self.config;
        let targets: Vec<String> = match self.complete {
            true => targets(self.family, c.modules.iter().copied()).into_iter().map(String::from).collect(),
            false => self.linears().iter().map(|sites| self.path(sites[0])).collect(),
        };
        // With the frozen factors the rank is twice as large; alpha grows so that the scale stays.
        let times = if self.takes() { 2 } else { 1 };
        let more = if c.rslora { (times as f32).sqrt() } else { times as f32 };
        // In their order: the first that fits counts.
        let ranks: Map<String, Value> = c.rank_pattern.0.iter().map(|(k, v)| (k.clone(), json!(times * v))).collect();
        let alphas: Map<String, Value> =
            c.alpha_pattern.0.iter().map(|(k, v)| (k.clone(), peft::number(more * v))).collect();
        json!({
            "peft_type": "LORA",
            "r": times * c.rank,
            "lora_alpha": peft::number(more * c.alpha),
            "lora_dropout": peft::decimal(c.dropout),
            "use_rslora": c.rslora,
            "use_dora": false,
            "target_modules": targets,
            "bias": "none",
            "fan_in_fan_out": self.family.hf.transposed,
            "init_lora_weights": true,
            "modules_to_save": null,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
        })
    }
}
