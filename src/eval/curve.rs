//! A learning curve: the loss falls with the data by a power law, `L(n) = a + b·n^-c`, towards what no data can teach.
//!
//! A few short runs leave many such laws possible, and beyond the largest run they part: one says that the curve is at
//! its end, another that it goes on. So none is chosen. All are kept, each as probable as the runs leave it, and what
//! is foreseen is a range over them.

use super::score::{DRAWS, Estimate};
use crate::num::{normal, uniform};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Law {
    pub a: f64,
    pub b: f64,
    pub c: f64,
}

impl Law {
    pub fn at(&self, n: f64) -> f64 {
        self.a + self.b * n.powf(-self.c)
    }
}

/// A tuned run on a part of the data: its size, for each test item the summed loss and its tokens, and the share of the
/// items whose answer would be exactly right.
#[derive(Clone, Debug)]
pub struct Point {
    pub size: usize,
    pub losses: Vec<(f64, f64)>,
    pub exact: f64,
}

impl Point {
    pub fn loss(&self) -> f64 {
        mean(&self.losses, 0..self.losses.len())
    }
}

/// Mean loss a token over the items drawn.
pub fn mean(losses: &[(f64, f64)], items: impl Iterator<Item = usize>) -> f64 {
    let (loss, tokens) = items.fold((0.0, 0.0), |(l, t), i| (l + losses[i].0, t + losses[i].1));
    loss / tokens
}

/// By how much of itself the mean loss would be other with other items: its standard error.
pub fn chance_of_items(losses: &[(f64, f64)]) -> f64 {
    let all = mean(losses, 0..losses.len());
    let tokens: f64 = losses.iter().map(|(_, tokens)| tokens).sum();
    losses.iter().map(|(loss, n)| (loss - all * n).powi(2)).sum::<f64>().sqrt() / tokens / all
}

/// Before anything is seen: runs that differ by their seed alone end about so much of their loss apart, and that is
/// worth so many runs.
const APART: f64 = 0.05;
const WORTH: f64 = 2.0;

/// How much a run on `size` examples says about one on `largest`: small ones scatter more, and what the first examples
/// teach is mostly the form of the answers.
pub fn weight(size: f64, largest: f64) -> f64 {
    (size / largest).sqrt()
}

struct Candidate {
    law: Law,
    /// Of all candidates up to this one.
    probability: f64,
    /// How far runs scatter about it, as a share of the loss.
    scatter: f64,
}

/// The laws that some runs leave possible.
pub struct Curve {
    candidates: Vec<Candidate>,
    pub best: Law,
    seed: u64,
}

impl Curve {
    /// From (size, loss) of the runs. Priors are flat: on the exponent, and on the share of the lowest loss that no
    /// data can teach; errors are relative and normal, of a size not known.
    pub fn new(points: &[(f64, f64)], seed: u64) -> Curve {
        let lowest = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let largest = points.iter().map(|p| p.0).fold(0.0, f64::max);
        let weights: Vec<f64> = points.iter().map(|(size, _)| weight(*size, largest)).collect();
        let runs: f64 = weights.iter().sum();
        let mut fits = Vec::new();
        for step in 0..21 * 40 {
            let (a, c) = (lowest * f64::from(step % 21) / 20.0, 0.05 * f64::from(1 + step / 21));
            let law = Law::with(points, &weights, a, c);
            let error = |((size, loss), w): (&(f64, f64), &f64)| w * (law.at(*size) / loss - 1.0).powi(2);
            let errors = points.iter().zip(&weights).map(error).sum::<f64>() + WORTH * APART * APART;
            fits.push((law, errors));
        }
        let (best, least) = fits.iter().copied().min_by(|x, y| x.1.total_cmp(&y.1)).expect("hundreds of laws");
        // The likelihood with the size of the errors integrated out.
        let likelihood = |errors: f64| (errors / least).powf(-0.5 * (runs + WORTH - 1.0));
        let total: f64 = fits.iter().map(|(_, errors)| likelihood(*errors)).sum();
        let mut probability = 0.0;
        let candidate = |(law, errors): (Law, f64)| {
            probability += likelihood(errors) / total;
            Candidate { law, probability, scatter: (errors / (runs + WORTH - 1.0)).sqrt() }
        };
        Curve { candidates: fits.into_iter().map(candidate).collect(), best, seed }
    }

