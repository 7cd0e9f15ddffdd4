//! safetensors: a u64 length, a JSON header, the bytes.
//!
//! The header is checked here rather than by `SafeTensors::read_metadata`: that one wants the whole file in memory,
//! counts in usize (wasm32: no file above 4 GiB) and lets duplicate keys pass. Its types and its writer are used.

use super::checkpoint::{Checkpoint, TensorInfo};
use super::source::Source;
use super::stored::StoredType;
use super::{foreign, malformed, unsupported};
use crate::{Error, Result};
use ::safetensors::tensor::{Dtype, TensorView};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, HashMap};

const MAX_HEADER: u64 = 100_000_000;
const MAX_INDEX: u64 = 64 << 20;

/// A tensor's own entry in the header.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    /// A map by hand, because two readers that disagree on which of two equal keys counts see two different models.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut has_metadata = false;
        while let Some(key) = map.next_key::<String>()? {
            let duplicate = if key == "__metadata__" {
                // MLX writes null where there are none.
                header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                std::mem::replace(&mut has_metadata, true)
            } else {
                header.tensors.insert(key.clone(), map.next_value()?).is_some()
            };
            if duplicate {
                return Err(A::Error::custom(format!("duplicate key '{key}'")));
            }
        }
        Ok(header)
    }
}

/// Opens one file, or shards with the text of their `model.safetensors.index.json`.
pub async fn open(sources: Vec<Source>, index: Option<&Source>) -> Result<Checkpoint> {
    let index = match index {
        Some(index) => Some((index.name(), read_index(index).await?)),
        None => None,
    };
    let mut checkpoint = Checkpoint::default();
    let mut problems = Vec::new();
    for source in sources {
        let listed = index.as_ref().is_none_or(|(_, map)| map.values().any(|file| file == source.file_name()));
        if listed {
            add_file(&mut checkpoint, source, &mut problems).await?;
        }
    }
    if let Some((name, map)) = &index {
        find_missing(&checkpoint, map, &mut problems);
        checkpoint_or(problems, name, checkpoint)
    } else {
        let name = checkpoint.name().to_string();
        checkpoint_or(problems, &name, checkpoint)
    }
}

fn checkpoint_or(problems: Vec<String>, file: &str, checkpoint: Checkpoint) -> Result<Checkpoint> {
    if problems.is_empty() {
        return Ok(checkpoint);
    }
    let hint = "all shards of one download must lie side by side: fetch what is missing";
    Err(Error::Mismatch { file: file.into(), problems, hint: hint.into() })
}

/// tensor name -> shard file.
async fn read_index(index: &Source) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = index.text(MAX_INDEX).await?;
    let parsed: Index = serde_json::from_str(&text)
        .map_err(|e| malformed(index.name(), format!("line {}", e.line()), format!("not a shard index: {e}")))?;
    match parsed.weight_map.values().find(|file| file.contains(['/', '\\'])) {
        Some(file) => Err(malformed(index.name(), "weight_map", format!("'{file}' is not a plain file name"))),
        None => Ok(parsed.weight_map),
    }
}

fn find_missing(checkpoint: &Checkpoint, map: &BTreeMap<String, String>, problems: &mut Vec<String>) {
    let have = |file: &str| checkpoint.sources.iter().any(|s| s.file_name() == file);
    let mut shards: Vec<&String> = map.values().filter(|file| !have(file)).collect();
    shards.sort();
    shards.dedup();
    problems.extend(shards.iter().map(|file| format!("shard '{file}' is missing")));
    for (tensor, file) in map.iter().filter(|(_, file)| have(file)) {
        if !checkpoint.has(tensor) {
            problems.push(format!("tensor '{tensor}' is not in '{file}'"));
        }
    }
}

async fn add_file(checkpoint: &mut Checkpoint, source: Source, problems: &mut Vec<String>) -> Result<()> {
    let (header, data) = read_header(&source).await?;
    check_offsets(source.name(), &header.tensors, source.len() - data)?;
    let index = checkpoint.sources.len();
    for (name, entry) in header.tensors {
        if checkpoint.has(&name) {
            problems.push(format!("tensor '{name}' is in two shards, also in '{}'", source.file_name()));
            continue;
        }
        let (start, end) = entry.data_offsets;
        let Some(stored) = stored_type(entry.dtype) else {
            checkpoint.refused.insert(name, entry.dtype.to_string());
            continue;
        };
        let (shape, offset, bytes) = (entry.shape, data + start, end - start);
        checkpoint.tensors.insert(name.clone(), TensorInfo { name, stored, shape, source: index, offset, bytes });
    }
    checkpoint.metadata.extend(header.metadata);
    checkpoint.sources.push(source);
    Ok(())
}

fn stored_type(dtype: Dtype) -> Option<StoredType> {
    match dtype {
        Dtype::F32 => Some(StoredType::F32),
        Dtype::F16 => Some(StoredType::F16),
        Dtype::BF16 => Some(StoredType::BF16),
        _ => None,
    }
}

