//! Values come out as they went in: quantised blocks against gguf-py, formats, rows, writing.

use super::support::*;
use luthier::format::{WeightFormat, pack, unpack};
use luthier::weights::{Checkpoint, Source, StoredType, TensorInfo, atomic_write, safetensors};
use std::path::Path;

fn golden() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quants.safetensors")).unwrap()
}

/// A checkpoint of one matrix of these bytes.
fn checkpoint(stored: StoredType, rows: u64, bytes: &[u8]) -> Checkpoint {
    let cols = bytes.len() as u64 / stored.block_bytes() * stored.block_values() / rows;
    let (name, shape) = ("w".to_string(), vec![rows, cols]);
    let info = TensorInfo { name, stored, shape, source: 0, offset: 0, bytes: bytes.len() as u64 };
    let sources = vec![Source::bytes("test", bytes)];
    Checkpoint { sources, tensors: [("w".into(), info)].into(), ..Default::default() }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn unpacked(format: WeightFormat, words: &[u32], n: usize) -> Vec<f32> {
    let mut values = vec![0f32; n];
    unpack(format, words, &mut values);
    values
}

const QUANTISED: [StoredType; 7] = [
    StoredType::Q8_0,
    StoredType::Q4_0,
    StoredType::Q4_1,
    StoredType::Q5_0,
    StoredType::Q5_1,
    StoredType::Q4_K,
    StoredType::Q6_K,
];

#[test]
fn quantised_blocks_decode_as_gguf_py_does() {
    let bytes = golden();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for stored in QUANTISED {
        let blocks = file.tensor(&format!("{}.blocks", stored.name())).unwrap();
        let expected = floats(file.tensor(&format!("{}.values", stored.name())).unwrap().data());
        let checkpoint = checkpoint(stored, 2, blocks.data());
        let info = checkpoint.get("w").unwrap();
        assert_eq!(block_on(checkpoint.read_f32(info)).unwrap(), expected, "{}", stored.name());

        // Row by row, as the loader reads, and through the words that a shader reads.
        let format = stored.default_format();
        for row in 0..2 {
            let words = block_on(checkpoint.read_rows(info, row, 1, format)).unwrap();
            let expected = &expected[row as usize * 512..][..512];
            let kept = format.name().eq_ignore_ascii_case(stored.name());
            for (a, b) in unpacked(format, &words, 512).iter().zip(expected) {
                // d·q + m and d·(q − 8) round differently from d·q − 8·d.
                let slack = if kept { 1e-6 * (1.0 + b.abs()) } else { b.abs() / 256.0 };
                assert!((a - b).abs() <= slack, "{} as {}: {a} for {b}", stored.name(), format.name());
            }
        }
    }
}

#[test]
fn our_encoders_write_the_blocks_of_gguf_py() {
    let bytes = golden();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = floats(file.tensor("values").unwrap().data());
    for (stored, format) in [
        (StoredType::Q8_0, WeightFormat::Q8_0),
        (StoredType::Q4_0, WeightFormat::Q4_0),
        (StoredType::Q4_1, WeightFormat::Q4_1),
    ] {
        let blocks = file.tensor(&format!("{}.blocks", stored.name())).unwrap();
        let checkpoint = checkpoint(stored, 2, blocks.data());
        let kept = block_on(checkpoint.read_rows(checkpoint.get("w").unwrap(), 0, 2, format)).unwrap();
        assert!(kept == pack(format, &values), "{}", stored.name());
    }
}

#[test]
fn every_type_becomes_every_format() {
    let values: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 13.0).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let checkpoint = checkpoint(StoredType::F32, 2, &bytes);
    let info = checkpoint.get("w").unwrap();
    for format in WeightFormat::ALL {
        let words = block_on(checkpoint.read_rows(info, 0, 2, format)).unwrap();
        assert_eq!(words, pack(format, &values), "{}", format.name());
        assert_eq!(block_on(checkpoint.read_rows(info, 1, 1, format)).unwrap(), words[words.len() / 2..]);
    }
}

#[test]
fn halves_keep_their_bits() {
    let bytes: Vec<u8> = (0..64u16).flat_map(|i| ((i * 997) & 0xbbff).to_le_bytes()).collect();
    for (stored, format) in [(StoredType::F16, WeightFormat::F16), (StoredType::BF16, WeightFormat::BF16)] {
        let checkpoint = checkpoint(stored, 4, &bytes);
        let words = block_on(checkpoint.read_rows(checkpoint.get("w").unwrap(), 0, 4, format)).unwrap();
        let back: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(back, bytes, "{}", stored.name());
    }
}

