//! What leaves Luthier is what other tools' own packages write: names, shapes, metadata and values of the golden files
//! (tests/golden/make_exports.py); and read back it is the model that went out.

#[path = "common/mod.rs"]
mod common;
#[path = "common/tiny.rs"]
mod tiny;
#[path = "common/vocabularies.rs"]
mod vocabularies;

use common::tolerance::{apart, farthest};
use luthier::Error;
use luthier::adapter::combine::{Combination, Combined, combine};
use luthier::adapter::merge::{Dtype, ModelFormat, Target};
use luthier::adapter::{self, Adapter, Files, Format, Lora, LoraConfig, Names, Role, peft};
use luthier::device::{Device, DeviceChoice};
use luthier::digest::sha256;
use luthier::model::Module;
use luthier::session::{Session, modelfile};
use luthier::weights::gguf::{Metadata, Value};
use luthier::weights::{Checkpoint, Gguf, ModelFiles, Source, TokenizerFiles, gguf_tokenizer, gguf_vocabulary};
use pollster::block_on;
use serde_json::json;
use std::collections::BTreeMap;
use tiny::{FAMILIES, Rig, Tensors, golden, merged, spelt, with_tokenizer};
use vocabularies::PROBES;

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano");

type Tuned = (Adapter, Vec<f32>);

fn open_golden(model: &str, adapter: &str) -> Tuned {
    peft::open(&golden(adapter), tiny::base(model, Device::cpu()).spec()).unwrap()
}

fn exported(format: Format, model: &str, (lora, flat): &Tuned) -> Files {
    let names = Names { base: "org/tiny".into(), tuned: "tuned" };
    adapter::files(format, lora, flat, tiny::base(model, Device::cpu()).spec(), names).unwrap()
}

fn sources(files: Files) -> Vec<Source> {
    files.into_iter().map(|(name, bytes)| Source::bytes(name, bytes)).collect()
}

fn read(model: &str, files: Files) -> luthier::Result<Tuned> {
    block_on(adapter::read(&sources(files), tiny::base(model, Device::cpu()).spec()))
}

fn gguf(bytes: Vec<u8>) -> Gguf {
    block_on(Gguf::open(Source::bytes("test.gguf", bytes))).unwrap()
}

fn golden_gguf(name: &str) -> Gguf {
    gguf(std::fs::read(golden(name)).unwrap())
}

/// Name to type, shape and values.
fn tensors(gguf: &Gguf) -> BTreeMap<String, (&'static str, Vec<u64>, Vec<f32>)> {
    let values = |info| block_on(gguf.checkpoint.read_f32(info)).unwrap();
    let all = gguf.checkpoint.tensors.iter();
    all.map(|(name, info)| (name.clone(), (info.stored.name(), info.shape.clone(), values(info)))).collect()
}

/// Every key of `want` is in `got`, with its type and value.
fn has_metadata(got: &Gguf, want: &Gguf) {
    for (key, value) in &want.metadata {
        assert_eq!(got.metadata.get(key), Some(value), "{key}");
    }
}

#[test]
fn gguf_adapters_are_as_llama_cpps_converter_writes_them() {
    for (model, name) in [("tiny", "tiny_lora"), ("tiny_llama3", "tiny_llama3_rslora")] {
        let files = exported(Format::Gguf, model, &open_golden(model, name));
        assert_eq!(files[0].0, "tuned.gguf");
        let (got, want) = (gguf(files[0].1.clone()), golden_gguf(&format!("{name}.gguf")));
        let alpha = |file: &Gguf| file.f32("adapter.lora.alpha").unwrap();
        // rsLoRA's is no f32: rounding after the root, or after the division, is one step apart.
        assert!((alpha(&got) / alpha(&want) - 1.0).abs() <= 2.0 * f32::EPSILON, "{} {}", alpha(&got), alpha(&want));
        for key in ["general.architecture", "general.type", "adapter.type"] {
            assert_eq!(got.str(key).unwrap(), want.str(key).unwrap());
        }
        assert_eq!(got.str("general.base_model.0.name").unwrap(), "tiny");
        assert_eq!(tensors(&got), tensors(&want), "{name}");
    }
}

