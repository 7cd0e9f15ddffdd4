use crate::common::tolerance::FEW;
use crate::harness::{Suite, control, random};
use luthier::ops::adamw::{AdamW, State};
use luthier::ops::adamw_8bit::{self, BLOCK, BLOCK_WORDS, maps, words};
use luthier::ops::control::Control;
use luthier::weights::{Source, safetensors};
use pollster::block_on;
use std::path::PathBuf;

const HYPER: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
const LR: f32 = 1e-2;

/// A step's inputs, with what is usual.
struct Case<'a> {
    adamw: AdamW,
    control: Control,
    clip: [f64; 2],
    rates: Option<&'a [f64]>,
}

impl Case<'_> {
    fn new(t: i32) -> Self {
        let [bias1, bias2] = [HYPER.beta1, HYPER.beta2].map(|beta| 1.0 - beta.powi(t));
        let control = Control { lr: LR, bias1, bias2, ..Default::default() };
        Case { adamw: HYPER, control, clip: [0.5, 0.0], rates: None }
    }

    /// Outputs: θ, g, m, v after it.
    fn push(&self, s: &mut Suite, theta: &[f64], g: &[f64], moments: [&[u32]; 2]) {
        let (c, clip) = (s.words("control", &control(self.control)), s.floats("clip", &self.clip));
        let (params, grads) = (s.in_out("theta", theta), s.in_out("grads", g));
        let (m, v) = (s.blocks("m", moments[0]), s.blocks("v", moments[1]));
        let rates = self.rates.map(|rates| s.floats("rates", rates));
        let maps = s.floats("maps", &maps().into_iter().map(f64::from).collect::<Vec<_>>());
        let state = State { params, grads, m, v, len: theta.len(), rates };
        adamw_8bit::step(&mut s.plan, self.adamw, c, clip, &state, maps);
    }

    /// By every executor there is.
    fn run(&self, theta: &[f64], g: &[f64], moments: [&[u32]; 2]) -> Vec<Vec<Vec<f64>>> {
        let mut s = Suite::new(FEW);
        self.push(s.case("step"), theta, g, moments);
        s.everywhere()
    }
}

/// Blocks of any codes, and of zeros behind the last value.
fn blocks(len: usize, seed: u64, zero: u8) -> Vec<u32> {
    let any = |i: usize| luthier::num::uniform(seed, 0, i as u64);
    let code = |i: usize| if i < len { (any(i) * 256.0) as u8 } else { zero };
    let largest = (0..len.div_ceil(BLOCK)).map(|b| (0.01 + any(b)) as f32).collect::<Vec<_>>();
    let codes: Vec<u8> = (0..len.next_multiple_of(BLOCK)).map(code).collect();
    to_blocks(&codes, &largest)
}

fn any_m(len: usize) -> Vec<u32> {
    blocks(len, 3, 127)
}

fn any_v(len: usize) -> Vec<u32> {
    blocks(len, 4, 0)
}

fn to_blocks(codes: &[u8], largest: &[f32]) -> Vec<u32> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | *byte as u32);
    let blocks = codes.chunks(BLOCK).zip(largest);
    let words = |(codes, most): (&[u8], &f32)| {
        let mut words: Vec<u32> = codes.chunks(4).map(word).collect();
        words.resize(BLOCK_WORDS - 1, 0);
        words.push(most.to_bits());
        words
    };
    blocks.flat_map(words).collect()
}

fn to_words(numbers: &[f64]) -> Vec<u32> {
    numbers.iter().map(|n| *n as u32).collect()
}

/// Codes of the first `len` values, and the largest magnitudes.
fn codes(words: &[u32], len: usize) -> (Vec<u8>, Vec<f32>) {
    let all = words.chunks_exact(BLOCK_WORDS).flat_map(|b| &b[..BLOCK_WORDS - 1]).flat_map(|w| w.to_le_bytes());
    let largest = words.chunks_exact(BLOCK_WORDS).map(|b| f32::from_bits(b[BLOCK_WORDS - 1]));
    (all.take(len).collect(), largest.collect())
}

