//! Examples to batches of fixed shape `[B, T]`. A batch is a pure function of (examples, options, index): a run that
//! goes on after a stop sees the batches it would have seen.
//!
//! Several examples share a row (best fit, longest first), each a document of its own: positions start at 0 in each,
//! and `spans` says which tokens a token may attend to. The rows are made once; their order is drawn anew for every
//! epoch. Without shuffling, rows are filled in the order of the file.

use super::encode::{Dataset, Example};
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// The target of a token that predicts nothing.
pub const IGNORE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub struct PackOptions {
    pub b: usize,
    pub t: usize,
    /// Put several examples in a row.
    pub packing: bool,
    pub shuffle: bool,
    pub seed: u64,
}

/// `B` rows of `T` tokens; token `n = b·T + t`.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub b: usize,
    pub t: usize,
    pub ids: Vec<u32>,
    /// The next token where it is of the same document and a target, else `IGNORE`.
    pub targets: Vec<u32>,
    /// Place within the document.
    pub positions: Vec<u32>,
    /// The token's document: index of its first token, and one past its last. Padding: itself.
    pub spans: Vec<[u32; 2]>,
    /// Tokens that have a target, and tokens that are not padding.
    pub supervised: usize,
    pub tokens: usize,
}

impl Batch {
    /// A batch of padding.
    fn empty(b: usize, t: usize) -> Batch {
        let n = b * t;
        let spans = (0..n as u32).map(|i| [i, i + 1]).collect();
        let (ids, targets, positions) = (vec![0; n], vec![IGNORE; n], vec![0; n]);
        Batch { b, t, ids, targets, positions, spans, supervised: 0, tokens: 0 }
    }

    fn put(&mut self, start: usize, example: &Example) {
        let end = start + example.ids.len();
        for (i, id) in example.ids.iter().enumerate() {
            let n = start + i;
            self.ids[n] = *id;
            self.positions[n] = i as u32;
            self.spans[n] = [start as u32, end as u32];
            if example.supervised.get(i + 1) == Some(&true) {
                self.targets[n] = example.ids[i + 1];
                self.supervised += 1;
            }
        }
        self.tokens += example.ids.len();
    }
}

pub struct Batches {
    examples: Arc<Vec<Example>>,
    options: PackOptions,
    /// The examples of each row.
    rows: Vec<Vec<u32>>,
    /// The epoch whose batches were asked for last, and its rows in order: drawing it takes time for every row.
    order: RefCell<(u64, Rc<[u32]>)>,
}

impl Batches {
    /// Examples without a target are left out: they would cost time and teach nothing (`Stats` counts them).
    pub fn new(data: &Dataset, options: PackOptions) -> Result<Batches> {
        check(data, &options)?;
        let used: Vec<u32> =
            (0u32..).zip(data.examples.iter()).filter(|(_, e)| e.targets() > 0).map(|(i, _)| i).collect();
        let length = |i: &u32| data.examples[*i as usize].ids.len();
        let rows = match (options.packing, options.shuffle) {
            (false, _) => used.into_iter().map(|i| vec![i]).collect(),
            (true, false) => in_order(&used, length, options.t),
            (true, true) => best_fit(&used, length, options.t),
        };
        if rows.is_empty() {
            let what = "no example has a token that is a target".into();
            return Err(Error::Data {
                file: data.file.clone(),
                line: None,
                what,
                hint: "see `luthier inspect data`".into(),
            });
        }
        let order = RefCell::new((0, row_order(&options, rows.len(), 0)));
        Ok(Batches { examples: data.examples.clone(), options, rows, order })
    }

    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    pub fn batches_per_epoch(&self) -> u64 {
        self.rows.len().div_ceil(self.options.b) as u64
    }

    /// Batch `index` of the run, counting from 0 through all epochs. The last of an epoch may have empty rows.
    pub fn batch(&self, index: u64) -> Batch {
        self.part(index, 0..self.options.b)
    }

