//! BLEU (Papineni et al. 2002) as sacreBLEU computes it by default: the tokens of mteval-v13a, n-grams up to 4, the
//! brevity penalty of the corpus, and halved counts where an order has no match ("exp").

use std::collections::HashMap;

const ORDER: usize = 4;

/// Lengths of answer and reference, then (matched, answered) of each order.
pub const COUNTS: usize = 2 + 2 * ORDER;

pub fn counts(answer: &str, reference: &str) -> [f64; COUNTS] {
    let (answer, reference) = (tokens(answer), tokens(reference));
    let mut all = [0.0; COUNTS];
    (all[0], all[1]) = (answer.len() as f64, reference.len() as f64);
    for n in 1..=ORDER {
        let (given, wanted) = (ngrams(&answer, n), ngrams(&reference, n));
        let matched: usize = given.iter().map(|(gram, count)| count.min(wanted.get(gram).unwrap_or(&0))).sum();
        (all[2 * n], all[2 * n + 1]) = (matched as f64, given.values().sum::<usize>() as f64);
    }
    all
}

fn ngrams(tokens: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut all = HashMap::new();
    tokens.windows(n).for_each(|gram| *all.entry(gram).or_insert(0) += 1);
    all
}

pub fn score(sums: &[f64]) -> f64 {
    let orders: Vec<(f64, f64)> = sums[2..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    // One order without any n-gram makes the geometric mean 0, as does no match at all.
    if orders.iter().any(|(_, answered)| *answered == 0.0) || orders.iter().all(|(matched, _)| *matched == 0.0) {
        return 0.0;
    }
    let mut halved = 1.0;
    let log = |(matched, answered): &(f64, f64)| {
        if *matched > 0.0 {
            return (matched / answered).ln();
        }
        halved *= 2.0;
        (1.0 / (halved * answered)).ln()
    };
    let mean = orders.iter().map(log).sum::<f64>() / ORDER as f64;
    let brevity = if sums[0] < sums[1] { 1.0 - sums[1] / sums[0] } else { 0.0 };
    100.0 * (mean + brevity).exp()
}

/// mteval-v13a: punctuation apart, but for points and commas within numbers.
fn tokens(text: &str) -> Vec<String> {
    let text = text.trim_end().replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    let apart = |c: char| matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/');
    let mut spaced = String::from(" ");
    for c in text.chars() {
        if apart(c) { spaced.extend([' ', c, ' ']) } else { spaced.push(c) }
    }
    spaced.push(' ');
    let digit = |c: char| c.is_ascii_digit();
    let point = |c: char| c == '.' || c == ',';
    let spaced = pairs(&spaced, |a, b| !digit(a) && point(b), "a b ");
    let spaced = pairs(&spaced, |a, b| point(a) && !digit(b), " a b");
    let spaced = pairs(&spaced, |a, b| digit(a) && b == '-', "a b ");
    spaced.split_whitespace().map(String::from).collect()
}

/// Writes neighbours that `fits` names as the shape says, from left to right, each character once.
fn pairs(text: &str, fits: impl Fn(char, char) -> bool, shape: &str) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut rest = text.chars().peekable();
    while let Some(a) = rest.next() {
        match rest.peek() {
            Some(&b) if fits(a, b) => {
                out.extend(shape.chars().map(|c| {
                    if c == 'a' {
                        a
                    } else if c == 'b' {
                        b
                    } else {
                        c
                    }
                }));
                rest.next();
            }
            _ => out.push(a),
        }
    }
    out
}
