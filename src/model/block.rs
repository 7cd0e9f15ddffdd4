//! One decoder block, forward facing backward. Letters: `ops/mod.rs`.

use super::linear::{Build, Linear, Saved};
use super::norm::Norm;
use super::seam::Patches;
use super::spec::ModelSpec;
use crate::ops::attention::{self, Shape};
use crate::ops::rope::{self, Angles};
use crate::ops::{activation, attention_cached, rows};
use crate::plan::Buf;

/// What not every family has is an Option: `x + post(attend(norm(x)))`, then the same with the MLP.
#[derive(Clone, Debug)]
pub struct Block {
    pub attention_norm: Norm,
    /// Of each head of q and k.
    pub qk_norm: Option<[Norm; 2]>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub post_attention_norm: Option<Norm>,
    pub mlp_norm: Norm,
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
    pub post_mlp_norm: Option<Norm>,
}

/// The inputs that all blocks of a run share.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    pub positions: Buf,
    /// Document spans in training, cache slots in generation.
    pub spans: Buf,
    pub rope_table: Buf,
    /// Positions that the rotary table was made for.
    pub max_position: usize,
    /// [N]: which row of the adapter's table stands here, or NONE.
    pub virtual_rows: Buf,
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
    lse: Buf,
    o: Branch,
    mlp: Mlp,
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

/// The last linear of a half, before it joins the residual stream.
#[derive(Clone, Copy)]
struct Branch {
    saved: Saved,
    /// Its output, where a norm follows.
    out: Option<Buf>,
}

/// The MLP's half.
struct Mlp {
    x: Buf,
    gate: Option<(Buf, Saved)>,
    up: (Buf, Saved),
    down: Branch,
}

impl Block {
    fn layer(&self) -> usize {
        self.q.site.layer
    }

    fn shape(&self, spec: &ModelSpec, n: usize) -> Shape {
        Shape {
            n,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            d: spec.head_dim,
            scale: spec.score_scale(),
            cap: spec.attention_cap.unwrap_or(0.0),
            window: spec.window(self.layer()),
        }
    }

    /// How q and k are rotated, where they are.
    fn angles(&self, spec: &ModelSpec, common: &Common) -> Option<Angles> {
        let first = spec.rope_first(self.layer(), common.max_position)?;
        Some(Angles { positions: common.positions, table: common.rope_table, first })
    }

    /// q, k (normed by heads, rotated) and v of the normed input.
    fn qkv(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, x: Buf) -> [Projected; 3] {
        let n = cx.n;
        let h = self.attention_norm.forward(cx, n, x, None);
        let mut out = [&self.q, &self.k, &self.v].map(|linear| {
            let y = cx.plan.temp(linear.site.module.name(), n * linear.w.rows);
            Projected { y, raw: y, saved: linear.forward(cx, h, None, y) }
        });
        for (i, heads) in [spec.heads, spec.kv_heads].into_iter().enumerate() {
            if let Some(norms) = self.qk_norm {
                out[i].y = norms[i].forward(cx, n * heads, out[i].raw, None);
            }
            if let Some(angles) = self.angles(spec, common) {
                rope::forward(cx.plan, "rope", (n, heads, spec.head_dim), angles, out[i].y);
            }
        }
        self.insert_prefix(cx, spec, common, out[1].y, out[2].y);
        out
    }

    /// What a prefix puts in place of the keys and values of its rows.
    fn insert_prefix(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, k: Buf, v: Buf) {
        if let Some((patches, at)) = self.prefix(cx) {
            let (size, rows) = ((cx.n, spec.kv_width()), common.virtual_rows);
            rows::forward(cx.plan, "prefix k", size, rows, patches.param(at.0), 1.0, false, k);
            rows::forward(cx.plan, "prefix v", size, rows, patches.param(at.1), 1.0, false, v);
        }
    }

