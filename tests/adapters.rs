//! Adapters as PEFT writes them: what is read, and what is refused rather than read as something else.

#[path = "common/mod.rs"]
mod common;
#[path = "common/tiny.rs"]
mod tiny;

use luthier::adapter::lora::{Pattern, all_sites};
use luthier::adapter::{self, Adapter, Lora, LoraConfig, Role, peft};
use luthier::device::{Device, DeviceChoice};
use luthier::model::family::LLAMA;
use luthier::model::{Module, Site};
use luthier::session::Session;
use luthier::weights::{ModelFiles, Source};
use pollster::block_on;
use serde_json::{Value, json};
use tiny::{Rig, documents, packed};

/// The golden adapter of the model `tiny`, read with some settings changed.
fn read(change: &[(&str, Value)]) -> Result<(Adapter, Vec<f32>), String> {
    let file = |name: &str| std::fs::read(tiny::golden("tiny_lora").join(name)).unwrap();
    let mut config: Value = serde_json::from_slice(&file(peft::CONFIG)).unwrap();
    change.iter().for_each(|(key, value)| config[key] = value.clone());
    open(&config, file(peft::WEIGHTS))
}

fn open(config: &Value, weights: Vec<u8>) -> Result<(Adapter, Vec<f32>), String> {
    let base = tiny::base("tiny", Device::cpu());
    let config = Source::bytes(format!("a/{}", peft::CONFIG), config.to_string().into_bytes());
    let weights = Source::bytes(format!("a/{}", peft::WEIGHTS), weights);
    block_on(peft::read(&config, weights, base.spec())).map_err(|e| format!("{}: {e} ({})", e.code(), e.hint()))
}

#[test]
fn only_initialisations_that_leave_the_base_alone_are_read() {
    for plain in [json!(null), json!(true), json!(false), json!("gaussian"), json!("orthogonal"), json!("eva")] {
        read(&[("init_lora_weights", plain)]).unwrap();
    }
    for other in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"] {
        let message = read(&[("init_lora_weights", json!(other))]).unwrap_err();
        assert!(message.starts_with("unsupported") && message.contains(other), "{message}");
    }
}

#[test]
fn settings_of_the_wrong_kind_are_faults_of_the_file() {
    for (key, value) in [
        ("lora_dropout", json!("x")),
        ("use_rslora", json!("true")),
        ("r", json!(-4)),
        ("lora_alpha", json!("8")),
        ("target_modules", json!(7)),
    ] {
        let message = read(&[(key, value)]).unwrap_err();
        assert!(message.starts_with("malformed: a/adapter_config.json") && message.contains(key), "{message}");
    }
    for (key, value) in
        [("r", json!(1u64 << 60)), ("r", json!(0)), ("lora_alpha", json!(0)), ("lora_dropout", json!(1))]
    {
        let message = read(&[(key, value)]).unwrap_err();
        assert!(message.starts_with("malformed: a/adapter_config.json"), "not a flag's fault: {message}");
    }
}

