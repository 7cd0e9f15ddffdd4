//! One decoder block, forward facing backward. Letters: `ops/mod.rs`.

use super::linear::{Build, Linear, Saved};
use super::seam::Patches;
use super::spec::ModelSpec;
use super::tensors::Tensor;
use crate::ops::attention::{self, Shape};
use crate::ops::{attention_cached, rmsnorm, rope, rows, swiglu};
use crate::plan::Buf;

#[derive(Clone, Debug)]
pub struct Block {
    pub attention_norm: Buf,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub mlp_norm: Buf,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// The inputs that all blocks of a run share.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    pub positions: Buf,
    /// Document spans in training, cache slots in generation.
    pub spans: Buf,
    pub rope_table: Buf,
    /// [N]: which row of the adapter's table stands here, or NONE.
    pub virtual_rows: Buf,
    /// [C] ones, for gradients of norms.
    pub ones: Buf,
}

/// The KV cache of one block.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    pub k: Buf,
    pub v: Buf,
    pub capacity: usize,
}

/// What backward needs of forward. The norms' outputs and the activation are cheap and recomputed instead.
pub struct Kept {
    x: Buf,
    q: (Buf, Saved),
    k: (Buf, Saved),
    v: (Buf, Saved),
    attended: Buf,
    stats: Buf,
    o: Saved,
    mid: Buf,
    gate: (Buf, Saved),
    up: (Buf, Saved),
    down: Saved,
}

/// A norm over the residual stream, whose weight may be trained.
pub struct Norm {
    pub tensor: Tensor,
    pub w: Buf,
}

impl Norm {
    pub fn forward(&self, cx: &mut Build, spec: &ModelSpec, x: Buf) -> Buf {
        let y = cx.plan.temp("normed", cx.n * spec.hidden);
        let w = cx.vector(self.tensor, self.w, spec.hidden);
        rmsnorm::forward(cx.plan, "norm", (cx.n, spec.hidden), spec.eps, x, w, y);
        y
    }

    /// `dx (+)= …` where asked, and the weight's gradient `Σ_n dy ∘ x/rms(x)` where it is trained.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        cx: &mut Build,
        spec: &ModelSpec,
        common: &Common,
        x: Buf,
        dy: Buf,
        dx: Option<Buf>,
        accumulate: bool,
    ) {
        let size = (cx.n, spec.hidden);
        if cx.replaced(self.tensor).is_some() {
            let unit = cx.plan.temp("unit", cx.n * spec.hidden);
            rmsnorm::forward(cx.plan, "norm", size, spec.eps, x, common.ones, unit);
            cx.vector_grad(self.tensor, size, dy, Some(unit));
        }
        let Some(dx) = dx else { return };
        let w = cx.vector(self.tensor, self.w, spec.hidden);
        rmsnorm::backward(cx.plan, "norm", size, spec.eps, x, w, dy, dx, accumulate);
    }
}

impl Block {
    fn shape(&self, spec: &ModelSpec, n: usize) -> Shape {
        let scale = 1.0 / (spec.head_dim as f32).sqrt();
        Shape { n, heads: spec.heads, kv_heads: spec.kv_heads, d: spec.head_dim, scale }
    }

    fn layer(&self) -> usize {
        self.q.site.layer
    }

    fn attention_norm(&self) -> Norm {
        Norm { tensor: Tensor::AttentionNorm(self.layer()), w: self.attention_norm }
    }

    fn mlp_norm(&self) -> Norm {
        Norm { tensor: Tensor::MlpNorm(self.layer()), w: self.mlp_norm }
    }

    /// What a prefix puts in place of the keys and values of its rows.
    fn insert_prefix(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, k: Buf, v: Buf) {
        if let Some((patches, at)) = self.prefix(cx) {
            let size = (cx.n, spec.kv_width());
            rows::forward(cx.plan, "prefix k", size, common.virtual_rows, patches.param(at.0), k);
            rows::forward(cx.plan, "prefix v", size, common.virtual_rows, patches.param(at.1), v);
        }
    }

