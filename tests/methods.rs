//! What holds for every method: it starts as the base (or beside it), recomputed blocks are kept blocks, the cache
//! gives what the whole forward gives, folded weights are the adapted model, and the base stays as it is.

#[path = "common/mod.rs"]
mod common;
#[path = "common/tiny.rs"]
mod tiny;

use common::tolerance::apart;
use luthier::Error;
use luthier::adapter::lora::Start;
use luthier::adapter::merge::{Dtype, ModelFormat, Target, merge};
use luthier::adapter::method::Taken;
use luthier::adapter::{Adapter, Kind, LoraConfig, Role, Settings, peft};
use luthier::data::Batch;
use luthier::device::Device;
use luthier::model::decoder::Keep;
use luthier::model::generate::Generator;
use luthier::model::load::Opened;
use luthier::model::seam::virtual_ids;
use luthier::model::{Base, Module, Site};
use luthier::weights::{ModelFiles, Source};
use pollster::block_on;
use std::collections::BTreeMap;
use tiny::{Rig, T};

/// A plain family, one with all kinds of norms, and two with fused or turned tensors.
const MODELS: [&str; 4] = ["tiny_llama3", "tiny_gemma2", "tiny_gpt2", "tiny_phi3"];

/// Every method on every model, but for biases where there are none.
fn everywhere(law: impl Fn(Kind, &str)) {
    for model in MODELS {
        let spec = tiny::base(model, Device::cpu()).spec().clone();
        for kind in Kind::ALL {
            match kind.adapter(&spec, &settings()) {
                Ok(_) => law(kind, model),
                Err(error) => {
                    assert!(kind == Kind::Bitfit && model != "tiny_gpt2", "{model}, {}: {error}", kind.name());
                    assert!(error.to_string().contains(&format!("is bitfit, and a {} model has none", spec.family)));
                }
            }
        }
    }
}

fn settings() -> Settings {
    Settings {
        lora: LoraConfig { rank: 4, alpha: 8.0, ..Default::default() },
        virtual_tokens: 3,
        prompt_init: "sample_vocab".into(),
        last_k: 1,
        lisa_blocks: 1,
        lisa_interval: 3,
        ..Default::default()
    }
}

/// The start of a run, and that with noise.
fn adapter(kind: Kind, model: &str) -> (Adapter, Vec<f32>, Vec<f32>) {
    let files = tiny::files(model);
    let opened = block_on(Opened::new(&files)).unwrap();
    let adapter = kind.adapter(&opened.spec, &settings()).unwrap();
    let start = block_on(adapter.start(5, &opened, |_| unreachable!("no text is asked for"))).unwrap();
    let noise = |i: usize| 0.05 * luthier::num::normal(9, 0, i as u64) as f32;
    let noisy = start.iter().enumerate().map(|(i, x)| x + noise(i)).collect();
    (adapter, start, noisy)
}

/// Two documents a row, each behind the adapter's virtual tokens.
fn batch(adapter: &Adapter) -> Batch {
    let before = virtual_ids(adapter.method.virtual_tokens());
    let document = |seed: u64| {
        let ids: Vec<u32> = (0..8).map(|i| 3 + (luthier::num::uniform(seed, 0, i) * 90.0) as u32).collect();
        let supervised = (0..8).map(|i| i > 2).collect();
        (ids, supervised)
    };
    let documents: Vec<_> = (0..4).map(document).collect();
    let data = tiny::dataset(&documents).prefixed(&before);
    let options = luthier::data::PackOptions { b: 2, t: T, packing: true, shuffle: false, seed: 0 };
    luthier::data::Batches::new(&data, options).unwrap().batch(0)
}

fn rig(adapter: &Adapter, model: &str, flat: &[f32], device: Device) -> Rig {
    Rig::new(tiny::base(model, device), (adapter.clone(), flat.to_vec()), 2)
}

