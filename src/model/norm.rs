//! RMSNorm or LayerNorm, whichever the family has: told apart by the bias. Weight and bias may be trained.

use super::linear::Build;
use super::tensors::{NormAt, Tensor};
use crate::ops::{Heads, column_sum, layernorm, rmsnorm};
use crate::plan::Buf;

#[derive(Clone, Copy, Debug)]
pub struct Norm {
    pub at: NormAt,
    pub w: Buf,
    /// LayerNorm has one.
    pub b: Option<Buf>,
    /// Values that are normed together.
    pub width: usize,
    pub eps: f32,
}

/// Where the gradient of a norm's input goes.
#[derive(Clone, Copy, Debug)]
pub enum Gradient {
    /// Overwritten.
    Over(Buf),
    /// Added to; where `normed`, dy is then turned into what forward gave, for the gradients of whatever read that.
    Onto { dx: Buf, normed: bool },
}

impl Norm {
    /// `norm(x) + residual` in a buffer of its own, for x of `rows` times the norm's width.
    pub fn forward(&self, cx: &mut Build, rows: usize, x: Buf, residual: Option<Buf>) -> Buf {
        let w = cx.vector(Tensor::Norm(self.at), self.w, self.width);
        let b = self.b.map(|b| cx.vector(Tensor::NormBias(self.at), b, self.width));
        self.normed(cx, rows, x, w, b, residual)
    }

    fn normed(&self, cx: &mut Build, rows: usize, x: Buf, w: Buf, b: Option<Buf>, residual: Option<Buf>) -> Buf {
        let y = cx.plan.temp("normed", rows * self.width);
        let size = (rows, self.width);
        match b {
            None => rmsnorm::forward(cx.plan, "norm", size, self.eps, x, w, residual, y),
            Some(b) => {
                assert!(residual.is_none(), "no family adds a residual to a LayerNorm");
                layernorm::forward(cx.plan, "norm", size, self.eps, x, w, b, y);
            }
        }
        y
    }

    /// Whether the norm itself is trained now.
    pub fn is_trained(&self, cx: &Build) -> bool {
        cx.active(Tensor::Norm(self.at)).or(cx.active(Tensor::NormBias(self.at))).is_some()
    }

    /// RMSNorm of each head of rows that are wider, which lie alike in x and y.
    pub fn forward_heads(&self, cx: &mut Build, at: Heads, x: Buf, y: Buf) {
        let w = cx.vector(Tensor::Norm(self.at), self.w, self.width);
        rmsnorm::forward_heads(cx.plan, "norm", at, self.width, self.eps, x, w, y);
    }

    /// The gradient of the norm's input `x`; adds those of what is trained.
    pub fn backward(&self, cx: &mut Build, n: usize, x: Buf, dy: Buf, dx: Gradient) {
        let (dx, accumulate, normed) = match dx {
            Gradient::Over(dx) => (dx, false, false),
            Gradient::Onto { dx, normed } => (dx, true, normed),
        };
        self.gradients(cx, n, x, dy);
        let (size, eps) = ((n, self.width), self.eps);
        let w = cx.vector(Tensor::Norm(self.at), self.w, self.width);
        match self.b {
            None => rmsnorm::backward(cx.plan, "norm", size, eps, x, w, dy, dx, accumulate, normed),
            Some(b) => {
                let b = cx.vector(Tensor::NormBias(self.at), b, self.width);
                layernorm::backward(cx.plan, "norm", size, eps, x, w, b, dy, dx, accumulate, normed);
            }
        }
    }

    /// Adds the gradients of what is trained: `dw = Σ dy ∘ x̂` with x̂ the norm of x without weight and bias,
    /// `db = Σ dy`.
    pub fn gradients(&self, cx: &mut Build, n: usize, x: Buf, dy: Buf) {
        if self.is_trained(cx) {
            let [one, zero] = cx.units;
            let unit = self.normed(cx, n, x, one, self.b.map(|_| zero), None);
            self.weight_gradient(cx, Heads::rows(n, self.width), dy, unit);
            cx.vector_grad(Tensor::NormBias(self.at), (n, self.width), dy);
        }
    }

    /// Turns the gradient of [`Norm::forward_heads`]'s output, in place, into that of its input.
    pub fn backward_heads(&self, cx: &mut Build, at: Heads, x: Buf, dy: Buf) {
        if self.is_trained(cx) {
            let unit = cx.plan.temp("unit", at.n * at.ld);
            rmsnorm::forward_heads(cx.plan, "norm", at, self.width, self.eps, x, cx.units[0], unit);
            self.weight_gradient(cx, at, dy, unit);
        }
        let w = cx.vector(Tensor::Norm(self.at), self.w, self.width);
        rmsnorm::backward_heads(cx.plan, "norm", at, self.width, self.eps, x, w, dy);
    }

    fn weight_gradient(&self, cx: &mut Build, at: Heads, dy: Buf, unit: Buf) {
        if let Some((patches, w)) = cx.active(Tensor::Norm(self.at)) {
            column_sum::heads(cx.plan, "norm", at, self.width, dy, Some(unit), patches.grad(w));
        }
    }
}
