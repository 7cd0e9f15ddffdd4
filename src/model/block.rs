//! One decoder block, forward facing backward. Letters: `ops/mod.rs`.

use super::linear::{Build, Group, Saved};
use super::norm::{Gradient, Norm};
use super::seam::Patches;
use super::spec::ModelSpec;
use crate::ops::attention::{self, Shape};
use crate::ops::rope::{self, Angles};
use crate::ops::{Columns, Heads, activation, attention_cached, rows};
use crate::plan::Buf;

/// What not every family has is an Option: `x + post(attend(norm(x)))`, then the same with the MLP.
#[derive(Clone, Debug)]
pub struct Block {
    pub attention_norm: Norm,
    /// Of each head of q and k.
    pub qk_norm: Option<[Norm; 2]>,
    /// q, k and v.
    pub qkv: Group,
    pub o: Group,
    pub post_attention_norm: Option<Norm>,
    pub mlp_norm: Norm,
    /// Gate, where there is one, and up.
    pub up: Group,
    pub down: Group,
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

/// What backward needs of forward. The norms' outputs and the activation are made again, in places that are free by
/// then.
pub struct Kept {
    attention: Attention,
    attended: Buf,
    lse: Buf,
    o: Branch,
    mlp: Mlp,
}

/// The inputs of attention, [N, q | k | v].
struct Attention {
    x: Buf,
    /// As the linears gave them; v is read from here.
    raw: Buf,
    /// With the heads of q and k normed and rotated; `raw` itself where they are not normed.
    qk: Buf,
    saved: Saved,
}

/// The last linear of a half, before it joins the residual stream.
struct Branch {
    saved: Saved,
    /// Its output, where a norm follows.
    out: Option<Buf>,
}

/// The MLP's half.
struct Mlp {
    x: Buf,
    up: GateUp,
    saved: Saved,
    down: Branch,
}

/// [N, gate | up], the widest of what is kept.
enum GateUp {
    /// In the place where the gradient will be.
    Whole(Buf),
    /// As bf16.
    Packed(Buf),
}

impl Block {
    pub fn groups(&self) -> [&Group; 4] {
        [&self.qkv, &self.o, &self.up, &self.down]
    }

    fn layer(&self) -> usize {
        self.o.linears[0].site.layer
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

    /// q and k (normed by heads, rotated) and v of the normed input.
    fn attention(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, x: Buf) -> Attention {
        let n = cx.n;
        let h = self.attention_norm.forward(cx, n, x, None);
        let raw = cx.plan.temp("qkv", n * self.qkv.width());
        let saved = self.qkv.forward(cx, h, None, raw);
        let mut qk = raw;
        if let Some(norms) = self.qk_norm {
            qk = cx.plan.temp("normed qk", n * self.qkv.width());
            for (norm, at) in norms.iter().zip(self.heads(spec, n)) {
                norm.forward_heads(cx, at, raw, qk);
            }
        }
        if let Some(angles) = self.angles(spec, common) {
            rope::forward(cx.plan, "rope", self.rotated(spec, n), angles, self.within(qk, 0));
        }
        if let Some((patches, at)) = self.prefix(cx) {
            let (size, rows, [_, k, v]) = ((n, spec.kv_width()), common.virtual_rows, self.columns());
            rows::forward(cx.plan, "prefix k", size, rows, patches.param(at.0), 1.0, false, self.within(qk, k));
            rows::forward(cx.plan, "prefix v", size, rows, patches.param(at.1), 1.0, false, self.within(raw, v));
        }
        Attention { x, raw, qk, saved }
    }

    /// The first columns of q, k and v.
    fn columns(&self) -> [usize; 3] {
        std::array::from_fn(|i| self.qkv.linears[i].col)
    }

    fn within(&self, buf: Buf, col: usize) -> Columns {
        Columns { buf, ld: self.qkv.width(), col }
    }

    /// The heads of q, and those of k.
    fn heads(&self, spec: &ModelSpec, n: usize) -> [Heads; 2] {
        let [q, k, _] = self.columns();
        let ld = self.qkv.width();
        [(spec.heads, q), (spec.kv_heads, k)].map(|(heads, col)| Heads { n, heads, ld, col })
    }

    /// What is rotated: rows, the heads of q and k, the width of a head.
    fn rotated(&self, spec: &ModelSpec, n: usize) -> (usize, usize, usize) {
        (n, spec.heads + spec.kv_heads, spec.head_dim)
    }

    fn prefix<'a>(&self, cx: &Build<'a>) -> Option<(&'a Patches, (usize, usize))> {
        let patches = cx.patches?;
        Some((patches, *patches.rows.as_ref()?.prefix.get(self.layer())?))
    }

    /// `packs`: what is kept is for backward, and the run keeps it as bf16.
    pub fn forward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, x: Buf, packs: bool) -> (Buf, Kept) {
        let (mid, attention, attended, lse, o) = self.attend(cx, spec, common, x);
        let (act, up, saved) = self.activated(cx, spec, mid, packs);
        let (out, down) = join(cx, &self.down, self.post_mlp_norm, act, mid);
        (out, Kept { attention, attended, lse, o, mlp: Mlp { x: mid, up, saved, down } })
    }

