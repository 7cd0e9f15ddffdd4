//! What a run was, so that it can be run again: `run.json`.

use super::Best;
use crate::data::{ColumnMap, Records};
use crate::error::{Error, Result};
use crate::train::TrainOptions;
use serde::{Deserialize, Serialize};

/// A run by its model, data and options. Enough to replay it to the same bits on the same kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The version that ran it.
    pub luthier: String,
    pub model: ModelRecord,
    pub data: DataRecord,
    pub validation: Option<DataRecord>,
    /// The adapter it went on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<ModelRecord>,
    pub device: String,
    pub options: TrainOptions,
    pub results: Results,
}

/// A model or an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    pub name: String,
    /// Of the configuration and all weights as they lie on the device; of an adapter's numbers.
    pub sha256: String,
}

/// A data file and how it was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataRecord {
    pub name: String,
    pub sha256: String,
    #[serde(default)]
    pub columns: ColumnMap,
    #[serde(default)]
    pub skip_bad: bool,
}

impl DataRecord {
    pub fn new(records: &Records) -> DataRecord {
        let Records { file, sha256, columns, skip_bad, .. } = records;
        DataRecord { name: file.clone(), sha256: sha256.clone(), columns: columns.clone(), skip_bad: *skip_bad }
    }

    /// Refuses other data than the run's.
    pub fn check(&self, records: &Records) -> Result<()> {
        let what = format!("sha256 {}, the run's data ({}) have {}", records.sha256, self.name, self.sha256);
        same(&records.file, &records.sha256, &self.sha256, what)
    }
}

impl ModelRecord {
    /// Refuses another model than the run's; `sha256` is that of the model at hand.
    pub fn check(&self, name: &str, sha256: &str) -> Result<()> {
        let what = format!("has sha256 {sha256}, the run's ({}) has {}", self.name, self.sha256);
        same(name, sha256, &self.sha256, what)
    }
}

fn same(file: &str, found: &str, wanted: &str, what: String) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let hint = "a replay needs the very model and data of the run";
    Err(Error::Mismatch { file: file.into(), problems: vec![what], hint: hint.into() })
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Steps done, and planned.
    pub step: u64,
    pub steps: u64,
    /// The validation whose adapter was kept.
    pub best: Option<Best>,
}

impl RunRecord {
    pub fn parse(file: &str, text: &str) -> Result<RunRecord> {
        serde_json::from_str(text).map_err(|e| Error::Malformed {
            file: file.into(),
            at: format!("line {}", e.line()),
            what: format!("no record of a run: {e}"),
            hint: "name the run.json that a finished run wrote".into(),
        })
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data") + "\n"
    }
}
