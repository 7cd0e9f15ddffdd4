//! Models whose parts do not belong together are refused, and not run as other models than they are.

#[path = "common/mod.rs"]
mod common;
#[path = "weights/support.rs"]
mod support;
#[path = "common/tiny.rs"]
mod tiny;

use luthier::data::{Message, Tokenizer};
use luthier::device::{Device, DeviceChoice};
use luthier::model::Base;
use luthier::model::generate::{Generator, Request, Sampling};
use luthier::model::load::Opened;
use luthier::model::spec::ModelSpec;
use luthier::session::{Prompt, Session};
use luthier::weights::{Checkpoint, ModelFiles, TokenizerFiles};
use serde_json::{Value, json};
use support::*;

/// A golden model after a change to its configuration and its tensors.
fn opened(model: &str, change: impl FnOnce(&mut Value, &mut Checkpoint)) -> Result<ModelSpec, String> {
    let mut files = tiny::files(model);
    let ModelFiles::Hf { config, checkpoint, .. } = &mut files else { panic!("a folder") };
    change(config, checkpoint);
    spec(&files)
}

fn spec(files: &ModelFiles) -> Result<ModelSpec, String> {
    block_on(Opened::new(files)).map(|opened| opened.spec).map_err(|e| format!("{e} ({})", e.hint()))
}

/// The tensor as one of a type that is not read.
fn unread(checkpoint: &mut Checkpoint, name: &str) {
    checkpoint.tensors.remove(name);
    checkpoint.refused.insert(name.into(), "F64".into());
}

/// A tensor more, like the one called `like`.
fn add(checkpoint: &mut Checkpoint, name: &str, like: &str) {
    let info = checkpoint.tensors[like].clone();
    checkpoint.tensors.insert(name.into(), info);
}

#[test]
fn a_head_of_an_unread_type_is_not_a_tied_head() {
    let message = opened("tiny_llama3", |_, c| unread(c, "lm_head.weight")).unwrap_err();
    assert!(message.contains("'lm_head.weight' is F64 (convert it to one of"), "{message}");
    let absent = |_: &mut Value, c: &mut Checkpoint| drop(c.tensors.remove("lm_head.weight"));
    assert!(opened("tiny_llama3", absent).unwrap().tied, "transformers leaves a tied head out");
}

#[test]
fn tensors_that_would_be_left_out_are_refused() {
    let message = opened("tiny", |config, _| config["num_hidden_layers"] = json!(2)).unwrap_err();
    assert!(message.contains("'model.layers.2.input_layernorm.weight' would be left out"), "{message}");
    for part in ["self_attn.q_proj.bias", "self_attn.q_norm.weight"] {
        let name = format!("model.layers.1.{part}");
        let norm = "model.layers.1.input_layernorm.weight";
        let message = opened("tiny", |_, c| add(c, &name, norm)).unwrap_err();
        assert!(message.contains(&format!("'{name}' would be left out")), "{message}");
        let message = opened("tiny", |_, c| unread(c, &name)).unwrap_err();
        assert!(message.contains(&format!("'{name}' would be left out")), "{message}");
    }
    let harmless = ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "v_head.summary.weight"];
    opened("tiny", |_, c| harmless.iter().for_each(|name| add(c, name, "model.norm.weight"))).unwrap();
}

#[test]
fn settings_of_the_wrong_kind_are_no_defaults() {
    for (key, value) in [
        ("rope_parameters", json!("yarn")),
        ("rope_parameters", json!([8.0])),
        ("rope_parameters", json!({ "rope_type": 3 })),
        ("hidden_act", json!(["silu"])),
    ] {
        let message = opened("tiny", |config, _| config[key] = value.clone()).unwrap_err();
        assert!(message.contains("expected"), "{key} {value}: {message}");
    }
}

const ROPE_FREQS: &str = "rope_freqs.weight";

