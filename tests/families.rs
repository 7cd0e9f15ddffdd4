//! Every family's GGUF files: what llama.cpp's converter makes of a golden model is read as the same model, and what we
//! write as its config.json is read back. The names here are written down once more, from gguf-py's
//! `tensor_mapping.py`.

#[path = "common/mod.rs"]
mod common;
#[path = "weights/support.rs"]
mod support;
#[path = "common/tiny.rs"]
mod tiny;

use common::tolerance::apart;
use luthier::adapter::Role;
use luthier::adapter::lora::{target_modules, targets};
use luthier::adapter::merge::{Dtype, ModelFormat, Target};
use luthier::device::Device;
use luthier::model::family;
use luthier::weights::{Gguf, ModelFiles, TokenizerFiles};
use pollster::block_on;
use serde_json::Value;
use support::{F32, GgufFile, open_gguf, text, u32_value};
use tiny::{Rig, golden};

/// A golden model and how the converter changes it.
struct Case {
    model: &'static str,
    arch: &'static str,
    /// (GGUF key, config.json key)
    keys: &'static [&'static [(&'static str, &'static str)]],
    tensors: &'static [(&'static str, &'static str)],
    /// The converter's way with a tensor's shape and values.
    change: fn(&str, &mut [u64], Vec<f32>) -> Vec<f32>,
}

const KEYS: &[(&str, &str)] = &[
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.value_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope.freq_base", "rope_parameters.rope_theta"),
    ("context_length", "max_position_embeddings"),
];

