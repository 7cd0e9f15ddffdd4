//! Nets of the shapes people tune, with random weights.

use luthier::Result;
use luthier::device::Device;
use luthier::format::{WeightFormat, pack};
use luthier::model::family::LLAMA;
use luthier::model::{Base, Decoder, ModelSpec};
use luthier::num::uniform;
use luthier::plan::Plan;

#[derive(Clone, Copy)]
pub struct Net {
    pub name: &'static str,
    shape: [usize; 7],
    /// Biases on q, k and v, as Qwen2 has them.
    qwen: bool,
}

const fn llama(name: &'static str, shape: [usize; 7]) -> Net {
    Net { name, shape, qwen: false }
}

/// Vocabulary, width, layers, query heads, kv heads, head width, feed-forward width. All have tied heads.
pub const SMALL: Net = llama("small", [256, 64, 2, 4, 4, 16, 176]);
pub const NANO: Net = llama("nano", [2048, 128, 6, 4, 2, 32, 352]);
pub const SMOLLM2: Net = llama("smollm2-135m", [49152, 576, 30, 9, 3, 64, 1536]);
pub const LLAMA_1B: Net = llama("llama-3.2-1b", [128256, 2048, 16, 32, 8, 64, 8192]);
pub const QWEN: Net = Net { qwen: true, ..llama("qwen2.5-0.5b", [151936, 896, 24, 14, 2, 64, 4864]) };

impl Net {
    pub fn spec(&self) -> ModelSpec {
        let [vocab, hidden, layers, heads, kv_heads, head_dim, ffn] = self.shape;
        let plain = ModelSpec { qkv_bias: self.qwen, tied: true, context: 4096, ..ModelSpec::plain(&LLAMA) };
        ModelSpec { vocab, hidden, layers, heads, kv_heads, head_dim, ffn, ..plain }
    }

    /// Weights of the blocks' linears.
    pub fn linears(&self) -> f64 {
        let [_, c, layers, heads, kv_heads, d, f] = self.shape.map(|n| n as f64);
        layers * (2.0 * c * heads * d + 2.0 * c * kv_heads * d + 3.0 * c * f)
    }

    /// Weights of the head.
    pub fn head(&self) -> f64 {
        (self.shape[0] * self.shape[1]) as f64
    }

    /// Additions and multiplications of the attention of a document of `t` tokens, forward: two products over half the
    /// pairs.
    pub fn attention(&self, t: usize) -> f64 {
        let [_, _, layers, heads, _, d, _] = self.shape.map(|n| n as f64);
        2.0 * layers * heads * d * (t * t) as f64
    }
}

/// The net as a plan; nothing is allocated yet.
pub fn planned(net: &Net, format: WeightFormat, device: Device) -> Base {
    let mut plan = Plan::default();
    let decoder = Decoder::declare(&mut plan, &net.spec(), |_| format, device.max_binding());
    Base { plan, device, decoder, sha256: String::new() }
}

/// Allocates, and fills: gains 1, matrices uniform, of the scale that 0.02 has in a normal initialisation.
pub fn fill(base: &mut Base) -> Result<()> {
    let Base { plan, device, decoder, .. } = base;
    pollster::block_on(device.prepare(plan))?;
    for (k, (tensor, shape)) in decoder.spec.tensors().into_iter().enumerate() {
        if let Some(at) = decoder.vector(tensor) {
            device.write_floats(at.buf, at.off, &vec![1.0; shape[0] as usize]);
            continue;
        }
        let w = decoder.matrix(tensor).expect("a tensor is a vector or a matrix");
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
    Ok(())
}