/// A GGUF model of one layer whose widths are all 4, with some pairs and tensors more, or other than they were.
fn gguf(pairs: &[(&str, u32)], tensors: &[(&str, u64, u32)]) -> Result<ModelSpec, String> {
    let sizes = ["embedding_length", "block_count", "feed_forward_length", "attention.head_count"].map(String::from);
    let epsilon = (6, 1e-5f32.to_le_bytes().to_vec());
    let mut file = GgufFile::new()
        .pair("general.architecture", text("llama"))
        .pair("llama.attention.layer_norm_rms_epsilon", epsilon);
    for (name, value) in sizes.iter().map(String::as_str).zip([4, 1, 4, 1]).chain(pairs.iter().copied()) {
        file = file.pair(&format!("llama.{name}"), u32_value(value));
    }
    let matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let mut all: Vec<(String, Vec<u64>, u32)> =
        matrices.iter().map(|name| (format!("blk.0.{name}.weight"), vec![4, 4], F32)).collect();
    all.push(("token_embd.weight".into(), vec![4, 4], F32));
    all.extend(["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"].map(|n| (format!("{n}.weight"), vec![4], F32)));
    all.retain(|(name, ..)| tensors.iter().all(|other| other.0 != name));
    all.extend(tensors.iter().map(|(name, cols, kind)| (name.to_string(), vec![*cols], *kind)));
    let mut at = 0;
    for (name, dims, kind) in &all {
        file = file.tensor(name, dims, *kind, at);
        at += (4 * dims.iter().product::<u64>()).next_multiple_of(32);
    }
    let gguf = open_gguf(file.data(vec![0; at as usize]).bytes()).unwrap();
    spec(&ModelFiles::Gguf { gguf, tokenizer: TokenizerFiles::default() })
}

#[test]
fn a_gguf_model_is_read_whole_or_not_at_all() {
    const I8: u32 = 24;
    let good = gguf(&[("rope.dimension_count", 4)], &[(ROPE_FREQS, 2, F32)]).unwrap();
    assert!(good.tied && good.head_dim == 4 && !good.qkv_bias);
    for name in ["token_embd.weight", "output.weight", ROPE_FREQS, "blk.0.attn_q.bias", "blk.0.ffn_gate.bias"] {
        let message = gguf(&[], &[(name, 4, I8)]).unwrap_err();
        assert!(message.contains(&format!("'{name}' is I8")), "{message}");
    }
    let message = gguf(&[], &[("blk.0.attn_q_norm.weight", 4, F32)]).unwrap_err();
    assert!(message.contains("'blk.0.attn_q_norm.weight' would be left out"), "{message}");
    let message = gguf(&[("rope.dimension_count", 2)], &[]).unwrap_err();
    assert!(message.contains("dimension_count is 2, and heads have 4"), "{message}");
}

/// nano, whose embedding is said to have so many rows.
fn nano_tokenizer(change: impl FnOnce(&mut TokenizerFiles)) -> Result<Tokenizer, String> {
    let nano = ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap();
    let mut files = nano.tokenizer().clone();
    assert_eq!(files.vocab, Some(2048), "rows of nano's embedding");
    change(&mut files);
    Tokenizer::new(files).map_err(|e| e.to_string())
}

#[test]
fn a_token_that_the_model_lacks_is_never_looked_up() {
    let whole = nano_tokenizer(|_| ()).unwrap();
    let highest = *whole.encode("list the files", true).unwrap().iter().max().unwrap();
    let small = nano_tokenizer(|files| files.vocab = Some(highest as usize)).unwrap();
    let message = small.encode("list the files", true).unwrap_err().to_string();
    assert!(message.contains(&format!("has the id {highest}, and the model knows ids below {highest}")), "{message}");
    assert!(small.encode("", true).is_ok());
    let bos = |bos| move |files: &mut TokenizerFiles| (files.bos, files.add_bos) = (Some(bos), true);
    let message = nano_tokenizer(bos(99_999)).err().unwrap();
    assert!(message.contains("the start token 99999 is not in the vocabulary"), "{message}");
    let message = nano_tokenizer(|files| (files.vocab, files.eos) = (Some(3), vec![9])).err().unwrap();
    assert!(message.contains("has the id 9, and the model knows ids below 3"), "{message}");
}

#[test]
fn a_prompt_of_unknown_ids_is_an_error() {
    let mut base: Base = tiny::base("tiny", Device::cpu());
    let generator = block_on(Generator::new(&mut base, None, 1, 16)).unwrap();
    let (prompts, sampling) = ([vec![1, 96]], Sampling::default());
    let request = Request { prompts: &prompts, first: 0, adapted: false, stop: &[], sampling: &sampling };
    let message = block_on(generator.run(&mut base, request, |_, _| true)).err().unwrap().to_string();
    assert!(message.contains("token 96, the model knows ids below 96"), "{message}");
}

