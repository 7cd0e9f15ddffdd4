use crate::common::tolerance::SUM;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::format::WeightFormat;
use luthier::ops::matmul::{self, Epilogue, LowRank, Matrix, Shard};
use luthier::plan::Buf;

const SCALE: f32 = 0.75;

/// What a product is made of beside x and W; a rank of 0 means no low-rank term.
#[derive(Clone, Copy, Debug, Default)]
struct Extras {
    rank: usize,
    bias: bool,
    residual: bool,
    accumulate: bool,
    /// Rows of W before the second shard, 0 for one shard.
    split: usize,
}

const PLAIN: Extras = Extras { rank: 0, bias: false, residual: false, accumulate: false, split: 0 };

/// Words before the first of W, floats before the first of the low-rank factor: adapters share one buffer.
const OFFSET: usize = 8;

struct Product {
    format: WeightFormat,
    n: usize,
    i: usize,
    o: usize,
    extras: Extras,
}

impl Product {
    fn label(&self, direction: &str) -> String {
        format!("{direction} {} {}x{}x{} {:?}", self.format.name(), self.n, self.i, self.o, self.extras)
    }

    fn weight(&self, s: &mut Suite) -> Matrix {
        let (o, i, split) = (self.o, self.i, self.extras.split);
        let values = random(o * i, 2);
        let mut w = s.matrix(
            self.format,
            (if split > 0 { split } else { o }, i),
            OFFSET,
            &values[..if split > 0 { split } else { o } * i],
        );
        if split > 0 {
            let rest = s.matrix(self.format, (o - split, i), OFFSET, &values[split * i..]);
            w.shards.push(Shard { row0: split, ..rest.shards[0] });
        }
        w.rows = o;
        w
    }

    /// t:[N,R] and the factor [R, width] at OFFSET of its buffer.
    fn low(&self, s: &mut Suite, width: usize) -> Option<LowRank> {
        let rank = self.extras.rank;
        let (t, params) =
            (s.floats("t", &random(self.n * rank, 3)), s.floats("low", &random(OFFSET + rank * width, 4)));
        (rank > 0).then_some(LowRank { t, params, offset: OFFSET, rank, scale: 1.5 })
    }

    fn target(&self, s: &mut Suite, label: &str, len: usize) -> Buf {
        if self.extras.accumulate { s.in_out(label, &random(len, 5)) } else { s.output(label, len) }
    }

    fn forward(&self, s: &mut Suite, x: &[f64]) {
        let (n, o) = (self.n, self.o);
        let (x, w, low) = (s.floats("x", x), self.weight(s), self.low(s, o));
        let bias = self.extras.bias.then(|| s.floats("bias", &random(o, 6)));
        let residual = self.extras.residual.then(|| s.floats("residual", &random(n * o, 7)));
        let (none, y) = (s.floats("none", &[f64::NAN; 4]), self.target(s, "y", n * o));
        let e = Epilogue { low, bias, residual, accumulate: self.extras.accumulate };
        matmul::forward(&mut s.plan, "", n, x, &w, SCALE, e, none, y);
    }

    fn backward(&self, s: &mut Suite, dy: &[f64]) {
        let (dy, w, low) = (s.floats("dy", dy), self.weight(s), self.low(s, self.i));
        let (none, dx) = (s.floats("none", &[f64::NAN; 4]), self.target(s, "dx", self.n * self.i));
        matmul::backward(&mut s.plan, "", self.n, dy, &w, low, self.extras.accumulate, none, dx);
    }
}

/// dx of y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ is dy·W + du·A with du = s·dy·B: the backward product, its low-rank term fed with du.
#[test]
fn twin_backward_matches_finite_differences() {
    for format in [WeightFormat::BF16, WeightFormat::Q4_1] {
        let p = Product { format, n: 3, i: 32, o: 8, extras: Extras { split: 4, ..PLAIN } };
        let (x, dy) = (random(p.n * p.i, 1), random(p.n * p.o, 8));
        let mut s = Suite::new(SUM);
        p.backward(s.case("backward"), &dy);
        let f = |x: &[f64]| {
            let mut s = Suite::new(SUM);
            p.forward(s.case("forward"), x);
            s.reference().remove(0).iter().map(|y| y / SCALE as f64).collect()
        };
        gradcheck("dx", f, &x, &dy, &s.reference()[0]);
    }
}