fn values(words: &[u32], len: usize, map: &[f32]) -> Vec<f64> {
    let (codes, largest) = codes(words, len);
    codes.iter().enumerate().map(|(i, c)| map[*c as usize] as f64 * largest[i / BLOCK] as f64).collect()
}

/// The values of m's codes, and of v's.
fn both_maps() -> (Vec<f32>, Vec<f32>) {
    let all = maps();
    (all[..256].to_vec(), all[256..].to_vec())
}

/// `torch.optim.AdamW`'s documented update, then the nearest of all values, by looking at each.
#[test]
fn twin_matches_the_textbook() {
    let len = 300;
    let (theta, g, m, v) = (random(len, 1), random(len, 2), any_m(len), any_v(len));
    let (m_map, v_map) = both_maps();
    let (old_m, old_v) = (values(&m, len, &m_map), values(&v, len, &v_map));
    let (b1, b2, lr, decay) = (HYPER.beta1 as f64, HYPER.beta2 as f64, LR as f64, HYPER.weight_decay as f64);
    for t in [1, 2, 1000] {
        let case = Case::new(t);
        let got = case.run(&theta, &g, [&m, &v]).remove(0);
        let new_m: Vec<f64> = (0..len).map(|i| b1 * old_m[i] + (1.0 - b1) * 0.5 * g[i]).collect();
        let new_v: Vec<f64> = (0..len).map(|i| b2 * old_v[i] + (1.0 - b2) * 0.25 * g[i] * g[i]).collect();
        for i in 0..len {
            let (m, v) = (new_m[i] / case.control.bias1 as f64, new_v[i] / case.control.bias2 as f64);
            let want = theta[i] * (1.0 - lr * decay) - lr * m / (v.sqrt() + HYPER.eps as f64);
            assert!((got[0][i] - want).abs() <= 1e-12 * (1.0 + want.abs()), "step {t}: {} and {want}", got[0][i]);
            assert_eq!(got[1][i], 0.0);
        }
        for (words, new, map) in [(&got[2], new_m, &m_map), (&got[3], new_v, &v_map)] {
            let (codes, largest) = codes(&to_words(words), len);
            for (i, code) in codes.iter().enumerate() {
                let block = &new[i / BLOCK * BLOCK..((i / BLOCK + 1) * BLOCK).min(len)];
                let most = block.iter().fold(0.0, |most: f64, x| most.max(x.abs())) as f32;
                assert_eq!(largest[i / BLOCK], most);
                let off = |c: usize| (map[c] as f64 - new[i] / most as f64).abs();
                let nearest = (0..256).min_by(|a, b| off(*a).total_cmp(&off(*b))).unwrap();
                assert_eq!(*code as usize, nearest, "step {t}, value {i}: {}", new[i]);
            }
        }
    }
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(FEW);
    for len in [1, 7, 255, 256, 257, 1000, 100_000] {
        let (theta, g) = (random(len, 1), random(len, 2));
        Case::new(10).push(s.case(format!("{len}")), &theta, &g, [&any_m(len), &any_v(len)]);
        let zeros = vec![0; words(len)];
        Case::new(1).push(s.case(format!("{len}, first")), &theta, &g, [&zeros, &zeros]);
        let rates: Vec<f64> = (0..len).map(|i| [0.0, 1.0, 4.0][i / 100 % 3]).collect();
        let rated = Case { rates: Some(&rates), ..Case::new(3) };
        rated.push(s.case(format!("{len}, rated")), &theta, &g, [&any_m(len), &any_v(len)]);
    }
    s.check();
}

#[test]
fn halted_only_consumes_gradients() {
    let (x, m, v) = (random(300, 1), any_m(300), any_v(300));
    let case = Case { clip: [0.0, 1.0], ..Case::new(3) };
    for got in case.run(&x, &[f64::NAN; 300], [&m, &v]) {
        assert_eq!(got[..2], [x.clone(), vec![0.0; 300]]);
        assert_eq!([to_words(&got[2]), to_words(&got[3])], [m.clone(), v.clone()]);
    }
}

