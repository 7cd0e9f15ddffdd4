//! What we write, read by the packages it is for: PEFT, mlx-lm, gguf-py, llama.cpp and TRL.
//!
//! `LUTHIER_PYTHON` names a Python that has them, else `python3` is asked; a test whose package it lacks says SKIPPED.

#[path = "common/mod.rs"]
mod common;
#[path = "common/tiny.rs"]
mod tiny;
#[path = "common/vocabularies.rs"]
mod vocabularies;

use common::tolerance::{apart, farthest};
use luthier::adapter::lora::{Pattern, Start};
use luthier::adapter::merge::{Dtype, ModelFormat, Target};
use luthier::adapter::method::Taken;
use luthier::adapter::{self, Adapter, Format, Kind, LoraConfig, Names, Settings, peft};
use luthier::data::{Batch, Batches, Dataset, Example, PackOptions, ReadOptions, Tokenizer, read_file};
use luthier::device::Device;
use luthier::model::load::Opened;
use luthier::model::seam::virtual_ids;
use luthier::model::{Base, Module};
use luthier::ops::activation::Activation;
use luthier::train::{StepReport, TrainOptions, Trainer};
use luthier::weights::gguf::{self, Value as Metadata};
use luthier::weights::{Gguf, ModelFiles, Source};
use pollster::block_on;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tiny::{Rig, T, Tensors, golden};

const VARIABLE: &str = "LUTHIER_PYTHON";

/// A Python with these packages. Their versions are asked for, which is quick; that they work is for the test to tell.
fn python(packages: &[&str]) -> Option<String> {
    let named = std::env::var(VARIABLE);
    let program = named.clone().unwrap_or_else(|_| "python3".into());
    let code =
        "import sys; from importlib.metadata import version\nfor name in sys.argv[1:]: print(name, version(name))";
    match Command::new(&program).args(["-c", code]).args(packages).output() {
        Ok(output) if output.status.success() => {
            println!("{}", String::from_utf8_lossy(&output.stdout));
            return Some(program);
        }
        Err(error) if named.is_ok() => panic!("{VARIABLE} is '{program}', which does not start: {error}"),
        _ => {}
    }
    common::skipped(&format!("no Python with {} (set {VARIABLE})", packages.join(", ")));
    None
}

/// Runs a script, which has to succeed; its stdout. Nothing is fetched, and no GPU is used.
fn run(python: &str, script: &Path, args: &[String]) -> String {
    let mut command = Command::new(python);
    command.arg(script).args(args).env("HF_HUB_OFFLINE", "1").env("CUDA_VISIBLE_DEVICES", "");
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}: {}", script.display(), text(&output.stderr));
    text(&output.stdout)
}

/// The JSON objects that a script of tests/golden prints.
fn lines(python: &str, script: &str, args: &[String]) -> Vec<Value> {
    let said = run(python, &golden(script), args);
    said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// A folder that is removed when the test ends.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let path = std::env::temp_dir().join(format!("luthier-packages-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Temp(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn floats(values: &Value) -> Vec<f64> {
    values.as_array().unwrap().iter().map(single).collect()
}

/// A number that was an f32: the parser may miss the last bit of an f64.
fn single(number: &Value) -> f64 {
    number.as_f64().unwrap() as f32 as f64
}

/// A method with noise in all that it trains.
struct Case {
    name: String,
    model: &'static str,
    adapter: Adapter,
    flat: Vec<f32>,
}

fn settings() -> Settings {
    Settings {
        lora: LoraConfig { rank: 4, alpha: 6.0, ..Default::default() },
        virtual_tokens: 3,
        prompt_init: "sample_vocab".into(),
        ..Default::default()
    }
}

fn case(name: &str, model: &'static str, kind: Kind, settings: &Settings) -> Case {
    let files = tiny::files(model);
    let opened = block_on(Opened::new(&files)).unwrap();
    let adapter = kind.adapter(&opened.spec, settings).unwrap();
    let mut flat = block_on(adapter.start(5, &opened, |_| unreachable!("no text is asked for"))).unwrap();
    flat.iter_mut().enumerate().for_each(|(i, x)| *x += 0.05 * luthier::num::normal(9, 0, i as u64) as f32);
    Case { name: format!("{model}_{name}"), model, adapter, flat }
}

