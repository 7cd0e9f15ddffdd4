//! The trainer: micro-batches through the "train" sequence, one "update" a step, reports from the ring.
//!
//! Gradients are normalised by the supervised tokens of the whole accumulation window, so k micro-batches equal one
//! batch; so do shares of it that several sessions compute (`shares`). Losses and norms stay on the device in a ring of
//! slots that is read a few times a second, so that steps shorter than that do not wait for one another's numbers.

use super::evaluation::{Evaluation, ExampleLoss, batch_sums, example_losses, write_batch};
use super::optimizer::{BETA1, BETA2, Moments, Optimizer};
use super::options::TrainOptions;
use super::planned::{MemoryPlan, Planned, plan, row_len, total_steps};
use super::shares::{Deal, Gathered, SUMS, Work};
use crate::adapter::Adapter;
use crate::clock::Instant;
use crate::data::{Batch, Batches};
use crate::error::{Error, Result};
use crate::model::decoder::LossSequences;
use crate::model::{Base, Inputs, Patches};
use crate::ops::control::{Control, REPORT, RING_SLOTS};
use crate::ops::dropout::hash;
use crate::plan::SequenceId;
use serde::Serialize;
use std::collections::BTreeMap;

/// One optimizer step, as `--log-json` writes it.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    pub step: u64,
    /// Mean negative log-likelihood of the window's supervised tokens, in nats.
    pub loss: f64,
    pub lr: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    pub tokens: u64,
    pub supervised_tokens: u64,
    pub tokens_per_sec: f64,
}

/// What a run has become after a number of steps.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub step: u64,
    pub adapter: Vec<f32>,
    pub moments: Moments,
    /// Best validation loss so far, its step, and the adapter then.
    pub best: Option<(f64, u64, Vec<f32>)>,
}

/// Reports are read about this often: seldom enough that short steps are not held up, often enough that little work is
/// queued on a slow GPU.
const READ_EVERY_MS: f64 = 250.0;

struct Pending {
    step: u64,
    slot: u32,
    lr: f64,
    tokens: u64,
    supervised: u64,
}

impl Pending {
    /// Mean loss and gradient norm; an error where the step was not finite and so not taken.
    fn outcome(&self, ring: &[f32], fp16: bool) -> Result<(f64, f64)> {
        let [loss, _, grad_norm, applied] = ring[self.slot as usize * REPORT..][..REPORT] else { unreachable!() };
        let loss = loss as f64 / self.supervised.max(1) as f64;
        if applied == 1.0 { Ok((loss, grad_norm as f64)) } else { Err(diverged(self.step, loss, grad_norm, fp16)) }
    }
}

pub struct Trainer {
    pub adapter: Adapter,
    pub patches: Patches,
    pub memory: MemoryPlan,
    pub total_steps: u64,
    options: TrainOptions,
    io: Inputs,
    sequences: LossSequences,
    update: SequenceId,
    /// "train" of the blocks that were drawn, where not all are trained at the same time.
    drawn: BTreeMap<Vec<usize>, SequenceId>,
    optimizer: Optimizer,
    batches: Batches,
    deal: Deal,
    /// Of the step to come.
    gathered: Gathered,
    /// Shares of the evaluation to come that were brought so far: loss and hits of each batch.
    measured: Vec<Vec<f32>>,
    step: u64,
    pending: Vec<Pending>,
    /// The step that was not finite, once the sound ones before it are reported.
    diverged: Option<Error>,
    /// Reports read before they were asked for.
    unread: Vec<StepReport>,
    last_read: Instant,
    /// Steps to submit before the next read.
    steps_a_read: usize,
    /// The adapter before the first step, until [`Trainer::evaluate_start`] takes it.
    start: Option<Vec<f32>>,
    /// Best validation loss so far, its step, and the adapter then.
    best: Option<(f64, u64, Vec<f32>)>,
}