#[test]
fn values_that_are_not_finite_are_refused_by_name_and_index() {
    let mut values = [1f32; 16];
    values[13] = f32::NAN;
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let checkpoint_f32 = checkpoint(StoredType::F32, 4, &bytes);
    let refused = block_on(checkpoint_f32.read_rows(checkpoint_f32.get("w").unwrap(), 2, 2, WeightFormat::BF16));
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("tensor 'w'") && message.contains("value 13"), "{message}");

    for (stored, at, bits, index) in [
        (StoredType::F16, 6, 0x7c00u16, 3),
        (StoredType::BF16, 6, 0x7f80, 3),
        (StoredType::Q8_0, 34, 0x7e00, 32),
        (StoredType::Q4_1, 2, 0xfc00, 0),
        (StoredType::Q4_K, 2, 0xfc00, 0),
        (StoredType::Q6_K, 208, 0x7c01, 0),
    ] {
        let mut bytes = vec![0; 2 * stored.block_bytes() as usize * if stored.block_values() == 1 { 8 } else { 1 }];
        bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        let checkpoint = checkpoint(stored, 1, &bytes);
        let refused = block_on(checkpoint.read_f32(checkpoint.get("w").unwrap())).unwrap_err().to_string();
        assert!(refused.contains(&format!("value {index}: NaN")), "{}: {refused}", stored.name());
    }
}

#[test]
fn values_too_large_for_a_format_are_refused() {
    let bytes: Vec<u8> = [1.0, 70000.0, 2.0, 3.0f32].iter().flat_map(|v| v.to_le_bytes()).collect();
    let checkpoint = checkpoint(StoredType::F32, 1, &bytes);
    let info = checkpoint.get("w").unwrap();
    let refused = block_on(checkpoint.read_rows(info, 0, 1, WeightFormat::F16)).unwrap_err().to_string();
    assert!(refused.contains("value 1: 70000 is too large for f16"), "{refused}");
    assert!(block_on(checkpoint.read_rows(info, 0, 1, WeightFormat::BF16)).is_ok());
}

#[test]
fn rows_that_do_not_fit_a_format_are_refused() {
    let checkpoint = checkpoint(StoredType::F32, 1, &[0; 4 * 6]);
    let info = checkpoint.get("w").unwrap();
    let refused = block_on(checkpoint.read_rows(info, 0, 1, WeightFormat::BF16)).unwrap_err();
    assert!(refused.hint().contains("multiple of 4"), "{refused}");
}

#[test]
fn what_is_written_is_read_back() {
    let folder = TempDir::new("write");
    let path = folder.0.join("adapter_model.safetensors");
    let tensors = vec![
        ("b.weight".to_string(), vec![2, 3], vec![1.0, -2.5, 3.0, 0.0, 1e-30, 7.0]),
        ("a.weight".to_string(), vec![1], vec![0.1]),
        ("empty".to_string(), vec![0, 4], vec![]),
    ];
    let bytes = safetensors::to_bytes(&tensors, &[("base", "nano")]).unwrap();
    atomic_write(&path, &bytes).unwrap();
    let checkpoint = block_on(safetensors::open(vec![Source::file(&path).unwrap()], None)).unwrap();
    assert_eq!(checkpoint.metadata["format"], "pt");
    assert_eq!(checkpoint.metadata["base"], "nano");
    for (name, shape, values) in &tensors {
        let info = checkpoint.get(name).unwrap();
        assert_eq!(&info.shape, shape);
        assert_eq!(&block_on(checkpoint.read_f32(info)).unwrap(), values);
    }
    assert_eq!(bytes, safetensors::to_bytes(&tensors, &[("base", "nano")]).unwrap(), "the same bytes again");
}

#[test]
fn a_shape_that_belies_the_values_is_not_written() {
    let refused = safetensors::to_bytes(&[("a".into(), vec![2, 2], vec![1.0])], &[]);
    assert!(refused.is_err());
}

#[test]
fn writing_replaces_whole_files_and_leaves_no_litter() {
    let folder = TempDir::new("atomic");
    let path = folder.write("file", b"old");
    atomic_write(&path, b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(folder.names(), ["file"]);

    std::fs::create_dir(folder.0.join("folder")).unwrap();
    let refused = atomic_write(folder.0.join("folder"), b"new").unwrap_err();
    assert_eq!(refused.code(), "io");
    assert!(atomic_write(folder.0.join("absent").join("file"), b"new").is_err());
    assert_eq!(folder.names(), ["file", "folder"]);
}

#[test]
fn a_source_gives_what_is_asked_or_says_why_not() {
    let folder = TempDir::new("source");
    let path = folder.write("file.bin", b"0123456789");
    for source in [Source::file(&path).unwrap(), Source::bytes("some/file.bin", b"0123456789".as_slice())] {
        assert_eq!(source.file_name(), "file.bin");
        assert_eq!(source.len(), 10);
        assert_eq!(block_on(source.read(3, 4)).unwrap(), b"3456");
        assert_eq!(block_on(source.read(10, 0)).unwrap(), b"");
        assert!(block_on(source.read(8, 3)).unwrap_err().to_string().contains("has 10 bytes"));
        assert!(block_on(source.read(u64::MAX, 2)).is_err());
        assert!(block_on(source.text(9)).is_err());
    }
    assert_eq!(Source::file(folder.0.join("absent")).unwrap_err().code(), "io");
    assert!(Source::file(&folder.0).unwrap_err().to_string().contains("folder"));
}
