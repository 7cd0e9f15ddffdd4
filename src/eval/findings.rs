//! What ruins runs, found before or by a short probe: each finding says what, where (lines of the data) and what to do.

use super::item::Item;
use super::near;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// leakage, contradiction, label-noise, no-target, truncation, no-end, imbalance, learning-rate, repetition
    pub kind: &'static str,
    pub what: String,
    /// Lines of the data that it is about, the worst first; at most a few dozen.
    pub lines: Vec<u64>,
}

const LISTED: usize = 24;

fn finding(kind: &'static str, what: String, mut lines: Vec<u64>) -> Finding {
    lines.truncate(LISTED);
    Finding { kind, what, lines }
}

/// What is asked, or the text itself where nothing is.
pub fn asked(item: &Item) -> &str {
    if item.input.is_empty() { &item.expected } else { &item.input }
}

/// Test items that are near-duplicates of training items; lines are the test's.
pub fn leakage(train: &[Item], test: &[Item]) -> Option<Finding> {
    let texts: Vec<&str> = train.iter().chain(test).map(asked).collect();
    let between = near::pairs(&texts, near::LEVELS[1]);
    let mut leaked: Vec<u64> = between
        .iter()
        .filter(|(a, b)| *a < train.len() && *b >= train.len())
        .map(|(_, b)| test[b - train.len()].line)
        .collect();
    leaked.sort_unstable();
    leaked.dedup();
    let what = || {
        format!(
            "{} of {} test items are (nearly) in the training data, so the test flatters: take them out of one of the two",
            leaked.len(),
            test.len()
        )
    };
    (!leaked.is_empty()).then(|| finding("leakage", what(), leaked.clone()))
}

/// The same question with different answers.
pub fn contradictions(items: &[Item]) -> Option<Finding> {
    let mut answers: BTreeMap<&str, Vec<&Item>> = BTreeMap::new();
    let asking = items
        .iter()
        .filter(|item| !item.input.is_empty() && item.record.turns().is_some_and(|t| t.messages.len() <= 2));
    asking.for_each(|item| answers.entry(item.input.trim()).or_default().push(item));
    let differ = |same: &&Vec<&Item>| same.iter().any(|item| item.expected.trim() != same[0].expected.trim());
    let lines: Vec<u64> = answers.values().filter(differ).flatten().map(|item| item.line).collect();
    let what = || {
        format!("{} records ask the same and expect different answers: the model can learn one at most", lines.len())
    };
    (!lines.is_empty()).then(|| finding("contradiction", what(), lines.clone()))
}

/// One of few answers that nearly all records have.
pub fn imbalance(items: &[Item]) -> Option<Finding> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    items.iter().filter(|i| !i.input.is_empty()).for_each(|i| *counts.entry(i.expected.trim()).or_default() += 1);
    let (most, n) = counts.iter().max_by_key(|(_, count)| **count)?;
    let few = counts.len() >= 2 && counts.len() * 5 <= items.len();
    let share = 100.0 * *n as f64 / items.len() as f64;
    let what = || {
        let shown: String = most.chars().take(40).collect();
        format!(
            "{share:.0} % of the answers are {shown:?}: a model that always says so looks good; balance the data, and look \
             at macro-F1 instead of accuracy"
        )
    };
    (few && share >= 80.0).then(|| finding("imbalance", what(), Vec::new()))
}

/// Near-duplicates among the data themselves. `least` is how alike is near here.
pub fn repetition(items: &[Item], groups: &[Vec<usize>], least: f64) -> Option<Finding> {
    let repeated: Vec<u64> = groups.iter().flat_map(|g| &g[1..]).map(|i| items[*i].line).collect();
    let what = || {
        let near = if least < 1.0 { format!("at least {:.0} % alike", 100.0 * least) } else { "the same".to_string() };
        format!(
            "{} of {} records repeat an earlier one ({near}): they were kept on one side of the probe's split, and a test \
             of your own should keep them so",
            repeated.len(),
            items.len()
        )
    };
    (repeated.len() * 20 >= items.len() && !repeated.is_empty())
        .then(|| finding("repetition", what(), repeated.clone()))
}

