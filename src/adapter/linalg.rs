//! What little linear algebra adapters need: bases at right angles, singular values, the principal part of a matrix.

use crate::num::normal;
use crate::ops::par::{Mat, Rect};
use crate::plan::Scratch;

/// A matrix by its columns.
pub(super) type Columns = Vec<Vec<f64>>;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// X = Q·R by Gram and Schmidt, each column twice; what depends on the columns before it becomes zero. `R[k]` is column
/// k.
pub(super) fn orthogonal(columns: Columns) -> (Columns, Columns) {
    let (mut q, mut r): (Columns, Columns) = (Vec::new(), Vec::new());
    for mut x in columns {
        let before = dot(&x, &x).sqrt();
        let mut column = vec![0.0; q.len() + 1];
        for _ in 0..2 {
            for (k, q) in q.iter().enumerate() {
                let along = dot(q, &x);
                column[k] += along;
                x.iter_mut().zip(q).for_each(|(x, q)| *x -= along * q);
            }
        }
        let left = dot(&x, &x).sqrt();
        let length = if left > 1e-12 * before { left } else { 0.0 };
        x.iter_mut().for_each(|x| *x = if length > 0.0 { *x / length } else { 0.0 });
        column[q.len()] = length;
        q.push(x);
        r.push(column);
    }
    let n = r.len();
    r.iter_mut().for_each(|column| column.resize(n, 0.0));
    (q, r)
}

/// M·V with columns at right angles, U·S, by one-sided Jacobi rotations (Hestenes 1958); and V.
pub(super) fn jacobi(mut m: Columns) -> (Columns, Columns) {
    let n = m.len();
    let mut v: Columns = (0..n).map(|k| (0..n).map(|row| f64::from(row == k)).collect()).collect();
    // It converges quadratically; sixty sweeps are far more than any matrix takes.
    for _ in 0..60 {
        let mut turned = false;
        for j in 1..n {
            for i in 0..j {
                let (x, y, z) = (dot(&m[i], &m[i]), dot(&m[j], &m[j]), dot(&m[i], &m[j]));
                if z.abs() <= 1e-15 * (x * y).sqrt() {
                    continue;
                }
                turned = true;
                let t = (y - x) / (2.0 * z);
                let t = 1f64.copysign(t) / (t.abs() + (1.0 + t * t).sqrt());
                let cos = 1.0 / (1.0 + t * t).sqrt();
                rotate(&mut m, i, j, cos, cos * t);
                rotate(&mut v, i, j, cos, cos * t);
            }
        }
        if !turned {
            break;
        }
    }
    (m, v)
}

fn rotate(m: &mut Columns, i: usize, j: usize, cos: f64, sin: f64) {
    let (low, high) = m.split_at_mut(j);
    for (x, y) in low[i].iter_mut().zip(&mut high[0]) {
        (*x, *y) = (cos * *x - sin * *y, sin * *x + cos * *y);
    }
}

/// A matrix of floats [o, i], row by row.
#[derive(Clone, Copy)]
pub(super) struct Dense<'a> {
    pub w: &'a [f32],
    pub o: usize,
    pub i: usize,
}

/// B:[O, R] by columns and A:[R, I] by rows.
pub(super) type Factored = (Columns, Columns);

