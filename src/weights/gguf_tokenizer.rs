//! The tokenizer inside a GGUF file, as the text of a Hugging Face `tokenizer.json`.
//!
//! `tokenizer.ggml.model` tells the algorithm: "gpt2" is byte-level BPE with its merges in the file and the splitting
//! rule named by `tokenizer.ggml.pre`; "llama" is SentencePiece BPE with scores, from which the merges follow.

use super::gguf::Gguf;
use super::{TokenizerFiles, malformed, unsupported};
use crate::Result;
use serde_json::{Map, Value, json};
use std::cmp::Ordering;
use std::collections::HashMap;

const MAX_VOCABULARY: usize = 1 << 20;
/// A SentencePiece piece is cut at every place, which is quadratic in its length.
const MAX_PIECE: usize = 512;

/// `tokenizer.ggml.token_type`; an unused one is never produced.
pub(super) const NORMAL: i64 = 1;
pub(super) const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;

/// Tokens that end a text, a turn and a message.
pub(super) const ENDS: [&str; 3] = ["eos_token_id", "eot_token_id", "eom_token_id"];

/// In models of such names special tokens swallow the white space behind them: llama.cpp tells Phi-3's tokenizer from
/// others of its kind by `general.name` alone.
const STRIPPING_NAMES: [&str; 2] = ["phi-3", "phi3"];

/// Tokens that such a model must have, or llama.cpp does not open it; the first does what its special tokens do, the
/// others do not.
pub(super) const OF_STRIPPING: [&str; 4] = ["</s>", "<unk>", "<s>", "<|endoftext|>"];

fn strips(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    STRIPPING_NAMES.iter().any(|part| name.contains(part))
}

/// Whether a special token of such a model does.
pub(super) fn is_stripping(token: &str) -> bool {
    !OF_STRIPPING[1..].contains(&token)
}

/// `general.name` for a model whose special tokens swallow white space, or do not.
pub(super) fn named(name: &str, stripping: bool) -> String {
    match (strips(name), stripping) {
        (false, true) => format!("Phi-3 {name}"),
        (true, false) => apart(name),
        _ => name.into(),
    }
}

/// A name with a space before the 3 of each [`STRIPPING_NAMES`] in it: "My-Phi-3" becomes "My-Phi 3".
fn apart(name: &str) -> String {
    let mut name = name.to_string();
    for part in STRIPPING_NAMES {
        while let Some(at) = name.to_ascii_lowercase().find(part) {
            name.replace_range(at + "phi".len()..at + part.len() - 1, " ");
        }
    }
    name
}

/// [`named`] for a model whose text is to be read as the base's is.
pub fn named_like(base: &Gguf, name: &str) -> Result<String> {
    Ok(named(name, is_named_stripping(base)?))
}

fn is_named_stripping(gguf: &Gguf) -> Result<bool> {
    Ok(gguf.optional("general.name", Gguf::str)?.is_some_and(strips))
}

struct Vocabulary<'a> {
    tokens: &'a [String],
    types: Vec<i64>,
    ids: HashMap<&'a str, usize>,
}

pub fn tokenizer_files(gguf: &Gguf) -> Result<TokenizerFiles> {
    let vocabulary = read_vocabulary(gguf)?;
    // Who does not say whether texts start with bos means what llama.cpp assumes of his kind of tokenizer.
    let (model, text_rules, add_bos) = match gguf.str("tokenizer.ggml.model")? {
        "gpt2" => {
            let split = split(gguf)?;
            (byte_level_model(gguf, &vocabulary, split)?, byte_level_rules(split), split == Split::Llama3)
        }
        "llama" => {
            let prefix = gguf.optional("tokenizer.ggml.add_space_prefix", Gguf::bool)?.unwrap_or(true);
            (sentencepiece_model(gguf, &vocabulary)?, sentencepiece_rules(prefix), true)
        }
        other => {
            let what = format!("tokenizer '{other}' (tokenizer.ggml.model)");
            return Err(unsupported(
                gguf.name(),
                what,
                "gpt2 and llama tokenizers are read; use the safetensors model",
            ));
        }
    };
    let mut document = json!({ "version": "1.0", "truncation": null, "padding": null });
    document["added_tokens"] = added_tokens(&vocabulary, is_named_stripping(gguf)?);
    for (key, value) in text_rules {
        document[key] = value;
    }
    document["post_processor"] = Value::Null;
    document["model"] = model;
    let id = |key: &str| special_id(gguf, &vocabulary, key);
    Ok(TokenizerFiles {
        tokenizer_json: document.to_string(),
        chat_template: gguf.optional("tokenizer.chat_template", Gguf::str)?.map(String::from),
        bos: id("bos_token_id")?,
        eos: eos_ids(gguf, &vocabulary)?,
        add_bos: gguf.optional("tokenizer.ggml.add_bos_token", Gguf::bool)?.unwrap_or(add_bos),
        pad: id("padding_token_id")?,
        vocab: gguf.checkpoint.tensors.get("token_embd.weight").map(|t| t.rows() as usize),
    })
}

