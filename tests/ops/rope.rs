use crate::common::tolerance::FEW;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::ops::Columns;
use luthier::ops::rope::{self, Angles};
use luthier::plan::Plan;

type Op = fn(&mut Plan, &str, (usize, usize, usize), Angles, Columns);

/// `past` more floats in each row are left alone.
fn push_within(s: &mut Suite, op: Op, (n, heads, d): (usize, usize, usize), past: usize, x: &[f64]) {
    let positions: Vec<u32> = (0..n as u32).map(|i| i * 5 % 128).collect();
    let angle = |i: usize| (i / d * 2) as f64 * 0.3 / (i % d / 2 + 1) as f64;
    let table: Vec<f64> = (0..131 * d)
        .map(|i| if i % 2 == 0 { angle(i).cos() } else { angle(i).sin() })
        .map(|x| x as f32 as f64)
        .collect();
    let (positions, table, x) = (s.words("positions", &positions), s.floats("table", &table), s.in_out("x", x));
    // Row 3 is where some other table may end.
    op(
        &mut s.plan,
        "",
        (n, heads, d),
        Angles { positions, table, first: 3 },
        Columns { buf: x, ld: heads * d + past, col: 0 },
    );
}

fn push(s: &mut Suite, op: Op, shape: (usize, usize, usize), x: &[f64]) {
    push_within(s, op, shape, 0, x);
}

#[test]
fn twin_backward_matches_finite_differences() {
    let shape = (5, 2, 4);
    let (x, dy) = (random(40, 1), random(40, 2));
    let mut s = Suite::new(FEW);
    push(s.case("backward"), rope::backward, shape, &dy);
    let f = |x: &[f64]| {
        let mut s = Suite::new(FEW);
        push(s.case("forward"), rope::forward, shape, x);
        s.reference().remove(0)
    };
    gradcheck("dx", f, &x, &dy, &s.reference()[0]);
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(FEW);
    for (n, heads, d) in [(1, 1, 4), (7, 3, 12), (127, 4, 64), (129, 9, 64), (128, 1, 128)] {
        let x = if n == 129 { with_outliers(n * heads * d, d, 3) } else { random(n * heads * d, 3) };
        push(s.case(format!("forward {n}x{heads}x{d}")), rope::forward, (n, heads, d), &x);
        push(s.case(format!("backward {n}x{heads}x{d}")), rope::backward, (n, heads, d), &x);
        let wider = random(n * (heads * d + 12), 4);
        push_within(s.case(format!("forward {n}x{heads}x{d} of more")), rope::forward, (n, heads, d), 12, &wider);
    }
    s.check();
}
