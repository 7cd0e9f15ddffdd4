//! One decoder block, forward facing backward. Letters: `ops/mod.rs`.

use super::linear::{Build, Linear, Saved};
use super::spec::ModelSpec;
use crate::ops::attention::{self, Shape};
use crate::ops::{attention_cached, rmsnorm, rope, swiglu};
use crate::plan::Buf;

#[derive(Clone, Debug)]
pub struct Block {
    pub attention_norm: Buf,
    /// Norms of each head of q and k.
    pub qk_norm: Option<[Buf; 2]>,
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
    q: Projected,
    k: Projected,
    v: Projected,
    attended: Buf,
    stats: Buf,
    o: Saved,
    mid: Buf,
    gate: (Buf, Saved),
    up: (Buf, Saved),
    down: Saved,
}

/// One of q, k and v.
#[derive(Clone, Copy)]
struct Projected {
    /// As attention sees it.
    y: Buf,
    /// As the linear gave it, before its heads were normed; `y` itself where they are not.
    raw: Buf,
    saved: Saved,
}

impl Block {
    fn shape(&self, spec: &ModelSpec, n: usize) -> Shape {
        let scale = 1.0 / (spec.head_dim as f32).sqrt();
        Shape { n, heads: spec.heads, kv_heads: spec.kv_heads, d: spec.head_dim, scale }
    }

    fn norm(&self, cx: &mut Build, spec: &ModelSpec, x: Buf, w: Buf) -> Buf {
        let y = cx.plan.temp("normed", cx.n * spec.hidden);
        rmsnorm::forward(cx.plan, "norm", (cx.n, spec.hidden), spec.eps, x, w, y);
        y
    }

    /// q, k (normed by heads, rotated) and v of the normed input.
    fn qkv(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, x: Buf) -> [Projected; 3] {
        let h = self.norm(cx, spec, x, self.attention_norm);
        let n = cx.n;
        let mut out = [&self.q, &self.k, &self.v].map(|linear| {
            let y = cx.plan.temp(linear.site.module.name(), n * linear.w.rows);
            Projected { y, raw: y, saved: linear.forward(cx, h, None, y) }
        });
        for (i, heads) in [spec.heads, spec.kv_heads].into_iter().enumerate() {
            if let Some(w) = self.qk_norm {
                out[i].y = cx.plan.temp("normed heads", n * heads * spec.head_dim);
                let size = (n * heads, spec.head_dim);
                rmsnorm::forward(cx.plan, "norm of heads", size, spec.eps, out[i].raw, w[i], out[i].y);
            }
            let y = out[i].y;
            rope::forward(cx.plan, "rope", n, heads, spec.head_dim, common.positions, common.rope_table, y);
        }
        out
    }

    pub fn forward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, x: Buf) -> (Buf, Kept) {
        let n = cx.n;
        let [q, k, v] = self.qkv(cx, spec, common, x);
        let attended = cx.plan.temp("attended", n * spec.q_width());
        let stats = cx.plan.temp("attention stats", n * spec.heads * 2);
        attention::forward(cx.plan, "attention", self.shape(spec, n), common.spans, q.y, k.y, v.y, attended, stats);
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
        let h = self.norm(cx, spec, mid, self.mlp_norm);
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
        let size = (n, spec.hidden);
        let below_mlp = need_dx || cx.patches.is_some_and(|p| p.in_attention(self.q.site.layer));

        let act = self.activation(cx, spec, kept.gate.0, kept.up.0);
        let dact = cx.plan.temp("dactivation", n * spec.ffn);
        self.down.backward(cx, act, kept.down, dx, Some(dact), false);
        swiglu::backward(cx.plan, "swiglu", n * spec.ffn, dact, kept.gate.0, kept.up.0); // now dgate, dup
        let h = self.norm(cx, spec, kept.mid, self.mlp_norm);
        let dh = cx.plan.temp("dnormed", n * spec.hidden);
        self.gate.backward(cx, h, kept.gate.1, kept.gate.0, below_mlp.then_some(dh), false);
        self.up.backward(cx, h, kept.up.1, kept.up.0, below_mlp.then_some(dh), true);
        if !below_mlp {
            return;
        }
        rmsnorm::backward(cx.plan, "mlp_norm", size, spec.eps, kept.mid, self.mlp_norm, dh, dx, true);

        let d_o = cx.plan.temp("dattended", n * spec.q_width());
        self.o.backward(cx, kept.attended, kept.o, dx, Some(d_o), false);
        let [dq, dk, dv] = [("dq", spec.q_width()), ("dk", spec.kv_width()), ("dv", spec.kv_width())]
            .map(|(name, width)| cx.plan.temp(name, n * width));
        let buffers = attention::Backward {
            spans: common.spans,
            q: kept.q.y,
            k: kept.k.y,
            v: kept.v.y,
            o: kept.attended,
            stats: kept.stats,
            d_o,
            dq,
            dk,
            dv,
        };
        attention::backward(cx.plan, "attention", shape, &buffers);
        let [dq, dk] = [(dq, kept.q, spec.heads, 0), (dk, kept.k, spec.kv_heads, 1)].map(|(d, kept, heads, i)| {
            rope::backward(cx.plan, "rope", n, heads, spec.head_dim, common.positions, common.rope_table, d);
            let Some(w) = self.qk_norm else { return d };
            let raw = cx.plan.temp("draw heads", n * heads * spec.head_dim);
            let size = (n * heads, spec.head_dim);
            rmsnorm::backward(cx.plan, "norm of heads", size, spec.eps, kept.raw, w[i], d, raw, false);
            raw
        });
        let h = self.norm(cx, spec, kept.x, self.attention_norm);
        let dh = cx.plan.temp("dnormed", n * spec.hidden);
        self.q.backward(cx, h, kept.q.saved, dq, need_dx.then_some(dh), false);
        self.k.backward(cx, h, kept.k.saved, dk, need_dx.then_some(dh), true);
        self.v.backward(cx, h, kept.v.saved, dv, need_dx.then_some(dh), true);
        if need_dx {
            rmsnorm::backward(cx.plan, "attention_norm", size, spec.eps, kept.x, self.attention_norm, dh, dx, true);
        }
    }

    /// Forward over a KV cache: the rows append their k and v, then attend to their sequences.
    pub fn forward_cached(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, cache: &Cache, x: Buf) -> Buf {
        let (n, shape) = (cx.n, self.shape(spec, cx.n));
        let [q, k, v] = self.qkv(cx, spec, common, x);
        attention_cached::append(cx.plan, "cache k", shape, cache.capacity, common.spans, k.y, cache.k);
        attention_cached::append(cx.plan, "cache v", shape, cache.capacity, common.spans, v.y, cache.v);
        let attended = cx.plan.temp("attended", n * spec.q_width());
        let label = "attention";
        attention_cached::forward(cx.plan, label, shape, cache.capacity, common.spans, q.y, cache.k, cache.v, attended);
        self.rest(cx, spec, x, attended).5
    }
}
