//! One method of several that are compared: the same data, steps and seed, and what each cost and brought.

use super::{Forgetting, Session};
use crate::clock::Instant;
use crate::data::Records;
use crate::error::Result;
use crate::train::{Evaluation, TrainOptions};
use serde::Serialize;

/// What a method brought, and what it cost.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    pub method: &'static str,
    pub lr: f64,
    /// The validation before the first step.
    pub start: Option<Evaluation>,
    /// The best validation and its step.
    pub best: Option<Evaluation>,
    pub step: u64,
    pub steps: u64,
    /// Tokens of the text that were trained on; virtual ones are not among them.
    pub tokens: u64,
    pub trainable_parameters: u64,
    /// Of the base with the adapter.
    pub parameters: u64,
    /// Of the adapter's files.
    pub adapter_bytes: u64,
    /// What the run held on its device.
    pub memory_bytes: u64,
    /// Of the steps alone.
    pub seconds: f64,
    pub forgetting: Forgetting,
}

impl Session {
    /// Tunes as the options say and goes back to the best validation, so that the adapter can be asked what else it is
    /// worth. Uses up the session's one run. `progress` gets steps done and in all.
    pub async fn try_method(
        &mut self,
        records: &Records,
        validation: Option<&Records>,
        options: TrainOptions,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Tried> {
        let (method, lr, seed) = (options.method.name(), options.peak_lr(), options.seed);
        let (eval_every, window) = (options.eval_every, (options.batch_size * options.grad_accum) as u64);
        let tokens_a_step = window * options.seq_len as u64;
        let summary = self.start_training(records, validation, options, None, None).await?;
        let start = self.validate().await?;
        let (mut best, mut seconds) = (start.clone(), 0.0);
        while !self.done() {
            let clock = Instant::now();
            self.step().await?;
            let step = self.step_number();
            let measured = self.done() || (eval_every > 0 && step.is_multiple_of(eval_every));
            if measured {
                while !self.reports().await?.is_empty() {}
            }
            seconds += clock.elapsed_ms() / 1e3;
            progress(step, summary.steps);
            if measured && let Some(now) = self.validate().await? {
                best = Some(now).filter(|now| best.as_ref().is_none_or(|b| now.loss < b.loss)).or(best);
            }
        }
        let step = self.use_best().map_or(summary.steps, |best| best.step);
        let adapter_bytes = self.adapter_files().await?.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let forgetting = self.forgetting(seed).await?;
        Ok(Tried {
            method,
            lr,
            start,
            best,
            step,
            steps: summary.steps,
            tokens: summary.steps * tokens_a_step,
            trainable_parameters: summary.trainable_parameters,
            parameters: summary.all_parameters(),
            adapter_bytes,
            memory_bytes: summary.memory.total,
            seconds,
            forgetting,
        })
    }
}
