//! A Hugging Face `tokenizer.json` as the metadata of a GGUF file: the inverse of `gguf_tokenizer`.
//!
//! llama.cpp has its own code for each way to cut text into words, chosen by name; a tokenizer whose rules are none of
//! those that are known here is refused, for a model that reads its text otherwise is broken without a sign.

use super::gguf::Value;
use super::gguf_tokenizer::{self as reader, BYTE, CONTROL, NORMAL, Split, UNKNOWN, UNUSED, USER_DEFINED};
use super::{TokenizerFiles, unsupported};
use crate::Result;
use serde_json::Value as Json;
use std::collections::BTreeMap;

type Pairs = BTreeMap<String, Value>;

const FILE: &str = "tokenizer.json";
const WAY_OUT: &str = "write the merged model as a Hugging Face folder (--format hf), or convert that with llama.cpp";

/// `tokenizer.*` of a model with `rows` rows in its embedding.
pub fn metadata(files: &TokenizerFiles, rows: usize) -> Result<Pairs> {
    let document: Json = serde_json::from_str(&files.tokenizer_json)
        .map_err(|e| super::malformed(FILE, format!("line {}", e.line()), format!("not JSON: {e}")))?;
    let kind = document["model"]["type"].as_str().unwrap_or("missing");
    if kind != "BPE" {
        return Err(refused(format!("the tokenizer's model is {kind}; BPE is written")));
    }
    let sentencepiece = document["model"]["byte_fallback"] == true;
    let (tokens, types) = tokens(&document, rows, sentencepiece)?;
    let merges = merges(&document)?;
    let mut pairs = special_ids(files, &document);
    let mut set = |key: &str, value: Value| drop(pairs.insert(format!("tokenizer.ggml.{key}"), value));
    if sentencepiece {
        set("model", "llama".into());
        set("pre", "default".into());
        set("add_space_prefix", add_space_prefix(&document)?.into());
        set("scores", scores(&tokens, &types, &merges)?.as_slice().into());
    } else {
        set("model", "gpt2".into());
        set("pre", split(&document)?.name().into());
        set("merges", Value::Strings(merges.iter().map(|(a, b)| format!("{a} {b}")).collect()));
    }
    set("token_type", types.iter().map(|t| *t as i32).collect::<Vec<_>>().as_slice().into());
    set("tokens", Value::Strings(tokens));
    if let Some(template) = &files.chat_template {
        pairs.insert("tokenizer.chat_template".into(), template.as_str().into());
    }
    Ok(pairs)
}

fn refused(what: String) -> crate::Error {
    unsupported(FILE, what, WAY_OUT)
}

fn special_ids(files: &TokenizerFiles, document: &Json) -> Pairs {
    let unknown = document["model"]["unk_token"].as_str().and_then(|text| document["model"]["vocab"][text].as_u64());
    let ids = [
        ("bos_token_id", files.bos),
        ("eos_token_id", files.eos.first().copied()),
        ("eot_token_id", files.eos.get(1).copied()),
        ("padding_token_id", files.pad),
        ("unknown_token_id", unknown.map(|id| id as u32)),
    ];
    let known = ids.into_iter().filter_map(|(key, id)| Some((format!("tokenizer.ggml.{key}"), id?.into())));
    known.chain([("tokenizer.ggml.add_bos_token".to_string(), files.add_bos.into())]).collect()
}

/// A token and its type for every row of the embedding; rows that no token has get a name of their own.
fn tokens(document: &Json, rows: usize, sentencepiece: bool) -> Result<(Vec<String>, Vec<i64>)> {
    let mut tokens: Vec<Option<(String, i64)>> = vec![None; rows];
    let mut put = |text: &str, id: &Json, kind: i64| {
        let slot = id.as_u64().and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        slot.map(|slot| *slot = Some((text.to_string(), kind)))
    };
    let unknown = document["model"]["unk_token"].as_str();
    for (text, id) in document["model"]["vocab"].as_object().into_iter().flatten() {
        let byte = sentencepiece && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = match () {
            _ if byte => BYTE,
            _ if sentencepiece && Some(text.as_str()) == unknown => UNKNOWN,
            _ => NORMAL,
        };
        let what = || refused(format!("token '{text}' has the id {id}, and the model has a row for {rows} tokens"));
        put(text, id, kind).ok_or_else(what)?;
    }
    for token in document["added_tokens"].as_array().into_iter().flatten() {
        let text = token["content"].as_str().unwrap_or_default();
        let kind = match token["special"].as_bool() {
            _ if sentencepiece && Some(text) == unknown => UNKNOWN,
            Some(true) => CONTROL,
            _ => USER_DEFINED,
        };
        // Tokens that were added to the tokenizer alone have no row: they are not the model's.
        put(text, &token["id"], kind);
    }
    let named = tokens.into_iter().enumerate().map(|(id, t)| t.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED)));
    Ok(named.unzip())
}

