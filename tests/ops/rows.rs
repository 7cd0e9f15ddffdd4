use crate::common::tolerance::SUM;
use crate::harness::{Suite, gradcheck, random};
use luthier::ops::gain::Vector;
use luthier::ops::gather::NONE;
use luthier::ops::{Columns, rows};

const OFF: usize = 8;
const SCALE: f32 = 1.5;

/// Every third row has none; the others take turns among `v` table rows.
fn index(n: usize, v: usize) -> Vec<u32> {
    (0..n).map(|i| if i % 3 == 1 { NONE } else { (i * 7 % v) as u32 }).collect()
}

fn forward(s: &mut Suite, (n, c, v): (usize, usize, usize), table: &[f64], x: &[f64], add: bool) {
    let index = s.words("index", &index(n, v));
    let (table, x) = (Vector { buf: s.floats("table", table), off: OFF }, s.in_out("x", x));
    rows::forward(&mut s.plan, "", (n, c), index, table, SCALE, add, x);
}

fn backward(s: &mut Suite, (n, c, v): (usize, usize, usize), old: &[f64], dx: &[f64], clear: bool) {
    let index = s.words("index", &index(n, v));
    let (grads, dx) = (Vector { buf: s.in_out("grads", old), off: OFF }, s.in_out("dx", dx));
    rows::backward(&mut s.plan, "", (n, c), index, grads, SCALE, dx, clear);
}

/// In C columns of wider rows, forward and back.
fn within(s: &mut Suite, (n, c, v): (usize, usize, usize)) {
    let index = s.words("index", &index(n, v));
    let (table, grads) = (s.floats("table", &random(OFF + v * c, 8)), s.in_out("grads", &random(OFF + v * c, 9)));
    let ld = 2 * c + 4;
    let x = Columns { buf: s.in_out("x", &random(n * ld, 10)), ld, col: c };
    rows::forward(&mut s.plan, "", (n, c), index, Vector { buf: table, off: OFF }, SCALE, true, x);
    rows::backward(&mut s.plan, "", (n, c), index, Vector { buf: grads, off: OFF }, SCALE, x, true);
}

#[test]
fn twin_backward_matches_finite_differences() {
    let (n, c, v) = (8, 4, 3);
    let (table, x, dy) = (random(OFF + v * c, 1), random(n * c, 2), random(n * c, 3));
    let mut s = Suite::new(SUM);
    backward(s.case("backward"), (n, c, v), &vec![0.0; table.len()], &dy, false);
    let f = |table: &[f64]| {
        let mut s = Suite::new(SUM);
        forward(s.case("forward"), (n, c, v), table, &x, false);
        s.reference().remove(0)
    };
    gradcheck("dtable", f, &table, &dy, &s.reference()[0]);
}

/// What a row was overwritten with gets its gradient, and what was overwritten gets none.
#[test]
fn cleared_rows_are_zero() {
    let (n, c, v) = (8, 4, 3);
    let dx = random(n * c, 3);
    let mut s = Suite::new(SUM);
    backward(s.case("backward"), (n, c, v), &vec![0.0; OFF + v * c], &dx, true);
    let after = &s.reference()[1];
    for (row, at) in index(n, v).into_iter().enumerate() {
        let want = if at == NONE { &dx[row * c..][..c] } else { &[0.0; 4] };
        assert_eq!(&after[row * c..][..c], want, "row {row}");
    }
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SUM);
    for (n, c, v) in [(1, 4, 1), (7, 12, 2), (127, 132, 8), (128, 576, 5), (129, 4, 40)] {
        let (table, x, dx) = (random(OFF + v * c, 4), random(n * c, 5), random(n * c, 6));
        forward(s.case(format!("forward {n}x{c} of {v}")), (n, c, v), &table, &x, false);
        forward(s.case(format!("forward onto {n}x{c} of {v}")), (n, c, v), &table, &x, true);
        backward(s.case(format!("backward {n}x{c} of {v}")), (n, c, v), &table, &dx, false);
        backward(s.case(format!("backward clearing {n}x{c} of {v}")), (n, c, v), &table, &dx, true);
        within(s.case(format!("within {n}x{c} of {v}")), (n, c, v));
    }
    s.check();
}
