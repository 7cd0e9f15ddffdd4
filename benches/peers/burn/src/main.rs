//! Burn: a training step of a Llama-shaped net on wgpu, with LoRA on all seven projections or in full. One JSON line.
//!
//! `peer-burn [KEY=VALUE ...]` with the keys of [`Setup`]; `lora=0` trains everything.

use std::time::Instant;

use burn::{
    module::{Lora, Module, ParamGroup},
    nn::{loss::CrossEntropyLoss, *},
    optim::{AdamWConfig, GradientsParams},
    prelude::*,
    tensor::{Int, activation},
};

/// The net (width, layers, heads, feed-forward, vocabulary), the batch (rows, tokens a row) and how to measure.
#[derive(Clone, Copy)]
struct Setup {
    d: usize,
    l: usize,
    h: usize,
    f: usize,
    v: usize,
    b: usize,
    t: usize,
    lora: usize,
    steps: usize,
    warmup: usize,
}

impl Setup {
    fn from_args() -> Result<Self, String> {
        let mut setup = Self { d: 64, l: 2, h: 4, f: 176, v: 256, b: 4, t: 64, lora: 1, steps: 20, warmup: 3 };
        for arg in std::env::args().skip(1) {
            let (key, value) = arg.split_once('=').ok_or(format!("`{arg}` is not KEY=VALUE"))?;
            let field = match key {
                "d" => &mut setup.d,
                "l" => &mut setup.l,
                "h" => &mut setup.h,
                "f" => &mut setup.f,
                "v" => &mut setup.v,
                "b" => &mut setup.b,
                "t" => &mut setup.t,
                "lora" => &mut setup.lora,
                "steps" => &mut setup.steps,
                "warmup" => &mut setup.warmup,
                _ => return Err(format!("no key `{key}`: d l h f v b t lora steps warmup")),
            };
            *field = value.parse().map_err(|e| format!("`{arg}`: {e}"))?;
        }
        Ok(setup)
    }
}

const INIT: Initializer = Initializer::Normal { mean: 0.0, std: 0.02 };

#[derive(Module, Debug)]
struct Block {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
struct Net {
    embed: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
}

/// What every step reads and none changes: rotary angles `[1,1,T,D/2]` and the causal mask `[1,1,T,T]`.
struct Tables {
    cos: Tensor<4>,
    sin: Tensor<4>,
    mask: Tensor<4>,
}

impl Tables {
    fn new(s: Setup, device: &Device) -> Self {
        let half = s.d / s.h / 2;
        let frequency = |i: usize| 10000f32.powf(-(i as f32) / half as f32);
        let angles: Vec<f32> = (0..s.t * half).map(|i| (i / half) as f32 * frequency(i % half)).collect();
        let angles = Tensor::<1>::from_data(angles.as_slice(), device).reshape([1, 1, s.t, half]);
        let mask: Vec<f32> = (0..s.t * s.t).map(|i| if i % s.t <= i / s.t { 0.0 } else { -1e9 }).collect();
        let mask = Tensor::<1>::from_data(mask.as_slice(), device).reshape([1, 1, s.t, s.t]);
        Self { cos: angles.clone().cos(), sin: angles.sin(), mask }
    }

    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        Tensor::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 3)
    }
}

impl Block {
    fn new(s: Setup, device: &Device) -> Self {
        let linear = |i, o| LinearConfig::new(i, o).with_bias(false).with_initializer(INIT).init(device);
        let norm = || RmsNormConfig::new(s.d).init(device);
        Self {
            attention_norm: norm(),
            q: linear(s.d, s.d),
            k: linear(s.d, s.d),
            v: linear(s.d, s.d),
            o: linear(s.d, s.d),
            mlp_norm: norm(),
            gate: linear(s.d, s.f),
            up: linear(s.d, s.f),
            down: linear(s.f, s.d),
        }
    }