/// Pairs, or in older files two pieces in one string.
fn merges(document: &Json) -> Result<Vec<(String, String)>> {
    let merge = |(rank, merge): (usize, &Json)| {
        let pair = match merge {
            Json::String(text) => text.split_once(' '),
            _ => merge[0].as_str().zip(merge[1].as_str()),
        };
        let pair = pair.filter(|(a, b)| !a.contains(' ') && !b.contains(' '));
        pair.map(|(a, b)| (a.into(), b.into())).ok_or_else(|| refused(format!("merge {rank} is {merge}")))
    };
    document["model"]["merges"].as_array().into_iter().flatten().enumerate().map(merge).collect()
}

/// The rule that cuts text into words, recognised by what the reader would make of its name.
fn split(document: &Json) -> Result<Split> {
    let part = |key: &str| plain(&document[key]);
    let like = |split: &Split| {
        let [(_, normalizer), (_, pre_tokenizer), _] = reader::byte_level_rules(*split);
        part("normalizer") == plain(&normalizer) && part("pre_tokenizer") == plain(&pre_tokenizer)
    };
    let ignores = document["model"]["ignore_merges"] == true;
    let known = Split::ALL.into_iter().find(like).filter(|split| *split == Split::Llama3 || !ignores);
    known.ok_or_else(|| {
        let names = Split::ALL.map(Split::name).join(", ");
        let text = document["pre_tokenizer"].to_string();
        let shown: String = text.chars().take(160).collect();
        refused(format!("its pre-tokenizer is none that llama.cpp has by a name known here ({names}): {shown}"))
    })
}

/// Without what does not change ids: where offsets point, and a part alone in a list.
fn plain(rule: &Json) -> Json {
    match rule {
        Json::Object(map) => {
            let parts = map.get("pretokenizers").or(map.get("normalizers")).and_then(Json::as_array);
            if let Some([only]) = parts.map(Vec::as_slice) {
                return plain(only);
            }
            let kept = map.iter().filter(|(key, _)| *key != "trim_offsets");
            let mut kept: Vec<_> = kept.map(|(key, value)| (key.clone(), plain(value))).collect();
            kept.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(kept.into_iter().collect())
        }
        Json::Array(list) => list.iter().map(plain).collect(),
        other => other.clone(),
    }
}

/// How SentencePiece's converted tokenizers mark the start of a text, in either generation of `tokenizer.json`.
fn add_space_prefix(document: &Json) -> Result<bool> {
    let (normalizer, words) = (&document["normalizer"], &document["pre_tokenizer"]);
    let rules = |prefix: bool| plain(&reader::sentencepiece_rules(prefix)[0].1);
    if words.is_null() && plain(normalizer) == rules(true) {
        return Ok(true);
    }
    if words.is_null() && plain(normalizer) == rules(false) {
        return Ok(false);
    }
    let metaspace = normalizer.is_null() && words["type"] == "Metaspace" && words["split"] == false;
    match words["prepend_scheme"].as_str() {
        Some("first" | "always") if metaspace => Ok(true),
        Some("never") if metaspace => Ok(false),
        _ => Err(refused("it has byte fallback, but not SentencePiece's rules for spaces".into())),
    }
}

/// Scores from which llama.cpp joins pieces in the order of the merges; that they do so is checked.
fn scores(tokens: &[String], types: &[i64], merges: &[(String, String)]) -> Result<Vec<f32>> {
    let mut rank_of = BTreeMap::new();
    for (rank, (a, b)) in merges.iter().enumerate() {
        rank_of.entry(format!("{a}{b}")).or_insert(rank);
    }
    let score = |token: &String| rank_of.get(token).map_or(-1e6, |rank| -(*rank as f32));
    let scores: Vec<f32> = tokens.iter().map(score).collect();
    let again = reader::merges_of(tokens, types, &scores);
    // The order matters where two merges of different pieces meet, not among those that make the same piece.
    let made = |merges: &[(String, String)]| {
        let mut pieces: Vec<String> = merges.iter().map(|(a, b)| format!("{a}{b}")).collect();
        pieces.dedup();
        pieces
    };
    let mut pairs = [again.clone(), merges.to_vec()];
    pairs.iter_mut().for_each(|pairs| pairs.sort());
    if pairs[0] == pairs[1] && made(&again) == made(merges) {
        return Ok(scores);
    }
    Err(refused("its merges do not follow from scores of its tokens, which is what SentencePiece has".into()))
}
