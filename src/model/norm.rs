//! RMSNorm or LayerNorm, whichever the family has: told apart by the bias. Weight and bias may be trained.

use super::linear::Build;
use super::tensors::{NormAt, Tensor};
use crate::ops::{layernorm, rmsnorm};
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

    /// `dx (+)=` the gradient of the norm's input `x`, where it is asked for; adds the gradients of what is trained:
    /// `dw = Σ dy ∘ x̂` with x̂ the norm of x without weight and bias, `db = Σ dy`.
    pub fn backward(&self, cx: &mut Build, rows: usize, x: Buf, dy: Buf, dx: Option<Buf>, accumulate: bool) {
        let size = (rows, self.width);
        if self.is_trained(cx) {
            let [one, zero] = cx.units;
            let unit = self.normed(cx, rows, x, one, self.b.map(|_| zero), None);
            cx.vector_grad(Tensor::Norm(self.at), size, dy, Some(unit));
            cx.vector_grad(Tensor::NormBias(self.at), size, dy, None);
        }
        let Some(dx) = dx else { return };
        let w = cx.vector(Tensor::Norm(self.at), self.w, self.width);
        match self.b {
            None => rmsnorm::backward(cx.plan, "norm", size, self.eps, x, w, dy, dx, accumulate),
            Some(_) => layernorm::backward(cx.plan, "norm", size, self.eps, x, w, dy, dx, accumulate),
        }
    }
}
