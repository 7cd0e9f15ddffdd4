use crate::common::tolerance::SUM;
use crate::harness::{Suite, control, random};
use luthier::ops::control::{Control, REPORT};
use luthier::ops::sum_squares;

/// Three slots of the ring, the middle one in use; outputs: ring, clip.
fn push(s: &mut Suite, grads: &[f64], max_norm: f32, loss: f64, halted: f64) {
    let words = control(Control { ring: 1, ..Default::default() });
    let mut ring = random(3 * REPORT, 9);
    ring[REPORT] = loss;
    let (g, c) = (s.floats("grads", grads), s.words("control", &words));
    let (ring, clip) = (s.in_out("ring", &ring), s.in_out("clip", &[f64::NAN, halted]));
    sum_squares::norm_and_clip(&mut s.plan, grads.len(), max_norm, g, c, ring, clip);
}

/// (norm, applied, factor, halted) by the reference.
fn run(grads: &[f64], max_norm: f32, loss: f64, halted: f64) -> [f64; 4] {
    let mut s = Suite::new(SUM);
    push(s.case("norm"), grads, max_norm, loss, halted);
    let out = s.reference();
    [out[0][REPORT + 2], out[0][REPORT + 3], out[1][0], out[1][1]]
}

#[test]
fn twin_clips_like_the_textbook() {
    let grads = random(10_000, 1);
    let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
    let [got, applied, factor, halted] = run(&grads, 1.0, 2.0, 0.0);
    assert!((got - norm).abs() < 1e-9 * norm && (factor - 1.0 / (norm + 1e-6)).abs() < 1e-9);
    assert_eq!((applied, halted), (1.0, 0.0));
    assert_eq!(run(&grads, 1e6, 2.0, 0.0)[2], 1.0, "below the limit nothing is scaled");
    assert_eq!(run(&grads, 0.0, 2.0, 0.0)[2], 1.0, "0 means no clipping");
}

#[test]
fn twin_halts_on_a_number_that_is_not_finite_and_stays_halted() {
    let fine = random(100, 1);
    let mut broken = fine.clone();
    broken[70] = f64::NAN;
    for [_, applied, factor, halted] in [
        run(&fine, 1.0, f64::INFINITY, 0.0),
        run(&fine, 1.0, f64::NAN, 0.0),
        run(&broken, 1.0, 1.0, 0.0),
        run(&fine, 1.0, 1.0, 1.0),
    ] {
        assert_eq!((applied, factor, halted), (0.0, 0.0, 1.0));
    }
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SUM);
    for len in [1, 7, 4095, 4096, 4097, 64 * 4096 + 129] {
        push(s.case(format!("{len}")), &random(len, 2), 1.0, 2.5, 0.0);
        push(s.case(format!("{len}, no clipping")), &random(len, 2), 0.0, 2.5, 0.0);
    }
    push(s.case("halted before"), &random(100, 2), 1.0, 2.5, 1.0);
    s.check();
}

/// What a GPU must see although its driver may assume that NaN does not occur.
#[test]
fn gpu_halts_on_a_number_that_is_not_finite() {
    for (bad, loss) in [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (3e38, 1.0), (0.5, f64::NAN), (0.5, f64::NEG_INFINITY)] {
        let mut s = Suite::new(SUM);
        push(s.case("broken"), &[0.5, bad, bad, 1.0], 1.0, loss, 0.0);
        let Some(got) = s.on_gpu() else { return };
        assert_eq!(&got[1][..], [0.0, 1.0], "gradient {bad}, loss {loss}");
        assert_eq!(got[0][REPORT + 3], 0.0, "gradient {bad}, loss {loss}: applied");
    }
}
