use crate::common::tolerance::FEW;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::ops::Columns;
use luthier::ops::gain::{self, Vector};

const OFF: usize = 8;

/// The gain lies at OFF of its buffer. `extra`: bias and residual.
fn forward(s: &mut Suite, (n, c): (usize, usize), x: &[f64], g: &[f64], extra: Option<(&[f64], &[f64])>) {
    let (x, g) = (s.floats("x", x), Vector { buf: s.floats("g", g), off: OFF });
    let bias = extra.map(|(bias, _)| Vector { buf: s.floats("bias", bias), off: 0 });
    let residual = extra.map(|(_, residual)| s.floats("residual", residual));
    let (none, y) = (s.floats("none", &[0.0; 4]), s.output("y", n * c));
    gain::forward(&mut s.plan, "", (n, c), x, g, bias, residual, none, y);
}

fn backward(s: &mut Suite, (n, c): (usize, usize), dy: &[f64], g: &[f64], old: Option<&[f64]>) {
    let (dy, g) = (s.floats("dy", dy), Vector { buf: s.floats("g", g), off: OFF });
    let dx = s.onto("dx", n * c, old);
    gain::backward(&mut s.plan, "", (n, c), dy, g, dx, old.is_some());
}

/// Into and out of C columns of wider rows.
fn within(s: &mut Suite, (n, c): (usize, usize)) {
    let (ld, col) = (2 * c + 4, c);
    let (x, y) = (s.floats("x", &random(n * c, 8)), s.in_out("y", &random(n * ld, 9)));
    let (g, none) = (Vector { buf: s.floats("g", &random(OFF + c, 10)), off: OFF }, s.floats("none", &[0.0; 4]));
    let (bias, residual) = (s.floats("bias", &random(OFF + c, 11)), s.floats("residual", &random(n * ld, 12)));
    let (bias, y) = (Vector { buf: bias, off: OFF }, Columns { buf: y, ld, col });
    gain::forward(&mut s.plan, "", (n, c), x, g, Some(bias), Some(residual), none, y);
    let dx = s.output("dx", n * c);
    gain::backward(&mut s.plan, "", (n, c), y, g, dx, false);
}

#[test]
fn twin_backward_matches_finite_differences() {
    let (n, c) = (3, 8);
    let (x, g, dy) = (random(n * c, 1), random(OFF + c, 2), random(n * c, 3));
    let (bias, residual) = (random(c, 4), random(n * c, 5));
    let mut s = Suite::new(FEW);
    backward(s.case("backward"), (n, c), &dy, &g, None);
    let f = |x: &[f64]| {
        let mut s = Suite::new(FEW);
        forward(s.case("forward"), (n, c), x, &g, Some((&bias, &residual)));
        s.reference().remove(0)
    };
    gradcheck("dx", f, &x, &dy, &s.reference()[0]);
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(FEW);
    for (n, c) in [(1, 4), (7, 12), (127, 132), (128, 576), (129, 4)] {
        let x = if n == 128 { with_outliers(n * c, c, 4) } else { random(n * c, 4) };
        let (g, dy, old) = (random(OFF + c, 5), random(n * c, 6), random(n * c, 7));
        let (bias, residual) = (random(c, 8), random(n * c, 9));
        forward(s.case(format!("forward {n}x{c}")), (n, c), &x, &g, None);
        forward(s.case(format!("forward with all {n}x{c}")), (n, c), &x, &g, Some((&bias, &residual)));
        backward(s.case(format!("backward {n}x{c}")), (n, c), &dy, &g, None);
        backward(s.case(format!("backward onto {n}x{c}")), (n, c), &dy, &g, Some(&old));
        within(s.case(format!("within {n}x{c}")), (n, c));
    }
    s.check();
}