/// Parts of names, in the order they are looked for.
const TENSORS: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.", "blk."),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// As Gemma calls its four norms.
const GEMMA_TENSORS: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("model.layers.", "blk."),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("input_layernorm", "attn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

const GEMMA2_KEYS: &[(&str, &str)] = &[
    ("attention.sliding_window", "sliding_window"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

const GEMMA3_KEYS: &[(&str, &str)] = &[
    ("attention.sliding_window", "sliding_window"),
    ("attention.sliding_window_pattern", "num_hidden_layers"), // both are 2
    ("rope.freq_base", "rope_parameters.full_attention.rope_theta"),
    ("rope.scaling.type", "rope_parameters.full_attention.rope_type"),
    ("rope.scaling.factor", "rope_parameters.full_attention.factor"),
];

const WINDOW: &[(&str, &str)] = &[("attention.sliding_window", "sliding_window")];

const GPT2_KEYS: &[(&str, &str)] = &[
    ("embedding_length", "n_embd"),
    ("block_count", "n_layer"),
    ("feed_forward_length", "n_inner"),
    ("attention.head_count", "n_head"),
    ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
    ("context_length", "n_positions"),
];

const GPT2_TENSORS: &[(&str, &str)] = &[
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_f", "output_norm"),
    ("transformer.h.", "blk."),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
];

const PHI3_TENSORS: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.", "blk."),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

fn as_they_are(_: &str, _: &mut [u64], values: Vec<f32>) -> Vec<f32> {
    values
}

fn q_and_k_interleaved(name: &str, shape: &mut [u64], values: Vec<f32>) -> Vec<f32> {
    if name.contains("q_proj") || name.contains("k_proj") {
        return interleaved(&values, shape[1] as usize, 12);
    }
    values
}

fn norms_plus_one(name: &str, _: &mut [u64], values: Vec<f32>) -> Vec<f32> {
    let more = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
    values.into_iter().map(|w| w + more).collect()
}

fn linears_turned(name: &str, shape: &mut [u64], values: Vec<f32>) -> Vec<f32> {
    if !["c_attn.weight", "c_proj.weight", "c_fc.weight"].iter().any(|end| name.ends_with(end)) {
        return values;
    }
    let width = shape[1] as usize;
    shape.reverse();
    (0..width).flat_map(|o| values.iter().skip(o).step_by(width).copied()).collect()
}

const CASES: &[Case] = &[
    Case { model: "tiny", arch: "llama", keys: &[KEYS], tensors: TENSORS, change: q_and_k_interleaved },
    Case { model: "tiny_qwen2", arch: "qwen2", keys: &[KEYS], tensors: TENSORS, change: as_they_are },
    Case { model: "tiny_qwen3", arch: "qwen3", keys: &[KEYS], tensors: TENSORS, change: as_they_are },
    Case {
        model: "tiny_gemma2",
        arch: "gemma2",
        keys: &[KEYS, GEMMA2_KEYS],
        tensors: GEMMA_TENSORS,
        change: norms_plus_one,
    },
    Case {
        model: "tiny_gemma3",
        arch: "gemma3",
        keys: &[KEYS, GEMMA3_KEYS],
        tensors: GEMMA_TENSORS,
        change: norms_plus_one,
    },
    Case { model: "tiny_gpt2", arch: "gpt2", keys: &[GPT2_KEYS], tensors: GPT2_TENSORS, change: linears_turned },
    Case { model: "tiny_phi3", arch: "phi3", keys: &[KEYS, WINDOW], tensors: PHI3_TENSORS, change: as_they_are },
];

/// Rows of q and k as llama.cpp keeps Llama's: the halves of each head interleaved.
fn interleaved(rows: &[f32], cols: usize, head_dim: usize) -> Vec<f32> {
    let order = |head: usize| (0..head_dim).map(move |i| head * head_dim + i / 2 + (i % 2) * head_dim / 2);
    let heads = rows.len() / cols / head_dim;
    (0..heads).flat_map(order).flat_map(|row| rows[row * cols..][..cols].to_vec()).collect()
}

fn config(model: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(model).join("config.json")).unwrap()).unwrap()
}

/// A value of GGUF metadata: text, whole numbers as u32, others as f32.
fn value(value: &Value) -> (u32, Vec<u8>) {
    match (value.as_str(), value.as_u64()) {
        (Some(string), _) => text(string),
        (_, Some(whole)) => u32_value(whole as u32),
        _ => (6, (value.as_f64().expect("a number") as f32).to_le_bytes().to_vec()),
    }
}

/// What the converter makes of the model.
fn converted(case: &Case) -> ModelFiles {
    let (files, config) = (tiny::files(case.model), config(case.model));
    let mut gguf = GgufFile::new().pair("general.architecture", text(case.arch)).pair("general.name", text(case.model));
    for (key, path) in case.keys.iter().copied().flatten() {
        let found = path.split('.').fold(&config, |value, part| &value[part]);
        if !found.is_null() {
            gguf = gguf.pair(&format!("{}.{key}", case.arch), value(found));
        }
    }
    let (checkpoint, mut data) = (files.checkpoint(), Vec::new());
    for (name, info) in &checkpoint.tensors {
        let (mut shape, values) = (info.shape.clone(), block_on(checkpoint.read_f32(info)).unwrap());
        let values = (case.change)(name, &mut shape, values);
        let name = case.tensors.iter().fold(name.clone(), |name, (theirs, ours)| name.replace(theirs, ours));
        let dims: Vec<u64> = shape.iter().rev().copied().collect();
        gguf = gguf.tensor(&name, &dims, F32, data.len() as u64);
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let gguf = open_gguf(gguf.data(data).bytes()).unwrap();
    ModelFiles::Gguf { gguf, tokenizer: TokenizerFiles::default() }
}

fn logits(files: &ModelFiles) -> Vec<f64> {
    let base = tiny::base_of(files, Device::cpu());
    let adapter = tiny::adapter(&base, 0.0, true);
    Rig::new(base, adapter, 2).plain_logits(&tiny::batch())
}

#[test]
fn a_gguf_file_is_the_model_it_was_made_from() {
    for case in CASES {
        let (theirs, ours) = (converted(case), tiny::in_gguf(case.model));
        let spec = |files| block_on(luthier::model::load::Opened::new(files)).unwrap().spec;
        assert_eq!(spec(&theirs), spec(&ours), "{}", case.model);
        let (got, want) = (logits(&theirs), logits(&ours));
        let off = apart(&got, &want);
        assert!(off < 1e-6, "{}: {off:.1e} apart", case.model);
    }
}

/// What is written for a folder has every key of the converter's, with its type and value.
#[test]
fn metadata_that_we_write_are_the_converters() {
    for case in CASES {
        let ModelFiles::Hf { config, .. } = tiny::in_gguf(case.model) else { panic!("a folder") };
        let spec = family::from_config(&config, case.model).unwrap();
        let ours = family::to_gguf(&spec, case.model).unwrap();
        let ModelFiles::Gguf { gguf, .. } = converted(case) else { panic!("a file") };
        for (key, value) in gguf.metadata.iter().filter(|(key, _)| !key.starts_with("general.")) {
            let want = match key.ends_with(".context_length") {
                // Where llama.cpp has no window, or switched it off, it sees no further.
                true => (spec.within_windows().context as u32).into(),
                false => value.clone(),
            };
            // "default" is what no scaling is called in config.json.
            if want != "default".into() {
                assert_eq!(ours.get(key), Some(&want), "{}: {key}", case.model);
            }
        }
        assert!(ours.keys().all(|key| key.starts_with(case.arch)), "{ours:?}");
    }
}

/// What llama.cpp takes for granted of an architecture has no key: a model that differs is not written.
#[test]
fn what_a_gguf_file_cannot_say_is_refused_by_name() {
    use serde_json::json;
    let llama3 = json!({
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    });
    let local = json!({
        "full_attention": { "rope_type": "default" }, "sliding_attention": { "rope_type": "linear", "factor": 2.0 },
    });
    for (model, key, value, words) in [
        (
            "tiny",
            "hidden_act",
            json!("gelu_new"),
            "hidden_act is \"gelu_pytorch_tanh\", and in a GGUF file of llama it is \"silu\"",
        ),
        ("tiny_qwen2", "rope_parameters", llama3.clone(), "\"scaling\":\"llama3\""),
        ("tiny_qwen2", "head_dim", json!(8), "head_dim is 8, and in a GGUF file of qwen2 it is 4"),
        ("tiny_phi3", "head_dim", json!(8), "head_dim is 8, and in a GGUF file of phi3 it is 4"),
        ("tiny_qwen3", "attention_bias", json!(true), "bias of q, k and v is true"),
        ("tiny_gemma2", "query_pre_attn_scalar", json!(20), "query_pre_attn_scalar is 20.0"),
        (
            "tiny_gemma2",
            "attn_logit_softcapping",
            json!(null),
            "attn_logit_softcapping is null, and in a GGUF file of gemma2 it is 50.0",
        ),
        ("tiny_gemma2", "final_logit_softcapping", json!(null), "final_logit_softcapping is null"),
        (
            "tiny_gemma2",
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "layers with full_attention is [0]",
        ),
        (
            "tiny_gemma3",
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "layers with full_attention is [0]",
        ),
        ("tiny_gemma3", "attn_logit_softcapping", json!(2.0), "attn_logit_softcapping is 2.0"),
        ("tiny_gemma3", "attention_bias", json!(true), "bias of q, k and v is true"),
        (
            "tiny_gemma3",
            "rope_parameters",
            local,
            "rope_parameters of local layers is {\"rope_theta\":10000.0,\"scaling\":{\"linear\":2.0}}",
        ),
        ("tiny_gpt2", "activation_function", json!("silu"), "hidden_act is \"silu\""),
        ("tiny_phi3", "hidden_act", json!("gelu_new"), "hidden_act is \"gelu_pytorch_tanh\""),
        ("tiny_phi3", "rope_parameters", llama3, "\"scaling\":\"llama3\""),
    ] {
        let mut config = match tiny::in_gguf(model) {
            ModelFiles::Hf { config, .. } => config,
            _ => panic!("a folder"),
        };
        config[key] = value;
        let spec = family::from_config(&config, model).unwrap();
        let error = family::to_gguf(&spec, model).unwrap_err();
        assert!(error.to_string().contains(words) && error.hint().contains("--format hf"), "{model}: {error}");
    }
}

/// A merged GGUF file has its base's metadata, and is the adapted model.
#[test]
fn a_gguf_base_comes_out_as_gguf() {
    for case in CASES {
        let files = converted(case);
        let adapter = tiny::adapter(&tiny::base_of(&files, Device::cpu()), 0.0, false);
        let target = Target::new(ModelFormat::Gguf, Dtype::F32, "merged");
        let gguf = open_gguf(tiny::merged(&files, &adapter, &target).unwrap().remove("merged.gguf").unwrap()).unwrap();
        let ModelFiles::Gguf { gguf: old, .. } = &files else { panic!("a file") };
        let kept = |file: &Gguf| {
            let model = |key: &&String| key.starts_with(case.arch);
            file.metadata.iter().filter(|(key, _)| model(key)).map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
        };
        assert_eq!(kept(&gguf), kept(old), "{}", case.model);
        // llama.cpp tells Phi-3's tokenizer by the model's name.
        let name = if case.arch == "phi3" { "Phi-3 merged" } else { "merged" };
        assert_eq!(gguf.str("general.name").unwrap(), name);
        let shapes = |file: &Gguf| {
            file.checkpoint.tensors.values().map(|info| (info.name.clone(), info.shape.clone())).collect::<Vec<_>>()
        };
        assert_eq!(shapes(&gguf), shapes(old), "{}", case.model);
        let again = ModelFiles::Gguf { gguf, tokenizer: TokenizerFiles::default() };
        let mut adapted = Rig::new(tiny::base_of(&files, Device::cpu()), adapter.clone(), 2);
        let (want, plain) = (adapted.logits(&tiny::batch()), adapted.plain_logits(&tiny::batch()));
        let got = Rig::new(tiny::base_of(&again, Device::cpu()), adapter, 2).plain_logits(&tiny::batch());
        let (off, moved) = (apart(&got, &want), apart(&plain, &want));
        assert!(off < 1e-5 && moved > 1e-2, "{}: {off:.1e} apart, the base {moved:.1e}", case.model);
    }
}

#[test]
fn a_config_that_we_write_is_the_one_we_read() {
    for case in CASES {
        let spec = family::from_config(&config(case.model), case.model).unwrap();
        let written = family::to_config(&spec, case.model).unwrap();
        assert_eq!(family::from_config(&written, case.model).unwrap(), spec, "{written}");
    }
    let mistral = family::from_config(&config("tiny_mistral"), "mistral").unwrap();
    let written = family::to_config(&mistral, "mistral").unwrap();
    assert_eq!(family::from_config(&written, "mistral").unwrap(), mistral, "{written}");
    // GGUF's "llama" has no window: what it names the context is as far as the model is the same.
    let window = mistral.local.as_ref().expect("a window").window;
    assert!(window < mistral.context);
    let keys = family::to_gguf(&mistral, "mistral").unwrap();
    assert_eq!(keys["llama.context_length"], (window as u32).into());
}

/// Published GPT-2 files leave out `transformer.` and hold the causal masks.
#[test]
fn names_without_their_root_are_read() {
    let mut bare = tiny::files("tiny_gpt2");
    let ModelFiles::Hf { checkpoint, .. } = &mut bare else { panic!("a folder") };
    let tensors = std::mem::take(&mut checkpoint.tensors).into_iter();
    checkpoint.tensors = tensors.map(|(name, info)| (name.replacen("transformer.", "", 1), info)).collect();
    let mask = checkpoint.tensors["ln_f.weight"].clone();
    checkpoint.tensors.insert("h.0.attn.bias".into(), mask.clone());
    assert_eq!(logits(&bare), logits(&tiny::files("tiny_gpt2")));
    let ModelFiles::Hf { checkpoint, .. } = &mut bare else { panic!("a folder") };
    checkpoint.tensors.insert("h.2.ln_1.weight".into(), mask);
    let message = block_on(luthier::model::load::Opened::new(&bare)).err().unwrap().to_string();
    assert!(message.contains("'h.2.ln_1.weight' would be left out"), "{message}");
}

#[test]
fn linears_are_named_as_the_family_names_them() {
    let spec = family::from_config(&config("tiny_gpt2"), "gpt2").unwrap();
    let chosen = |text| {
        target_modules(text, &spec)
            .map(|modules| targets(spec.family, modules))
            .map_err(|e| format!("{e} ({})", e.hint()))
    };
    let all = ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"];
    assert_eq!(chosen("all-linear").unwrap(), all);
    assert_eq!(chosen("c_proj").unwrap(), ["attn.c_proj", "mlp.c_proj"]);
    assert_eq!(chosen("mlp.c_proj, c_attn").unwrap(), ["c_attn", "mlp.c_proj"]);
    let message = chosen("q_proj").unwrap_err();
    assert!(message.contains("'q_proj' matches no linear") && message.contains(&all.join(", ")), "{message}");
    assert!(chosen("proj").is_err(), "a part of a name is no name");
}

/// c_attn has one A of rank r for q, k and v, as PEFT has it.
#[test]
fn a_fused_linear_is_one_linear() {
    let base = tiny::base("tiny_gpt2", Device::cpu());
    let (lora, _) = tiny::adapter(&base, 0.0, false);
    let shared = lora.parts.iter().filter(|part| matches!(part.role, Role::A(_))).count();
    assert_eq!(shared, 2 * 4);
    // A:[4, in] and B:[out, 4] of c_attn, c_proj, c_fc and c_proj, in two layers.
    let floats = 2 * 4 * ((16 + 48) + (16 + 16) + (16 + 28) + (28 + 16));
    assert_eq!(lora.parameters(), floats);
}

#[test]
fn what_is_not_covered_is_refused_by_name() {
    use serde_json::json;
    for (model, key, value, words) in [
        ("tiny", "partial_rotary_factor", json!(0.5), "\"partial_rotary_factor\" is 0.5"),
        ("tiny", "rope_parameters", json!({ "rope_type": "yarn", "factor": 4.0 }), "rope scaling 'yarn'"),
        ("tiny", "rope_parameters", json!({ "rope_type": "default", "partial_rotary_factor": 0.75 }), "is 0.75"),
        ("tiny", "hidden_act", json!("gelu"), "\"hidden_act\" is \"gelu\""),
        ("tiny", "model_type", json!("mamba"), "the architecture 'mamba' is not supported"),
        ("tiny_gpt2", "activation_function", json!("relu"), "\"activation_function\" is \"relu\""),
        ("tiny_gpt2", "scale_attn_by_inverse_layer_idx", json!(true), "\"scale_attn_by_inverse_layer_idx\" is true"),
        ("tiny_phi3", "rope_parameters", json!({ "rope_type": "longrope" }), "rope scaling 'longrope'"),
        ("tiny_gemma3", "use_bidirectional_attention", json!(true), "\"use_bidirectional_attention\" is true"),
        ("tiny_gemma3", "layer_types", json!(["chunked_attention", "full_attention"]), "type \"chunked_attention\""),
        ("tiny_gemma3", "layer_types", json!(["full_attention"]), "1 layers have a type, the model has 2"),
        ("tiny_gemma2", "attn_logit_softcapping", json!(-1.0), "attn_logit_softcapping is -1"),
        ("tiny_mistral", "sliding_window", json!(0), "sliding_window is 0"),
        ("tiny_qwen2", "use_sliding_window", json!(true), "\"use_sliding_window\" is true"),
        ("tiny_mistral", "num_hidden_layers", json!(1u64 << 62), "num_hidden_layers is 4611686018427387904"),
        ("tiny_phi3", "num_hidden_layers", json!(1u64 << 62), "num_hidden_layers is 4611686018427387904"),
        ("tiny_gemma3", "layer_types", json!(null), "num_hidden_layers is 4611686018427387904"),
        ("tiny_gpt2", "n_embd", json!(1u64 << 63), "hidden_size is 9223372036854775808"),
        ("tiny_gpt2", "n_positions", json!(0), "max_position_embeddings is 0"),
    ] {
        let mut config = config(model);
        config[key] = value;
        if words.starts_with("num_hidden_layers") {
            config["num_hidden_layers"] = json!(1u64 << 62);
        }
        let message = family::from_config(&config, model).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}
