//! A probe of some data: many short runs in one set of buffers, and what they say.

use super::Session;
use crate::adapter::Kind;
use crate::clock::Instant;
use crate::data::{Batches, Dataset, PackOptions, Record, Records};
use crate::error::{Error, Result};
use crate::eval::findings::{self, Finding};
use crate::eval::probe::{self, Losses, Seen, Verdict};
use crate::eval::{Item, curve::Point, near, with_answer};
use crate::num::uniform;
use crate::train::{ExampleLoss, TrainOptions};
use serde::Serialize;

#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// About how long it may take; decides the steps of a run.
    pub minutes: f64,
    /// Steps of a run, instead.
    pub steps: Option<u64>,
}

/// What the probe found.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    pub verdict: Verdict,
    pub findings: Vec<Finding>,
    pub examples: usize,
    pub held_out: usize,
    /// Steps of each short run, and its learning rate.
    pub steps: u64,
    pub lr: f64,
    /// (rate, loss after a few steps); None where the loss left the numbers.
    pub rates: Vec<(f64, Option<f64>)>,
    /// What the run that the options describe would take here.
    pub full_run: FullRun,
    pub seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct FullRun {
    pub steps: u64,
    pub minutes: f64,
    pub memory: u64,
}

/// The least that a curve and a split can be made of.
const LEAST: usize = 40;
/// More held-out items would cost more time than they add.
const MOST_HELD: usize = 200;
/// Shares of the data, and how many drawings of each.
const PARTS: [(usize, usize); 4] = [(8, 2), (4, 2), (2, 2), (1, 1)];
/// Places of a run at which the held-out loss is measured, as shares of its steps.
const MOMENTS: [f64; 4] = [0.25, 0.5, 0.75, 1.0];
const RATES: [f64; 6] = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2];

struct Bench<'a> {
    session: &'a mut Session,
    options: TrainOptions,
    train: Dataset,
    /// What the short runs start from.
    initial: Vec<f32>,
    held: Dataset,
    held_batches: Batches,
    lr: f64,
    steps: u64,
}

/// A short run.
struct Ran {
    losses: Losses,
    moments: Vec<(u64, f64)>,
}

impl Session {
    /// Probes data with the model. `items` are those of `records`; `test` are of a test file, to be looked at for items
    /// that the data hold. `say` gets what is being done, and how much of it is. The session has trained afterwards.
    pub async fn probe(
        &mut self,
        records: &Records,
        items: &[Item],
        test: Option<&[Item]>,
        options: &TrainOptions,
        budget: &ProbeOptions,
        mut say: impl FnMut(&str, u64, u64),
    ) -> Result<Probe> {
        let started = Instant::now();
        check(items, &records.file, budget)?;
        let full = self.estimate(records, None, options, None)?;
        let texts: Vec<&str> = items.iter().map(findings::asked).collect();
        let (groups, least) = near::groups(&texts);
        let (train, held) = near::split(&groups, 0.2, MOST_HELD, options.seed);
        if held.len() < 5 || train.len() < LEAST / 2 {
            let what = format!("{} records are so alike that no test of them can be held out", items.len());
            return Err(data_error(&records.file, what, "give more, and more different, examples"));
        }
        let mut found: Vec<Finding> = [
            test.and_then(|test| findings::leakage(items, test)),
            findings::contradictions(items),
            findings::imbalance(items),
            findings::repetition(items, &groups, least),
        ]
        .into_iter()
        .flatten()
        .collect();
        found.extend(self.encoding_findings(records, options.seq_len)?);
        let part = |keep: &[usize]| records.with(keep.iter().map(|i| records.records[*i].clone()).collect());
        let (train_records, held_records) = (part(&train), part(&held));
        let control = control_records(&train_records, options.seed);
        let mut bench = Bench::new(self, &train_records, &held_records, options).await?;
        let (rates, step_seconds) = bench.try_rates(options.peak_lr(), budget, &mut say).await?;
        found.extend(findings::learning_rate(options.peak_lr(), &rates));
        let best = rates.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("some rates");
        if !best.1.is_finite() {
            return Err(data_error(&records.file, "every learning rate leaves the numbers".into(), "look at the data"));
        }
        bench.lr = best.0;
        bench.plan_steps(budget, step_seconds, started.elapsed_ms() / 1e3).await?;
        let (seen, train_losses) = bench.runs(&control, &mut say).await?;
        found.extend(findings::noise(&train_losses));
        let (steps, lr) = (bench.steps, bench.lr);
        let full_run = FullRun {
            steps: full.steps,
            minutes: full.steps as f64 * options.grad_accum as f64 * step_seconds / 60.0,
            memory: full.memory.total,
        };
        Ok(Probe {
            verdict: probe::judge(&seen, options.seed),
            findings: found,
            examples: train.len(),
            held_out: held.len(),
            steps,
            lr,
            rates: rates.into_iter().map(|(rate, loss)| (rate, Some(loss).filter(|l| l.is_finite()))).collect(),
            full_run,
            seconds: started.elapsed_ms() / 1e3,
        })
    }