fn read_vocabulary(gguf: &Gguf) -> Result<Vocabulary<'_>> {
    let bad = |what: String| malformed(gguf.name(), "key 'tokenizer.ggml.tokens'", what);
    let tokens = gguf.strings("tokenizer.ggml.tokens")?;
    if tokens.len() > MAX_VOCABULARY {
        return Err(bad(format!("{} tokens; at most {MAX_VOCABULARY} are allowed", tokens.len())));
    }
    let types = gguf.optional("tokenizer.ggml.token_type", Gguf::ints)?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if types.len() != tokens.len() {
        return Err(bad(format!("{} tokens, but {} token types", tokens.len(), types.len())));
    }
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = ids.insert(token.as_str(), id) {
            return Err(bad(format!("tokens {first} and {id} are both '{token}'")));
        }
    }
    Ok(Vocabulary { tokens, types, ids })
}

fn special_id(gguf: &Gguf, vocabulary: &Vocabulary, name: &str) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{name}");
    match gguf.optional(&key, Gguf::u32)? {
        Some(id) if id as usize >= vocabulary.tokens.len() => {
            let what = format!("is {id}, but there are {} tokens", vocabulary.tokens.len());
            Err(malformed(gguf.name(), format!("key '{key}'"), what))
        }
        id => Ok(id),
    }
}

/// The end of a text, then those of a turn and of a message where they are other tokens.
fn eos_ids(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for name in ENDS {
        ids.extend(special_id(gguf, vocabulary, name)?.filter(|id| !ids.contains(id)));
    }
    Ok(ids)
}

fn added_tokens(vocabulary: &Vocabulary, stripping: bool) -> Value {
    let of_type = |kind: i64| kind == CONTROL || kind == USER_DEFINED || kind == UNKNOWN;
    let added = vocabulary.tokens.iter().zip(&vocabulary.types).enumerate().filter(|(_, (_, kind))| of_type(**kind));
    let object = |(id, (content, kind)): (usize, (&String, &i64))| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": stripping && is_stripping(content), "normalized": false, "special": *kind != USER_DEFINED,
        })
    };
    added.map(object).collect()
}

fn bpe(vocabulary: &Vocabulary, merges: Vec<Value>, settings: Value) -> Value {
    let vocab: Map<String, Value> =
        vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let mut model = json!({
        "type": "BPE", "dropout": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
    });
    for (key, value) in settings.as_object().into_iter().flatten() {
        model[key] = value.clone();
    }
    model["vocab"] = Value::Object(vocab);
    model["merges"] = Value::Array(merges);
    model
}

fn byte_level_model(gguf: &Gguf, vocabulary: &Vocabulary, split: Split) -> Result<Value> {
    let mut merges = Vec::new();
    for (rank, merge) in gguf.strings("tokenizer.ggml.merges")?.iter().enumerate() {
        // The first byte may itself be a space, so the one that separates comes later.
        let space = merge.bytes().skip(1).position(|b| b == b' ').map(|at| at + 1);
        let pair = space.map(|at| (&merge[..at], &merge[at + 1..]));
        let known =
            |(a, b): &(&str, &str)| [*a, *b, &format!("{a}{b}")].iter().all(|piece| vocabulary.ids.contains_key(piece));
        let Some((a, b)) = pair.filter(known) else {
            let what = format!("merge {rank}, '{merge}', joins pieces that are no tokens");
            return Err(malformed(gguf.name(), "key 'tokenizer.ggml.merges'", what));
        };
        merges.push(json!([a, b]));
    }
    // Llama 3 takes a word that is a token as it is, whatever its merges say.
    let settings = json!({
        "unk_token": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": split == Split::Llama3,
    });
    Ok(bpe(vocabulary, merges, settings))
}

/// How text is cut into words before BPE.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Split {
    Gpt2,
    /// Single digits, then GPT-2's rule.
    Digits,
    Qwen2,
    Llama3,
}

impl Split {
    pub(super) const ALL: [Split; 4] = [Split::Gpt2, Split::Digits, Split::Qwen2, Split::Llama3];

    /// `tokenizer.ggml.pre`
    pub(super) fn name(self) -> &'static str {
        match self {
            Split::Gpt2 => "gpt-2",
            Split::Digits => "smollm",
            Split::Qwen2 => "qwen2",
            Split::Llama3 => "llama-bpe",
        }
    }
}