impl Trainer {
    pub async fn new(
        base: &mut Base,
        adapter: Adapter,
        initial: Vec<f32>,
        batches: Batches,
        options: TrainOptions,
    ) -> Result<Trainer> {
        let planned = plan(base, &adapter, &options)?;
        Trainer::planned(base, planned, adapter, initial, batches, options).await
    }

    /// [`Trainer::new`] for a run that was planned already, with the same adapter and options.
    pub async fn planned(
        base: &mut Base,
        planned: Planned,
        adapter: Adapter,
        initial: Vec<f32>,
        batches: Batches,
        options: TrainOptions,
    ) -> Result<Trainer> {
        let Planned { parts, memory } = planned;
        base.plan = parts.plan;
        base.device.prepare(&base.plan).await.map_err(|error| error.of_memory(|| instead(&memory, &options)))?;
        parts.io.write_tables(&mut base.device, &base.decoder.spec, row_len(&adapter, &options));
        base.device.write_floats(parts.patches.params, 0, &initial);
        if let (Some(buf), Some(rates)) = (parts.rates, adapter.rates()) {
            base.device.write_floats(buf, 0, &rates);
        }
        parts.optimizer.write_tables(&mut base.device);
        if let Some(prologue) = parts.prologue {
            base.device.run(&base.plan, prologue, 0)?;
        }
        let total_steps = total_steps(&batches, &options);
        let deal = Deal::of(&options);
        Ok(Trainer {
            adapter,
            patches: parts.patches,
            memory,
            total_steps,
            options,
            io: parts.io,
            sequences: parts.sequences,
            update: parts.update,
            drawn: BTreeMap::new(),
            optimizer: parts.optimizer,
            batches,
            deal,
            gathered: Gathered::default(),
            measured: Vec::new(),
            step: 0,
            pending: Vec::new(),
            diverged: None,
            unread: Vec::new(),
            last_read: Instant::now(),
            steps_a_read: 1,
            start: Some(initial),
            best: None,
        })
    }

    pub fn step_number(&self) -> u64 {
        self.step
    }

    /// All steps were taken, and none is known that was not finite.
    pub fn done(&self) -> bool {
        self.step >= self.total_steps && self.diverged.is_none()
    }

    /// Submits one optimizer step. Returns the reports that became known, oldest first; they may lag behind.
    pub async fn step(&mut self, base: &mut Base) -> Result<Vec<StepReport>> {
        let taken = self.take_step(base).await;
        taken.map_err(|error| error.of_memory(|| instead(&self.memory, &self.options)))
    }

    async fn take_step(&mut self, base: &mut Base) -> Result<Vec<StepReport>> {
        if let Some(error) = self.diverged.take() {
            return Err(error);
        }
        let window = self.window();
        if self.deal.workers == 1 {
            return self.step_on(base, &window).await;
        }
        while self.gathered.count < self.deal.workers {
            self.compute_share(base, Work::Step).await?;
        }
        let control = self.control(&window);
        self.put_gathered(base, &control);
        self.update(base, &window, control).await
    }

    /// [`Trainer::step`] on micro-batches given by the caller.
    pub async fn step_on(&mut self, base: &mut Base, window: &[Batch]) -> Result<Vec<StepReport>> {
        let control = self.control(window);
        let first = self.step * window.len() as u64;
        self.accumulate(base, control, window.iter().zip(first..)).await?;
        self.update(base, window, control).await
    }

    /// The micro-batches of the step to come.
    fn window(&self) -> Vec<Batch> {
        let accum = self.options.grad_accum as u64;
        (0..accum).map(|i| self.batches.batch(self.step * accum + i)).collect()
    }

    /// Adds the gradients of batches, each with its number in the run, to those on the device.
    async fn accumulate<'a>(
        &mut self,
        base: &mut Base,
        mut control: Control,
        batches: impl Iterator<Item = (&'a Batch, u64)>,
    ) -> Result<()> {
        let train = self.train_sequence(base).await?;
        for (i, (batch, number)) in batches.enumerate() {
            control.first = i == 0;
            control.rows = batch.supervised as u32;
            control.seed = hash(hash(self.options.seed as u32) ^ hash(number as u32));
            write_batch(base, &self.io, batch, &control);
            base.device.run(&base.plan, train, control.rows)?;
        }
        Ok(())
    }

