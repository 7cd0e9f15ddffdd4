//! The merged model is the adapted model, whichever file its base came from.

#[path = "common/mod.rs"]
mod common;
#[path = "weights/support.rs"]
mod support;
#[path = "common/tiny.rs"]
mod tiny;

use common::tolerance::apart;
use luthier::Error;
use luthier::adapter::merge::{Dtype, ModelFormat, Target, merge, size};
use luthier::adapter::{Adapter, peft};
use luthier::device::Device;
use luthier::model::tensors::Tensor;
use luthier::model::{Base, Module, Site};
use luthier::weights::{ModelFiles, Source};
use pollster::block_on;
use std::collections::BTreeMap;
use support::{F32, GgufFile, bool_value, i32_array, string_array, text, u32_value};
use tiny::Rig;

type Folder = BTreeMap<String, Vec<u8>>;

fn merged(files: &ModelFiles, adapter: &(Adapter, Vec<f32>), dtype: Dtype, shard: u64) -> luthier::Result<Folder> {
    written(files, adapter, &Target { shard, ..Target::new(ModelFormat::Hf, dtype, "merged") })
}

/// The files of a merged model; as many bytes as were announced.
fn written(files: &ModelFiles, (lora, flat): &(Adapter, Vec<f32>), target: &Target) -> luthier::Result<Folder> {
    let mut folder = Folder::new();
    let sink = async |name: &str, bytes: &[u8]| {
        folder.entry(name.into()).or_default().extend_from_slice(bytes);
        Ok(())
    };
    block_on(merge(files, lora, flat, target, sink))?;
    let bytes: usize = folder.values().map(Vec::len).sum();
    assert_eq!(block_on(size(files, lora, target)).unwrap(), bytes as u64, "{target:?}");
    Ok(folder)
}

/// The folder read by our own reader; without a tokenizer it gets an empty one.
fn open(folder: &Folder) -> ModelFiles {
    let mut sources: Vec<Source> =
        folder.iter().map(|(name, bytes)| Source::bytes(name.as_str(), bytes.as_slice())).collect();
    if !folder.contains_key("tokenizer.json") {
        sources.push(Source::bytes("tokenizer.json", *b"{}"));
    }
    block_on(ModelFiles::from_sources("merged", sources)).unwrap()
}

fn base(files: &ModelFiles) -> Base {
    block_on(Base::load(files, Device::cpu(), |_, _| {})).unwrap()
}

#[test]
fn merged_files_are_the_adapted_model() {
    for (model, rslora) in [
        ("tiny", "tiny_lora"),
        ("tiny_llama3", "tiny_llama3_rslora"),
        ("tiny_qwen3", "tiny_qwen3_lora"),
        ("tiny_gemma2", "tiny_gemma2_lora"),
        ("tiny_gpt2", "tiny_gpt2_lora"),
        ("tiny_phi3", "tiny_phi3_lora"),
    ] {
        let files = tiny::files(model);
        let spec = base(&files).spec().clone();
        let adapter = || peft::open(&tiny::golden(rslora), &spec).unwrap();
        let mut adapted = Rig::new(base(&files), adapter(), 2);
        let (want, plain) = (adapted.logits(&tiny::batch()), adapted.plain_logits(&tiny::batch()));
        for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::F16, 3e-3), (Dtype::Bf16, 5e-2)] {
            let folder = merged(&files, &adapter(), dtype, u64::MAX).unwrap();
            let logits = Rig::new(base(&open(&folder)), adapter(), 2).plain_logits(&tiny::batch());
            let (off, moved) = (apart(&logits, &want), apart(&plain, &want));
            assert!(off < tolerance && off < moved / 3.0, "{model}, {dtype:?}: {off:.1e} apart, the base {moved:.1e}");
        }
    }
}

#[test]
fn shards_are_one_model() {
    let files = tiny::files("tiny");
    let adapter = tiny::adapter(&base(&files), 0.0, false);
    let whole = merged(&files, &adapter, Dtype::F32, u64::MAX).unwrap();
    let parts = merged(&files, &adapter, Dtype::F32, 100_000).unwrap();
    let shards = parts.keys().filter(|name| name.ends_with(".safetensors")).count();
    assert!(shards > 2 && parts.contains_key("model.safetensors.index.json"), "{:?}", parts.keys());
    assert!(parts.contains_key(&format!("model-00001-of-{shards:05}.safetensors")));
    assert!(parts.iter().filter(|(name, _)| name.ends_with(".safetensors")).all(|(_, b)| b.len() < 130_000));
    let [a, b] =
        [whole, parts].map(|folder| Rig::new(base(&open(&folder)), adapter.clone(), 2).plain_logits(&tiny::batch()));
    assert!(a == b);
}

#[test]
fn a_number_too_large_for_f16_is_named() {
    let files = tiny::files("tiny");
    let (lora, mut flat) = tiny::adapter(&base(&files), 0.0, false);
    flat.iter_mut().for_each(|x| *x *= 1e4);
    match merged(&files, &(lora.clone(), flat.clone()), Dtype::F16, u64::MAX) {
        Err(Error::Unsupported { file, what, .. }) => {
            assert!(file.starts_with("model.layers.0.") && what.contains("65504"), "{file}: {what}");
        }
        other => panic!("{:?}", other.map(|f| f.len())),
    }
    merged(&files, &(lora, flat), Dtype::Bf16, u64::MAX).unwrap();
}

