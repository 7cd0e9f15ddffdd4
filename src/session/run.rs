//! A training run of a session: what it would be, what it is, and where it stands.

use super::{DataRecord, ModelRecord, Offer, Results, RunRecord, Session};
use crate::adapter::{Adapter, Kind};
use crate::data::{Batches, Dataset, PackOptions, Records, Split, Stats, split};
use crate::digest::sha256;
use crate::error::{Error, Result};
use crate::model::load::Opened;
use crate::model::seam::virtual_ids;
use crate::model::{Base, ModelSpec};
use crate::train::planned::Planned;
use crate::train::{
    Checkpoint, Deal, Evaluation, Identity, MemoryPlan, StepReport, TrainOptions, Trainer, Work, check_tokens,
    checkpoint, planned,
};
use serde::{Deserialize, Serialize};

/// What a run is about to do, for people and programs.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub device: String,
    pub examples: usize,
    pub validation_examples: usize,
    /// Records left out because the reader or the template could not use them, where that was asked for.
    pub skipped: u64,
    pub truncated: usize,
    /// Of the truncated, those that lost tokens to be learned.
    pub lost_targets: usize,
    /// Examples with nothing to learn, which are passed over.
    pub without_targets: usize,
    pub duplicates: usize,
    pub tokens: usize,
    pub supervised_tokens: usize,
    pub rows: usize,
    pub steps: u64,
    pub trainable_parameters: u64,
    /// Of the trainable, those that stand in place of none of the base's.
    pub added_parameters: u64,
    /// Of the base.
    pub parameters: u64,
    /// Before each text; the tokens of a row do not count them.
    pub virtual_tokens: usize,
    /// Those that each step is dealt to.
    pub workers: usize,
    pub memory: MemoryPlan,
    /// What to do where memory is short: what the run could do with less of, or else another model.
    pub lower: String,
}

impl Summary {
    /// Of the base with the adapter.
    pub fn all_parameters(&self) -> u64 {
        self.parameters + self.added_parameters
    }

    /// The line PEFT prints.
    pub fn trainable(&self) -> String {
        let all = self.all_parameters();
        let percent = 100.0 * self.trainable_parameters as f64 / all as f64;
        format!(
            "trainable params: {} || all params: {} || trainable%: {percent:.4}",
            grouped(self.trainable_parameters),
            grouped(all)
        )
    }
}

/// The best validation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub loss: f64,
    pub step: u64,
}

/// An adapter to go on from, where there is one, with its values.
type Initial = Option<(Adapter, Vec<f32>)>;

/// What a run starts from, before anything is allocated.
struct Start {
    adapter: Adapter,
    planned: Planned,
    /// As given, with the number of workers that it came to.
    options: TrainOptions,
    /// The values to go on from, where there are some.
    flat: Option<Vec<f32>>,
    /// Counts of all records, before a part was held out.
    given: Stats,
    train: Dataset,
    batches: Batches,
    held_out: Option<Dataset>,
    validation: Option<Batches>,
}

/// A number for people: 1,369,728.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|c| std::str::from_utf8(c).expect("digits")).collect();
    groups.join(",")
}

/// SHA-256 of an adapter's numbers.
pub fn flat_sha256(flat: &[f32]) -> String {
    sha256(bytemuck::cast_slice(flat))
}

/// The options of a run that goes on from an adapter: its method is that of the adapter, and so is the usual learning
/// rate.
fn going_on(options: TrainOptions, initial: Initial, spec: &ModelSpec) -> Result<(TrainOptions, Initial)> {
    let Some((adapter, flat)) = initial else { return Ok((options, None)) };
    let adapter = options.method.go_on(adapter, spec, &options.settings()?)?;
    Ok((TrainOptions { method: Kind::of(&*adapter.method), ..options }, Some((adapter, flat))))
}

fn no_run() -> Error {
    Error::setting("train", "no run was started", "start one first")
}

/// What of a run is dealt to several workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dealt {
    Step,
    Validation,
}