#[test]
fn methods_that_do_not_fit_the_model_are_faults_of_the_file() {
    for (config, part) in [
        (json!({ "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 0 }), "expected 1 to 4096"),
        (json!({ "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4000 }), "num_virtual_tokens is 4000, the model"),
        (json!({ "peft_type": "PREFIX_TUNING", "num_virtual_tokens": "8" }), "num_virtual_tokens is \"8\""),
        (json!({ "luthier_method": "last-k" }), "last_k is 0, the model has 3 blocks"),
        (json!({ "luthier_method": "last-k", "last_k": u64::MAX }), "the model has 3 blocks"),
        (json!({ "peft_type": "IA3", "feedforward_modules": 3 }), "ia3_l"),
    ] {
        let weights = std::fs::read(tiny::golden("tiny_lora").join(peft::WEIGHTS)).unwrap();
        let message = open(&config, weights).unwrap_err();
        assert!(message.contains(part), "{message}");
    }
}

/// The first name that fits counts, so a file must not sort them.
#[test]
fn patterns_keep_their_order() {
    let spec = tiny::base("tiny", Device::cpu()).spec().clone();
    let rank_pattern = Pattern(vec![("q_proj".into(), 3), ("layers.0.self_attn.q_proj".into(), 2)]);
    let alpha_pattern = Pattern(vec![("up_proj".into(), 3.0), ("layers.0.mlp.up_proj".into(), 0.5)]);
    let config = LoraConfig { rank: 4, rank_pattern, alpha_pattern, ..Default::default() };
    let adapter = Adapter::new(&spec, Lora::new(&spec, config).unwrap());
    let files = peft::files(&adapter, &adapter.init(0), "tiny").unwrap();
    let read = open(&serde_json::from_slice(&files[0].1).unwrap(), files[1].1.clone()).unwrap().0;
    assert_eq!((read.layout(), read.sites()), (adapter.layout(), adapter.sites()));
}

#[test]
fn the_weights_tell_which_linears_are_adapted() {
    let (plain, flat) = read(&[]).unwrap();
    let paths: Vec<String> =
        plain.sites().keys().map(|s| format!("model.layers.{}.{}", s.layer, LLAMA.hf.module(s.module))).collect();
    for targets in [json!(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"), json!(paths), json!(null)] {
        let (lora, same) = read(&[("target_modules", targets)]).unwrap();
        assert_eq!((lora.layout(), same), (plain.layout(), flat.clone()));
    }
    let message = read(&[("r", json!(8))]).unwrap_err();
    assert!(message.contains("not [8, ") && message.contains("the adapter was trained on 'tiny'"), "{message}");
}

/// An adapter of two linears: read back as it was, and the same function as a whole one that is zero elsewhere.
#[test]
fn an_adapter_of_some_linears_is_one_that_is_zero_elsewhere() {
    let base = tiny::base("tiny", Device::cpu());
    let (whole, flat) = tiny::adapter(&base, 0.0, false);
    let sites = [Site { layer: 1, module: Module::V }, Site { layer: 2, module: Module::Up }];
    let plain = LoraConfig { rank: 4, alpha: 8.0, ..Default::default() };
    let some = Adapter::new(base.spec(), Lora::at(sites.into(), base.spec(), plain.clone()).unwrap());
    let (mut part, mut zeros) = (vec![0.0; some.len], vec![0.0; whole.len]);
    for to in &some.parts {
        let from = whole.part(to.role).unwrap();
        to.of_mut(&mut part).copy_from_slice(from.of(&flat));
        from.of_mut(&mut zeros).copy_from_slice(from.of(&flat));
    }
    let files = peft::files(&some, &part, "tiny").unwrap();
    let config: Value = serde_json::from_slice(&files[0].1).unwrap();
    assert_eq!(config["target_modules"], json!(["model.layers.1.self_attn.v_proj", "model.layers.2.mlp.up_proj"]));
    let (lora, again) = open(&config, files[1].1.clone()).unwrap();
    assert_eq!((lora.layout(), &again), (some.layout(), &part));
    assert_ne!(lora.layout(), Adapter::new(base.spec(), Lora::new(base.spec(), plain).unwrap()).layout());

    let batch = packed(&documents(3, 1), true);
    let mut part = Rig::new(base, (lora, part), batch.b);
    let mut zero = Rig::new(tiny::base("tiny", Device::cpu()), (whole, zeros), batch.b);
    assert_eq!(part.logits(&batch), zero.logits(&batch));
    let (some, all) = (part.gradients(&batch, 0).1, zero.gradients(&batch, 0).1);
    for to in part.lora.parts.iter().filter(|part| matches!(part.role, Role::A(_))) {
        let from = zero.lora.part(to.role).unwrap();
        let largest = all.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        for (got, want) in some[to.at..to.at + to.len()].iter().zip(&all[from.at..]) {
            assert!((got - want).abs() <= 1e-6 * largest, "{:?}: {got}, not {want}", to.role);
        }
    }
}

#[test]
fn an_adapter_with_parts_too_many_or_too_few_is_refused() {
    let base = tiny::base("tiny", Device::cpu());
    let config = LoraConfig { rank: 2, alpha: 2.0, modules: vec![Module::Q], ..Default::default() };
    let written = |sites, change: &dyn Fn(&mut Value)| {
        let lora = Adapter::new(base.spec(), Lora::at(sites, base.spec(), config.clone()).unwrap());
        let files = peft::files(&lora, &lora.init(1), "tiny").unwrap();
        let mut config: Value = serde_json::from_slice(&files[0].1).unwrap();
        change(&mut config);
        open(&config, files[1].1.clone()).map(|(lora, _)| lora.sites().len())
    };
    let every = all_sites(base.spec(), &[Module::Q]);
    assert_eq!(written(every.clone(), &|_| ()).unwrap(), 3);
    let mut some = every;
    some.pop_last();
    assert_eq!(written(some.clone(), &|_| ()).unwrap(), 2);
    let plain = |config: &mut Value| config["target_modules"] = json!(["q_proj"]);
    let message = written(some.clone(), &plain).unwrap_err();
    assert!(message.contains("layers.2.self_attn.q_proj.lora_A.weight' is missing"), "{message}");
    let transformed = |config: &mut Value| {
        plain(config);
        config["layers_to_transform"] = json!([0, 1]);
    };
    assert_eq!(written(some, &transformed).unwrap(), 2);
    let message = written(Default::default(), &|_| ()).unwrap_err();
    assert!(message.contains("no lora_A weight"), "{message}");
    let deep = [Site { layer: 5, module: Module::Q }];
    let message = written(deep.into(), &|_| ()).unwrap_err();
    assert!(message.contains("layer 5 is adapted, and the model has 3"), "{message}");
}

#[test]
fn settings_are_written_as_people_write_them() {
    let base = tiny::base("tiny", Device::cpu());
    let config = LoraConfig { rank: 2, alpha: 0.3, dropout: 0.1, modules: vec![Module::Q], ..Default::default() };
    let lora = Adapter::new(base.spec(), Lora::new(base.spec(), config).unwrap());
    let files = peft::files(&lora, &lora.init(1), "tiny").unwrap();
    let text = String::from_utf8(files[0].1.clone()).unwrap();
    assert!(text.contains("\"lora_dropout\": 0.1,") && text.contains("\"lora_alpha\": 0.3,"), "{text}");
}

#[test]
fn an_adapter_knows_the_base_that_it_was_tuned_on() {
    let nano = ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap();
    let mut session = block_on(Session::open(&nano, "nano", DeviceChoice::Cpu, |_, _| {})).unwrap();
    let base = session.base_sha256().to_string();
    let config = LoraConfig { rank: 2, alpha: 4.0, modules: vec![Module::V], ..Default::default() };
    let lora = Adapter::new(session.spec(), Lora::new(session.spec(), config).unwrap());
    let flat = lora.init(1);
    block_on(session.load_adapter(lora.clone(), &flat)).unwrap();
    let tuned_on = |files: adapter::Files| {
        let files: Vec<Source> = files.into_iter().map(|(name, bytes)| Source::bytes(name, bytes)).collect();
        block_on(adapter::base_sha256(&files)).unwrap()
    };
    let own = tuned_on(block_on(session.adapter_files()).unwrap());
    assert_eq!(own.as_deref(), Some(base.as_str()));
    assert!(session.other_base(own.as_deref()).is_none());

    let unsaid = tuned_on(peft::files(&lora, &flat, "nano").unwrap());
    assert_eq!(unsaid, None);
    assert!(session.other_base(None).is_none(), "PEFT's own adapters do not say it");

    let another = "0".repeat(64);
    let foreign = adapter::BaseName { name: "nano", sha256: Some(&another) };
    let foreign = tuned_on(peft::files(&lora, &flat, foreign).unwrap());
    let said = session.other_base(foreign.as_deref()).expect("the name is the same, the weights are not").to_string();
    assert!(said.contains(&base[..12]) && said.contains(&another[..12]), "{said}");
}
