//! What a run is made of: the command line's own words, or those of an earlier run's `run.json`.

use super::train::Args;
use luthier::adapter::{Adapter, Kind};
use luthier::data::{ReadOptions, Records, read_file};
use luthier::session::{DataRecord, RunRecord, Session, flat_sha256};
use luthier::train::TrainOptions;
use luthier::{Error, Result};
use std::path::{Path, PathBuf};

/// What a finished run writes beside its adapter.
pub const RUN: &str = "run.json";

pub struct Recipe {
    pub model: String,
    data: PathBuf,
    pub eval_data: Option<PathBuf>,
    read: ReadOptions,
    pub init_adapter: Option<PathBuf>,
    pub options: TrainOptions,
    /// The last step, where the run that is replayed was stopped early.
    pub until: Option<u64>,
    /// The run that is replayed: its files have to be the same.
    record: Option<RunRecord>,
}

impl Recipe {
    pub fn new(args: &Args) -> Result<Recipe> {
        if let Some(file) = &args.from {
            return Recipe::replay(args, file);
        }
        Ok(Recipe {
            model: args.model.clone().expect("clap asks for it"),
            data: args.data.clone().expect("clap asks for it"),
            eval_data: args.eval_data.clone(),
            read: args.columns.options(),
            init_adapter: args.init_adapter.clone(),
            options: args.options.clone(),
            until: None,
            record: None,
        })
    }

    fn replay(args: &Args, file: &Path) -> Result<Recipe> {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|e| Error::io(&name, e))?;
        let record = RunRecord::parse(&name, &text)?;
        let eval_data = match &record.validation {
            Some(data) => Some(place("eval-data", &args.eval_data, data)?),
            None => None,
        };
        let adapter = record.init_adapter.as_ref().map(|adapter| PathBuf::from(&adapter.name));
        let step = record.results.step;
        Ok(Recipe {
            model: args.model.clone().unwrap_or(record.model.name.clone()),
            data: place("data", &args.data, &record.data)?,
            eval_data,
            read: ReadOptions {
                columns: record.data.columns.clone(),
                skip_bad: record.data.skip_bad,
                ..Default::default()
            },
            init_adapter: args.init_adapter.clone().or(adapter),
            options: record.options.clone(),
            until: Some(step).filter(|step| (1..record.results.steps).contains(step)),
            record: Some(record),
        })
    }

    /// The records of training and validation.
    pub fn read(&self) -> Result<(Records, Option<Records>)> {
        let records = read_file(&self.data, &self.read)?;
        let validation = self.eval_data.as_ref().map(|file| read_file(file, &self.read)).transpose()?;
        if let Some(record) = &self.record {
            record.data.check(&records)?;
            if let (Some(data), Some(records)) = (&record.validation, &validation) {
                data.check(records)?;
            }
        }
        Ok((records, validation))
    }

    pub fn check_model(&self, session: &Session) -> Result<()> {
        let Some(record) = &self.record else { return Ok(()) };
        let here = session.describe_device();
        if here != record.device {
            let digits =
                if here.contains("fp16") == record.device.contains("fp16") { "the last digits" } else { "digits" };
            eprintln!("note: the run was done on {}; on {here} {digits} may differ", record.device);
        }
        record.model.check(&self.model, session.base_sha256())
    }

    /// The adapter to go on from; `given` are the options that were typed, of which its method has to read all.
    pub fn initial(&self, session: &Session, given: &[&str]) -> Result<Option<(Adapter, Vec<f32>)>> {
        let Some(folder) = &self.init_adapter else { return Ok(None) };
        let (lora, flat) = super::open_adapter(folder, session)?;
        if let Some(adapter) = self.record.as_ref().and_then(|record| record.init_adapter.as_ref()) {
            adapter.check(&folder.display().to_string(), &flat_sha256(&flat))?;
        }
        let asked = self.options.method;
        let method = asked.goes_on_as(Kind::of(&*lora.method));
        if given.contains(&"method") && method != asked {
            let what = format!("is {}, and the adapter in '{}' is {}", asked.name(), folder.display(), method.name());
            return Err(Error::setting("method", what, other_method(method)));
        }
        Kind::refuse_unread(&[method], given)?;
        Ok(Some((lora, flat)))
    }
}

/// How to train by another method what an adapter of this one has learned.
fn other_method(method: Kind) -> &'static str {
    match method.merges() {
        true => {
            "leave it out; to train by another method, let luthier merge make a model with the adapter in it, for --model"
        }
        false => "leave it out: the adapter goes on by its own method",
    }
}

/// Where a file of the run is now: as the flag says, else where it was.
fn place(flag: &str, given: &Option<PathBuf>, data: &DataRecord) -> Result<PathBuf> {
    let path = given.clone().unwrap_or(PathBuf::from(&data.name));
    if given.is_some() || path.exists() {
        return Ok(path);
    }
    let what = format!("the run's file '{}' is not here", data.name);
    Err(Error::setting(flag, what, format!("say where it is with --{flag}; its sha256 is {}", data.sha256)))
}