#[test]
fn adapters_come_back_from_every_format() {
    for (model, name) in [
        ("tiny", "tiny_lora"),
        ("tiny", "tiny_second"),
        ("tiny_llama3", "tiny_llama3_rslora"),
        ("tiny_qwen3", "tiny_qwen3_lora"),
        ("tiny_gemma3", "tiny_gemma3_lora"),
    ] {
        let adapter = open_golden(model, name);
        let want = Rig::new(tiny::base(model, Device::cpu()), adapter.clone(), 2).logits(&tiny::batch());
        for format in [Format::Peft, Format::Gguf, Format::Mlx] {
            let (lora, flat) = read(model, exported(format, model, &adapter)).unwrap();
            assert_eq!(flat, adapter.1, "{name} as {format:?}: the factors are the same bits");
            let logits = Rig::new(tiny::base(model, Device::cpu()), (lora, flat), 2).logits(&tiny::batch());
            let off = farthest(&logits, &want);
            assert!(off < 1e-5, "{name} as {format:?}: {off:.1e} apart");
        }
    }
}

/// Ranks and alphas that differ from linear to linear are the same function in every format.
#[test]
fn patterns_survive_every_format() {
    let batch = tiny::batch();
    let logits = |a: Tuned| Rig::new(tiny::base("tiny", Device::cpu()), a, 2).logits(&batch);
    let tuned = open_golden("tiny", "tiny_patterns");
    let want = logits(tuned.clone());
    for format in [Format::Peft, Format::Gguf, Format::Mlx] {
        let got = logits(read("tiny", exported(format, "tiny", &tuned)).unwrap());
        close(&format!("{format:?}"), &got, &want, 1e-5);
    }
}

/// llama.cpp's and mlx-lm's files hold low-rank factors. The other methods are refused there, with the way out.
#[test]
fn methods_that_a_format_cannot_hold_are_refused() {
    for (name, way) in [("tiny_dora", "luthier merge"), ("tiny_ia3", "luthier merge"), ("tiny_prefix", "PEFT's layout")]
    {
        let (adapter, flat) = open_golden("tiny", name);
        let spec = tiny::base("tiny", Device::cpu()).spec().clone();
        for format in [Format::Gguf, Format::Mlx] {
            let names = Names { base: "tiny".into(), tuned: "tuned" };
            match adapter::files(format, &adapter, &flat, &spec, names) {
                Err(Error::Unsupported { hint, .. }) => assert!(hint.contains(way), "{name}: {hint}"),
                other => panic!("{name}: {:?}", other.map(|files| files.len())),
            }
        }
        assert!(combine(&spec, &[(&adapter, &flat, 1.0)], Combination::Cat, None).is_err());
    }
}

#[test]
fn what_is_no_adapter_for_this_model_is_refused() {
    let refused = |model: &str, bytes: Vec<u8>, part: &str| {
        let error = read(model, vec![("x.gguf".into(), bytes)]).unwrap_err();
        assert!(error.to_string().contains(part), "'{error}' does not say '{part}'");
        assert!(!error.hint().is_empty());
    };
    let bytes = |name: &str| std::fs::read(golden(name)).unwrap();
    refused("tiny", bytes("tiny_llama3_merged.gguf"), "general.type is model");
    refused("tiny_llama3", bytes("tiny_lora.gguf"), "has shape");
    let changed = |from: &[u8], to: &[u8]| {
        let mut bytes = bytes("tiny_lora.gguf");
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    refused("tiny", changed(b"llama", b"qwen2"), "architecture 'qwen2'");
    refused("tiny", changed(b"blk.0.ffn_down.weight.lora_a", b"blk.0.ffn_dawn.weight.lora_a"), "lora_a' is missing");
    let missing = read("tiny", vec![("adapter_config.json".into(), b"{}".to_vec())]).unwrap_err();
    assert!(missing.to_string().contains("adapter_model.safetensors is missing"), "{missing}");
}

#[test]
fn merged_gguf_files_are_as_llama_cpps_converter_writes_them() {
    let adapter = open_golden("tiny_llama3", "tiny_llama3_rslora");
    let target = Target::new(ModelFormat::Gguf, Dtype::Q8_0, "merged");
    let files = merged(&with_tokenizer("tiny_llama3"), &adapter, &target).unwrap();
    let (got, want) = (gguf(files["merged.gguf"].clone()), golden_gguf("tiny_llama3_merged.gguf"));
    has_metadata(&got, &want);
    let (got, want) = (tensors(&got), tensors(&want));
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, (kind, shape, values)) in &want {
        let (got_kind, got_shape, got_values) = &got[name];
        assert_eq!((got_kind, got_shape), (kind, shape), "{name}");
        // PyTorch adds up B·A in another order, which may round a number to the next step.
        let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
        let step = match *kind {
            "Q8_0" => largest / 127.0 * 1.01,
            "F16" => largest / 1024.0,
            _ => largest * 1e-6,
        };
        let near = values.iter().zip(got_values).filter(|(a, b)| (*a - *b).abs() <= 1e-6 * largest).count();
        let (most, far) = (farthest(got_values, values), values.len() - near);
        assert!(most <= step as f64 && far * 100 <= values.len(), "{name}: {most:e} apart, {far} of {}", values.len());
    }
}

