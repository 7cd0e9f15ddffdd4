//! GGUF v2 and v3: header, typed metadata, tensor infos, aligned data.
//!
//! The caps are far below what the format allows and far above what any model needs; each keeps one lie about a size
//! from becoming an allocation.

use super::checkpoint::{Checkpoint, TensorInfo};
use super::source::Source;
use super::stored::StoredType;
use super::{foreign, malformed, unsupported};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

const MAX_HEADER: u64 = 256 << 20;
const MAX_KEY: u64 = 64 << 10;
const MAX_STRING: u64 = 16 << 20;
const MAX_COUNT: u64 = 64 << 10;
const MAX_ARRAY: u64 = 16 << 20;
const MAX_NAME: u64 = 63;

/// GGUF's value types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    /// In the order of their numbers in the file.
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::Str,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    /// Bytes of a value; None for those that carry their own length.
    pub(super) fn size(self) -> Option<u64> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Str | Kind::Array => None,
        }
    }

    /// One value of a fixed size; the length of `b` was taken from `size`.
    fn decode(self, b: &[u8]) -> Value {
        let mut wide = [0; 8];
        wide[..b.len()].copy_from_slice(b);
        let bits = u64::from_le_bytes(wide);
        match self {
            Kind::I8 => Value::Int(self, bits as i8 as i128),
            Kind::I16 => Value::Int(self, bits as i16 as i128),
            Kind::I32 => Value::Int(self, bits as i32 as i128),
            Kind::I64 => Value::Int(self, bits as i64 as i128),
            Kind::F32 => Value::Float(f32::from_bits(bits as u32) as f64),
            Kind::F64 => Value::Float(f64::from_bits(bits)),
            Kind::Bool => Value::Bool(bits != 0),
            _ => Value::Int(self, bits as i128),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(Kind, i128),
    Float(f64),
    Bool(bool),
    Str(String),
    Strings(Vec<String>),
    /// An array of fixed-size values as it lies in the file.
    Numbers(Kind, Vec<u8>),
}

/// Keys and values.
pub type Metadata = BTreeMap<String, Value>;

#[derive(Clone, Debug)]
pub struct Gguf {
    pub metadata: Metadata,
    pub checkpoint: Checkpoint,
}

impl Gguf {
    pub async fn open(source: Source) -> Result<Gguf> {
        let mut reader = Reader::new(&source);
        let (n_tensors, n_kv) = read_counts(&mut reader).await?;
        let mut metadata = Metadata::new();
        for _ in 0..n_kv {
            let (key, value) = read_pair(&mut reader).await?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(malformed(source.name(), format!("key '{key}'"), "appears twice"));
            }
        }
        refuse_parts(source.name(), &metadata)?;
        let alignment = alignment(source.name(), &metadata)?;
        let mut entries = Vec::new();
        for _ in 0..n_tensors {
            entries.push(read_entry(&mut reader).await?);
        }
        let data = reader.at().next_multiple_of(alignment);
        let checkpoint = place(source, entries, data, alignment)?;
        let gguf = Gguf { metadata, checkpoint };
        gguf.check_sizes()?;
        Ok(gguf)
    }

    pub fn name(&self) -> &str {
        self.checkpoint.name()
    }

    pub fn architecture(&self) -> Result<&str> {
        self.str("general.architecture")
    }

    /// `get` where the key is present: `gguf.optional("general.name", Gguf::str)?`.
    pub fn optional<'a, T>(&'a self, key: &str, get: impl Fn(&'a Self, &str) -> Result<T>) -> Result<Option<T>> {
        if self.metadata.contains_key(key) { get(self, key).map(Some) } else { Ok(None) }
    }

    pub fn str(&self, key: &str) -> Result<&str> {
        self.typed(key, "a string", |value| match value {
            Value::Str(s) => Some(s.as_str()),
            _ => None,
        })
    }

    pub fn u32(&self, key: &str) -> Result<u32> {
        self.typed(key, "a whole number from 0 to 4294967295", |value| match value {
            Value::Int(_, n) => u32::try_from(*n).ok(),
            _ => None,
        })
    }

    pub fn f32(&self, key: &str) -> Result<f32> {
        self.typed(key, "a finite number", |value| match value {
            Value::Float(x) => Some(*x as f32).filter(|x| x.is_finite()),
            _ => None,
        })
    }

    pub fn bool(&self, key: &str) -> Result<bool> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    pub fn strings(&self, key: &str) -> Result<&[String]> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Strings(s) => Some(s.as_slice()),
            _ => None,
        })
    }

    pub fn ints(&self, key: &str) -> Result<Vec<i64>> {
        self.numbers(key, "an array of whole numbers", |value| match value {
            Value::Int(_, n) => i64::try_from(n).ok(),
            Value::Bool(b) => Some(b as i64),
            _ => None,
        })
    }

    pub fn floats(&self, key: &str) -> Result<Vec<f32>> {
        self.numbers(key, "an array of finite numbers", |value| match value {
            Value::Float(x) => Some(x as f32).filter(|x| x.is_finite()),
            _ => None,
        })
    }

    fn numbers<T>(&self, key: &str, wanted: &str, convert: impl Fn(Value) -> Option<T>) -> Result<Vec<T>> {
        self.typed(key, wanted, |value| match value {
            Value::Numbers(kind, bytes) => {
                bytes.chunks_exact(kind.size()? as usize).map(|b| convert(kind.decode(b))).collect()
            }
            _ => None,
        })
    }

    fn typed<'a, T>(&'a self, key: &str, wanted: &str, get: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        let at = || format!("key '{key}'");
        let value = self.metadata.get(key).ok_or_else(|| malformed(self.name(), at(), "is missing"))?;
        get(value).ok_or_else(|| malformed(self.name(), at(), format!("is {}, not {wanted}", shown(value))))
    }

    /// Sizes in the metadata are as hostile as offsets: each is held against the tensors that are really there.
    fn check_sizes(&self) -> Result<()> {
        let mut problems = Vec::new();
        let Some(arch) = self.optional("general.architecture", Gguf::str)? else { return Ok(()) };
        self.check_blocks(arch, &mut problems)?;
        self.check_heads(arch, &mut problems)?;
        self.check_vocabulary(&mut problems)?;
        if problems.is_empty() {
            return Ok(());
        }
        let hint = "the metadata and the tensors do not belong together: download the file again";
        Err(Error::Mismatch { file: self.name().into(), problems, hint: hint.into() })
    }

    fn check_blocks(&self, arch: &str, problems: &mut Vec<String>) -> Result<()> {
        let key = format!("{arch}.block_count");
        let Some(told) = self.optional(&key, Gguf::u32)? else { return Ok(()) };
        let names = self.checkpoint.names();
        let block = |name: &String| name.strip_prefix("blk.")?.split('.').next()?.parse::<u32>().ok();
        let found: BTreeSet<u32> = names.filter_map(block).collect();
        if found.len() as u64 != told as u64 || found.last().is_some_and(|&last| last >= told) {
            problems.push(format!("{key} is {told}, but tensors of {} blocks are there", found.len()));
        }
        Ok(())
    }

    fn check_heads(&self, arch: &str, problems: &mut Vec<String>) -> Result<()> {
        let Some(width) = self.optional(&format!("{arch}.embedding_length"), Gguf::u32)? else { return Ok(()) };
        if let Some(info) = self.checkpoint.tensors.get("token_embd.weight")
            && info.cols() != width as u64
        {
            problems.push(format!("{arch}.embedding_length is {width}, token_embd.weight has rows of {}", info.cols()));
        }
        for name in ["head_count", "head_count_kv"] {
            let key = format!("{arch}.attention.{name}");
            if let Some(Value::Int(_, n)) = self.metadata.get(&key)
                && !(1..=width as i128).contains(n)
            {
                problems.push(format!("{key} is {n}, which cannot be for rows of {width}"));
            }
        }
        Ok(())
    }

    fn check_vocabulary(&self, problems: &mut Vec<String>) -> Result<()> {
        let tokens = self.optional("tokenizer.ggml.tokens", Gguf::strings)?;
        let (Some(tokens), Some(info)) = (tokens, self.checkpoint.tensors.get("token_embd.weight")) else {
            return Ok(());
        };
        if tokens.len() as u64 > info.rows() {
            problems.push(format!("{} tokens, but token_embd.weight has {} rows", tokens.len(), info.rows()));
        }
        Ok(())
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Int(kind, n) => format!("{n} ({kind:?})"),
        Value::Float(x) => format!("{x}"),
        Value::Bool(b) => format!("{b}"),
        Value::Str(s) => format!("the string '{}'", s.chars().take(40).collect::<String>()),
        Value::Strings(s) => format!("an array of {} strings", s.len()),
        Value::Numbers(kind, _) => format!("an array of {kind:?}"),
    }
}

