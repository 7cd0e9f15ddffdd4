use crate::common::tolerance::SUM;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::ops::gain::{self, Vector};
use luthier::ops::{Columns, Heads, column_sum};

/// `old` is the whole buffer; the sums lie at `off`. Without it they overwrite a buffer of their own.
fn push(s: &mut Suite, (n, c): (usize, usize), p: &[f64], q: Option<&[f64]>, old: Option<&[f64]>, off: usize) {
    let (p, q) = (s.floats("p", p), q.map(|q| s.floats("q", q)));
    let out = Vector { buf: s.onto("out", c, old), off };
    column_sum::accumulate(&mut s.plan, "", (n, c), p, q.map(Columns::from), out, old.is_some());
}

/// Two heads within wider rows; the columns beside them are NaN.
fn heads(s: &mut Suite, (n, c): (usize, usize)) {
    let at = Heads { n, heads: 2, ld: 2 * c + 7, col: 3 };
    let wide = |seed: u64| -> Vec<f64> {
        let values = random(n * at.ld, seed);
        let inside = |i: usize| (at.col..at.col + 2 * c).contains(&(i % at.ld));
        values.iter().enumerate().map(|(i, x)| if inside(i) { *x } else { f64::NAN }).collect()
    };
    let (p, q) = (s.floats("p", &wide(6)), s.floats("q", &wide(7)));
    let out = Vector { buf: s.in_out("out", &random(c + 4, 8)), off: 4 };
    column_sum::heads(&mut s.plan, "", at, c, p, Some(q), out);
}

/// The gradient of a gain, and that of a bias.
#[test]
fn twin_matches_finite_differences() {
    let (n, c) = (5, 8);
    let (x, g, bias, dy) = (random(n * c, 1), random(c, 2), random(c, 3), random(n * c, 4));
    let mut s = Suite::new(SUM);
    push(s.case("dg"), (n, c), &dy, Some(&x), None, 0);
    let dg = s.reference().remove(0);
    let mut s = Suite::new(SUM);
    push(s.case("db"), (n, c), &dy, None, None, 0);
    let db = s.reference().remove(0);
    let y = |g: &[f64], bias: &[f64]| {
        let mut s = Suite::new(SUM);
        s.case("y");
        let [g, bias] = [("g", g), ("bias", bias)].map(|(name, v)| Vector { buf: s.floats(name, v), off: 0 });
        let x = s.floats("x", &x);
        let (none, y) = (s.floats("none", &[0.0; 4]), s.output("y", n * c));
        gain::forward(&mut s.plan, "", (n, c), x, g, Some(bias), None, none, y);
        s.reference().remove(0)
    };
    gradcheck("dg", |g| y(g, &bias), &g, &dy, &dg);
    gradcheck("db", |bias| y(&g, bias), &bias, &dy, &db);
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SUM);
    for (n, c) in [(1, 4), (7, 12), (127, 132), (128, 576), (129, 5)] {
        let p = if n == 128 { with_outliers(n * c, c, 4) } else { random(n * c, 4) };
        let (q, old) = (random(n * c, 5), random(8 + c + 3, 6));
        push(s.case(format!("product {n}x{c}")), (n, c), &p, Some(&q), None, 0);
        push(s.case(format!("product onto {n}x{c}")), (n, c), &p, Some(&q), Some(&old), 8);
        push(s.case(format!("sum {n}x{c}")), (n, c), &p, None, Some(&old), 8);
        heads(s.case(format!("heads of {n}x{c}")), (n, c));
    }
    s.check();
}
