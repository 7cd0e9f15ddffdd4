//! RMSNorm or LayerNorm, whichever the family has: told apart by the bias.

use super::linear::Build;
use crate::ops::{layernorm, rmsnorm};
use crate::plan::Buf;

#[derive(Clone, Copy, Debug)]
pub struct Norm {
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
        let y = cx.plan.temp("normed", rows * self.width);
        let size = (rows, self.width);
        match self.b {
            None => rmsnorm::forward(cx.plan, "norm", size, self.eps, x, self.w, residual, y),
            Some(b) => {
                assert!(residual.is_none(), "no family adds a residual to a LayerNorm");
                layernorm::forward(cx.plan, "norm", size, self.eps, x, self.w, b, y);
            }
        }
        y
    }

    /// `dx (+)=` the gradient of the norm's input `x`.
    pub fn backward(&self, cx: &mut Build, rows: usize, x: Buf, dy: Buf, dx: Buf, accumulate: bool) {
        let size = (rows, self.width);
        match self.b {
            None => rmsnorm::backward(cx.plan, "norm", size, self.eps, x, self.w, dy, dx, accumulate),
            Some(_) => layernorm::backward(cx.plan, "norm", size, self.eps, x, self.w, dy, dx, accumulate),
        }
    }
}