/// Walks through a source in windows that grow, so that a header of 100 bytes and one of 10 MB both take few reads.
struct Reader<'a> {
    source: &'a Source,
    window: Vec<u8>,
    /// Where the window starts in the source, and where we are in the window.
    start: u64,
    pos: usize,
}

impl<'a> Reader<'a> {
    fn new(source: &'a Source) -> Self {
        Reader { source, window: Vec::new(), start: 0, pos: 0 }
    }

    fn at(&self) -> u64 {
        self.start + self.pos as u64
    }

    fn left(&self) -> u64 {
        self.source.len() - self.at()
    }

    fn bad(&self, what: String) -> Error {
        malformed(self.source.name(), format!("byte {}", self.at()), what)
    }

    async fn take(&mut self, n: u64) -> Result<&[u8]> {
        if n > self.left() {
            return Err(self.bad(format!("{n} bytes are announced, but the file ends after {}", self.left())));
        }
        if self.at() + n > MAX_HEADER {
            return Err(self.bad(format!("the header is larger than {MAX_HEADER} bytes")));
        }
        let n = n as usize;
        if self.window.len() - self.pos < n {
            self.refill(n).await?;
        }
        self.pos += n;
        Ok(&self.window[self.pos - n..self.pos])
    }

    async fn refill(&mut self, n: usize) -> Result<()> {
        let grown = (2 * self.window.len()).clamp(64 << 10, 8 << 20).max(n);
        let start = self.at();
        let len = (grown as u64).min(self.source.len() - start) as usize;
        self.window = self.source.read(start, len).await?;
        (self.start, self.pos) = (start, 0);
        Ok(())
    }

