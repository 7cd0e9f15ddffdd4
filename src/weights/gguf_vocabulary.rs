//! A Hugging Face `tokenizer.json` as the metadata of a GGUF file: the inverse of `gguf_tokenizer`.
//!
//! llama.cpp has its own code for each way to cut text into words, chosen by name; a tokenizer whose rules are none of
//! those that are known here is refused, for a model that reads its text otherwise is broken without a sign.

use super::gguf::{Metadata, Value};
use super::gguf_tokenizer::{self as reader, BYTE, CONTROL, NORMAL, Split, UNKNOWN, UNUSED, USER_DEFINED};
use super::{TokenizerFiles, unsupported};
use crate::Result;
use serde_json::{Value as Json, json};
use std::collections::HashMap;

const FILE: &str = "tokenizer.json";
const WAY_OUT: &str = "write the merged model as a Hugging Face folder (--format hf), or convert that with llama.cpp";

/// `tokenizer.*` of a model with `rows` rows in its embedding; and its `general.name`, which is part of how its text is
/// read (see `gguf_tokenizer::named`).
pub fn metadata(files: &TokenizerFiles, rows: usize, name: &str) -> Result<Metadata> {
    let document: Json = serde_json::from_str(&files.tokenizer_json)
        .map_err(|e| super::malformed(FILE, format!("line {}", e.line()), format!("not JSON: {e}")))?;
    let kind = document["model"]["type"].as_str().unwrap_or("missing");
    if kind != "BPE" {
        return Err(refused(format!("the tokenizer's model is {kind}; BPE is written")));
    }
    let sentencepiece = document["model"]["byte_fallback"] == true;
    let (tokens, types) = tokens(&document, rows, sentencepiece)?;
    let merges = merges(&document)?;
    let mut pairs = special_ids(files, &document, rows);
    pairs.insert("general.name".into(), reader::named(name, strips(&document, rows)?).into());
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

fn special_ids(files: &TokenizerFiles, document: &Json, rows: usize) -> Metadata {
    let unknown = document["model"]["unk_token"].as_str().and_then(|text| document["model"]["vocab"][text].as_u64());
    let ids = [
        ("bos_token_id", files.bos),
        (reader::ENDS[0], files.eos.first().copied()),
        (reader::ENDS[1], files.eos.get(1).copied()),
        (reader::ENDS[2], files.eos.get(2).copied()),
        ("padding_token_id", files.pad),
        ("unknown_token_id", unknown.map(|id| id as u32)),
    ];
    // A token that was added to the tokenizer alone is not the model's.
    let of_model = |id: Option<u32>| id.filter(|id| (*id as usize) < rows);
    let known = ids.into_iter().filter_map(|(key, id)| Some((format!("tokenizer.ggml.{key}"), of_model(id)?.into())));
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

/// Whether special tokens swallow the white space behind them. A file has no word for that, nor for tokens that do so
/// before them or that are whole words: there is but llama.cpp's rule for names.
fn strips(document: &Json, rows: usize) -> Result<bool> {
    let of_model = |token: &&Json| token["id"].as_u64().is_some_and(|id| id < rows as u64);
    let added: Vec<&Json> = document["added_tokens"].as_array().into_iter().flatten().filter(of_model).collect();
    let strips = added.iter().any(|token| token["rstrip"] == true);
    let is_token = |text: &&str| {
        !document["model"]["vocab"][*text].is_null() || added.iter().any(|token| token["content"] == **text)
    };
    if let Some(text) = reader::OF_STRIPPING.iter().find(|text| strips && !is_token(text)) {
        let what = format!(
            "its tokens swallow white space, which llama.cpp knows of Phi-3's alone, and it has no token '{text}'"
        );
        return Err(refused(what));
    }
    for token in added {
        let text = token["content"].as_str().unwrap_or_default();
        let told = [("rstrip", strips && reader::is_stripping(text)), ("lstrip", false), ("single_word", false)];
        if let Some((key, told)) = told.into_iter().find(|(key, told)| token[key].as_bool().unwrap_or(false) != *told) {
            return Err(refused(format!(
                "\"{key}\" of token '{text}' is {}, and llama.cpp takes it for {told}",
                !told
            )));
        }
    }
    Ok(strips)
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

/// Without what does not change ids: where offsets point, a part alone in a list, a default that is said.
fn plain(rule: &Json) -> Json {
    match rule {
        Json::Object(map) => {
            let parts = map.get("pretokenizers").or(map.get("normalizers")).and_then(Json::as_array);
            if let Some([only]) = parts.map(Vec::as_slice) {
                return plain(only);
            }
            let is_default =
                |key: &str, value: &Json| key == "use_regex" && *value == true && rule["type"] == "ByteLevel";
            let kept = map.iter().filter(|(key, value)| *key != "trim_offsets" && !is_default(key, value));
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
    // Gemma's cut text at spaces, of which its normalizer leaves none.
    let whole = words.is_null() || words["type"] == "Split" && words["pattern"] == json!({ "String": " " });
    if whole && plain(normalizer) == rules(true) {
        return Ok(true);
    }
    if whole && plain(normalizer) == rules(false) {
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
    let ranks = ranks(merges);
    let score = |token: &String| ranks.get(token).map_or(-1e6, |rank| -(*rank as f32));
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

/// The rank of each piece's first merge. Pieces whose merges lie between one another's, longer halves first, had the
/// same score, and get the same rank.
fn ranks(merges: &[(String, String)]) -> HashMap<String, usize> {
    let pieces: Vec<String> = merges.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let last: HashMap<&String, usize> = pieces.iter().enumerate().map(|(rank, piece)| (piece, rank)).collect();
    let (mut first, mut end) = (0, 0);
    let mut ranks = HashMap::new();
    for (rank, piece) in pieces.iter().enumerate() {
        if rank > end {
            first = rank;
        }
        end = end.max(last[piece]);
        ranks.entry(piece.clone()).or_insert(first);
    }
    ranks
}