    fn drawn(&self, number: usize) -> &Candidate {
        let u = uniform(self.seed ^ 0xC0DE, number as u64, 0);
        let at = self.candidates.partition_point(|c| c.probability < u);
        &self.candidates[at.min(self.candidates.len() - 1)]
    }

    /// By how much of its loss, in percent, `times` the data would better a run on `n`.
    pub fn gain(&self, n: f64, times: f64) -> Estimate {
        let gain = |law: &Law| 100.0 * (1.0 - law.at(times * n) / law.at(n));
        middle((0..DRAWS).map(|number| gain(&self.drawn(number).law)).collect())
    }

    /// Losses that a run on `n` may come to: the laws, and the chance of the run.
    pub fn losses(&self, n: f64) -> Vec<f64> {
        let loss = |number: usize| {
            let Candidate { law, scatter, .. } = self.drawn(number);
            law.at(n) * (scatter * normal(self.seed ^ 0xBEEF, number as u64, 0)).exp()
        };
        (0..DRAWS).map(loss).collect()
    }
}

impl Law {
    /// The best b where the other two are given: least squares of the relative errors.
    fn with(points: &[(f64, f64)], weights: &[f64], a: f64, c: f64) -> Law {
        let (mut up, mut down) = (0.0, 0.0);
        for ((size, loss), w) in points.iter().zip(weights) {
            let x = size.powf(-c) / loss;
            up += w * x * (1.0 - a / loss);
            down += w * x * x;
        }
        Law { a, b: (up / down).max(0.0), c }
    }
}

/// The middle of some draws, and what holds 95 % of them.
pub fn middle(mut draws: Vec<f64>) -> Estimate {
    draws.sort_by(f64::total_cmp);
    Estimate::new(draws[draws.len() / 2], &draws)
}

/// What a run on `n` examples is foreseen to come to, measured on as many items as these runs were, but others.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Foreseen {
    /// Held-out loss in nats a token.
    pub loss: Estimate,
    /// Percent of held-out answers that are exactly the expected ones; None of texts, which answer nothing.
    pub exact: Option<Estimate>,
}

/// Of the slope of an exact answer's log odds over the log of the loss, before anything is seen: about -1.75, give or
/// take 1. (An answer of k tokens with a loss of l each is right with a chance of about exp(-kl).)
const SLOPE: f64 = -1.75;
/// Scatter of those log odds beside the chance of the items.
const SCATTER: f64 = 0.05;

/// `answers` says whether the items are answers.
pub fn foresee(points: &[Point], curve: &Curve, n: f64, answers: bool) -> Foreseen {
    let full = points.iter().max_by_key(|p| p.size).expect("some points");
    // These items and those of the coming test are two samples.
    let items = chance_of_items(&full.losses) * 2f64.sqrt();
    let chance = |number: usize, place: u64| normal(curve.seed ^ 0xF00D, number as u64, place);
    let losses = curve.losses(n);
    let measured = losses.iter().enumerate().map(|(i, loss)| loss * (items * chance(i, 0)).exp());
    let odds = Odds::new(points);
    let count = full.losses.len() as f64;
    let exact = |(number, loss): (usize, &f64)| {
        let (at, deviation) = odds.at(loss.ln());
        let share = 1.0 / (1.0 + (-(at + deviation * chance(number, 1))).exp());
        let sampled = share + (share * (1.0 - share) / count).sqrt() * chance(number, 2);
        100.0 * sampled.clamp(0.0, 1.0)
    };
    let exact = answers.then(|| middle(losses.iter().enumerate().map(exact).collect()));
    Foreseen { loss: middle(measured.collect()), exact }
}

/// How the log odds of an exact answer follow the log of the loss: a line, by Bayes' rule.
struct Odds {
    /// The middle of the runs, the slope there, and the variances of both.
    x: f64,
    y: f64,
    slope: f64,
    of_y: f64,
    of_slope: f64,
}

