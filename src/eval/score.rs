//! Figures and their uncertainty. Every figure is a function of counts that are summed over the items, so that one
//! way of drawing items anew (the bootstrap) serves accuracy, macro-F1, BLEU and perplexity alike; and because all
//! systems are drawn alike, differences between them are paired.

use super::{bleu, chrf, labels};
use crate::num::uniform;
use serde::Serialize;

/// What one answer adds to the counts: (place, amount).
pub type Counts = Vec<(usize, f64)>;

/// How a figure follows from the summed counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// 100 · a / b
    Share(usize, usize),
    /// F1 of (matched, answered, expected)
    F1(usize, usize, usize),
    /// Of a confusion matrix of so many labels.
    Accuracy(usize),
    MacroF1(usize),
    /// Of counts that begin there.
    Chrf(usize),
    Bleu(usize),
    /// a / b
    Mean(usize, usize),
    /// exp(a / b)
    Perplexity(usize, usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    pub name: &'static str,
    pub rule: Rule,
}

impl Figure {
    /// Shares and scores are out of 100. Where nothing was counted there is no figure: NaN.
    pub fn value(&self, sums: &[f64]) -> f64 {
        match self.rule {
            Rule::Share(a, b) => 100.0 * sums[a] / sums[b],
            Rule::F1(matched, answered, expected) => 100.0 * f1(sums[matched], sums[answered], sums[expected]),
            Rule::Accuracy(k) => 100.0 * labels::accuracy(sums, k),
            Rule::MacroF1(k) => 100.0 * labels::macro_f1(sums, k),
            Rule::Chrf(at) => chrf::score(&sums[at..at + chrf::COUNTS]),
            Rule::Bleu(at) => bleu::score(&sums[at..at + bleu::COUNTS]),
            Rule::Mean(a, b) => sums[a] / sums[b],
            Rule::Perplexity(a, b) => (sums[a] / sums[b]).exp(),
        }
    }

    pub fn lower_is_better(&self) -> bool {
        matches!(self.rule, Rule::Mean(..) | Rule::Perplexity(..)) || self.name == "hallucination"
    }
}

/// F1 from counts; 0 where nothing matched.
pub fn f1(matched: f64, answered: f64, expected: f64) -> f64 {
    if matched > 0.0 { 2.0 * matched / (answered + expected) } else { 0.0 }
}

/// The counts of all items, or of the items drawn (with repetition).
pub fn sum<'a>(width: usize, items: impl IntoIterator<Item = &'a Counts>) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    for counts in items {
        counts.iter().for_each(|(place, amount)| sums[*place] += amount);
    }
    sums
}

/// Draws of a bootstrap.
pub const DRAWS: usize = 1000;

/// A figure, with the interval that holds it in 95 of 100 draws of the items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// `drawn` are the values of the bootstrap.
    pub fn new(value: f64, drawn: &[f64]) -> Estimate {
        let (low, high) = interval(drawn);
        Estimate { value, low, high }
    }

    /// For people: the value and its interval, or a dash where nothing was counted.
    pub fn text(&self, digits: usize) -> String {
        let Estimate { value, low, high } = self;
        if value.is_nan() { "–".into() } else { format!("{value:.digits$} [{low:.digits$}, {high:.digits$}]") }
    }

    /// Whether it is shown to be other than nothing.
    pub fn shown(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

/// The middle 95 % of the draws.
pub fn interval(drawn: &[f64]) -> (f64, f64) {
    let mut sorted: Vec<f64> = drawn.iter().copied().filter(|x| x.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| match sorted.len() {
        0 => f64::NAN,
        n => sorted[((n - 1) as f64 * share).round() as usize],
    };
    (at(0.025), at(0.975))
}

/// Draw number `draw` of `n` of `n` items. The same for all systems, so that differences are paired.
pub fn draw(n: usize, draw: usize, seed: u64) -> impl Iterator<Item = usize> {
    (0..n).map(move |i| ((uniform(seed, draw as u64, i as u64) * n as f64) as usize).min(n - 1))
}

/// A figure of a system and its values in all draws.
#[derive(Clone, Debug)]
pub struct Measured {
    pub estimate: Estimate,
    drawn: Vec<f64>,
}

/// All figures of a system.
pub fn measure(figures: &[Figure], width: usize, items: &[Counts], seed: u64) -> Vec<Measured> {
    let whole = sum(width, items);
    let mut drawn = vec![Vec::with_capacity(DRAWS); figures.len()];
    for number in 0..if items.is_empty() { 0 } else { DRAWS } {
        let sums = sum(width, draw(items.len(), number, seed).map(|i| &items[i]));
        figures.iter().zip(&mut drawn).for_each(|(figure, drawn)| drawn.push(figure.value(&sums)));
    }
    let measured = |(figure, drawn): (&Figure, Vec<f64>)| Measured {
        estimate: Estimate::new(figure.value(&whole), &drawn),
        drawn,
    };
    figures.iter().zip(drawn).map(measured).collect()
}

/// What one system has more than another that answered the same items.
pub fn difference(one: &Measured, other: &Measured) -> Estimate {
    let drawn: Vec<f64> = one.drawn.iter().zip(&other.drawn).map(|(a, b)| a - b).collect();
    Estimate::new(one.estimate.value - other.estimate.value, &drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_cover_what_they_say() {
        // Of 400 samples of 100 coins, about 95 % of the intervals hold the coin's true share.
        let figure = [Figure { name: "share", rule: Rule::Share(0, 1) }];
        let held = (0..400).filter(|sample| {
            let heads = |i: u64| if uniform(99, *sample, i) < 0.3 { 1.0 } else { 0.0 };
            let items: Vec<Counts> = (0..100).map(|i| vec![(0, heads(i)), (1, 1.0)]).collect();
            let share = measure(&figure, 2, &items, *sample)[0].estimate;
            share.low <= 30.0 && 30.0 <= share.high
        });
        let held = held.count();
        assert!((364..=396).contains(&held), "{held} of 400");
    }

    #[test]
    fn equal_systems_differ_by_nothing() {
        let figure = [Figure { name: "share", rule: Rule::Share(0, 1) }];
        let items: Vec<Counts> = (0..50).map(|i| vec![(0, f64::from(i % 3 == 0)), (1, 1.0)]).collect();
        let a = measure(&figure, 2, &items, 1);
        let same = difference(&a[0], &a[0]);
        assert!(!same.shown() && same == Estimate { value: 0.0, low: 0.0, high: 0.0 });
        let better: Vec<Counts> = items.iter().map(|_| vec![(0, 1.0), (1, 1.0)]).collect();
        assert!(difference(&measure(&figure, 2, &better, 1)[0], &a[0]).shown());
    }
}
