//! GGUF files that lie; the cases are those that have broken llama.cpp and other readers.

use super::support::*;
use luthier::weights::gguf_tokenizer;

fn good() -> GgufFile {
    GgufFile::new()
        .pair("general.architecture", text("llama"))
        .pair("some.list", i32_array(&[1, -2, 3]))
        .pair("some.words", string_array(&["a", "b"]))
        .tensor("a", &[32, 2], Q4_0, 0)
        .tensor("b", &[4], F32, 64)
        .data([0; 80])
}

/// A file of one pair.
fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    GgufFile::new().pair(key, (kind, value.to_vec())).bytes()
}

/// A file of one tensor and plenty of data.
fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    GgufFile::new().tensor(name, dims, kind, offset).data([0; 4096]).bytes()
}

fn with(change: impl FnOnce(&mut GgufFile)) -> Vec<u8> {
    let mut file = good();
    change(&mut file);
    file.bytes()
}

#[rustfmt::skip]
fn header_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let length = |n: u64| n.to_le_bytes().to_vec();
    let raw_key = |n: u64| with(|f| f.pairs[0] = length(n));
    vec![
        ("empty file", vec![], "wrong magic"),
        ("bad magic", b"GGML\x03\x00\x00\x00".to_vec(), "wrong magic"),
        ("only the magic", b"GGUF".to_vec(), "file ends"),
        ("version 0", with(|f| f.version = 0), "version 0"),
        ("version 1", with(|f| f.version = 1), "version 1"),
        ("future version", with(|f| f.version = 4), "version 4"),
        ("big-endian", with(|f| f.version = 3u32.swap_bytes()), "big-endian"),
        ("-1 tensors", with(|f| f.n_tensors = Some(u64::MAX)), "tensors; at most"),
        ("-1 pairs", with(|f| f.n_pairs = Some(u64::MAX)), "pairs; at most"),
        ("one tensor too many announced", with(|f| f.n_tensors = Some(3)), "tensor 'b': its data end at 80"),
        ("one pair too many announced", with(|f| f.n_pairs = Some(60_000)), "a key of 562949953421312 bytes"),
        ("key of length -1", raw_key(u64::MAX), "a key of"),
        ("key longer than the file", raw_key(60_000), "file ends"),
        ("empty key", pair("", 0, &[1]), "empty key"),
        ("key that is not UTF-8", with(|f| f.pairs[0] = [length(2), vec![0xff, 0xfe]].concat()), "UTF-8"),
        ("unknown value type", pair("k", 13, &[0; 8]), "type 13"),
        ("value type -1", pair("k", u32::MAX, &[0; 8]), "type 4294967295"),
        ("value cut off", pair("k", 10, &[0; 4]), "file ends"),
        ("duplicate key", GgufFile::new().pair("k", u32_value(1)).pair("k", u32_value(1)).bytes(), "twice"),
        ("string of length -1", pair("k", 8, &length(u64::MAX)), "a string of"),
        ("string longer than the file", pair("k", 8, &length(1000)), "file ends"),
        ("array of -1 values", GgufFile::new().pair("k", array(0, u64::MAX, vec![])).bytes(), "values; at most"),
        ("array of 2^61 u64 (size wraps)",
            GgufFile::new().pair("k", array(10, 1 << 61, vec![])).bytes(), "values; at most"),
        ("array longer than the file", GgufFile::new().pair("k", array(10, 1 << 23, vec![0; 64])).bytes(), "file ends"),
        ("array of strings longer than the file",
            GgufFile::new().pair("k", array(8, 1 << 23, vec![0; 64])).bytes(), "file ends"),
        ("array of arrays", GgufFile::new().pair("k", array(9, 1, vec![0; 64])).bytes(), "array of arrays"),
        ("one part of a split model", GgufFile::new().pair("split.count", (2, vec![3, 0])).bytes(), "one of 3 parts"),
        ("array of an unknown type", GgufFile::new().pair("k", array(77, 1, vec![0; 64])).bytes(), "type 77"),
    ]
}

