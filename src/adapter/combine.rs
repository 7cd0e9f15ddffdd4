//! Several adapters of one base as one: `ΔW = Σ wᵢ·sᵢ·Bᵢ·Aᵢ`, in the three ways of PEFT's `add_weighted_adapter` that
//! go by no chance. The result has alpha = rank, so that its scale is 1 and all weights and scales are in its factors.

use super::factors::Factors;
use super::linalg::{Columns, jacobi, orthogonal};
use super::lora::{Lora, LoraConfig};
use super::method::Adapter;
use crate::error::{Error, Result};
use crate::model::{ModelSpec, Site};
use std::collections::BTreeSet;

/// `--combination`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
pub enum Combination {
    /// Sums of the A and of the B, each with the roots of the weights: small and quick, but its product has cross
    /// terms.
    Linear,
    /// Factors side by side: the very sum, at the sum of the ranks.
    Cat,
    /// The best approximation of the sum at a rank, by singular values.
    Svd,
}

/// The one adapter, and the share of the sum's squared norm that is in it, where something was cut off.
#[derive(Debug)]
pub struct Combined {
    pub adapter: Adapter,
    pub rank: usize,
    pub flat: Vec<f32>,
    pub kept: Option<f64>,
}

/// An adapter and the weight it gets.
pub type Weighted<'a> = (&'a Adapter, &'a [f32], f32);

/// `rank` is for `svd` alone; without it the largest rank of the adapters.
pub fn combine(spec: &ModelSpec, parts: &[Weighted], how: Combination, rank: Option<usize>) -> Result<Combined> {
    let mut taken: Vec<Vec<Factors>> = Vec::new();
    for (adapter, flat, weight) in parts {
        // The weight and the adapter's own scale are one number from here on.
        let weighted = |part: Factors| Factors { scale: part.scale * weight, ..part };
        taken.push(adapter.factors(flat, "a combination")?.into_iter().map(weighted).collect());
    }
    let ranks: Vec<usize> = taken.iter().map(|all| all.iter().map(|part| part.rank).max().unwrap_or(0)).collect();
    let rank = check(parts, &ranks, how, rank)?;
    let sites: BTreeSet<Site> = taken.iter().flatten().map(|part| part.site).collect();
    let config = LoraConfig { rank, alpha: rank as f32, ..Default::default() };
    let adapter = Adapter::new(spec, Lora::at(sites.clone(), spec, config)?);
    let (mut kept, mut whole, mut factors) = (0.0, 0.0, Vec::new());
    for site in sites {
        let here: Vec<&Factors> = taken.iter().filter_map(|all| all.iter().find(|part| part.site == site)).collect();
        factors.push(match how {
            Combination::Linear => linear(&here, rank),
            Combination::Cat => cat(&here).widened(rank),
            Combination::Svd => {
                let (factors, squares) = svd(&cat(&here), rank);
                kept += squares.0;
                whole += squares.1;
                factors
            }
        });
    }
    let kept = (how == Combination::Svd && whole > 0.0).then_some(kept / whole);
    Ok(Combined { flat: adapter.flat(&factors), adapter, rank, kept })
}

/// The rank of what comes out.
fn check(parts: &[Weighted], ranks: &[usize], how: Combination, rank: Option<usize>) -> Result<usize> {
    if parts.is_empty() {
        return Err(Error::setting("weights", "there is no adapter to combine", "name at least one"));
    }
    if let Some((.., weight)) = parts.iter().find(|(.., weight)| !weight.is_finite()) {
        return Err(Error::setting("weights", format!("{weight} is no number to multiply by"), "use plain numbers"));
    }
    let most = ranks.iter().copied().max().expect("there is one");
    match (how, rank) {
        (Combination::Svd, rank) => Ok(rank.unwrap_or(most)),
        (_, Some(rank)) => {
            let what = format!("is {rank}, and {how:?} leaves no choice of it").to_lowercase();
            Err(Error::setting("rank", what, "use it with --combination svd"))
        }
        (Combination::Cat, _) => Ok(ranks.iter().sum()),
        (Combination::Linear, _) if ranks.iter().all(|r| *r == most) => Ok(most),
        (Combination::Linear, _) => {
            let what = format!("linear adds factors of one rank, and these have {ranks:?}");
            Err(Error::setting("combination", what, "use cat, which is exact, or svd"))
        }
    }
}

/// The sign goes with A alone: in both factors it would cancel. A rank that is smaller here than elsewhere gets zeros.
fn linear(here: &[&Factors], rank: usize) -> Factors {
    let mut sum = Factors { scale: 1.0, ..here[0].widened(rank) };
    sum.a.fill(0.0);
    sum.b.fill(0.0);
    for part in here.iter().map(|part| part.widened(rank)) {
        let root = part.scale.abs().sqrt();
        sum.a.iter_mut().zip(&part.a).for_each(|(sum, a)| *sum += root.copysign(part.scale) * a);
        sum.b.iter_mut().zip(&part.b).for_each(|(sum, b)| *sum += root * b);
    }
    sum
}

fn cat(here: &[&Factors]) -> Factors {
    let rank = here.iter().map(|part| part.rank).sum();
    let (o, _) = here[0].shape();
    let a = here.iter().flat_map(|part| part.a.iter().map(move |a| a * part.scale)).collect();
    let row = |row: usize| here.iter().flat_map(move |part| part.b[row * part.rank..][..part.rank].iter().copied());
    Factors { site: here[0].site, rank, scale: 1.0, a, b: (0..o).flat_map(row).collect() }
}

/// `B·A` at another rank, and the squared norms of what is kept and of the whole. B = Q·R and Aᵀ = P·S leave a core
/// R·Sᵀ as small as the rank, whose singular values are those of the product: nothing as large as the weights is made.
fn svd(product: &Factors, rank: usize) -> (Factors, (f64, f64)) {
    let (r, (o, i)) = (product.rank, product.shape());
    let columns = |len: usize, value: &dyn Fn(usize, usize) -> f32| -> Columns {
        (0..r).map(|k| (0..len).map(|row| value(row, k) as f64).collect()).collect()
    };
    let (q, right) = orthogonal(columns(o, &|row, k| product.b[row * r + k]));
    let (p, left) = orthogonal(columns(i, &|col, k| product.a[k * i + col]));
    // Column j of the core R·Sᵀ.
    let core = (0..r).map(|j| (0..r).map(|row| (0..r).map(|k| right[k][row] * left[k][j]).sum()).collect()).collect();
    let (us, v) = jacobi(core);
    let norm = |column: &[f64]| column.iter().map(|x| x * x).sum::<f64>();
    let mut order: Vec<usize> = (0..r).collect();
    order.sort_by(|x, y| norm(&us[*y]).total_cmp(&norm(&us[*x])));
    order.truncate(rank);
    let combine = |basis: &Columns, by: &[f64], at: usize| (0..r).map(|k| basis[k][at] * by[k]).sum::<f64>() as f32;
    let a = order.iter().flat_map(|&k| (0..i).map(|col| combine(&p, &v[k], col)).collect::<Vec<_>>()).collect();
    let b = (0..o).flat_map(|row| order.iter().map(|&k| combine(&q, &us[k], row)).collect::<Vec<_>>()).collect();
    let kept = order.iter().map(|&k| norm(&us[k])).sum();
    let small = Factors { site: product.site, rank: order.len(), scale: 1.0, a, b };
    (small.widened(rank), (kept, us.iter().map(|column| norm(column)).sum()))
}
