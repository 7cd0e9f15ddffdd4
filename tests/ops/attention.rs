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

    /// Outputs: o, lse.
    fn forward(&self, s: &mut Suite) {
        let (spans, qkv) = (s.words("spans", &self.spans), s.floats("qkv", &self.qkv()));
        let (o, lse) = (s.output("o", self.q.len()), s.output("lse", self.s.n * self.s.heads));
        attention::forward(&mut s.plan, "", self.s, spans, qkv, qkv, o, lse);
    }

    /// Outputs: o, lse, dqkv.
    fn backward(&self, s: &mut Suite) {
        // v from a buffer of its own, as where heads are normed.
        let (spans, qk, v) = (s.words("spans", &self.spans), s.floats("qk", &self.qkv()), s.floats("v", &self.qkv()));
        let (o, lse) = (s.output("o", self.q.len()), s.output("lse", self.s.n * self.s.heads));
        let d_o = s.floats("do", &self.d_o);
        let dqkv = s.output("dqkv", self.s.n * self.s.width());
        attention::forward(&mut s.plan, "", self.s, spans, qk, v, o, lse);
        attention::backward(&mut s.plan, "", self.s, &Backward { spans, qk, v, o, lse, d_o, dqkv });
    }

    /// Outputs of `backward` as the textbook names them: o, dq, dk, dv.
    fn parted(&self, outputs: Vec<Vec<f64>>) -> [Vec<f64>; 4] {
        let (wide, narrow) = (self.s.heads * self.s.d, self.s.kv_heads * self.s.d);
        let [o, _, dqkv] = outputs.try_into().unwrap();
        let part = |from: usize, len: usize| -> Vec<f64> {
            dqkv.chunks(self.s.width()).flat_map(|row| row[from..][..len].to_vec()).collect()
        };
        let [dq, dk, dv] = [(0, wide), (wide, narrow), (wide + narrow, narrow)].map(|(from, len)| part(from, len));
        [o, dq, dk, dv]
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
        let [_, dq, dk, dv] = i.parted(s.reference());
        gradcheck("dq", |q| Inputs { q: q.to_vec(), ..at() }.output(), &i.q, &i.d_o, &dq);
        gradcheck("dk", |k| Inputs { k: k.to_vec(), ..at() }.output(), &i.k, &i.d_o, &dk);
        gradcheck("dv", |v| Inputs { v: v.to_vec(), ..at() }.output(), &i.v, &i.d_o, &dv);
    }
}

/// Softmax and its gradient written out, pair by pair: o, dq, dk, dv.
fn textbook(i: &Inputs) -> [Vec<f64>; 4] {
    let Shape { n, heads, kv_heads, d, .. } = i.s;
    let (scale, cap) = (i.s.scale as f64, i.s.cap as f64);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let [mut o, mut dq] = [(); 2].map(|()| vec![0.0; i.q.len()]);
    let [mut dk, mut dv] = [(); 2].map(|()| vec![0.0; i.k.len()]);
    for (row, head) in (0..n).flat_map(|row| (0..heads).map(move |head| (row, head))) {
        let at = (row * heads + head) * d;
        let key = |j: usize| (j * kv_heads + head / (heads / kv_heads)) * d;
        let nearest = if i.s.window == 0 { n } else { i.s.window };
        let seen: Vec<usize> = (i.spans[2 * row] as usize..=row).filter(|j| row - j < nearest).collect();
        let score = |j: usize| {
            let s = dot(&i.q[at..][..d], &i.k[key(j)..][..d]) * scale;
            if cap == 0.0 { (s, 1.0) } else { (cap * (s / cap).tanh(), 1.0 - (s / cap).tanh().powi(2)) }
        };
        let sum: f64 = seen.iter().map(|j| score(*j).0.exp()).sum();
        let p = |j: usize| score(j).0.exp() / sum;
        let dp = |j: usize| dot(&i.d_o[at..][..d], &i.v[key(j)..][..d]);
        let mean: f64 = seen.iter().map(|j| p(*j) * dp(*j)).sum();
        for &j in &seen {
            let ds = p(j) * (dp(j) - mean) * score(j).1 * scale;
            for c in 0..d {
                o[at + c] += p(j) * i.v[key(j) + c];
                dq[at + c] += ds * i.k[key(j) + c];
                dk[key(j) + c] += ds * i.q[at + c];
                dv[key(j) + c] += p(j) * i.d_o[at + c];
            }
        }
    }
    [o, dq, dk, dv]
}

/// Over several blocks, chunks and strips of the twin, whose edges lie within documents.
#[test]
fn twin_matches_the_textbook() {
    let (short, long) = (shape(300, 3, 1, 4), shape(1300, 2, 1, 4));
    for (s, documents) in
        [(short, &[200, 3, 97][..]), (local(short, 5), &[200, 3, 97]), (local(short, 150), &[300]), (long, &[10, 1290])]
    {
        let i = Inputs::new(s, documents);
        let mut s = Suite::new(SOFTMAX);
        i.backward(s.case("backward"));
        let got = i.parted(s.reference());
        for ((what, got), want) in ["o", "dq", "dk", "dv"].iter().zip(got).zip(textbook(&i)) {
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() < 1e-10, "{what}: got {got}, want {want}");
            }
        }
    }
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SOFTMAX);
    let many = [1, 1, 3, 20, 7, 2, 31, 1, 33, 32, 5]; // several a tile, and edges on and off those of tiles
    for (heads, kv_heads, d, documents) in [
        (1, 1, 4, &[1][..]),
        (3, 1, 12, &[7]),
        (4, 4, 64, &[1, 2, 60, 64]),
        (8, 1, 16, &many),
        (6, 2, 32, &many),
        (8, 2, 64, &[128]),
        (3, 1, 64, &[100, 29]),
        (3, 3, 80, &[33]),
        (2, 2, 96, &[40]),
        (4, 1, 128, &[5, 65]),
        (2, 1, 256, &[9, 40]),
    ] {
        let n = documents.iter().sum();
        let whole = shape(n, heads, kv_heads, d);
        for shape in [whole, local(whole, 2), local(whole, 6), Shape { window: 65, ..whole }] {
            let label = format!("{n} rows, {heads}/{kv_heads} heads of {d}, window {}", shape.window);
            Inputs::new(shape, documents).backward(s.case(label));
        }
    }
    // Several chunks of the twin's backward pass.
    Inputs::new(shape(300, 3, 1, 8), &[170, 130]).backward(s.case("300 rows"));
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