    async fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4).await?.try_into().expect("four bytes")))
    }

    async fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8).await?.try_into().expect("eight bytes")))
    }

    async fn string(&mut self, what: &str, max: u64) -> Result<String> {
        let n = self.u64().await?;
        if n > max {
            return Err(self.bad(format!("a {what} of {n} bytes; at most {max} are allowed")));
        }
        let bytes = self.take(n).await?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.bad(format!("a {what} that is not UTF-8")))
    }

    async fn kind(&mut self) -> Result<Kind> {
        let n = self.u32().await?;
        Kind::ALL.get(n as usize).copied().ok_or_else(|| self.bad(format!("value type {n} does not exist")))
    }
}

/// The numbers of tensors and of metadata pairs.
async fn read_counts(reader: &mut Reader<'_>) -> Result<(u64, u64)> {
    let name = reader.source.name();
    let head = reader.source.read(0, reader.source.len().min(32) as usize).await?;
    if !head.starts_with(b"GGUF") {
        return Err(match foreign(&head) {
            Some((what, hint)) => unsupported(name, format!("not GGUF but {what}"), hint),
            None => malformed(name, "byte 0", format!("no GGUF file ({} bytes, wrong magic)", reader.source.len())),
        });
    }
    reader.take(4).await?;
    let version = reader.u32().await?;
    if version.swap_bytes() == 2 || version.swap_bytes() == 3 {
        return Err(unsupported(name, "a big-endian GGUF file", "convert it again for a little-endian machine"));
    }
    if !(2..=3).contains(&version) {
        let what = format!("GGUF version {version}; versions 2 and 3 are read");
        return Err(unsupported(name, what, "convert it again with a current llama.cpp"));
    }
    let (tensors, pairs) = (reader.u64().await?, reader.u64().await?);
    for (n, what) in [(tensors, "tensors"), (pairs, "metadata pairs")] {
        if n > MAX_COUNT {
            return Err(reader.bad(format!("{n} {what}; at most {MAX_COUNT} are allowed")));
        }
    }
    Ok((tensors, pairs))
}