#[test]
fn a_run_starts_as_the_base() {
    everywhere(|kind, model| {
        if matches!(kind, Kind::Prompt | Kind::Prefix) {
            return;
        }
        let (adapter, start, noisy) = adapter(kind, model);
        let batch = batch(&adapter);
        let mut same = rig(&adapter, model, &start, Device::cpu());
        let off = apart(&same.logits(&batch), &same.plain_logits(&batch));
        // A magnitude over a norm is 1 up to rounding; all else is exact.
        assert!(off <= if kind == Kind::Dora { 1e-5 } else { 0.0 }, "{model}, {}: {off:.1e} off", kind.name());
        let mut other = rig(&adapter, model, &noisy, Device::cpu());
        assert!(apart(&other.logits(&batch), &other.plain_logits(&batch)) > 1e-3, "{} changes nothing", kind.name());
    });
}

/// What forms and help say of a method is what it does.
#[test]
fn what_is_said_of_a_method_holds() {
    assert_eq!(Kind::ALL.map(Kind::name), Kind::NAMES);
    everywhere(|kind, model| {
        let spec = tiny::base(model, Device::cpu()).spec().clone();
        let (adapter, ..) = adapter(kind, model);
        assert_eq!(adapter.method.name(), kind.name());
        assert_eq!(adapter.folded_spec(&spec).is_ok(), kind.merges(), "{model}, {}", kind.name());
        assert_eq!(adapter.method.config()["peft_type"].is_string(), kind.in_peft(), "{model}, {}", kind.name());
    });
}

#[test]
fn a_prompt_that_starts_as_a_text_is_that_text() {
    let text = [5, 90, 7];
    for model in MODELS {
        let files = tiny::files(model);
        let opened = block_on(Opened::new(&files)).unwrap();
        let settings = Settings { prompt_init: "text".into(), prompt_text: "as it is".into(), ..settings() };
        let adapter = Kind::Prompt.adapter(&opened.spec, &settings).unwrap();
        let start = block_on(adapter.start(0, &opened, |_| Ok(text.to_vec()))).unwrap();
        let batch = batch(&adapter);
        let mut plain = batch.clone();
        plain.ids.iter_mut().for_each(|id| *id = virtual_ids(3).iter().position(|v| v == id).map_or(*id, |i| text[i]));
        let mut rig = rig(&adapter, model, &start, Device::cpu());
        let off = apart(&rig.logits(&batch), &rig.plain_logits(&plain));
        assert!(off < 1e-5, "{model}: {off:.1e} off");
    }
}

#[test]
fn recomputed_blocks_are_kept_blocks() {
    everywhere(|kind, model| {
        let (adapter, _, noisy) = adapter(kind, model);
        let batch = batch(&adapter);
        let gradients = |blocks: usize, packed: bool| {
            let base = tiny::base(model, Device::cpu());
            Rig::keeping(base, (adapter.clone(), noisy.clone()), 2, Keep { blocks, packed }).gradients(&batch, 1)
        };
        for packed in [false, true] {
            assert!(gradients(0, packed) == gradients(2, packed), "{model}, {}, packed: {packed}", kind.name());
        }
    });
}

/// Every gradient against central differences, a few entries of each trained tensor.
#[test]
fn gradients_are_differences_of_the_loss() {
    const H: f64 = 1e-4;
    everywhere(|kind, model| {
        let (adapter, _, noisy) = adapter(kind, model);
        let batch = batch(&adapter);
        let mut rig = rig(&adapter, model, &noisy, Device::reference());
        let (_, grads) = rig.gradients(&batch, 0);
        let params = rig.patches.params;
        let mut at = |i: usize, value: f64| {
            let Device::Reference(cpu) = &mut rig.base.device else { unreachable!() };
            cpu.write_floats(params, i, [value].into_iter());
            rig.gradients(&batch, 0).0
        };
        let entries =
            adapter.parts.iter().flat_map(|part| [part.at, part.at + part.len() - 1, part.at + part.len() / 2]);
        let entries: Vec<usize> = entries.step_by(2).collect();
        let largest = grads.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        for i in entries {
            let x = noisy[i] as f64;
            let up = at(i, x + H);
            let difference = (up - at(i, x - H)) / (2.0 * H);
            at(i, x);
            let part = adapter.parts.iter().rfind(|part| part.at <= i).unwrap();
            // DoRA holds the norm constant in backward: the gradient of A and B is not that of the loss.
            let constant = kind == Kind::Dora && matches!(part.role, Role::A(_) | Role::B(_));
            let error = (difference - grads[i]).abs() / largest;
            assert!(
                constant || error < 1e-6,
                "{}, {:?}: {} by differences {difference}",
                kind.name(),
                part.role,
                grads[i]
            );
        }
    });
}

