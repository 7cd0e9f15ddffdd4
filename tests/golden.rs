//! A tiny model of each family with non-zero adapters against PyTorch + PEFT: logits, loss, gradients, ten AdamW steps,
//! generation. The files and how they were made: `tests/golden/README.md`.

#[path = "common/mod.rs"]
mod common;
#[path = "common/tiny.rs"]
mod tiny;

use common::tolerance::apart;
use luthier::adapter::{Adapter, Kind, Settings, peft};
use luthier::data::Batch;
use luthier::device::Device;
use luthier::model::Base;
use luthier::model::generate::{Generator, Request, Sampling};
use luthier::model::load::Opened;
use luthier::model::seam::split_virtual;
use luthier::ops::gather::NONE;
use luthier::ops::matmul;
use luthier::plan::{Shader, Style};
use luthier::train::Trainer;
use pollster::block_on;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tiny::{Rig, Tensors};

/// Largest error allowed: losses and norms relative to the value, tensors relative to the largest value of each.
struct Tolerance {
    logits: f64,
    loss: f64,
    grads: f64,
    /// Losses of ten steps on one batch; norms of gradients, which get small meanwhile, are off by ten times as much.
    steps: f64,
    /// Adam divides gradients by their own size: where one is near zero, rounding moves a parameter by up to lr.
    last: f64,
}

/// The goldens are f64 rounded to f32, and the learning rate and the rotary table come to the reference in f32.
const REFERENCE: Tolerance = Tolerance { logits: 1e-6, loss: 3e-6, grads: 3e-6, steps: 3e-6, last: 5e-5 };
/// PyTorch in f32 is itself up to 4e-6 (gradients) and 7e-4 (last adapter) from f64: `f32_noise` in the goldens.
const SINGLE: Tolerance = Tolerance { logits: 1e-5, loss: 1e-4, grads: 3e-5, steps: 1e-4, last: 3e-3 };

/// Factors keep 11 bits, and errors add up from layer to layer.
const HALVES: Tolerance = Tolerance { logits: 1e-2, loss: 1e-3, grads: 5e-2, steps: 0.06, last: 0.3 };

const CASES: [&str; 11] = [
    "tiny_lora",
    "tiny_rslora",
    "tiny_llama3_lora",
    "tiny_llama3_rslora",
    "tiny_qwen2_lora",
    "tiny_qwen3_lora",
    "tiny_mistral_lora",
    "tiny_gemma2_lora",
    "tiny_gemma3_lora",
    "tiny_gpt2_lora",
    "tiny_phi3_lora",
];

/// The methods beside it: those of PEFT with an adapter folder, and those that start from the base itself.
const METHODS: [&str; 6] = ["tiny_dora", "tiny_patterns", "tiny_ia3", "tiny_prompt", "tiny_prefix", "tiny_norm"];
const OF_THE_BASE: [&str; 4] = ["tiny_bitfit", "tiny_llama3_last-k", "tiny_full", "tiny_llama3_lisa"];
/// What files leave out, to stay small.
const LEFT_OUT: [(&str, &str); 3] =
    [("tiny_full", "final."), ("tiny_accumulate", "final."), ("tiny_llama3_lisa", "grad.")];

struct Case {
    name: &'static str,
    json: Value,
    tensors: Tensors,
}

impl Case {
    fn open(name: &'static str) -> Case {
        let json = std::fs::read(tiny::golden(&format!("{name}.json"))).unwrap();
        let tensors = Tensors::open(&format!("{name}.safetensors"));
        Case { name, json: serde_json::from_slice(&json).unwrap(), tensors }
    }

    fn text(&self, key: &str) -> &str {
        self.json[key].as_str().unwrap()
    }

    /// Tensors of a kind, where the file keeps them.
    fn stored(&self, kind: &str) -> Option<BTreeMap<String, Vec<f64>>> {
        let tensors = self.tensors.under(kind);
        assert_eq!(tensors.is_empty(), LEFT_OUT.contains(&(self.name, kind)), "{}: {kind}", self.name);
        (!tensors.is_empty()).then_some(tensors)
    }