impl Dense<'_> {
    /// `W·x` for columns x, or `Wᵀ·x`.
    fn times(&self, x: &Columns, transposed: bool) -> Columns {
        let (n, k) = (if transposed { self.i } else { self.o }, x.len());
        // Columns one after the other are the rows of xᵀ.
        let rows: Vec<f32> = x.iter().flatten().map(|x| *x as f32).collect();
        let (mut y, inner) = (vec![0f32; k * n], x.first().map_or(0, Vec::len));
        let w = if transposed { Mat::new(self.w, self.i) } else { Mat::t(self.w, self.i) };
        Rect::new(&mut y, (k, n), n).product(false, inner, Mat::new(&rows, inner), w, 1.0, &Scratch::default());
        y.chunks(n.max(1)).map(|y| y.iter().map(|y| *y as f64).collect()).collect()
    }

    /// The product of the largest `rank` singular values with their vectors, each factor with the roots of the values
    /// (Halko, Martinsson & Tropp 2011: a random start, three passes over the matrix and its transpose).
    pub fn principal(&self, rank: usize, seed: u64) -> Factored {
        let k = (rank + 8).min(self.o).min(self.i);
        let mut p: Columns =
            (0..k).map(|c| (0..self.i).map(|row| normal(seed, c as u64, row as u64)).collect()).collect();
        for _ in 0..3 {
            let q = orthogonal(self.times(&p, false)).0;
            p = orthogonal(self.times(&q, true)).0;
        }
        let (q, r) = orthogonal(self.times(&p, false));
        let (us, v) = jacobi(r);
        let mut order: Vec<usize> = (0..k).collect();
        let value = |j: usize| dot(&us[j], &us[j]).sqrt();
        order.sort_by(|a, b| value(*b).total_cmp(&value(*a)));
        order.truncate(rank);
        let combine = |basis: &Columns, by: &[f64], scale: f64| -> Vec<f64> {
            (0..basis[0].len()).map(|row| scale * (0..k).map(|c| basis[c][row] * by[c]).sum::<f64>()).collect()
        };
        let root = |j: usize| value(j).sqrt().max(f64::MIN_POSITIVE);
        let b = order.iter().map(|j| combine(&q, &us[*j], 1.0 / root(*j))).collect();
        (b, order.iter().map(|j| combine(&p, &v[*j], root(*j))).collect())
    }

    /// Q and R of the first `rank` columns: `Q·Qᵀ·W`.
    pub fn leading(&self, rank: usize) -> Factored {
        let column = |c: usize| (0..self.o).map(|row| self.w[row * self.i + c] as f64).collect();
        let q = orthogonal((0..rank.min(self.i)).map(column).collect()).0;
        let a = self.times(&q, true);
        (q, a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_principal_part_is_the_best_of_its_rank() {
        // Singular values 8, 4, 2, 1, 1/2 … between bases at right angles.
        let basis = |seed: u64, n: usize| {
            orthogonal((0..6).map(|c| (0..n).map(|row| normal(seed, c, row as u64)).collect()).collect()).0
        };
        let (o, i) = (20, 14);
        let (u, v) = (basis(1, o), basis(2, i));
        let value = |k: usize| 8.0 / 2f64.powi(k as i32);
        let at = |row: usize, col: usize, ks: std::ops::Range<usize>| -> f64 {
            ks.map(|k| value(k) * u[k][row] * v[k][col]).sum()
        };
        let w: Vec<f32> = (0..o * i).map(|n| at(n / i, n % i, 0..6) as f32).collect();
        let (b, a) = Dense { w: &w, o, i }.principal(3, 7);
        for (row, col) in [(0, 0), (7, 3), (19, 13)] {
            let got: f64 = (0..3).map(|k| b[k][row] * a[k][col]).sum();
            assert!((got - at(row, col, 0..3)).abs() < 1e-5, "{row},{col}: {got}");
        }
        let length = |x: &[f64]| dot(x, x);
        assert!((length(&a[0]) - 8.0).abs() < 1e-4 && (length(&b[2]) - 2.0).abs() < 1e-4, "roots of the values");
    }

    #[test]
    fn the_leading_columns_are_kept() {
        let (o, i) = (9, 7);
        let w: Vec<f32> = (0..o * i).map(|n| normal(3, 0, n as u64) as f32).collect();
        let (q, a) = Dense { w: &w, o, i }.leading(4);
        for row in 0..o {
            for col in 0..4 {
                let got: f64 = (0..4).map(|k| q[k][row] * a[k][col]).sum();
                assert!((got - w[row * i + col] as f64).abs() < 1e-5);
            }
        }
    }
}
