//! One row a kernel and direction.
//!
//! Shapes are a 135M model's. GFLOP/s and GB/s are those of the best sample, which other load on the machine disturbs
//! least; bytes are those touched of the bound buffers, each counted once a direction. "core ms" is the CPU time of all
//! threads, the fairest number for CPU twins and software GPUs on a busy machine (Linux only).

use super::report::{self, Column};
use super::{Args, Case, Machine};
use luthier::Result;
use luthier::benchmark::{Bench, Row};
use luthier::device::Device;
use luthier::format::WeightFormat;
use luthier::ops::activation::Activation;
use luthier::ops::gain::Vector;
use luthier::ops::low_rank::{Factor, Lift, Narrow, Pair};
use luthier::ops::matmul::Epilogue;
use luthier::ops::rope::Angles;
use luthier::ops::*;
use luthier::plan::{Plan, Style};
use std::collections::HashSet;

pub const COLUMNS: &[Column] = &[
    Column::text("kernel", "kernel", 30),
    Column::text("shape", "shape", 26),
    Column::number("median_ms", "median ms", 3),
    Column::number("best_ms", "best ms", 3),
    Column::number("core_ms", "core ms", 3),
    Column::number("gflops", "GFLOP/s", 1),
    Column::number("gbytes", "GB/s", 1),
    Column::share("of_limit", "of limit"),
];

/// What one device measures: the kernels of one file, by the shaders of one style where there are several.
struct Group {
    kernel: String,
    style: Option<Style>,
    /// Name and shape of each row.
    rows: Vec<String>,
    gflop: f64,
}

pub fn cases(machine: &Machine) -> Vec<Case> {
    let sizes = sizes(&machine.args);
    let mut names = Bench::dry();
    rows(&mut names, &sizes);
    let mut seen = HashSet::new();
    let kernels: Vec<&str> = names.rows.iter().map(stem).filter(|kernel| seen.insert(*kernel)).collect();
    let mut cases = Vec::new();
    for kernel in kernels {
        let tiled = KERNELS.iter().any(|k| k.name == kernel && k.shaders.iter().any(|s| s.style == Style::Tiled));
        let both = machine.gpu && tiled;
        for style in if both { vec![Some(Style::Software), Some(Style::Tiled)] } else { vec![None] } {
            let wanted = |row: &&Row| stem(row) == kernel && machine.args.wants(&title(row, style));
            let mine: Vec<&Row> = names.rows.iter().filter(wanted).collect();
            // Two runs to warm up and nine samples.
            let gflop = mine.iter().map(|row| 11.0 * row.flops / 1e9).sum();
            let rows: Vec<String> = mine.into_iter().map(Row::title).collect();
            if !rows.is_empty() {
                cases.push(Group { kernel: kernel.into(), style, rows, gflop }.case());
            }
        }
    }
    cases
}

/// Rows of most kernels, widths of the products, lengths of the texts that attention reads.
struct Sizes {
    rows: usize,
    products: &'static [usize],
    texts: &'static [usize],
}

fn sizes(args: &Args) -> Sizes {
    if args.quick {
        Sizes { rows: 128, products: &[256], texts: &[256] }
    } else {
        Sizes { rows: 512, products: &[512, 1024], texts: &[256, 512, 1024, 2048] }
    }
}

fn stem(row: &Row) -> &str {
    row.name.split('.').next().unwrap_or_default()
}

fn suffix(style: Option<Style>) -> &'static str {
    if style == Some(Style::Tiled) { " tiled" } else { "" }
}

fn title(row: &Row, style: Option<Style>) -> String {
    format!("kernels {}{} {}", row.name, suffix(style), row.shape)
}

impl Group {
    fn case(self) -> Case {
        let heavy = ["matmul", "attention", "low_rank"].contains(&self.kernel.as_str());
        Case {
            name: format!("kernels {}{}", self.kernel, suffix(self.style)),
            section: "kernels",
            columns: COLUMNS,
            importance: if heavy { 0 } else { 2 },
            gflop: self.gflop,
            run: Box::new(move |machine| self.run(machine)),
        }
    }

    fn run(&self, machine: &Machine) -> Result<Vec<report::Row>> {
        let mut bench = Bench::only(&self.rows);
        rows(&mut bench, &sizes(&machine.args));
        let mut device = machine.device()?;
        if let (Device::Gpu(gpu), Some(style)) = (&mut device, self.style) {
            gpu.set_style(style);
        }
        pollster::block_on(bench.prepare(&mut device))?;
        bench.rows.iter().map(|row| self.measure(machine, &mut device, &bench, row)).collect()
    }