    fn forward(&self, x: Tensor<3>, heads: usize, tables: &Tables) -> Tensor<3> {
        let [b, t, d] = x.dims();
        let split = |y: Tensor<3>| y.reshape([b, t, heads, d / heads]).swap_dims(1, 2);
        let h = self.attention_norm.forward(x.clone());
        let q = tables.rotate(split(self.q.forward(h.clone())));
        let k = tables.rotate(split(self.k.forward(h.clone())));
        let v = split(self.v.forward(h));
        let scores = q.matmul(k.transpose()).div_scalar(((d / heads) as f32).sqrt()) + tables.mask.clone();
        let attended = activation::softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([b, t, d]);
        let x = x + self.o.forward(attended);
        let h = self.mlp_norm.forward(x.clone());
        x + self.down.forward(activation::silu(self.gate.forward(h.clone())) * self.up.forward(h))
    }
}

impl Net {
    fn new(s: Setup, device: &Device) -> Self {
        Self {
            embed: EmbeddingConfig::new(s.v, s.d).with_initializer(INIT).init(device),
            blocks: (0..s.l).map(|_| Block::new(s, device)).collect(),
            norm: RmsNormConfig::new(s.d).init(device),
        }
    }

    /// Logits `[B,T,V]`; the head is the embedding.
    fn forward(&self, ids: Tensor<2, Int>, heads: usize, tables: &Tables) -> Tensor<3> {
        let x = self.blocks.iter().fold(self.embed.forward(ids), |x, block| block.forward(x, heads, tables));
        self.norm.forward(x).matmul(self.embed.weight.val().transpose().unsqueeze())
    }
}

/// Milliseconds and loss of every step, warm-up included.
fn train(s: Setup, device: &Device) -> Vec<(f64, f32)> {
    let mut net = Net::new(s, device);
    if s.lora == 1 {
        // By default Burn adapts every matrix, the embedding too; the others adapt only the blocks' projections.
        net = net.apply_lora(Lora::new(8, 16.0).set_param_group(ParamGroup::from_predicate("blocks")));
    }
    let mut optimizer = AdamWConfig::new().init();
    let tables = Tables::new(s, device);
    let ids: Vec<i32> = (0..=s.b * s.t).map(|i| ((i * 7 + 3) % s.v) as i32).collect();
    let inputs = Tensor::<1, Int>::from_data(&ids[..s.b * s.t], device).reshape([s.b, s.t]);
    let targets = Tensor::<1, Int>::from_data(&ids[1..], device);
    let mut steps = Vec::new();
    for _ in 0..s.warmup + s.steps {
        let start = Instant::now();
        let logits = net.forward(inputs.clone(), s.h, &tables).reshape([s.b * s.t, s.v]);
        let loss = CrossEntropyLoss::new(None, device).forward(logits, targets.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &net);
        assert!(s.lora == 0 || gradients.len() == 14 * s.l, "{} gradients", gradients.len());
        net = optimizer.step(1e-3, net, gradients);
        let loss = loss.into_scalar::<f32>();
        device.sync().expect("the device has failed");
        steps.push((start.elapsed().as_secs_f64() * 1e3, loss));
    }
    steps
}

fn main() -> Result<(), String> {
    let s = Setup::from_args()?;
    let steps = train(s, &Device::wgpu(Default::default()).autodiff());
    let mut times: Vec<f64> = steps[s.warmup..].iter().map(|(ms, _)| *ms).collect();
    times.sort_by(f64::total_cmp);
    let (median, min) = (times[times.len() / 2], times[0]);
    let case = if s.lora == 1 { "lora" } else { "full" };
    print!(r#"{{"peer": "burn", "case": "{case}", "batch": {}, "tokens": {}, "steps": {}, "#, s.b, s.t, s.steps);
    print!(r#""first_ms": {:.1}, "median_ms": {median:.2}, "min_ms": {min:.2}, "#, steps[0].0);
    print!(r#""tokens_per_s": {:.1}, "#, (s.b * s.t) as f64 / median * 1e3);
    println!(r#""loss_first": {:.4}, "loss_last": {:.4}}}"#, steps[0].1, steps[steps.len() - 1].1);
    Ok(())
}
