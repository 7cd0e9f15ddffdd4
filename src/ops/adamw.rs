//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019), as `torch.optim.AdamW`, over one flat buffer.
//! Contract: `shaders/parts/adamw.wgsl`. Gradients are consumed: they are zero afterwards, ready for the next window.

use super::control::{BIAS1, BIAS2, LR};
use super::{kernel, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd::simd;

params!(Params { len: u32, beta1: f32, beta2: f32, eps: f32, weight_decay: f32, rated: u32, pad0: u32, pad1: u32 });

kernel!(ADAMW, "adamw", "forward", [Read, Read, ReadWrite, ReadWrite, ReadWrite, ReadWrite, Read], Params, [Direct "adamw" [64, 1, 1]], twin);

#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

/// The four flat buffers of `len` floats.
#[derive(Clone, Copy, Debug)]
pub struct State {
    pub params: Buf,
    pub grads: Buf,
    pub m: Buf,
    pub v: Buf,
    pub len: usize,
    /// A factor of the learning rate for each float: 0 freezes it. Without it all are 1.
    pub rates: Option<Buf>,
}

impl Params {
    pub(super) fn of(a: AdamW, s: &State) -> Params {
        Params {
            len: s.len as u32,
            beta1: a.beta1,
            beta2: a.beta2,
            eps: a.eps,
            weight_decay: a.weight_decay,
            rated: s.rates.is_some() as u32,
            ..Default::default()
        }
    }
}

pub fn step(plan: &mut Plan, a: AdamW, control: Buf, clip: Buf, s: &State) {
    plan.push(
        &ADAMW,
        Params::of(a, s),
        &[control, clip, s.params, s.grads, s.m, s.v, s.rates.unwrap_or(clip)],
        [s.len as u32, 1, 1],
    );
}

fn twin<F: Float>(call: &mut Call<F>) {
    let (len, rule) = (call.params::<Params>().len as usize, Rule::of(call));
    let [params, grads, m, v] = [2, 3, 4, 5].map(|i| &mut call.f_mut(i)[..len]);
    match rule {
        Some(rule) => rule.update(0, params, grads, m, v),
        None => grads.fill(F::ZERO),
    }
}

/// What a step does to each float.
pub(super) struct Rule<'a, F> {
    p: Params,
    clip: F,
    lr: F,
    bias: [F; 2],
    /// Of all floats, where they differ.
    rates: Option<&'a [F]>,
}

impl<'a, F: Float> Rule<'a, F> {
    /// None when the run is halted: then gradients are zeroed, and nothing else happens.
    pub fn of(call: &Call<'a, F>) -> Option<Rule<'a, F>> {
        let p: Params = call.params();
        let (control, clip) = (call.w(0), call.f(1));
        let at = |i: usize| F::of32(f32::from_bits(control[i]));
        let rates = (p.rated == 1).then(|| call.f(6));
        let rule = Rule { p, clip: clip[0], lr: at(LR), bias: [at(BIAS1), at(BIAS2)], rates };
        (clip[1] != F::ONE).then_some(rule)
    }

    /// Steps the floats from number `first` on.
    pub fn update(&self, first: usize, params: &mut [F], grads: &mut [F], m: &mut [F], v: &mut [F]) {
        let Some(rates) = self.rates else { return update(params, grads, m, v, self.rates_by(F::ONE)) };
        let mut at = 0;
        for run in rates[first..][..params.len()].chunk_by(|a, b| a == b) {
            let next = at..at + run.len();
            at = next.end;
            let (params, grads) = (&mut params[next.clone()], &mut grads[next.clone()]);
            update(params, grads, &mut m[next.clone()], &mut v[next], self.rates_by(run[0]));
        }
    }

    fn rates_by(&self, factor: F) -> Rates<F> {
        let (lr, [bias1, bias2]) = (factor * self.lr, self.bias);
        Rates {
            clip: self.clip,
            beta1: F::of32(self.p.beta1),
            beta2: F::of32(self.p.beta2),
            bias2,
            eps: F::of32(self.p.eps),
            decay: F::ONE - lr * F::of32(self.p.weight_decay),
            lr: lr / bias1,
        }
    }
}

struct Rates<F> {
    clip: F,
    beta1: F,
    beta2: F,
    bias2: F,
    eps: F,
    decay: F,
    /// Learning rate over the first moment's bias correction.
    lr: F,
}

simd! {
    fn update<F: Float>(params: &mut [F], grads: &mut [F], m: &mut [F], v: &mut [F], r: Rates<F>) {
        for (((p, grad), m), v) in params.iter_mut().zip(grads).zip(m).zip(v) {
            let g = *grad * r.clip;
            *m = r.beta1 * *m + (F::ONE - r.beta1) * g;
            *v = r.beta2 * *v + (F::ONE - r.beta2) * g * g;
            *p = *p * r.decay - r.lr * *m / ((*v / r.bias2).sqrt() + r.eps);
            *grad = F::ZERO;
        }
    }
}