/// A rate of 4 is a step of four times the size; a rate of 0 moves nothing, not even by weight decay.
#[test]
fn rates_scale_the_step() {
    let (x, g, m, v) = (random(300, 1), random(300, 2), any_m(300), any_v(300));
    let rates: Vec<f64> = (0..300).map(|i| [1.0, 4.0, 0.0][i / 7 % 3]).collect();
    let plain = Case::new(2).run(&x, &g, [&m, &v]).remove(0);
    let rated = Case { rates: Some(&rates), ..Case::new(2) }.run(&x, &g, [&m, &v]).remove(0);
    for i in 0..300 {
        let (want, got) = (rates[i] * (plain[0][i] - x[i]), rated[0][i] - x[i]);
        assert!((want - got).abs() < 1e-12, "{i}: {got}, expected {want}");
    }
    assert_eq!(plain[2..], rated[2..], "moments know nothing of rates");
}

/// What never had a gradient does not move but by weight decay, also beside what has one, and in a block of its own.
#[test]
fn zeros_stay_zeros() {
    let still = |i: usize| i.is_multiple_of(2) || i >= BLOCK;
    let g: Vec<f64> = random(600, 2).iter().enumerate().map(|(i, g)| if still(i) { 0.0 } else { *g }).collect();
    let (m_map, v_map) = both_maps();
    let case = Case { adamw: AdamW { weight_decay: 0.0, ..HYPER }, ..Case::new(1) };
    let (mut theta, mut m, mut v) = (random(600, 1), vec![0; words(600)], vec![0; words(600)]);
    let start = theta.clone();
    for _ in 0..3 {
        let mut all = case.run(&theta, &g, [&m, &v]);
        let got = all.pop().unwrap();
        (theta, m, v) = (got[0].clone(), to_words(&got[2]), to_words(&got[3]));
        for (i, (m, v)) in values(&m, 600, &m_map).into_iter().zip(values(&v, 600, &v_map)).enumerate() {
            assert_eq!((theta[i] == start[i], m == 0.0, v == 0.0), (still(i), still(i), still(i)), "{i}");
        }
    }
}

/// What bitsandbytes makes of the same: see `tests/golden/make_adamw_8bit.py`.
struct Golden(luthier::weights::Checkpoint);

