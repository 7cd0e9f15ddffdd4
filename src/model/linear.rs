//! One linear with its patch: the only place where low-rank terms meet frozen weights (formulas: the seam's docs).

use super::seam::{LinearPatch, Patches, Site};
use crate::format::WeightFormat;
use crate::ops::matmul::{Epilogue, LowRank, Matrix, Shard};
use crate::ops::{dropout, lora_grad, matmul};
use crate::plan::{Buf, Plan};

/// What layers need to append steps: the plan, the run's rows, and the small buffers everyone binds.
pub struct Build<'a> {
    pub plan: &'a mut Plan,
    pub n: usize,
    pub patches: Option<&'a Patches>,
    pub control: Buf,
    /// A small buffer bound where a kernel reads nothing.
    pub none: Buf,
    /// Dropout is for training only.
    pub dropout: bool,
}

#[derive(Clone, Debug)]
pub struct Linear {
    pub site: Site,
    pub w: Matrix,
    pub bias: Option<Buf>,
}

/// What backward needs of forward: u = dropout(x)·Aᵀ.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    u: Option<Buf>,
}

impl Linear {
    fn label(&self) -> String {
        format!("layers.{}.{}", self.site.layer, self.site.module.name())
    }

    fn patch<'a>(&self, cx: &Build<'a>) -> Option<(&'a Patches, LinearPatch)> {
        let patches = cx.patches?;
        Some((patches, *patches.sites.get(&self.site)?))
    }

    /// `y = x·Wᵀ + s·u·Bᵀ + bias + residual`
    pub fn forward(&self, cx: &mut Build, x: Buf, residual: Option<Buf>, y: Buf) -> Saved {
        let label = self.label();
        let mut epilogue = Epilogue { bias: self.bias, residual, ..Default::default() };
        let mut saved = Saved { u: None };
        if let Some((patches, patch)) = self.patch(cx) {
            let u = cx.plan.temp(format!("{label} u"), cx.n * patch.rank);
            let input = self.dropped(cx, patch, x);
            let a = factor(patches.params, patch.a, patch.rank, self.w.cols);
            matmul::forward(cx.plan, &label, cx.n, input, &a, 1.0, Epilogue::default(), cx.none, u);
            epilogue.low =
                Some(LowRank { t: u, params: patches.params, offset: patch.b, rank: patch.rank, scale: patch.scale });
            saved.u = Some(u);
        }
        matmul::forward(cx.plan, &label, cx.n, x, &self.w, 1.0, epilogue, cx.none, y);
        saved
    }

    /// Adds dA and dBᵀ to the gradients and, where asked, `dx (+)= dy·W + du·A`. `x` is forward's input.
    pub fn backward(&self, cx: &mut Build, x: Buf, saved: Saved, dy: Buf, dx: Option<Buf>, accumulate: bool) {
        let label = self.label();
        let Some((patches, patch)) = self.patch(cx) else {
            if let Some(dx) = dx {
                matmul::backward(cx.plan, &label, cx.n, dy, &self.w, None, accumulate, cx.none, dx);
            }
            return;
        };
        let (n, r, s) = (cx.n, patch.rank, patch.scale);
        let u = saved.u.expect("a patched linear saved u");
        let du = cx.plan.temp(format!("{label} du"), n * r);
        let b = factor(patches.params, patch.b, r, self.w.rows);
        matmul::forward(cx.plan, &label, n, dy, &b, s, Epilogue::default(), cx.none, du);
        lora_grad::accumulate(cx.plan, &label, n, u, r, dy, self.w.rows, s, patches.grads, patch.b);
        let input = self.dropped(cx, patch, x);
        lora_grad::accumulate(cx.plan, &label, n, du, r, input, self.w.cols, 1.0, patches.grads, patch.a);
        let Some(dx) = dx else { return };
        let low = LowRank { t: du, params: patches.params, offset: patch.a, rank: r, scale: 1.0 };
        if input == x {
            matmul::backward(cx.plan, &label, n, dy, &self.w, Some(low), accumulate, cx.none, dx);
            return;
        }
        // With dropout, du·A passes through the mask before it joins dx.
        matmul::backward(cx.plan, &label, n, dy, &self.w, None, accumulate, cx.none, dx);
        let through = cx.plan.temp(format!("{label} du·A"), n * self.w.cols);
        let nothing = factor(patches.params, patch.a, 0, self.w.cols);
        matmul::backward(cx.plan, &label, n, dy, &nothing, Some(low), false, cx.none, through);
        dropout::backward(cx.plan, &label, n * self.w.cols, self.site_number(), patch.dropout, cx.control, through, dx);
    }

    /// The input of A: x itself, or x with dropout in a temporary of its own.
    fn dropped(&self, cx: &mut Build, patch: LinearPatch, x: Buf) -> Buf {
        if !cx.dropout || patch.dropout == 0.0 {
            return x;
        }
        let label = self.label();
        let y = cx.plan.temp(format!("{label} dropout"), cx.n * self.w.cols);
        dropout::forward(cx.plan, &label, cx.n * self.w.cols, self.site_number(), patch.dropout, cx.control, x, y);
        y
    }

    fn site_number(&self) -> u32 {
        (self.site.layer * 7) as u32 + self.site.module as u32
    }
}

/// A factor of the adapter as a matrix [rows, cols].
fn factor(params: Buf, offset: usize, rows: usize, cols: usize) -> Matrix {
    Matrix { format: WeightFormat::F32, rows, cols, shards: vec![Shard { buf: params, row0: 0, rows, offset }] }
}