async fn read_pair(reader: &mut Reader<'_>) -> Result<(String, Value)> {
    let key = reader.string("key", MAX_KEY).await?;
    if key.is_empty() {
        return Err(reader.bad("an empty key".into()));
    }
    let value = match reader.kind().await? {
        Kind::Str => Value::Str(reader.string("string", MAX_STRING).await?),
        Kind::Array => read_array(reader).await?,
        kind => kind.decode(reader.take(kind.size().expect("a fixed size")).await?),
    };
    Ok((key, value))
}

async fn read_array(reader: &mut Reader<'_>) -> Result<Value> {
    let kind = reader.kind().await?;
    let n = reader.u64().await?;
    if n > MAX_ARRAY {
        return Err(reader.bad(format!("an array of {n} values; at most {MAX_ARRAY} are allowed")));
    }
    if let Some(size) = kind.size() {
        return Ok(Value::Numbers(kind, reader.take(n * size).await?.to_vec()));
    }
    if kind == Kind::Array {
        return Err(reader.bad("an array of arrays".into()));
    }
    // A string takes 8 bytes at least, so the file's length bounds the allocation.
    let mut strings = Vec::with_capacity(n.min(reader.left() / 8) as usize);
    for _ in 0..n {
        strings.push(reader.string("string", MAX_STRING).await?);
    }
    Ok(Value::Strings(strings))
}

/// Large models come split over files that make sense only together.
fn refuse_parts(file: &str, metadata: &Metadata) -> Result<()> {
    match metadata.get("split.count") {
        Some(Value::Int(_, n)) if *n > 1 => {
            Err(unsupported(file, format!("one of {n} parts of a model"), "join them: `llama-gguf-split --merge`"))
        }
        _ => Ok(()),
    }
}

fn alignment(file: &str, metadata: &Metadata) -> Result<u64> {
    let key = "general.alignment";
    match metadata.get(key) {
        None => Ok(32),
        Some(Value::Int(Kind::U32, n)) if *n > 0 && (*n as u64).is_power_of_two() => Ok(*n as u64),
        Some(other) => {
            let what = format!("is {}, not a power of two (U32)", shown(other));
            Err(malformed(file, format!("key '{key}'"), what))
        }
    }
}

