use crate::common::tolerance::SUM;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::ops::rmsnorm;

const EPS: f32 = 1e-5;

fn forward(s: &mut Suite, (n, c): (usize, usize), x: &[f64], w: &[f64], residual: Option<&[f64]>) {
    let (x, w, residual) = (s.floats("x", x), s.floats("w", w), residual.map(|r| s.floats("residual", r)));
    let y = s.output("y", n * c);
    rmsnorm::forward(&mut s.plan, "", (n, c), EPS, x, w, residual, y);
}

/// `old`: what dx is added to, if anything.
fn backward(s: &mut Suite, (n, c): (usize, usize), x: &[f64], w: &[f64], dy: &[f64], old: Option<&[f64]>) {
    let (x, w, dy) = (s.floats("x", x), s.floats("w", w), s.floats("dy", dy));
    let dx = s.onto("dx", n * c, old);
    rmsnorm::backward(&mut s.plan, "", (n, c), EPS, x, w, dy, dx, old.is_some());
}

#[test]
fn twin_backward_matches_finite_differences() {
    let (n, c) = (3, 12);
    let (x, w, dy) = (random(n * c, 1), random(c, 2), random(n * c, 3));
    let mut s = Suite::new(SUM);
    backward(s.case("backward"), (n, c), &x, &w, &dy, None);
    let f = |x: &[f64]| {
        let mut s = Suite::new(SUM);
        forward(s.case("forward"), (n, c), x, &w, None);
        s.reference().remove(0)
    };
    gradcheck("dx", f, &x, &dy, &s.reference()[0]);
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SUM);
    for (n, c) in [(1, 4), (7, 12), (127, 132), (128, 576), (129, 4), (65_600, 4)] {
        // The last has more rows than a dispatch has groups: norms of heads may.
        let x = if n == 128 { with_outliers(n * c, c, 4) } else { random(n * c, 4) };
        let (w, dy, old) = (random(c, 5), random(n * c, 6), random(n * c, 7));
        forward(s.case(format!("forward {n}x{c}")), (n, c), &x, &w, None);
        forward(s.case(format!("forward onto {n}x{c}")), (n, c), &x, &w, Some(&old));
        backward(s.case(format!("backward {n}x{c}")), (n, c), &x, &w, &dy, None);
        backward(s.case(format!("backward onto {n}x{c}")), (n, c), &x, &w, &dy, Some(&old));
    }
    s.check();
}
