//! Records to examples: ids, and for each token whether it is a target.

use super::mask::{Marked, Piece, mark};
use super::problems::Problems;
use super::read::Records;
use super::record::Record;
use super::tokenizer::Tokenizer;
use crate::digest::Digest;
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
pub struct EncodeOptions {
    /// The longest example, in tokens. Longer ones lose their end.
    pub seq_len: usize,
    /// Put prompt/completion and instruction records through the model's chat template, where it has one.
    pub use_template: bool,
}

impl EncodeOptions {
    pub(super) fn check(&self) -> Result<()> {
        if self.seq_len >= 2 {
            return Ok(());
        }
        let what = format!("{} tokens leave nothing to predict", self.seq_len);
        Err(Error::setting("seq-len", what, "use 2 or more; 256 to 1024 suits most data"))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    pub ids: Vec<u32>,
    /// Whether a token is a target. Never the first: nothing comes before it to predict it from.
    pub supervised: Vec<bool>,
    pub truncated: bool,
    /// Where it came from in its file, counting from 1.
    pub line: u64,
    /// Length and targets before truncation.
    pub full_len: usize,
    pub full_supervised: usize,
}

impl Example {
    pub fn targets(&self) -> usize {
        self.supervised.iter().filter(|is| **is).count()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    pub records: usize,
    /// Records left out by the reader or by the template, because the user asked for that.
    pub skipped: u64,
    pub examples: usize,
    /// Examples equal to an earlier one.
    pub duplicates: usize,
    /// Examples cut to `seq_len`; those of them that lost targets; those (cut or not) that have none.
    pub truncated: usize,
    pub lost_targets: usize,
    pub without_targets: usize,
    pub tokens: usize,
    pub supervised: usize,
    /// The longest example before truncation.
    pub longest: usize,
    pub seq_len: usize,
}

/// Examples in the order of their file.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub file: String,
    pub examples: Arc<Vec<Example>>,
    pub stats: Stats,
}

impl Dataset {
    pub fn encode(records: &Records, tokenizer: &Tokenizer, options: &EncodeOptions) -> Result<Dataset> {
        options.check()?;
        let mut examples = Vec::with_capacity(records.records.len());
        let mut problems = Problems::default();
        for (line, record) in &records.records {
            match encode_record(tokenizer, record, *line, options) {
                Ok(made) => examples.extend(made),
                Err(err) => problems.add(*line, err.to_string(), err.hint()),
            }
        }
        if !problems.is_empty() && (!records.skip_bad || examples.is_empty()) {
            return Err(problems.error(&records.file, records.unit, records.records.len() as u64));
        }
        let skipped = records.skipped() + problems.count();
        let data = Dataset::new(records.file.clone(), examples, records.records.len(), skipped, options.seq_len);
        data.check()?;
        Ok(data)
    }

    pub(super) fn new(file: String, examples: Vec<Example>, records: usize, skipped: u64, seq_len: usize) -> Dataset {
        let mut stats = Stats { records, skipped, examples: examples.len(), seq_len, ..Stats::default() };
        let mut seen = HashSet::new();
        for example in &examples {
            let targets = example.targets();
            stats.duplicates += usize::from(!seen.insert((&example.ids, &example.supervised)));
            stats.truncated += usize::from(example.truncated);
            stats.lost_targets += usize::from(targets < example.full_supervised);
            stats.without_targets += usize::from(targets == 0);
            stats.tokens += example.ids.len();
            stats.supervised += targets;
            stats.longest = stats.longest.max(example.full_len);
        }
        Dataset { file, examples: Arc::new(examples), stats }
    }

    /// The examples with these ids before each, none of them a target.
    pub fn prefixed(&self, prefix: &[u32]) -> Dataset {
        let prefixed = |example: &Example| {
            let ids = [prefix, &example.ids].concat();
            let supervised = [vec![false; prefix.len()].as_slice(), &example.supervised].concat();
            Example { ids, supervised, ..example.clone() }
        };
        let examples = Arc::new(self.examples.iter().map(prefixed).collect());
        Dataset { examples, ..self.clone() }
    }

    /// Some of the examples, by their numbers.
    pub fn subset(&self, keep: &[usize]) -> Dataset {
        let examples: Vec<Example> = keep.iter().map(|i| self.examples[*i].clone()).collect();
        let records = examples.len();
        Dataset::new(self.file.clone(), examples, records, 0, self.stats.seq_len)
    }

    /// What a run sees of the data: their tokens and which of them are learned.
    pub fn digest(&self) -> String {
        let mut digest = Digest::default();
        for example in self.examples.iter() {
            digest.add(&(example.ids.len() as u64).to_le_bytes());
            for (id, supervised) in example.ids.iter().zip(&example.supervised) {
                digest.add(&(u64::from(*id) << 1 | u64::from(*supervised)).to_le_bytes());
            }
        }
        digest.hex()
    }