    /// Records whose encoding teaches nothing, loses answers or shows no end.
    fn encoding_findings(&self, records: &Records, seq_len: usize) -> Result<Vec<Finding>> {
        let data = self.encode(records, seq_len)?;
        let stops = self.tokenizer.eos_ids();
        let ends = |e: &crate::data::Example| {
            let last = e.supervised.iter().rposition(|learned| *learned);
            last.is_none_or(|last| stops.contains(&e.ids[last]))
        };
        let lines = |of: &dyn Fn(&crate::data::Example) -> bool| {
            data.examples.iter().filter(|e| of(e)).map(|e| e.line).collect::<Vec<_>>()
        };
        let text = records.records.iter().all(|(_, r)| matches!(r, Record::Text { .. }));
        Ok(findings::encoding(
            lines(&|e| e.full_supervised == 0),
            lines(&|e| e.targets() < e.full_supervised),
            lines(&|e| !text && !e.truncated && !ends(e)),
            seq_len,
        ))
    }
}

fn data_error(file: &str, what: String, hint: &str) -> Error {
    Error::Data { file: file.into(), line: None, what, hint: hint.into() }
}

fn check(items: &[Item], file: &str, budget: &ProbeOptions) -> Result<()> {
    if !(budget.minutes > 0.0 && budget.minutes.is_finite()) {
        return Err(Error::setting(
            "minutes",
            format!("is {}, expected more than 0", budget.minutes),
            "2 is the default",
        ));
    }
    if budget.steps == Some(0) {
        return Err(Error::setting("probe-steps", "is 0, expected at least 1", "leave it out to have it chosen"));
    }
    if items.len() >= LEAST {
        return Ok(());
    }
    let what = format!("{} records are too few to tell anything; {LEAST} are the least", items.len());
    Err(data_error(file, what, "collect more examples first"))
}

/// The data with all meaning taken out: the last answers dealt anew among the records; texts with their characters
/// shuffled.
fn control_records(records: &Records, seed: u64) -> Records {
    let answer = |record: &Record| match record {
        Record::Chat(turns) => turns.messages.last().map(|m| m.content.clone()).unwrap_or_default(),
        Record::Pair { completion, .. } => completion.trim_start().into(),
        Record::Instruction { output, .. } => output.clone(),
        Record::Text { text, .. } => text.clone(),
    };
    let order = permutation(records.records.len(), seed, 1 << 50);
    let one = |(i, (line, record)): (usize, &(u64, Record))| {
        let dealt = match record {
            Record::Text { text, .. } => {
                let chars: Vec<char> = text.chars().collect();
                permutation(chars.len(), seed, (1 << 51) + i as u64).into_iter().map(|k| chars[k]).collect()
            }
            _ => answer(&records.records[order[i]].1),
        };
        (*line, with_answer(record, &dealt))
    };
    records.with(records.records.iter().enumerate().map(one).collect())
}

fn permutation(n: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, ((uniform(seed, stream, i as u64) * (i + 1) as f64) as usize).min(i));
    }
    order
}

