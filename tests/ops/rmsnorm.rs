use crate::common::tolerance::SUM;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::ops::{Heads, rmsnorm};

const EPS: f32 = 1e-5;

fn forward(s: &mut Suite, (n, c): (usize, usize), x: &[f64], w: &[f64], residual: Option<&[f64]>) {
    let (x, w, residual) = (s.floats("x", x), s.floats("w", w), residual.map(|r| s.floats("residual", r)));
    let y = s.output("y", n * c);
    rmsnorm::forward(&mut s.plan, "", (n, c), EPS, x, w, residual, y);
}

/// `old`: what dx is added to, if anything. Outputs: dy, which becomes y where dx is added to, and dx.
fn backward(s: &mut Suite, (n, c): (usize, usize), x: &[f64], w: &[f64], dy: &[f64], old: Option<&[f64]>) {
    let (x, w, dy) = (s.floats("x", x), s.floats("w", w), s.in_out("dy", dy));
    let (dx, onto) = (s.onto("dx", n * c, old), old.is_some());
    rmsnorm::backward(&mut s.plan, "", (n, c), EPS, x, w, dy, dx, onto, onto);
}

/// Two heads within rows of three and a bit, and their gradient in place of dy.
fn heads(s: &mut Suite, direction: &str, (n, c): (usize, usize)) {
    let at = Heads { n, heads: 2, ld: 3 * c + 4, col: c };
    let (x, w) = (s.floats("x", &random(n * at.ld, 8)), s.floats("w", &random(c, 9)));
    let y = s.in_out(direction, &random(n * at.ld, 10));
    match direction {
        "forward" => rmsnorm::forward_heads(&mut s.plan, "", at, c, EPS, x, w, y),
        _ => rmsnorm::backward_heads(&mut s.plan, "", at, c, EPS, x, w, y),
    }
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
    gradcheck("dx", f, &x, &dy, &s.reference()[1]);
    let mut s = Suite::new(SUM);
    backward(s.case("backward onto"), (n, c), &x, &w, &dy, Some(&dy));
    assert_eq!(s.reference()[0], f(&x), "y in dy's place");
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
        if n < 1000 {
            heads(s.case(format!("heads forward {n}x{c}")), "forward", (n, c));
            heads(s.case(format!("heads backward {n}x{c}")), "backward", (n, c));
        }
    }
    s.check();
}