/// A merged GGUF file, read back.
fn merged_gguf(files: &ModelFiles, adapter: &Tuned, dtype: Dtype) -> luthier::Result<ModelFiles> {
    let files = merged(files, adapter, &Target::new(ModelFormat::Gguf, dtype, "merged"))?;
    let source = Source::bytes("merged.gguf", files["merged.gguf"].as_slice());
    block_on(ModelFiles::from_sources("merged", vec![source]))
}

/// The logits of a merged GGUF file, relative to the live model's largest logit.
fn merged_off(files: &ModelFiles, adapter: &Tuned, dtype: Dtype) -> luthier::Result<f64> {
    let again = merged_gguf(files, adapter, dtype)?;
    let want = Rig::new(tiny::base_of(files, Device::cpu()), adapter.clone(), 2).logits(&tiny::batch());
    let logits = Rig::new(tiny::base_of(&again, Device::cpu()), adapter.clone(), 2).plain_logits(&tiny::batch());
    Ok(apart(&logits, &want))
}

#[test]
fn merged_gguf_files_are_the_adapted_model() {
    for (model, name) in [("tiny", "tiny_lora"), ("tiny_llama3", "tiny_llama3_rslora")] {
        let adapter = open_golden(model, name);
        for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::F16, 3e-3), (Dtype::Bf16, 5e-2), (Dtype::Q8_0, 0.1)] {
            let off = merged_off(&with_tokenizer(model), &adapter, dtype).unwrap();
            assert!(off < tolerance, "{model} as {dtype:?}: {off:.1e} apart");
        }
    }
    for model in FAMILIES {
        let files = spelt(tiny::in_gguf(model));
        let off = merged_off(&files, &open_golden(model, &format!("{model}_lora")), Dtype::F32).unwrap();
        assert!(off < 1e-5, "{model}: {off:.1e} apart");
    }
}

/// Also where q, k and v are one tensor there, or gate and up: every matrix is rounded to the type, and nothing else.
#[test]
fn merged_gguf_files_of_every_family_are_quantised() {
    for model in FAMILIES {
        let files = spelt(tiny::wide(model));
        let adapter = tiny::adapter(&tiny::base_of(&files, Device::cpu()), 0.0, false);
        let written = |dtype| match merged_gguf(&files, &adapter, dtype).unwrap() {
            ModelFiles::Gguf { gguf, .. } => tensors(&gguf),
            ModelFiles::Hf { .. } => panic!("a folder"),
        };
        let whole = written(Dtype::F32);
        // Gemma 2's caps widen what 4 bits round away.
        let coarse = if model == "tiny_gemma2" { 2.0 } else { 0.3 };
        for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::Q8_0, 0.1), (Dtype::Q4_1, coarse)] {
            let off = merged_off(&files, &adapter, dtype).unwrap();
            assert!(off < tolerance, "{model} as {dtype:?}: {off:.1e} apart");
            for (name, (kind, shape, values)) in written(dtype) {
                let eight = ["token_embd.weight", "output.weight"].contains(&name.as_str()) && dtype == Dtype::Q4_1;
                let want = match shape.len() {
                    2 if name == "position_embd.weight" => "F32",
                    2 if eight => "Q8_0",
                    2 => dtype.stored().name(),
                    _ => "F32",
                };
                assert_eq!(kind, want, "{model}: {name}");
                for (want, got) in whole[&name].2.chunks(32).zip(values.chunks(32)) {
                    let off = farthest(got, want);
                    assert!(off <= tiny::rounding(kind, want), "{model} as {dtype:?}: {name} is {off:.2e} off");
                }
            }
        }
    }
}

