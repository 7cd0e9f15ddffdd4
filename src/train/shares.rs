//! A step shared out among workers that have no memory in common, as a browser's have not: the rows of each micro-batch
//! are cut into parts, a worker sums the gradients of its parts, and who has the optimizer adds the sums, in the
//! workers' order. So the bits depend on the number of workers alone, and not on who computed what and when: the share
//! of a worker that is late or lost is computed by another, to the same bits.

use super::options::TrainOptions;
use crate::data::Batches;
use std::ops::Range;

/// What is dealt out.
#[derive(Clone, Copy)]
pub enum Work<'a> {
    /// The gradients of the step to come.
    Step,
    /// The losses of an evaluation's batches.
    Evaluation(&'a Batches),
}

/// How the rows of a step are dealt out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deal {
    /// Those that get something.
    pub workers: usize,
    /// Rows of a part: what a worker's buffers are made for.
    pub rows: usize,
    /// Parts of a micro-batch; the last may be shorter.
    parts: usize,
    micro_batches: usize,
}

/// Rows of a micro-batch that are computed together.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Among all parts of the step.
    pub number: usize,
    pub micro_batch: usize,
    pub rows: Range<usize>,
}

impl Deal {
    /// Among at most so many: fewer where more would not shorten the step.
    pub fn among(workers: usize, options: &TrainOptions) -> Deal {
        let micro_batches = options.grad_accum;
        let rows = options.batch_size.div_ceil(workers.max(1)).max(1);
        let parts = options.batch_size.div_ceil(rows);
        let all = parts * micro_batches;
        let longest = all.div_ceil(workers.max(1)).max(1);
        Deal { workers: all.div_ceil(longest), rows, parts, micro_batches }
    }

    /// As the options say.
    pub fn of(options: &TrainOptions) -> Deal {
        Deal::among(options.workers.unwrap_or(1), options)
    }

    /// Parts of a step.
    pub fn total(&self) -> usize {
        self.parts * self.micro_batches
    }

    /// The batches of an evaluation, of so many, that a worker computes.
    pub fn batches(&self, worker: usize, of: u64) -> impl Iterator<Item = u64> {
        (worker as u64..of).step_by(self.workers)
    }

    /// What a worker computes of a step, in this order.
    pub fn share(&self, worker: usize) -> impl Iterator<Item = Part> {
        let Deal { workers, rows, parts, .. } = *self;
        let part = move |number: usize| {
            let row = number % parts * rows;
            Part { number, micro_batch: number / parts, rows: row..row + rows }
        };
        (worker..self.total()).step_by(workers).map(part)
    }
}

/// Floats before the gradients of a share: the sums of loss and of hits.
pub const SUMS: usize = 2;

/// The shares of a step that were brought so far, added up.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Shares, which are those of the first so many workers.
    pub count: usize,
    /// Loss, hits and gradients.
    sum: Vec<f32>,
}

impl Gathered {
    pub fn add(&mut self, share: Vec<f32>) {
        match self.count {
            0 => self.sum = share,
            _ => {
                assert_eq!(share.len(), self.sum.len(), "floats of a share");
                self.sum.iter_mut().zip(&share).for_each(|(sum, x)| *sum += x);
            }
        }
        self.count += 1;
    }

    /// (sums, gradients) of all; nothing is left here.
    pub fn take(&mut self) -> Vec<f32> {
        std::mem::take(self).sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deal(batch_size: usize, grad_accum: usize, workers: usize) -> Deal {
        Deal::among(workers, &TrainOptions { batch_size, grad_accum, ..Default::default() })
    }

    #[test]
    fn every_row_is_dealt_once_and_evenly() {
        for (b, accum, workers) in (1..9).flat_map(|b| (1..5).flat_map(move |a| (1..10).map(move |w| (b, a, w)))) {
            let deal = deal(b, accum, workers);
            assert!((1..=workers).contains(&deal.workers) && deal.workers <= b * accum, "{b} x {accum}: {deal:?}");
            let shares: Vec<Vec<Part>> = (0..deal.workers).map(|worker| deal.share(worker).collect()).collect();
            let mut seen = vec![0; b * accum];
            for part in shares.iter().flatten() {
                assert_eq!(part.rows.len(), deal.rows);
                part.rows.clone().filter(|row| *row < b).for_each(|row| seen[part.micro_batch * b + row] += 1);
            }
            assert!(seen.iter().all(|times| *times == 1), "{b} x {accum} among {workers}: {seen:?}");
            let lengths: Vec<usize> = shares.iter().map(Vec::len).collect();
            let (least, most) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
            assert!(*least >= 1 && most - least <= 1, "{b} x {accum} among {workers}: {lengths:?}");
        }
    }

    /// A run writes down for how many it was dealt, and is dealt so again.
    #[test]
    fn what_was_dealt_is_dealt_again() {
        for (b, accum, workers) in (1..17).flat_map(|b| (1..9).flat_map(move |a| (1..12).map(move |w| (b, a, w)))) {
            let dealt = deal(b, accum, workers);
            assert_eq!(deal(b, accum, dealt.workers), dealt, "{b} x {accum} among {workers}");
        }
    }

    #[test]
    fn fewer_get_something_where_more_would_not_help() {
        for (b, accum, workers, got, rows) in [
            (4, 1, 1, 1, 4),
            (4, 1, 2, 2, 2),
            (4, 1, 3, 2, 2),
            (4, 1, 9, 4, 1),
            (6, 1, 4, 3, 2),
            (1, 4, 3, 2, 1),
            (4, 3, 3, 3, 2),
        ] {
            let deal = deal(b, accum, workers);
            assert_eq!((deal.workers, deal.rows), (got, rows), "{b} x {accum} among {workers}");
        }
    }
}