    fn measure(&self, machine: &Machine, device: &mut Device, bench: &Bench, row: &Row) -> Result<report::Row> {
        let (samples, sample_ms) = if machine.args.quick { (3, 5.0) } else { (9, 60.0) };
        let time = pollster::block_on(bench.time(device, row, samples, sample_ms))?;
        let bytes = bench.bytes(row);
        Ok(report::row([
            ("kernel", format!("{}{}", row.name, suffix(self.style)).into()),
            ("shape", row.shape.clone().into()),
            ("median_ms", time.median_ms.into()),
            ("best_ms", time.best_ms.into()),
            ("core_ms", time.core_ms.into()),
            ("gflops", (row.flops / time.best_ms / 1e6).into()),
            ("gbytes", (bytes / time.best_ms / 1e6).into()),
            ("of_limit", (machine.limits.ideal_ms(row.flops, bytes) / time.best_ms).into()),
        ]))
    }
}

/// Every kernel.
fn rows(b: &mut Bench, sizes: &Sizes) {
    matmuls(b, sizes.rows, sizes.products);
    elementwise(b, sizes.rows);
    for &rows in sizes.texts {
        attentions(b, rows);
        for n in [1, 32] {
            decoding(b, n, rows);
        }
    }
    heads(b);
    updates(b);
}

fn matmuls(b: &mut Bench, n: usize, products: &[usize]) {
    for &size in products {
        for format in WeightFormat::ALL {
            let shape = format!("{} {size}³", format.name());
            let flops = 2 * size.pow(3);
            b.row("matmul.forward", &shape, flops, |b| {
                let (x, w, none, y) =
                    (b.floats(size * size), b.matrix(format, size, size), b.floats(4), b.floats(size * size));
                matmul::forward(&mut b.plan, "", size, x, &w, 1.0, Epilogue::default(), none, y);
            });
            b.row("matmul.backward", &shape, flops, |b| {
                let (dy, w, none, dx) =
                    (b.floats(size * size), b.matrix(format, size, size), b.floats(4), b.floats(size * size));
                matmul::backward(&mut b.plan, "", size, dy, &w, None, false, none, dx);
            });
        }
    }
    let (c, f, r) = (576, 1536, 16);
    b.row("matmul.forward", format!("bf16 {n}x{c}x{f} r{r}"), 2 * n * f * (c + r), |b| {
        let (x, w, none, y) = (b.floats(n * c), b.matrix(WeightFormat::BF16, f, c), b.floats(4), b.floats(n * f));
        let t = Narrow { buf: b.floats(n * r), width: r };
        let low = Lift { t, flat: b.floats(r * f), factors: [factor(r, f), Factor::default(), Factor::default()] };
        matmul::forward(&mut b.plan, "", n, x, &w, 1.0, Epilogue { low: Some(low), ..Default::default() }, none, y);
    });
    b.row("matmul.forward", format!("bf16 1x{c}x{f} (decoding)"), 2 * c * f, |b| {
        let (x, w, none, y) = (b.floats(c), b.matrix(WeightFormat::BF16, f, c), b.floats(4), b.floats(f));
        matmul::forward(&mut b.plan, "", 1, x, &w, 1.0, Epilogue::default(), none, y);
    });
    // q, k and v's: three factors of one input, side by side in t and in the flat buffer.
    let three = std::array::from_fn(|k| Factor { off: (k * r * c) as u32, t: (k * r) as u32, ..factor(r, c) });
    b.row("low_rank.project", format!("{n}x{c}x3·{r}"), 6 * n * c * r, |b| {
        let (x, flat, t) = (b.floats(n * c), b.floats(3 * r * c), b.floats(n * 3 * r));
        low_rank::project(&mut b.plan, "", n, x, c, flat, three, Narrow { buf: t, width: 3 * r });
    });
    b.row("low_rank.gradient", format!("{n}x3·{r}x{c}"), 6 * n * r * c, |b| {
        let t = Narrow { buf: b.floats(n * 3 * r), width: 3 * r };
        let (x, grads) = (Columns { buf: b.floats(n * c), ld: c, col: 0 }, b.floats(3 * r * c));
        low_rank::gradient(&mut b.plan, "", n, Pair { t, x, factors: three }, None, grads);
    });
}