/// The header, and where the data start.
async fn read_header(source: &Source) -> Result<(Header, u64)> {
    let head = source.read(0, source.len().min(32) as usize).await?;
    let length = |what: String| match foreign(&head) {
        Some((what, hint)) => unsupported(source.name(), format!("not safetensors but {what}"), hint),
        None => malformed(source.name(), "header length", what),
    };
    if head.len() < 8 {
        return Err(length(format!("a file of {} bytes is too small for safetensors", head.len())));
    }
    let n = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
    if n > MAX_HEADER {
        return Err(length(format!("{n} bytes; at most {MAX_HEADER} are allowed")));
    }
    if n > source.len() - 8 {
        return Err(length(format!("{n} bytes, but only {} follow", source.len() - 8)));
    }
    if n < 2 || head[8] != b'{' {
        return Err(length(format!("the header of {n} bytes does not start with '{{'")));
    }
    let json = source.read(8, n as usize).await?;
    let header = serde_json::from_slice(&json).map_err(|e| malformed(source.name(), "header", e.to_string()))?;
    Ok((header, 8 + n))
}

/// The tensors must cover the data from the first byte to the last: no hole, no overlap, sizes as the shapes say.
fn check_offsets(file: &str, tensors: &BTreeMap<String, Entry>, len: u64) -> Result<()> {
    let mut order: Vec<(&String, &Entry)> = tensors.iter().collect();
    order.sort_by_key(|(_, e)| e.data_offsets);
    let mut at = 0;
    for (name, entry) in order {
        let bad = |what: String| malformed(file, format!("tensor '{name}'"), what);
        let (start, end) = entry.data_offsets;
        if start > end {
            return Err(bad(format!("ends at {end}, before its start {start}")));
        }
        if start != at {
            let what = if start < at { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(bad(format!("{what}: starts at {start}, expected {at}")));
        }
        let Some(bytes) = entry_bytes(entry) else {
            return Err(bad(format!("shape {:?} of {} is impossibly large", entry.shape, entry.dtype)));
        };
        if bytes != end - start {
            let (shape, dtype) = (&entry.shape, entry.dtype);
            return Err(bad(format!(
                "shape {shape:?} of {dtype} needs {bytes} bytes, its offsets hold {}",
                end - start
            )));
        }
        at = end;
    }
    if at != len {
        return Err(malformed(file, "data", format!("the tensors end at {at}, the data at {len}")));
    }
    Ok(())
}

/// None where the product overflows or does not fill whole bytes.
fn entry_bytes(entry: &Entry) -> Option<u64> {
    let values = entry.shape.iter().try_fold(1u64, |n, &extent| n.checked_mul(extent))?;
    let bits = values.checked_mul(entry.dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// A tensor to write: name, shape, values.
pub type Named = (String, Vec<u64>, Vec<f32>);

/// The bytes of a file of f32 tensors, with `{"format": "pt"}` and `metadata` in its header.
pub fn to_bytes(tensors: &[Named], metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let shape = |shape: &[u64]| shape.iter().map(|&extent| extent as usize).collect();
    let tensor = |(name, extents, values): &Named| Tensor { shape: shape(extents), ..Tensor::floats(name, values) };
    write(&tensors.iter().map(tensor).collect::<Vec<_>>(), metadata)
}

/// A tensor as it lies in a file: floats, or words that are no weight.
pub struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    pub fn floats(name: &str, values: &[f32]) -> Tensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor { name: name.into(), dtype: Dtype::F32, shape: vec![values.len()], bytes }
    }

    /// Rows of `cols` words.
    pub fn words(name: &str, cols: usize, words: &[u32]) -> Tensor {
        let bytes = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        Tensor { name: name.into(), dtype: Dtype::U32, shape: vec![words.len() / cols, cols], bytes }
    }
}

/// The tensors of words in a file, by name: [`open`] passes over them.
pub fn words(file: &[u8]) -> Result<BTreeMap<String, Vec<u32>>> {
    let file = ::safetensors::SafeTensors::deserialize(file)
        .map_err(|e| malformed("safetensors", "reading", e.to_string()))?;
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let words = file.iter().filter(|(_, tensor)| tensor.dtype() == Dtype::U32);
    Ok(words.map(|(name, tensor)| (name.into(), tensor.data().chunks_exact(4).map(word).collect())).collect())
}

/// The bytes of a file, as [`to_bytes`] makes it.
pub fn write(tensors: &[Tensor], metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let failed = |e: ::safetensors::SafeTensorError| malformed("safetensors", "writing", e.to_string());
    let mut views = Vec::new();
    for Tensor { name, dtype, shape, bytes } in tensors {
        views.push((name, TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?));
    }
    let pairs = [("format", "pt")].iter().chain(metadata).map(|(k, v)| (k.to_string(), v.to_string()));
    let mut file = ::safetensors::serialize(views, Some(pairs.collect::<HashMap<_, _>>())).map_err(failed)?;
    sort_metadata(&mut file);
    Ok(file)
}

/// The crate writes `__metadata__` in the order of a hash map, anew in every process; sorted, the same tensors give the
/// same bytes. The header keeps its length.
fn sort_metadata(file: &mut [u8]) {
    let length: [u8; 8] = file[..8].try_into().expect("a written file has a header");
    let header = &mut file[8..8 + u64::from_le_bytes(length) as usize];
    let mut json: serde_json::Value = serde_json::from_slice(header).expect("a written header is JSON");
    if let Some(metadata) = json["__metadata__"].as_object_mut() {
        metadata.sort_keys();
    }
    let sorted = json.to_string().into_bytes();
    assert!(sorted.len() <= header.len(), "{} bytes of header became {}", header.len(), sorted.len());
    header.fill(b' ');
    header[..sorted.len()].copy_from_slice(&sorted);
}