/// Other methods fold into the weights as LoRA does.
#[test]
fn every_foldable_method_goes_into_gguf() {
    for name in ["tiny_dora", "tiny_ia3", "tiny_norm", "tiny_patterns"] {
        let off = merged_off(&with_tokenizer("tiny"), &open_golden("tiny", name), Dtype::F32).unwrap();
        assert!(off < 1e-5, "{name}: {off:.1e} apart");
    }
    let error = merged_off(&with_tokenizer("tiny"), &open_golden("tiny", "tiny_prefix"), Dtype::F32).unwrap_err();
    assert!(error.hint().contains("beside the model"), "{error}");
}

/// Where a family's matrices are stacked in other files.
#[test]
fn adapters_of_stacked_matrices_are_refused() {
    let (adapter, flat) = open_golden("tiny_phi3", "tiny_phi3_lora");
    let spec = tiny::base("tiny_phi3", Device::cpu()).spec().clone();
    let names = Names { base: "tiny".into(), tuned: "tuned" };
    for format in [Format::Gguf, Format::Mlx] {
        let error = adapter::files(format, &adapter, &flat, &spec, names).unwrap_err();
        assert!(error.hint().contains("luthier merge"), "{error}");
    }
}

fn lines_sha256<T: ToString>(lines: impl IntoIterator<Item = T>) -> String {
    let lines: Vec<String> = lines.into_iter().map(|line| line.to_string()).collect();
    sha256(lines.join("\n").as_bytes())
}

#[test]
fn a_vocabulary_is_as_gguf_py_has_it() {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden("nano_vocabulary.json")).unwrap()).unwrap();
    let nano = ModelFiles::open(NANO).unwrap();
    let found = gguf_vocabulary::metadata(nano.tokenizer(), golden["rows"].as_u64().unwrap() as usize, "nano").unwrap();
    let strings = |key: &str| match &found[key] {
        Value::Strings(all) => lines_sha256(all),
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(golden["tokens"], strings("tokenizer.ggml.tokens"));
    assert_eq!(golden["merges"], strings("tokenizer.ggml.merges"));
    let Value::Numbers(_, types) = &found["tokenizer.ggml.token_type"] else { panic!("no numbers") };
    let types = types.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()));
    assert_eq!(golden["token_type"], lines_sha256(types));
    for (ours, theirs) in [("bos", "bos"), ("eos", "eos"), ("padding", "pad")] {
        let id = golden["special_token_ids"][theirs].as_u64().unwrap() as u32;
        assert_eq!(found[&format!("tokenizer.ggml.{ours}_token_id")], Value::from(id));
    }
    assert_eq!(found["tokenizer.ggml.add_bos_token"], Value::from(golden["add_bos_token"].as_bool().unwrap()));
    let Value::Str(template) = &found["tokenizer.chat_template"] else { panic!("no text") };
    assert_eq!(golden["chat_template"], lines_sha256([template]));
    assert_eq!(found["tokenizer.ggml.model"], Value::from("gpt2"));
    assert_eq!(found["tokenizer.ggml.pre"], Value::from("smollm"));
}

