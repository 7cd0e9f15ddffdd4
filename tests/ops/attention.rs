use crate::common::tolerance::SOFTMAX;
use crate::harness::{Suite, gradcheck, random, spans, with_outliers};
use luthier::ops::attention::{self, Backward, Shape};

fn shape(n: usize, heads: usize, kv_heads: usize, d: usize) -> Shape {
    Shape { n, heads, kv_heads, d, scale: 1.0 / (d as f32).sqrt(), ..Default::default() }
}

/// With a window and a cap that bite.
fn local(s: Shape, window: usize) -> Shape {
    Shape { window, cap: 1.5, ..s }
}

struct Inputs {
    s: Shape,
    spans: Vec<u32>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_o: Vec<f64>,
}

impl Inputs {
    fn new(s: Shape, documents: &[usize]) -> Inputs {
        assert_eq!(documents.iter().sum::<usize>(), s.n);
        let (wide, narrow) = (s.n * s.heads * s.d, s.n * s.kv_heads * s.d);
        let spans = spans(documents);
        Inputs { s, spans, q: random(wide, 1), k: random(narrow, 2), v: random(narrow, 3), d_o: random(wide, 4) }
    }

    /// q, k and v side by side.
    fn qkv(&self) -> Vec<f64> {
        let (wide, narrow) = (self.s.heads * self.s.d, self.s.kv_heads * self.s.d);
        let row =
            |n: usize| [&self.q[n * wide..][..wide], &self.k[n * narrow..][..narrow], &self.v[n * narrow..][..narrow]];
        (0..self.s.n).flat_map(|n| row(n).concat()).collect()
    }

    /// Outputs: o, stats.
    fn forward(&self, s: &mut Suite) {
        let (spans, qkv) = (s.words("spans", &self.spans), s.floats("qkv", &self.qkv()));
        let (o, stats) = (s.output("o", self.q.len()), s.output("stats", self.s.n * self.s.heads * 2));
        attention::forward(&mut s.plan, "", self.s, spans, qkv, qkv, o, stats);
    }

    /// Outputs: o, stats, dqkv.
    fn backward(&self, s: &mut Suite) {
        // v from a buffer of its own, as where heads are normed.
        let (spans, qk, v) = (s.words("spans", &self.spans), s.floats("qk", &self.qkv()), s.floats("v", &self.qkv()));
        let (o, stats) = (s.output("o", self.q.len()), s.output("stats", self.s.n * self.s.heads * 2));
        let d_o = s.floats("do", &self.d_o);
        let dqkv = s.output("dqkv", self.s.n * self.s.width());
        attention::forward(&mut s.plan, "", self.s, spans, qk, v, o, stats);
        attention::backward(&mut s.plan, "", self.s, &Backward { spans, qk, v, o, stats, d_o, dqkv });
    }

    fn output(&self) -> Vec<f64> {
        let mut s = Suite::new(SOFTMAX);
        self.forward(s.case("forward"));
        s.reference().remove(0)
    }
}

#[test]
fn twin_backward_matches_finite_differences() {
    for s in [shape(7, 6, 2, 4), local(shape(7, 6, 2, 4), 3)] {
        let at = || Inputs::new(s, &[4, 1, 2]);
        let i = at();
        let mut s = Suite::new(SOFTMAX);
        i.backward(s.case("backward"));
        let out = s.reference();
        let (wide, narrow) = (i.s.heads * i.s.d, i.s.kv_heads * i.s.d);
        let part = |at: std::ops::Range<usize>| -> Vec<f64> {
            out[2].chunks(i.s.width()).flat_map(|row| row[at.clone()].to_vec()).collect()
        };
        let [dq, dk, dv] = [0..wide, wide..wide + narrow, wide + narrow..wide + 2 * narrow].map(part);
        gradcheck("dq", |q| Inputs { q: q.to_vec(), ..at() }.output(), &i.q, &i.d_o, &dq);
        gradcheck("dk", |k| Inputs { k: k.to_vec(), ..at() }.output(), &i.k, &i.d_o, &dk);
        gradcheck("dv", |v| Inputs { v: v.to_vec(), ..at() }.output(), &i.v, &i.d_o, &dv);
    }
}

/// Softmax written out, row by row.
#[test]
fn twin_forward_matches_the_textbook() {
    for (s, window) in [(shape(70, 3, 1, 4), 70), (local(shape(70, 3, 1, 4), 5), 5)] {
        let i = Inputs::new(s, &[66, 4]);
        let (h, d) = (i.s.heads, i.s.d);
        let cap = |s: f64| if i.s.cap == 0.0 { s } else { 1.5 * (s / 1.5).tanh() };
        let got = i.output();
        for (n, head) in (0..i.s.n).flat_map(|n| (0..h).map(move |head| (n, head))) {
            let q = &i.q[(n * h + head) * d..][..d];
            let dot = |j: usize| i.k[j * d..][..d].iter().zip(q).map(|(a, b)| a * b).sum::<f64>();
            let score = |j: usize| cap(dot(j) * i.s.scale as f64);
            let seen: Vec<usize> = (i.spans[2 * n] as usize..=n).filter(|j| n - j < window).collect();
            let sum: f64 = seen.iter().map(|j| score(*j).exp()).sum();
            for c in 0..d {
                let want: f64 = seen.iter().map(|j| score(*j).exp() / sum * i.v[j * d + c]).sum();
                assert!((got[(n * h + head) * d + c] - want).abs() < 1e-10);
            }
        }
    }
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SOFTMAX);
    for (heads, kv_heads, d, documents) in [
        (1, 1, 4, &[1][..]),
        (3, 1, 12, &[7]),
        (4, 4, 64, &[1, 2, 60, 64]),
        (8, 2, 64, &[128]),
        (3, 1, 64, &[100, 29]),
        (4, 1, 128, &[5, 65]),
        (2, 1, 256, &[9]),
    ] {
        let n = documents.iter().sum();
        let whole = shape(n, heads, kv_heads, d);
        for shape in [whole, local(whole, 2), local(whole, 6), Shape { window: 65, ..whole }] {
            let label = format!("{n} rows, {heads}/{kv_heads} heads of {d}, window {}", shape.window);
            Inputs::new(shape, documents).backward(s.case(label));
        }
    }
    s.check();
}

/// Values of ±800 pass through; keys of that size would make any softmax a coin toss between roundings.
#[test]
fn outliers_in_values_survive() {
    let mut s = Suite::new(SOFTMAX);
    let mut i = Inputs::new(shape(65, 2, 1, 12), &[65]);
    i.v = with_outliers(i.v.len(), 12, 5);
    i.backward(s.case("outliers"));
    s.check();
}