    /// The optimizer's part of a step.
    async fn update(&mut self, base: &mut Base, window: &[Batch], control: Control) -> Result<Vec<StepReport>> {
        base.device.run(&base.plan, self.update, 0)?;
        let (tokens, supervised) = (window.iter().map(|b| b.tokens as u64).sum(), supervised(window));
        let (step, slot, lr) = (self.step + 1, control.ring, control.lr as f64);
        self.pending.push(Pending { step, slot, lr, tokens, supervised });
        self.step += 1;
        if self.pending.len() >= self.steps_a_read || self.done() {
            return self.reports(base).await;
        }
        Ok(Vec::new())
    }

    /// A worker's share of the work to come.
    async fn share(&mut self, base: &mut Base, of: Work<'_>, worker: usize) -> Result<Vec<f32>> {
        match of {
            Work::Step => self.step_share(base, worker).await,
            Work::Evaluation(batches) => self.evaluation_share(base, batches, worker).await,
        }
    }

    /// A worker's share of the step to come, taken out of the device: the sums of loss and hits, then the gradients.
    async fn step_share(&mut self, base: &mut Base, worker: usize) -> Result<Vec<f32>> {
        let control = self.control(&self.window());
        let (accum, total) = (self.options.grad_accum as u64, self.deal.total() as u64);
        let batches: Vec<(Batch, u64)> = self
            .deal
            .share(worker)
            .map(|part| {
                let batch = self.batches.part(self.step * accum + part.micro_batch as u64, part.rows);
                (batch, self.step * total + part.number as u64)
            })
            // At the end of an epoch there may be no rows for all.
            .filter(|(batch, _)| batch.supervised > 0)
            .collect();
        if batches.is_empty() {
            return Ok(vec![0.0; SUMS + self.adapter.len]);
        }
        self.accumulate(base, control, batches.iter().map(|(batch, number)| (batch, *number))).await?;
        let mut share = base.device.read(self.io.ring, control.ring as usize * REPORT, SUMS).await?;
        share.extend(base.device.read(self.patches.grads, 0, self.adapter.len).await?);
        base.device.write_floats(self.patches.grads, 0, &vec![0.0; self.adapter.len]);
        Ok(share)
    }

    /// Evaluation writes over the ring: what it still holds of the run is taken out first.
    async fn evaluation_share(&mut self, base: &mut Base, batches: &Batches, worker: usize) -> Result<Vec<f32>> {
        self.unread = self.reports(base).await?;
        let mine: Vec<u64> = self.deal.batches(worker, batches.batches_per_epoch()).collect();
        batch_sums(base, &self.io, self.sequences.evaluate, batches, &mine).await
    }

    /// A worker's share in a run that stands before `step` with this adapter: the same in every session.
    pub async fn share_of(
        &mut self,
        base: &mut Base,
        of: Work<'_>,
        step: u64,
        adapter: &[f32],
        worker: usize,
    ) -> Result<Vec<f32>> {
        if adapter.len() != self.adapter.len || worker >= self.deal.workers {
            let what = format!("worker {worker} of {}, {} numbers of an adapter", self.deal.workers, adapter.len());
            return Err(Error::setting("workers", what, "this run was dealt in another way"));
        }
        self.step = step;
        self.set_adapter(base, adapter);
        self.share(base, of, worker).await
    }

    /// Computes the share whose turn it is.
    pub async fn compute_share(&mut self, base: &mut Base, of: Work<'_>) -> Result<()> {
        let share = self.share(base, of, self.brought(of)).await?;
        self.add_share(of, share)
    }

