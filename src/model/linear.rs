//! One linear with its patch: the only place where adapters meet frozen weights (formulas: the seam's docs).

use super::seam::{Gain, LinearPatch, LowRankPatch, Patches, Site};
use super::tensors::Tensor;
use crate::format::WeightFormat;
use crate::ops::gain::Vector;
use crate::ops::matmul::{Epilogue, LowRank, Matrix, Shard};
use crate::ops::row_gain::{self, Rows};
use crate::ops::{column_sum, dropout, gain, lora_grad, matmul, rows};
use crate::plan::{Buf, Plan};

/// What layers need to append steps: the plan, the run's rows, and the small buffers everyone binds.
pub struct Build<'a> {
    pub plan: &'a mut Plan,
    pub n: usize,
    pub patches: Option<&'a Patches>,
    pub control: Buf,
    /// A small buffer bound where a kernel reads nothing.
    pub none: Buf,
    /// A word that is 0.
    pub zero: Buf,
    /// As many ones and zeros as a norm is wide; for training only.
    pub units: [Buf; 2],
    /// Dropout is for training only.
    pub dropout: bool,
}

impl<'a> Build<'a> {
    /// Where the trained copy of a tensor of the base lies, if it has one.
    pub fn replaced(&self, tensor: Tensor) -> Option<(&'a Patches, usize)> {
        let patches = self.patches?;
        Some((patches, *patches.replaced.get(&tensor)?))
    }

    /// [`Build::replaced`], where it is trained now.
    pub fn active(&self, tensor: Tensor) -> Option<(&'a Patches, usize)> {
        self.replaced(tensor).filter(|(patches, _)| patches.is_active(tensor))
    }

    /// A vector of the base, or its trained copy as a buffer of its own.
    pub fn vector(&mut self, tensor: Tensor, base: Buf, len: usize) -> Buf {
        let Some((patches, at)) = self.replaced(tensor) else { return base };
        let copy = self.plan.temp("trained vector", len);
        rows::copy(self.plan, "copy", len, self.zero, patches.param(at), copy);
        copy
    }

    /// A matrix of the base, or its trained copy.
    pub fn matrix(&self, tensor: Tensor, base: &Matrix) -> Matrix {
        match self.replaced(tensor) {
            Some((patches, at)) => flat_matrix(patches.params, at, base.rows, base.cols),
            None => base.clone(),
        }
    }

    /// Adds `Σ_n p ∘ q` to the gradient of a trained vector.
    pub fn vector_grad(&mut self, tensor: Tensor, (n, c): (usize, usize), p: Buf, q: Option<Buf>) {
        if let Some((patches, at)) = self.active(tensor) {
            column_sum::accumulate(self.plan, "vector grad", (n, c), p, q, patches.grad(at), true);
        }
    }

    /// Adds `pᵀ·q` to the gradient of a trained matrix [O, I]; p:[n, O], q:[n, I].
    pub fn matrix_grad(&mut self, tensor: Tensor, n: usize, (p, o): (Buf, usize), (q, i): (Buf, usize)) {
        if let Some((patches, at)) = self.active(tensor) {
            lora_grad::accumulate(self.plan, "matrix grad", n, p, (o, o), q, i, 1.0, patches.grads, at);
        }
    }
}

#[derive(Clone, Debug)]
pub struct Linear {
    pub site: Site,
    pub w: Matrix,
    pub bias: Option<Buf>,
}

/// What backward needs of forward.
#[derive(Clone, Copy, Debug, Default)]
pub struct Saved {
    /// dropout(x')·Aᵀ
    u: Option<Buf>,
    /// x', where the input has a gain.
    scaled: Option<Buf>,
    /// z (with the bias, where that lies inside the gain) and g.
    gained: Option<Gained>,
}

#[derive(Clone, Copy, Debug)]
struct Gained {
    z: Buf,
    g: Vector,
    /// 1/‖W + s·B·A‖ where the gain follows from a magnitude.
    inv: Option<Buf>,
}

impl Linear {
    fn label(&self) -> String {
        format!("layers.{}.{}", self.site.layer, self.site.module.name())
    }

