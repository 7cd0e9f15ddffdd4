//! A learning curve: the loss falls with the data by a power law, `L(n) = a + b·n^-c`, towards what no data can teach.

use super::score::{DRAWS, Estimate, draw};
use crate::num::uniform;

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

    /// The law nearest to some (size, loss), none of its parts below 0.
    pub fn fit(points: &[(f64, f64)]) -> Law {
        let fits = (1..=40).map(|i| Law::with_exponent(points, 0.05 * f64::from(i)));
        let (_, law) = fits.min_by(|x, y| x.0.total_cmp(&y.0)).expect("forty exponents");
        law
    }

    /// Least squares for a and b where c is given: (error, law).
    fn with_exponent(points: &[(f64, f64)], c: f64) -> (f64, Law) {
        let n = points.len() as f64;
        let xs: Vec<f64> = points.iter().map(|(size, _)| size.powf(-c)).collect();
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / n;
        let (x, y) = (mean(&mut xs.iter().copied()), mean(&mut points.iter().map(|p| p.1)));
        let covariance: f64 = xs.iter().zip(points).map(|(xi, p)| (xi - x) * (p.1 - y)).sum();
        let variance: f64 = xs.iter().map(|xi| (xi - x).powi(2)).sum();
        let mut b = if variance > 0.0 { (covariance / variance).max(0.0) } else { 0.0 };
        let mut a = y - b * x;
        if a < 0.0 {
            // The best line through the origin.
            let products: f64 = xs.iter().zip(points).map(|(xi, p)| xi * p.1).sum();
            (a, b) = (0.0, products / xs.iter().map(|xi| xi * xi).sum::<f64>());
        }
        let law = Law { a, b, c };
        let error = points.iter().map(|(size, loss)| (law.at(*size) - loss).powi(2)).sum();
        (error, law)
    }
}

/// A tuned run on a part of the data: its size, and for each test item the summed loss and its tokens.
#[derive(Clone, Debug)]
pub struct Point {
    pub size: usize,
    pub losses: Vec<(f64, f64)>,
}

/// Mean loss a token over the items drawn.
pub fn mean(losses: &[(f64, f64)], items: impl Iterator<Item = usize>) -> f64 {
    let (loss, tokens) = items.fold((0.0, 0.0), |(l, t), i| (l + losses[i].0, t + losses[i].1));
    loss / tokens
}

/// By how much of its loss, in percent, `times` the data would better the largest size. Drawn anew are the test's
/// items and, at each size, which of its runs are believed.
pub fn gain_of_more(points: &[Point], times: f64, seed: u64) -> (Law, Estimate) {
    let largest = points.iter().map(|p| p.size).max().expect("some points") as f64;
    let items = points[0].losses.len();
    let gain = |law: &Law| 100.0 * (1.0 - law.at(times * largest) / law.at(largest));
    let all: Vec<(f64, f64)> = points.iter().map(|p| (p.size as f64, mean(&p.losses, 0..items))).collect();
    let law = Law::fit(&all);
    let mut sizes: Vec<usize> = points.iter().map(|p| p.size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let drawn = |number: usize| {
        let drawn: Vec<usize> = draw(items, number, seed).collect();
        let believed = |(k, size): (usize, &usize)| {
            let runs: Vec<&Point> = points.iter().filter(|p| p.size == *size).collect();
            let one = uniform(seed ^ 0xC0DE, number as u64, k as u64) * runs.len() as f64;
            (*size as f64, mean(&runs[(one as usize).min(runs.len() - 1)].losses, drawn.iter().copied()))
        };
        gain(&Law::fit(&sizes.iter().enumerate().map(believed).collect::<Vec<_>>()))
    };
    let drawn: Vec<f64> = (0..DRAWS / 2).map(drawn).collect();
    (law, Estimate::new(gain(&law), &drawn))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(law: Law, noise: f64) -> Vec<Point> {
        let item = |size: usize, i: u64| {
            let scatter = 1.0 + noise * (uniform(3, size as u64, i) - 0.5);
            (10.0 * law.at(size as f64) * scatter, 10.0)
        };
        [50, 100, 200, 400].map(|size| Point { size, losses: (0..100).map(|i| item(size, i)).collect() }).to_vec()
    }

    #[test]
    fn a_law_is_found_again() {
        let truth = Law { a: 0.5, b: 8.0, c: 0.5 };
        let (law, gain) = gain_of_more(&points(truth, 0.2), 2.0, 1);
        let want = 100.0 * (1.0 - truth.at(800.0) / truth.at(400.0));
        assert!((law.c - 0.5).abs() < 0.16 && (law.a - 0.5).abs() < 0.15, "{law:?}");
        assert!(gain.low <= want && want <= gain.high && gain.shown(), "{want}: {gain:?}");
    }

    #[test]
    fn where_data_do_not_help_nothing_is_promised() {
        let (_, gain) = gain_of_more(&points(Law { a: 2.0, b: 0.0, c: 1.0 }, 0.4), 2.0, 1);
        assert!(gain.value < 2.0 && gain.low < 0.5, "{gain:?}");
        // Loss that rises with the data is no reason to expect that it falls.
        let rising: Vec<(f64, f64)> = vec![(10.0, 1.0), (20.0, 1.1), (40.0, 1.2)];
        let law = Law::fit(&rising);
        assert!((law.at(80.0) - law.at(40.0)).abs() < 1e-9);
    }
}
