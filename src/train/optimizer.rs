//! The optimizer of a run: AdamW, and how its moments are kept on the device.

use super::options::TrainOptions;
use crate::device::Device;
use crate::error::Result;
use crate::model::Patches;
use crate::ops::adamw::{self, AdamW};
use crate::ops::adamw_8bit;
use crate::plan::{Buf, Elem, Plan};

pub(super) const BETA1: f32 = 0.9;
pub(super) const BETA2: f32 = 0.999;

/// `--optim`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
pub enum Optim {
    /// Moments in f32.
    #[default]
    #[serde(rename = "adamw")]
    #[cfg_attr(not(target_arch = "wasm32"), value(name = "adamw"))]
    AdamW,
    /// Moments in blocks of 8 bits.
    #[serde(rename = "adamw_8bit")]
    #[cfg_attr(not(target_arch = "wasm32"), value(name = "adamw_8bit"))]
    AdamW8bit,
}

impl Optim {
    /// As flags and JSON spell them.
    pub const NAMES: [&str; 2] = ["adamw", "adamw_8bit"];

    /// Words of a moment of `len` floats.
    pub fn words(self, len: usize) -> usize {
        match self {
            Optim::AdamW => len,
            Optim::AdamW8bit => adamw_8bit::words(len),
        }
    }
}

/// AdamW's first and second moment as words: the bits of floats, or blocks of 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub optim: Optim,
    pub words: [Vec<u32>; 2],
}

impl Moments {
    /// Before the first step.
    pub fn zeros(optim: Optim, len: usize) -> Moments {
        Moments { optim, words: [0, 1].map(|_| vec![0; optim.words(len)]) }
    }
}

/// The optimizer in a plan.
pub(super) struct Optimizer {
    pub optim: Optim,
    /// Parameters that it steps.
    len: usize,
    moments: [Buf; 2],
    /// What the codes of 8 bits stand for.
    maps: Option<Buf>,
}

impl Optimizer {
    pub fn declare(plan: &mut Plan, optim: Optim, len: usize) -> Optimizer {
        let (elem, maps) = match optim {
            Optim::AdamW => (Elem::Float, None),
            Optim::AdamW8bit => {
                let maps = plan.persistent("values of codes", Elem::Float, adamw_8bit::maps().len());
                (Elem::Word, Some(maps))
            }
        };
        let moments = ["first moment", "second moment"].map(|label| plan.persistent(label, elem, optim.words(len)));
        Optimizer { optim, len, moments, maps }
    }

    /// Appends the step of all parameters.
    pub fn step(&self, plan: &mut Plan, o: &TrainOptions, control: Buf, clip: Buf, of: &Patches, rates: Option<Buf>) {
        let adamw = AdamW { beta1: BETA1, beta2: BETA2, eps: 1e-8, weight_decay: o.weight_decay };
        let [m, v] = self.moments;
        let state = adamw::State { params: of.params, grads: of.grads, m, v, len: self.len, rates };
        match self.maps {
            None => adamw::step(plan, adamw, control, clip, &state),
            Some(maps) => adamw_8bit::step(plan, adamw, control, clip, &state, maps),
        }
    }

    /// Bytes of parameters, gradients and moments.
    pub fn bytes(&self) -> u64 {
        (2 * self.len + 2 * self.optim.words(self.len)) as u64 * 4
    }

    /// Writes what never changes.
    pub fn write_tables(&self, device: &mut Device) {
        if let Some(maps) = self.maps {
            device.write_floats(maps, 0, &adamw_8bit::maps());
        }
    }

    pub async fn read(&self, device: &mut Device) -> Result<Moments> {
        let len = self.optim.words(self.len);
        let [m, v] = self.moments;
        let words = [device.read_words(m, 0, len).await?, device.read_words(v, 0, len).await?];
        Ok(Moments { optim: self.optim, words })
    }

    pub fn write(&self, device: &mut Device, moments: &Moments) {
        let fits = moments.optim == self.optim && moments.words.iter().all(|w| w.len() == self.optim.words(self.len));
        assert!(fits, "moments of another run");
        self.moments.iter().zip(&moments.words).for_each(|(buf, words)| device.write(*buf, 0, words));
    }

    /// Begins anew.
    pub fn clear(&self, device: &mut Device) {
        self.write(device, &Moments::zeros(self.optim, self.len));
    }
}

#[cfg(test)]
mod tests {
    use super::Optim::*;

    #[test]
    fn names_are_those_of_json() {
        let json = [AdamW, AdamW8bit].map(|o| serde_json::to_value(o).unwrap());
        assert_eq!(json, super::Optim::NAMES.map(serde_json::Value::from));
    }

    #[test]
    fn a_float_takes_two_bytes_of_moments() {
        assert_eq!([AdamW, AdamW8bit].map(|o| 2 * 4 * o.words(1 << 20)), [8 << 20, (2 << 20) + (2 << 20) / 64]);
        assert_eq!([1, 256, 257].map(|len| AdamW8bit.words(len)), [65, 65, 130]);
    }
}