#[rustfmt::skip]
fn tensor_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let aligned = |kind: u32, value: &[u8]| good().pair("general.alignment", (kind, value.to_vec())).bytes();
    let huge = 0x7FFF_FFFF_FFFF_FFC0u64;
    vec![
        ("alignment 0", aligned(4, &0u32.to_le_bytes()), "power of two"),
        ("alignment not a power of two", aligned(4, &24u32.to_le_bytes()), "power of two"),
        ("alignment of the wrong type", aligned(10, &32u64.to_le_bytes()), "power of two"),
        ("alignment as a string", aligned(8, &gguf_string("32")), "power of two"),
        ("alignment 64, but the file keeps 32", GgufFile::new()
            .pair("general.alignment", u32_value(64)).tensor("a", &[8], F32, 0).tensor("b", &[8], F32, 32)
            .data([0; 256]).bytes(), "expected 64"),
        ("alignment 2^31", aligned(4, &(1u32 << 31).to_le_bytes()), "data"),
        ("name of 64 bytes", tensor(&"n".repeat(64), &[1], F32, 0), "a tensor name of 64"),
        ("5 dimensions", tensor("a", &[1, 1, 1, 1, 1], F32, 0), "5 dimensions"),
        ("4 billion dimensions", with(|f| f.tensors[0] = [gguf_string("a"), vec![0xff; 12]].concat()), "dimensions"),
        ("an extent of 0", tensor("a", &[0, 4], F32, 0), "is empty"),
        ("an extent of -1", tensor("a", &[u64::MAX], F32, 0), "impossibly large"),
        ("shape product wraps to little", tensor("a", &[(1 << 42) + 1, 1 << 22], F32, 0), "impossibly large"),
        ("bytes wrap to little", tensor("a", &[1 << 62, 1], F32, 0), "impossibly large"),
        ("larger than the file", tensor("a", &[1025], F32, 0), "truncated"),
        ("rows that are no whole blocks", tensor("a", &[33, 2], Q4_0, 0), "whole blocks"),
        ("unknown type", tensor("a", &[1], 999, 0), "type 999"),
        ("a type that was removed", tensor("a", &[32], 4, 0), "type 4"),
        ("offset not aligned", tensor("a", &[1], F32, 1), "expected 0"),
        ("offset beyond the file", tensor("a", &[1], F32, 1 << 40), "expected 0"),
        ("offset -1", tensor("a", &[1], F32, u64::MAX), "expected 0"),
        ("overlap",
            GgufFile::new().tensor("a", &[8], F32, 0).tensor("b", &[8], F32, 0).data([0; 64]).bytes(), "expected 32"),
        ("hole",
            GgufFile::new().tensor("a", &[8], F32, 0).tensor("b", &[8], F32, 64).data([0; 96]).bytes(), "expected 32"),
        ("duplicate name",
            GgufFile::new().tensor("a", &[8], F32, 0).tensor("a", &[8], F32, 32).data([0; 64]).bytes(), "twice"),
        ("duplicate name, one of an unread type", GgufFile::new()
            .tensor("a", &[8], F32, 0).tensor("a", &[8], 26, 32).data([0; 64]).bytes(), "twice"),
        ("two sizes whose sum wraps", GgufFile::new()
            .tensor("a", &[huge], 24, 0).tensor("b", &[huge], 24, huge).data([0; 64]).bytes(), "truncated"),
        ("last byte missing", { let mut bytes = good().bytes(); bytes.pop(); bytes }, "truncated"),
        ("no data at all", with(|f| f.data.clear()), "truncated"),
    ]
}

