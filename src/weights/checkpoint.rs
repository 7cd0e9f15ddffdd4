//! Named tensors over sources, read row by row.

use super::source::Source;
use super::stored::{self, StoredType};
use super::{malformed, unsupported};
use crate::format::WeightFormat;
use crate::{Error, Result};
use std::collections::{BTreeMap, HashSet};

const UNFIT: &str = "the weights and the configuration do not belong together, or the download is incomplete";

#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    pub stored: StoredType,
    /// Row-major, outermost first, whichever file it is from.
    pub shape: Vec<u64>,
    /// Index into `Checkpoint::sources`.
    pub source: usize,
    /// From the start of the source.
    pub offset: u64,
    pub bytes: u64,
}

impl TensorInfo {
    /// Values in a row: the innermost extent.
    pub fn cols(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// All the other extents together; a vector is one row.
    pub fn rows(&self) -> u64 {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }
}

#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    pub sources: Vec<Source>,
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Tensors whose type is not read: name -> type. An error only for those who ask for one.
    pub refused: BTreeMap<String, String>,
    /// safetensors' `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// What error messages call this checkpoint.
    pub fn name(&self) -> &str {
        self.sources.first().map_or("checkpoint", Source::name)
    }

    /// Names of all tensors, also of those whose type is not read.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys().chain(self.refused.keys())
    }

    /// Whether there is such a tensor. One whose type is not read is there, too: it must not be taken for absent.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.refused.contains_key(name)
    }

    pub fn get(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| match self.refused.get(name) {
            Some(kind) => {
                let known = StoredType::ALL.map(StoredType::name).join(", ");
                unsupported(self.name(), format!("tensor '{name}' is {kind}"), format!("convert it to one of {known}"))
            }
            None => self.mismatch(vec![format!("tensor '{name}' is missing")], UNFIT),
        })
    }

    /// Checks that every wanted tensor is there in its shape; says all that is wrong at once.
    pub fn expect(&self, wanted: impl IntoIterator<Item = (String, Vec<u64>)>) -> Result<()> {
        let (mut problems, mut hint) = (Vec::new(), UNFIT.to_string());
        for (name, shape) in wanted {
            match self.get(&name) {
                Ok(info) if info.shape == shape => {}
                Ok(info) => problems.push(format!("tensor '{name}' has shape {:?}, not {shape:?}", info.shape)),
                Err(Error::Unsupported { what, hint: convert, .. }) => {
                    problems.push(what);
                    hint = convert;
                }
                Err(_) => problems.push(format!("tensor '{name}' is missing")),
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(self.mismatch(problems, hint)) }
    }

    /// Refuses tensors that `matter` and are not `known`: a model without a part of its own is another model.
    pub fn expect_no_more(&self, known: &[String], matter: impl Fn(&str) -> bool, hint: &str) -> Result<()> {
        let known: HashSet<&String> = known.iter().collect();
        let unread = self.names().filter(|name| matter(name) && !known.contains(name));
        let problems: Vec<String> = unread.map(|name| format!("tensor '{name}' would be left out")).collect();
        if problems.is_empty() { Ok(()) } else { Err(self.mismatch(problems, hint)) }
    }

    fn mismatch(&self, problems: Vec<String>, hint: impl Into<String>) -> Error {
        Error::Mismatch { file: self.name().into(), problems, hint: hint.into() }
    }

    /// Rows `row0 .. row0 + rows`, packed as `src/format.rs` says.
    pub async fn read_rows(&self, info: &TensorInfo, row0: u64, rows: u64, format: WeightFormat) -> Result<Vec<u32>> {
        if !info.cols().is_multiple_of(format.granule() as u64) {
            let what = format!("tensor '{}' has rows of {} values", info.name, info.cols());
            let hint = format!("{} needs a multiple of {}", format.name(), format.granule());
            return Err(unsupported(self.name(), what, hint));
        }
        let bytes = self.row_bytes(info, row0, rows).await?;
        stored::to_words(info.stored, &bytes, format).map_err(|e| self.bad_value(info, row0 * info.cols(), e))
    }

    /// The whole tensor as f32.
    pub async fn read_f32(&self, info: &TensorInfo) -> Result<Vec<f32>> {
        self.read_rows_f32(info, 0, info.rows()).await
    }

    /// Rows `row0 .. row0 + rows` as f32.
    pub async fn read_rows_f32(&self, info: &TensorInfo, row0: u64, rows: u64) -> Result<Vec<f32>> {
        let bytes = self.row_bytes(info, row0, rows).await?;
        stored::to_f32(info.stored, &bytes).map_err(|e| self.bad_value(info, row0 * info.cols(), e))
    }

    /// `info.bytes` was checked against the source when it was opened, so a range inside the tensor is inside the file.
    async fn row_bytes(&self, info: &TensorInfo, row0: u64, rows: u64) -> Result<Vec<u8>> {
        let end = row0.checked_add(rows).filter(|end| *end <= info.rows());
        assert!(end.is_some(), "rows {row0} + {rows} of '{}', which has {}", info.name, info.rows());
        let row = info.cols() / info.stored.block_values() * info.stored.block_bytes();
        let len = usize::try_from(rows * row).ok().filter(|len| *len <= isize::MAX as usize);
        let Some(len) = len else {
            let what = format!("tensor '{}' is too large to be read in one piece ({} bytes)", info.name, rows * row);
            return Err(unsupported(self.name(), what, "use the command line, which has a 64-bit address space"));
        };
        self.sources[info.source].read(info.offset + row0 * row, len).await
    }

    fn bad_value(&self, info: &TensorInfo, first: u64, (index, what): (u64, String)) -> Error {
        let file = self.sources[info.source].name();
        malformed(file, format!("tensor '{}'", info.name), format!("value {}: {what}", first + index))
    }
}