impl<'a> Bench<'a> {
    async fn new(
        session: &'a mut Session,
        train: &Records,
        held: &Records,
        options: &TrainOptions,
    ) -> Result<Bench<'a>> {
        let mut options = TrainOptions { val_fraction: 0.0, grad_accum: 1, ..options.clone() };
        session.start_training(train, None, options.clone(), None, None).await?;
        let (base, trainer) = session.running()?;
        let initial = trainer.values(base).await?;
        let before = session.virtual_ids();
        let encode = |records: &Records| Ok(session.encode(records, options.seq_len)?.prefixed(&before));
        let [train, held]: [Result<Dataset>; 2] = [encode(train), encode(held)];
        let (train, held) = (train?, held?);
        options.seq_len += before.len(); // of a row
        let pack = PackOptions { shuffle: false, ..packing(&options) };
        let held_batches = Batches::new(&held, pack)?;
        let (lr, steps) = (options.peak_lr(), 1);
        Ok(Bench { session, options, train, initial, held, held_batches, lr, steps })
    }

    async fn restart(&mut self, data: &Dataset, steps: u64) -> Result<()> {
        let batches = Batches::new(data, packing(&self.options))?;
        let (base, trainer) = self.session.running()?;
        trainer.restart(base, self.initial.clone(), batches, self.lr, steps);
        Ok(())
    }

    /// The range of learning rates, the asked one among them: the loss of each after the same few steps, and the
    /// seconds of a step.
    async fn try_rates(
        &mut self,
        asked: f64,
        budget: &ProbeOptions,
        say: &mut impl FnMut(&str, u64, u64),
    ) -> Result<(Vec<(f64, f64)>, f64)> {
        let usual = self.options.method.lr() / Kind::Lora.lr();
        let mut rates = RATES.map(|rate| rate * usual).to_vec();
        if !rates.contains(&asked) {
            rates.push(asked);
        }
        rates.sort_by(f64::total_cmp);
        let data = self.train.clone();
        // The first step also warms the device up; the second one is measured.
        self.restart(&data, 1000).await?;
        self.advance(1).await?;
        let clock = Instant::now();
        self.advance(1).await?;
        let step = (clock.elapsed_ms() / 1e3).max(1e-4);
        let fits = (0.2 * budget.minutes * 60.0 / rates.len() as f64 / step) as u64;
        let steps = budget.steps.unwrap_or(fits).clamp(4, 30);
        let (clock, mut tried) = (Instant::now(), Vec::new());
        for (i, rate) in rates.iter().enumerate() {
            say("learning rates", i as u64, rates.len() as u64);
            self.lr = *rate;
            self.restart(&data, 10 * steps).await?;
            tried.push((*rate, self.advance(steps).await?));
        }
        Ok((tried, clock.elapsed_ms() / 1e3 / (rates.len() as u64 * steps) as f64))
    }

    /// Takes steps; the mean loss of the last quarter of them, infinite where it left the numbers.
    async fn advance(&mut self, steps: u64) -> Result<f64> {
        let (base, trainer) = self.session.running()?;
        let mut losses = Vec::new();
        for _ in 0..steps {
            match trainer.step(base).await {
                Ok(reports) => losses.extend(reports.iter().map(|r| r.loss)),
                Err(Error::Diverged { .. }) => return Ok(f64::INFINITY),
                Err(error) => return Err(error),
            }
        }
        match trainer.reports(base).await {
            Ok(reports) => losses.extend(reports.iter().map(|r| r.loss)),
            Err(Error::Diverged { .. }) => return Ok(f64::INFINITY),
            Err(error) => return Err(error),
        }
        let last = &losses[losses.len() - losses.len().div_ceil(4).min(losses.len())..];
        Ok(last.iter().sum::<f64>() / last.len() as f64)
    }

    /// Steps of each run that the rest of the budget allows.
    async fn plan_steps(&mut self, budget: &ProbeOptions, step: f64, used: f64) -> Result<()> {
        if let Some(steps) = budget.steps {
            self.steps = steps.max(MOMENTS.len() as u64);
            return Ok(());
        }
        let clock = Instant::now();
        self.held_losses().await?;
        let evaluation = clock.elapsed_ms() / 1e3;
        let runs = (PARTS.iter().map(|(_, drawings)| drawings).sum::<usize>() + 1) as f64;
        let left = (budget.minutes * 60.0 - used) / runs - MOMENTS.len() as f64 * evaluation;
        let epochs = Batches::new(&self.train, packing(&self.options))?.batches_per_epoch() * 20;
        self.steps = ((left / step).max(0.0) as u64).clamp(16, epochs.clamp(64, 2000));
        Ok(())
    }

    /// Held-out losses of the adapter as it is now, by item.
    async fn held_losses(&mut self) -> Result<Losses> {
        let (base, trainer) = self.session.running()?;
        let losses = trainer.example_losses(base, &self.held_batches, self.held.examples.len()).await?;
        Ok(losses.iter().filter(|l| l.tokens > 0).map(|l| (l.loss, l.tokens as f64)).collect())
    }

    /// A short run on some data: the held-out losses at the best of a few moments, the same for every run.
    async fn run(&mut self, data: &Dataset) -> Result<Ran> {
        let steps = self.steps;
        self.restart(data, steps).await?;
        let (mut best, mut lowest, mut moments) = (Losses::new(), f64::INFINITY, Vec::new());
        let mut done = 0;
        for share in MOMENTS {
            let at = ((steps as f64 * share).round() as u64).max(done + 1).min(steps);
            let loss = self.advance(at - done).await?;
            done = at;
            let losses = self.held_losses().await?;
            let mean = crate::eval::curve::mean(&losses, 0..losses.len());
            if !loss.is_finite() && best.is_empty() || mean < lowest {
                (best, lowest) = (losses, mean);
            }
            moments.push((at, mean));
            if !loss.is_finite() {
                break;
            }
        }
        Ok(Ran { losses: best, moments })
    }

    /// All runs; and the losses of the training records after the one on all data, as (line, mean loss).
    async fn runs(
        &mut self,
        control: &Records,
        say: &mut impl FnMut(&str, u64, u64),
    ) -> Result<(Seen, Vec<(u64, f64)>)> {
        let all = self.train.clone();
        self.restart(&all, self.steps).await?;
        let base = self.held_losses().await?;
        let total = PARTS.iter().map(|(_, drawings)| *drawings as u64).sum::<u64>() + 1;
        let (mut parts, mut moments, mut done) = (Vec::new(), Vec::new(), 0);
        for drawing in 0..2 {
            // Parts of one drawing are nested: each holds the smaller ones.
            let order = permutation(all.examples.len(), self.options.seed, (1 << 52) + drawing as u64);
            for (share, _) in PARTS.iter().filter(|(_, drawings)| drawing < *drawings) {
                let size = (all.examples.len() / share).max(1);
                say(&format!("tuning on {size} of {}", all.examples.len()), done, total);
                let Ok(Ran { losses, moments: seen }) = self.run(&all.subset(&order[..size])).await else { continue };
                if *share == 1 {
                    moments = seen;
                }
                parts.push(Point { size, losses });
                done += 1;
            }
        }
        if parts.is_empty() {
            return Err(data_error(&all.file, "no part of the data has anything to learn".into(), "see the findings"));
        }
        say("control", done, total);
        let before = self.session.virtual_ids();
        let text_len = self.options.seq_len - before.len();
        let control = self.session.encode(control, text_len)?.prefixed(&before);
        let control = self.run(&control).await?.losses;
        self.restart(&all, self.steps).await?;
        self.advance(self.steps).await?;
        let train_losses = self.train_losses(&all).await?;
        let steps_an_epoch = Batches::new(&all, packing(&self.options))?.batches_per_epoch() as f64;
        Ok((Seen { base, parts, control, moments, steps_an_epoch }, train_losses))
    }

    async fn train_losses(&mut self, data: &Dataset) -> Result<Vec<(u64, f64)>> {
        let batches = Batches::new(data, PackOptions { shuffle: false, ..packing(&self.options) })?;
        let (base, trainer) = self.session.running()?;
        let losses = trainer.example_losses(base, &batches, data.examples.len()).await?;
        let of = data.examples.iter().zip(&losses).filter(|(_, l)| l.tokens > 0);
        Ok(of.map(|(e, l): (_, &ExampleLoss)| (e.line, l.mean())).collect())
    }
}

fn packing(options: &TrainOptions) -> PackOptions {
    let TrainOptions { batch_size, seq_len, no_packing, no_shuffle, seed, .. } = options;
    PackOptions { b: *batch_size, t: *seq_len, packing: !no_packing, shuffle: !no_shuffle, seed: *seed }
}