impl Golden {
    fn open() -> Golden {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adamw_8bit.safetensors");
        Golden(block_on(safetensors::open(vec![Source::file(file).unwrap()], None)).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        block_on(self.0.read_f32(self.0.get(name).unwrap())).unwrap()
    }

    fn doubles(&self, name: &str) -> Vec<f64> {
        self.floats(name).into_iter().map(f64::from).collect()
    }

    /// Codes and largest magnitudes under a name.
    fn codes(&self, name: &str) -> (Vec<u8>, Vec<f32>) {
        let codes = self.floats(&format!("{name}.codes")).into_iter().map(|c| c as u8).collect();
        (codes, self.floats(&format!("{name}.largest")))
    }
}

/// By the last bit or two: theirs are sums in f32, whose order depends on the processor.
#[test]
fn maps_are_those_of_bitsandbytes() {
    let golden = Golden::open();
    let want = [golden.floats("map.signed"), golden.floats("map.unsigned")].concat();
    assert_eq!(maps().len(), want.len());
    for (got, want) in maps().into_iter().zip(want) {
        assert!((got - want).abs() <= 2e-7 * want.abs(), "{got:e} and {want:e}");
    }
}

/// Moments that are the gradient and its square, and moments that stay as they are: every code and value of
/// bitsandbytes, by every executor.
#[test]
fn blocks_are_those_of_bitsandbytes() {
    let golden = Golden::open();
    let forget = AdamW { beta1: 0.0, beta2: 0.0, eps: 1.0, weight_decay: 0.0 };
    let keep = AdamW { beta1: 1.0, beta2: 1.0, ..forget };
    let control = Control { lr: 1.0, bias1: 1.0, bias2: 1.0, ..Default::default() };
    let case = |adamw| Case { adamw, control, clip: [1.0, 0.0], rates: None };
    let zeros = vec![0.0; 1000];
    let none = vec![0; words(1000)];
    let squares = golden.doubles("unsigned.x").iter().map(|x| x.sqrt() as f32 as f64).collect::<Vec<_>>();
    for (name, at, x) in [("signed", 2, golden.doubles("signed.x")), ("unsigned", 3, squares)] {
        let want = golden.codes(name);
        for got in case(forget).run(&zeros, &x, [&none, &none]) {
            let got = codes(&to_words(&got[at]), 1000);
            // The square of a root is not quite what it was.
            let near = got.1.iter().zip(&want.1).all(|(g, w)| (g - w).abs() <= 2e-7 * w);
            assert!(got.0 == want.0 && near, "{name}: {:?} and {:?}", got.1, want.1);
            assert!(name == "unsigned" || got.1 == want.1, "{:?} and {:?}", got.1, want.1);
        }
    }
    // θ = −m / (√0 + 1)
    let (codes, largest) = golden.codes("signed");
    let m = to_blocks(&codes, &largest);
    for got in case(keep).run(&zeros, &zeros, [&m, &none]) {
        for (got, want) in got[0].iter().zip(golden.doubles("signed.values")) {
            assert!((got + want).abs() <= 3e-7 * want.abs(), "{got:e} and {want:e}");
        }
    }
}

/// Eight steps of two blocks beside bitsandbytes' optimizer, which computes in f32: the same codes by every executor
/// (none of its values lies within 1e-5 of itself from the middle of two codes), and parameters as near as a few
/// roundings leave them. Each step goes on from the reference's state.
#[test]
fn steps_are_those_of_bitsandbytes() {
    let golden = Golden::open();
    let (grads, mut theta) = (golden.doubles("grads"), golden.doubles("theta"));
    let len = theta.len();
    let [mut m, mut v] = [0, 1].map(|_| vec![0; words(len)]);
    let steps = grads.len() / len;
    for (t, g) in (1..).zip(grads.chunks_exact(len)) {
        let all = Case::new(t as i32).run(&theta, g, [&m, &v]);
        let want = golden.doubles(&format!("theta.{t}"));
        for (executor, got) in all.iter().enumerate() {
            for (i, (got, want)) in got[0].iter().zip(&want).enumerate() {
                let error = (got - want).abs();
                assert!(error <= 1e-6 * (1.0 + want.abs()), "executor {executor}, step {t}, {i}: {got}, not {want}");
            }
            for (name, words) in [("m", &got[2]), ("v", &got[3])] {
                let (got, want) = (codes(&to_words(words), len), golden.codes(name));
                assert!(t < steps || got.0 == want.0, "executor {executor}: codes of {name}");
                let near = got.1.iter().zip(&want.1).all(|(g, w)| (g - w).abs() <= 1e-6 * w);
                assert!(t < steps || near, "executor {executor}: {name}: {:?} and {:?}", got.1, want.1);
            }
        }
        theta = all[0][0].iter().map(|x| *x as f32 as f64).collect();
        (m, v) = (to_words(&all[0][2]), to_words(&all[0][3]));
    }
}

/// A number with a small gradient beside large ones, which then has none: its second moment is far below the lowest
/// value of a code above 0, and its steps must be none the larger for that.
#[test]
fn small_moments_beside_large_ones_take_no_large_steps() {
    let mut theta = vec![0.0; 8];
    let [mut m, mut v] = [0, 1].map(|_| vec![0; words(8)]);
    for t in 0..40 {
        let small = if t < 30 { 1e-4 } else { 0.0 };
        let grads = [2.0, small, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0];
        let got = Case::new(5000 + t).run(&theta, &grads, [&m, &v]).remove(0);
        let moved = (got[0][1] - theta[1]).abs();
        // A first gradient without a correction of its bias moves by 0.1 / √0.001 of the rate, and no other further.
        assert!(moved <= 3.2 * LR as f64, "step {t}: {moved:e} at a learning rate of {LR}");
        (theta, m, v) = (got[0].clone(), to_words(&got[2]), to_words(&got[3]));
    }
}