/// Every method that PEFT has on a model of each family, and what LoRA can differ in on one.
fn cases() -> Vec<Case> {
    let kinds = || Kind::ALL.into_iter().filter(|kind| kind.in_peft());
    let each = tiny::FAMILIES.iter().flat_map(|model| kinds().map(|kind| case(kind.name(), model, kind, &settings())));
    let lora = |name: &str, change: fn(&mut LoraConfig)| {
        let mut settings = settings();
        change(&mut settings.lora);
        case(name, "tiny", Kind::Lora, &settings)
    };
    let variants = [
        lora("rslora", |c| c.rslora = true),
        lora("fraction", |c| c.alpha = 2.5),
        lora("some", |c| c.modules = vec![Module::Q, Module::Down]),
        lora("pissa", |c| c.start = Start::Taken(Taken::Principal)),
        lora("olora_rslora", |c| (c.start, c.rslora) = (Start::Taken(Taken::Leading), true)),
        lora("patterns", |c| {
            c.rank_pattern = Pattern(vec![("q_proj".into(), 2), ("layers.1.mlp.down_proj".into(), 6)]);
            c.alpha_pattern = Pattern(vec![("v_proj".into(), 4.0), ("layers.1.mlp.down_proj".into(), 3.5)]);
        }),
    ];
    each.chain(variants).collect()
}

/// More than the windows of the models that have them, and so few that the last still sees a prompt through two blocks.
const IDS: [u32; 7] = [58, 80, 3, 92, 60, 7, 41];

/// Ids behind an adapter's virtual tokens, in a row that ends in padding.
fn batch(adapter: &Adapter, ids: &[u32]) -> Batch {
    let supervised = (0..ids.len()).map(|i| i > 0).collect();
    let before = virtual_ids(adapter.method.virtual_tokens());
    let data = tiny::dataset(&[(ids.to_vec(), supervised)]).prefixed(&before);
    let options = PackOptions { b: 1, t: T, packing: true, shuffle: false, seed: 0 };
    Batches::new(&data, options).unwrap().batch(0)
}

fn logits(case: &Case) -> [Vec<f64>; 2] {
    logits_behind(&tiny::files(case.model), &case.adapter, &case.flat, &IDS)
}

/// Logits of the last id, with the adapter and without.
fn logits_behind(files: &ModelFiles, adapter: &Adapter, flat: &[f32], ids: &[u32]) -> [Vec<f64>; 2] {
    let batch = batch(adapter, ids);
    let mut rig = Rig::new(tiny::base_of(files, Device::cpu()), (adapter.clone(), flat.to_vec()), 1);
    let (last, vocab) = (adapter.method.virtual_tokens() + ids.len() - 1, rig.base.spec().vocab);
    let of_last = |all: Vec<f64>| all[last * vocab..][..vocab].to_vec();
    [of_last(rig.logits(&batch)), of_last(rig.plain_logits(&batch))]
}

/// Passed with peft 0.21.2, transformers 5.23.0 and torch 2.15.0.
#[test]
fn peft_computes_what_we_do() {
    /// Both sides compute in f32, each up to 1e-5 of the largest logit from f64 (tests/golden.rs).
    const ALLOWED: f64 = 2e-5;
    let Some(python) = python(&["peft", "transformers", "torch"]) else { return };
    let temp = Temp::new("peft");
    let cases = cases();
    let mut args = Vec::new();
    for case in &cases {
        peft::write(&temp.0.join(&case.name), &peft::files(&case.adapter, &case.flat, case.model).unwrap()).unwrap();
        args.extend([temp.path(&case.name), golden(case.model).display().to_string()]);
    }
    args.push(json!(IDS).to_string());
    let found = lines(&python, "check_with_peft.py", &args);
    assert_eq!(found.len(), cases.len());
    let mut wrong = Vec::new();
    for (case, found) in cases.iter().zip(&found) {
        assert_eq!(found["adapter"], temp.path(&case.name));
        let (theirs, [ours, plain]) = (floats(&found["logits"]), logits(case));
        let (off, moved) = (apart(&ours, &theirs), apart(&plain, &theirs));
        let said = format!("{}: {off:.1e} apart, the adapter moves the logits by {moved:.1e}", case.name);
        println!("{said}");
        let fine = off <= ALLOWED && moved >= 100.0 * ALLOWED;
        if !fine {
            wrong.push(said);
        }
    }
    assert!(wrong.is_empty(), "allowed are {ALLOWED:.0e}, and moves of {:.0e} at least: {wrong:#?}", 100.0 * ALLOWED);
}

