use crate::common::tolerance::{EXP, Tolerance};
use crate::harness::{Suite, gradcheck, random, with_outliers};
use half::bf16;
use luthier::ops::activation::{self, Activation};

const ALL: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

/// GELU's exponent is a polynomial of up to some 40, known to a few ulp of itself.
const POLYNOMIAL: Tolerance = Tolerance { rel: 8.0 * EXP.rel, abs: EXP.abs };

const F: usize = 4;

/// Rows of F of gate, and of up where there is one, side by side.
fn joined(gate: &[f64], up: Option<&[f64]>) -> Vec<f64> {
    let Some(up) = up else { return gate.to_vec() };
    gate.chunks(F).zip(up.chunks(F)).flat_map(|(gate, up)| [gate, up].concat()).collect()
}

/// Without `up` there is no gate.
fn forward(s: &mut Suite, f: Activation, gate: &[f64], up: Option<&[f64]>) {
    let (x, y) = (s.floats("x", &joined(gate, up)), s.output("y", gate.len()));
    activation::forward(&mut s.plan, "", f, (gate.len() / F, F), up.is_some(), x, y);
}

/// Outputs: dy, which becomes y, and x, which becomes its gradient.
fn backward(s: &mut Suite, f: Activation, gate: &[f64], up: Option<&[f64]>, dy: &[f64]) {
    let (dy, x) = (s.in_out("dy", dy), s.in_out("x", &joined(gate, up)));
    activation::backward(&mut s.plan, "", f, (gate.len() / F, F), up.is_some(), dy, x);
}

/// Outputs: y, and gate and up as pairs of bf16.
fn forward_packing(s: &mut Suite, f: Activation, gate: &[f64], up: Option<&[f64]>) {
    let (size, gated) = ((gate.len() / F, F), up.is_some());
    let (x, y) = (s.floats("x", &joined(gate, up)), s.output("y", gate.len()));
    let packed = s.output_words("packed", activation::packed_words(size, gated));
    activation::forward_packing(&mut s.plan, "", f, size, gated, x, y, packed);
}

/// Outputs: dy, which becomes y, and dx.
fn backward_packed(s: &mut Suite, f: Activation, gate: &[f64], up: Option<&[f64]>, dy: &[f64]) {
    let (size, gated, x) = ((gate.len() / F, F), up.is_some(), joined(gate, up));
    let (dy, dx, packed) = (s.in_out("dy", dy), s.output("dx", x.len()), s.words("packed", &pairs(&x)));
    activation::backward_packed(&mut s.plan, "", f, size, gated, dy, packed, dx);
}

/// As bf16, two a word.
fn pairs(x: &[f64]) -> Vec<u32> {
    let bits = |x: f64| bf16::from_f32(x as f32).to_bits() as u32;
    x.chunks_exact(2).map(|x| bits(x[0]) | bits(x[1]) << 16).collect()
}

fn rounded(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| bf16::from_f32(*x as f32).to_f64()).collect()
}

fn output(f: Activation, gate: &[f64], up: Option<&[f64]>) -> Vec<f64> {
    let mut s = Suite::new(POLYNOMIAL);
    forward(s.case("forward"), f, gate, up);
    s.reference().remove(0)
}

#[test]
fn twin_backward_matches_finite_differences() {
    let (gate, up, dy) = (random(24, 1), random(24, 2), random(24, 3));
    for f in ALL {
        let mut s = Suite::new(POLYNOMIAL);
        backward(s.case("gated"), f, &gate, Some(&up), &dy);
        let grads = s.reference();
        assert_eq!(grads[0], output(f, &gate, Some(&up)), "y in dy's place");
        let part = |first: usize| -> Vec<f64> {
            grads[1].chunks(2 * F).flat_map(|row| row[first..first + F].to_vec()).collect()
        };
        gradcheck("dgate", |gate| output(f, gate, Some(&up)), &gate, &dy, &part(0));
        gradcheck("dup", |up| output(f, &gate, Some(up)), &up, &dy, &part(F));
        let mut s = Suite::new(POLYNOMIAL);
        backward(s.case("plain"), f, &gate, None, &dy);
        gradcheck("dx", |x| output(f, x, None), &gate, &dy, &s.reference()[1]);
    }
}

