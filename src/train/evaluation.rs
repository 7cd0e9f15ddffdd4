//! Loss and accuracy over batches: of all together, and of every example.

use super::shares::SUMS;
use crate::data::{Batch, Batches, IGNORE};
use crate::error::Result;
use crate::model::seam::split_virtual;
use crate::model::{Base, Inputs};
use crate::ops::control::{Control, REPORT, RING_SLOTS};
use crate::ops::cross_entropy;
use crate::ops::gather::NONE;
use crate::plan::SequenceId;
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Mean negative log-likelihood of a supervised token, in nats.
    pub loss: f64,
    pub perplexity: f64,
    /// Share of supervised tokens that the model ranks first.
    pub accuracy: f64,
    pub supervised_tokens: u64,
    pub tokens: u64,
}

impl Evaluation {
    /// From the sums of loss and of hits of every batch.
    pub(super) fn of(batches: &Batches, sums: &[f32]) -> Evaluation {
        let total = |which: usize| sums.chunks_exact(SUMS).map(|sums| sums[which] as f64).sum::<f64>();
        let (mut supervised_tokens, mut tokens) = (0, 0);
        for batch in (0..batches.batches_per_epoch()).map(|index| batches.batch(index)) {
            supervised_tokens += batch.supervised as u64;
            tokens += batch.tokens as u64;
        }
        let count = supervised_tokens.max(1) as f64;
        let (loss, accuracy) = (total(0) / count, total(1) / count);
        Evaluation { loss, perplexity: loss.exp(), accuracy, supervised_tokens, tokens }
    }
}

/// Loss of one example: summed over its targets, how many they are, and how many the model ranked first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ExampleLoss {
    pub loss: f64,
    pub tokens: u64,
    pub hits: u64,
}

impl ExampleLoss {
    pub fn mean(&self) -> f64 {
        self.loss / self.tokens as f64
    }
}

/// Writes what one micro-batch needs.
pub fn write_batch(base: &mut Base, io: &Inputs, batch: &Batch, control: &Control) {
    assert_eq!(batch.b * batch.t, io.n, "tokens of a batch");
    let (ids, virtual_rows) = split_virtual(&batch.ids);
    let (highest, vocab) = (ids.iter().max(), base.spec().vocab);
    assert!(highest.is_none_or(|id| (*id as usize) < vocab), "the token {highest:?} of a vocabulary of {vocab}");
    let (mut targets, mut rows, mut inverse) = (vec![NONE; io.n], vec![NONE; io.n], vec![NONE; io.n]);
    let supervised = (0..io.n).filter(|n| batch.targets[*n] != IGNORE);
    for (m, n) in supervised.enumerate() {
        (targets[m], rows[m], inverse[n]) = (batch.targets[n], n as u32, m as u32);
    }
    let spans: &[u32] = bytemuck::cast_slice(&batch.spans);
    let words: [(_, &[u32]); 8] = [
        (io.ids, &ids),
        (io.virtual_rows, &virtual_rows),
        (io.positions, &batch.positions),
        (io.spans, spans),
        (io.targets, &targets),
        (io.rows, &rows),
        (io.inverse, &inverse),
        (io.control, &control.words()),
    ];
    for (buf, words) in words {
        base.device.write(buf, 0, words);
    }
}

/// Loss and accuracy over all batches, each once.
pub async fn evaluate(base: &mut Base, io: &Inputs, sequence: SequenceId, batches: &Batches) -> Result<Evaluation> {
    let all: Vec<u64> = (0..batches.batches_per_epoch()).collect();
    Ok(Evaluation::of(batches, &batch_sums(base, io, sequence, batches, &all).await?))
}

/// The sums of loss and of hits of some batches, one after the other.
pub(super) async fn batch_sums(
    base: &mut Base,
    io: &Inputs,
    sequence: SequenceId,
    batches: &Batches,
    which: &[u64],
) -> Result<Vec<f32>> {
    let mut sums = Vec::with_capacity(SUMS * which.len());
    for group in which.chunks(RING_SLOTS) {
        for (slot, index) in group.iter().enumerate() {
            let batch = batches.batch(*index);
            let control =
                Control { first: true, ring: slot as u32, rows: batch.supervised as u32, ..Default::default() };
            write_batch(base, io, &batch, &control);
            base.device.run(&base.plan, sequence, control.rows)?;
        }
        let ring = base.device.read(io.ring, 0, group.len() * REPORT).await?;
        sums.extend(ring.chunks_exact(REPORT).flat_map(|report| &report[..SUMS]));
    }
    Ok(sums)
}

/// The loss of each of `count` examples; those without targets stay at nothing. `progress` counts batches.
pub async fn example_losses(
    base: &mut Base,
    io: &Inputs,
    sequence: SequenceId,
    batches: &Batches,
    count: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<ExampleLoss>> {
    let mut all = vec![ExampleLoss::default(); count];
    let total = batches.batches_per_epoch();
    for index in 0..total {
        progress(index, total);
        let batch = batches.batch(index);
        let control = Control { first: true, rows: batch.supervised as u32, ..Default::default() };
        write_batch(base, io, &batch, &control);
        base.device.run(&base.plan, sequence, control.rows)?;
        let rows = base.device.read(io.row_results, 0, batch.supervised * cross_entropy::ROW).await?;
        let mut rows = rows.chunks_exact(cross_entropy::ROW);
        for example in batches.examples(index) {
            let one = &mut all[example];
            one.tokens = batches.targets(example) as u64;
            for row in rows.by_ref().take(one.tokens as usize) {
                one.loss += row[0] as f64;
                one.hits += u64::from(row[1] > 0.0);
            }
        }
    }
    Ok(all)
}