/// Both ways: its logits with our adapters, and ours with its own. Passed with mlx-lm 0.32.2 and mlx 0.32.4.
#[test]
fn mlx_lm_computes_what_we_do() {
    const ALLOWED: f64 = 2e-5;
    let Some(python) = python(&["mlx-lm", "mlx"]) else { return };
    let temp = Temp::new("mlx");
    let lora = |model: &&'static str| case("lora", model, Kind::Lora, &settings());
    let written = |case: Case| {
        let spec = tiny::base(case.model, Device::cpu()).spec().clone();
        let names = Names { base: case.model.into(), tuned: "tuned" };
        // Stacked matrices it has other layers for.
        let files = adapter::files(Format::Mlx, &case.adapter, &case.flat, &spec, names).ok()?;
        peft::write(&temp.0.join(&case.name), &files).unwrap();
        Some(case)
    };
    // It knows no windows of these models, and of Gemma 3 it wants six layers at least.
    let ids = &IDS[..4];
    let models = tiny::FAMILIES.iter().filter(|model| **model != "tiny_gemma3");
    let cases: Vec<Case> = models.map(lora).filter_map(written).collect();
    assert!(cases.len() >= 5, "{}", cases.len());
    let own = |case: &Case| temp.path(&format!("own-{}", case.name));
    let args = cases.iter().flat_map(|c| [temp.path(&c.name), golden(c.model).display().to_string(), own(c)]);
    let found = lines(&python, "check_with_mlx.py", &args.chain([json!(ids).to_string()]).collect::<Vec<_>>());
    assert_eq!(found.len(), cases.len());
    for (case, found) in cases.iter().zip(&found) {
        let files = tiny::files(case.model);
        let spec = block_on(Opened::new(&files)).unwrap().spec;
        let (theirs, flat) = adapter::open(Path::new(&own(case)), &spec).unwrap();
        let of = |adapter, flat| logits_behind(&files, adapter, flat, ids);
        let both = [("logits", of(&case.adapter, &case.flat)), ("own", of(&theirs, &flat))];
        for (whose, [ours, plain]) in both {
            let theirs = floats(&found[whose]);
            let (off, moved) = (apart(&ours, &theirs), apart(&plain, &theirs));
            println!("{}, {whose}: {off:.1e} apart, the adapter moves the logits by {moved:.1e}", case.name);
            assert!(off <= ALLOWED && moved >= 100.0 * ALLOWED, "{}, {whose}: {off:.1e}, {moved:.1e}", case.name);
        }
    }
}

/// Every setting that we write is one that PEFT writes, with its value; what we leave out is PEFT's default.
#[test]
fn settings_are_those_that_peft_writes() {
    const GOLDEN: [(&str, &str); 17] = [
        ("tiny", "tiny_lora"),
        ("tiny", "tiny_second"),
        ("tiny", "tiny_rslora"),
        ("tiny", "tiny_patterns"),
        ("tiny", "tiny_dora"),
        ("tiny", "tiny_ia3"),
        ("tiny", "tiny_prompt"),
        ("tiny", "tiny_prefix"),
        ("tiny", "tiny_norm"),
        ("tiny_llama3", "tiny_llama3_lora"),
        ("tiny_qwen2", "tiny_qwen2_lora"),
        ("tiny_qwen3", "tiny_qwen3_lora"),
        ("tiny_mistral", "tiny_mistral_lora"),
        ("tiny_gemma2", "tiny_gemma2_lora"),
        ("tiny_gemma3", "tiny_gemma3_lora"),
        ("tiny_gpt2", "tiny_gpt2_lora"),
        ("tiny_phi3", "tiny_phi3_lora"),
    ];
    /// Facts of PEFT, and defaults that are not null, false or empty.
    const LEFT_OUT: [&str; 3] = ["peft_version", "megatron_core", "qalora_group_size"];
    let nothing = |v: &Value| matches!(v, Value::Null | Value::Bool(false)) || *v == json!([]) || *v == json!({});
    for (model, name) in GOLDEN {
        let (adapter, flat) = peft::open(&golden(name), tiny::base(model, Device::cpu()).spec()).unwrap();
        let files = peft::files(&adapter, &flat, model).unwrap();
        let ours: Map<String, Value> = serde_json::from_slice(&files[0].1).unwrap();
        let theirs: Map<String, Value> =
            serde_json::from_slice(&std::fs::read(golden(name).join(peft::CONFIG)).unwrap()).unwrap();
        for (key, value) in &ours {
            let Some(want) = theirs.get(key) else { panic!("{name}: PEFT has no {key}") };
            let (mut value, mut want) = (value.clone(), want.clone());
            if key.ends_with("_modules") {
                // A set, and where PEFT wrote the paths of all layers, the names that stand for them.
                let last = |v: &Value| v.as_str().unwrap().rsplit('.').next().unwrap().to_string();
                let set = |v: &Value| -> Option<BTreeSet<String>> { Some(v.as_array()?.iter().map(last).collect()) };
                (value, want) = (json!(set(&value)), json!(set(&want)));
            }
            assert_eq!(value, want, "{name}: {key}");
        }
        for (key, value) in theirs.iter().filter(|(key, _)| !ours.contains_key(*key)) {
            assert!(nothing(value) || LEFT_OUT.contains(&key.as_str()), "{name}: we leave out {key}, which is {value}");
        }
    }
}