/// Training records whose loss stays far above the rest's after tuning. `losses` are (line, mean loss).
pub fn noise(losses: &[(u64, f64)]) -> Option<Finding> {
    let middle = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let mut all: Vec<f64> = losses.iter().map(|(_, loss)| *loss).collect();
    let median = middle(&mut all)?;
    let spread = middle(&mut all.iter().map(|loss| (loss - median).abs()).collect())?;
    // Six deviations, and a token in three that is wrong by far: little is that by chance.
    let bound = median + (6.0 * 1.4826 * spread).max(0.7);
    let mut suspects: Vec<(u64, f64)> = losses.iter().copied().filter(|(_, loss)| *loss > bound).collect();
    suspects.sort_by(|a, b| b.1.total_cmp(&a.1));
    let what = || {
        format!(
            "{} of {} training records still have a loss above {bound:.2} (half are below {median:.2}): look whether \
             their answers are right",
            suspects.len(),
            losses.len()
        )
    };
    (!suspects.is_empty()).then(|| finding("label-noise", what(), suspects.iter().map(|s| s.0).collect()))
}

/// Learning rates and the loss each comes to in the same few steps; infinite where it left the numbers.
pub fn learning_rate(asked: f64, tried: &[(f64, f64)]) -> Option<Finding> {
    let best = tried.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let own = tried.iter().find(|(rate, _)| *rate == asked)?;
    // Neighbours in the range are a factor of about three apart; one step beside the best is no mistake.
    let far = (best.0 / asked).log10().abs() > 0.75 && (own.1 - best.1) > 0.05 * best.1;
    let (side, hint) = if asked > best.0 { ("high", "lower") } else { ("low", "raise") };
    let what = || {
        format!(
            "--lr {asked:e} is too {side}: after the same few steps the loss is {:.3}, with {:e} it is {:.3}; {hint} it",
            own.1, best.0, best.1
        )
    };
    far.then(|| finding("learning-rate", what(), Vec::new()))
}

/// Records that teach nothing, lose their answers, or never show an end: `lines` of each.
pub fn encoding(no_target: Vec<u64>, cut: Vec<u64>, no_end: Vec<u64>, seq_len: usize) -> Vec<Finding> {
    let said = [
        ("no-target", no_target, "have nothing to learn (an empty answer, or weight 0)".to_string()),
        ("truncation", cut, format!("lose part of their answers behind {seq_len} tokens: raise --seq-len")),
        (
            "no-end",
            no_end,
            "end without an end token, so the model does not learn to stop: correct the chat template".into(),
        ),
    ];
    let some = said.into_iter().filter(|(_, lines, _)| !lines.is_empty());
    some.map(|(kind, lines, what)| finding(kind, format!("{} records {what}", lines.len()), lines)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_stands_out() {
        let mut losses: Vec<(u64, f64)> = (1..=100).map(|i| (i, 0.1 + 0.001 * i as f64)).collect();
        assert!(noise(&losses).is_none());
        losses[41].1 = 4.0;
        losses[6].1 = 2.0;
        assert_eq!(noise(&losses).unwrap().lines, [42, 7]);
    }

    #[test]
    fn rates_too_high_or_too_low() {
        let tried = [(1e-4, 3.0), (3e-4, 2.5), (1e-3, 2.0), (3e-3, 1.8), (1e-2, 2.2), (3e-2, f64::INFINITY)];
        assert!(learning_rate(1e-4, &tried).unwrap().what.contains("too low"));
        assert!(learning_rate(3e-2, &tried).unwrap().what.contains("too high"));
        assert!(learning_rate(1e-3, &tried).is_none() && learning_rate(3e-3, &tried).is_none());
    }
}