#[test]
fn twin_forward_matches_the_textbook() {
    let x = random(24, 1);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
    for (f, want) in [(Activation::Silu, silu as fn(f64) -> f64), (Activation::GeluTanh, gelu)] {
        for (got, x) in output(f, &x, None).iter().zip(&x) {
            // The two constants are rounded to f32.
            assert!((got - want(*x)).abs() < 1e-7, "{f:?} of {x} is {}, not {got}", want(*x));
        }
    }
}

/// Packing changes no bit of forward, and backward is that of the rounded input.
#[test]
fn packed_is_rounded() {
    // Ties go to the even neighbour, up (0x3f81_8000) and down (0x3f80_8000); beyond the largest bf16 lies infinity.
    let ties = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0xbf80_7fff, 0x7f7f_ffff, 0x0000_8001].map(f32::from_bits);
    let gate: Vec<f64> = ties.iter().map(|x| *x as f64).chain(random(18, 1)).collect();
    let (up, dy) = (random(24, 2), random(24, 3));
    let words = |gate: &[f64], up: Option<&[f64]>| {
        let mut s = Suite::new(POLYNOMIAL);
        forward_packing(s.case("packing"), Activation::Silu, gate, up);
        let [y, packed] = s.reference().try_into().unwrap();
        assert_eq!(y, output(Activation::Silu, gate, up));
        packed.into_iter().map(|w| w as u32).collect::<Vec<_>>()
    };
    assert_eq!(words(&gate, None)[..3], [0x3f82_3f80, 0xbf80_3f81, 0x0001_7f80]);
    let gate = random(24, 4);
    for up in [Some(&up[..]), None] {
        assert_eq!(words(&gate, up), pairs(&joined(&gate, up)));
        let outputs = |backward: &dyn Fn(&mut Suite)| {
            let mut s = Suite::new(POLYNOMIAL);
            backward(s.case("backward"));
            s.reference()
        };
        let near = up.map(rounded);
        let want = outputs(&|s| backward(s, Activation::GeluTanh, &rounded(&gate), near.as_deref(), &dy));
        assert_eq!(outputs(&|s| backward_packed(s, Activation::GeluTanh, &gate, up, &dy)), want);
    }
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(POLYNOMIAL);
    for f in ALL {
        for len in [4, 12, 127 * 4, 129 * 576] {
            let (gate, up, dy) = (random(len, 4), random(len, 5), random(len, 6));
            for up in [Some(&up[..]), None] {
                let gated = up.is_some();
                forward(s.case(format!("{f:?} forward {len}, gated: {gated}")), f, &gate, up);
                backward(s.case(format!("{f:?} backward {len}, gated: {gated}")), f, &gate, up, &dy);
                forward_packing(s.case(format!("{f:?} packing {len}, gated: {gated}")), f, &gate, up);
                backward_packed(s.case(format!("{f:?} packed {len}, gated: {gated}")), f, &gate, up, &dy);
            }
        }
        // Gates of ±800: exp overflows in f32, and f must be 0 or the gate itself, not NaN.
        let (gate, up) = (with_outliers(132, 4, 7), random(132, 8));
        forward(s.case(format!("{f:?} forward with outliers")), f, &gate, Some(&up));
        backward(s.case(format!("{f:?} backward with outliers")), f, &gate, Some(&up), &random(132, 9));
        forward_packing(s.case(format!("{f:?} packing with outliers")), f, &gate, Some(&up));
        backward_packed(s.case(format!("{f:?} packed with outliers")), f, &gate, Some(&up), &random(132, 9));
    }
    s.check();
}
