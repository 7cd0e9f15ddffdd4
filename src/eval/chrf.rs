//! chrF2 (Popović 2015) as sacreBLEU computes it: n-grams of 1 to 6 characters without white space, recall weighing
//! twice as much as precision, counts summed over the corpus.

use std::collections::HashMap;

const ORDER: usize = 6;

/// (answered, expected, matched) of each order.
pub const COUNTS: usize = 3 * ORDER;

pub fn counts(answer: &str, reference: &str) -> [f64; COUNTS] {
    let characters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>();
    let (answer, reference) = (characters(answer), characters(reference));
    let mut all = [0.0; COUNTS];
    for n in 1..=ORDER {
        let (given, wanted) = (ngrams(&answer, n), ngrams(&reference, n));
        let matched: usize = given.iter().map(|(gram, count)| count.min(wanted.get(gram).unwrap_or(&0))).sum();
        // An order that the reference is too short for does not count.
        let answered = if wanted.is_empty() { 0 } else { given.values().sum() };
        let three = [answered, wanted.values().sum(), matched];
        all[3 * (n - 1)..3 * n].copy_from_slice(&three.map(|count: usize| count as f64));
    }
    all
}

fn ngrams<T: Eq + std::hash::Hash>(tokens: &[T], n: usize) -> HashMap<&[T], usize> {
    let mut all = HashMap::new();
    tokens.windows(n).for_each(|gram| *all.entry(gram).or_insert(0) += 1);
    all
}

pub fn score(sums: &[f64]) -> f64 {
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for three in sums.chunks_exact(3) {
        let [answered, expected, matched] = three else { unreachable!() };
        if *answered > 0.0 && *expected > 0.0 {
            precision += matched / answered;
            recall += matched / expected;
            orders += 1.0;
        }
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    const BETA_SQUARED: f64 = 4.0;
    100.0 * (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
}