/// A tensor as the header tells it.
struct Entry {
    name: String,
    /// ggml's order: innermost first.
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

async fn read_entry(reader: &mut Reader<'_>) -> Result<Entry> {
    let name = reader.string("tensor name", MAX_NAME).await?;
    let n_dims = reader.u32().await?;
    if n_dims > 4 {
        return Err(reader.bad(format!("tensor '{name}' has {n_dims} dimensions; at most 4 are allowed")));
    }
    let mut dims = Vec::new();
    for _ in 0..n_dims {
        dims.push(reader.u64().await?);
    }
    Ok(Entry { name, dims, kind: reader.u32().await?, offset: reader.u64().await? })
}

/// Name, values and bytes of a block of ggml's type `kind`; those that are read carry their `StoredType`.
fn ggml_type(kind: u32) -> Option<(&'static str, u64, u64, Option<StoredType>)> {
    let known = |t: StoredType| Some((t.name(), t.block_values(), t.block_bytes(), Some(t)));
    let other = |name, values, bytes| Some((name, values, bytes, None));
    match kind {
        0 => known(StoredType::F32),
        1 => known(StoredType::F16),
        2 => known(StoredType::Q4_0),
        3 => known(StoredType::Q4_1),
        6 => known(StoredType::Q5_0),
        7 => known(StoredType::Q5_1),
        8 => known(StoredType::Q8_0),
        10 => other("Q2_K", 256, 84),
        11 => other("Q3_K", 256, 110),
        12 => known(StoredType::Q4_K),
        13 => other("Q5_K", 256, 176),
        14 => known(StoredType::Q6_K),
        16 => other("IQ2_XXS", 256, 66),
        17 => other("IQ2_XS", 256, 74),
        18 => other("IQ3_XXS", 256, 98),
        19 => other("IQ1_S", 256, 50),
        20 => other("IQ4_NL", 32, 18),
        21 => other("IQ3_S", 256, 110),
        22 => other("IQ2_S", 256, 82),
        23 => other("IQ4_XS", 256, 136),
        24 => other("I8", 1, 1),
        25 => other("I16", 1, 2),
        26 => other("I32", 1, 4),
        27 => other("I64", 1, 8),
        28 => other("F64", 1, 8),
        29 => other("IQ1_M", 256, 56),
        30 => known(StoredType::BF16),
        34 => other("TQ1_0", 256, 54),
        35 => other("TQ2_0", 256, 66),
        39 => other("MXFP4", 32, 17),
        40 => other("NVFP4", 64, 36),
        _ => None,
    }
}

/// The inverse: the number of a type that is read.
pub(super) fn ggml_number(stored: StoredType) -> u32 {
    let is = |kind: &u32| ggml_type(*kind).is_some_and(|(.., known)| known == Some(stored));
    (0..64).find(is).expect("every type that is read has a number")
}

/// Gives every tensor its place; the data must follow one another, padded, exactly as llama.cpp demands.
fn place(source: Source, entries: Vec<Entry>, data: u64, alignment: u64) -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint::default();
    let mut next = 0u64;
    for entry in entries {
        let bad = |what: String| malformed(source.name(), format!("tensor '{}'", entry.name), what);
        let Some((kind, values, block, stored)) = ggml_type(entry.kind) else {
            return Err(bad(format!("type {} does not exist", entry.kind)));
        };
        let bytes = tensor_bytes(&entry.dims, values, block).map_err(|what| bad(format!("{kind}: {what}")))?;
        if entry.offset != next {
            return Err(bad(format!("its data start at {}, expected {next} (alignment {alignment})", entry.offset)));
        }
        let end = next.checked_add(bytes).ok_or_else(|| bad("its end is beyond 2^64 bytes".into()))?;
        if data.checked_add(end).is_none_or(|end| end > source.len()) {
            let have = source.len().saturating_sub(data);
            return Err(bad(format!("its data end at {end}, the file's at {have}: truncated")));
        }
        next = end.next_multiple_of(alignment);
        let duplicate = match stored {
            Some(stored) => {
                let shape = entry.dims.iter().rev().copied().collect();
                let (name, offset) = (entry.name.clone(), data + entry.offset);
                let info = TensorInfo { name: name.clone(), stored, shape, source: 0, offset, bytes };
                checkpoint.tensors.insert(name, info).is_some()
            }
            None => checkpoint.refused.insert(entry.name.clone(), kind.into()).is_some(),
        };
        let both = checkpoint.tensors.contains_key(&entry.name) && checkpoint.refused.contains_key(&entry.name);
        if duplicate || both {
            return Err(bad("appears twice".into()));
        }
    }
    checkpoint.sources.push(source);
    Ok(checkpoint)
}

fn tensor_bytes(dims: &[u64], values: u64, block: u64) -> std::result::Result<u64, String> {
    if dims.contains(&0) {
        return Err(format!("shape {dims:?} is empty"));
    }
    if !dims.first().unwrap_or(&1).is_multiple_of(values) {
        return Err(format!("rows of {} values are not whole blocks of {values}", dims.first().unwrap_or(&1)));
    }
    let n = dims.iter().try_fold(1u64, |n, &extent| n.checked_mul(extent));
    n.and_then(|n| (n / values).checked_mul(block)).ok_or_else(|| format!("shape {dims:?} is impossibly large"))
}
