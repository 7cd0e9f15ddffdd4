use crate::common::tolerance::SUM;
use crate::harness::{Suite, gradcheck, random, with_outliers};
use luthier::ops::Columns;
use luthier::ops::low_rank::{self, Factor, Factors, Narrow, Pair};

/// Floats before the first factor: adapters share one buffer.
const OFFSET: usize = 8;

/// (rank, width) of each factor.
type Shape<'a> = &'a [(usize, usize)];

/// Factors one after the other in the flat buffer, each with columns of its own of t and of x; the buffer's length, the
/// rows of t and of x.
fn apart(shape: Shape) -> (Factors, usize, usize, usize) {
    let (mut factors, mut off, mut t, mut col) = (Factors::default(), OFFSET, 0, 4);
    for (k, (rank, width)) in shape.iter().enumerate() {
        let [off_, rank_, t_, col_, width_] = [off, *rank, t, col, *width].map(|x| x as u32);
        let scale = 0.5 + k as f32;
        factors[k] = Factor { off: off_, rank: rank_, t: t_, col: col_, width: width_, scale, ..Default::default() };
        (off, t, col) = (off + rank * width, t + rank, col + width);
    }
    (factors, off, t, col)
}

/// [`apart`], all of one rank and onto the same columns of t: linears that share an A on their way back.
fn shared(shape: Shape) -> (Factors, usize, usize, usize) {
    let (factors, len, _, ld) = apart(shape);
    (factors.map(|f| Factor { t: 0, ..f }), len, shape[0].0, ld)
}

fn project(s: &mut Suite, n: usize, (factors, _, width, ld): (Factors, usize, usize, usize), x: &[f64], flat: &[f64]) {
    let (x, flat, t) = (s.floats("x", x), s.floats("flat", flat), s.output("t", n * width));
    low_rank::project(&mut s.plan, "", n, x, ld, flat, factors, Narrow { buf: t, width });
}

/// The gradients of one pair's factors, and of a second's beyond them in the buffer.
fn gradient(s: &mut Suite, n: usize, shape: Shape, second: bool, t: &[f64], x: &[f64], old: &[f64]) {
    let (factors, len, width, ld) = apart(shape);
    let mut pair = |factors: Factors| Pair {
        t: Narrow { buf: s.floats("t", t), width },
        x: Columns { buf: s.floats("x", x), ld, col: 0 },
        factors,
    };
    let first = pair(factors);
    let beyond = factors.map(|f| Factor { off: f.off + (len - OFFSET) as u32, ..f });
    let second = second.then(|| pair(beyond));
    let grads = s.in_out("grads", old);
    low_rank::gradient(&mut s.plan, "", n, first, second, grads);
}

/// Of t = s·x·Fᵀ: dF, with the gradient of t in t's place.
#[test]
fn twin_gradient_matches_finite_differences() {
    let (n, shape): (_, Shape) = (5, &[(3, 4), (2, 8)]);
    let all = apart(shape);
    let (_, len, width, ld) = all;
    let (flat, x, dt) = (random(len, 1), random(n * ld, 2), random(n * width, 3));
    let mut s = Suite::new(SUM);
    gradient(s.case("gradient"), n, shape, false, &dt, &x, &vec![0.0; len]);
    let t = |flat: &[f64]| {
        let mut s = Suite::new(SUM);
        project(s.case("project"), n, all, &x, flat);
        s.reference().remove(0)
    };
    gradcheck("dF", t, &flat, &dt, &s.reference()[0]);
}

/// Factors of the same columns are added up.
#[test]
fn twin_projection_matches_the_textbook() {
    let (n, shape): (_, Shape) = (3, &[(2, 4), (2, 8), (2, 4)]);
    let all = shared(shape);
    let (factors, len, width, ld) = all;
    let (flat, x) = (random(len, 1), random(n * ld, 2));
    let mut s = Suite::new(SUM);
    project(s.case("project"), n, all, &x, &flat);
    for (at, got) in s.reference()[0].iter().enumerate() {
        let (row, r) = (at / width, at % width);
        let term = |f: &Factor| {
            let (x, values) = (&x[row * ld + f.col as usize..], &flat[f.off as usize + r * f.width as usize..]);
            f.scale as f64 * x.iter().zip(values).take(f.width as usize).map(|(x, f)| x * f).sum::<f64>()
        };
        let want: f64 = factors.iter().map(term).sum();
        assert!((got - want).abs() < 1e-12, "[{row},{r}]: {got} and {want}");
    }
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SUM);
    let shapes: [(usize, Shape); 7] = [
        (1, &[(1, 4)]),
        (7, &[(3, 12)]),
        (127, &[(8, 132), (8, 64), (4, 64)]),
        (128, &[(17, 576), (1, 4)]),
        (129, &[(16, 4), (3, 260), (5, 12)]),
        (300, &[(8, 64), (8, 64)]),
        (33, &[(4, 64), (0, 4), (8, 64)]), // one of the three has none
    ];
    for (n, shape) in shapes {
        let (factors, len, width, ld) = apart(shape);
        let x = if n == 128 { with_outliers(n * ld, ld, 4) } else { random(n * ld, 4) };
        let label = format!("{n} rows, {shape:?}");
        project(s.case(format!("project {label}")), n, (factors, len, width, ld), &x, &random(len, 5));
        let (t, old) = (random(n * width, 6), random(2 * len, 7));
        gradient(s.case(format!("gradient {label}")), n, shape, false, &t, &x, &old);
        gradient(s.case(format!("gradient of two pairs, {label}")), n, shape, true, &t, &x, &old);
    }
    for n in [5, 129] {
        let all = shared(&[(6, 64), (6, 32), (6, 32)]);
        project(s.case(format!("project onto shared columns {n}")), n, all, &random(n * all.3, 8), &random(all.1, 9));
    }
    s.check();
}
