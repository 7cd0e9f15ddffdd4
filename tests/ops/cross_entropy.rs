use crate::common::tolerance::{SOFTMAX, SUM};
use crate::harness::{Suite, control, gradcheck, random, with_outliers};
use luthier::ops::control::{Control, REPORT};
use luthier::ops::cross_entropy::{self, Chunk, ROW};
use luthier::ops::gather::NONE;

const INV_TOKENS: f32 = 1.0 / 37.0;

/// Every third row is without a target.
fn targets(c: Chunk) -> Vec<u32> {
    (0..c.first + c.m).map(|i| if i % 3 == 1 { NONE } else { (i * 7 % c.v) as u32 }).collect()
}

/// Outputs: the rows.
fn forward(s: &mut Suite, c: Chunk, logits: &[f64], old: &[f64]) {
    let (t, z) = (s.words("targets", &targets(c)), s.floats("logits", logits));
    let rows = s.in_out("rows", old);
    cross_entropy::forward(&mut s.plan, c, t, z, rows);
}

/// Outputs: the rows, then the logits' gradient.
fn backward(s: &mut Suite, c: Chunk, logits: &[f64]) {
    let words = control(Control { inv_tokens: INV_TOKENS, ..Default::default() });
    let (control, t) = (s.words("control", &words), s.words("targets", &targets(c)));
    let rows = s.in_out("rows", &vec![0.0; (c.first + c.m) * ROW]);
    let z = s.in_out("logits", logits);
    cross_entropy::forward(&mut s.plan, c, t, z, rows);
    cross_entropy::backward(&mut s.plan, c, control, t, rows, z);
}

#[test]
fn twin_backward_matches_finite_differences() {
    let c = Chunk { m: 5, first: 2, v: 7, ld: 8, cap: 0.0 };
    let logits = random(c.m * c.ld, 1);
    let mut s = Suite::new(SUM);
    backward(s.case("backward"), c, &logits);
    let loss = |z: &[f64]| {
        let mut s = Suite::new(SUM);
        forward(s.case("forward"), c, z, &vec![0.0; (c.first + c.m) * ROW]);
        vec![s.reference()[0].chunks_exact(ROW).map(|row| row[0]).sum()]
    };
    gradcheck("dlogits", loss, &logits, &[INV_TOKENS as f64], &s.reference()[1]);
}

/// With a cap the gradient is that of the loss as a function of what went into the cap.
#[test]
fn twin_backward_goes_through_the_cap() {
    let c = Chunk { m: 5, first: 2, v: 7, ld: 8, cap: 1.5 };
    let raw = random(c.m * c.ld, 1);
    let capped = |z: &[f64]| z.iter().map(|z| 1.5 * (z / 1.5).tanh()).collect::<Vec<f64>>();
    let mut s = Suite::new(SUM);
    backward(s.case("backward"), c, &capped(&raw));
    let loss = |z: &[f64]| {
        let mut s = Suite::new(SUM);
        forward(s.case("forward"), c, &capped(z), &vec![0.0; (c.first + c.m) * ROW]);
        vec![s.reference()[0].chunks_exact(ROW).map(|row| row[0]).sum()]
    };
    gradcheck("dlogits", loss, &raw, &[INV_TOKENS as f64], &s.reference()[1]);
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SOFTMAX);
    for (m, first, v) in [(1, 0, 1), (7, 5, 63), (127, 0, 130), (128, 0, 576), (16, 3, 4099)] {
        let c = Chunk { m, first, v, ld: v.next_multiple_of(4), cap: if m == 127 { 5.0 } else { 0.0 } };
        let logits = if m == 128 { with_outliers(m * c.ld, c.ld, 2) } else { random(m * c.ld, 2) };
        let old = random((first + m) * ROW, 3);
        forward(s.case(format!("forward {m}x{v} from {first}")), c, &logits, &old);
        backward(s.case(format!("backward {m}x{v} from {first}")), c, &logits);
    }
    s.check();
}

/// The best logit is found at its first index, wherever it lies among the lanes.
#[test]
fn ties_count_as_hits_only_for_the_first() {
    let c = Chunk { m: 2, first: 0, v: 200, ld: 200, cap: 0.0 };
    let mut logits = vec![0.0; 400];
    (logits[70], logits[130]) = (5.0, 5.0);
    (logits[200 + 70], logits[200 + 130]) = (5.0, 5.0);
    let mut s = Suite::new(SOFTMAX);
    s.case("ties");
    let (t, z) = (s.words("targets", &[130, 70]), s.floats("logits", &logits));
    let rows = s.output("rows", 2 * ROW);
    cross_entropy::forward(&mut s.plan, c, t, z, rows);
    let hits = |rows: &[f64]| [rows[1], rows[ROW + 1]];
    assert_eq!(hits(&s.reference()[0]), [0.0, 1.0]);
    if let Some(got) = s.on_gpu() {
        assert_eq!(hits(&got[0]), [0.0, 1.0]);
    }
}

fn report(s: &mut Suite, n: usize, first: bool) {
    let words = control(Control { rows: n as u32, ring: 2, first, ..Default::default() });
    let (control, rows) = (s.words("control", &words), s.floats("rows", &random((n + 2) * ROW, 4)));
    let ring = s.in_out("ring", &random(4 * REPORT, 5));
    cross_entropy::report(&mut s.plan, control, rows, ring);
}

#[test]
fn reports_add_up_over_a_window() {
    let mut s = Suite::new(SUM);
    for n in [0, 1, 7, 63, 64, 129] {
        report(s.case(format!("first of {n} rows")), n, true);
        report(s.case(format!("next of {n} rows")), n, false);
    }
    let mut one = Suite::new(SUM);
    report(one.case("first"), 7, true);
    let ring = &one.reference()[0];
    let rows = random(9 * ROW, 4);
    let sum = |k: usize| rows[..7 * ROW].chunks_exact(ROW).map(|r| r[k]).sum::<f64>();
    assert!((ring[2 * REPORT] - sum(0)).abs() < 1e-12 && (ring[2 * REPORT + 1] - sum(1)).abs() < 1e-12);
    s.check();
}