/// A value of the metadata as gguf-py has it.
fn plain(value: &Metadata) -> Value {
    let words = |bytes: &[u8]| -> Vec<[u8; 4]> { bytes.chunks_exact(4).map(|b| b.try_into().unwrap()).collect() };
    match value {
        Metadata::Int(_, n) => json!(i64::try_from(*n).unwrap()),
        Metadata::Float(x) => json!(x),
        Metadata::Bool(b) => json!(b),
        Metadata::Str(text) => json!(text),
        Metadata::Strings(all) => json!(all),
        Metadata::Numbers(gguf::Kind::I32, bytes) => words(bytes).into_iter().map(i32::from_le_bytes).collect(),
        Metadata::Numbers(gguf::Kind::F32, bytes) => words(bytes).into_iter().map(f32::from_le_bytes).collect(),
        Metadata::Numbers(kind, _) => panic!("an array of {kind:?}"),
    }
}

/// A GGUF file that we wrote.
struct Written {
    what: String,
    bytes: Vec<u8>,
    /// What is in it but for the rounding of its types.
    values: BTreeMap<String, Vec<f32>>,
    /// Some of its metadata, whatever our own reader says.
    metadata: Value,
}

fn opened(bytes: &[u8]) -> Gguf {
    block_on(Gguf::open(Source::bytes("test.gguf", bytes))).unwrap()
}

fn values(file: &Gguf) -> BTreeMap<String, Vec<f32>> {
    let all = file.checkpoint.tensors.iter();
    all.map(|(name, info)| (name.clone(), block_on(file.checkpoint.read_f32(info)).unwrap())).collect()
}

/// An adapter's file; that its factors are the adapter's is checked in tests/exports.rs.
fn gguf_adapter(case: &Case) -> Written {
    let spec = tiny::base(case.model, Device::cpu()).spec().clone();
    let names = Names { base: "org/tiny".into(), tuned: "tuned" };
    let files = adapter::files(Format::Gguf, &case.adapter, &case.flat, &spec, names).unwrap();
    let metadata = json!({
        "general.architecture": spec.family.arch,
        "general.type": "adapter",
        "general.name": "tuned",
        "adapter.type": "lora",
        "general.base_model.0.name": "tiny",
        "general.base_model.0.organization": "org",
    });
    let bytes = files.into_iter().next().unwrap().1;
    Written { what: case.name.clone(), values: values(&opened(&bytes)), bytes, metadata }
}

/// A merged model in a type, and what it holds in f32.
fn gguf_model(what: &str, files: &ModelFiles, tuned: &(Adapter, Vec<f32>), dtype: Dtype) -> Written {
    let of = |dtype| {
        let target = Target::new(ModelFormat::Gguf, dtype, "merged");
        tiny::merged(files, tuned, &target).unwrap().remove("merged.gguf").unwrap()
    };
    let spec = block_on(Opened::new(files)).unwrap().spec;
    let arch = spec.family.arch;
    let metadata = json!({
        "general.architecture": arch,
        "general.type": "model",
        format!("{arch}.block_count"): spec.layers,
        format!("{arch}.embedding_length"): spec.hidden,
        format!("{arch}.vocab_size"): spec.vocab,
    });
    Written {
        what: format!("{what} as {}", dtype.name()),
        bytes: of(dtype),
        values: values(&opened(&of(Dtype::F32))),
        metadata,
    }
}

