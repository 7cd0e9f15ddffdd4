use crate::common::tolerance::SUM;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::format::WeightFormat;
use luthier::ops::matmul::Epilogue;
use luthier::ops::{lora_grad, matmul};

const SCALE: f32 = 0.75;

/// `old` is the whole gradient buffer; the factor's gradient lies at `off`.
fn push(s: &mut Suite, (n, r, w): (usize, usize, usize), p: &[f64], q: &[f64], old: &[f64], off: usize) {
    let (p, q, grads) = (s.floats("p", p), s.floats("q", q), s.in_out("grads", old));
    lora_grad::accumulate(&mut s.plan, "", n, p, (r, r), q, w, SCALE, grads, off);
}

/// dA of u = s·x·Aᵀ is s·duᵀ·x.
#[test]
fn twin_matches_finite_differences() {
    let (n, r, w) = (5, 3, 4);
    let (a, x, du) = (random(r * w, 1), random(n * w, 2), random(n * r, 3));
    let mut s = Suite::new(SUM);
    push(s.case("dA"), (n, r, w), &du, &x, &vec![0.0; r * w], 0);
    let u = |a: &[f64]| {
        let mut s = Suite::new(SUM);
        s.case("u");
        // As f32 words the factor would lose the step, so the product is taken with roles swapped: u = A·x as x·Aᵀ.
        let x_rows = s.matrix(WeightFormat::F32, (n, w), 0, &x);
        let (a, none, y) = (s.floats("A", a), s.floats("none", &[0.0; 4]), s.output("u", r * n));
        matmul::forward(&mut s.plan, "", r, a, &x_rows, SCALE, Epilogue::default(), none, y);
        let by_rank = s.reference().remove(0);
        (0..n * r).map(|k| by_rank[k % r * n + k / r]).collect()
    };
    gradcheck("dA", u, &a, &du, &s.reference()[0]);
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SUM);
    for (n, r, w) in [(1, 1, 4), (7, 3, 12), (127, 8, 132), (128, 17, 576), (129, 16, 4)] {
        let q = if n == 128 { with_outliers(n * w, w, 4) } else { random(n * w, 4) };
        let (off, tail) = (8, 5);
        let old = random(off + r * w + tail, 6);
        push(s.case(format!("{n}x{r}x{w}")), (n, r, w), &random(n * r, 5), &q, &old, off);
    }
    s.check();
}