    /// Some rows of batch `index` as a batch of their own; those past its end are empty.
    pub fn part(&self, index: u64, part: Range<usize>) -> Batch {
        let PackOptions { b, t, .. } = self.options;
        let (epoch, within) = (index / self.batches_per_epoch(), index % self.batches_per_epoch());
        let order = self.order(epoch);
        let rows = order.iter().skip(within as usize * b).take(b);
        let mut batch = Batch::empty(part.len(), t);
        for (row, which) in rows.skip(part.start).take(part.len()).enumerate() {
            let mut at = row * t;
            for example in &self.rows[*which as usize] {
                let example = &self.examples[*example as usize];
                batch.put(at, example);
                at += example.ids.len();
            }
        }
        batch
    }

    /// The examples of batch `index`, by their number in the data, in the order of their tokens.
    pub fn examples(&self, index: u64) -> Vec<usize> {
        let (epoch, within) = (index / self.batches_per_epoch(), index % self.batches_per_epoch());
        let b = self.options.b;
        let rows = self.order(epoch);
        let rows = rows.iter().skip(within as usize * b).take(b);
        rows.flat_map(|row| self.rows[*row as usize].iter().map(|example| *example as usize)).collect()
    }

    /// Targets of an example.
    pub fn targets(&self, example: usize) -> usize {
        self.examples[example].targets()
    }

    fn order(&self, epoch: u64) -> Rc<[u32]> {
        let mut last = self.order.borrow_mut();
        if last.0 != epoch {
            *last = (epoch, row_order(&self.options, self.rows.len(), epoch));
        }
        last.1.clone()
    }
}

/// The order of the rows in an epoch.
fn row_order(options: &PackOptions, rows: usize, epoch: u64) -> Rc<[u32]> {
    match options.shuffle {
        true => shuffled(rows, options.seed, epoch).into(),
        false => (0..rows as u32).collect(),
    }
}

fn check(data: &Dataset, options: &PackOptions) -> Result<()> {
    let PackOptions { b, t, .. } = *options;
    if b == 0 {
        return Err(Error::setting("batch-size", "0 rows a batch", "use 1 or more"));
    }
    if b.checked_mul(t).is_none_or(|n| n >= IGNORE as usize) {
        let what = format!("{b} rows of {t} tokens are more than can be numbered");
        return Err(Error::setting("batch-size", what, "use a smaller batch or shorter sequences"));
    }
    let longest = data.examples.iter().map(|example| example.ids.len()).max().unwrap_or(0);
    if longest > t {
        let what = format!("rows of {t} tokens cannot hold an example of {longest}");
        return Err(Error::setting("seq-len", what, "encode the data with the same --seq-len"));
    }
    Ok(())
}

/// Fills one row after the other, in order.
fn in_order(used: &[u32], length: impl Fn(&u32) -> usize, t: usize) -> Vec<Vec<u32>> {
    let mut rows: Vec<Vec<u32>> = Vec::new();
    let mut room = 0;
    for i in used {
        if length(i) > room {
            rows.push(Vec::new());
            room = t;
        }
        room -= length(i);
        rows.last_mut().expect("a row was just begun").push(*i);
    }
    rows
}

/// Best fit, longest first: every example goes where it leaves the least room.
fn best_fit(used: &[u32], length: impl Fn(&u32) -> usize, t: usize) -> Vec<Vec<u32>> {
    let mut by_length = used.to_vec();
    by_length.sort_by_key(|i| std::cmp::Reverse(length(i)));
    let mut rows: Vec<Vec<u32>> = Vec::new();
    // Rows by the room they have left.
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for i in by_length {
        let need = length(&i);
        let (room, row) = match open.range_mut(need..).next() {
            Some((&room, candidates)) => {
                let row = candidates.pop().expect("no room is kept without a row");
                if candidates.is_empty() {
                    open.remove(&room);
                }
                (room, row)
            }
            None => {
                rows.push(Vec::new());
                (t, rows.len() - 1)
            }
        };
        rows[row].push(i);
        open.entry(room - need).or_default().push(row);
    }
    rows
}

