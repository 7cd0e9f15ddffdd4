//! A tokenizer rebuilt from GGUF metadata is the tokenizer the model was trained with.

use super::support::*;
use luthier::weights::{Gguf, Source, TokenizerFiles, gguf_tokenizer};
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;

fn build(bytes: Vec<u8>) -> TokenizerFiles {
    gguf_tokenizer::tokenizer_files(&open_gguf(bytes).unwrap()).unwrap()
}

fn tokenizer(files: &TokenizerFiles) -> Tokenizer {
    Tokenizer::from_bytes(&files.tokenizer_json).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Lines of real text, and a few that are awkward.
fn lines() -> Vec<String> {
    let files =
        ["nl2bash/nl2bash.jsonl", "tatoeba_laser/eng-deu.jsonl", "tatoeba_laser/eng-fra.jsonl", "viggo/test.csv"];
    let mut lines: Vec<String> = [
        "",
        " ",
        "  two  spaces  ",
        "\ttabs\t\tand\r\nlines\n\n\n",
        "1234567 3.14 ٣٤ ½ Ⅷ",
        "naïve café — “quotes” …",
        "日本語のテキスト 한국어 עברית",
        "🎸🤘🏽 e\u{301} \u{0} \u{feff}",
        "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
        "it's we'll I'M 'tis",
        "▁under▁ <0x0A> <s> </s>",
        "snake_case camelCase $HOME/*.rs && ls -la | wc -l",
    ]
    .map(String::from)
    .into();
    for file in files {
        let Some(path) = shared(&format!("data/{file}")) else { continue };
        lines.extend(std::fs::read_to_string(path).unwrap().lines().take(400).map(String::from));
    }
    lines
}

fn assert_equal(ours: &Tokenizer, theirs: &Tokenizer) {
    let lines = lines();
    for line in &lines {
        let (a, b) = (ours.encode(line.as_str(), false).unwrap(), theirs.encode(line.as_str(), false).unwrap());
        assert_eq!(a.get_ids(), b.get_ids(), "{line:?}");
        for skip in [false, true] {
            assert_eq!(ours.decode(a.get_ids(), skip).unwrap(), theirs.decode(b.get_ids(), skip).unwrap(), "{line:?}");
        }
    }
    println!("{} texts", lines.len());
}

#[test]
fn smollm2_gguf() {
    let Some(folder) = shared("models/SmolLM2-135M-Instruct-Q4_1") else { return };
    let source = Source::file(folder.join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let gguf = block_on(Gguf::open(source)).unwrap();
    let files = gguf_tokenizer::tokenizer_files(&gguf).unwrap();
    assert_eq!((files.bos, &files.eos[..], files.pad, files.add_bos), (Some(1), &[2][..], Some(2), false));
    let template = std::fs::read_to_string(folder.join("chat_template.jinja")).unwrap();
    assert_eq!(files.chat_template.as_deref().map(str::trim_end), Some(template.trim_end()));

    let ours = tokenizer(&files);
    let cases = json(&folder.join("reference.json"));
    for case in cases["cases"].as_array().unwrap() {
        let ids = ours.encode(case["prompt"].as_str().unwrap(), false).unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["prompt_ids"].clone()).unwrap();
        assert_eq!(ids.get_ids(), expected);
        let greedy: Vec<u32> = serde_json::from_value(case["greedy_ids"].clone()).unwrap();
        assert_eq!(ours.decode(&greedy, false).unwrap(), case["greedy_text"].as_str().unwrap());
    }
    assert_equal(&ours, &Tokenizer::from_file(folder.join("tokenizer.json")).unwrap());
}

/// stories260K's pieces in GGUF's terms. SentencePiece scores its pieces by the order in which they were learned.
#[test]
fn sentencepiece_merges_follow_from_scores() {
    let Some(folder) = shared("models/stories260K/hf") else { return };
    let original = json(&folder.join("tokenizer.json"));
    let mut tokens: Vec<(&String, u64)> =
        original["model"]["vocab"].as_object().unwrap().iter().map(|(t, id)| (t, id.as_u64().unwrap())).collect();
    tokens.sort_by_key(|&(_, id)| id);
    let types: Vec<i32> = (0..tokens.len()).map(|id| [2, 3, 3, 6].get(id).copied().unwrap_or(6)).collect();
    let types: Vec<i32> = types.iter().enumerate().map(|(id, &t)| if id >= 259 { 1 } else { t }).collect();
    let scores: Vec<f32> = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 259.0 - id as f32 }).collect();
    let words: Vec<&String> = tokens.iter().map(|(t, _)| *t).collect();
    let files = build(
        GgufFile::new()
            .pair("tokenizer.ggml.model", text("llama"))
            .pair("tokenizer.ggml.tokens", string_array(&words))
            .pair("tokenizer.ggml.token_type", i32_array(&types))
            .pair("tokenizer.ggml.scores", f32_array(&scores))
            .pair("tokenizer.ggml.bos_token_id", u32_value(1))
            .pair("tokenizer.ggml.eos_token_id", u32_value(2))
            .bytes(),
    );
    assert_eq!((files.bos, &files.eos[..], files.add_bos), (Some(1), &[2][..], true));
    assert_equal(&tokenizer(&files), &Tokenizer::from_file(folder.join("tokenizer.json")).unwrap());
}