    /// Forward once more, for backward's sake: the block's output is not made.
    pub fn recompute(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, x: Buf) -> Kept {
        let (mid, attention, attended, lse, o) = self.attend(cx, spec, common, x);
        let (act, up, saved) = self.activated(cx, spec, mid, cx.packs);
        let down = match self.post_mlp_norm {
            None => Branch { saved: self.down.recompute(cx, act), out: None },
            Some(_) => branch(cx, &self.down, act),
        };
        Kept { attention, attended, lse, o, mlp: Mlp { x: mid, up, saved, down } }
    }

    /// Forward over a KV cache: the rows append their k and v, then attend to their sequences.
    pub fn forward_cached(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, cache: &Cache, x: Buf) -> Buf {
        let (n, shape, spans) = (cx.n, self.shape(spec, cx.n), common.spans);
        let Attention { qk, raw, .. } = self.attention(cx, spec, common, x);
        let (label, capacity) = ("attention", cache.capacity);
        attention_cached::append(cx.plan, label, shape, capacity, spans, [qk, raw], [cache.k, cache.v]);
        let attended = cx.plan.temp("attended", n * spec.q_width());
        attention_cached::forward(cx.plan, label, shape, capacity, spans, qk, cache.k, cache.v, attended);
        let mid = join(cx, &self.o, self.post_attention_norm, attended, x).0;
        let act = self.activated(cx, spec, mid, false).0;
        join(cx, &self.down, self.post_mlp_norm, act, mid).0
    }

    /// The attention half: the residual stream after it, and what is kept.
    fn attend(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, x: Buf) -> (Buf, Attention, Buf, Buf, Branch) {
        let n = cx.n;
        let attention = self.attention(cx, spec, common, x);
        let attended = cx.plan.temp("attended", n * spec.q_width());
        let lse = cx.plan.temp("attention lse", n * spec.heads);
        let Attention { qk, raw, .. } = attention;
        attention::forward(cx.plan, "attention", self.shape(spec, n), common.spans, qk, raw, attended, lse);
        let (mid, o) = join(cx, &self.o, self.post_attention_norm, attended, x);
        (mid, attention, attended, lse, o)
    }

    /// `f(gate) ∘ up`, or `f(up)` where there is no gate, of the normed x; gate and up themselves.
    fn activated(&self, cx: &mut Build, spec: &ModelSpec, x: Buf, packs: bool) -> (Buf, GateUp, Saved) {
        let (n, f, size, gated) = (cx.n, spec.activation, (cx.n, spec.ffn), spec.gated);
        let h = self.mlp_norm.forward(cx, n, x, None);
        let up = cx.plan.temp("gate and up", n * self.up.width());
        let saved = self.up.forward(cx, h, None, up);
        let act = cx.plan.temp("activation", n * spec.ffn);
        if !packs {
            activation::forward(cx.plan, "activation", f, size, gated, up, act);
            return (act, GateUp::Whole(up), saved);
        }
        let packed = cx.plan.temp_words("packed gate and up", activation::packed_words(size, gated));
        activation::forward_packing(cx.plan, "activation", f, size, gated, up, act, packed);
        (act, GateUp::Packed(packed), saved)
    }