impl Odds {
    fn new(points: &[Point]) -> Odds {
        // Where none or all are right, half an item keeps the odds finite.
        let share = |p: &Point| (p.exact * p.losses.len() as f64 + 0.5) / (p.losses.len() as f64 + 1.0);
        let one = |p: &Point| {
            let (s, count) = (share(p), p.losses.len() as f64);
            (p.loss().ln(), (s / (1.0 - s)).ln(), 1.0 / (SCATTER + 1.0 / (count * s * (1.0 - s))))
        };
        let runs: Vec<(f64, f64, f64)> = points.iter().map(one).collect();
        let total: f64 = runs.iter().map(|r| r.2).sum();
        let x = runs.iter().map(|r| r.2 * r.0).sum::<f64>() / total;
        let y = runs.iter().map(|r| r.2 * r.1).sum::<f64>() / total;
        let spread: f64 = runs.iter().map(|r| r.2 * (r.0 - x).powi(2)).sum();
        let product: f64 = runs.iter().map(|r| r.2 * (r.0 - x) * (r.1 - y)).sum();
        // The items are the same in all runs, so that more runs do not tell more about them than the best one does.
        let of_y = 1.0 / runs.iter().map(|r| r.2).fold(0.0, f64::max);
        Odds { x, y, slope: (product + SLOPE) / (spread + 1.0), of_y, of_slope: 1.0 / (spread + 1.0) }
    }

    /// The log odds at a loss, and their deviation.
    fn at(&self, x: f64) -> (f64, f64) {
        let away = x - self.x;
        (self.y + self.slope * away, (self.of_y + self.of_slope * away * away + SCATTER).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs as a law has them, each by a chance of its own off it; their items scatter as much as their mean.
    fn points(law: Law, sizes: &[usize], noise: f64, seed: u64) -> Vec<Point> {
        let run = |(k, size): (usize, &usize)| {
            let mean = law.at(*size as f64) * (noise * normal(seed, 77, k as u64)).exp();
            let item = |i: u64| (5.0 * mean * -uniform(seed, 78, i).max(1e-9).ln(), 5.0);
            Point { size: *size, losses: (0..100).map(item).collect(), exact: 1.0 / (1.0 + mean * mean) }
        };
        sizes.iter().enumerate().map(run).collect()
    }

    const SIZES: [usize; 7] = [25, 50, 100, 25, 50, 100, 200];

    fn curve(points: &[Point], seed: u64) -> Curve {
        Curve::new(&points.iter().map(|p| (p.size as f64, p.loss())).collect::<Vec<_>>(), seed)
    }

    #[test]
    fn a_law_is_found_again() {
        let truth = Law { a: 0.5, b: 8.0, c: 0.5 };
        let gain = curve(&points(truth, &SIZES, 0.02, 1), 1).gain(200.0, 2.0);
        let want = 100.0 * (1.0 - truth.at(400.0) / truth.at(200.0));
        assert!(gain.low <= want && want <= gain.high && gain.shown(), "{want}: {gain:?}");
    }

    #[test]
    fn where_data_do_not_help_nothing_is_promised() {
        let gain = curve(&points(Law { a: 2.0, b: 0.0, c: 1.0 }, &SIZES, 0.02, 1), 1).gain(200.0, 2.0);
        assert!(gain.value < 2.0 && gain.low < 0.5, "{gain:?}");
        // Loss that rises with the data is no reason to expect that it falls.
        let gain = Curve::new(&[(10.0, 1.0), (20.0, 1.1), (40.0, 1.2)], 1).gain(40.0, 2.0);
        assert!(gain.low < 0.5, "{gain:?}");
    }

    /// Of many laws, the interval of a run on four times the data holds what such a run comes to on other items.
    #[test]
    fn what_is_foreseen_comes() {
        let (mut held, mut wide) = ([0, 0], [0.0, 0.0]);
        let trials = 200;
        for seed in 0..trials {
            let u = |k: u64| uniform(seed, 5, k);
            let law = Law { a: u(0), b: 1.0 + 9.0 * u(1), c: 0.2 + u(2) };
            let noise = 0.02 + 0.06 * u(3);
            let seen = points(law, &SIZES, noise, seed);
            let foreseen = foresee(&seen, &curve(&seen, seed), 800.0, true);
            let truth = &points(law, &[800], noise, seed + 10_000)[0];
            let within = |e: Estimate, x: f64| usize::from(e.low <= x && x <= e.high);
            let exact = foreseen.exact.unwrap();
            held[0] += within(foreseen.loss, truth.loss());
            held[1] += within(exact, 100.0 * truth.exact);
            wide[0] += (foreseen.loss.high - foreseen.loss.low) / foreseen.loss.value;
            wide[1] += exact.high - exact.low;
        }
        assert!(held.iter().all(|h| h * 100 >= 92 * trials as usize), "{held:?} of {trials}");
        // An interval of all there is would hold everything.
        let wide = wide.map(|sum: f64| sum / trials as f64);
        assert!(wide[0] < 0.9 && wide[1] < 40.0, "{wide:?}");
    }
}
