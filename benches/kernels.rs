//! One row a kernel and direction.
//!
//! Shapes are a 135M model's. GFLOP/s and GB/s are those of the best sample, which other load on the machine disturbs
//! least; bytes are those of the bound buffers, each counted once a direction. "core ms" is the CPU time of all threads,
//! the fairest number for CPU twins and software GPUs on a busy machine (Linux only).

use super::report::{self, Column};
use super::{Args, Case, Machine};
use luthier::Result;
use luthier::benchmark::{Bench, Row};
use luthier::device::Device;
use luthier::format::WeightFormat;
use luthier::ops::activation::Activation;
use luthier::ops::gain::Vector;
use luthier::ops::matmul::{Epilogue, LowRank};
use luthier::ops::rope::Angles;
use luthier::ops::*;
use luthier::plan::{Buf, Plan, Style};

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
    let (n, products) = sizes(&machine.args);
    let mut names = Bench::dry();
    rows(&mut names, n, products);
    let mut kernels: Vec<&str> = names.rows.iter().map(stem).collect();
    kernels.dedup();
    let mut cases = Vec::new();
    for kernel in kernels {
        let tiled = KERNELS.iter().any(|k| k.name == kernel && k.shaders.iter().any(|s| s.style == Style::Tiled));
        let both = machine.gpu && tiled;
        for style in if both { vec![Some(Style::Direct), Some(Style::Tiled)] } else { vec![None] } {
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

fn sizes(args: &Args) -> (usize, &'static [usize]) {
    if args.quick { (128, &[256]) } else { (512, &[512, 1024]) }
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
        let heavy = ["matmul", "attention", "lora_grad"].contains(&self.kernel.as_str());
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
        let (n, products) = sizes(&machine.args);
        let mut bench = Bench::only(&self.rows);
        rows(&mut bench, n, products);
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

/// Every kernel, over `n` rows.
fn rows(b: &mut Bench, n: usize, products: &[usize]) {
    matmuls(b, n, products);
    elementwise(b, n);
    attentions(b, n);
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
        let low = LowRank { t: b.floats(n * r), params: b.floats(r * f), offset: 0, rank: r, scale: 2.0 };
        matmul::forward(&mut b.plan, "", n, x, &w, 1.0, Epilogue { low: Some(low), ..Default::default() }, none, y);
    });
    b.row("matmul.forward", format!("f32 {n}x{c}x{r} (x·Aᵀ)"), 2 * n * c * r, |b| {
        let (x, w, none, y) = (b.floats(n * c), b.matrix(WeightFormat::F32, r, c), b.floats(4), b.floats(n * r));
        matmul::forward(&mut b.plan, "", n, x, &w, 1.0, Epilogue::default(), none, y);
    });
    b.row("matmul.forward", format!("bf16 1x{c}x{f} (decoding)"), 2 * c * f, |b| {
        let (x, w, none, y) = (b.floats(c), b.matrix(WeightFormat::BF16, f, c), b.floats(4), b.floats(f));
        matmul::forward(&mut b.plan, "", 1, x, &w, 1.0, Epilogue::default(), none, y);
    });
    b.row("lora_grad.accumulate", format!("{n}x{r}x{f}"), 2 * n * r * f, |b| {
        let (p, q, grads) = (b.floats(n * r), b.floats(n * f), b.floats(r * f));
        lora_grad::accumulate(&mut b.plan, "", n, p, (r, r), q, f, 1.0, grads, 0);
    });
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
        rmsnorm::backward(&mut b.plan, "", (n, c), 1e-5, x, w, dy, dx, true);
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
        column_sum::accumulate(&mut b.plan, "", (n, c), p, Some(q), Vector { buf: out, off: 0 }, true);
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
        let (x, w, dy, dx) = (b.floats(n * c), b.floats(c), b.floats(n * c), b.floats(n * c));
        layernorm::backward(&mut b.plan, "", (n, c), 1e-5, x, w, dy, dx, true);
    });
    for (f, gated) in [(Activation::Silu, true), (Activation::GeluTanh, false)] {
        let (suffix, shape) = (if gated { "" } else { "_plain" }, format!("{f:?} {n}x{width}"));
        b.row(format!("activation.forward{suffix}"), &shape, 5 * n * width, |b| {
            let (gate, up) = (b.floats(n * width), gated.then(|| b.floats(n * width)));
            let y = b.floats(n * width);
            activation::forward(&mut b.plan, "", f, n * width, gate, up, y);
        });
        b.row(format!("activation.backward{suffix}"), &shape, 12 * n * width, |b| {
            let (dy, gate) = (b.floats(n * width), b.floats(n * width));
            let up = gated.then(|| b.floats(n * width));
            activation::backward(&mut b.plan, "", f, n * width, dy, gate, up);
        });
    }
    type Rotate = fn(&mut Plan, &str, (usize, usize, usize), Angles, Buf);
    for (name, op) in [("rope.forward", rope::forward as Rotate), ("rope.backward", rope::backward)] {
        b.row(name, format!("{n}x{heads}x{d}"), 3 * n * c, |b| {
            let (positions, table, x) = (b.words((0..n as u32).collect()), b.floats(n * d), b.floats(n * c));
            op(&mut b.plan, "", (n, heads, d), Angles { positions, table, first: 0 }, x);
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

fn attentions(b: &mut Bench, n: usize) {
    let s = attention::Shape { n, heads: 9, kv_heads: 3, d: 64, scale: 0.125, ..Default::default() };
    let (wide, narrow) = (n * s.heads * s.d, n * s.kv_heads * s.d);
    let pairs = n * n / 2 * s.heads * s.d; // multiply-adds of one product over the causal half
    let spans = |b: &mut Bench| b.words((0..n).flat_map(|_| [0, n as u32]).collect());
    let shape = format!("{n}x{}/{}x{}", s.heads, s.kv_heads, s.d);
    b.row("attention.forward", &shape, 4 * pairs, |b| {
        let (spans, q, k, v) = (spans(b), b.floats(wide), b.floats(narrow), b.floats(narrow));
        let (o, stats) = (b.floats(wide), b.floats(n * s.heads * 2));
        attention::forward(&mut b.plan, "", s, spans, q, k, v, o, stats);
    });
    b.row("attention.backward", &shape, 14 * pairs, |b| {
        let (spans, q, k, v) = (spans(b), b.floats(wide), b.floats(narrow), b.floats(narrow));
        let (o, stats, d_o) = (b.floats(wide), b.floats(n * s.heads * 2), b.floats(wide));
        let (dq, dk, dv) = (b.floats(wide), b.floats(narrow), b.floats(narrow));
        attention::backward(&mut b.plan, "", s, &attention::Backward { spans, q, k, v, o, stats, d_o, dq, dk, dv });
    });
    let one = attention::Shape { n: 1, ..s };
    b.row("attention_cached.append", format!("1 at {n}"), 0, |b| {
        let (slots, x, cache) = (b.words(vec![0, n as u32 - 1]), b.floats(narrow / n), b.floats(narrow));
        attention_cached::append(&mut b.plan, "", one, n, slots, x, cache);
    });
    b.row("attention_cached.forward", format!("1 at {n}"), 4 * n * s.heads * s.d, |b| {
        let (slots, q) = (b.words(vec![0, n as u32 - 1]), b.floats(wide / n));
        let (k, v, o) = (b.floats(narrow), b.floats(narrow), b.floats(wide / n));
        attention_cached::forward(&mut b.plan, "", one, n, slots, q, k, v, o);
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
}
