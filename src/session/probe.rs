//! A probe of some data: many short runs in one set of buffers, and what they say.

use super::{Session, Summary};
use crate::adapter::Kind;
use crate::clock::Instant;
use crate::data::{Batches, Dataset, Example, PackOptions, Record, Records};
use crate::error::{Error, Result};
use crate::eval::findings::{self, Finding};
use crate::eval::probe::{self, Losses, Right, Seen, Verdict};
use crate::eval::{Item, curve, curve::Point, near, with_answer};
use crate::num::uniform;
use crate::train::{ExampleLoss, TrainOptions};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// About how long it may take; decides how large the runs are.
    pub minutes: f64,
    /// Steps of the largest run, instead.
    pub steps: Option<u64>,
}

/// What the probe found.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    pub verdict: Verdict,
    pub findings: Vec<Finding>,
    /// Examples and steps of the largest run, and the learning rate of all.
    pub examples: usize,
    pub held_out: usize,
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
/// The runs behind the largest part and its control, the most telling first: the part of the largest, and which
/// drawing of it. Each is the full run in small, so that a half takes half as long.
const PARTS: [(usize, u64); 6] = [(2, 0), (4, 0), (8, 0), (2, 1), (4, 1), (8, 1)];
/// What all runs cost, in steps of the largest, and how often they measure the held-out loss.
const COST: f64 = 2.0 + 2.0 * (0.5 + 0.25 + 0.125);
const MEASURED: f64 = 1.0 + 2.0 * MOMENTS.len() as f64 + PARTS.len() as f64;
/// Places of a run at which the held-out loss is measured, as shares of its steps.
const MOMENTS: [f64; 4] = [0.25, 0.5, 0.75, 1.0];
/// The largest part has at least so many examples: of fewer, no smaller parts could be told apart.
const LEAST_PART: usize = 32;
/// Fewer held-out items tell too little.
const LEAST_HELD: usize = 30;
/// Steps that tell one learning rate from another.
const RATE_STEPS: (u64, u64) = (4, 30);
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
    /// Passes over the data that the full run makes, and the share of its steps that it warms up for.
    passes: f64,
    warmup: f64,
    clock: Instant,
    /// Seconds that the probe may take; none where its steps were given.
    limit: Option<f64>,
    /// Seconds of a step, and of measuring the held-out items, as last seen.
    step: f64,
    measuring: f64,
}

/// How long the runs are.
#[derive(Clone, Copy)]
struct Size {
    /// Examples and steps of the largest part.
    examples: usize,
    steps: u64,
    /// Whether those steps are as many passes as the full run makes.
    in_small: bool,
}

/// A short run: the held-out items at its best moment and at its end.
struct Ran {
    best: Held,
    last: Held,
    moments: Vec<(u64, f64)>,
}

/// The held-out items at some moment: their losses, and whose answers are exactly right.
#[derive(Clone, Default)]
struct Held {
    losses: Losses,
    right: Vec<bool>,
}

impl Held {
    fn mean(&self) -> f64 {
        curve::mean(&self.losses, 0..self.losses.len())
    }