/// Rows of q and k as llama.cpp keeps them: the halves of each head interleaved.
fn interleaved(rows: &[f32], cols: usize, head_dim: usize) -> Vec<f32> {
    let order = |head: usize| (0..head_dim).map(move |i| head * head_dim + i / 2 + (i % 2) * head_dim / 2);
    let heads = rows.len() / cols / head_dim;
    (0..heads).flat_map(order).flat_map(|row| rows[row * cols..][..cols].to_vec()).collect()
}

/// A golden model as a GGUF file.
fn gguf(model: &str) -> ModelFiles {
    let files = tiny::files(model);
    let spec = base(&files).spec().clone();
    let size = |n: usize| u32_value(n as u32);
    let mut tokens = vec!["<unk>".to_string(), "<s>".into(), "</s>".into()];
    tokens.extend((tokens.len()..spec.vocab).map(|i| char::from_u32(0x100 + i as u32).unwrap().to_string()));
    let types: Vec<i32> = (0..spec.vocab).map(|i| if i < 3 { 3 } else { 1 }).collect();
    let mut file = GgufFile::new()
        .pair("general.architecture", text("llama"))
        .pair("llama.embedding_length", size(spec.hidden))
        .pair("llama.block_count", size(spec.layers))
        .pair("llama.feed_forward_length", size(spec.ffn))
        .pair("llama.attention.head_count", size(spec.heads))
        .pair("llama.attention.head_count_kv", size(spec.kv_heads))
        .pair("llama.attention.key_length", size(spec.head_dim))
        .pair("llama.attention.layer_norm_rms_epsilon", (6, spec.eps.to_le_bytes().to_vec()))
        .pair("llama.rope.freq_base", (6, (spec.rope.as_ref().unwrap().theta as f32).to_le_bytes().to_vec()))
        .pair("llama.context_length", size(spec.context))
        .pair("tokenizer.ggml.model", text("gpt2"))
        .pair("tokenizer.ggml.pre", text("gpt-2"))
        .pair("tokenizer.ggml.tokens", string_array(&tokens))
        .pair("tokenizer.ggml.token_type", i32_array(&types))
        .pair("tokenizer.ggml.merges", string_array::<String>(&[]))
        .pair("tokenizer.ggml.bos_token_id", u32_value(1))
        .pair("tokenizer.ggml.eos_token_id", u32_value(2))
        .pair("tokenizer.ggml.add_bos_token", bool_value(true));
    let mut data = Vec::new();
    for (tensor, shape) in spec.tensors() {
        let checkpoint = files.checkpoint();
        let values = block_on(checkpoint.read_f32(checkpoint.get(&spec.hf_name(tensor)).unwrap())).unwrap();
        let values = match tensor {
            Tensor::Weight(Site { module: Module::Q | Module::K, .. }) => {
                interleaved(&values, shape[1] as usize, spec.head_dim)
            }
            _ => values,
        };
        let dims: Vec<u64> = shape.iter().rev().copied().collect();
        file = file.tensor(&spec.gguf_name(tensor), &dims, F32, data.len() as u64);
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let bytes = file.data(data).bytes();
    block_on(ModelFiles::from_sources("tiny", vec![Source::bytes("tiny.gguf", bytes)])).unwrap()
}

/// A GGUF base keeps the rows of q and k in another order, and brings no config.json and no tokenizer files.
#[test]
fn a_gguf_base_comes_out_as_transformers_has_it() {
    let files = gguf("tiny");
    let adapter = tiny::adapter(&base(&files), 0.0, false);
    let folder = merged(&files, &adapter, Dtype::F32, u64::MAX).unwrap();
    let again = open(&folder);
    assert!(matches!(again, ModelFiles::Hf { .. }));
    let (old, new) = (files.tokenizer(), again.tokenizer());
    assert_eq!((new.bos, &new.eos, new.add_bos), (Some(1), &vec![2], true));
    assert_eq!(new.tokenizer_json, old.tokenizer_json);
    let mut adapted = Rig::new(base(&files), adapter.clone(), 2);
    assert_eq!(base(&again).spec(), adapted.base.spec());
    let (want, plain) = (adapted.logits(&tiny::batch()), adapted.plain_logits(&tiny::batch()));
    let logits = Rig::new(base(&again), adapter.clone(), 2).plain_logits(&tiny::batch());
    let (off, moved) = (apart(&logits, &want), apart(&plain, &want));
    assert!(off < 1e-4 && moved > 1e-2, "{off:.1e} apart, the base {moved:.1e}");
    // The same weights as in the safetensors they were made from.
    let direct = merged(&tiny::files("tiny"), &adapter, Dtype::F32, u64::MAX).unwrap();
    assert!(direct["model.safetensors"] == folder["model.safetensors"]);
}