#[test]
fn the_cache_gives_what_the_whole_forward_gives() {
    everywhere(|kind, model| {
        let (adapter, _, noisy) = adapter(kind, model);
        let batch = batch(&adapter);
        let n = batch.spans[0][1] as usize;
        let mut rig = rig(&adapter, model, &noisy, Device::cpu());
        let vocab = rig.base.spec().vocab;
        let want = rig.logits(&batch)[(n - 1) * vocab..n * vocab].to_vec();
        let mut base = tiny::base(model, Device::cpu());
        let patches = adapter.declare(&mut base.plan, false);
        let prologue = adapter.prologue(&mut base.plan, &patches, &base.decoder);
        let generator = block_on(Generator::new(&mut base, Some(&patches), 1, 32)).unwrap();
        base.device.write_floats(patches.params, 0, &noisy);
        if let Some(prologue) = prologue {
            base.device.run(&base.plan, prologue, 0).unwrap();
        }
        let prompt = batch.ids[..n].to_vec();
        let got = block_on(generator.prompt_logits(&mut base, true, &[prompt])).unwrap();
        let got: Vec<f64> = got.into_iter().map(f64::from).collect();
        assert!(apart(&got, &want) < 1e-5, "{model}, {}: {:.1e} off", kind.name(), apart(&got, &want));
    });
}

fn merged(adapter: &Adapter, model: &str, flat: &[f32]) -> luthier::Result<ModelFiles> {
    let mut folder = BTreeMap::<String, Vec<u8>>::from([("tokenizer.json".into(), b"{}".to_vec())]);
    let sink = async |name: &str, bytes: &[u8]| {
        folder.entry(name.into()).or_default().extend_from_slice(bytes);
        Ok(())
    };
    let target = Target::new(ModelFormat::Hf, Dtype::F32, "merged");
    block_on(merge(&tiny::files(model), adapter, flat, &target, sink))?;
    let sources = folder.into_iter().map(|(name, bytes)| Source::bytes(name, bytes)).collect();
    Ok(block_on(ModelFiles::from_sources("merged", sources)).unwrap())
}

#[test]
fn folded_weights_are_the_adapted_model() {
    everywhere(|kind, model| {
        let (adapter, _, noisy) = adapter(kind, model);
        let batch = batch(&adapter);
        match merged(&adapter, model, &noisy) {
            Ok(files) => {
                let mut want = rig(&adapter, model, &noisy, Device::cpu());
                let base = block_on(Base::load(&files, Device::cpu(), |_, _| {})).unwrap();
                let (lora, start, _) = self::adapter(Kind::Lora, model);
                let got = Rig::new(base, (lora, start), 2).plain_logits(&batch);
                let off = apart(&got, &want.logits(&batch));
                assert!(off < 1e-5, "{model}, {}: {off:.1e} off", kind.name());
            }
            Err(Error::Unsupported { what, .. }) => {
                assert!(matches!(kind, Kind::Prompt | Kind::Prefix), "{}: {what}", kind.name());
                assert!(what.starts_with(&format!("{} tuning stands before the text", kind.name())), "{what}");
            }
            Err(other) => panic!("{}: {other}", kind.name()),
        }
    });
}

#[test]
fn files_come_back_as_they_were() {
    everywhere(|kind, model| {
        let (adapter, _, noisy) = adapter(kind, model);
        let files = peft::files(&adapter, &noisy, "tiny").unwrap();
        let source = |name: &str| {
            let (name, bytes) = files.iter().find(|(n, _)| n == name).unwrap();
            Source::bytes(name.as_str(), bytes.as_slice())
        };
        let spec = tiny::base(model, Device::cpu()).spec().clone();
        let (again, flat) = block_on(peft::read(&source(peft::CONFIG), source(peft::WEIGHTS), &spec)).unwrap();
        assert_eq!(again.parts, adapter.parts, "{model}, {}", kind.name());
        for part in &adapter.parts {
            // Gemma's files hold norms less 1, which rounds.
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= if model == "tiny_gemma2" { 1e-6 } else { 0.0 };
            let same = part.of(&flat).iter().zip(part.of(&noisy)).take(again.vocab * part.cols).all(near);
            assert!(same, "{model}, {}: {:?}", kind.name(), part.role);
        }
    });
}