#[test]
fn a_tokenizer_that_llama_cpp_has_no_name_for_is_refused() {
    let nano = ModelFiles::open(NANO).unwrap().tokenizer().clone();
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut document: serde_json::Value = serde_json::from_str(&nano.tokenizer_json).unwrap();
        change(&mut document);
        let files = TokenizerFiles { tokenizer_json: document.to_string(), ..nano.clone() };
        gguf_vocabulary::metadata(&files, 2048, "nano")
    };
    let refused = |part: &str, change: &dyn Fn(&mut serde_json::Value)| match changed(change) {
        Err(Error::Unsupported { what, hint, .. }) => {
            assert!(what.contains(part) && hint.contains("--format hf"), "{what}: {hint}")
        }
        other => panic!("{part}: {:?}", other.map(|pairs| pairs.len())),
    };
    refused("pre-tokenizer", &|d| d["pre_tokenizer"] = json!({ "type": "Whitespace" }));
    refused("pre-tokenizer", &|d| d["normalizer"] = json!({ "type": "NFKC" }));
    refused("pre-tokenizer", &|d| d["model"]["ignore_merges"] = json!(true));
    refused("a row for 2048 tokens", &|d| d["model"]["vocab"]["new"] = json!(2048));
    refused("WordPiece", &|d| d["model"]["type"] = json!("WordPiece"));
    refused("SentencePiece", &|d| d["model"]["byte_fallback"] = json!(true));
    // Where offsets point changes no id.
    changed(&|d| d["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = json!(false)).unwrap();
}

/// The document as a GGUF file has it: its metadata, and the tokenizer that is read from them.
fn through_gguf(document: &serde_json::Value, name: &str) -> luthier::Result<(Metadata, [TokenizerFiles; 2])> {
    let rows = document["model"]["vocab"].as_object().unwrap().len();
    let files = vocabularies::files(document);
    let metadata = gguf_vocabulary::metadata(&files, rows, name)?;
    let again =
        gguf_tokenizer::tokenizer_files(&Gguf { metadata: metadata.clone(), checkpoint: Checkpoint::default() })?;
    Ok((metadata, [files, again]))
}

fn same_ids([files, again]: [TokenizerFiles; 2]) {
    assert_eq!((files.bos, &files.eos, files.add_bos), (again.bos, &again.eos, again.add_bos));
    assert_eq!(again.pad, None, "the model has no such token");
    let [old, new] = [files, again].map(|files| luthier::data::Tokenizer::new(files).unwrap());
    for probe in PROBES {
        assert_eq!(old.encode(probe, true).unwrap(), new.encode(probe, true).unwrap(), "{probe:?}");
    }
}

/// Gemma's: no space before the text, and a cut at spaces, of which its normalizer leaves none.
#[test]
fn gemmas_vocabulary_survives_gguf() {
    let mut document = vocabularies::gemma();
    let (metadata, files) = through_gguf(&document, "my-Phi3").unwrap();
    assert_eq!(metadata["tokenizer.ggml.model"], "llama".into());
    assert_eq!(metadata["tokenizer.ggml.add_space_prefix"], false.into());
    // llama.cpp would have special tokens swallow white space.
    assert_eq!(metadata["general.name"], "my-Phi 3".into());
    let (metadata, _) = through_gguf(&document, "PHI-3 or Phi3").unwrap();
    assert_eq!(metadata["general.name"], "PHI 3 or Phi 3".into());
    same_ids(files);
    // Scores cannot say that "ab" comes between two ways to make "▁▁▁".
    document["model"]["merges"].as_array_mut().unwrap().swap(3, 6);
    let error = through_gguf(&document, "x").unwrap_err();
    assert!(error.to_string().contains("do not follow from scores"), "{error}");
}

/// Phi-3's special tokens swallow the white space behind them, which llama.cpp knows by the model's name.
#[test]
fn phi3s_vocabulary_survives_gguf() {
    let document = vocabularies::phi3();
    let (metadata, files) = through_gguf(&document, "tuned").unwrap();
    assert_eq!(metadata["tokenizer.ggml.add_space_prefix"], true.into());
    assert_eq!(metadata["general.name"], "Phi-3 tuned".into());
    same_ids(files);
    assert_eq!(through_gguf(&document, "Phi-3-tuned").unwrap().0["general.name"], "Phi-3-tuned".into());

    for (key, of, words) in [
        ("rstrip", 1, "\"rstrip\" of token '<s>' is true"),
        ("rstrip", 4, "\"rstrip\" of token '<|end|>' is false"),
        ("lstrip", 3, "\"lstrip\" of token '<|user|>' is true"),
    ] {
        let mut document = document.clone();
        document["added_tokens"][of][key] = json!(!document["added_tokens"][of][key].as_bool().unwrap());
        let error = through_gguf(&document, "tuned").unwrap_err();
        assert!(error.to_string().contains(words) && error.hint().contains("--format hf"), "{error}");
    }
    // Without one of Phi-3's tokens llama.cpp does not open a model of that name.
    let renamed = document.to_string().replace("<|endoftext|>", "<|over|>");
    let error = through_gguf(&serde_json::from_str(&renamed).unwrap(), "tuned").unwrap_err();
    assert!(error.to_string().contains("no token '<|endoftext|>'"), "{error}");
}

/// GPT-2's tokenizer.json is older than the setting that it cuts words as GPT-2 does.
#[test]
fn gpt2s_vocabulary_survives_gguf() {
    let (metadata, files) = through_gguf(&vocabularies::gpt2(), "tuned").unwrap();
    assert_eq!(metadata["tokenizer.ggml.pre"], "gpt-2".into());
    same_ids(files);
}

/// A SentencePiece tokenizer without its scores gets scores that join the same pieces.
#[test]
fn sentencepiece_vocabularies_survive_gguf() {
    let Some(folder) = common::shared("models/stories260K/hf") else { return };
    let files = ModelFiles::open(folder).unwrap();
    let spec = block_on(luthier::model::load::Opened::new(&files)).unwrap().spec;
    let config = LoraConfig { rank: 2, alpha: 2.0, modules: vec![Module::Q], ..Default::default() };
    let lora = Adapter::new(&spec, Lora::new(&spec, config).unwrap());
    let flat = lora.init(1);
    let target = Target::new(ModelFormat::Gguf, Dtype::F32, "stories");
    let out = merged(&files, &(lora, flat), &target).unwrap();
    let source = Source::bytes("stories.gguf", out["stories.gguf"].as_slice());
    let again = block_on(ModelFiles::from_sources("stories", vec![source])).unwrap();
    let text = "Once upon a time, there was a little girl named Lily. She said: \"Ünïcode 日本 42!\"  Two  spaces.\n";
    let ids = |files: &ModelFiles| {
        luthier::data::Tokenizer::new(files.tokenizer().clone()).unwrap().encode(text, true).unwrap()
    };
    assert_eq!(ids(&files), ids(&again));
}

fn nano_session() -> (ModelFiles, Session) {
    let nano = ModelFiles::open(NANO).unwrap();
    let session = block_on(Session::open(&nano, "nano", DeviceChoice::Cpu, |_, _| {})).unwrap();
    (nano, session)
}

/// An adapter of nano that changes its answers.
fn strong(session: &Session, module: Module) -> Tuned {
    let config = LoraConfig { rank: 4, alpha: 8.0, modules: vec![module], ..Default::default() };
    let lora = Adapter::new(session.spec(), Lora::new(session.spec(), config).unwrap());
    let mut flat = lora.init(1);
    let noise = lora.init(2);
    for part in lora.parts.iter().filter(|part| matches!(part.role, Role::B(_))) {
        let noise = noise.iter().filter(|x| **x != 0.0).cycle();
        part.of_mut(&mut flat).iter_mut().zip(noise).for_each(|(b, x)| *b = *x);
    }
    (lora, flat)
}

#[test]
fn exports_are_checked_against_the_live_model() {
    let (nano, mut session) = nano_session();
    let (lora, flat) = strong(&session, Module::Gate);
    block_on(session.load_adapter(lora.clone(), &flat)).unwrap();
    for format in [Format::Peft, Format::Gguf, Format::Mlx] {
        let files = sources(block_on(session.exported(format, "tuned")).unwrap());
        let agreement = block_on(session.check_adapter(&files)).unwrap();
        assert!(agreement.kl < 1e-9 && agreement.same_choice == 1.0, "{format:?}: {agreement:?}");
    }
    // Another adapter in good files is found out.
    let wrong: Vec<f32> = flat.iter().map(|x| 2.0 * x).collect();
    let files = sources(peft::files(&lora, &wrong, "nano").unwrap());
    let error = block_on(session.check_adapter(&files)).unwrap_err();
    assert!(error.to_string().contains("is another model"), "{error}");
    // And so is a merged model whose adapter is missing.
    let merged = |dtype: Dtype, flat: &[f32]| {
        let files = merged(&nano, &(lora.clone(), flat.to_vec()), &Target::new(ModelFormat::Gguf, dtype, "m")).unwrap();
        block_on(ModelFiles::from_sources("m", vec![Source::bytes("m.gguf", files["m.gguf"].as_slice())])).unwrap()
    };
    let mut last = -1.0;
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Q8_0, Dtype::Q4_0] {
        let agreement = block_on(session.check_merged(&merged(dtype, &flat), dtype)).unwrap();
        assert!(agreement.kl > last, "{dtype:?} is coarser than the one before: {agreement:?}");
        last = agreement.kl;
    }
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Q8_0] {
        let base = merged(dtype, &vec![0.0; flat.len()]);
        let error = block_on(session.check_merged(&base, dtype)).unwrap_err();
        assert!(error.to_string().contains("is another model"), "{dtype:?}: {error}");
    }
}