    /// Turns `dx`, the gradient of the block's output, into that of its input, in place; adds the adapter's gradients.
    /// Where nothing below is adapted (`need_dx` false) it stops as soon as this block's own gradients are complete.
    pub fn backward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, kept: &Kept, dx: Buf, need_dx: bool) {
        let need_mid = need_dx || cx.patches.is_some_and(|p| p.in_attention(self.layer()));
        self.mlp_backward(cx, spec, &kept.mlp, dx, need_mid);
        if !need_mid {
            return;
        }
        let d_branch = branch_gradient(cx, self.post_attention_norm, &kept.o, dx);
        let d_o = cx.plan.temp("dattended", cx.n * spec.q_width());
        let flow = self.o.backward(cx, &kept.o.saved, d_branch, Some(d_o));
        self.o.gradients(cx, &kept.o.saved, &flow, kept.attended);
        let dqkv = self.attention_backward(cx, spec, common, kept, d_o);
        let Attention { x, saved, .. } = &kept.attention;
        norm_and_group_backward(cx, &self.attention_norm, &self.qkv, (*x, saved), dqkv, dx, need_dx);
    }

    /// The MLP's half: adds to `dx`, which is left alone where nothing below needs it.
    fn mlp_backward(&self, cx: &mut Build, spec: &ModelSpec, kept: &Mlp, dx: Buf, need_dx: bool) {
        let n = cx.n;
        let d_branch = branch_gradient(cx, self.post_mlp_norm, &kept.down, dx);
        let dact = cx.plan.temp("dactivation", n * spec.ffn);
        let flow = self.down.backward(cx, &kept.down.saved, d_branch, Some(dact));
        let d_up = self.activation_backward(cx, spec, &kept.up, dact);
        let act = dact; // in its place by now
        self.down.gradients(cx, &kept.down.saved, &flow, act);
        norm_and_group_backward(cx, &self.mlp_norm, &self.up, (kept.x, &kept.saved), d_up, dx, need_dx);
    }

    /// The gradient of gate and up; the activation itself comes in the place of its own.
    fn activation_backward(&self, cx: &mut Build, spec: &ModelSpec, up: &GateUp, dact: Buf) -> Buf {
        let (f, size, gated) = (spec.activation, (cx.n, spec.ffn), spec.gated);
        match *up {
            GateUp::Whole(up) => {
                activation::backward(cx.plan, "activation", f, size, gated, dact, up);
                up
            }
            GateUp::Packed(packed) => {
                let d_up = cx.plan.temp("dgate and up", cx.n * self.up.width());
                activation::backward_packed(cx.plan, "activation", f, size, gated, dact, packed, d_up);
                d_up
            }
        }
    }

    /// The gradients of what the linears of q, k and v gave.
    fn attention_backward(&self, cx: &mut Build, spec: &ModelSpec, common: &Common, kept: &Kept, d_o: Buf) -> Buf {
        let (n, &Attention { qk, raw, .. }) = (cx.n, &kept.attention);
        let dqkv = cx.plan.temp("dqkv", n * self.qkv.width());
        let (spans, o, lse) = (common.spans, kept.attended, kept.lse);
        let buffers = attention::Backward { spans, qk, v: raw, o, lse, d_o, dqkv };
        attention::backward(cx.plan, "attention", self.shape(spec, n), &buffers);
        if let Some((patches, at)) = self.prefix(cx) {
            // What stood in the prefix's place gets none.
            let (size, rows, [_, k, v]) = ((n, spec.kv_width()), common.virtual_rows, self.columns());
            rows::backward(cx.plan, "prefix k", size, rows, patches.grad(at.0), 1.0, self.within(dqkv, k), true);
            rows::backward(cx.plan, "prefix v", size, rows, patches.grad(at.1), 1.0, self.within(dqkv, v), true);
        }
        if let Some(angles) = self.angles(spec, common) {
            rope::backward(cx.plan, "rope", self.rotated(spec, n), angles, self.within(dqkv, 0));
        }
        if let Some(norms) = self.qk_norm {
            for (norm, at) in norms.iter().zip(self.heads(spec, n)) {
                norm.backward_heads(cx, at, raw, dqkv);
            }
        }
        dqkv
    }
}

/// The first linears of a half and the norm before them: from `dy` on adds to `dx`, where it is needed below.
fn norm_and_group_backward(
    cx: &mut Build,
    norm: &Norm,
    group: &Group,
    (x, saved): (Buf, &Saved),
    dy: Buf,
    dx: Buf,
    need_dx: bool,
) {
    let (n, needs_input) = (cx.n, group.needs_input(cx));
    let dh = (need_dx || norm.is_trained(cx)).then(|| cx.plan.temp("dnormed", n * norm.width));
    let flow = group.backward(cx, saved, dy, dh);
    let h = match dh {
        Some(dh) if need_dx => {
            norm.backward(cx, n, x, dh, Gradient::Onto { dx, normed: needs_input });
            dh // holds the norm's output by now
        }
        _ => {
            if let Some(dh) = dh {
                norm.gradients(cx, n, x, dh);
            }
            if !needs_input {
                return;
            }
            norm.forward(cx, n, x, None)
        }
    };
    if needs_input {
        group.gradients(cx, saved, &flow, h);
    }
}

/// The last linear of a half by itself.
fn branch(cx: &mut Build, linear: &Group, x: Buf) -> Branch {
    let out = cx.plan.temp("branch", cx.n * linear.width());
    Branch { saved: linear.forward(cx, x, None, out), out: Some(out) }
}

/// `residual + post(linear(x))`: how both halves end.
fn join(cx: &mut Build, linear: &Group, post: Option<Norm>, x: Buf, residual: Buf) -> (Buf, Branch) {
    match post {
        None => {
            let out = cx.plan.temp("residual", cx.n * linear.width());
            (out, Branch { saved: linear.forward(cx, x, Some(residual), out), out: None })
        }
        Some(norm) => {
            let branch = branch(cx, linear, x);
            let out = branch.out.expect("a norm follows");
            (norm.forward(cx, cx.n, out, Some(residual)), branch)
        }
    }
}

/// The gradient of the last linear's output: that of the residual stream, through the norm that follows, if any.
fn branch_gradient(cx: &mut Build, post: Option<Norm>, kept: &Branch, dx: Buf) -> Buf {
    let (Some(norm), Some(out)) = (post, kept.out) else { return dx };
    let d = cx.plan.temp("dbranch", cx.n * norm.width);
    norm.backward(cx, cx.n, out, dx, Gradient::Over(d));
    d
}
