use crate::common::tolerance::SUM;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::ops::layernorm;

const EPS: f32 = 1e-5;

fn forward(s: &mut Suite, (n, c): (usize, usize), x: &[f64], w: &[f64], b: &[f64]) {
    let (x, w, b, y) = (s.floats("x", x), s.floats("w", w), s.floats("b", b), s.output("y", n * c));
    layernorm::forward(&mut s.plan, "", (n, c), EPS, x, w, b, y);
}

/// `old`: what dx is added to, if anything. Outputs: dy, which becomes y where dx is added to, and dx.
fn backward(s: &mut Suite, (n, c): (usize, usize), x: &[f64], w: &[f64], b: &[f64], dy: &[f64], old: Option<&[f64]>) {
    let (x, w, b, dy) = (s.floats("x", x), s.floats("w", w), s.floats("b", b), s.in_out("dy", dy));
    let (dx, onto) = (s.onto("dx", n * c, old), old.is_some());
    layernorm::backward(&mut s.plan, "", (n, c), EPS, x, w, b, dy, dx, onto, onto);
}

#[test]
fn twin_backward_matches_finite_differences() {
    let (n, c) = (3, 12);
    let (x, w, b, dy) = (random(n * c, 1), random(c, 2), random(c, 4), random(n * c, 3));
    let mut s = Suite::new(SUM);
    backward(s.case("backward"), (n, c), &x, &w, &b, &dy, None);
    let f = |x: &[f64]| {
        let mut s = Suite::new(SUM);
        forward(s.case("forward"), (n, c), x, &w, &b);
        s.reference().remove(0)
    };
    gradcheck("dx", f, &x, &dy, &s.reference()[1]);
    let mut s = Suite::new(SUM);
    backward(s.case("backward onto"), (n, c), &x, &w, &b, &dy, Some(&dy));
    assert_eq!(s.reference()[0], f(&x), "y in dy's place");
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SUM);
    for (n, c) in [(1, 4), (7, 12), (127, 132), (128, 576), (129, 4)] {
        let x = if n == 128 { with_outliers(n * c, c, 4) } else { random(n * c, 4) };
        let (w, b, dy, old) = (random(c, 5), random(c, 8), random(n * c, 6), random(n * c, 7));
        forward(s.case(format!("forward {n}x{c}")), (n, c), &x, &w, &b);
        backward(s.case(format!("backward {n}x{c}")), (n, c), &x, &w, &b, &dy, None);
        backward(s.case(format!("backward onto {n}x{c}")), (n, c), &x, &w, &b, &dy, Some(&old));
    }
    s.check();
}