/// Adapters are put on, taken off and put on again, and each time the model is the very one it was.
#[test]
fn adapters_are_switched_to_the_same_bits() {
    let (_, mut session) = nano_session();
    let records = luthier::data::read(
        "x.jsonl",
        br#"{"prompt":"Put 3 apples on shelf 2","completion":"larder put apples 3 --shelf 2"}"#.as_slice(),
        &Default::default(),
    );
    let data = session.encode(&records.unwrap(), 64).unwrap();
    let loss = |session: &mut Session, adapted: bool| {
        block_on(session.evaluate(&data, 1, 64, adapted)).unwrap().loss.to_bits()
    };
    let answer = |session: &mut Session| {
        let sampling = luthier::model::generate::Sampling { max_new_tokens: 12, ..Default::default() };
        block_on(session.generate(&["Put 3 apples on shelf 2".into()], true, true, &sampling)).unwrap()[0].text.clone()
    };
    let base = (loss(&mut session, true), answer(&mut session));
    let mut found = Vec::new();
    for (name, module) in [("one", Module::Gate), ("two", Module::V)] {
        let (lora, flat) = strong(&session, module);
        block_on(session.load_adapter(lora, &flat)).unwrap();
        session.keep_adapter(name).unwrap();
        found.push((name, (loss(&mut session, true), answer(&mut session))));
        assert_eq!(loss(&mut session, false), base.0, "not used is not there");
    }
    assert!(found[0].1.0 != base.0 && found[1].1.0 != base.0 && found[0].1 != found[1].1);
    for (name, want) in found.iter().chain(&found) {
        session.use_adapter(Some(name)).unwrap();
        assert_eq!((loss(&mut session, true), answer(&mut session)), *want, "{name}");
        session.use_adapter(None).unwrap();
        assert_eq!((loss(&mut session, true), answer(&mut session)), base, "the base after {name}");
    }
    let error = session.use_adapter(Some("three")).unwrap_err();
    assert!(error.hint().contains("one, two"), "{}", error.hint());
    assert!(session.keep_adapter("none").is_err());
}

