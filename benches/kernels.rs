//! One row a kernel and direction: `cargo bench --bench kernels -- [--device cpu|gpu] [--quick] [--only matmul]`.
//!
//! Shapes are a 135M model's. GFLOP/s and GB/s are those of the best sample, which other load on the machine disturbs
//! least; bytes are those of the bound buffers, each counted once a direction. "core ms" is the CPU time of all threads,
//! the fairest number for CPU twins and software GPUs on a busy machine (Linux only).

use clap::Parser;
use luthier::clock::Instant;
use luthier::device::{Device, DeviceChoice};
use luthier::format::WeightFormat;
use luthier::num::uniform;
use luthier::ops::activation::Activation;
use luthier::ops::gain::Vector;
use luthier::ops::matmul::{Epilogue, LowRank, Matrix, Shard};
use luthier::ops::rope::Angles;
use luthier::ops::*;
use luthier::plan::{Access, Buf, Elem, Plan, SequenceId, Style};

#[derive(Parser)]
struct Args {
    /// Where to run: the CPU twins in f32, or a GPU (also a software one).
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Small shapes, few samples.
    #[arg(long)]
    quick: bool,
    /// Only rows whose name and shape hold this, such as "matmul.forward bf16".
    #[arg(long, default_value = "")]
    only: String,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Row {
    name: String,
    shape: String,
    flops: f64,
    sequence: SequenceId,
}

#[derive(Default)]
struct Bench {
    plan: Plan,
    rows: Vec<Row>,
    only: String,
    /// What each buffer holds before a sample.
    fills: Vec<(Buf, Vec<u32>)>,
}

impl Bench {
    /// Begins a row, unless it is not asked for.
    fn row(&mut self, name: impl Into<String>, shape: impl Into<String>, flops: usize, build: impl FnOnce(&mut Bench)) {
        let (name, shape) = (name.into(), shape.into());
        if format!("{name} {shape}").contains(&self.only) {
            let sequence = self.plan.begin(&name);
            self.rows.push(Row { name, shape, flops: flops as f64, sequence });
            build(self);
        }
    }

    fn words(&mut self, words: Vec<u32>) -> Buf {
        self.fill(Elem::Word, words)
    }

    fn floats(&mut self, len: usize) -> Buf {
        let words = (0..len).map(|i| (uniform(1, 2, i as u64) as f32 - 0.5).to_bits()).collect();
        self.fill(Elem::Float, words)
    }

    fn fill(&mut self, elem: Elem, words: Vec<u32>) -> Buf {
        let buf = self.plan.persistent("", elem, words.len());
        self.fills.push((buf, words));
        buf
    }

    fn control(&mut self) -> Buf {
        let c = control::Control { rows: 64, inv_tokens: 0.01, lr: 1e-4, bias1: 0.5, bias2: 0.5, ..Default::default() };
        self.words(c.words().to_vec())
    }

    fn matrix(&mut self, format: WeightFormat, rows: usize, cols: usize) -> Matrix {
        let values: Vec<f32> = (0..rows * cols).map(|i| uniform(3, 4, i as u64) as f32 - 0.5).collect();
        let buf = self.words(luthier::format::pack(format, &values));
        Matrix { format, rows, cols, shards: vec![Shard { buf, row0: 0, rows, offset: 0 }] }
    }