/// The first in its buffers.
fn factor(rank: usize, width: usize) -> Factor {
    Factor { rank: rank as u32, width: width as u32, scale: 1.0, ..Default::default() }
}

fn elementwise(b: &mut Bench, n: usize) {
    let (c, width, heads, d) = (576, 1536, 9, 64);
    let shape = format!("{n}x{c}");
    b.row("rmsnorm.forward", &shape, 4 * n * c, |b| {
        let (x, w, y) = (b.floats(n * c), b.floats(c), b.floats(n * c));
        rmsnorm::forward(&mut b.plan, "", (n, c), 1e-5, x, w, None, y);
    });
    b.row("rmsnorm.backward", &shape, 10 * n * c, |b| {
        let (x, w, dy, dx) = (b.floats(n * c), b.floats(c), b.floats(n * c), b.floats(n * c));
        rmsnorm::backward(&mut b.plan, "", (n, c), 1e-5, x, w, dy, dx, true, true);
    });
    b.row("gain.forward", &shape, 2 * n * c, |b| {
        let (x, g, none, y) = (b.floats(n * c), b.floats(c), b.floats(4), b.floats(n * c));
        gain::forward(&mut b.plan, "", (n, c), x, Vector { buf: g, off: 0 }, None, None, none, y);
    });
    b.row("gain.backward", &shape, 2 * n * c, |b| {
        let (dy, g, dx) = (b.floats(n * c), b.floats(c), b.floats(n * c));
        gain::backward(&mut b.plan, "", (n, c), dy, Vector { buf: g, off: 0 }, dx, true);
    });
    b.row("column_sum.accumulate", &shape, 2 * n * c, |b| {
        let (p, q, out) = (b.floats(n * c), b.floats(n * c), b.floats(c));
        column_sum::accumulate(&mut b.plan, "", (n, c), p, Some(q.into()), Vector { buf: out, off: 0 }, true);
    });
    b.row("rows.forward", format!("{n}x{c} of 16"), n * c, |b| {
        let (index, table, x) = (b.words((0..n as u32).map(|i| i % 16).collect()), b.floats(16 * c), b.floats(n * c));
        rows::forward(&mut b.plan, "", (n, c), index, Vector { buf: table, off: 0 }, 1.0, false, x);
    });
    b.row("rows.backward", format!("{n}x{c} of 16"), n * c, |b| {
        let (index, grads, dx) = (b.words((0..n as u32).map(|i| i % 16).collect()), b.floats(16 * c), b.floats(n * c));
        rows::backward(&mut b.plan, "", (n, c), index, Vector { buf: grads, off: 0 }, 1.0, dx, false);
    });
    let f = width;
    b.row("row_squares.forward", format!("bf16 {f}x{c}"), 2 * f * c, |b| {
        let (w, out) = (b.matrix(WeightFormat::BF16, f, c), b.floats(f));
        row_squares::forward(&mut b.plan, "", &w, out);
    });
    b.row("row_gain.forward", format!("{f} r16"), 2 * f * 16 * 16, |b| {
        let (params, aw, aa) = (b.floats(f + 16 * f), b.floats(16 * f), b.floats(256));
        let (squares, inv, gain) = (b.floats(f), b.floats(f), b.floats(f));
        let rows = row_gain::Rows { params, magnitude: 0, b: f, rank: 16, scale: 1.0, squares };
        row_gain::forward(&mut b.plan, "", f, rows, aw, aa, inv, gain);
    });
    b.row("layernorm.forward", &shape, 6 * n * c, |b| {
        let (x, w, bias, y) = (b.floats(n * c), b.floats(c), b.floats(c), b.floats(n * c));
        layernorm::forward(&mut b.plan, "", (n, c), 1e-5, x, w, bias, y);
    });
    b.row("layernorm.backward", &shape, 14 * n * c, |b| {
        let (x, w, bias) = (b.floats(n * c), b.floats(c), b.floats(c));
        let (dy, dx) = (b.floats(n * c), b.floats(n * c));
        layernorm::backward(&mut b.plan, "", (n, c), 1e-5, x, w, bias, dy, dx, true, true);
    });
    for (f, gated) in [(Activation::Silu, true), (Activation::GeluTanh, false)] {
        let shape = format!("{f:?} {n}x{width}{}", if gated { ", gated" } else { "" });
        b.row("activation.forward", &shape, 5 * n * width, |b| {
            let (x, y) = (b.floats((n * width) << gated as u32), b.floats(n * width));
            activation::forward(&mut b.plan, "", f, (n, width), gated, x, y);
        });
        b.row("activation.backward", &shape, 12 * n * width, |b| {
            let (dy, x) = (b.floats(n * width), b.floats((n * width) << gated as u32));
            activation::backward(&mut b.plan, "", f, (n, width), gated, dy, x);
        });
        let words = activation::packed_words((n, width), gated);
        b.row("activation.forward_packing", &shape, 5 * n * width, |b| {
            let (x, y) = (b.floats((n * width) << gated as u32), b.floats(n * width));
            let packed = b.words(vec![0; words]);
            activation::forward_packing(&mut b.plan, "", f, (n, width), gated, x, y, packed);
        });
        b.row("activation.backward_packed", &shape, 12 * n * width, |b| {
            let (dy, dx) = (b.floats(n * width), b.floats((n * width) << gated as u32));
            let packed = b.words(vec![0x3f80_3f00; words]);
            activation::backward_packed(&mut b.plan, "", f, (n, width), gated, dy, packed, dx);
        });
    }
    type Rotate = fn(&mut Plan, &str, (usize, usize, usize), Angles, Columns);
    for (name, op) in [("rope.forward", rope::forward as Rotate), ("rope.backward", rope::backward)] {
        b.row(name, format!("{n}x{heads}x{d}"), 3 * n * c, |b| {
            let (positions, table, x) = (b.words((0..n as u32).collect()), b.floats(n * d), b.floats(n * c));
            op(&mut b.plan, "", (n, heads, d), Angles { positions, table, first: 0 }, x.into());
        });
    }
    for (name, op) in [
        ("dropout.forward", dropout::forward as fn(&mut Plan, &str, _, _, _, _, _, _)),
        ("dropout.backward", dropout::backward),
    ] {
        b.row(name, &shape, n * c, |b| {
            let (control, x, y) = (b.control(), b.floats(n * c), b.floats(n * c));
            op(&mut b.plan, "", n * c, 0, 0.1, control, x, y);
        });
    }
}