/// Sizes in the metadata that the tensors deny.
#[rustfmt::skip]
fn size_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let model = |key: &str, value: (u32, Vec<u8>)| GgufFile::new()
        .pair("general.architecture", text("llama"))
        .pair("llama.embedding_length", u32_value(8))
        .pair(key, value)
        .tensor("token_embd.weight", &[8, 4], F32, 0)
        .tensor("blk.0.attn_norm.weight", &[8], F32, 128)
        .data([0; 160]).bytes();
    vec![
        ("4 billion blocks", model("llama.block_count", u32_value(u32::MAX)), "block_count is 4294967295"),
        ("no blocks", model("llama.block_count", u32_value(0)), "block_count is 0"),
        ("blocks as a string", model("llama.block_count", text("1")), "not a whole number"),
        ("blocks as -1", model("llama.block_count", (5, (-1i32).to_le_bytes().to_vec())), "not a whole number"),
        ("no heads", model("llama.attention.head_count", u32_value(0)), "head_count is 0"),
        ("more heads than values", model("llama.attention.head_count", u32_value(9)), "head_count is 9"),
        ("no kv heads", model("llama.attention.head_count_kv", u32_value(0)), "head_count_kv is 0"),
        ("more tokens than rows", model("tokenizer.ggml.tokens", string_array(&["a", "b", "c", "d", "e"])), "5 tokens"),
        ("architecture is a number",
            GgufFile::new().pair("general.architecture", u32_value(1)).bytes(), "not a string"),
        ("rows of another width", GgufFile::new()
            .pair("general.architecture", text("llama")).pair("llama.embedding_length", u32_value(1 << 30))
            .tensor("token_embd.weight", &[8, 4], F32, 0).data([0; 128]).bytes(), "rows of 8"),
    ]
}

#[test]
fn a_lying_header_is_refused() {
    assert_refused(header_cases(), open_gguf);
}

#[test]
fn a_lying_tensor_is_refused() {
    assert_refused(tensor_cases(), open_gguf);
}

#[test]
fn sizes_that_the_tensors_deny_are_refused() {
    assert_refused(size_cases(), open_gguf);
}

#[test]
#[rustfmt::skip]
fn a_lying_tokenizer_is_refused() {
    let file = |model: &str| GgufFile::new()
        .pair("tokenizer.ggml.model", text(model))
        .pair("tokenizer.ggml.tokens", string_array(&["a", "b", "ab"]));
    let gpt2 = || file("gpt2").pair("tokenizer.ggml.pre", text("gpt-2"));
    let merges = |merge: &str| gpt2().pair("tokenizer.ggml.merges", string_array(&[merge])).bytes();
    let scores = |values: &[f32]| file("llama").pair("tokenizer.ggml.scores", f32_array(values)).bytes();
    assert_refused(vec![
        ("no tokens", GgufFile::new().pair("tokenizer.ggml.model", text("gpt2")).bytes(), "tokenizer.ggml.tokens"),
        ("tokens are numbers",
            GgufFile::new().pair("tokenizer.ggml.tokens", i32_array(&[1])).bytes(), "array of strings"),
        ("token types are strings",
            gpt2().pair("tokenizer.ggml.token_type", string_array(&["1", "1", "1"])).bytes(), "whole numbers"),
        ("token types are too few", gpt2().pair("tokenizer.ggml.token_type", i32_array(&[1])).bytes(), "1 token types"),
        ("a token twice", GgufFile::new().pair("tokenizer.ggml.tokens", string_array(&["a", "a"])).bytes(), "both 'a'"),
        ("unknown model", file("bert").bytes(), "tokenizer 'bert'"),
        ("unknown pre-tokenizer", file("gpt2").pair("tokenizer.ggml.pre", text("viking"))
            .pair("tokenizer.ggml.merges", string_array(&["a b"])).bytes(), "pre-tokenizer 'viking'"),
        ("no merges", gpt2().bytes(), "tokenizer.ggml.merges"),
        ("merge without a space", merges("ab"), "merge 0"),
        ("merge of unknown pieces", merges("a x"), "merge 0"),
        ("merge into an unknown piece", merges("b a"), "merge 0"),
        ("empty merge", merges(""), "merge 0"),
        ("bos beyond the vocabulary", gpt2().pair("tokenizer.ggml.merges", string_array(&["a b"]))
            .pair("tokenizer.ggml.bos_token_id", u32_value(3)).bytes(), "there are 3 tokens"),
        ("scores are bytes",
            file("llama").pair("tokenizer.ggml.scores", array(0, 3, vec![1, 2, 3])).bytes(), "finite numbers"),
        ("scores are too few", scores(&[1.0]), "1 scores for 3"),
        ("a piece that takes for ever to cut", GgufFile::new().pair("tokenizer.ggml.model", text("llama"))
            .pair("tokenizer.ggml.tokens", string_array(&["a".repeat(1 << 20)]))
            .pair("tokenizer.ggml.scores", f32_array(&[0.0])).bytes(), "1048576 bytes"),
        ("a score is NaN", scores(&[1.0, f32::NAN, 1.0]), "finite numbers"),
    ], |bytes| gguf_tokenizer::tokenizer_files(&open_gguf(bytes)?));
}