impl Dealt {
    fn work(self, validation: &Option<Batches>) -> Result<Work<'_>> {
        let nothing =
            || Error::setting("validate", "this run has no validation data", "give some, or a --val-fraction");
        match self {
            Dealt::Step => Ok(Work::Step),
            Dealt::Validation => validation.as_ref().map(Work::Evaluation).ok_or_else(nothing),
        }
    }
}

impl Session {
    /// What a run would be; nothing is allocated.
    pub fn estimate(
        &self,
        records: &Records,
        validation: Option<&Records>,
        options: &TrainOptions,
        initial: Initial,
    ) -> Result<Summary> {
        let (options, initial) = going_on(options.clone(), initial, self.spec())?;
        Ok(self.summary(&self.prepare_run(records, validation, options, initial)?))
    }

    /// Encodes, splits, plans memory, allocates. `initial` continues an adapter instead of starting from PEFT's init;
    /// a checkpoint of this very run goes on where that one was.
    pub async fn start_training(
        &mut self,
        records: &Records,
        validation: Option<&Records>,
        options: TrainOptions,
        initial: Initial,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Summary> {
        if self.trainer.is_some() {
            let hint = "open the model anew for another run";
            return Err(Error::setting("train", "this session has trained already", hint));
        }
        let (options, initial) = going_on(options, initial, self.spec())?;
        let continued = initial.as_ref().map(|(_, flat)| flat_sha256(flat));
        let start = self.prepare_run(records, validation, options, initial)?;
        let examples = [Some(&start.train), start.held_out.as_ref()];
        let layout = start.adapter.layout();
        let identity = Identity::new(&self.base.sha256, layout, [Some(records), validation], examples, &start.options);
        checkpoint.as_ref().map_or(Ok(()), |c| identity.check(c))?;
        let summary = self.summary(&start);
        let mut record = self.record(records, validation, &summary, &start.options);
        record.init_adapter = continued.map(|sha256| ModelRecord { name: "adapter".into(), sha256 });
        let Start { adapter, planned, options, flat, batches, validation, .. } = start;
        let flat = match flat {
            Some(flat) => flat,
            None => {
                let encode = |text: &str| self.tokenizer.encode(text, false);
                adapter.start(options.seed, &Opened::new(&self.files).await?, encode).await?
            }
        };
        let mut trainer = Trainer::planned(&mut self.base, planned, adapter, flat, batches, options).await?;
        if let Some(checkpoint) = checkpoint {
            trainer.restore(&mut self.base, checkpoint.state);
        }
        self.run = Some((identity, record));
        self.validation = validation;
        self.set_adapter(trainer.adapter.clone(), trainer.patches.clone());
        self.trainer = Some(trainer);
        Ok(summary)
    }

    fn prepare_run(
        &self,
        records: &Records,
        validation: Option<&Records>,
        options: TrainOptions,
        initial: Initial,
    ) -> Result<Start> {
        options.check()?;
        let all = self.encode(records, options.seq_len)?;
        let given = all.stats;
        let (train, held_out) = match validation {
            Some(records) => (all, Some(self.encode(records, options.seq_len)?)),
            None if options.val_fraction > 0.0 && all.examples.len() >= 10 => {
                let (train, held_out) = split(&all, Split::Fraction(options.val_fraction), options.seed)?;
                (train, Some(held_out).filter(|d| d.examples.iter().any(|e| e.targets() > 0)))
            }
            None => (all, None),
        };
        let (adapter, flat) = match initial {
            Some((adapter, flat)) => (adapter, Some(flat)),
            None => (options.method.adapter(self.spec(), &options.settings()?)?, None),
        };
        let before = virtual_ids(adapter.method.virtual_tokens());
        self.check_length(options.seq_len, before.len())?;
        let t = planned::row_len(&adapter, &options);
        check_tokens(options.batch_size, t)?;
        let (planned, options) = self.plan_run(&adapter, options)?;
        let packed = |data: &Dataset, b: usize, shuffle: bool| {
            let packing = !options.no_packing;
            Batches::new(&data.prefixed(&before), PackOptions { b, t, packing, shuffle, seed: options.seed })
        };
        let batches = packed(&train, options.batch_size, !options.no_shuffle)?;
        // The buffers have room for a part.
        let part = Deal::of(&options).rows;
        let validation = held_out.as_ref().map(|d| packed(d, part, false)).transpose()?;
        Ok(Start { adapter, planned, options, flat, given, train, batches, held_out, validation })
    }

    /// Plans a run for the workers that it asks for, or for as many of those offered as fit. Only the number that came
    /// of it is left in the options, where there is more than one: runs with the same options give the same bits.
    fn plan_run(&self, adapter: &Adapter, options: TrainOptions) -> Result<(Planned, TrainOptions)> {
        let among = |workers: usize, gib: f64| {
            let workers = Deal::among(workers, &options).workers;
            let options = TrainOptions { workers: Some(workers).filter(|n| *n > 1), ..options.clone() };
            // Nobody else may be there to hold a copy: then the shares are computed one after the other.
            let holders = if self.offered.is_some() { workers } else { 1 };
            let memory_gib = if holders > 1 { gib } else { options.memory_gib };
            let bounded = TrainOptions { memory_gib, ..options.clone() };
            planned::plan_for(&self.base, adapter, &bounded, holders).map(|planned| (planned, options))
        };
        let Offer { workers, gib } = self.offered.unwrap_or(Offer { workers: 1, gib: options.memory_gib });
        let gib = gib.min(options.memory_gib);
        match options.workers {
            Some(asked) => among(asked, gib).or_else(|_| among(asked, options.memory_gib)),
            None => (2..=workers).rev().find_map(|workers| among(workers, gib).ok()).map_or_else(|| among(1, gib), Ok),
        }
    }

    fn summary(&self, start: &Start) -> Summary {
        let (stats, given, options) = (&start.train.stats, &start.given, &start.options);
        let workers = Deal::of(options).workers;
        Summary {
            device: match workers {
                1 => self.describe_device(),
                _ => self.base.device.describe_with(&format!("{workers} workers")),
            },
            examples: start.train.examples.len(),
            validation_examples: start.held_out.as_ref().map_or(0, |d| d.examples.len()),
            skipped: given.skipped,
            truncated: given.truncated,
            lost_targets: given.lost_targets,
            without_targets: given.without_targets,
            duplicates: given.duplicates,
            tokens: stats.tokens,
            supervised_tokens: stats.supervised,
            rows: start.batches.rows(),
            steps: planned::total_steps(&start.batches, options),
            trainable_parameters: start.adapter.parameters(),
            added_parameters: start.adapter.added(self.spec()),
            parameters: self.spec().parameters(),
            virtual_tokens: start.adapter.method.virtual_tokens(),
            workers,
            memory: start.planned.memory.clone(),
            lower: start.planned.memory.what_to_lower(options, "take a model that is smaller or quantised"),
        }
    }

    /// The run before its first step.
    fn record(
        &self,
        records: &Records,
        validation: Option<&Records>,
        summary: &Summary,
        options: &TrainOptions,
    ) -> RunRecord {
        RunRecord {
            luthier: env!("CARGO_PKG_VERSION").into(),
            model: ModelRecord { name: self.name.clone(), sha256: self.base.sha256.clone() },
            data: DataRecord::new(records),
            validation: validation.map(DataRecord::new),
            init_adapter: None,
            device: summary.device.clone(),
            options: options.clone(),
            results: Results { step: 0, steps: 0, best: None },
        }
    }

    /// What `luthier train --from` replays: the run that was started last, as far as it came.
    pub fn run_record(&self) -> Result<RunRecord> {
        let (Some((_, record)), Some(trainer)) = (&self.run, &self.trainer) else { return Err(no_run()) };
        let results = Results { step: trainer.step_number(), steps: trainer.total_steps, best: self.best() };
        Ok(RunRecord { results, ..record.clone() })
    }

    /// The run as it stands, as the bytes of a file. Read [`Session::reports`] before: those still under way are lost
    /// with the session.
    pub async fn checkpoint(&mut self) -> Result<Vec<u8>> {
        let (Some((identity, _)), Some(trainer)) = (&self.run, &mut self.trainer) else { return Err(no_run()) };
        checkpoint::to_bytes(&trainer.state(&mut self.base).await?, identity)
    }

    pub(super) fn running(&mut self) -> Result<(&mut Base, &mut Trainer)> {
        match &mut self.trainer {
            Some(trainer) => Ok((&mut self.base, trainer)),
            None => Err(no_run()),
        }
    }

    pub fn done(&self) -> bool {
        self.trainer.as_ref().is_none_or(Trainer::done)
    }

    /// Steps submitted so far.
    pub fn step_number(&self) -> u64 {
        self.trainer.as_ref().map_or(0, Trainer::step_number)
    }

    /// One optimizer step; returns the reports that became known.
    pub async fn step(&mut self) -> Result<Vec<StepReport>> {
        let (base, trainer) = self.running()?;
        trainer.step(base).await
    }

    /// The adapter's numbers before the step to come: what helpers compute their shares of it with.
    pub async fn parameters(&mut self) -> Result<Vec<f32>> {
        let (base, trainer) = self.running()?;
        trainer.values(base).await
    }

    /// [`Trainer::compute_share`]
    pub async fn compute_share(&mut self, of: Dealt) -> Result<()> {
        let trainer = self.trainer.as_mut().ok_or_else(no_run)?;
        trainer.compute_share(&mut self.base, of.work(&self.validation)?).await
    }

    /// [`Trainer::add_share`]
    pub fn add_share(&mut self, of: Dealt, share: Vec<f32>) -> Result<()> {
        let trainer = self.trainer.as_mut().ok_or_else(no_run)?;
        trainer.add_share(of.work(&self.validation)?, share)
    }

    /// [`Trainer::share_of`]: what a helper does for a session that has started the same run.
    pub async fn share_of(&mut self, of: Dealt, step: u64, parameters: &[f32], worker: usize) -> Result<Vec<f32>> {
        let trainer = self.trainer.as_mut().ok_or_else(no_run)?;
        trainer.share_of(&mut self.base, of.work(&self.validation)?, step, parameters, worker).await
    }

    /// What is the same in sessions whose shares belong together.
    pub fn run_sha256(&self) -> Result<String> {
        let (identity, _) = self.run.as_ref().ok_or_else(no_run)?;
        Ok(identity.sha256())
    }

    /// Reports of the steps whose numbers were not read yet.
    pub async fn reports(&mut self) -> Result<Vec<StepReport>> {
        let (base, trainer) = self.running()?;
        trainer.reports(base).await
    }

    /// Loss on the validation data, if there is any.
    pub async fn validate(&mut self) -> Result<Option<Evaluation>> {
        let Some(batches) = &self.validation else { return Ok(None) };
        let trainer = self.trainer.as_mut().expect("validation data belong to a run");
        trainer.evaluate(&mut self.base, batches).await.map(Some)
    }

    /// [`Session::validate`] as it would have been before the first step, asked after it: the first step is seen
    /// sooner.
    pub async fn validate_start(&mut self) -> Result<Option<Evaluation>> {
        let Some(batches) = &self.validation else { return Ok(None) };
        let trainer = self.trainer.as_mut().expect("validation data belong to a run");
        trainer.evaluate_start(&mut self.base, batches).await.map(Some)
    }

    /// The best validation loss so far and its step.
    pub fn best(&self) -> Option<Best> {
        let (loss, step, _) = self.trainer.as_ref()?.best()?;
        Some(Best { loss, step })
    }

    /// Goes back to the adapter of the best validation loss, if one was measured.
    pub fn use_best(&mut self) -> Option<Best> {
        let (base, trainer) = (&mut self.base, self.trainer.as_ref()?);
        let (loss, step, flat) = trainer.best()?;
        trainer.set_adapter(base, flat);
        Some(Best { loss, step })
    }
}
