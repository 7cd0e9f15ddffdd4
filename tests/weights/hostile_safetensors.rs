//! safetensors files that lie; each must be refused with a message that names the lie.

use super::support::*;
use luthier::Error;
use luthier::weights::{Source, safetensors};

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},
    "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]}}"#;

fn tensor(entry: &str, data: usize) -> Vec<u8> {
    safetensors_file(&format!(r#"{{"a":{entry}}}"#), data)
}

fn two(first: &str, second: &str, data: usize) -> Vec<u8> {
    let entry = |offsets: &str| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
    safetensors_file(&format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second)), data)
}

#[rustfmt::skip]
fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let announce = |n: u64| [n.to_le_bytes().as_slice(), b"{}"].concat();
    vec![
        ("empty file", vec![], "too small"),
        ("seven bytes", vec![0; 7], "too small"),
        ("header length 0", announce(0), "does not start"),
        ("header length 1", announce(1), "does not start"),
        ("header longer than allowed", announce(100_000_001), "at most 100000000"),
        ("header length -1", announce(u64::MAX), "at most"),
        ("header longer than the file", announce(3), "only 2 follow"),
        ("header starts with a space", safetensors_file(" {}", 0), "start with '{'"),
        ("header starts with a bracket", safetensors_file("[]", 0), "start with '{'"),
        ("header is not JSON", safetensors_file("{a}", 0), "header"),
        ("header is not UTF-8", [2u64.to_le_bytes().as_slice(), b"{\xff"].concat(), "header"),
        ("something after the header's object", safetensors_file("{}x", 0), "trailing"),
        ("duplicate tensor", safetensors_file(
            r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
                "a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#,
            0), "duplicate key 'a'"),
        ("duplicate metadata", safetensors_file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "duplicate key"),
        ("duplicate field",
            tensor(r#"{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,4]}"#, 4), "duplicate"),
        ("metadata that are no strings", safetensors_file(r#"{"__metadata__":{"a":1}}"#, 0), "string"),
        ("unknown type", tensor(r#"{"dtype":"F31","shape":[1],"data_offsets":[0,4]}"#, 4), "F31"),
        ("no shape", tensor(r#"{"dtype":"F32","data_offsets":[0,4]}"#, 4), "shape"),
        ("negative extent", tensor(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#, 4), "header"),
        ("negative offset", tensor(r#"{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}"#, 4), "header"),
        ("fractional extent", tensor(r#"{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}"#, 4), "header"),
        ("three offsets", tensor(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}"#, 4), "header"),
        ("end before start", tensor(r#"{"dtype":"F32","shape":[1],"data_offsets":[8,4]}"#, 8), "before its start"),
        ("offsets shorter than the shape",
            tensor(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4), "needs 8 bytes"),
        ("offsets longer than the shape",
            tensor(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,8]}"#, 8), "needs 4 bytes"),
        ("shape product overflows", tensor(
            r#"{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}"#, 0), "impossibly large"),
        ("byte size overflows",
            tensor(r#"{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}"#, 4), "impossibly large"),
        ("half a byte", tensor(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,1]}"#, 1), "impossibly large"),
        ("overlap", two("[0,8]", "[4,12]", 12), "overlaps"),
        ("the same bytes twice", two("[0,8]", "[0,8]", 8), "overlaps"),
        ("hole between", two("[0,8]", "[12,20]", 20), "hole"),
        ("hole at the start", two("[4,12]", "[12,20]", 20), "hole"),
        ("data missing at the end", two("[0,8]", "[8,16]", 15), "end at 16"),
        ("data left at the end", two("[0,8]", "[8,16]", 17), "end at 16"),
        ("no tensors but data", safetensors_file("{}", 1), "end at 0"),
        ("offsets beyond 2^63", tensor(
            r#"{"dtype":"F32","shape":[4611686018427387903],"data_offsets":[0,18446744073709551612]}"#,
            0), "impossibly large"),
    ]
}

#[test]
fn every_lie_is_refused() {
    assert_refused(cases(), open_safetensors);
}

#[test]
fn we_are_at_least_as_strict_as_the_reference_reader() {
    let good = safetensors_file(GOOD, 24);
    assert!(::safetensors::SafeTensors::deserialize(&good).is_ok());
    assert!(open_safetensors(good.clone()).is_ok());
    assert_no_panic(&good, 5000, |bytes| {
        let reference = ::safetensors::SafeTensors::deserialize(&bytes);
        let (refused, text) = (reference.is_err(), String::from_utf8_lossy(&bytes).into_owned());
        drop(reference);
        let ours = open_safetensors(bytes);
        assert!(!refused || ours.is_err(), "the reference refuses {text:?}");
        ours
    });
}

#[test]
fn odd_but_legal_files_open() {
    let scalar = tensor(r#"{"dtype":"F32","shape":[],"data_offsets":[0,4]}"#, 4);
    let empty = tensor(r#"{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}"#, 0);
    let padded = safetensors_file(&format!("{GOOD}    "), 24);
    let shared_by_an_empty_one = safetensors_file(
        r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        4,
    );
    // As MLX writes them.
    let null = safetensors_file(r#"{"__metadata__":null,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4);
    let all = [
        ("scalar", scalar),
        ("empty", empty),
        ("padded", padded),
        ("shared", shared_by_an_empty_one),
        ("null metadata", null),
    ];
    for (case, bytes) in all {
        let checkpoint = open_safetensors(bytes).unwrap_or_else(|e| panic!("{case}: {e}"));
        for info in checkpoint.tensors.values() {
            let values = block_on(checkpoint.read_f32(info)).unwrap();
            assert_eq!(values.len() as u64, info.rows() * info.cols(), "{case}");
        }
    }
}

#[test]
fn an_unread_type_is_refused_only_when_it_is_wanted() {
    let header = r#"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},
        "w":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
    let checkpoint = open_safetensors(safetensors_file(header, 12)).unwrap();
    assert!(checkpoint.get("w").is_ok());
    let refused = checkpoint.get("ids").unwrap_err();
    assert_eq!(refused.code(), "unsupported");
    assert!(refused.to_string().contains("tensor 'ids' is I64"), "{refused}");
    assert!(checkpoint.get("nothing").unwrap_err().to_string().contains("'nothing' is missing"));
}

#[test]
fn all_mismatches_are_told_at_once() {
    let checkpoint = open_safetensors(safetensors_file(GOOD, 24)).unwrap();
    assert!(checkpoint.expect([("a".to_string(), vec![2, 2])]).is_ok());
    let wanted = [("a".to_string(), vec![4]), ("b".to_string(), vec![4]), ("c".to_string(), vec![1])];
    let Err(Error::Mismatch { problems, .. }) = checkpoint.expect(wanted) else { panic!("accepted") };
    assert_eq!(problems, ["tensor 'a' has shape [2, 2], not [4]", "tensor 'c' is missing"]);
}

#[test]
fn other_kinds_of_files_are_named() {
    for (magic, words) in [
        (b"PK\x03\x04".as_slice(), "zip"),
        (b"\x80\x02}q\x00".as_slice(), "pickle"),
        (b"version https://git-lfs.github.com/spec/v1".as_slice(), "Git LFS"),
        (b"<!DOCTYPE html>".as_slice(), "web page"),
        (b"GGUF\x03\x00\x00\x00".as_slice(), "GGUF"),
    ] {
        let mut bytes = magic.to_vec();
        bytes.resize(64, 7);
        let refused = open_safetensors(bytes).unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
        assert!(!refused.hint().is_empty());
    }
}

#[test]
fn a_damaged_file_never_panics() {
    assert_no_panic(&safetensors_file(GOOD, 24), 3000, |bytes| {
        let checkpoint = open_safetensors(bytes)?;
        for info in checkpoint.tensors.values() {
            block_on(checkpoint.read_f32(info))?;
        }
        Ok(())
    });
}

fn shard(name: &str, tensor: &str) -> Source {
    let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    Source::bytes(name, safetensors_file(&header, 4))
}

fn index(map: &str) -> Source {
    Source::bytes("model.safetensors.index.json", format!(r#"{{"weight_map":{map}}}"#).into_bytes())
}

#[test]
fn shards_are_one_checkpoint() {
    let index = index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#);
    let shards = vec![shard("1.safetensors", "a"), shard("2.safetensors", "b")];
    let checkpoint = block_on(safetensors::open(shards, Some(&index))).unwrap();
    assert_eq!(checkpoint.tensors.len(), 2);
    assert_eq!(checkpoint.tensors["b"].source, 1);
}

#[test]
fn all_that_is_missing_from_shards_is_told_at_once() {
    let index = index(r#"{"a":"1.safetensors","b":"2.safetensors","c":"1.safetensors","d":"3.safetensors"}"#);
    let refused = block_on(safetensors::open(vec![shard("1.safetensors", "a")], Some(&index))).unwrap_err();
    let Error::Mismatch { problems, .. } = refused else { panic!("{refused}") };
    let expected = [
        "shard '2.safetensors' is missing",
        "shard '3.safetensors' is missing",
        "tensor 'c' is not in '1.safetensors'",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn a_shard_index_cannot_point_elsewhere() {
    for map in [r#"{"a":"../1.safetensors"}"#, r#"{"a":"/etc/passwd"}"#, r#"{"a":"x\\y"}"#] {
        let refused = block_on(safetensors::open(vec![shard("1.safetensors", "a")], Some(&index(map)))).unwrap_err();
        assert!(refused.to_string().contains("not a plain file name"), "{refused}");
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let shards = vec![shard("1.safetensors", "a"), shard("2.safetensors", "a")];
    let refused = block_on(safetensors::open(shards, None)).unwrap_err();
    assert!(refused.to_string().contains("two shards"), "{refused}");
}