fn check_gguf(written: &Written, found: &Value) {
    let (what, ours) = (&written.what, opened(&written.bytes));
    let exact = |value: &Value| if value.is_f64() { json!(single(value)) } else { value.clone() };
    let theirs = found["metadata"].as_object().unwrap().iter().map(|(key, value)| (key.clone(), exact(value)));
    let metadata: Map<String, Value> = ours.metadata.iter().map(|(k, v)| (k.clone(), plain(v))).collect();
    assert_eq!(theirs.collect::<Map<_, _>>(), metadata, "{what}");
    for (key, want) in written.metadata.as_object().unwrap() {
        assert_eq!(&metadata[key], want, "{what}: {key}");
    }
    let (ours, theirs) = (&ours.checkpoint, found["tensors"].as_object().unwrap());
    assert!(ours.tensors.keys().eq(written.values.keys()) && theirs.len() == ours.tensors.len(), "{what}");
    for (name, info) in &ours.tensors {
        let theirs = &theirs[name];
        assert_eq!((&theirs["type"], &theirs["shape"]), (&json!(info.stored.name()), &json!(info.shape)), "{name}");
        let (theirs, same) = (floats(&theirs["values"]), block_on(ours.read_f32(info)).unwrap());
        assert!(theirs.iter().copied().eq(same.into_iter().map(f64::from)), "{what}: {name} is read in two ways");
        for (want, got) in written.values[name].chunks(32).zip(theirs.chunks(32)) {
            let off = farthest(got, want);
            let allowed = tiny::rounding(info.stored.name(), want);
            assert!(off <= allowed, "{what}: {name} is {off:.2e} off, allowed are {allowed:.2e}");
        }
    }
}

/// Passed with gguf 0.19.0.
#[test]
fn gguf_py_reads_what_we_wrote() {
    let Some(python) = python(&["gguf"]) else { return };
    let lora = |model| case("lora", model, Kind::Lora, &settings());
    let mut all: Vec<Written> = ["tiny", "tiny_llama3", "tiny_qwen3"].map(|model| gguf_adapter(&lora(model))).into();
    let tuned = |case: Case| (case.adapter, case.flat);
    let (small, adapter) = (tiny::with_tokenizer("tiny_llama3"), tuned(lora("tiny_llama3")));
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1] {
        let written = gguf_model("tiny_llama3", &small, &adapter, dtype);
        let kinds =
            opened(&written.bytes).checkpoint.tensors.values().map(|info| info.stored.name()).collect::<Vec<_>>();
        assert!(kinds.contains(&dtype.stored().name()), "{}: {kinds:?}", written.what);
        all.push(written);
    }
    for model in tiny::FAMILIES {
        let files = tiny::spelt(tiny::wide(model));
        let adapter = tiny::adapter(&tiny::base_of(&files, Device::cpu()), 0.0, false);
        all.extend([Dtype::F32, Dtype::Q8_0].map(|dtype| gguf_model(model, &files, &adapter, dtype)));
    }
    let temp = Temp::new("gguf");
    let name = |i: usize| format!("{i}.gguf");
    let paths: Vec<String> = all.iter().enumerate().map(|(i, w)| temp.write(&name(i), &w.bytes)).collect();
    let found = lines(&python, "check_with_gguf.py", &paths);
    assert_eq!(found.len(), all.len());
    all.iter().zip(&found).for_each(|(written, found)| check_gguf(written, found));
    for model in &found[3..] {
        assert_eq!(model["metadata"]["tokenizer.ggml.tokens"].as_array().unwrap().len(), 96);
    }
}