/// A byte-level vocabulary without merges shows where a rule cuts words.
fn words(pre: &str, text_in: &str) -> Vec<String> {
    let files = build(
        GgufFile::new()
            .pair("tokenizer.ggml.model", text("gpt2"))
            .pair("tokenizer.ggml.pre", text(pre))
            .pair("tokenizer.ggml.tokens", string_array(&["a"]))
            .pair("tokenizer.ggml.merges", string_array::<&str>(&[]))
            .bytes(),
    );
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
    let tokenizer = tokenizer(&files);
    let mut split = PreTokenizedString::from(text_in);
    tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut split).unwrap();
    let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
    splits.into_iter().map(|(_, (a, b), _)| text_in[a..b].to_string()).collect()
}

#[test]
fn splitting_rules() {
    let line = "I'LL pay 12345 now!!\n\n  ok";
    assert_eq!(words("gpt-2", line), ["I", "'", "LL", " pay", " 12345", " now", "!!", "\n\n ", " ok"]);
    assert_eq!(
        words("smollm", line),
        ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", " now", "!!", "\n\n ", " ok"]
    );
    assert_eq!(words("qwen2", line), ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " now", "!!\n\n", " ", " ok"]);
    assert_eq!(words("llama-bpe", line), ["I", "'LL", " pay", " ", "123", "45", " now", "!!\n\n", " ", " ok"]);
}

#[test]
fn a_rule_that_is_not_named_is_not_guessed() {
    for pre in [None, Some("default"), Some("mpt")] {
        let mut file = GgufFile::new()
            .pair("tokenizer.ggml.model", text("gpt2"))
            .pair("tokenizer.ggml.tokens", string_array(&["a"]))
            .pair("tokenizer.ggml.merges", string_array::<&str>(&[]));
        if let Some(pre) = pre {
            file = file.pair("tokenizer.ggml.pre", text(pre));
        }
        let refused = gguf_tokenizer::tokenizer_files(&open_gguf(file.bytes()).unwrap()).unwrap_err();
        assert!(refused.to_string().contains("pre-tokenizer"), "{pre:?}: {refused}");
    }
}

#[test]
fn special_tokens_are_never_cut() {
    let tokens = ["<|end|>", "<tool>", "a", "b", "ab"];
    let files = build(
        GgufFile::new()
            .pair("tokenizer.ggml.model", text("gpt2"))
            .pair("tokenizer.ggml.pre", text("gpt-2"))
            .pair("tokenizer.ggml.tokens", string_array(&tokens))
            .pair("tokenizer.ggml.token_type", i32_array(&[3, 4, 1, 1, 1]))
            .pair("tokenizer.ggml.merges", string_array(&["a b"]))
            .pair("tokenizer.ggml.eos_token_id", u32_value(0))
            .bytes(),
    );
    let tokenizer = tokenizer(&files);
    let ids = tokenizer.encode("ab<tool>ba<|end|>", false).unwrap();
    assert_eq!(ids.get_ids(), [4, 1, 3, 2, 0]);
    assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), "ab<tool>ba");
}
