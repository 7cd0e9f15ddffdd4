//! Files made in code, and the shared ones where they are.
#![allow(dead_code, unused_imports)]

use luthier::Result;
use luthier::weights::{Checkpoint, Gguf, Source, safetensors};
use std::path::PathBuf;

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}

pub use crate::common::shared;

/// A folder that is removed when the test ends.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new(name: &str) -> TempDir {
        let path = std::env::temp_dir().join(format!("luthier-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Names of the files in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn open_safetensors(bytes: Vec<u8>) -> Result<Checkpoint> {
    block_on(safetensors::open(vec![Source::bytes("test.safetensors", bytes)], None))
}

pub fn open_gguf(bytes: Vec<u8>) -> Result<Gguf> {
    block_on(Gguf::open(Source::bytes("test.gguf", bytes)))
}

/// A safetensors file of this header and so many zero bytes.
pub fn safetensors_file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A GGUF file, piece by piece; every piece may be wrong.
pub struct GgufFile {
    pub version: u32,
    pub n_tensors: Option<u64>,
    pub n_pairs: Option<u64>,
    pub pairs: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub alignment: usize,
    pub data: Vec<u8>,
}

pub const F32: u32 = 0;
pub const Q4_0: u32 = 2;

impl GgufFile {
    pub fn new() -> GgufFile {
        let (pairs, tensors, data) = Default::default();
        GgufFile { version: 3, n_tensors: None, n_pairs: None, pairs, tensors, alignment: 32, data }
    }

    pub fn pair(mut self, key: &str, value: (u32, Vec<u8>)) -> Self {
        let mut pair = gguf_string(key);
        pair.extend(value.0.to_le_bytes());
        pair.extend(value.1);
        self.pairs.push(pair);
        self
    }

    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let mut entry = gguf_string(name);
        entry.extend((dims.len() as u32).to_le_bytes());
        entry.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        entry.extend(kind.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    pub fn data(mut self, data: impl Into<Vec<u8>>) -> Self {
        self.data = data.into();
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.n_pairs.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        bytes.extend(self.pairs.concat());
        bytes.extend(self.tensors.concat());
        if !self.tensors.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        }
        bytes.extend(self.data);
        bytes
    }
}

pub fn gguf_string(s: &str) -> Vec<u8> {
    let mut bytes = (s.len() as u64).to_le_bytes().to_vec();
    bytes.extend(s.as_bytes());
    bytes
}

pub fn text(s: &str) -> (u32, Vec<u8>) {
    (8, gguf_string(s))
}

pub fn u32_value(n: u32) -> (u32, Vec<u8>) {
    (4, n.to_le_bytes().to_vec())
}

pub fn bool_value(b: bool) -> (u32, Vec<u8>) {
    (7, vec![b as u8])
}

pub fn array(kind: u32, n: u64, bytes: Vec<u8>) -> (u32, Vec<u8>) {
    let mut value = kind.to_le_bytes().to_vec();
    value.extend(n.to_le_bytes());
    value.extend(bytes);
    (9, value)
}

pub fn string_array<S: AsRef<str>>(strings: &[S]) -> (u32, Vec<u8>) {
    array(8, strings.len() as u64, strings.iter().flat_map(|s| gguf_string(s.as_ref())).collect())
}

pub fn i32_array(values: &[i32]) -> (u32, Vec<u8>) {
    array(5, values.len() as u64, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

pub fn f32_array(values: &[f32]) -> (u32, Vec<u8>) {
    array(6, values.len() as u64, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Every case must be refused with a message that holds the given words, and must not panic.
pub fn assert_refused<T>(cases: Vec<(&str, Vec<u8>, &str)>, open: impl Fn(Vec<u8>) -> Result<T>) {
    for (case, bytes, words) in cases {
        assert!(!words.is_empty(), "{case}: what does it say?");
        match open(bytes) {
            Ok(_) => panic!("{case}: was accepted"),
            Err(e) => assert!(e.to_string().contains(words), "{case}: '{e}' does not say '{words}'"),
        }
    }
}

/// Damages a good file in `rounds` ways (bytes changed, a tail cut off); whatever comes of it, no panic.
pub fn assert_no_panic<T>(good: &[u8], rounds: u32, open: impl Fn(Vec<u8>) -> Result<T>) {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..rounds {
        let mut bytes = good.to_vec();
        for _ in 0..1 + random(3) {
            let at = random(bytes.len());
            bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'9', random(256) as u8][random(8)];
        }
        let _ = open(bytes);
    }
    for len in 0..good.len().min(2000) {
        let _ = open(good[..len].to_vec());
    }
}