#[test]
fn a_good_file_opens_in_both_versions() {
    for version in [2, 3] {
        let gguf = open_gguf(with(|f| f.version = version)).unwrap();
        assert_eq!(gguf.architecture().unwrap(), "llama");
        assert_eq!(gguf.ints("some.list").unwrap(), [1, -2, 3]);
        assert_eq!(gguf.strings("some.words").unwrap(), ["a", "b"]);
        assert_eq!(gguf.checkpoint.get("a").unwrap().shape, [2, 32]);
        let b = gguf.checkpoint.get("b").unwrap();
        assert_eq!(block_on(gguf.checkpoint.read_f32(b)).unwrap(), [0.0; 4]);
    }
}

#[test]
fn an_adapter_opens() {
    let Some(path) = shared("golden/peft-0.21/adapter.gguf") else { return };
    let gguf = open_gguf(std::fs::read(path).unwrap()).unwrap();
    assert_eq!(gguf.str("general.type").unwrap(), "adapter");
    assert!(gguf.checkpoint.tensors.keys().all(|name| name.ends_with(".lora_a") || name.ends_with(".lora_b")));
}

#[test]
fn values_have_their_types() {
    let gguf = open_gguf(
        GgufFile::new()
            .pair("byte", (0, vec![200]))
            .pair("short", (3, (-7i16).to_le_bytes().to_vec()))
            .pair("long", (10, u64::MAX.to_le_bytes().to_vec()))
            .pair("float", (6, 0.5f32.to_le_bytes().to_vec()))
            .pair("double", (12, 0.25f64.to_le_bytes().to_vec()))
            .pair("yes", bool_value(true))
            .pair("bytes", array(0, 2, vec![1, 255]))
            .pair("nan", (6, f32::NAN.to_le_bytes().to_vec()))
            .bytes(),
    )
    .unwrap();
    assert_eq!(gguf.u32("byte").unwrap(), 200);
    assert_eq!(gguf.f32("float").unwrap(), 0.5);
    assert_eq!(gguf.f32("double").unwrap(), 0.25);
    assert!(gguf.bool("yes").unwrap());
    assert_eq!(gguf.ints("bytes").unwrap(), [1, 255]);
    assert_eq!(gguf.optional("absent", luthier::weights::Gguf::u32).unwrap(), None);
    for (key, words) in [("short", "-7 (I16), not a whole"), ("long", "not a whole"), ("absent", "is missing")] {
        let refused = gguf.u32(key).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
    assert!(gguf.f32("nan").unwrap_err().to_string().contains("finite"));
    assert!(gguf.str("float").unwrap_err().to_string().contains("0.5, not a string"));
    assert!(gguf.floats("bytes").is_err());
}

#[test]
fn an_unread_type_is_refused_only_when_it_is_wanted() {
    let file = GgufFile::new().tensor("a", &[8], F32, 0).tensor("odd", &[256], 10, 32).data([0; 116]);
    let gguf = open_gguf(file.bytes()).unwrap();
    assert!(gguf.checkpoint.get("a").is_ok());
    assert!(gguf.checkpoint.get("odd").unwrap_err().to_string().contains("tensor 'odd' is Q2_K"));
}

#[test]
fn a_damaged_file_never_panics() {
    assert_no_panic(&good().bytes(), 5000, |bytes| {
        let gguf = open_gguf(bytes)?;
        for info in gguf.checkpoint.tensors.values() {
            block_on(gguf.checkpoint.read_f32(info))?;
        }
        Ok(())
    });
}

#[test]
fn a_large_vocabulary_is_read_fast() {
    let words: Vec<String> = (0..300_000).map(|i| format!("token{i}")).collect();
    let bytes = GgufFile::new().pair("tokenizer.ggml.tokens", string_array(&words)).bytes();
    let start = std::time::Instant::now();
    let gguf = open_gguf(bytes).unwrap();
    assert_eq!(gguf.strings("tokenizer.ggml.tokens").unwrap().len(), 300_000);
    assert!(start.elapsed().as_secs_f64() < 2.0, "{:?}", start.elapsed());
}