/// LoRA+ and patterns: B learns faster, and a linear may have a rank and an alpha of its own.
#[test]
fn patterns_and_rates_are_those_asked_for() {
    let spec = tiny::base("tiny_llama3", Device::cpu()).spec().clone();
    let mut settings = settings();
    settings.lora.ratio = 16.0;
    settings.lora.rank_pattern.0 = vec![("layers.1.self_attn.q_proj".into(), 2), ("v_proj".into(), 6)];
    settings.lora.alpha_pattern.0 = vec![("q_proj".into(), 3.0)];
    let adapter = Kind::Lora.adapter(&spec, &settings).unwrap();
    let sites = adapter.sites();
    let low = |layer, module| sites[&Site { layer, module }].low_rank.unwrap();
    assert_eq!([low(0, Module::Q).rank, low(1, Module::Q).rank, low(0, Module::V).rank], [4, 2, 6]);
    assert_eq!([low(0, Module::Q).scale, low(1, Module::Q).scale, low(0, Module::V).scale], [0.75, 1.5, 8.0 / 6.0]);
    let rates = adapter.rates().unwrap();
    for part in &adapter.parts {
        let want = if matches!(part.role, Role::B(_)) { 16.0 } else { 1.0 };
        assert!(part.of(&rates).iter().all(|rate| *rate == want), "{:?}", part.role);
    }
    settings.lora.rank_pattern.0 = vec![("proj".into(), 2)];
    let message = Kind::Lora.adapter(&spec, &settings).unwrap_err().to_string();
    assert!(message.contains("'proj' is the end of no adapted linear's path"), "{message}");
}

/// What a run sets and no file keeps: LoRA+'s ratio, and the blocks that take turns in what full tuning made.
#[test]
fn adapters_go_on_by_what_the_run_asks_for() {
    let spec = tiny::base("tiny_llama3", Device::cpu()).spec().clone();
    let mut settings = settings();
    settings.lora.ratio = 16.0;
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Lisa) {
        let (made, ..) = adapter(kind, "tiny_llama3");
        let on = Kind::Lora.go_on(made.clone(), &spec, &settings).unwrap();
        assert_eq!((Kind::of(&*on.method), on.layout(), &on.parts), (kind, made.layout(), &made.parts));
        let asked = kind.adapter(&spec, &settings).unwrap();
        assert!(on.rates() == asked.rates(), "{}", kind.name());
        let lisa = Kind::Lisa.go_on(made, &spec, &settings).unwrap();
        let other = Kind::of(&*lisa.method) != kind;
        assert_eq!((other, lisa.method.interval().is_some()), (kind == Kind::Full, kind == Kind::Full));
        assert_eq!((lisa.layout(), lisa.parts), (on.layout(), on.parts));
    }
    settings.lora.ratio = 0.0;
    let error = Kind::Lora.go_on(adapter(Kind::Lora, "tiny_llama3").0, &spec, &settings).unwrap_err();
    assert!(error.to_string().contains("loraplus-lr-ratio: is 0"), "{error}");
}

/// The parameters after so many steps.
fn trained(kind: Kind, settings: &Settings, steps: u64) -> (Adapter, Vec<f32>, Vec<f32>) {
    let files = tiny::files("tiny");
    let opened = block_on(Opened::new(&files)).unwrap();
    let adapter = kind.adapter(&opened.spec, settings).unwrap();
    let start = block_on(adapter.start(0, &opened, |_| unreachable!("no text is asked for"))).unwrap();
    let mut base = tiny::base("tiny", Device::cpu());
    let options = luthier::train::TrainOptions { lr: Some(1e-3), weight_decay: 0.0, ..tiny::options(steps) };
    let mut trainer = tiny::trainer(&mut base, (adapter.clone(), start.clone()), options);
    while !trainer.done() {
        block_on(trainer.step(&mut base)).unwrap();
    }
    let after = block_on(trainer.values(&mut base)).unwrap();
    (adapter, start, after)
}

