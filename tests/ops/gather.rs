use crate::common::tolerance::EXACT;
use crate::harness::{Suite, gradcheck, random};
use luthier::ops::gather::{self, NONE};

/// Every other row of n is supervised; the list is padded with NONE to `capacity`.
fn supervised(n: usize, capacity: usize) -> (Vec<u32>, Vec<u32>) {
    let mut index = vec![NONE; capacity];
    let mut inverse = vec![NONE; n];
    for (m, row) in (0..n).step_by(2).enumerate() {
        index[m] = row as u32;
        inverse[row] = m as u32;
    }
    (index, inverse)
}

fn forward(s: &mut Suite, n: usize, (m, first): (usize, usize), c: usize, x: &[f64]) {
    let index = s.words("index", &supervised(n, n.max(first + m)).0);
    let (x, y) = (s.floats("x", x), s.output("y", m * c));
    gather::forward(&mut s.plan, (m, first), c, index, x, y);
}

fn backward(s: &mut Suite, n: usize, (m, first): (usize, usize), c: usize, dy: &[f64], old: Option<&[f64]>) {
    let inverse = s.words("inverse", &supervised(n, n).1);
    let dy = s.floats("dy", dy);
    let dx = s.onto("dx", n * c, old);
    gather::backward(&mut s.plan, n, (m, first), c, inverse, dy, dx);
}

#[test]
fn twin_backward_matches_finite_differences() {
    let (n, m, c) = (5, 4, 4);
    let (x, dy) = (random(n * c, 1), random(m * c, 2));
    let mut s = Suite::new(EXACT);
    backward(s.case("backward"), n, (m, 0), c, &dy, None);
    let f = |x: &[f64]| {
        let mut s = Suite::new(EXACT);
        forward(s.case("forward"), n, (m, 0), c, x);
        s.reference().remove(0)
    };
    gradcheck("dx", f, &x, &dy, &s.reference()[0]);
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(EXACT);
    for (n, m, first, c) in [(1, 1, 0, 4), (7, 7, 0, 12), (127, 32, 32, 132), (129, 64, 64, 576), (128, 128, 0, 4)] {
        let (x, dy, old) = (random(n * c, 3), random(m * c, 4), random(n * c, 5));
        forward(s.case(format!("forward {n}, {m} from {first}, {c}")), n, (m, first), c, &x);
        let old = (first > 0).then_some(&old[..]);
        backward(s.case(format!("backward {n}, {m} from {first}, {c}")), n, (m, first), c, &dy, old);
    }
    s.check();
}
