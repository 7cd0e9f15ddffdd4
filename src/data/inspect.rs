//! What the model will see, shown: the mask is where tuning goes wrong unseen.

use super::encode::{Dataset, Example, Stats};
use super::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::json;

/// An example as one line of JSON.
pub fn example_json(example: &Example) -> String {
    let supervised: Vec<u8> = example.supervised.iter().map(|is| u8::from(*is)).collect();
    json!({ "ids": example.ids, "supervised": supervised, "truncated": example.truncated }).to_string()
}

/// An example as text, with what is learned in green (`color`) or between ⟦ and ⟧. Characters that do not show, or
/// that reorder others, are spelled out.
pub fn example_text(tokenizer: &Tokenizer, example: &Example, color: bool) -> String {
    let (open, close) = if color { ("\x1b[32m", "\x1b[0m") } else { ("⟦", "⟧") };
    let mut out = String::new();
    let mut at = 0;
    for run in example.supervised.chunk_by(|a, b| a == b) {
        let text = visible(&tokenizer.decode(&example.ids[at..at + run.len()], false));
        match run[0] {
            true => out.extend([open, &text, close]),
            false => out.push_str(&text),
        }
        at += run.len();
    }
    let (targets, tokens) = (example.targets(), example.ids.len());
    let cut = if example.truncated { format!(", cut from {}", example.full_len) } else { String::new() };
    format!("line {}: {targets} of {tokens} tokens learned{cut}\n{out}\n", example.line)
}

/// Line ends, tabs, control characters and those that reorder others, as something that shows.
pub(super) fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("↵\n"),
            '\t' => out.push('⇥'),
            c if c.is_control() || reorders(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Zero-width and bidirectional controls, with which a text can look like another.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}')
}

/// Counts, and what the user should know before training on this.
pub fn summary(data: &Dataset) -> String {
    let Stats { records, examples, tokens, supervised, longest, seq_len, .. } = data.stats;
    let mut out = format!(
        "{}: {records} records, {examples} examples, {tokens} tokens, {supervised} of them learned; the longest example \
         has {longest} tokens, {seq_len} fit\n",
        data.file
    );
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            out.push_str(&format!("  {count} {what}\n"));
        }
    };
    note(data.stats.skipped, "records left out because they could not be used");
    note(data.stats.truncated as u64, "examples cut at the end (--seq-len)");
    note(data.stats.lost_targets as u64, "of these lost tokens that were to be learned");
    note(data.stats.without_targets as u64, "examples have nothing to learn and are passed over");
    note(data.stats.duplicates as u64, "examples are equal to an earlier one");
    out
}

/// Lengths before truncation, in tokens, as bars.
pub fn histogram(data: &Dataset) -> String {
    const WIDTH: usize = 40;
    let Lengths { edges, counts } = Lengths::new(data);
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let bar = |(edges, count): (&[usize], &usize)| {
        let (from, to) = (edges[0], edges[1] - 1);
        format!("{from:>6}-{to:<6} {:<WIDTH$} {count}\n", "█".repeat((count * WIDTH).div_ceil(most)))
    };
    edges.windows(2).zip(&counts).map(bar).collect()
}

/// Examples by their length before truncation: `counts[i]` have `edges[i] <= length < edges[i + 1]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lengths {
    pub edges: Vec<usize>,
    pub counts: Vec<usize>,
}

impl Lengths {
    pub fn new(data: &Dataset) -> Lengths {
        const BINS: usize = 12;
        let longest = data.stats.longest.max(1);
        let step = longest.div_ceil(BINS);
        let mut counts = vec![0; longest.div_ceil(step)];
        for example in data.examples.iter() {
            counts[example.full_len.saturating_sub(1) / step] += 1;
        }
        Lengths { edges: (0..=counts.len()).map(|i| i * step + 1).collect(), counts }
    }
}