/// Attention of `n` rows, at two widths of head, as one document and as documents of [`PACKED`] rows.
fn attentions(b: &mut Bench, n: usize) {
    for (heads, kv_heads, d) in [(9, 3, 64), (8, 4, 128)] {
        let s = attention::Shape { n, heads, kv_heads, d, scale: 0.125, ..Default::default() };
        attention(b, s, n);
        attention(b, s, n.min(PACKED));
    }
}

const PACKED: usize = 128;

fn attention(b: &mut Bench, s: attention::Shape, document: usize) {
    let n = s.n;
    let wide = n * s.heads * s.d;
    let pairs = n * (document + 1) / 2 * s.heads * s.d; // multiply-adds of one product over what the mask shows
    let spans = |b: &mut Bench| {
        let first = |row| row / document * document;
        b.words((0..n).flat_map(|row| [first(row), n.min(first(row) + document)].map(|x| x as u32)).collect())
    };
    let packed = if document < n { format!(" of {document}") } else { String::new() };
    let shape = format!("{n}x{}/{}x{}{packed}", s.heads, s.kv_heads, s.d);
    b.row("attention.forward", &shape, 4 * pairs, |b| {
        let (spans, qkv) = (spans(b), b.floats(n * s.width()));
        let (o, lse) = (b.floats(wide), b.floats(n * s.heads));
        attention::forward(&mut b.plan, "", s, spans, qkv, qkv, o, lse);
    });
    b.row("attention.backward", &shape, 10 * pairs, |b| {
        let (spans, qkv, dqkv) = (spans(b), b.floats(n * s.width()), b.floats(n * s.width()));
        let (o, lse, d_o) = (b.floats(wide), b.floats(n * s.heads), b.floats(wide));
        let buffers = attention::Backward { spans, qk: qkv, v: qkv, o, lse, d_o, dqkv };
        attention::backward(&mut b.plan, "", s, &buffers);
    });
}

