//! Whole LoRA training steps: median ms, tokens/s, first step, peak bytes.
//!
//! `cargo bench --bench steps -- [--device cpu|gpu] [--steps N] [--profile] [CASE...]`
//! Cases: `small` (D=64 L=2 H=4 F=176 V=256, B=4 T=64: the net of benches/peers), `nano` (the shape of models/nano,
//! B=4 T=128), `smollm2` (SmolLM2-135M's shape, Q4_1 weights, B=2 T=256) and `smollm2-bf16`. Weights are random, all
//! tokens are supervised, LoRA r = 8 on all linears.

use luthier::adapter::{Adapter, Lora, LoraConfig};
use luthier::data::{Batches, Dataset, Example, PackOptions, Stats};
use luthier::device::{Device, DeviceChoice};
use luthier::format::{WeightFormat, pack};
use luthier::model::family::LLAMA;
use luthier::model::{Base, Decoder, ModelSpec, Module};
use luthier::num::uniform;
use luthier::plan::Plan;
use luthier::train::{TrainOptions, Trainer};
use std::sync::Arc;
use std::time::Instant;

struct Case {
    name: &'static str,
    spec: ModelSpec,
    format: WeightFormat,
    b: usize,
    t: usize,
}

#[rustfmt::skip]
fn spec([vocab, hidden, layers, heads, kv_heads, head_dim, ffn]: [usize; 7]) -> ModelSpec {
    ModelSpec {
        vocab, hidden, layers, heads, kv_heads, head_dim, ffn, tied: true, context: 2048, ..ModelSpec::plain(&LLAMA)
    }
}

fn cases() -> Vec<Case> {
    let smollm2 = || spec([49152, 576, 30, 9, 3, 64, 1536]);
    vec![
        Case { name: "small", spec: spec([256, 64, 2, 4, 4, 16, 176]), format: WeightFormat::F32, b: 4, t: 64 },
        Case { name: "nano", spec: spec([2048, 128, 6, 4, 2, 32, 352]), format: WeightFormat::BF16, b: 4, t: 128 },
        Case { name: "smollm2", spec: smollm2(), format: WeightFormat::Q4_1, b: 2, t: 256 },
        Case { name: "smollm2-bf16", spec: smollm2(), format: WeightFormat::BF16, b: 2, t: 256 },
    ]
}

/// A base model with random weights: uniform, of the scale 0.02 has in a normal initialisation.
fn random_base(case: &Case, mut device: Device) -> Base {
    let mut plan = Plan::default();
    let decoder = Decoder::declare(&mut plan, &case.spec, |_| case.format, device.max_binding());
    pollster::block_on(device.prepare(&plan)).expect("the device holds the model");
    for (k, (tensor, shape)) in case.spec.tensors().into_iter().enumerate() {
        if let Some(at) = decoder.vector(tensor) {
            device.write_floats(at.buf, at.off, &vec![1.0; shape[0] as usize]);
            continue;
        }
        let w = decoder.matrix(tensor).expect("a matrix");
        let row: Vec<f32> = (0..w.cols * 64).map(|i| (uniform(7, k as u64, i as u64) as f32 - 0.5) * 0.07).collect();
        let words = pack(w.format, &row);
        for shard in &w.shards {
            let stride = w.format.words(w.cols);
            for row0 in (0..shard.rows).step_by(64) {
                device.write(shard.buf, shard.offset + row0 * stride, &words[..64.min(shard.rows - row0) * stride]);
            }
        }
        device.flush();
    }
    Base { plan, device, decoder, sha256: String::new() }
}

