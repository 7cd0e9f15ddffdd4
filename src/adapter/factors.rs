//! An adapter taken apart: the low-rank factors linear by linear, laid out as other tools have them. Whatever writes,
//! reads or combines adapters works on these; this file alone knows how they lie in the flat buffer.

use super::lora::Lora;
use crate::model::Site;

/// `ΔW = s·B·A` at one linear, without the scale s, which belongs to the adapter as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    pub site: Site,
    pub rank: usize,
    /// [R, I]
    pub a: Vec<f32>,
    /// [O, R]
    pub b: Vec<f32>,
}

impl Factors {
    /// (O, I) of the linear.
    pub fn shape(&self) -> (usize, usize) {
        (self.b.len() / self.rank, self.a.len() / self.rank)
    }

    /// The same product at a higher rank, the new rows and columns zero, with B multiplied by `factor`.
    pub fn widened(&self, rank: usize, factor: f32) -> Factors {
        assert!(rank >= self.rank, "rank {} cannot become {rank}", self.rank);
        let (o, i) = self.shape();
        let mut a = self.a.clone();
        a.resize(rank * i, 0.0);
        let mut b = vec![0.0; o * rank];
        for (to, from) in b.chunks_exact_mut(rank).zip(self.b.chunks_exact(self.rank)) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * factor);
        }
        Factors { site: self.site, rank, a, b }
    }
}

impl Lora {
    pub fn factors(&self, flat: &[f32]) -> Vec<Factors> {
        let parts = self.sites.iter().map(|(site, patch)| {
            let ((o, i), rank) = (self.shapes[site], patch.rank);
            let b = transpose(&flat[patch.b..patch.b + rank * o], rank, o);
            Factors { site: *site, rank, a: flat[patch.a..patch.a + rank * i].to_vec(), b }
        });
        parts.collect()
    }

    /// The inverse: the flat buffer of factors at this adapter's linears, in its shapes.
    pub fn flat(&self, factors: &[Factors]) -> Vec<f32> {
        let mut flat = vec![0.0; self.len];
        for part in factors {
            let (patch, (o, i)) = (self.sites[&part.site], self.shapes[&part.site]);
            assert_eq!((part.rank, part.shape()), (patch.rank, (o, i)), "{:?}", part.site);
            flat[patch.a..patch.a + patch.rank * i].copy_from_slice(&part.a);
            flat[patch.b..patch.b + patch.rank * o].copy_from_slice(&transpose(&part.b, o, patch.rank));
        }
        flat
    }
}

/// [rows, cols] as [cols, rows].
pub fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| x[r * cols + c])).collect()
}