    /// Shares of the work to come that are here; the next is that of the worker of this number.
    fn brought(&self, of: Work<'_>) -> usize {
        match of {
            Work::Step => self.gathered.count,
            Work::Evaluation(_) => self.measured.len(),
        }
    }

    /// Takes the share whose turn it is, which another session may have computed.
    pub fn add_share(&mut self, of: Work<'_>, share: Vec<f32>) -> Result<()> {
        let worker = self.brought(of);
        let wanted = match of {
            Work::Step => SUMS + self.adapter.len,
            Work::Evaluation(batches) => SUMS * self.deal.batches(worker, batches.batches_per_epoch()).count(),
        };
        if share.len() != wanted || worker >= self.deal.workers {
            let what = format!("share {worker} of {} has {} floats, not {wanted}", self.deal.workers, share.len());
            return Err(Error::setting("workers", what, "this is no share of this run"));
        }
        match of {
            Work::Step => self.gathered.add(share),
            Work::Evaluation(_) => self.measured.push(share),
        }
        Ok(())
    }

    /// Puts the sum of all shares where one worker would have it.
    fn put_gathered(&mut self, base: &mut Base, control: &Control) {
        let sum = self.gathered.take();
        let (sums, grads) = sum.split_at(SUMS);
        base.device.write_floats(self.io.ring, control.ring as usize * REPORT, sums);
        base.device.write_floats(self.patches.grads, 0, grads);
    }

    /// The sequence of the step to come. Where blocks take turns it is that of the blocks drawn for it, and with a
    /// drawing the optimizer begins anew.
    async fn train_sequence(&mut self, base: &mut Base) -> Result<SequenceId> {
        let all = self.sequences.train.expect("a trainer trains");
        let Some(interval) = self.adapter.method.interval() else { return Ok(all) };
        if self.step.is_multiple_of(interval) {
            self.optimizer.clear(&mut base.device);
        }
        let layers = self.adapter.method.drawn(self.options.seed, self.step / interval);
        if let Some(sequence) = self.drawn.get(&layers) {
            return Ok(*sequence);
        }
        let patches = Patches { active: Some(layers.clone()), ..self.patches.clone() };
        let keep = self.options.keep(self.memory.kept_blocks);
        let sequence = base.decoder.train_sequence(&mut base.plan, &self.io, &patches, keep);
        base.device.prepare(&base.plan).await?;
        self.drawn.insert(layers, sequence);
        Ok(sequence)
    }

    /// Of the step to come, on these micro-batches.
    fn control(&self, window: &[Batch]) -> Control {
        let o = &self.options;
        // Where the optimizer begins anew with each drawing, so does its count.
        let t = self.adapter.method.interval().map_or(self.step, |interval| self.step % interval) + 1;
        let bias = |beta: f32| (1.0 - (beta as f64).powi(t.min(i32::MAX as u64) as i32)) as f32;
        Control {
            inv_tokens: (1.0 / supervised(window).max(1) as f64) as f32,
            ring: (self.step % RING_SLOTS as u64) as u32,
            lr: o.schedule.rate(o.peak_lr(), self.step, o.warmup_steps, self.total_steps) as f32,
            bias1: bias(BETA1),
            bias2: bias(BETA2),
            ..Default::default()
        }
    }