#[test]
fn all_blocks_at_a_time_is_full_tuning() {
    let mut settings = settings();
    (settings.lisa_blocks, settings.lisa_interval) = (3, 100);
    assert!(trained(Kind::Lisa, &settings, 4).2 == trained(Kind::Full, &settings, 4).2);
}

/// Within an interval one block of three moves, and all that is no block; over many, every block does.
#[test]
fn blocks_take_turns() {
    let moved = |steps: u64| {
        let (adapter, start, after) = trained(Kind::Lisa, &settings(), steps);
        let moves = |part: &&luthier::adapter::Part| part.of(&start) != part.of(&after);
        let moved: Vec<Role> = adapter.parts.iter().filter(moves).map(|part| part.role).collect();
        let layer = |role: &Role| if let Role::Base(tensor) = role { tensor.layer() } else { None };
        let rests = adapter.parts.iter().filter(|p| layer(&p.role).is_none()).all(|p| moved.contains(&p.role));
        assert!(rests, "embedding, head and last norm are always trained");
        let mut layers: Vec<usize> = moved.iter().filter_map(layer).collect();
        layers.sort_unstable();
        layers.dedup();
        layers
    };
    assert_eq!(moved(3).len(), 1);
    assert_eq!(moved(30), [0, 1, 2]);
}

/// Factors that are a part of the weights change nothing at first, whatever linears a family fuses; only the first half
/// of them moves, and what is written is plain LoRA of twice the rank with the same scale.
#[test]
fn factors_taken_from_the_weights_are_plain_lora() {
    for (model, taken) in
        [("tiny_llama3", Taken::Principal), ("tiny_gpt2", Taken::Principal), ("tiny_phi3", Taken::Leading)]
    {
        let files = tiny::files(model);
        let opened = block_on(Opened::new(&files)).unwrap();
        let mut settings = settings();
        settings.lora.start = Start::Taken(taken);
        let adapter = Kind::Lora.adapter(&opened.spec, &settings).unwrap();
        let start = block_on(adapter.start(5, &opened, |_| unreachable!())).unwrap();
        let batch = batch(&adapter);
        let mut same = rig(&adapter, model, &start, Device::reference());
        let off = apart(&same.logits(&batch), &same.plain_logits(&batch));
        assert!(off < 1e-6 && start.iter().filter(|x| **x != 0.0).count() > start.len() / 2, "{model}: {off:.1e}");
        let plain = Kind::Lora.adapter(&opened.spec, &self::settings()).unwrap();
        assert_eq!(adapter.parameters(), plain.parameters(), "the frozen half is not trained");

        let mut base = tiny::base(model, Device::cpu());
        let options = luthier::train::TrainOptions { weight_decay: 0.1, ..tiny::options(3) };
        let mut trainer = tiny::trainer(&mut base, (adapter.clone(), start.clone()), options);
        while !trainer.done() {
            block_on(trainer.step(&mut base)).unwrap();
        }
        let after = block_on(trainer.values(&mut base)).unwrap();
        for part in &adapter.parts {
            let half = part.len() / 2;
            let (was, is) = (part.of(&start), part.of(&after));
            assert!(was[..half] != is[..half] && was[half..] == is[half..], "{model}: {:?}", part.role);
        }

        let written = peft::files(&adapter, &after, model).unwrap();
        let source = |name: &str| {
            let (name, bytes) = written.iter().find(|(n, _)| n == name).unwrap();
            Source::bytes(name.as_str(), bytes.as_slice())
        };
        let again = block_on(peft::read(&source(peft::CONFIG), source(peft::WEIGHTS), &opened.spec)).unwrap();
        let mut one = rig(&adapter, model, &after, Device::reference());
        let mut other = rig(&again.0, model, &again.1, Device::reference());
        assert!(apart(&one.logits(&batch), &other.logits(&batch)) < 1e-9, "{model}");
        assert_eq!(again.0.parameters(), 2 * adapter.parameters());
    }
}