    /// The prefix's gradients; what stood in its place gets none.
    fn prefix_backward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, dk: Buf, dv: Buf) {
        if let Some((patches, at)) = self.prefix(cx) {
            let (size, rows) = ((cx.n, spec.kv_width()), common.virtual_rows);
            rows::backward(cx.plan, "prefix k", size, rows, patches.grad(at.0), 1.0, dk, true);
            rows::backward(cx.plan, "prefix v", size, rows, patches.grad(at.1), 1.0, dv, true);
        }
    }

    fn prefix<'a>(&self, cx: &Build<'a>) -> Option<(&'a Patches, (usize, usize))> {
        let patches = cx.patches?;
        Some((patches, *patches.rows.as_ref()?.prefix.get(self.layer())?))
    }

    pub fn forward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, x: Buf) -> (Buf, Kept) {
        let n = cx.n;
        let [q, k, v] = self.qkv(cx, spec, common, x);
        let attended = cx.plan.temp("attended", n * spec.q_width());
        let lse = cx.plan.temp("attention lse", n * spec.heads);
        attention::forward(cx.plan, "attention", self.shape(spec, n), common.spans, q.y, k.y, v.y, attended, lse);
        let (mid, o) = join(cx, &self.o, self.post_attention_norm, attended, x);
        let (out, mlp) = self.mlp(cx, spec, mid);
        (out, Kept { x, q, k, v, attended, lse, o, mlp })
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
        let mid = join(cx, &self.o, self.post_attention_norm, attended, x).0;
        self.mlp(cx, spec, mid).0
    }

    fn mlp(&self, cx: &mut Build, spec: &ModelSpec, x: Buf) -> (Buf, Mlp) {
        let n = cx.n;
        let h = self.mlp_norm.forward(cx, n, x, None);
        let mut linear = |linear: &Linear| {
            let y = cx.plan.temp(linear.site.module.name(), n * spec.ffn);
            (y, linear.forward(cx, h, None, y))
        };
        let (gate, up) = (self.gate.as_ref().map(&mut linear), linear(&self.up));
        let act = self.activation(cx, spec, gate.map(|gate| gate.0), up.0);
        let (out, down) = join(cx, &self.down, self.post_mlp_norm, act, x);
        (out, Mlp { x, gate, up, down })
    }

    /// `f(gate) ∘ up`, or `f(up)` where there is no gate.
    fn activation(&self, cx: &mut Build, spec: &ModelSpec, gate: Option<Buf>, up: Buf) -> Buf {
        let len = cx.n * spec.ffn;
        let y = cx.plan.temp("activation", len);
        let (x, times) = gate.map_or((up, None), |gate| (gate, Some(up)));
        activation::forward(cx.plan, "activation", spec.activation, len, x, times, y);
        y
    }

    /// Turns `dx`, the gradient of the block's output, into that of its input, in place; adds the adapter's gradients.
    /// Where nothing below is adapted (`need_dx` false) it stops as soon as this block's own gradients are complete.
    pub fn backward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, kept: &Kept, dx: Buf, need_dx: bool) {
        let n = cx.n;
        let need_mid = need_dx || cx.patches.is_some_and(|p| p.in_attention(self.layer()));
        self.mlp_backward(cx, spec, &kept.mlp, dx, need_mid);
        if !need_mid {
            return;
        }
        let d_branch = branch_gradient(cx, self.post_attention_norm, kept.o, dx);
        let d_o = cx.plan.temp("dattended", n * spec.q_width());
        self.o.backward(cx, kept.attended, kept.o.saved, d_branch, Some(d_o), false);
        let [dq, dk, dv] = self.attention_backward(cx, spec, common, kept, d_o);
        let need_dh = need_dx || self.attention_norm.is_trained(cx);
        let h = self.attention_norm.forward(cx, n, kept.x, None);
        let dh = cx.plan.temp("dnormed", n * spec.hidden);
        self.q.backward(cx, h, kept.q.saved, dq, need_dh.then_some(dh), false);
        self.k.backward(cx, h, kept.k.saved, dk, need_dh.then_some(dh), true);
        self.v.backward(cx, h, kept.v.saved, dv, need_dh.then_some(dh), true);
        if need_dh {
            self.attention_norm.backward(cx, n, kept.x, dh, need_dx.then_some(dx), true);
        }
    }

    /// The MLP's half: adds to `dx`, which is left alone where nothing below needs it.
    fn mlp_backward(&self, cx: &mut Build, spec: &ModelSpec, kept: &Mlp, dx: Buf, need_dx: bool) {
        let (n, len) = (cx.n, cx.n * spec.ffn);
        let gate = kept.gate.map(|gate| gate.0);
        let act = self.activation(cx, spec, gate, kept.up.0);
        let dact = cx.plan.temp("dactivation", len);
        let d_branch = branch_gradient(cx, self.post_mlp_norm, kept.down, dx);
        self.down.backward(cx, act, kept.down.saved, d_branch, Some(dact), false);
        let (x, times) = gate.map_or((kept.up.0, None), |gate| (gate, Some(kept.up.0)));
        activation::backward(cx.plan, "activation", spec.activation, len, dact, x, times); // now dgate, dup
        let need_dh = need_dx || self.mlp_norm.is_trained(cx);
        let h = self.mlp_norm.forward(cx, n, kept.x, None);
        let dh = cx.plan.temp("dnormed", n * spec.hidden);
        if let (Some(linear), Some((dgate, saved))) = (&self.gate, kept.gate) {
            linear.backward(cx, h, saved, dgate, need_dh.then_some(dh), false);
        }
        self.up.backward(cx, h, kept.up.1, kept.up.0, need_dh.then_some(dh), self.gate.is_some());
        if need_dh {
            self.mlp_norm.backward(cx, n, kept.x, dh, need_dx.then_some(dx), true);
        }
    }

    /// Gradients of what the linears of q, k and v gave.
    fn attention_backward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, kept: &Kept, d_o: Buf) -> [Buf; 3] {
        let n = cx.n;
        let [dq, dk, dv] = [("dq", spec.q_width()), ("dk", spec.kv_width()), ("dv", spec.kv_width())]
            .map(|(name, width)| cx.plan.temp(name, n * width));
        let buffers = attention::Backward {
            spans: common.spans,
            q: kept.q.y,
            k: kept.k.y,
            v: kept.v.y,
            o: kept.attended,
            lse: kept.lse,
            d_o,
            dq,
            dk,
            dv,
        };
        attention::backward(cx.plan, "attention", self.shape(spec, n), &buffers);
        self.prefix_backward(cx, spec, common, dk, dv);
        let [dq, dk] = [(dq, kept.q, spec.heads, 0), (dk, kept.k, spec.kv_heads, 1)].map(|(d, kept, heads, i)| {
            if let Some(angles) = self.angles(spec, common) {
                rope::backward(cx.plan, "rope", (n, heads, spec.head_dim), angles, d);
            }
            let Some(norms) = self.qk_norm else { return d };
            let raw = cx.plan.temp("draw heads", n * heads * spec.head_dim);
            norms[i].backward(cx, n * heads, kept.raw, d, Some(raw), false);
            raw
        });
        [dq, dk, dv]
    }
}

/// `residual + post(linear(x))`: how both halves end.
fn join(cx: &mut Build, linear: &Linear, post: Option<Norm>, x: Buf, residual: Buf) -> (Buf, Branch) {
    let out = cx.plan.temp("residual", cx.n * linear.w.rows);
    match post {
        None => (out, Branch { saved: linear.forward(cx, x, Some(residual), out), out: None }),
        Some(norm) => {
            let saved = linear.forward(cx, x, None, out);
            (norm.forward(cx, cx.n, out, Some(residual)), Branch { saved, out: Some(out) })
        }
    }
}

/// The gradient of the last linear's output: that of the residual stream, through the norm that follows, if any.
fn branch_gradient(cx: &mut Build, post: Option<Norm>, kept: Branch, dx: Buf) -> Buf {
    let (Some(norm), Some(out)) = (post, kept.out) else { return dx };
    let d = cx.plan.temp("dbranch", cx.n * norm.width);
    norm.backward(cx, cx.n, out, dx, Some(d), false);
    d
}