/// What stops an answer is no part of it, also where the tokenizer takes it for ordinary text.
#[test]
fn an_answer_is_shown_without_its_end() {
    let mut files = ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap();
    let ask = |files: &ModelFiles| {
        let mut session = block_on(Session::open(files, "nano", DeviceChoice::Cpu, |_, _| ())).unwrap();
        let (prompts, sampling) = (["List files".into()], Sampling { max_new_tokens: 4, ..Default::default() });
        let mut streamed = String::new();
        let show = |_: usize, piece: &str| {
            streamed += piece;
            true
        };
        let texts = block_on(session.generate_streaming(&prompts, true, false, &sampling, show)).unwrap();
        let prompt = session.prompt_ids(&prompts[0], true, 4).unwrap();
        let generated = block_on(session.generate_ids(&[prompt], false, &sampling, |_, _| true)).unwrap();
        (texts[0].text.clone(), streamed, generated[0].ids.clone())
    };
    let (whole, streamed, ids) = ask(&files);
    assert_eq!(whole, streamed);
    let ModelFiles::Hf { tokenizer, .. } = &mut files else { panic!("a folder") };
    tokenizer.eos.push(*ids.iter().rfind(|id| **id > 8).unwrap());
    let (text, streamed, _) = ask(&files);
    assert_eq!(text, streamed);
    assert!(text.len() < whole.len() && whole.starts_with(&text), "{whole:?} {text:?}");
}

fn nano() -> Session {
    let files = ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap();
    block_on(Session::open(&files, "nano", DeviceChoice::Cpu, |_, _| ())).unwrap()
}

fn talk(turns: &[(&str, &str)]) -> (Prompt, Vec<Message>) {
    let prompt =
        json!(turns.iter().map(|(role, content)| json!({ "role": role, "content": content })).collect::<Vec<_>>());
    let messages = turns.iter().map(|(role, content)| Message::new(role, content)).collect();
    (serde_json::from_value(prompt).unwrap(), messages)
}

#[test]
fn a_conversation_is_asked_as_its_template_has_it() {
    let session = nano();
    let (prompt, messages) =
        talk(&[("system", "Be brief."), ("user", "List files"), ("assistant", "ls"), ("user", "And hidden ones?")]);
    let ids = session.prompt_ids(&prompt, true, 64).unwrap();
    assert_eq!(ids, session.tokenizer.encode_chat(&messages).unwrap());
    assert!(ids.len() > session.prompt_ids(&"And hidden ones?".into(), true, 64).unwrap().len());
    let alone = talk(&[("user", "List files")]).0;
    let ids = |prompt: &Prompt| session.prompt_ids(prompt, true, 64).unwrap();
    assert_eq!(ids(&alone), ids(&"List files".into()));
}

#[test]
fn the_oldest_turns_make_room() {
    let session = nano();
    let long = "word ".repeat(300);
    let (system, old, answer) = (("system", "Be brief."), ("user", long.as_str()), ("assistant", "ls"));
    let (new, last) = (("user", "List files"), ("user", "And hidden ones?"));
    let (prompt, all) = talk(&[system, old, answer, new, answer, last]);
    let ids = |messages: &[Message]| session.tokenizer.encode_chat(messages).unwrap();
    let room = session.info().context - ids(&all).len();
    assert_eq!(session.prompt_ids(&prompt, true, room).unwrap(), ids(&all), "it just fits");
    let kept = talk(&[system, new, answer, last]).1;
    assert_eq!(session.prompt_ids(&prompt, true, room + 1).unwrap(), ids(&kept));

    let longer = "word ".repeat(1000);
    let (prompt, all) = talk(&[("user", longer.as_str())]);
    assert_eq!(session.prompt_ids(&prompt, true, 64).unwrap(), ids(&all), "the question itself stays");
}

#[test]
fn a_bad_conversation_is_a_clear_error() {
    let session = nano();
    let refused = |prompt: &Prompt, chat| session.prompt_ids(prompt, chat, 64).unwrap_err();
    let error = refused(&talk(&[("user", "List files"), ("robot", "ls")]).0, true);
    assert!(error.to_string().contains(r#"the role "robot" in message 2"#), "{error}");
    assert_eq!(error.hint(), "the roles are system, user, assistant");
    let error = refused(&talk(&[]).0, true).to_string();
    assert!(error.contains("without messages"), "{error}");
    let error = refused(&talk(&[("user", "List files")]).0, false).to_string();
    assert!(error.contains("chat: is off"), "{error}");
    let error = serde_json::from_value::<Prompt>(json!([{ "role": "user" }])).unwrap_err().to_string();
    assert!(error.contains("a list of messages with role and content"), "{error}");
}