/// Every term of the epilogue, written out.
#[test]
fn twin_matches_the_textbook() {
    let extras = Extras { rank: 3, bias: true, residual: true, accumulate: true, split: 4 };
    let p = Product { format: WeightFormat::F32, n: 5, i: 12, o: 8, extras };
    let (x, w) = (random(p.n * p.i, 1), random(p.o * p.i, 2));
    let (t, low) = (random(p.n * 3, 3), random(OFFSET + 3 * p.o, 4));
    let (old, bias, residual) = (random(p.n * p.o, 5), random(p.o, 6), random(p.n * p.o, 7));
    let mut s = Suite::new(SUM);
    p.forward(s.case("forward"), &x);
    for (at, got) in s.reference()[0].iter().enumerate() {
        let (n, o) = (at / p.o, at % p.o);
        let product: f64 = (0..p.i).map(|i| x[n * p.i + i] * w[o * p.i + i]).sum();
        let term: f64 = (0..3).map(|r| t[n * 3 + r] * low[OFFSET + r * p.o + o]).sum();
        let want = SCALE as f64 * product + 1.5 * term + bias[o] + residual[at] + old[at];
        assert!((got - want).abs() < 1e-12, "[{n},{o}]: {got} and {want}");
    }
}

/// N, I (in granules), O.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 4), (7, 3, 12), (127, 33, 132), (128, 5, 576), (129, 18, 64), (8, 144, 8), (2, 2, 260)];

fn extras(k: usize, o: usize) -> Extras {
    let rank = [0, 1, 3, 8, 17, 16][k % 6];
    let split = if k % 4 == 2 { o / 2 / 4 * 4 } else { 0 };
    Extras { rank, bias: k % 3 == 1, residual: k % 5 < 2, accumulate: k % 2 == 1, split }
}

#[test]
fn executors_agree_on_forward() {
    let mut s = Suite::new(SUM);
    for (f, format) in WeightFormat::ALL.into_iter().enumerate() {
        for (k, (n, i, o)) in SHAPES.into_iter().enumerate() {
            let i = (i * 4).next_multiple_of(format.granule());
            let p = Product { format, n, i, o, extras: extras(f + k, o) };
            let x = if n == 128 { with_outliers(n * i, i, 1) } else { random(n * i, 1) };
            p.forward(s.case(p.label("forward")), &x);
        }
    }
    // u = x·Aᵀ: as many outputs as the rank has.
    for o in [1, 3, 8, 17] {
        let p = Product { format: WeightFormat::F32, n: 129, i: 132, o, extras: PLAIN };
        p.forward(s.case(p.label("forward")), &random(p.n * p.i, 1));
    }
    s.check();
}

#[test]
fn executors_agree_on_backward() {
    let mut s = Suite::new(SUM);
    for (f, format) in WeightFormat::ALL.into_iter().enumerate() {
        for (k, (n, i, o)) in SHAPES.into_iter().enumerate() {
            let i = (i * 4).next_multiple_of(format.granule());
            let p = Product { format, n, i, o, extras: extras(f + k, o) };
            let dy = if n == 128 { with_outliers(n * o, o, 1) } else { random(n * o, 1) };
            p.backward(s.case(p.label("backward")), &dy);
        }
    }
    s.check();
}

/// A matrix of no rows leaves the low-rank term alone: du·A by itself.
#[test]
fn executors_agree_without_a_matrix() {
    let mut s = Suite::new(SUM);
    for (rank, accumulate) in [(3, false), (8, true)] {
        let extras = Extras { rank, accumulate, ..PLAIN };
        let p = Product { format: WeightFormat::F32, n: 7, i: 12, o: 0, extras };
        p.backward(s.case(p.label("backward")), &[0.0; 4]);
    }
    s.check();
}

/// Measuring says for each step it measured which of the kernel's shaders is to run, and changes no result.
#[test]
fn measured_shaders_agree() {
    let mut s = Suite::new(SUM);
    let p = Product { format: WeightFormat::BF16, n: 129, i: 128, o: 132, extras: PLAIN };
    p.forward(s.case(p.label("forward")), &random(p.n * p.i, 1));
    let tuned = s.check_tuned();
    let names: Vec<String> = matmul::FORWARD.shaders.iter().map(|s| s.to_string()).collect();
    for (step, shader) in &tuned {
        assert!(step.starts_with("matmul.forward bf16 129x132x1"), "{step}");
        assert!(names.contains(shader), "{step}: {shader} is none of {names:?}");
    }
    assert!(tuned.len() == 1 || crate::common::gpu().is_none(), "{tuned:?}");
}
