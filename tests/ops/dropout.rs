use crate::common::tolerance::FEW;
use crate::harness::{Suite, control, gradcheck, random};
use luthier::ops::control::Control;
use luthier::ops::dropout;

const SITE: u32 = 5;

fn seeded(s: &mut Suite, seed: u32) -> luthier::plan::Buf {
    let words = control(Control { seed, ..Default::default() });
    s.words("control", &words)
}

fn forward(s: &mut Suite, seed: u32, p: f32, x: &[f64]) {
    let (c, x_buf, y) = (seeded(s, seed), s.floats("x", x), s.output("y", x.len()));
    dropout::forward(&mut s.plan, "", x.len(), SITE, p, c, x_buf, y);
}

fn backward(s: &mut Suite, seed: u32, p: f32, dy: &[f64], dx: &[f64]) {
    let (c, dy_buf, dx) = (seeded(s, seed), s.floats("dy", dy), s.in_out("dx", dx));
    dropout::backward(&mut s.plan, "", dy.len(), SITE, p, c, dy_buf, dx);
}

fn dropped(seed: u32, p: f32, x: &[f64]) -> Vec<f64> {
    let mut s = Suite::new(FEW);
    forward(s.case("forward"), seed, p, x);
    s.reference().remove(0)
}

#[test]
fn twin_backward_matches_finite_differences() {
    let (x, dy) = (random(64, 1), random(64, 2));
    let mut s = Suite::new(FEW);
    backward(s.case("backward"), 7, 0.3, &dy, &[0.0; 64]);
    gradcheck("dx", |x| dropped(7, 0.3, x), &x, &dy, &s.reference()[0]);
}

#[test]
fn a_share_of_p_is_dropped_and_the_rest_scaled() {
    let p = 0.2f32;
    let y = dropped(11, p, &vec![1.0; 20_000]);
    let kept = 1.0 / (1.0 - p as f64);
    assert!(y.iter().all(|y| *y == 0.0 || *y == kept));
    let share = y.iter().filter(|y| **y == 0.0).count() as f64 / y.len() as f64;
    assert!((share - p as f64).abs() < 0.01, "{share} dropped");
    assert_ne!(y, dropped(12, p, &vec![1.0; 20_000]), "another seed, another mask");
    assert!(dropped(11, 0.0, &[1.0; 100]).iter().all(|y| *y == 1.0));
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(FEW);
    for (len, p) in [(1, 0.5), (7, 0.0), (127, 0.1), (129 * 576, 0.05)] {
        forward(s.case(format!("forward {len}")), 3, p, &random(len, 3));
        backward(s.case(format!("backward {len}")), 3, p, &random(len, 3), &random(len, 4));
    }
    s.check();
}
