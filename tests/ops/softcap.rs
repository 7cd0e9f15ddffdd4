//! Its backward pass is tested with cross-entropy's, which it is part of.

use crate::common::tolerance::SUM;
use crate::harness::{Suite, random, with_outliers};
use luthier::ops::softcap;

fn forward(s: &mut Suite, cap: f32, z: &[f64]) {
    let logits = s.in_out("z", z);
    softcap::forward(&mut s.plan, "", z.len(), cap, logits);
}

#[test]
fn twin_forward_matches_the_textbook() {
    let z = with_outliers(48, 6, 1);
    let mut s = Suite::new(SUM);
    forward(s.case("cap"), 30.0, &z);
    for (got, z) in s.reference()[0].iter().zip(&z) {
        assert!((got - 30.0 * (z / 30.0).tanh()).abs() < 1e-12);
    }
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SUM);
    for len in [1, 7, 127, 128, 129, 576 * 70] {
        forward(s.case(format!("{len}")), 5.0, &random(len, 2));
        forward(s.case(format!("{len} with outliers")), 30.0, &with_outliers(len, 12, 3));
    }
    s.check();
}
