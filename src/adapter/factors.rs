//! An adapter taken apart: the low-rank factors linear by linear, laid out as other tools have them. What those tools'
//! files hold, and what can be combined, is in here; a method with anything more is refused, with the way out.

use super::method::{Adapter, Role};
use crate::error::{Error, Result};
use crate::model::tensors::Names;
use crate::model::{ModelSpec, Module, Site};

/// `ΔW = s·B·A` at one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    pub site: Site,
    pub rank: usize,
    pub scale: f32,
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

    /// The same at a higher rank, the new rows and columns zero.
    pub fn widened(&self, rank: usize) -> Factors {
        assert!(rank >= self.rank, "rank {} cannot become {rank}", self.rank);
        let (o, i) = self.shape();
        let mut a = self.a.clone();
        a.resize(rank * i, 0.0);
        let mut b = vec![0.0; o * rank];
        for (to, from) in b.chunks_exact_mut(rank).zip(self.b.chunks_exact(self.rank)) {
            to[..self.rank].copy_from_slice(from);
        }
        Factors { site: self.site, rank, scale: self.scale, a, b }
    }

    /// The same update at another scale: what lies between them goes into B, unless it is rounding.
    pub fn scaled(mut self, scale: f32) -> Factors {
        let factor = self.scale / scale;
        if (factor - 1.0).abs() > 4.0 * f32::EPSILON {
            self.b.iter_mut().for_each(|b| *b *= factor);
        }
        self.scale = scale;
        self
    }
}

impl Adapter {
    /// An error for methods that train more than low-rank factors; `what` cannot hold them.
    pub fn factors(&self, flat: &[f32], what: &str) -> Result<Vec<Factors>> {
        if self.parts.iter().any(|part| !matches!(part.role, Role::A(_) | Role::B(_))) {
            let what = format!("{what} holds low-rank factors alone, and {} trains other tensors", self.method.name());
            let hint = match self.method.virtual_tokens() {
                0 => "write the merged model (luthier merge), which holds all of it",
                _ => "keep it in PEFT's layout: what stands before a text is in no weight",
            };
            return Err(Error::Unsupported { file: "the adapter".into(), what, hint: hint.into() });
        }
        let parts = self.parts.iter().filter_map(|part| match part.role {
            Role::A(site) => Some((site, part)),
            _ => None,
        });
        let factors = parts.map(|(site, a)| {
            let b = self.part(Role::B(site)).expect("A has its B");
            let scale = self.method.low_rank(site).scale;
            Factors { site, rank: a.rows, scale, a: a.of(flat).to_vec(), b: transpose(b.of(flat), b.rows, b.cols) }
        });
        Ok(factors.collect())
    }

    /// The inverse: the flat buffer of factors at this adapter's linears, in its shapes.
    pub fn flat(&self, factors: &[Factors]) -> Vec<f32> {
        let mut flat = vec![0.0; self.len];
        for Factors { site, rank, a, b, .. } in factors {
            let b = transpose(b, b.len() / rank, *rank);
            for (role, values) in [(Role::A(*site), a), (Role::B(*site), &b)] {
                self.part(role).expect("the linear is adapted").of_mut(&mut flat).copy_from_slice(values);
            }
        }
        flat
    }
}

/// [rows, cols] as [cols, rows].
pub fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| x[r * cols + c])).collect()
}

/// Refuses linears that the files of `whose` keep as one matrix with others: their factors would be those of the whole.
pub fn unstacked(spec: &ModelSpec, names: &Names, factors: &[Factors], whose: &str) -> Result<()> {
    let shared =
        |module: Module| spec.modules().any(|other| other != module && names.module(other) == names.module(module));
    let Some(part) = factors.iter().find(|part| shared(part.site.module) || names.transposed) else { return Ok(()) };
    let (family, module) = (spec.family, names.module(part.site.module));
    let what = format!("{whose} has {module} of {family} as another matrix, which these factors do not fit");
    let hint = "write the merged model (luthier merge), or keep the adapter in PEFT's layout";
    Err(Error::Unsupported { file: "the adapter".into(), what, hint: hint.into() })
}