    /// Reads the reports of all steps submitted so far. An error says which step was not finite; the adapter is then
    /// still the one before that step. It comes after the sound reports, by a call of its own.
    pub async fn reports(&mut self, base: &mut Base) -> Result<Vec<StepReport>> {
        if let Some(error) = self.diverged.take() {
            return Err(error);
        }
        let mut reports = std::mem::take(&mut self.unread);
        if self.pending.is_empty() {
            return Ok(reports);
        }
        let ring = base.device.read(self.io.ring, 0, RING_SLOTS * REPORT).await?;
        let seconds = (self.last_read.elapsed_ms() / 1e3).max(1e-6);
        self.last_read = Instant::now();
        let pending = std::mem::take(&mut self.pending);
        let fits = READ_EVERY_MS / 1e3 / seconds * pending.len() as f64;
        self.steps_a_read = (fits as usize).clamp(1, RING_SLOTS.min(2 * pending.len()));
        let speed = pending.iter().map(|p| p.tokens).sum::<u64>() as f64 / seconds;
        for p in pending {
            let (loss, grad_norm) = match p.outcome(&ring, base.device.fp16()) {
                Ok(outcome) => outcome,
                Err(error) if reports.is_empty() => return Err(error),
                Err(error) => {
                    self.diverged = Some(error);
                    break;
                }
            };
            reports.push(StepReport {
                step: p.step,
                loss,
                lr: p.lr,
                grad_norm,
                tokens: p.tokens,
                supervised_tokens: p.supervised,
                tokens_per_sec: speed,
            });
        }
        Ok(reports)
    }

    /// Loss and accuracy over all batches, each once. Remembers the adapter when it is the best so far.
    pub async fn evaluate(&mut self, base: &mut Base, batches: &Batches) -> Result<Evaluation> {
        let evaluation = self.measure(base, batches).await?;
        if self.is_best(&evaluation) {
            self.best = Some((evaluation.loss, self.step, self.values(base).await?));
        }
        Ok(evaluation)
    }

    /// [`Trainer::evaluate`] as it would have been before the first step, which by then was taken and may be shown: the
    /// same numbers, and the run goes on with the same bits. Once, and before any other evaluation.
    pub async fn evaluate_start(&mut self, base: &mut Base, batches: &Batches) -> Result<Evaluation> {
        let Some(start) = self.start.take().filter(|_| self.best.is_none()) else {
            let hint = "evaluate the start once, first of all evaluations, in a run that was not resumed";
            return Err(Error::setting("validate", "the run's start is not known any more", hint));
        };
        let now = self.values(base).await?;
        self.set_adapter(base, &start);
        let measured = self.measure(base, batches).await;
        self.set_adapter(base, &now);
        let evaluation = measured?;
        if self.is_best(&evaluation) {
            self.best = Some((evaluation.loss, 0, start));
        }
        Ok(evaluation)
    }

    async fn measure(&mut self, base: &mut Base, batches: &Batches) -> Result<Evaluation> {
        while self.measured.len() < self.deal.workers {
            self.compute_share(base, Work::Evaluation(batches)).await?;
        }
        let mut shares: Vec<_> = self.measured.drain(..).map(Vec::into_iter).collect();
        let mut sums = Vec::new();
        for batch in 0..batches.batches_per_epoch() as usize {
            let share = &mut shares[batch % self.deal.workers];
            sums.extend(share.take(SUMS));
        }
        self.last_read = Instant::now();
        Ok(Evaluation::of(batches, &sums))
    }

    fn is_best(&self, evaluation: &Evaluation) -> bool {
        let better = self.best.as_ref().is_none_or(|(best, ..)| evaluation.loss < *best);
        better && evaluation.loss.is_finite()
    }

    /// The adapter's parameters now.
    pub async fn values(&self, base: &mut Base) -> Result<Vec<f32>> {
        base.device.read(self.patches.params, 0, self.adapter.len).await
    }

    /// All that the run has become, between two steps; an error where a step was not finite. Reports that were not read
    /// are not part of it.
    pub async fn state(&mut self, base: &mut Base) -> Result<State> {
        if let Some(error) = self.diverged.take() {
            return Err(error);
        }
        let ring = base.device.read(self.io.ring, 0, RING_SLOTS * REPORT).await?;
        for p in &self.pending {
            p.outcome(&ring, base.device.fp16())?;
        }
        Ok(State {
            step: self.step,
            adapter: self.values(base).await?,
            moments: self.optimizer.read(&mut base.device).await?,
            best: self.best.clone(),
        })
    }

