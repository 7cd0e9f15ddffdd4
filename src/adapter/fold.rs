//! The adapter folded into the base's tensors: `g ∘ (W + s·B·A) ∘ h` by rows and columns, or the trained tensor itself.

use super::method::{Adapter, Role};
use crate::error::{Error, Result};
use crate::model::ModelSpec;
use crate::model::seam::{Gain, LinearPatch};
use crate::model::tensors::Tensor;

impl Adapter {
    /// What the folded model is: the base, or the base with biases it did not have. An error where no weight can hold
    /// what was trained.
    pub fn folded_spec(&self, base: &ModelSpec) -> Result<ModelSpec> {
        if self.method.virtual_tokens() > 0 {
            let what =
                format!("{} tuning stands before the text, and no weight of the model can hold it", self.method.name());
            let hint = "keep the adapter beside the model: PEFT and luthier read it".into();
            return Err(Error::Unsupported { file: "the adapter".into(), what, hint });
        }
        let trains = |t: &Tensor| self.part(Role::Base(*t)).is_some();
        let new_bias = |part: &super::Part| match part.role {
            Role::Base(Tensor::Bias(site)) => !base.has_bias(site.module),
            _ => false,
        };
        let mut spec = base.clone();
        if self.parts.iter().any(new_bias) {
            (spec.qkv_bias, spec.o_bias, spec.mlp_bias) = (true, true, true);
        }
        let known = base.tensors();
        let missing = spec.tensors().into_iter().find(|(t, _)| !known.iter().any(|(k, _)| k == t) && !trains(t));
        assert!(missing.is_none(), "{missing:?} is neither in the base nor trained");
        Ok(spec)
    }

    /// Folds the adapter into rows `row0..` of a tensor of the base.
    pub fn fold(&self, spec: &ModelSpec, flat: &[f32], tensor: Tensor, row0: usize, values: &mut [f32]) {
        if let Some(part) = self.part(Role::Base(tensor)) {
            let less = self.family.less(tensor);
            let trained = &part.of(flat)[row0 * part.cols..][..values.len()];
            values.iter_mut().zip(trained).for_each(|(w, x)| *w = x - less);
            return;
        }
        let sites = self.sites();
        match tensor {
            Tensor::Weight(site) => {
                if let Some(patch) = sites.get(&site) {
                    let (o, i) = spec.linear_shape(site.module);
                    fold_rows(patch, flat, o, row0, i, values);
                }
            }
            Tensor::Bias(site) => {
                // A bias inside a learned gain is scaled with the rest.
                if let Some(LinearPatch { gain: Some(Gain::Learned(at)), .. }) = sites.get(&site) {
                    values.iter_mut().zip(&flat[*at..]).for_each(|(b, g)| *b *= g);
                }
            }
            _ => {}
        }
    }
}

fn fold_rows(patch: &LinearPatch, flat: &[f32], o: usize, row0: usize, cols: usize, values: &mut [f32]) {
    for (row, w) in values.chunks_exact_mut(cols).enumerate() {
        let at = row0 + row;
        if let Some(low) = patch.low_rank {
            for k in 0..low.rank {
                let b = low.scale * flat[low.b + k * o + at];
                let a = &flat[low.a + k * cols..][..cols];
                w.iter_mut().zip(a).for_each(|(w, a)| *w += b * a);
            }
        }
        let gain = match patch.gain {
            None => 1.0,
            Some(Gain::Learned(g)) => flat[g + at],
            Some(Gain::Magnitude(m)) => {
                let norm = w.iter().map(|w| *w as f64 * *w as f64).sum::<f64>().sqrt();
                (flat[m + at] as f64 / norm) as f32
            }
        };
        if gain != 1.0 {
            w.iter_mut().for_each(|w| *w *= gain);
        }
        if let Some(h) = patch.input_gain {
            w.iter_mut().zip(&flat[h..]).for_each(|(w, h)| *w *= h);
        }
    }
}
