use crate::common::tolerance::EXP;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::ops::swiglu;

fn forward(s: &mut Suite, gate: &[f64], up: &[f64]) {
    let (g, u, y) = (s.floats("gate", gate), s.floats("up", up), s.output("y", gate.len()));
    swiglu::forward(&mut s.plan, "", gate.len(), g, u, y);
}

fn backward(s: &mut Suite, gate: &[f64], up: &[f64], dy: &[f64]) {
    let (dy, g, u) = (s.floats("dy", dy), s.in_out("gate", gate), s.in_out("up", up));
    swiglu::backward(&mut s.plan, "", gate.len(), dy, g, u);
}

#[test]
fn twin_backward_matches_finite_differences() {
    let (gate, up, dy) = (random(24, 1), random(24, 2), random(24, 3));
    let mut s = Suite::new(EXP);
    backward(s.case("backward"), &gate, &up, &dy);
    let f = |gate: &[f64], up: &[f64]| {
        let mut s = Suite::new(EXP);
        forward(s.case("forward"), gate, up);
        s.reference().remove(0)
    };
    let grads = s.reference();
    gradcheck("dgate", |gate| f(gate, &up), &gate, &dy, &grads[0]);
    gradcheck("dup", |up| f(&gate, up), &up, &dy, &grads[1]);
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(EXP);
    for len in [4, 12, 127 * 4, 129 * 576] {
        let (gate, up, dy) = (random(len, 4), random(len, 5), random(len, 6));
        forward(s.case(format!("forward {len}")), &gate, &up);
        backward(s.case(format!("backward {len}")), &gate, &up, &dy);
    }
    // Gates of ±800: exp overflows in f32, and silu must be 0 or the gate itself, not NaN.
    let gate = with_outliers(132, 4, 7);
    forward(s.case("forward with outliers"), &gate, &random(132, 8));
    backward(s.case("backward with outliers"), &gate, &random(132, 8), &random(132, 9));
    s.check();
}
