use crate::common::tolerance::{EXACT, SOFTMAX};
use crate::harness::{Suite, random, spans};
use luthier::ops::attention::{self, Shape};
use luthier::ops::attention_cached;
use luthier::ops::gather::NONE;

/// (sequence, position) of each row; every fifth row is idle.
fn slots(n: usize, sequences: usize, capacity: usize) -> Vec<u32> {
    let slot =
        |i: usize| if i % 5 == 3 { [NONE, 0] } else { [(i % sequences) as u32, (i / sequences % capacity) as u32] };
    (0..n).flat_map(slot).collect()
}

fn append(s: &mut Suite, shape: Shape, sequences: usize, capacity: usize) {
    let width = shape.kv_heads * shape.d;
    let slots = s.words("slots", &slots(shape.n, sequences, capacity));
    let [qk, v] = [("qk", 1), ("v", 6)].map(|(name, seed)| s.floats(name, &random(shape.n * shape.width(), seed)));
    let caches = [("K", 2), ("V", 7)].map(|(name, seed)| s.in_out(name, &random(sequences * capacity * width, seed)));
    attention_cached::append(&mut s.plan, "", shape, capacity, slots, [qk, v], caches);
}

fn forward(s: &mut Suite, shape: Shape, sequences: usize, capacity: usize) {
    let len = sequences * capacity * shape.kv_heads * shape.d;
    let slots = s.words("slots", &slots(shape.n, sequences, capacity));
    let q = s.floats("qk", &random(shape.n * shape.width(), 3));
    let (k, v) = (s.floats("k", &random(len, 4)), s.floats("v", &random(len, 5)));
    let o = s.output("o", shape.n * shape.heads * shape.d);
    attention_cached::forward(&mut s.plan, "", shape, capacity, slots, q, k, v, o);
}

/// A prompt appended and attended to through the cache is attention over one document.
#[test]
fn twin_is_attention_over_one_document() {
    let whole = Shape { n: 9, heads: 6, kv_heads: 2, d: 4, scale: 0.5, ..Default::default() };
    for shape in [whole, Shape { window: 3, cap: 1.5, ..whole }] {
        over_one_document(shape);
    }
}

fn over_one_document(shape: Shape) {
    let (wide, width, capacity) = (shape.heads * shape.d, shape.kv_heads * shape.d, 12);
    let mut s = Suite::new(SOFTMAX);
    s.case("both");
    let spans = s.words("spans", &spans(&[9]));
    let slots = s.words("slots", &(0..9).flat_map(|i| [1, i]).collect::<Vec<_>>());
    let qkv = s.floats("qkv", &random(9 * shape.width(), 1));
    let (keys, values) =
        (s.in_out("keys", &vec![0.0; 2 * capacity * width]), s.in_out("values", &vec![0.0; 2 * capacity * width]));
    let (want, lse, got) = (s.output("o", 9 * wide), s.output("lse", 9 * 6), s.output("cached o", 9 * wide));
    attention::forward(&mut s.plan, "", shape, spans, qkv, qkv, want, lse);
    attention_cached::append(&mut s.plan, "", shape, capacity, slots, [qkv, qkv], [keys, values]);
    attention_cached::forward(&mut s.plan, "", shape, capacity, slots, qkv, keys, values, got);
    let out = s.reference();
    for (got, want) in out[4].iter().zip(&out[2]) {
        assert!((got - want).abs() < 1e-12, "{got} and {want}");
    }
}

#[test]
fn executors_agree() {
    let shapes = [(1, 1, 1, 4, 1), (7, 3, 1, 12, 3), (4, 9, 3, 64, 4), (129, 4, 1, 64, 2), (3, 4, 2, 128, 1)];
    let (mut copies, mut s) = (Suite::new(EXACT), Suite::new(SOFTMAX));
    for (n, heads, kv_heads, d, sequences) in shapes {
        let shape = Shape { n, heads, kv_heads, d, scale: 1.0 / (d as f32).sqrt(), ..Default::default() };
        append(copies.case(format!("append {n}, {kv_heads} heads of {d}")), shape, sequences, 66);
        forward(s.case(format!("forward {n}, {heads}/{kv_heads} heads of {d}")), shape, sequences, 66);
        let local = Shape { window: 5, cap: 1.5, ..shape };
        forward(s.case(format!("local {n}, {heads}/{kv_heads} heads of {d}")), local, sequences, 66);
    }
    copies.check();
    s.check();
}
