//! Tokenizers like those of Gemma, Phi-3 and GPT-2, small.

use luthier::weights::{ModelFiles, TokenizerFiles};
use serde_json::{Map, Value, json};

pub const PROBES: [&str; 9] = [
    "ab a  b",
    "   ab    ab",
    "a\n\n\n\nb\n ab",
    "\tab\t\tc",
    "é \u{1f642} \u{1f643}",
    "",
    "<|user|>\n ab<|end|>  ab</s> a",
    "Put 123 apples on shelf 2, it's  late!\n\n",
    "<|im_start|>user\nHi<|im_end|>\n",
];

pub fn files(document: &Value) -> TokenizerFiles {
    let rows = document["model"]["vocab"].as_object().unwrap().len();
    TokenizerFiles {
        tokenizer_json: document.to_string(),
        bos: Some(1),
        eos: vec![2, 3, 4],
        // Added to the tokenizer, and not to the model.
        pad: Some(rows as u32),
        vocab: Some(rows),
        ..Default::default()
    }
}

/// No space before the text, and a cut at spaces, of which the normalizer leaves none.
pub fn gemma() -> Value {
    let special = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>", "<|endoftext|>"].map(|token| (token, true, false));
    let added = [&special[..], &[("\n\n", false, false)]].concat();
    let mut document =
        sentencepiece(json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" }), &added);
    document["pre_tokenizer"] =
        json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false });
    document
}

/// Special tokens that swallow the white space behind them.
pub fn phi3() -> Value {
    let normalizer = json!({ "type": "Sequence", "normalizers": [
        { "type": "Prepend", "prepend": "▁" },
        { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
    ] });
    let added = [
        ("<unk>", true, false),
        ("<s>", true, false),
        ("</s>", false, true),
        ("<|user|>", true, true),
        ("<|end|>", true, true),
        ("<|endoftext|>", true, false),
    ];
    sentencepiece(normalizer, &added)
}

/// Older than the setting that words are cut as GPT-2 cuts them.
pub fn gpt2() -> Value {
    let nano = ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap();
    let mut document: Value = serde_json::from_str(&nano.tokenizer().tokenizer_json).unwrap();
    document["pre_tokenizer"] = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true });
    document
}

/// SentencePiece's tokenizer as transformers' converters write it: control tokens, bytes, then pieces. Runs of line
/// breaks and of spaces tie, so that their merges lie between one another's. Gemma 2's tab stands where its byte was.
/// `added`: content, whether it is special, whether it swallows what is behind it.
fn sentencepiece(normalizer: Value, added: &[(&str, bool, bool)]) -> Value {
    let bytes = (0..=255).map(|b| if b == 9 { "\t".into() } else { format!("<0x{b:02X}>") });
    let pieces = ["\n", "▁", "\n\n", "▁▁", "\n\n\n", "▁▁▁", "a", "b", "ab", "▁a", "▁ab"];
    let control = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>", "<|endoftext|>", "\u{1f642}"];
    let all = control.iter().map(|t| t.to_string()).chain(bytes).chain(pieces.iter().map(|t| t.to_string()));
    let vocab: Map<_, _> = all.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let token = |(content, special, rstrip): &(&str, bool, bool)| {
        json!({
            "id": vocab[*content], "content": content, "special": special, "rstrip": rstrip, "lstrip": false,
            "single_word": false, "normalized": false,
        })
    };
    let merges = [
        ["\n\n", "\n"],
        ["▁▁", "▁"],
        ["\n", "\n\n"],
        ["▁", "▁▁"],
        ["\n", "\n"],
        ["▁", "▁"],
        ["a", "b"],
        ["▁", "a"],
        ["▁a", "b"],
        ["▁", "ab"],
    ];
    json!({
        "added_tokens": added.iter().map(token).collect::<Vec<_>>(),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "decoder": null,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges,
        },
    })
}