    /// The prefix's gradients; what stood in its place gets none.
    fn prefix_backward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, dk: Buf, dv: Buf) {
        if let Some((patches, at)) = self.prefix(cx) {
            let size = (cx.n, spec.kv_width());
            rows::backward(cx.plan, "prefix k", size, common.virtual_rows, patches.grad(at.0), dk, true);
            rows::backward(cx.plan, "prefix v", size, common.virtual_rows, patches.grad(at.1), dv, true);
        }
    }

    fn prefix<'a>(&self, cx: &Build<'a>) -> Option<(&'a Patches, (usize, usize))> {
        let patches = cx.patches?;
        Some((patches, *patches.rows.as_ref()?.prefix.get(self.layer())?))
    }

    /// q, k (rotated) and v of the normed input.
    fn qkv(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, x: Buf) -> [(Buf, Saved); 3] {
        let h = self.attention_norm().forward(cx, spec, x);
        let n = cx.n;
        let out = [&self.q, &self.k, &self.v].map(|linear| {
            let y = cx.plan.temp(linear.site.module.name(), n * linear.w.rows);
            (y, linear.forward(cx, h, None, y))
        });
        for ((y, _), heads) in out.iter().zip([spec.heads, spec.kv_heads]) {
            rope::forward(cx.plan, "rope", n, heads, spec.head_dim, common.positions, common.rope_table, *y);
        }
        self.insert_prefix(cx, spec, common, out[1].0, out[2].0);
        out
    }

    pub fn forward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, x: Buf) -> (Buf, Kept) {
        let n = cx.n;
        let [q, k, v] = self.qkv(cx, spec, common, x);
        let attended = cx.plan.temp("attended", n * spec.q_width());
        let stats = cx.plan.temp("attention stats", n * spec.heads * 2);
        attention::forward(cx.plan, "attention", self.shape(spec, n), common.spans, q.0, k.0, v.0, attended, stats);
        let (o, mid, gate, up, down, out) = self.rest(cx, spec, x, attended);
        (out, Kept { x, q, k, v, attended, stats, o, mid, gate, up, down })
    }

    /// Everything after attention: output projection, residual, MLP, residual.
    #[allow(clippy::type_complexity)]
    fn rest(
        &self,
        cx: &mut Build,
        spec: &ModelSpec,
        x: Buf,
        attended: Buf,
    ) -> (Saved, Buf, (Buf, Saved), (Buf, Saved), Saved, Buf) {
        let n = cx.n;
        let mid = cx.plan.temp("mid", n * spec.hidden);
        let o = self.o.forward(cx, attended, Some(x), mid);
        let h = self.mlp_norm().forward(cx, spec, mid);
        let [gate, up] = [&self.gate, &self.up].map(|linear| {
            let y = cx.plan.temp(linear.site.module.name(), n * spec.ffn);
            (y, linear.forward(cx, h, None, y))
        });
        let act = self.activation(cx, spec, gate.0, up.0);
        let out = cx.plan.temp("residual", n * spec.hidden);
        let down = self.down.forward(cx, act, Some(mid), out);
        (o, mid, gate, up, down, out)
    }

    fn activation(&self, cx: &mut Build, spec: &ModelSpec, gate: Buf, up: Buf) -> Buf {
        let y = cx.plan.temp("activation", cx.n * spec.ffn);
        swiglu::forward(cx.plan, "swiglu", cx.n * spec.ffn, gate, up, y);
        y
    }

    /// Turns `dx`, the gradient of the block's output, into that of its input, in place; adds the adapter's gradients.
    /// Where nothing below is adapted (`need_dx` false) it stops as soon as this block's own gradients are complete.
    pub fn backward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, kept: &Kept, dx: Buf, need_dx: bool) {
        let (n, shape) = (cx.n, self.shape(spec, cx.n));
        let below_mlp = need_dx || cx.patches.is_some_and(|p| p.in_attention(self.layer()));
        let at_mlp_norm = below_mlp || cx.replaced(Tensor::MlpNorm(self.layer())).is_some();

        let act = self.activation(cx, spec, kept.gate.0, kept.up.0);
        let dact = cx.plan.temp("dactivation", n * spec.ffn);
        self.down.backward(cx, act, kept.down, dx, Some(dact), false);
        swiglu::backward(cx.plan, "swiglu", n * spec.ffn, dact, kept.gate.0, kept.up.0); // now dgate, dup
        let h = self.mlp_norm().forward(cx, spec, kept.mid);
        let dh = cx.plan.temp("dnormed", n * spec.hidden);
        self.gate.backward(cx, h, kept.gate.1, kept.gate.0, at_mlp_norm.then_some(dh), false);
        self.up.backward(cx, h, kept.up.1, kept.up.0, at_mlp_norm.then_some(dh), true);
        if at_mlp_norm {
            self.mlp_norm().backward(cx, spec, common, kept.mid, dh, below_mlp.then_some(dx), true);
        }
        if !below_mlp {
            return;
        }

        let d_o = cx.plan.temp("dattended", n * spec.q_width());
        self.o.backward(cx, kept.attended, kept.o, dx, Some(d_o), false);
        let [dq, dk, dv] = [("dq", spec.q_width()), ("dk", spec.kv_width()), ("dv", spec.kv_width())]
            .map(|(name, width)| cx.plan.temp(name, n * width));
        let buffers = attention::Backward {
            spans: common.spans,
            q: kept.q.0,
            k: kept.k.0,
            v: kept.v.0,
            o: kept.attended,
            stats: kept.stats,
            d_o,
            dq,
            dk,
            dv,
        };
        attention::backward(cx.plan, "attention", shape, &buffers);
        self.prefix_backward(cx, spec, common, dk, dv);
        for (d, heads) in [(dq, spec.heads), (dk, spec.kv_heads)] {
            rope::backward(cx.plan, "rope", n, heads, spec.head_dim, common.positions, common.rope_table, d);
        }
        let at_norm = need_dx || cx.replaced(Tensor::AttentionNorm(self.layer())).is_some();
        let h = self.attention_norm().forward(cx, spec, kept.x);
        let dh = cx.plan.temp("dnormed", n * spec.hidden);
        self.q.backward(cx, h, kept.q.1, dq, at_norm.then_some(dh), false);
        self.k.backward(cx, h, kept.k.1, dk, at_norm.then_some(dh), true);
        self.v.backward(cx, h, kept.v.1, dv, at_norm.then_some(dh), true);
        if at_norm {
            self.attention_norm().backward(cx, spec, common, kept.x, dh, need_dx.then_some(dx), true);
        }
    }

    /// Forward over a KV cache: the rows append their k and v, then attend to their sequences.
    pub fn forward_cached(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, cache: &Cache, x: Buf) -> Buf {
        let (n, shape) = (cx.n, self.shape(spec, cx.n));
        let [q, k, v] = self.qkv(cx, spec, common, x);
        attention_cached::append(cx.plan, "cache k", shape, cache.capacity, common.spans, k.0, cache.k);
        attention_cached::append(cx.plan, "cache v", shape, cache.capacity, common.spans, v.0, cache.v);
        let attended = cx.plan.temp("attended", n * spec.q_width());
        let label = "attention";
        attention_cached::forward(cx.plan, label, shape, cache.capacity, common.spans, q.0, cache.k, cache.v, attended);
        self.rest(cx, spec, x, attended).5
    }
}