/// One document a row, every token after the first supervised.
fn batches(case: &Case) -> Batches {
    let example = |row: usize| {
        let ids: Vec<u32> = (0..case.t).map(|i| (((row * case.t + i) * 7 + 3) % case.spec.vocab) as u32).collect();
        let supervised = vec![true; case.t];
        Example { full_len: case.t, full_supervised: case.t, ids, supervised, truncated: false, line: row as u64 + 1 }
    };
    let examples = Arc::new((0..case.b).map(example).collect());
    let data = Dataset { file: "bench".into(), examples, stats: Stats::default() };
    let options = PackOptions { b: case.b, t: case.t, packing: false, shuffle: false, seed: 0 };
    Batches::new(&data, options).expect("a data set")
}

fn run(case: &Case, choice: DeviceChoice, steps: u64, profile: bool) {
    let device = pollster::block_on(Device::open(choice)).expect("a device");
    let name = device.describe();
    let mut base = random_base(case, device);
    let config = LoraConfig {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        rslora: false,
        modules: Module::ALL.to_vec(),
        ..Default::default()
    };
    let lora = Adapter::new(&case.spec, Lora::new(&case.spec, config).expect("a valid adapter"));
    let initial = lora.init(0);
    let options = TrainOptions {
        batch_size: case.b,
        seq_len: case.t,
        steps: Some(steps),
        memory_gib: 16.0,
        ..Default::default()
    };
    let start = Instant::now();
    let batches = batches(case);
    let mut trainer = pollster::block_on(Trainer::new(&mut base, lora, initial, batches, options)).expect("a run");
    let mut times = Vec::new();
    let mut losses = Vec::new();
    for step in 0..steps {
        let start = Instant::now();
        let mut reports = pollster::block_on(trainer.step(&mut base)).expect("a step");
        reports.extend(pollster::block_on(trainer.reports(&mut base)).expect("reports"));
        times.push(start.elapsed().as_secs_f64() * 1e3);
        losses.extend(reports.iter().map(|r| r.loss));
        if step == 0 {
            // The first step compiles and touches everything for the first time: it is not in the profile.
            match (profile, &mut base.device) {
                (true, Device::Cpu(cpu)) => cpu.profile = Some(Default::default()),
                (true, Device::Gpu(gpu)) => gpu.profile = Some(Default::default()),
                _ => {}
            }
            eprintln!(
                "{}: first step {:.0} ms after {:.0} ms of set-up",
                case.name,
                times[0],
                start.elapsed().as_secs_f64() * 1e3
            );
        }
    }
    let first = start.elapsed().as_secs_f64() * 1e3 - times[1..].iter().sum::<f64>();
    let mut steady = times[1..].to_vec();
    steady.sort_by(f64::total_cmp);
    let (median, min) = (steady[steady.len() / 2], steady[0]);
    println!(
        "{:<13} {name}: median {median:.1} ms, min {min:.1} ms, {:.0} tokens/s; set-up and first step {first:.0} ms; {:.1} MiB; loss {:.4} -> {:.4}",
        case.name,
        (case.b * case.t) as f64 / median * 1e3,
        base.device.allocated() as f64 / (1 << 20) as f64,
        losses[0],
        losses[losses.len() - 1],
    );
    let profile = match &base.device {
        Device::Cpu(cpu) => &cpu.profile,
        Device::Gpu(gpu) => &gpu.profile,
        Device::Reference(_) => &None,
    };
    if let Some(profile) = profile {
        let mut rows: Vec<_> = profile.iter().collect();
        rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
        for (kernel, (runs, ms)) in rows {
            println!("  {kernel:<28} {:>6} runs a step {:>9.2} ms", runs / (steps - 1), ms / (steps - 1) as f64);
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1)).cloned();
    let choice = match value("--device").as_deref() {
        Some("gpu") => DeviceChoice::Gpu,
        _ => DeviceChoice::Cpu,
    };
    let steps = value("--steps").and_then(|s| s.parse().ok()).unwrap_or(10);
    let all = cases();
    let named: Vec<&Case> = all.iter().filter(|c| args.iter().any(|a| a == c.name)).collect();
    for case in if named.is_empty() { all.iter().take(2).collect() } else { named } {
        run(case, choice, steps, args.iter().any(|a| a == "--profile"));
    }
}