fn split(gguf: &Gguf) -> Result<Split> {
    let name = gguf.optional("tokenizer.ggml.pre", Gguf::str)?.unwrap_or("missing");
    // Two names of one rule. "default" is none: what a converter writes that does not know the rule, and llama.cpp's
    // own is not GPT-2's.
    let known = if name == "starcoder" { "smollm" } else { name };
    Split::ALL.into_iter().find(|split| split.name() == known).ok_or_else(|| {
        let what = format!("pre-tokenizer '{name}' (tokenizer.ggml.pre)");
        let hint = "smollm, qwen2, llama-bpe and gpt-2 are read; use the safetensors model, which has its own rules";
        unsupported(gguf.name(), what, hint)
    })
}

pub(super) type Rules = [(&'static str, Value); 3];

pub(super) fn byte_level_rules(split: Split) -> Rules {
    let bytes = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    // The same expression but for how many digits make a word.
    let words = |digits: &str| {
        let letters = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
        let rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let regex = format!("{letters}|{digits}|{rest}");
        let cut = json!({
            "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false,
        });
        json!({ "type": "Sequence", "pretokenizers": [cut, bytes(false)] })
    };
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let (normalizer, pre_tokenizer) = match split {
        Split::Gpt2 => (Value::Null, bytes(true)),
        Split::Digits => (Value::Null, json!({ "type": "Sequence", "pretokenizers": [digits, bytes(true)] })),
        Split::Qwen2 => (json!({ "type": "NFC" }), words(r"\p{N}")),
        Split::Llama3 => (Value::Null, words(r"\p{N}{1,3}")),
    };
    [("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", bytes(true))]
}

fn sentencepiece_model(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Value> {
    let scores = gguf.floats("tokenizer.ggml.scores")?;
    if scores.len() != vocabulary.tokens.len() {
        let what = format!("{} scores for {} tokens", scores.len(), vocabulary.tokens.len());
        return Err(malformed(gguf.name(), "key 'tokenizer.ggml.scores'", what));
    }
    if let Some(id) = vocabulary.tokens.iter().position(|token| token.len() > MAX_PIECE) {
        let what = format!("token {id} has {} bytes; at most {MAX_PIECE} are allowed", vocabulary.tokens[id].len());
        return Err(malformed(gguf.name(), "key 'tokenizer.ggml.tokens'", what));
    }
    let unknown = special_id(gguf, vocabulary, "unknown_token_id")?.unwrap_or(0) as usize;
    let merges = merges_from_scores(vocabulary, &scores).into_iter().map(|(a, b)| json!([a, b])).collect();
    let settings = json!({
        "unk_token": vocabulary.tokens.get(unknown), "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
    });
    Ok(bpe(vocabulary, merges, settings))
}

/// [`merges_from_scores`] of a vocabulary that is yet to be written.
pub(super) fn merges_of(tokens: &[String], types: &[i64], scores: &[f32]) -> Vec<(String, String)> {
    let ids = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let vocabulary = Vocabulary { tokens, types: types.to_vec(), ids };
    let merges = merges_from_scores(&vocabulary, scores);
    merges.into_iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
}

/// Every way to cut a piece in two pieces is a merge; better scores first, and ties as transformers' converter breaks
/// them: longer halves first, then (the sort being stable) smaller ids.
fn merges_from_scores<'a>(vocabulary: &Vocabulary<'a>, scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let mergeable = |id: usize| ![UNKNOWN, CONTROL, BYTE].contains(&vocabulary.types[id]);
    let find = |piece: &str| vocabulary.ids.get(piece).copied().filter(|&id| mergeable(id));
    let mut merges = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| mergeable(*id)) {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut found: Vec<_> = cuts.filter_map(|(a, b)| Some((find(a)?, find(b)?, a, b))).collect();
        found.sort_by_key(|&(a, b, ..)| (a, b));
        merges.extend(found.into_iter().map(|(_, _, a, b)| (scores[id], a, b)));
    }
    let length = |s: &str| s.chars().count();
    merges.sort_by(|x, y| {
        let score = y.0.partial_cmp(&x.0).unwrap_or(Ordering::Equal);
        score.then_with(|| (length(y.1), length(y.2)).cmp(&(length(x.1), length(x.2))))
    });
    merges.into_iter().map(|(_, a, b)| (a, b)).collect()
}

pub(super) fn sentencepiece_rules(prefix: bool) -> Rules {
    let mut normalizers = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    [
        ("normalizer", json!({ "type": "Sequence", "normalizers": normalizers })),
        ("pre_tokenizer", Value::Null),
        ("decoder", json!({ "type": "Sequence", "decoders": decoders })),
    ]
}