    /// Goes on from a state of the same run. Batches, dropout and learning rates follow from the step's number.
    pub fn restore(&mut self, base: &mut Base, state: State) {
        assert_eq!(state.adapter.len(), self.adapter.len, "a state of another adapter");
        base.device.write_floats(self.patches.params, 0, &state.adapter);
        self.optimizer.write(&mut base.device, &state.moments);
        (self.step, self.best, self.start) = (state.step, state.best, None);
    }

    /// Begins anew with other data, learning rate and steps (warming up, and all), in the buffers of this run: the same
    /// as a new run of the same shapes.
    pub fn restart(&mut self, base: &mut Base, initial: Vec<f32>, batches: Batches, lr: f64, steps: (u64, u64)) {
        let (warmup, steps) = steps;
        let moments = Moments::zeros(self.options.optim, self.adapter.len);
        let state = State { step: 0, adapter: initial.clone(), moments, best: None };
        self.restore(base, state);
        base.device.write_floats(self.patches.grads, 0, &vec![0.0; self.adapter.len]);
        (self.options.lr, self.options.steps, self.options.warmup_steps) = (Some(lr), Some(steps), warmup);
        (self.batches, self.total_steps, self.start) = (batches, steps, Some(initial));
        (self.diverged, self.steps_a_read) = (None, 1);
        self.pending.clear();
        self.unread.clear();
        self.gathered = Gathered::default();
        self.measured.clear();
    }

    /// The loss of every example of `batches`, of `count` in all, with the adapter as it is now.
    pub async fn example_losses(
        &mut self,
        base: &mut Base,
        batches: &Batches,
        count: usize,
    ) -> Result<Vec<ExampleLoss>> {
        self.unread = self.reports(base).await?;
        let losses = example_losses(base, &self.io, self.sequences.evaluate, batches, count, &mut |_, _| {}).await;
        self.last_read = Instant::now();
        losses
    }

    /// The best validation loss, its step and adapter.
    pub fn best(&self) -> Option<(f64, u64, &[f32])> {
        self.best.as_ref().map(|(loss, step, adapter)| (*loss, *step, adapter.as_slice()))
    }

    /// Turns the adapter into the given parameters (the best ones, say).
    pub fn set_adapter(&self, base: &mut Base, flat: &[f32]) {
        base.device.write_floats(self.patches.params, 0, flat);
    }

    /// The adapter's gradients as accumulated by a micro-batch, without an update: for tests against references.
    pub async fn gradients(&mut self, base: &mut Base, batch: &Batch) -> Result<(f64, Vec<f32>)> {
        let mut control = self.control(std::slice::from_ref(batch));
        (control.first, control.rows, control.ring) = (true, batch.supervised as u32, 0);
        write_batch(base, &self.io, batch, &control);
        base.device.write_floats(self.patches.grads, 0, &vec![0.0; self.adapter.len]);
        base.device.run(&base.plan, self.sequences.train.expect("a trainer trains"), control.rows)?;
        let loss = base.device.read(self.io.ring, 0, 1).await?[0] as f64 / batch.supervised as f64;
        let grads = base.device.read(self.patches.grads, 0, self.adapter.len).await?;
        base.device.write_floats(self.patches.grads, 0, &vec![0.0; self.adapter.len]);
        Ok((loss, grads))
    }
}

/// What to run instead of what a device had no room for.
fn instead(memory: &MemoryPlan, options: &TrainOptions) -> String {
    memory.what_to_lower(options, "take a smaller model")
}

fn supervised(window: &[Batch]) -> u64 {
    window.iter().map(|batch| batch.supervised as u64).sum()
}

fn diverged(step: u64, loss: f64, grad_norm: f32, fp16: bool) -> Error {
    let overflow = if fp16 { "leave fp16 out, since halves overflow at 65504; or " } else { "" };
    Error::Diverged {
        step,
        what: format!("the loss is {loss} and the gradient norm {grad_norm}; the adapter of step {} is kept", step - 1),
        hint: format!("{overflow}lower --lr, add --warmup-steps, or look at the data with `luthier inspect data`"),
    }
}