    fn floats(&self, key: &str) -> Vec<f64> {
        self.json[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    fn ids(&self, key: &str) -> Vec<u32> {
        self.json["generate"][key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
    }

    fn base(&self, device: Device) -> Base {
        tiny::base(self.text("model"), device)
    }

    fn adapter(&self, base: &Base) -> (Adapter, Vec<f32>) {
        if let Some(folder) = self.json["adapter"].as_str() {
            return peft::open(&tiny::golden(folder), base.spec()).unwrap();
        }
        let kind: Kind = serde_json::from_value(self.json["method"].clone()).unwrap();
        let [lisa_blocks, interval] = ["blocks", "interval"].map(|key| self.json["lisa"][key].as_u64().unwrap_or(1));
        let settings =
            Settings { last_k: 1, lisa_blocks: lisa_blocks as usize, lisa_interval: interval, ..Default::default() };
        let adapter = kind.adapter(base.spec(), &settings).unwrap();
        let files = tiny::files(self.text("model"));
        let opened = block_on(Opened::new(&files)).unwrap();
        let flat = block_on(adapter.start(0, &opened, |_| unreachable!("no text is asked for"))).unwrap();
        (adapter, flat)
    }
}

/// Collects the largest error of each kind, prints them, and fails if one is too large.
struct Errors {
    what: String,
    found: Vec<(&'static str, f64, f64)>,
}

impl Errors {
    fn add(&mut self, kind: &'static str, allowed: f64, error: f64) {
        match self.found.iter_mut().find(|(k, ..)| *k == kind) {
            Some((.., most)) => *most = error.max(*most),
            None => self.found.push((kind, allowed, error)),
        }
        assert!(error.is_finite(), "{}: {kind} is not a number", self.what);
    }

    /// Relative to the largest value that is wanted.
    fn tensor(&mut self, kind: &'static str, allowed: f64, got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len(), "{}: {kind}", self.what);
        self.add(kind, allowed, apart(got, want));
    }

    fn tensors(
        &mut self,
        kind: &'static str,
        allowed: f64,
        got: &BTreeMap<String, Vec<f64>>,
        want: &BTreeMap<String, Vec<f64>>,
    ) {
        assert!(got.keys().eq(want.keys()), "{}: names of {kind}", self.what);
        for (key, want) in want {
            self.tensor(kind, allowed, &got[key], want);
        }
    }

    fn numbers(&mut self, kind: &'static str, allowed: f64, got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len(), "{}: {kind}", self.what);
        got.iter().zip(want).for_each(|(g, w)| self.add(kind, allowed, ((g - w) / w).abs()));
    }

    fn check(self) {
        println!("{}: {}", self.what, self.found.iter().map(|(k, _, e)| format!("{k} {e:.1e} ")).collect::<String>());
        for (kind, allowed, error) in &self.found {
            assert!(error <= allowed, "{}: {kind} is {error:.2e} off, allowed are {allowed:.0e}", self.what);
        }
    }
}

/// Loss and gradients of the window as one batch: those of its parts, by their shares of the targets.
fn gradients(trainer: &mut Trainer, base: &mut Base, window: &[Batch]) -> (f64, Vec<f32>) {
    let all: usize = window.iter().map(|batch| batch.supervised).sum();
    let (mut loss, mut grads) = (0.0, vec![0.0; trainer.adapter.len]);
    for batch in window {
        let share = batch.supervised as f64 / all as f64;
        let (part, parts) = block_on(trainer.gradients(base, batch)).unwrap();
        loss += share * part;
        grads.iter_mut().zip(parts).for_each(|(sum, part)| *sum += share * part as f64);
    }
    (loss, grads.into_iter().map(|g| g as f32).collect())
}

/// Losses and norms of all updates on `window`, and the adapter after the last.
fn run(case: &Case, device: Device, window: &[Batch], errors: &mut Errors, allowed: &Tolerance) {
    let mut base = case.base(device);
    let want = case.floats("losses_f64");
    let adapter = case.adapter(&base);
    let mut options = tiny::options(want.len() as u64);
    let optimizer = &case.json["optimizer"];
    (options.lr, options.weight_decay) = (optimizer["lr"].as_f64(), optimizer["weight_decay"].as_f64().unwrap() as f32);
    // PyTorch trained the blocks that are drawn with this seed.
    for (i, drawn) in case.json["lisa"]["drawn"].as_array().into_iter().flatten().enumerate() {
        options.seed = case.json["lisa"]["seed"].as_u64().unwrap();
        assert_eq!(json!(adapter.0.method.drawn(options.seed, i as u64)), *drawn, "drawing {i}");
    }
    options.seq_len -= adapter.0.method.virtual_tokens();
    let mut trainer = tiny::trainer(&mut base, adapter, options);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    let (loss, grads) = gradients(&mut trainer, &mut base, window);
    errors.numbers("loss", allowed.loss, &[loss], &want[..1]);
    if let Some(want) = case.stored("grad.") {
        errors.tensors("grads", allowed.grads, &tiny::by_key(&trainer.adapter, &grads), &want);
    }
    while !trainer.done() {
        for report in block_on(trainer.step_on(&mut base, window)).unwrap() {
            losses.push(report.loss);
            norms.push(report.grad_norm);
        }
    }
    errors.numbers("losses", allowed.steps, &losses, &want);
    errors.numbers("norms", 10.0 * allowed.steps, &norms, &case.floats("grad_norms_f64"));
    if let Some(want) = case.stored("final.") {
        let last = block_on(trainer.values(&mut base)).unwrap();
        errors.tensors("last", allowed.last, &tiny::by_key(&trainer.adapter, &last), &want);
    }
}

fn greedy(case: &Case, device: Device) {
    let mut base = case.base(device);
    let (lora, flat) = case.adapter(&base);
    let patches = lora.declare(&mut base.plan, false);
    let prompt = case.ids("prompt");
    let (want, adapted) = (case.ids("base"), case.ids("adapted"));
    assert_ne!(want, adapted, "{}: an adapter that is passed over would do", case.name);
    let generator = block_on(Generator::new(&mut base, Some(&patches), 1, prompt.len() + want.len() + 1)).unwrap();
    base.device.write_floats(patches.params, 0, &flat);
    let sampling = Sampling { max_new_tokens: want.len(), ..Default::default() };
    for (with, want) in [(false, want), (true, adapted)] {
        let prompts = std::slice::from_ref(&prompt);
        let got = block_on(generator.run(
            &mut base,
            Request { prompts, first: 0, adapted: with, stop: &[2], sampling: &sampling },
            |_, _| true,
        ))
        .unwrap();
        assert_eq!(got[0].ids, want, "{}, adapted: {with}", case.name);
    }
}

fn check(device: impl Fn() -> Device, allowed: &Tolerance) {
    for case in CASES.into_iter().chain(METHODS).chain(OF_THE_BASE).map(Case::open) {
        let mut errors = Errors { what: format!("{} on {}", case.name, device().describe()), found: Vec::new() };
        let batch = case.tensors.batch("");
        let base = case.base(device());
        let adapter = case.adapter(&base);
        let mut rig = Rig::new(base, adapter, tiny::B);
        let want = case.tensors.floats("logits");
        // Nothing is asked of virtual tokens.
        let (vocab, mut got) = (rig.base.spec().vocab, rig.logits(&batch));
        for (row, _) in split_virtual(&batch.ids).1.iter().enumerate().filter(|(_, v)| **v != NONE) {
            got[row * vocab..][..vocab].fill(0.0);
        }
        errors.tensor("logits", allowed.logits, &got, &want);
        errors.numbers("evaluated", allowed.loss, &[rig.loss(&batch)], &case.floats("losses_f64")[..1]);
        run(&case, device(), &[batch], &mut errors, allowed);
        if case.json["generate"].is_object() {
            greedy(&case, device());
        }
        errors.check();
    }
    let case = Case::open("tiny_accumulate");
    let mut errors = Errors { what: format!("{} on {}", case.name, device().describe()), found: Vec::new() };
    run(&case, device(), &["0.", "1."].map(|prefix| case.tensors.batch(prefix)), &mut errors, allowed);
    errors.check();
}

#[test]
fn f64_reference() {
    check(Device::reference, &REFERENCE);
}

#[test]
fn f32_cpu() {
    check(Device::cpu, &SINGLE);
}

fn on_gpu(style: Style) {
    if common::gpu().is_some() {
        let device = || {
            let mut gpu = common::gpu().expect("it was there");
            gpu.set_style(style);
            Device::Gpu(Box::new(gpu))
        };
        check(device, &SINGLE);
    }
}

#[test]
fn gpu_direct() {
    on_gpu(Style::Software);
}

#[test]
fn gpu_tiled() {
    on_gpu(Style::Tiled);
}

/// Products of halves, on the tiles of every GPU and on matrix units.
#[test]
fn gpu_fp16() {
    let Some(gpu) = common::gpu_with(true) else { return };
    if !gpu.halves() {
        return common::skipped(&format!("{} does not compute with halves", gpu.facts.name));
    }
    let units = |s: &&Shader| s.constant("FRAG") > 0 && s.constant("FRAG") == gpu.facts.fragment;
    let units: Vec<_> = matmul::FORWARD.shaders.iter().filter(units).collect();
    if units.is_empty() {
        common::skipped(&format!("{} has no matrix units that are known here", gpu.facts.name));
    }
    for shader in [None].into_iter().chain(units.into_iter().map(Some)) {
        let device = || {
            let mut gpu = common::gpu_with(true).expect("it was there");
            gpu.set_style(Style::Tiled);
            gpu.set_shader(shader.map(|s| s.to_string()).as_deref());
            Device::Gpu(Box::new(gpu))
        };
        check(device, &HALVES);
    }
}

/// What PEFT wrote comes back from our writer: the same tensors and the same settings.
#[test]
fn adapter_files_round_trip() {
    for name in CASES.into_iter().chain(METHODS) {
        let case = Case::open(name);
        let base = case.base(Device::cpu());
        let (lora, flat) = case.adapter(&base);
        let folder = std::env::temp_dir().join(format!("luthier-golden-{}-{name}", std::process::id()));
        peft::write(&folder, &peft::files(&lora, &flat, "base").unwrap()).unwrap();
        let (again, same) = peft::open(&folder, base.spec()).unwrap();
        assert_eq!((lora.layout(), &flat), (again.layout(), &same), "{name}");
        let tensors = |path: std::path::PathBuf| Tensors::parse(&std::fs::read(path.join(peft::WEIGHTS)).unwrap());
        let (theirs, ours) = (tensors(tiny::golden(name)), tensors(folder.clone()));
        assert_eq!(ours.shapes(), theirs.shapes(), "{name}");
        assert_eq!(ours.under(""), theirs.under(""), "{name}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
