use crate::common::tolerance::SUM;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::format::WeightFormat;
use luthier::gpu::{AdapterFacts, by_rule};
use luthier::ops::Columns;
use luthier::ops::gain::Vector;
use luthier::ops::low_rank::{Factor, Lift, Narrow};
use luthier::ops::matmul::{self, Epilogue, Matrix, Shard};
use luthier::plan::{Buf, Elem, Plan, Style};

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

    /// The first column of y or dy within a wider row, where there is more than the whole.
    fn col(&self) -> usize {
        if self.extras.rank > 3 { 4 } else { 0 }
    }

    /// A row of y or dy.
    fn ld(&self) -> usize {
        self.o + 2 * self.col()
    }

    /// t:[N,R+1] and the factor [R, width] at OFFSET of its buffer; with enough columns it is two, for parts of them.
    fn low(&self, s: &mut Suite, width: usize, col: usize) -> Option<Lift> {
        let rank = self.extras.rank;
        let t = s.floats("t", &random(self.n * (rank + 1), 3));
        let flat = s.floats("low", &random(OFFSET + rank * width, 4));
        let (off, part) = (OFFSET as u32, if width > 8 { 8 } else { width });
        let one = Factor {
            off,
            rank: rank as u32,
            t: 1,
            col: col as u32,
            width: part as u32,
            scale: 1.5,
            ..Default::default()
        };
        let (off, col, width) = (off + (rank * part) as u32, (col + part) as u32, (width - part) as u32);
        let two = Factor { off, t: 0, col, width, rank: rank as u32 * (width > 0) as u32, scale: 0.5, ..one };
        let t = Narrow { buf: t, width: rank + 1 };
        (rank > 0).then_some(Lift { t, flat, factors: [one, two, Factor::default()] })
    }

    fn target(&self, s: &mut Suite, label: &str, len: usize) -> Buf {
        if self.extras.accumulate { s.in_out(label, &random(len, 5)) } else { s.output(label, len) }
    }

    fn forward(&self, s: &mut Suite, x: &[f64]) {
        let (n, o) = (self.n, self.o);
        let (col, ld) = (self.col(), self.ld());
        let (x, w, low) = (s.floats("x", x), self.weight(s), self.low(s, o, col));
        let bias = self.extras.bias.then(|| Vector { buf: s.floats("bias", &random(OFFSET + o, 6)), off: OFFSET });
        let residual = self.extras.residual.then(|| s.floats("residual", &random(n * ld, 7)));
        let none = s.floats("none", &[f64::NAN; 4]);
        // What lies beside y stays as it was.
        let y = if col > 0 { s.in_out("y", &random(n * ld, 5)) } else { self.target(s, "y", n * o) };
        let y = Columns { buf: y, ld, col };
        let e = Epilogue { low, bias, residual, accumulate: self.extras.accumulate };
        matmul::forward(&mut s.plan, "", n, x, &w, SCALE, e, none, y);
    }

    fn backward(&self, s: &mut Suite, dy: &[f64]) {
        let mut wide = vec![f64::NAN; self.n * self.ld()];
        for (wide, dy) in wide.chunks_mut(self.ld().max(1)).zip(dy.chunks(self.o.max(1))) {
            wide[self.col()..][..dy.len().min(self.o)].copy_from_slice(&dy[..dy.len().min(self.o)]);
        }
        let dy = Columns { buf: s.floats("dy", &wide), ld: self.ld(), col: self.col() };
        let (w, low) = (self.weight(s), self.low(s, self.i, 0));
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
    let (t, low) = (random(p.n * 4, 3), random(OFFSET + 3 * p.o, 4));
    let (old, bias, residual) = (random(p.n * p.o, 5), random(OFFSET + p.o, 6), random(p.n * p.o, 7));
    let mut s = Suite::new(SUM);
    p.forward(s.case("forward"), &x);
    for (at, got) in s.reference()[0].iter().enumerate() {
        let (n, o) = (at / p.o, at % p.o);
        let product: f64 = (0..p.i).map(|i| x[n * p.i + i] * w[o * p.i + i]).sum();
        let term: f64 = (0..3).map(|r| t[n * 4 + 1 + r] * low[OFFSET + r * p.o + o]).sum();
        let want = SCALE as f64 * product + 1.5 * term + bias[OFFSET + o] + residual[at] + old[at];
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
    // A·Aᵀ: as many outputs as the rank has.
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
            p.backward(s.case(p.label("backward")), &gradient(n, 1.0, dy));
        }
    }
    // As small as they are in a batch of many tokens, late in a run.
    let p = Product { format: WeightFormat::BF16, n: 4096, i: 32, o: 8, extras: PLAIN };
    p.backward(s.case(p.label("backward, small")), &gradient(p.n, 1e-3, random(p.n * p.o, 1)));
    s.check();
}

/// Gradients of a mean over n tokens.
fn gradient(n: usize, size: f64, dy: Vec<f64>) -> Vec<f64> {
    dy.into_iter().map(|dy| (dy * size / n as f64) as f32 as f64).collect()
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
    for halves in [false, true] {
        let tuned = s.check_tuned(halves);
        let names: Vec<String> = matmul::FORWARD.shaders.iter().map(|s| s.to_string()).collect();
        for (step, shader) in &tuned {
            assert!(step.starts_with("matmul.forward bf16 129x132x1"), "{step}");
            assert!(names.contains(shader), "{step}: {shader} is none of {names:?}");
            assert!(halves || !shader.contains("HALF"), "{step}: {shader} was not asked for");
        }
        assert!(tuned.len() == 1 || crate::common::gpu().is_none(), "{tuned:?}");
    }
}

/// What the rule takes on a machine for the product of n rows with a matrix of 512 × 512.
fn rule(style: Style, lanes: u32, n: usize) -> String {
    let mut plan = Plan::default();
    let [x, y, none] = [n * 512, n * 512, 4].map(|len| plan.persistent("", Elem::Float, len));
    let w = Matrix::at(plan.persistent("", Elem::Word, 512 * 512), 0, WeightFormat::F32, 512, 512);
    let sequence = plan.begin("");
    matmul::forward(&mut plan, "", n, x, &w, 1.0, Epilogue::default(), none, y);
    let facts = AdapterFacts {
        name: String::new(),
        backend: String::new(),
        driver: String::new(),
        software: style == Style::Software,
        kind: String::new(),
        max_binding_bytes: 1 << 27,
        max_buffer_bytes: 1 << 28,
        shader_f16: false,
        fragment: 0,
        style,
        lanes,
    };
    let step = &plan.sequences[sequence].steps[0];
    by_rule(&facts, false, step).expect("a shader").to_string()
}

#[test]
fn the_rule_takes_what_is_long_to_compile_for_large_products_only() {
    let (wide, usual) = ("matmul_direct TALL=4 WIDE=32 LANES=8 LARGE=27", "matmul_direct TALL=4 WIDE=16 LANES=8");
    // 512 · 512 · 512 is 2²⁷.
    for style in [Style::Software, Style::Direct] {
        assert_eq!([511, 512].map(|n| rule(style, 8, n)), [usual, wide]);
        assert_eq!(rule(style, 4, 512), "matmul_direct TALL=8 WIDE=16 LANES=4");
        assert_eq!(rule(style, 1, 512), "matmul_direct TALL=8 WIDE=8 LANES=1");
    }
    assert_eq!(rule(Style::Tiled, 8, 512), "matmul_tiled TALL=8 WIDE=8 TX=8 TY=8 X_LOADS=4 W_LOADS=4");
}