/// Models of every family in a golden model's shape and in whole blocks, and with what config.json may say besides.
fn merged_models() -> Vec<(String, ModelFiles)> {
    let both =
        |model: &&str| [(model.to_string(), tiny::in_gguf(model)), (format!("{model}, wide"), tiny::wide(model))];
    let linear = json!({ "rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0 });
    let local = json!({ "full_attention": { "rope_theta": 7e5 }, "sliding_attention": { "rope_theta": 5e3 } });
    let layers = |count: usize, pattern: usize| -> Value {
        (1..=count).map(|l| if l % pattern == 0 { "full_attention" } else { "sliding_attention" }).collect()
    };
    let changed = [
        ("tiny", json!({ "attention_bias": true, "mlp_bias": true, "rope_parameters": linear })),
        ("tiny_qwen2", json!({ "tie_word_embeddings": false, "rope_parameters": linear })),
        ("tiny_qwen3", json!({ "tie_word_embeddings": true, "rope_parameters": linear })),
        (
            "tiny_gemma2",
            json!({ "rope_parameters": linear, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 9.0 }),
        ),
        ("tiny_gemma2", json!({ "num_hidden_layers": 46, "layer_types": layers(46, 2), "query_pre_attn_scalar": 8 })),
        ("tiny_gemma3", json!({ "num_hidden_layers": 8, "layer_types": layers(8, 6), "rope_parameters": local })),
        ("tiny_gemma3", json!({ "num_hidden_layers": 7, "layer_types": layers(7, 3), "final_logit_softcapping": 9.0 })),
        ("tiny_gemma3", json!({ "tie_word_embeddings": false, "layer_types": layers(2, 9) })),
        ("tiny_gemma3", json!({ "num_hidden_layers": 62, "layer_types": layers(62, 6), "query_pre_attn_scalar": 8 })),
        ("tiny_gpt2", json!({ "tie_word_embeddings": false, "n_inner": null })),
        ("tiny_phi3", json!({ "tie_word_embeddings": true, "sliding_window": null, "rope_parameters": linear })),
        ("tiny_mistral", json!({ "num_key_value_heads": 4, "sliding_window": 6 })),
    ];
    let change = |(model, more): (&str, Value)| {
        let mut files = tiny::wide(model);
        let ModelFiles::Hf { config, .. } = &mut files else { panic!("a folder") };
        more.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        let what = more.as_object().unwrap().iter().filter(|(key, _)| *key != "layer_types");
        (format!("{model} with {:?}", what.collect::<Vec<_>>()), tiny::random(files))
    };
    tiny::FAMILIES.iter().flat_map(both).chain(changed.into_iter().map(change)).collect()
}

/// The adapted model's files: merged, and beside its base where the adapter's factors fit the file's matrices.
fn for_llama_cpp(
    temp: &Temp,
    i: usize,
    files: &ModelFiles,
    tuned: &(Adapter, Vec<f32>),
) -> Vec<(&'static str, String)> {
    let write = |name: &str, tuned: &(Adapter, Vec<f32>)| {
        temp.write(&format!("{i}-{name}.gguf"), &gguf_model(name, files, tuned, Dtype::F32).bytes)
    };
    let (adapter, flat) = tuned;
    let (spec, names) = (block_on(Opened::new(files)).unwrap().spec, Names { base: "tiny".into(), tuned: "tuned" });
    let merged = ("merged", write("merged", tuned));
    let Ok(lora) = adapter::files(Format::Gguf, adapter, flat, &spec, names) else { return vec![merged] };
    let base = write("base", &(adapter.clone(), vec![0.0; flat.len()]));
    vec![merged, ("beside its base", format!("{base},{}", temp.write(&format!("{i}-lora.gguf"), &lora[0].1)))]
}

/// Passed with xllamacpp 2026.10.11549.
#[test]
fn llama_cpp_computes_what_we_do() {
    /// In f32 on both sides.
    const ALLOWED: f64 = 2e-5;
    /// Of each layer, where llama.cpp looks GELU up in a table of f16.
    const TABLE: f64 = 2e-4;
    let Some(python) = python(&["xllamacpp"]) else { return };
    let temp = Temp::new("llama-cpp");
    let (mut args, mut wanted) = (Vec::new(), Vec::new());
    for (i, (what, files)) in merged_models().into_iter().enumerate() {
        let files = tiny::spelt(files);
        let spec = block_on(Opened::new(&files)).unwrap().spec;
        let (adapter, flat) = tiny::adapter(&tiny::base_of(&files, Device::cpu()), 0.0, false);
        // It sees no further than where the model is the same; and it looks one token ahead.
        let ids = &IDS[..IDS.len().min(spec.within_windows().context - 1)];
        let [adapted, plain] = logits_behind(&files, &adapter, &flat, ids).map(log_softmax);
        let table = if spec.activation == Activation::GeluTanh { TABLE * spec.layers as f64 } else { 0.0 };
        for (form, paths) in for_llama_cpp(&temp, i, &files, &(adapter, flat)) {
            args.extend([paths, json!(ids).to_string()]);
            wanted.push((format!("{what}, {form}"), adapted.clone(), plain.clone(), ALLOWED + table));
        }
    }
    let found = lines(&python, "check_with_llama_cpp.py", &args);
    assert_eq!(found.len(), wanted.len());
    for (found, (what, adapted, plain, allowed)) in found.iter().zip(&wanted) {
        let theirs = floats(&found["logprobs"]);
        let (off, moved) = (apart(adapted, &theirs), apart(plain, &theirs));
        println!("{what}: {off:.1e} apart, the adapter moves them by {moved:.1e}");
        assert!(off <= *allowed && moved > 0.02, "{what}: {off:.1e} apart, the base {moved:.1e}");
    }
}

/// Passed with xllamacpp 2026.10.11549.
#[test]
fn llama_cpp_cuts_text_as_we_do() {
    let Some(python) = python(&["xllamacpp"]) else { return };
    let temp = Temp::new("llama-cpp-text");
    let (mut args, mut wanted) = (Vec::new(), Vec::new());
    let all = [
        ("tiny_gemma3", vocabularies::gemma()),
        ("tiny_phi3", vocabularies::phi3()),
        ("tiny_gpt2", vocabularies::gpt2()),
    ];
    for (model, document) in all {
        let ModelFiles::Hf { mut config, checkpoint, companions, .. } = tiny::wide(model) else { panic!("a folder") };
        let tokenizer = vocabularies::files(&document);
        config["vocab_size"] = tokenizer.vocab.into();
        let ours = Tokenizer::new(tokenizer.clone()).unwrap();
        wanted.push(vocabularies::PROBES.map(|text| json!(ours.encode(text, true).unwrap())));
        let files = tiny::random(ModelFiles::Hf { config, checkpoint, companions, tokenizer });
        let adapter = tiny::adapter(&tiny::base_of(&files, Device::cpu()), 0.0, false);
        let bytes = gguf_model(model, &files, &adapter, Dtype::F16).bytes;
        args.extend([temp.write(&format!("{model}.gguf"), &bytes), json!(vocabularies::PROBES).to_string()]);
    }
    let found = lines(&python, "check_with_llama_cpp.py", &args);
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(&wanted) {
        for ((text, theirs), ours) in vocabularies::PROBES.iter().zip(found["ids"].as_array().unwrap()).zip(wanted) {
            assert_eq!(theirs, ours, "{}: {text:?}", found["file"]);
        }
    }
}

fn log_softmax(logits: Vec<f64>) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    let sum = largest + logits.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
    logits.into_iter().map(|x| x - sum).collect()
}

/// The program, on the CPU with the model that comes with the sources.
fn luthier(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_luthier")).args(args).args(["--model", NANO]).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The records as TRL learns them: it also learns what the template puts behind an answer's end, here a line break.
fn as_trl_learns(data: &str) -> Dataset {
    let tokenizer = Tokenizer::new(ModelFiles::open(NANO).unwrap().tokenizer().clone()).unwrap();
    let records = read_file(Path::new(data), &ReadOptions::default()).unwrap();
    let mut data = luthier::session::encode(&records, &tokenizer, SEQ_LEN).unwrap();
    let learned = |example: &Example| {
        let mut example = example.clone();
        let end = example.supervised.iter().rposition(|s| *s).unwrap() + 1;
        assert_eq!(tokenizer.decode(&example.ids[end..], false), "\n");
        example.supervised[end..].fill(true);
        example
    };
    data.examples = Arc::new(data.examples.iter().map(learned).collect());
    data
}

/// A step of ours on all the data in one batch: its loss and gradient norm, and the adapter after it.
fn one_step(folder: &Path, data: &Dataset, ratio: f32) -> (StepReport, BTreeMap<String, Vec<f64>>) {
    let mut base = block_on(Base::load(&ModelFiles::open(NANO).unwrap(), Device::cpu(), |_, _| {})).unwrap();
    let (adapter, flat) = peft::open(folder, base.spec()).unwrap();
    let settings = Settings { lora: LoraConfig { ratio, ..Default::default() }, ..Default::default() };
    let adapter = Kind::Lora.go_on(adapter, base.spec(), &settings).unwrap();
    let (b, t) = (data.examples.len(), SEQ_LEN);
    let batches = Batches::new(data, PackOptions { b, t, packing: false, shuffle: false, seed: 0 }).unwrap();
    let options = TrainOptions { lr: Some(LR), batch_size: b, seq_len: t, weight_decay: 0.0, ..tiny::options(1) };
    let mut trainer = block_on(Trainer::new(&mut base, adapter, flat, batches, options)).unwrap();
    let mut reports = Vec::new();
    while !trainer.done() {
        reports.extend(block_on(trainer.step(&mut base)).unwrap());
    }
    let after = block_on(trainer.values(&mut base)).unwrap();
    (reports.remove(0), tiny::by_key(&trainer.adapter, &after))
}

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano");
const SEQ_LEN: usize = 64;
const LR: f64 = 5e-3;

/// TRL starts from our adapter, and its first step is the step that we would take. Passed with trl 1.16.0, peft 0.21.2,
/// transformers 5.23.0, accelerate 1.15.0, datasets 5.2.0 and torch 2.15.0.
#[test]
fn trl_goes_on_from_a_handoff() {
    trl_goes_on("trl", "lora", 1.0);
}

/// B with four times the rate of A, and of the lengths of DoRA.
#[test]
fn trl_goes_on_with_lora_plus() {
    trl_goes_on("trl-plus", "dora", 4.0);
}

fn trl_goes_on(name: &str, method: &str, ratio: f32) {
    let Some(python) = python(&["trl", "peft", "transformers", "accelerate", "datasets", "torch"]) else { return };
    let temp = Temp::new(name);
    let record = |i: usize| {
        let prompt = format!("Put {i} apples on shelf {}", i % 7);
        json!({ "prompt": prompt, "completion": format!("larder put apples {i}") })
    };
    let records: String = (0..12).map(|i| format!("{}\n", record(i))).collect();
    let (data, first, folder) =
        (temp.write("data.jsonl", records.as_bytes()), temp.path("first"), temp.path("handoff"));
    let (lr, seq_len, plus) = (LR.to_string(), SEQ_LEN.to_string(), ratio.to_string());
    let options = ["--steps", "3", "--lr", &lr, "--schedule", "constant", "--batch-size", "12", "--seq-len", &seq_len];
    let rest = ["--no-packing", "--val-fraction", "0", "--device", "cpu"];
    let rest = [&rest[..], &["--method", method, "--loraplus-lr-ratio", &plus]].concat();
    luthier(&[&["train", "--data", &data, "--out", &first], &options[..], &rest].concat());
    luthier(&["handoff", "--adapter", &first, "--data", &data, "--eval-data", &data, "--out", &folder]);

    // As a user may edit it.
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(temp.0.join("handoff/config.json")).unwrap()).unwrap();
    for (key, value) in [("max_steps", json!(1)), ("logging_steps", json!(1)), ("use_cpu", json!(true))] {
        config["sft"][key] = value;
    }
    temp.write("handoff/config.json", config.to_string().as_bytes());
    run(&python, &temp.0.join("handoff/train.py"), &[]);
    let state = std::fs::read(temp.0.join("handoff/out/checkpoint-1/trainer_state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    let logged = |key: &str| -> f64 {
        let all = state["log_history"].as_array().unwrap();
        all.iter().find_map(|entry| entry[key].as_f64()).unwrap_or_else(|| panic!("no {key} in {state}"))
    };

    let (report, ours) = one_step(Path::new(&first), &as_trl_learns(&data), ratio);
    assert_eq!(logged("num_tokens"), report.tokens as f64);
    // The golden runs' bounds for losses in f32 and for norms.
    for (what, ours, allowed) in [("loss", report.loss, 1e-4), ("grad_norm", report.grad_norm, 1e-3)] {
        let theirs = logged(what);
        println!("{what}: {theirs} by TRL, {ours} by us");
        assert!((theirs / ours - 1.0).abs() <= allowed, "{what} is {theirs} by TRL and {ours} by us");
    }
    assert!(logged("eval_loss") < logged("loss"), "{state}");

    // The first step of Adam is lr in the direction of the gradient's sign: where that is near zero, rounding decides.
    let read = |path: &Path| Tensors::parse(&std::fs::read(path.join(peft::WEIGHTS)).unwrap()).under("");
    let (before, theirs) = (read(Path::new(&first)), read(&temp.0.join("handoff/out/adapter")));
    assert!(theirs.keys().eq(ours.keys()) && theirs.keys().eq(before.keys()));
    let (mut all, mut apart, mut moved) = (0, 0, 0);
    for (key, theirs) in &theirs {
        assert_eq!(theirs.len(), ours[key].len(), "{key}");
        let lr = if key.contains("lora_B") { ratio as f64 * LR } else { LR };
        for ((theirs, ours), before) in theirs.iter().zip(&ours[key]).zip(&before[key]) {
            all += 1;
            moved += usize::from((theirs - before).abs() > 0.9 * lr);
            let (near, within) = ((theirs - ours).abs() <= 0.01 * lr, (theirs - before).abs() <= 1.001 * lr);
            apart += usize::from(!near);
            assert!(within, "{key}: from {before} to {theirs}: further than a step of {lr}");
        }
    }
    println!("{moved} of {all} numbers moved by a step, {apart} are not where ours are");
    assert!(moved * 100 >= 95 * all && apart * 1000 <= all, "{moved} of {all} moved, {apart} are not where ours are");
}