    /// Training on nothing looks like training: the loss is a number and the model does not change.
    fn check(&self) -> Result<()> {
        if self.stats.supervised > 0 {
            return Ok(());
        }
        let Stats { examples, lost_targets, seq_len, longest, .. } = self.stats;
        let (what, hint) = if lost_targets > 0 {
            let what = format!(
                "nothing to learn: the answers of {lost_targets} of {examples} examples lie behind the first {seq_len} \
                 tokens (the longest example has {longest})"
            );
            (what, "raise --seq-len")
        } else {
            let what = format!("nothing to learn: none of the {examples} examples has a token that is a target");
            (what, "a chat needs an assistant's message whose weight is not 0")
        };
        Err(Error::Data { file: self.file.clone(), line: None, what, hint: hint.into() })
    }
}

/// The examples a record makes: one, or several where a long text is split.
pub(super) fn encode_record(
    tokenizer: &Tokenizer,
    record: &Record,
    line: u64,
    options: &EncodeOptions,
) -> Result<Vec<Example>> {
    let marked = mark(tokenizer, record, options.use_template)?;
    let (mut ids, mut supervised) = encode_marked(tokenizer, &marked)?;
    if marked.plain {
        end_text(tokenizer, record, &mut ids, &mut supervised)?;
    }
    if let Some(first) = supervised.first_mut() {
        *first = false;
    }
    if matches!(record, Record::Text { splits: true, .. }) {
        return Ok(windows(&ids, &supervised, line, options.seq_len));
    }
    Ok(vec![example(ids, supervised, line, options.seq_len)])
}

fn example(mut ids: Vec<u32>, mut supervised: Vec<bool>, line: u64, seq_len: usize) -> Example {
    let full_len = ids.len();
    let full_supervised = supervised.iter().filter(|is| **is).count();
    ids.truncate(seq_len);
    supervised.truncate(seq_len);
    Example { ids, supervised, truncated: full_len > seq_len, line, full_len, full_supervised }
}

/// A long text as several examples. Each begins with the last token of the one before, so that every token but the
/// first is a target once.
fn windows(ids: &[u32], supervised: &[bool], line: u64, seq_len: usize) -> Vec<Example> {
    let starts = (0..ids.len().saturating_sub(1).max(1)).step_by(seq_len - 1);
    starts
        .map(|start| {
            let end = ids.len().min(start + seq_len);
            let mut targets = supervised[start..end].to_vec();
            targets.iter_mut().take(1).for_each(|first| *first = false);
            example(ids[start..end].to_vec(), targets, line, seq_len)
        })
        .collect()
}

/// The end token behind a plain completion or text, as a target.
fn end_text(tokenizer: &Tokenizer, record: &Record, ids: &mut Vec<u32>, supervised: &mut Vec<bool>) -> Result<()> {
    match tokenizer.end_of_text() {
        Some(end) if ids.last() != Some(&end) => {
            ids.push(end);
            supervised.push(true);
        }
        Some(_) => {}
        None if matches!(record, Record::Text { .. }) => {}
        None => {
            let what = "the model has no end token, so it would never learn where a completion stops".into();
            let hint = "set eos_token_id in its generation_config.json, or use `text` records".into();
            return Err(Error::Unsupported { file: "tokenizer".into(), what, hint });
        }
    }
    Ok(())
}

/// The pieces are encoded one by one where the tokenizer allows it: the ids before an answer are then exactly those
/// that a prompt has when the model is used, whatever the answer begins with.
fn encode_marked(tokenizer: &Tokenizer, marked: &Marked) -> Result<(Vec<u32>, Vec<bool>)> {
    if !tokenizer.splits_anywhere() {
        return encode_whole(tokenizer, marked);
    }
    let (mut ids, mut supervised) = (Vec::new(), Vec::new());
    for (i, piece) in marked.pieces.iter().enumerate() {
        ids.extend(tokenizer.encode(&piece.text, marked.plain && i == 0)?);
        supervised.resize(ids.len(), piece.learned);
    }
    Ok((ids, supervised))
}

/// All pieces as one text; a token is a target if any of its text is learned.
fn encode_whole(tokenizer: &Tokenizer, marked: &Marked) -> Result<(Vec<u32>, Vec<bool>)> {
    let text: String = marked.pieces.iter().map(|piece| piece.text.as_str()).collect();
    let encoding = tokenizer.encode_offsets(&text)?;
    let spans = learned_spans(&marked.pieces);
    let learned = |(start, end): &(usize, usize)| spans.iter().any(|span| *start < span.1 && *end > span.0);
    let ids = tokenizer.encode(&text, marked.plain)?;
    // BOS, where it was put before the text, is no target.
    let mut supervised = vec![false; ids.len() - encoding.len()];
    supervised.extend(encoding.get_offsets().iter().map(learned));
    Ok((ids, supervised))
}

fn learned_spans(pieces: &[Piece]) -> Vec<(usize, usize)> {
    let mut at = 0;
    let mut spans = Vec::new();
    for piece in pieces {
        if piece.learned {
            spans.push((at, at + piece.text.len()));
        }
        at += piece.text.len();
    }
    spans
}
