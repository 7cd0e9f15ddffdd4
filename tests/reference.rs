//! Real models against reference outputs of transformers (float32): prompt ids, last logits, greedy ids.

#[path = "common/mod.rs"]
mod common;

use luthier::data::Tokenizer;
use luthier::device::{Device, DeviceChoice};
use luthier::model::Base;
use luthier::model::generate::{Generator, Request, Sampling};
use luthier::weights::ModelFiles;
use serde_json::Value;
use std::path::Path;

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// Checks every case; `tolerance` is relative to each of the largest logits.
fn check(folder: &Path, model: &Path, choice: DeviceChoice, tolerance: f64, max_new: usize) {
    let reference: Value = serde_json::from_slice(&std::fs::read(folder.join("reference.json")).unwrap()).unwrap();
    let files = ModelFiles::open(model).unwrap();
    let tokenizer = Tokenizer::new(files.tokenizer().clone()).unwrap();
    let device = pollster::block_on(Device::open(choice)).unwrap();
    let mut base = pollster::block_on(Base::load(&files, device, |_, _| {})).unwrap();
    let generator = pollster::block_on(Generator::new(&mut base, None, 4, 256)).unwrap();
    let cases = reference["cases"].as_array().unwrap();
    let prompts: Vec<Vec<u32>> = cases.iter().map(|c| ids(&c["prompt_ids"])).collect();
    for (case, prompt) in cases.iter().zip(&prompts) {
        let text = case["text"].as_str().or(case["prompt"].as_str()).unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), *prompt, "{text:?}");
        let logits =
            pollster::block_on(generator.prompt_logits(&mut base, false, std::slice::from_ref(prompt))).unwrap();
        for top in case["last_logits_top5"].as_array().unwrap() {
            let (id, want) = (top[0].as_u64().unwrap() as usize, top[1].as_f64().unwrap());
            let got = logits[id] as f64;
            assert!(
                (got - want).abs() <= tolerance * want.abs(),
                "{}: logit {id}: {got}, reference {want}",
                folder.display()
            );
        }
    }
    let sampling = Sampling { max_new_tokens: max_new, ..Default::default() };
    let stop = tokenizer.eos_ids().to_vec();
    let request =
        Request { prompts: &prompts[..cases.len().min(4)], first: 0, adapted: false, stop: &stop, sampling: &sampling };
    let all = pollster::block_on(generator.run(&mut base, request, |_, _| true)).unwrap();
    for (case, got) in cases.iter().zip(all) {
        let want = ids(&case["greedy_ids"]);
        assert!(want.len() > 3);
        assert_eq!(first(&got.ids, want.len()), first(&want, max_new), "{}: {}", folder.display(), case["prompt"]);
    }
}

/// The first `n` ids at most.
fn first(ids: &[u32], n: usize) -> &[u32] {
    &ids[..n.min(ids.len())]
}

#[test]
fn stories260k_on_the_cpu() {
    let Some(folder) = common::shared("models/stories260K") else { return };
    check(&folder, &folder.join("hf"), DeviceChoice::Cpu, 1e-3, 100);
}

#[test]
fn stories260k_on_the_gpu() {
    let Some(folder) = common::shared("models/stories260K") else { return };
    if common::gpu().is_some() {
        check(&folder, &folder.join("hf"), DeviceChoice::Gpu, 1e-3, 60);
    }
}

#[test]
fn nano_on_the_cpu() {
    let Some(folder) = common::shared("models/nano") else { return };
    check(&folder, &folder, DeviceChoice::Cpu, 1e-3, 40);
}

#[test]
fn smollm2_gguf_on_the_cpu() {
    let Some(folder) = common::shared("models/SmolLM2-135M-Instruct-Q4_1") else { return };
    check(&folder, &folder.join("SmolLM2-135M-Instruct.Q4_1.gguf"), DeviceChoice::Cpu, 1e-3, 40);
}