    /// Bytes that the row's steps read and write at least.
    fn bytes(&self, row: &Row) -> f64 {
        let bound = self.plan.sequences[row.sequence].steps.iter().flat_map(|s| s.bufs.iter().zip(&s.access));
        let bytes = |(buf, access): (&Buf, &Access)| {
            let times = if *access == Access::ReadWrite { 2 } else { 1 };
            self.plan.decl(*buf).len * 4 * times
        };
        bound.map(bytes).sum::<usize>() as f64
    }
}

/// Every kernel, over `n` rows; attention over texts of several lengths.
fn rows(b: &mut Bench, n: usize, products: &[usize], texts: &[usize]) {
    matmuls(b, n, products);
    elementwise(b, n);
    for &rows in texts {
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
    let (wide, narrow) = (n * s.heads * s.d, n * s.kv_heads * s.d);
    let pairs = n * (document + 1) / 2 * s.heads * s.d; // multiply-adds of one product over what the mask shows
    let spans = |b: &mut Bench| {
        let first = |row| row / document * document;
        b.words((0..n).flat_map(|row| [first(row), n.min(first(row) + document)].map(|x| x as u32)).collect())
    };
    let packed = if document < n { format!(" of {document}") } else { String::new() };
    let shape = format!("{n}x{}/{}x{}{packed}", s.heads, s.kv_heads, s.d);
    b.row("attention.forward", &shape, 4 * pairs, |b| {
        let (spans, q, k, v) = (spans(b), b.floats(wide), b.floats(narrow), b.floats(narrow));
        let (o, lse) = (b.floats(wide), b.floats(n * s.heads));
        attention::forward(&mut b.plan, "", s, spans, q, k, v, o, lse);
    });
    b.row("attention.backward", &shape, 10 * pairs, |b| {
        let (spans, q, k, v) = (spans(b), b.floats(wide), b.floats(narrow), b.floats(narrow));
        let (o, lse, d_o) = (b.floats(wide), b.floats(n * s.heads), b.floats(wide));
        let (dq, dk, dv) = (b.floats(wide), b.floats(narrow), b.floats(narrow));
        attention::backward(&mut b.plan, "", s, &attention::Backward { spans, q, k, v, o, lse, d_o, dq, dk, dv });
    });
}

/// Decoding: a token each for `n` sequences that are `seen` tokens long.
fn decoding(b: &mut Bench, n: usize, seen: usize) {
    let s = attention::Shape { n, heads: 9, kv_heads: 3, d: 64, scale: 0.125, ..Default::default() };
    let (wide, narrow) = (n * s.heads * s.d, n * s.kv_heads * s.d);
    let slots = |b: &mut Bench| b.words((0..n as u32).flat_map(|i| [i, seen as u32 - 1]).collect());
    b.row("attention_cached.append", format!("{n} at {seen}"), 0, |b| {
        let (slots, x, cache) = (slots(b), b.floats(narrow), b.floats(seen * narrow));
        attention_cached::append(&mut b.plan, "", s, seen, slots, x, cache);
    });
    b.row("attention_cached.forward", format!("{n} at {seen}"), 4 * seen * s.d * n * s.heads, |b| {
        let (slots, q, o) = (slots(b), b.floats(wide), b.floats(wide));
        let (k, v) = (b.floats(seen * narrow), b.floats(seen * narrow));
        attention_cached::forward(&mut b.plan, "", s, seen, slots, q, k, v, o);
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

/// Milliseconds and CPU milliseconds of one run, from `repeats` in a row. Kernels that work in place would otherwise run into denormals, so
/// buffers are filled anew before.
async fn sample(device: &mut Device, b: &Bench, row: &Row, repeats: usize) -> luthier::Result<(f64, f64)> {
    let used: Vec<Buf> = b.plan.sequences[row.sequence].steps.iter().flat_map(|s| s.bufs.clone()).collect();
    for (buf, words) in b.fills.iter().filter(|(buf, _)| used.contains(buf)) {
        device.write(*buf, 0, words);
    }
    let any = *used.iter().find(|b_| b.plan.decl(**b_).elem == Elem::Float).expect("a float buffer");
    device.read(any, 0, 1).await?;
    let (start, cpu) = (Instant::now(), core_ms());
    for _ in 0..repeats {
        device.run(&b.plan, row.sequence, u32::MAX)?;
    }
    device.read(any, 0, 1).await?;
    Ok((start.elapsed_ms() / repeats as f64, (core_ms() - cpu) / repeats as f64))
}

/// CPU time of this process so far in ms, in ticks of 10: utime and stime of `/proc/self/stat`.
fn core_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat.split(' ').map(|f| f.parse().unwrap_or(0.0)).collect();
    fields.get(13..15).map_or(f64::NAN, |times| times.iter().sum::<f64>() * 10.0)
}

/// Runs and prints the rows that `wanted` keeps.
async fn measure(
    device: &mut Device,
    b: &Bench,
    style: &str,
    quick: bool,
    wanted: impl Fn(&Row) -> bool,
) -> luthier::Result<()> {
    device.prepare(&b.plan).await?;
    let (samples, budget_ms) = if quick { (3, 5.0) } else { (9, 60.0) };
    for row in b.rows.iter().filter(|row| wanted(row)) {
        sample(device, b, row, 1).await?;
        let (once, _) = sample(device, b, row, 1).await?;
        let repeats = (budget_ms / once).clamp(1.0, 16.0) as usize;
        let samples = if once > 1e3 { 3 } else { samples };
        let (mut ms, mut core) = (Vec::new(), 0.0);
        for _ in 0..samples {
            let (wall, cpu) = sample(device, b, row, repeats).await?;
            ms.push(wall);
            core += cpu / samples as f64;
        }
        ms.sort_by(f64::total_cmp);
        let (best, median) = (ms[0], ms[ms.len() / 2]);
        let (gflops, gbytes) = (row.flops / best / 1e6, b.bytes(row) / best / 1e6);
        let name = format!("{}{style}", row.name);
        println!("{name:<28} {:<28} {median:>10.3} {best:>10.3} {core:>10.3} {gflops:>9.2} {gbytes:>9.2}", row.shape);
    }
    Ok(())
}

fn main() -> luthier::Result<()> {
    let args = Args::parse();
    let (n, products, texts): (_, &[usize], &[usize]) =
        if args.quick { (128, &[256], &[256]) } else { (512, &[512, 1024], &[256, 512, 1024, 2048]) };
    let mut b = Bench { only: args.only.clone(), ..Default::default() };
    rows(&mut b, n, products, texts);
    let tiled = |row: &Row| {
        let steps = &b.plan.sequences[row.sequence].steps;
        steps.iter().flat_map(|s| s.kernel.shaders).any(|s| s.style == Style::Tiled)
    };
    pollster::block_on(async {
        let mut device = Device::open(args.device).await?;
        println!("{}", device.describe());
        println!(
            "{:<28} {:<28} {:>10} {:>10} {:>10} {:>9} {:>9}",
            "kernel", "shape", "median ms", "best ms", "core ms", "GFLOP/s", "GB/s"
        );
        if let Device::Gpu(gpu) = &mut device {
            gpu.set_style(Style::Software);
        }
        measure(&mut device, &b, "", args.quick, |_| true).await?;
        if matches!(device, Device::Gpu(_)) && b.rows.iter().any(tiled) {
            device = Device::open(args.device).await?;
            let Device::Gpu(gpu) = &mut device else { return Ok(()) };
            gpu.set_style(Style::Tiled);
            measure(&mut device, &b, " tiled", args.quick, tiled).await?;
        }
        Ok(())
    })
}
