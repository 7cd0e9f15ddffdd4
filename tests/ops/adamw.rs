use crate::common::tolerance::FEW;
use crate::harness::{Suite, control, random};
use luthier::ops::adamw::{self, AdamW, State};
use luthier::ops::control::Control;

const HYPER: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
const LR: f32 = 1e-2;

/// Step t from (θ, g, m, v); outputs: the four after it.
fn push(s: &mut Suite, t: i32, clip: [f64; 2], theta: &[f64], g: &[f64], m: &[f64], v: &[f64]) {
    push_rated(s, t, clip, None, theta, g, m, v);
}

#[allow(clippy::too_many_arguments)]
fn push_rated(
    s: &mut Suite,
    t: i32,
    clip: [f64; 2],
    rates: Option<&[f64]>,
    theta: &[f64],
    g: &[f64],
    m: &[f64],
    v: &[f64],
) {
    let words = control(Control {
        lr: LR,
        bias1: 1.0 - HYPER.beta1.powi(t),
        bias2: 1.0 - HYPER.beta2.powi(t),
        ..Default::default()
    });
    let (c, clip) = (s.words("control", &words), s.floats("clip", &clip));
    let (params, grads) = (s.in_out("theta", theta), s.in_out("grads", g));
    let (m, v) = (s.in_out("m", m), s.in_out("v", v));
    let rates = rates.map(|rates| s.floats("rates", rates));
    adamw::step(&mut s.plan, HYPER, c, clip, &State { params, grads, m, v, len: theta.len(), rates });
}

/// `torch.optim.AdamW`'s documented update, value by value.
fn textbook(t: i32, clip: f64, [theta, g, m, v]: [f64; 4]) -> [f64; 4] {
    let (b1, b2, lr) = (HYPER.beta1 as f64, HYPER.beta2 as f64, LR as f64);
    let bias = |b: f32| (1.0 - b.powi(t)) as f64;
    let g = g * clip;
    let theta = theta - lr * HYPER.weight_decay as f64 * theta;
    let (m, v) = (b1 * m + (1.0 - b1) * g, b2 * v + (1.0 - b2) * g * g);
    let update = (m / bias(HYPER.beta1)) / ((v / bias(HYPER.beta2)).sqrt() + HYPER.eps as f64);
    [theta - lr * update, 0.0, m, v]
}

#[test]
fn twin_matches_the_textbook() {
    let len = 33;
    let (theta, g, m) = (random(len, 1), random(len, 2), random(len, 3));
    let v: Vec<f64> = random(len, 4).iter().map(|v| v * v).collect();
    for t in [1, 2, 1000] {
        let mut s = Suite::new(FEW);
        push(s.case("step"), t, [0.5, 0.0], &theta, &g, &m, &v);
        let got = s.reference();
        for i in 0..len {
            let want = textbook(t, 0.5, [theta[i], g[i], m[i], v[i]]);
            for (got, want) in got.iter().map(|x| x[i]).zip(want) {
                assert!((got - want).abs() <= 1e-12 * (1.0 + want.abs()), "step {t}: {got} and {want}");
            }
        }
    }
}

#[test]
fn halted_only_consumes_gradients() {
    let x = random(9, 1);
    let mut s = Suite::new(FEW);
    push(s.case("halted"), 3, [0.0, 1.0], &x, &[f64::NAN; 9], &x, &x);
    let want = vec![x.clone(), vec![0.0; 9], x.clone(), x.clone()];
    assert_eq!(s.reference(), want);
    if let Some(got) = s.on_gpu() {
        assert_eq!(got, want);
    }
}

/// A rate of 4 is a step of four times the size; a rate of 0 moves nothing, not even by weight decay.
#[test]
fn rates_scale_the_step() {
    let (x, g, zero) = (random(6, 1), random(6, 2), vec![0.0; 6]);
    let mut s = Suite::new(FEW);
    push(s.case("plain"), 1, [1.0, 0.0], &x, &g, &zero, &zero);
    let plain = s.reference().remove(0);
    let mut s = Suite::new(FEW);
    let rates = [1.0, 1.0, 4.0, 4.0, 0.0, 0.0];
    push_rated(s.case("rated"), 1, [1.0, 0.0], Some(&rates), &x, &g, &zero, &zero);
    let rated = s.reference().remove(0);
    for i in 0..6 {
        let (want, got) = (rates[i] * (plain[i] - x[i]), rated[i] - x[i]);
        assert!((want - got).abs() < 1e-12, "{i}: {got}, expected {want}");
    }
    s.check();
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(FEW);
    for len in [1, 7, 127, 128, 129, 100_000] {
        let v: Vec<f64> = random(len, 4).iter().map(|v| v * v).map(|v| v as f32 as f64).collect();
        let (theta, m) = (random(len, 1), random(len, 3));
        push(s.case(format!("{len}")), 10, [0.25, 0.0], &theta, &random(len, 2), &m, &v);
        push(s.case(format!("{len}, first")), 1, [1.0, 0.0], &theta, &random(len, 2), &vec![0.0; len], &vec![0.0; len]);
    }
    s.check();
}