#[test]
fn quantised_types_are_for_gguf_alone() {
    let adapter = open_golden("tiny", "tiny_lora");
    let target = Target::new(ModelFormat::Hf, Dtype::Q4_0, "merged");
    match merged(&with_tokenizer("tiny"), &adapter, &target) {
        Err(Error::Setting { flag, hint, .. }) => assert!(flag == "dtype" && hint.contains("--format gguf")),
        other => panic!("{:?}", other.map(|files| files.len())),
    }
}

#[test]
fn a_modelfile_says_what_the_chat_template_does() {
    let (_, session) = nano_session();
    let text = modelfile("m.gguf", &session.tokenizer);
    assert!(
        text.starts_with("FROM ./m.gguf\nTEMPLATE \"\"\"") && text.ends_with("PARAMETER stop \"<|im_end|>\"\n"),
        "{text}"
    );
    // Go's template, run by hand on a user's first turn.
    let first = text.split("{{ else }}").nth(1).unwrap().split("{{ end }}").next().unwrap();
    let cue = text.split("{{ .Content }}{{ end }}").nth(1).unwrap().split("\"\"\"").next().unwrap();
    let asked = [luthier::data::Message::new("user", "Hello")];
    assert_eq!(format!("{first}Hello{cue}"), session.tokenizer.render_chat(&asked, true).unwrap());

    let nano = ModelFiles::open(NANO).unwrap().tokenizer().clone();
    let with = |template: Option<&str>| {
        let files = TokenizerFiles { chat_template: template.map(String::from), ..nano.clone() };
        modelfile("m.gguf", &luthier::data::Tokenizer::new(files).unwrap())
    };
    assert!(with(None).contains("TEMPLATE \"\"\"{{ .Prompt }}\"\"\""));
    let counted = "{% for m in messages %}{{ loop.index }}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}";
    assert!(with(Some(counted)).contains("# The chat template says more"));
}