/// Decoding: a token each for `n` sequences that are `seen` tokens long.
fn decoding(b: &mut Bench, n: usize, seen: usize) {
    let s = attention::Shape { n, heads: 9, kv_heads: 3, d: 64, scale: 0.125, ..Default::default() };
    let (wide, narrow) = (n * s.heads * s.d, n * s.kv_heads * s.d);
    let slots = |b: &mut Bench| b.words((0..n as u32).flat_map(|i| [i, seen as u32 - 1]).collect());
    b.row("attention_cached.append", format!("{n} at {seen}"), 0, |b| {
        let (slots, qkv, caches) =
            (slots(b), b.floats(n * s.width()), [b.floats(seen * narrow), b.floats(seen * narrow)]);
        attention_cached::append(&mut b.plan, "", s, seen, slots, [qkv, qkv], caches);
    });
    b.row("attention_cached.forward", format!("{n} at {seen}"), 4 * seen * s.d * n * s.heads, |b| {
        let (slots, qkv, o) = (slots(b), b.floats(n * s.width()), b.floats(wide));
        let (k, v) = (b.floats(seen * narrow), b.floats(seen * narrow));
        attention_cached::forward(&mut b.plan, "", s, seen, slots, qkv, k, v, o);
    });
}

/// What surrounds the layers: embedding, the supervised rows, the loss over a chunk of them.
fn heads(b: &mut Bench) {
    let (m, c, v) = (64, 576, 49152);
    b.row("embedding.forward", format!("bf16 {m}x{c}"), 0, |b| {
        let ids = b.words((0..m as u32).collect());
        let (w, x) = (b.matrix(WeightFormat::BF16, m, c), b.floats(m * c));
        embedding::forward(&mut b.plan, "", m, ids, &w, 1.0, false, x);
    });
    b.row("gather.forward", format!("{m}x{c}"), 0, |b| {
        let (index, x, y) = (b.words((0..m as u32).map(|i| i * 2).collect()), b.floats(2 * m * c), b.floats(m * c));
        gather::forward(&mut b.plan, (m, 0), c, index, x, y);
    });
    b.row("gather.backward", format!("{m}x{c}"), 0, |b| {
        let (inverse, dy, dx) = (b.words((0..2 * m as u32).collect()), b.floats(m * c), b.floats(2 * m * c));
        gather::backward(&mut b.plan, 2 * m, (m, 0), c, inverse, dy, dx);
    });
    b.row("softcap.forward", format!("{m}x{v}"), 4 * m * v, |b| {
        let z = b.floats(m * v);
        softcap::forward(&mut b.plan, "", m * v, 30.0, z);
    });
    let chunk = cross_entropy::Chunk { m, first: 0, v, ld: v, cap: 0.0 };
    b.row("cross_entropy.forward", format!("{m}x{v}"), 3 * m * v, |b| {
        let (targets, z, rows) = (b.words(vec![7; m]), b.floats(m * v), b.floats(m * cross_entropy::ROW));
        cross_entropy::forward(&mut b.plan, chunk, targets, z, rows);
    });
    b.row("cross_entropy.backward", format!("{m}x{v}"), 3 * m * v, |b| {
        let (control, targets, rows, z) =
            (b.control(), b.words(vec![7; m]), b.floats(m * cross_entropy::ROW), b.floats(m * v));
        cross_entropy::backward(&mut b.plan, chunk, control, targets, rows, z);
    });
    b.row("cross_entropy.report", format!("{m}"), 2 * m, |b| {
        let (control, rows, ring) = (b.control(), b.floats(m * cross_entropy::ROW), b.floats(control::REPORT));
        cross_entropy::report(&mut b.plan, control, rows, ring);
    });
}

fn updates(b: &mut Bench) {
    let len = 4_884_480; // rank 16 on all linears of a 135M model
    b.row("sum_squares", format!("{len}"), 2 * len, |b| {
        let (grads, control, ring, clip) = (b.floats(len), b.control(), b.floats(control::REPORT), b.floats(2));
        sum_squares::norm_and_clip(&mut b.plan, len, 1.0, grads, control, ring, clip);
    });
    b.row("adamw", format!("{len}"), 15 * len, |b| {
        let (control, clip) = (b.control(), b.floats(2));
        let state = adamw::State {
            params: b.floats(len),
            grads: b.floats(len),
            m: b.floats(len),
            v: b.floats(len),
            len,
            rates: None,
        };
        let hyper = adamw::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        adamw::step(&mut b.plan, hyper, control, clip, &state);
    });
    b.row("adamw_8bit", format!("{len}"), 15 * len, |b| {
        let (control, clip) = (b.control(), b.floats(2));
        let mut blocks = || b.words(vec![0; adamw_8bit::words(len)]);
        let (m, v) = (blocks(), blocks());
        let state = adamw::State { params: b.floats(len), grads: b.floats(len), m, v, len, rates: None };
        let hyper = adamw::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let maps = b.floats(adamw_8bit::maps().len());
        adamw_8bit::step(&mut b.plan, hyper, control, clip, &state, maps);
    });
}
