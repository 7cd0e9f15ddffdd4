use crate::common::tolerance::SUM;
use crate::harness::{Suite, random};
use luthier::ops::row_gain::{self, Rows};

const SCALE: f32 = 0.5;
const M_AT: usize = 8;

/// W:[O,I], A:[R,I], Bᵀ:[R,O] and the magnitudes.
struct Case {
    o: usize,
    i: usize,
    r: usize,
    w: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    m: Vec<f64>,
}

impl Case {
    fn new(o: usize, i: usize, r: usize) -> Case {
        Case { o, i, r, w: random(o * i, 1), a: random(r * i, 2), b: random(r * o, 3), m: random(o, 4) }
    }

    fn product(&self, rows: (usize, &[f64]), cols: (usize, &[f64])) -> Vec<f64> {
        let dot =
            |k: usize| (0..self.i).map(|j| rows.1[k / cols.0 * self.i + j] * cols.1[k % cols.0 * self.i + j]).sum();
        (0..rows.0 * cols.0).map(dot).collect()
    }

    fn push(&self, s: &mut Suite) {
        let Case { o, i, r, w, a, b, m } = self;
        let flat = [vec![0.0; M_AT], m.clone(), vec![0.0; 4], b.clone()].concat();
        let squares: Vec<f64> = w.chunks(*i).map(|row| row.iter().map(|w| w * w).sum()).collect();
        let (params, squares) = (s.floats("params", &flat), s.floats("squares", &squares));
        let aw = s.floats("aw", &self.product((*r, a), (*o, w)));
        let aa = s.floats("aa", &self.product((*r, a), (*r, a)));
        let (inv, gain) = (s.output("inv", *o), s.output("gain", *o));
        let rows = Rows { params, magnitude: M_AT, b: M_AT + o + 4, rank: *r, scale: SCALE, squares };
        row_gain::forward(&mut s.plan, "", *o, rows, aw, aa, inv, gain);
    }
}

/// The norm without the matrix is the norm of the matrix.
#[test]
fn twin_matches_the_matrix() {
    let case = Case::new(6, 8, 3);
    let mut s = Suite::new(SUM);
    case.push(s.case("gain"));
    let got = s.reference();
    for (o, (inv, gain)) in got[0].iter().zip(&got[1]).enumerate() {
        let at = |j: usize| {
            let low: f64 = (0..case.r).map(|r| case.b[r * case.o + o] * case.a[r * case.i + j]).sum();
            case.w[o * case.i + j] + SCALE as f64 * low
        };
        let n = (0..case.i).map(|j| at(j) * at(j)).sum::<f64>().sqrt();
        assert!((inv - 1.0 / n).abs() < 1e-9 && (gain - case.m[o] / n).abs() < 1e-9, "row {o}");
    }
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SUM);
    for (o, i, r) in [(1, 4, 1), (7, 12, 3), (127, 64, 8), (129, 32, 17)] {
        Case::new(o, i, r).push(s.case(format!("{o}x{i} r{r}")));
    }
    s.check();
}