    fn patch<'a>(&self, cx: &Build<'a>) -> Option<(&'a Patches, LinearPatch)> {
        let patches = cx.patches?;
        Some((patches, *patches.sites.get(&self.site)?))
    }

    /// W and b, or their trained copies.
    fn weights(&self, cx: &mut Build) -> (Matrix, Option<Buf>) {
        let bias = Tensor::Bias(self.site);
        let trained = cx.replaced(bias).is_some();
        let b = match self.bias {
            None if !trained => None,
            base => Some(cx.vector(bias, base.unwrap_or(cx.none), self.w.rows)),
        };
        (cx.matrix(Tensor::Weight(self.site), &self.w), b)
    }

    /// `y = g∘(h∘x·Wᵀ + s·u·Bᵀ) + bias + residual`
    pub fn forward(&self, cx: &mut Build, x: Buf, residual: Option<Buf>, y: Buf) -> Saved {
        let label = self.label();
        let (w, bias) = self.weights(cx);
        let mut epilogue = Epilogue { bias, residual, ..Default::default() };
        let mut saved = Saved::default();
        let Some((patches, patch)) = self.patch(cx) else {
            matmul::forward(cx.plan, &label, cx.n, x, &w, 1.0, epilogue, cx.none, y);
            return saved;
        };
        let x = match patch.input_gain {
            Some(at) => *saved.scaled.insert(self.scale_input(cx, patches.param(at), x)),
            None => x,
        };
        if let Some(low) = patch.low_rank {
            let u = cx.plan.temp(format!("{label} u"), cx.n * low.rank);
            let input = self.dropped(cx, low, x);
            let a = flat_matrix(patches.params, low.a, low.rank, self.w.cols);
            matmul::forward(cx.plan, &label, cx.n, input, &a, 1.0, Epilogue::default(), cx.none, u);
            epilogue.low =
                Some(LowRank { t: u, params: patches.params, offset: low.b, rank: low.rank, scale: low.scale });
            saved.u = Some(u);
        }
        let Some(g) = patch.gain else {
            matmul::forward(cx.plan, &label, cx.n, x, &w, 1.0, epilogue, cx.none, y);
            return saved;
        };
        let z = cx.plan.temp(format!("{label} z"), cx.n * w.rows);
        let (inside, outside) = if matches!(g, Gain::Learned(_)) { (bias, None) } else { (None, bias) };
        epilogue = Epilogue { bias: inside, residual: None, ..epilogue };
        matmul::forward(cx.plan, &label, cx.n, x, &w, 1.0, epilogue, cx.none, z);
        let gained = self.gain(cx, patches, patch, g, z);
        gain::forward(cx.plan, &label, (cx.n, w.rows), z, gained.g, outside, residual, cx.none, y);
        Saved { gained: Some(gained), ..saved }
    }

    fn scale_input(&self, cx: &mut Build, h: Vector, x: Buf) -> Buf {
        let label = self.label();
        let scaled = cx.plan.temp(format!("{label} scaled input"), cx.n * self.w.cols);
        gain::forward(cx.plan, &label, (cx.n, self.w.cols), x, h, None, None, cx.none, scaled);
        scaled
    }

    /// The gain as a vector. That of a magnitude is made of products with as many rows as the rank.
    fn gain(&self, cx: &mut Build, patches: &Patches, patch: LinearPatch, g: Gain, z: Buf) -> Gained {
        let magnitude = match g {
            Gain::Learned(at) => return Gained { z, g: patches.param(at), inv: None },
            Gain::Magnitude(at) => at,
        };
        let label = self.label();
        let low = patch.low_rank.expect("a magnitude comes with a low-rank update");
        let (o, i, r) = (self.w.rows, self.w.cols, low.rank);
        let a = flat_matrix(patches.params, low.a, r, i);
        let [aw, aa] = [("A·Wᵀ", o), ("A·Aᵀ", r)].map(|(what, width)| cx.plan.temp(what, r * width));
        let copy = cx.plan.temp("A", r * i);
        rows::copy(cx.plan, &label, r * i, cx.zero, patches.param(low.a), copy);
        matmul::forward(cx.plan, &label, r, copy, &self.w, 1.0, Epilogue::default(), cx.none, aw);
        matmul::forward(cx.plan, &label, r, copy, &a, 1.0, Epilogue::default(), cx.none, aa);
        let [inv, gain] = ["1/‖W + s·B·A‖", "gain"].map(|what| cx.plan.temp(what, o));
        let squares = patches.squares[&self.site];
        let of = Rows { params: patches.params, magnitude, b: low.b, rank: r, scale: low.scale, squares };
        row_gain::forward(cx.plan, &label, o, of, aw, aa, inv, gain);
        Gained { z, g: Vector { buf: gain, off: 0 }, inv: Some(inv) }
    }

    /// Adds the adapter's gradients at this linear and, where asked, makes `dx (+)= …`. `x` is forward's input.
    pub fn backward(&self, cx: &mut Build, x: Buf, saved: Saved, dy: Buf, dx: Option<Buf>, accumulate: bool) {
        let label = self.label();
        let (n, o, i) = (cx.n, self.w.rows, self.w.cols);
        let patch = self.patch(cx);
        let dz = match (patch, saved.gained) {
            (Some((patches, patch)), Some(gained)) => self.gain_backward(cx, patches, patch, gained, dy),
            _ => dy,
        };
        // A bias inside a gain is scaled with it; no method trains both.
        cx.vector_grad(Tensor::Bias(self.site), (n, o), dy, None);
        let input = saved.scaled.unwrap_or(x);
        cx.matrix_grad(Tensor::Weight(self.site), n, (dz, o), (input, i));
        let Some((patches, h)) = patch.and_then(|(patches, p)| Some((patches, p.input_gain?))) else {
            return self.product_backward(cx, input, saved, dz, dx, accumulate);
        };
        let d_scaled = cx.plan.temp(format!("{label} dscaled"), n * i);
        self.product_backward(cx, input, saved, dz, Some(d_scaled), false);
        column_sum::accumulate(cx.plan, &label, (n, i), d_scaled, Some(x), patches.grad(h), true);
        if let Some(dx) = dx {
            gain::backward(cx.plan, &label, (n, i), d_scaled, patches.param(h), dx, accumulate);
        }
    }

    /// Adds the gradient of the gain or of the magnitude behind it; returns dz.
    fn gain_backward(&self, cx: &mut Build, patches: &Patches, patch: LinearPatch, gained: Gained, dy: Buf) -> Buf {
        let (label, o) = (self.label(), self.w.rows);
        match (patch.gain.expect("there is a gain"), gained.inv) {
            (Gain::Learned(at), _) => {
                column_sum::accumulate(cx.plan, &label, (cx.n, o), dy, Some(gained.z), patches.grad(at), true);
            }
            (Gain::Magnitude(at), inv) => {
                let dg = Vector { buf: cx.plan.temp("dgain", o), off: 0 };
                column_sum::accumulate(cx.plan, &label, (cx.n, o), dy, Some(gained.z), dg, false);
                column_sum::accumulate(cx.plan, &label, (1, o), dg.buf, inv, patches.grad(at), true);
            }
        }
        let dz = cx.plan.temp(format!("{label} dz"), cx.n * o);
        gain::backward(cx.plan, &label, (cx.n, o), dy, gained.g, dz, false);
        dz
    }

    /// The gradients of A and B, and `dx (+)= dz·W + du·A`.
    fn product_backward(&self, cx: &mut Build, x: Buf, saved: Saved, dz: Buf, dx: Option<Buf>, accumulate: bool) {
        let label = self.label();
        let w = cx.matrix(Tensor::Weight(self.site), &self.w);
        let Some((patches, low)) = self.patch(cx).and_then(|(patches, p)| Some((patches, p.low_rank?))) else {
            if let Some(dx) = dx {
                matmul::backward(cx.plan, &label, cx.n, dz, &w, None, accumulate, cx.none, dx);
            }
            return;
        };
        let (n, r, s) = (cx.n, low.rank, low.scale);
        let u = saved.u.expect("a low-rank update saved u");
        let du = cx.plan.temp(format!("{label} du"), n * r);
        let b = flat_matrix(patches.params, low.b, r, w.rows);
        let trained = (low.trained, r);
        matmul::forward(cx.plan, &label, n, dz, &b, s, Epilogue::default(), cx.none, du);
        lora_grad::accumulate(cx.plan, &label, n, u, trained, dz, w.rows, s, patches.grads, low.b);
        let input = self.dropped(cx, low, x);
        lora_grad::accumulate(cx.plan, &label, n, du, trained, input, w.cols, 1.0, patches.grads, low.a);
        let Some(dx) = dx else { return };
        let term = LowRank { t: du, params: patches.params, offset: low.a, rank: r, scale: 1.0 };
        if input == x {
            matmul::backward(cx.plan, &label, n, dz, &w, Some(term), accumulate, cx.none, dx);
            return;
        }
        // With dropout, du·A passes through the mask before it joins dx.
        matmul::backward(cx.plan, &label, n, dz, &w, None, accumulate, cx.none, dx);
        let through = cx.plan.temp(format!("{label} du·A"), n * w.cols);
        let nothing = flat_matrix(patches.params, low.a, 0, w.cols);
        matmul::backward(cx.plan, &label, n, dz, &nothing, Some(term), false, cx.none, through);
        dropout::backward(cx.plan, &label, n * w.cols, self.site_number(), low.dropout, cx.control, through, dx);
    }

    /// The input of A: x itself, or x with dropout in a temporary of its own.
    fn dropped(&self, cx: &mut Build, low: LowRankPatch, x: Buf) -> Buf {
        if !cx.dropout || low.dropout == 0.0 {
            return x;
        }
        let label = self.label();
        let y = cx.plan.temp(format!("{label} dropout"), cx.n * self.w.cols);
        dropout::forward(cx.plan, &label, cx.n * self.w.cols, self.site_number(), low.dropout, cx.control, x, y);
        y
    }

    fn site_number(&self) -> u32 {
        (self.site.layer * 7) as u32 + self.site.module as u32
    }
}

/// A part of the adapter's flat buffer as a matrix [rows, cols].
fn flat_matrix(params: Buf, offset: usize, rows: usize, cols: usize) -> Matrix {
    Matrix { format: WeightFormat::F32, rows, cols, shards: vec![Shard { buf: params, row0: 0, rows, offset }] }
}