/// How much of a data set is held back for validation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Split {
    Fraction(f64),
    Count(usize),
}

/// (training, validation), each in the order of the file. Equal examples stay on one side, so that the validation
/// loss is of examples that were not trained on.
pub fn split(data: &Dataset, split: Split, seed: u64) -> Result<(Dataset, Dataset)> {
    let n = data.examples.len();
    let wanted = wanted(split, n)?;
    let mut group_of: HashMap<&[u32], u32> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, example) in data.examples.iter().enumerate() {
        let group = *group_of.entry(&example.ids).or_insert(groups.len() as u32);
        if group as usize == groups.len() {
            groups.push(Vec::new());
        }
        groups[group as usize].push(i);
    }
    if groups.len() == 1 {
        let what = format!("{n} examples, all the same, cannot be parted");
        let hint = "give more data, or a validation file with --eval-data; 0 trains without validation";
        return Err(Error::setting("val-fraction", what, hint));
    }
    let drawn = shuffled(groups.len(), seed, u64::MAX).into_iter().map(|group| &groups[group as usize]);
    // A group that is too large for what is still wanted is passed over. In oversampled data every group may be: then
    // the smallest is held back, the first of them that is drawn.
    let smallest = groups.iter().map(Vec::len).min().unwrap_or(0);
    let (mut held, mut left) = (vec![false; n], wanted.max(smallest));
    for group in drawn {
        if group.len() <= left {
            left -= group.len();
            group.iter().for_each(|i| held[*i] = true);
        }
    }
    let side = |validation: bool| {
        let of_side = data.examples.iter().zip(&held).filter(|(_, held)| **held == validation);
        let examples: Vec<Example> = of_side.map(|(example, _)| example.clone()).collect();
        let records = examples.len();
        Dataset::new(data.file.clone(), examples, records, 0, data.stats.seq_len)
    };
    Ok((side(false), side(true)))
}

fn wanted(split: Split, n: usize) -> Result<usize> {
    let (wanted, said) = match split {
        Split::Fraction(part) if part > 0.0 && part < 1.0 => {
            (((n as f64 * part).round() as usize).max(1), part.to_string())
        }
        Split::Fraction(part) => (0, part.to_string()),
        Split::Count(count) => (count, count.to_string()),
    };
    if wanted == 0 || wanted >= n {
        let what = format!("{said} of {n} examples leaves nothing on one side");
        let hint = "use a fraction between 0 and 1, or a count below the data's";
        return Err(Error::setting("val-fraction", what, hint));
    }
    Ok(wanted)
}

/// A permutation of `0..n` drawn from (seed, stream) alone: Fisher and Yates, each draw a hash of its place.
fn shuffled(n: usize, seed: u64, stream: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    let key = mix(mix(seed) ^ stream);
    for i in (1..n).rev() {
        let draw = mix(key ^ i as u64);
        let j = (u128::from(draw) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// SplitMix64's finaliser: every bit of the input moves about half of the bits of the output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epochs_order_is_drawn_once() {
        let ids = |i: u32| Example {
            ids: vec![i, i],
            supervised: vec![false, true],
            truncated: false,
            line: 1,
            full_len: 2,
            full_supervised: 1,
        };
        let data = Dataset::new("made".into(), (0..40).map(ids).collect(), 40, 0, 2);
        let batches = Batches::new(&data, PackOptions { b: 1, t: 2, packing: true, shuffle: true, seed: 3 }).unwrap();
        let first = batches.order(1);
        assert!(Rc::ptr_eq(&first, &batches.order(1)), "it was drawn again");
        assert_ne!(first, batches.order(2));
        assert_eq!(first, batches.order(1), "and it is the same when it has to be");
    }
}
