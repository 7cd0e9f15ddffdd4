//! (IA)³ (Liu et al. 2022): learned gains on the outputs of linears, and on the inputs of those of the feed-forward.
//! They start at one and merge into the weights without a trace.

use super::lora::{all_sites, targets};
use super::method::{Initial, Method, Role};
use crate::model::family::Family;
use crate::model::{ModelSpec, Module, Site};
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
pub struct Ia3 {
    pub sites: BTreeSet<Site>,
    /// Whose names the files use.
    pub family: &'static Family,
}

/// What the paper scales: keys, values and the inner activation of the feed-forward.
pub const MODULES: [Module; 3] = [Module::K, Module::V, Module::Down];

impl Ia3 {
    pub fn new(spec: &ModelSpec, modules: &[Module]) -> Ia3 {
        Ia3 { sites: all_sites(spec, modules), family: spec.family }
    }

    fn modules(&self) -> Vec<Module> {
        Module::ALL.into_iter().filter(|m| self.sites.iter().any(|site| site.module == *m)).collect()
    }
}

/// The feed-forward's linears have their gain on the input, as PEFT's `feedforward_modules`.
pub fn role(site: Site) -> Role {
    if site.module == Module::Down { Role::InputGain(site) } else { Role::Gain(site) }
}

impl Method for Ia3 {
    fn name(&self) -> &'static str {
        "ia3"
    }

    fn parts(&self, spec: &ModelSpec) -> Vec<(Role, [usize; 2])> {
        let part = |site: &Site| {
            let (o, i) = spec.linear_shape(site.module);
            let role = role(*site);
            (role, [1, if matches!(role, Role::InputGain(_)) { i } else { o }])
        };
        self.sites.iter().map(part).collect()
    }

    fn initial(&self, _role: Role, _shape: [usize; 2]) -> Initial {
        Initial::One
    }

    fn config(&self) -> Value {
        let names = |modules: Vec<Module>| targets(self.family, modules);
        let modules = self.modules();
        json!({
            "peft_type": "IA3",
            "target_modules": names(modules.clone()),
            "feedforward_modules": names(modules.into_iter().filter(|m| *m == Module::Down).collect()),
            "fan_in_fan_out": self.family.hf.transposed,
            "init_ia3_weights": true,
            "modules_to_save": null,
        })
    }
}