fn combined(how: Combination, rank: Option<usize>) -> Combined {
    let (first, second) = (open_golden("tiny", "tiny_lora"), open_golden("tiny", "tiny_second"));
    let spec = tiny::base("tiny", Device::cpu()).spec().clone();
    combine(&spec, &[(&first.0, &first.1, 0.7), (&second.0, &second.1, -0.4)], how, rank).unwrap()
}

fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    let off = apart(got, want);
    assert!(off <= tolerance, "{what}: {off:.1e} apart");
}

/// B·A of one linear, by PEFT's names.
fn product(tensors: &BTreeMap<String, Vec<f64>>, key: &str, rank: usize) -> Vec<f64> {
    let (a, b) = (&tensors[key], &tensors[&key.replace("lora_A", "lora_B")]);
    let i = a.len() / rank;
    let row = |row: &[f64]| (0..i).map(|col| (0..rank).map(|k| row[k] * a[k * i + col]).sum()).collect::<Vec<f64>>();
    b.chunks_exact(rank).flat_map(row).collect()
}

#[test]
fn adapters_are_combined_as_peft_does() {
    let golden = Tensors::open("tiny_combined.safetensors");
    for (how, name) in [(Combination::Linear, "linear."), (Combination::Cat, "cat.")] {
        let ours = combined(how, None);
        let (ours, theirs) = (tiny::by_key(&ours.adapter, &ours.flat), golden.under(name));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (key, want) in &theirs {
            close(&format!("{name}{key}"), &ours[key], want, 1e-6);
        }
    }
    // Singular vectors have no sign, their products have one.
    let ours = combined(Combination::Svd, None);
    assert_eq!(ours.rank, 4);
    assert!(ours.kept.is_some_and(|kept| kept > 0.5 && kept < 1.0), "{:?}", ours.kept);
    let (ours, theirs) = (tiny::by_key(&ours.adapter, &ours.flat), golden.under("svd."));
    for key in theirs.keys().filter(|key| key.contains("lora_A")) {
        close(key, &product(&ours, key, 4), &product(&theirs, key, 4), 2e-6);
    }
}

/// What `cat` computes is the sum itself, and `svd` at the sum of the ranks is `cat`.
#[test]
fn an_untruncated_svd_is_the_sum() {
    let (cat, svd) = (combined(Combination::Cat, None), combined(Combination::Svd, Some(8)));
    assert!(svd.kept.is_some_and(|kept| (kept - 1.0).abs() < 1e-12), "{:?}", svd.kept);
    let logits = |c: Combined| {
        let base = tiny::base("tiny", Device::cpu());
        Rig::new(base, (c.adapter, c.flat), 2).logits(&tiny::batch())
    };
    close("logits", &logits(svd), &logits(cat), 1e-5);
}

#[test]
fn combinations_that_cannot_be_are_refused() {
    let (_, session) = nano_session();
    let a = strong(&session, Module::Q);
    let config = LoraConfig { rank: 2, modules: vec![Module::Q], ..Default::default() };
    let small = Adapter::new(session.spec(), Lora::new(session.spec(), config).unwrap());
    let small = (small.clone(), small.init(3));
    let both = [(&a.0, a.1.as_slice(), 1.0), (&small.0, small.1.as_slice(), 1.0)];
    let refused = |parts: &[_], how, rank| match combine(session.spec(), parts, how, rank) {
        Err(Error::Setting { flag, .. }) => flag,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&both, Combination::Linear, None), "combination");
    assert_eq!(refused(&both, Combination::Cat, Some(3)), "rank");
    assert_eq!(refused(&[], Combination::Cat, None), "weights");
    assert_eq!(refused(&[(&a.0, a.1.as_slice(), f32::NAN)], Combination::Cat, None), "weights");
    assert_eq!(combine(session.spec(), &both, Combination::Cat, None).unwrap().rank, 6);
}