    /// At the end of a run on so many examples.
    fn point(self, size: usize) -> Point {
        Point { size, exact: probe::share(&self.right), losses: self.losses }
    }
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
        // Its short runs have other batches than one run that is dealt out.
        let options = &TrainOptions { workers: Some(1), ..options.clone() };
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
        let parts = [&train_records, &held_records];
        let mut bench = Bench::new(self, parts, options, &full, budget, started).await?;
        let rates = bench.try_rates(options.peak_lr(), budget, &mut say).await?;
        let rate = findings::learning_rate(options.peak_lr(), &rates);
        let best = rates.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("some rates");
        if !best.1.is_finite() {
            return Err(data_error(&records.file, "every learning rate leaves the numbers".into(), "look at the data"));
        }
        // As asked, so that what is foreseen is of the full run as it is; unless another rate is plainly better.
        bench.lr = if rate.is_some() { best.0 } else { options.peak_lr() };
        found.extend(rate);
        let size = bench.size(budget).await?;
        let (seen, train_losses) = bench.runs(&control, size, full.examples, &mut say).await?;
        found.extend(findings::noise(&train_losses));
        let full_run =
            FullRun { steps: full.steps, minutes: full.steps as f64 * bench.step / 60.0, memory: full.memory.total };
        Ok(Probe {
            lr: bench.lr,
            held_out: bench.held.examples.len(),
            verdict: probe::judge(&seen, options.seed),
            findings: found,
            examples: size.examples,
            steps: size.steps,
            rates: rates.into_iter().map(|(rate, loss)| (rate, Some(loss).filter(|l| l.is_finite()))).collect(),
            full_run,
            seconds: started.elapsed_ms() / 1e3,
        })
    }

    /// Records whose encoding teaches nothing, loses answers or shows no end.
    fn encoding_findings(&self, records: &Records, seq_len: usize) -> Result<Vec<Finding>> {
        let data = self.encode(records, seq_len)?;
        let stops = self.tokenizer.eos_ids();
        let ends = |e: &Example| {
            let last = e.supervised.iter().rposition(|learned| *learned);
            last.is_none_or(|last| stops.contains(&e.ids[last]))
        };
        let lines =
            |of: &dyn Fn(&Example) -> bool| data.examples.iter().filter(|e| of(e)).map(|e| e.line).collect::<Vec<_>>();
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
        [train, held]: [&Records; 2],
        options: &TrainOptions,
        full: &Summary,
        budget: &ProbeOptions,
        clock: Instant,
    ) -> Result<Bench<'a>> {
        let mut options = TrainOptions { val_fraction: 0.0, ..options.clone() };
        session.start_training(train, None, options.clone(), None, None).await?;
        let (base, trainer) = session.running()?;
        let initial = trainer.values(base).await?;
        let before = session.virtual_ids();
        let encode = |records: &Records| Ok(session.encode(records, options.seq_len)?.prefixed(&before));
        let [train, held]: [Result<Dataset>; 2] = [encode(train), encode(held)];
        let (train, held) = (train?, held?);
        options.seq_len += before.len(); // of a row
        let held_batches = Batches::new(&held, in_order(&options))?;
        let batches = full.rows.div_ceil(options.batch_size) as f64;
        Ok(Bench {
            lr: options.peak_lr(),
            passes: full.steps as f64 * options.grad_accum as f64 / batches,
            warmup: (options.warmup_steps as f64 / full.steps as f64).min(1.0),
            limit: budget.steps.is_none().then_some(60.0 * budget.minutes),
            step: 0.0,
            measuring: 0.0,
            session,
            options,
            train,
            initial,
            held,
            held_batches,
            clock,
        })
    }

    async fn restart(&mut self, data: &Dataset, steps: u64) -> Result<()> {
        let batches = Batches::new(data, packing(&self.options))?;
        let (base, trainer) = self.session.running()?;
        // The full run in small warms up in small.
        let warmup = (self.warmup * steps as f64).round() as u64;
        trainer.restart(base, self.initial.clone(), batches, self.lr, (warmup, steps));
        Ok(())
    }

    /// Seconds that are left, if they are limited.
    fn left(&self) -> Option<f64> {
        self.limit.map(|limit| limit - self.clock.elapsed_ms() / 1e3)
    }

    /// A range of learning rates about the asked one, as many as there is time for: the loss of each after the same few
    /// steps.
    async fn try_rates(
        &mut self,
        asked: f64,
        budget: &ProbeOptions,
        say: &mut impl FnMut(&str, u64, u64),
    ) -> Result<Vec<(f64, f64)>> {
        let data = self.train.clone();
        // The first step also warms the device up; the second one is measured.
        self.restart(&data, 1000).await?;
        self.advance(1).await?;
        self.advance(1).await?;
        let usual = self.options.method.lr() / Kind::Lora.lr();
        let mut rates = RATES.map(|rate| rate * usual).to_vec();
        if !rates.contains(&asked) {
            rates.push(asked);
        }
        rates.sort_by(|a, b| (a / asked).ln().abs().total_cmp(&(b / asked).ln().abs()));
        let (least, most) = RATE_STEPS;
        let fit = self.left().map(|left| (0.2 * left / self.step) as u64);
        rates.truncate(fit.map_or(rates.len(), |fit| (fit / least).max(1) as usize));
        let steps = fit.map_or_else(|| budget.steps.unwrap_or(most) / 4, |fit| fit / rates.len() as u64);
        let steps = steps.clamp(least, most);
        let mut tried = Vec::new();
        for (i, rate) in rates.iter().enumerate() {
            say("learning rates", i as u64, rates.len() as u64);
            self.lr = *rate;
            self.restart(&data, 10 * steps).await?;
            tried.push((*rate, self.advance(steps).await?));
        }
        tried.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(tried)
    }

    /// Takes steps; the mean loss of the last quarter of them, infinite where it left the numbers.
    async fn advance(&mut self, steps: u64) -> Result<f64> {
        let clock = Instant::now();
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
        self.step = (clock.elapsed_ms() / 1e3 / steps as f64).max(1e-4);
        let last = &losses[losses.len() - losses.len().div_ceil(4).min(losses.len())..];
        Ok(last.iter().sum::<f64>() / last.len() as f64)
    }

    /// Steps that make the full run's passes over so many of the examples.
    fn steps_over(&self, data: &Dataset) -> Result<u64> {
        let batches = Batches::new(data, packing(&self.options))?.batches_per_epoch() as f64;
        Ok(((batches * self.passes / self.options.grad_accum as f64).ceil() as u64).max(1))
    }

    /// How long the runs may be: as the steps given say, or as what is left of the time allows.
    async fn size(&mut self, budget: &ProbeOptions) -> Result<Size> {
        let all = self.train.examples.len();
        let whole = self.steps_over(&self.train)?;
        let steps = match (budget.steps, self.left()) {
            (Some(steps), _) => steps,
            (None, left) => self.affordable(left.unwrap_or(0.0)).await?,
        };
        let share = (steps as f64 / whole as f64).min(1.0);
        let examples = ((all as f64 * share) as usize).max(LEAST_PART.min(all));
        let wanted = whole as f64 * examples as f64 / all as f64;
        // A few examples more than the steps allow for, or a rounding, are no fewer passes.
        let in_small = wanted <= 1.25 * steps as f64 + 1.0;
        let steps = if in_small { wanted.ceil() as u64 } else { steps };
        Ok(Size { examples, steps: steps.max(MOMENTS.len() as u64), in_small })
    }

    /// Steps of the largest run for which so many seconds are enough. Where measuring alone would take most of them,
    /// fewer items are measured.
    async fn affordable(&mut self, left: f64) -> Result<u64> {
        self.restart(&self.train.clone(), 1).await?;
        self.held_out().await?;
        let count = self.held.examples.len();
        let fewer = (count as f64 * 0.4 * left / (MEASURED * self.measuring)) as usize;
        if fewer < count {
            let mut keep = permutation(count, self.options.seed, 1 << 53);
            keep.truncate(fewer.clamp(LEAST_HELD.min(count), count));
            self.measuring *= keep.len() as f64 / count as f64;
            self.held = self.held.subset(&keep);
            self.held_batches = Batches::new(&self.held, in_order(&self.options))?;
        }
        Ok(((left - MEASURED * self.measuring) / (COST * self.step)).max(1.0) as u64)
    }

    /// The held-out items with the adapter as it is now.
    async fn held_out(&mut self) -> Result<Held> {
        let clock = Instant::now();
        let (base, trainer) = self.session.running()?;
        let items = trainer.example_losses(base, &self.held_batches, self.held.examples.len()).await?;
        self.measuring = (clock.elapsed_ms() / 1e3).max(1e-4);
        let items = || items.iter().filter(|l| l.tokens > 0);
        let losses = items().map(|l| (l.loss, l.tokens as f64)).collect();
        Ok(Held { losses, right: items().map(|l| l.hits == l.tokens).collect() })
    }

    /// A short run on some data, looked at so many times, at moments that are the same for all runs of its length.
    async fn run(&mut self, data: &Dataset, steps: u64, moments: &[f64]) -> Result<Ran> {
        self.restart(data, steps).await?;
        let mut ran = Ran { best: Held::default(), last: Held::default(), moments: Vec::new() };
        let (mut done, mut lowest) = (0, f64::INFINITY);
        for share in moments {
            let at = ((steps as f64 * share).round() as u64).clamp(done + 1, steps.max(done + 1));
            let loss = self.advance(at - done).await?;
            done = at;
            ran.last = self.held_out().await?;
            let mean = ran.last.mean();
            if ran.moments.is_empty() || mean < lowest {
                (ran.best, lowest) = (ran.last.clone(), mean);
            }
            ran.moments.push((at, mean));
            if !loss.is_finite() {
                break;
            }
        }
        Ok(ran)
    }

    /// All runs; and the losses of the records that the largest one learned from, as (line, mean loss).
    async fn runs(
        &mut self,
        control: &Records,
        size: Size,
        full_size: usize,
        say: &mut impl FnMut(&str, u64, u64),
    ) -> Result<(Seen, Vec<(u64, f64)>)> {
        let (all, total) = (self.train.clone(), 2 + PARTS.len() as u64);
        // Parts of one drawing are nested: each holds the smaller ones.
        let order = |drawing: u64| permutation(all.examples.len(), self.options.seed, (1 << 52) + drawing);
        let orders = [order(0), order(1)];
        let largest = all.subset(&orders[0][..size.examples]);
        self.restart(&largest, size.steps).await?;
        let untuned = self.held_out().await?;
        say(&format!("tuning on {} of {}", size.examples, all.examples.len()), 0, total);
        let main = self.run(&largest, size.steps, &MOMENTS).await?;
        if main.last.losses.is_empty() {
            let what = "nothing held out has anything to learn".into();
            return Err(data_error(&all.file, what, "look at the data with `luthier inspect data`"));
        }
        let train_losses = self.train_losses(&largest).await?;
        say("control", 1, total);
        let mixed = self.control(control, &orders[0][..size.examples], size.steps).await?;
        let right = main.last.right.clone();
        let mut parts = vec![main.last.point(size.examples)];
        for (done, (share, drawing)) in PARTS.into_iter().enumerate() {
            let (examples, steps) = (size.examples / share, (size.steps / share as u64).max(1));
            let cost = steps as f64 * self.step + self.measuring;
            if self.left().is_some_and(|left| left < cost) {
                continue;
            }
            say(&format!("tuning on {examples} of {}", all.examples.len()), 2 + done as u64, total);
            // A part may have nothing to learn.
            let part = all.subset(&orders[drawing as usize][..examples]);
            if let Ok(Ran { last, .. }) = self.run(&part, steps, &[1.0]).await {
                parts.push(last.point(examples));
            }
        }
        let steps_an_epoch = Batches::new(&largest, packing(&self.options))?.batches_per_epoch() as f64;
        let answers = control.records.iter().any(|(_, r)| !matches!(r, Record::Text { .. }));
        let (moments, in_small) = (main.moments, size.in_small && parts.len() >= 3);
        let right = answers.then(|| Right {
            tuned: right,
            others: [untuned.right, mixed.last.right, constant_answer(&largest, &self.held)],
        });
        let (base, tuned, control) = (untuned.losses, main.best.losses, mixed.best.losses);
        Ok((
            Seen { base, parts, tuned, control, right, moments, steps_an_epoch, full_size, in_small, answers },
            train_losses,
        ))
    }

    /// The run on the control's records of the same places.
    async fn control(&mut self, records: &Records, keep: &[usize], steps: u64) -> Result<Ran> {
        let before = self.session.virtual_ids();
        let text_len = self.options.seq_len - before.len();
        let data = self.session.encode(records, text_len)?.prefixed(&before);
        let keep: Vec<usize> = keep.iter().copied().filter(|i| *i < data.examples.len()).collect();
        self.run(&data.subset(&keep), steps, &MOMENTS).await
    }

    async fn train_losses(&mut self, data: &Dataset) -> Result<Vec<(u64, f64)>> {
        let batches = Batches::new(data, in_order(&self.options))?;
        let (base, trainer) = self.session.running()?;
        let losses = trainer.example_losses(base, &batches, data.examples.len()).await?;
        let of = data.examples.iter().zip(&losses).filter(|(_, l)| l.tokens > 0);
        Ok(of.map(|(e, l): (_, &ExampleLoss)| (e.line, l.mean())).collect())
    }
}

/// Which of the held-out answers are the one that `train` has most often.
fn constant_answer(train: &Dataset, held: &Dataset) -> Vec<bool> {
    let answer = |e: &Example| -> Vec<u32> {
        e.ids.iter().zip(&e.supervised).filter(|(_, learned)| **learned).map(|(id, _)| *id).collect()
    };
    let mut times: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
    for example in train.examples.iter() {
        *times.entry(answer(example)).or_default() += 1;
    }
    let common = times.into_iter().max_by_key(|(_, times)| *times).map(|(answer, _)| answer).unwrap_or_default();
    held.examples.iter().map(answer).filter(|answer| !answer.is_empty()).map(|answer| answer == common).collect()
}

fn packing(options: &TrainOptions) -> PackOptions {
    let TrainOptions { batch_size, seq_len, no_packing, no_shuffle, seed, .. } = options;
    PackOptions { b: *batch_size, t: *seq_len, packing: !no_packing, shuffle: !no_shuffle, seed: *seed }
}

fn in_order(options: &TrainOptions) -> PackOptions {
    PackOptions { shuffle: false, ..packing(options) }
}
