//! Logits of every position of a short text, and how far two models' are apart: what an exported model is checked by.

use super::decoder::Inputs;
use super::load::Base;
use super::seam::{Patches, split_virtual, virtual_ids};
use crate::error::Result;
use crate::plan::{Buf, Elem};
use serde::Serialize;

/// Inputs and output for texts of one length on a base.
pub struct Logits {
    io: Inputs,
    logits: Buf,
    vocab: usize,
    padded: usize,
}

impl Logits {
    pub fn new(base: &mut Base, tokens: usize) -> Logits {
        let Base { plan, decoder, .. } = base;
        let (vocab, padded) = (decoder.spec.vocab, decoder.spec.padded_vocab());
        let io = Inputs::declare(plan, &decoder.spec, tokens, tokens);
        let logits = plan.persistent("all logits", Elem::Float, tokens * padded);
        Logits { io, logits, vocab, padded }
    }

    /// [N, V] for the ids, with an adapter or without. Each call appends a sequence to the base's plan.
    pub async fn of(&self, base: &mut Base, patches: Option<&Patches>, ids: &[u32]) -> Result<Vec<f32>> {
        let before = virtual_tokens(patches);
        let all = [&virtual_ids(before), ids].concat();
        let n = all.len();
        assert_eq!(n, self.io.n, "inputs for {} tokens", self.io.n);
        let Base { plan, device, decoder, .. } = base;
        let sequence = decoder.all_logits(plan, &self.io, patches, self.logits);
        device.prepare(plan).await?;
        self.io.write_tables(device, &decoder.spec, n);
        let (ids, virtual_rows) = split_virtual(&all);
        device.write(self.io.ids, 0, &ids);
        device.write(self.io.virtual_rows, 0, &virtual_rows);
        device.write(self.io.positions, 0, &(0..n as u32).collect::<Vec<_>>());
        device.write(self.io.spans, 0, &[0, n as u32].repeat(n));
        device.run(plan, sequence, n as u32)?;
        let rows = device.read(self.logits, 0, n * self.padded).await?;
        Ok(rows.chunks_exact(self.padded).skip(before).flat_map(|row| row[..self.vocab].to_vec()).collect())
    }
}

/// Rows that an adapter puts before a text.
pub fn virtual_tokens(patches: Option<&Patches>) -> usize {
    patches.and_then(|patches| patches.rows.as_ref()).map_or(0, |rows| rows.tokens)
}

/// Mean Kullback–Leibler divergence of the next token by `other` from that by `first`, in nats; logits [N, V].
pub fn divergence(first: &[f32], other: &[f32], vocab: usize) -> f64 {
    let rows = first.chunks_exact(vocab).zip(other.chunks_exact(vocab));
    let each = rows.map(|(p, q)| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    let mean = each.sum::<f64>() / (first.len() / vocab) as f64;
    // Not max(0.0), which makes a NaN 0.
    if mean < 0.0 { 0.0 } else { mean }
}

/// How far an export is from the live model on a text. Losses are means in nats a token, of the text itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    pub tokens: usize,
    /// [`divergence`] of the export from the live model.
    pub kl: f64,
    /// That of the base alone: how far the adapter moves it, and what `kl` is little or much of.
    pub moved: f64,
    /// Share of positions where both find the same token likeliest.
    pub same_choice: f64,
    pub loss: f64,
    pub other_loss: f64,
    /// Largest difference of a logit, relative to the largest logit.
    pub logits_apart: f64,
}

impl Agreement {
    /// Of logits [N, V] for the same ids: by the live model, by the base without the adapter, by the export.
    pub fn new(ids: &[u32], first: &[f32], base: &[f32], other: &[f32]) -> Agreement {
        let n = ids.len();
        let vocab = first.len() / n;
        assert_eq!(first.len(), other.len(), "logits of two models of one vocabulary");
        let (mut same, mut losses) = (0, [0.0; 2]);
        for (row, (p, q)) in first.chunks_exact(vocab).zip(other.chunks_exact(vocab)).enumerate() {
            let (p, q) = (log_softmax(p), log_softmax(q));
            same += usize::from(likeliest(&p) == likeliest(&q));
            if let Some(&next) = ids.get(row + 1) {
                losses[0] -= p[next as usize];
                losses[1] -= q[next as usize];
            }
        }
        let largest = first.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
        let apart = first.iter().zip(other).map(|(a, b)| (a - b).abs());
        let apart = apart.fold(0f32, |m, d| if m.is_nan() || d <= m { m } else { d });
        let targets = (n - 1).max(1) as f64;
        Agreement {
            tokens: n,
            kl: divergence(first, other, vocab),
            moved: divergence(first, base, vocab),
            same_choice: same as f64 / n as f64,
            loss: losses[0] / targets,
            other_loss: losses[1] / targets,
            logits_apart: (apart / largest) as f64,
        }
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().fold(f32::MIN, |m, x| m.max(*x)) as f64;
    let sum: f64 = logits.iter().map(|x| (*x as f64 - top).exp()).sum();
    logits.iter().map(|x| *x as f64 - top - sum.ln()).collect()
}

fn likeliest(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::Agreement;

    #[test]
    fn agreement_is_measured_as_it_is_defined() {
        let (half, ids) = ((0.5f64).ln(), [0, 1]);
        let even = [1.0, 1.0, 5.0, 5.0];
        let same = Agreement::new(&ids, &even, &even, &even);
        assert_eq!((same.kl, same.same_choice, same.logits_apart), (0.0, 1.0, 0.0));
        assert!((same.loss + half).abs() < 1e-12 && same.loss == same.other_loss);
        // At both positions the first says 1/2 : 1/2, the other 3/4 : 1/4.
        let (three, none) = ((3f32).ln(), 0.0);
        let other = Agreement::new(&ids, &[none; 4], &even, &[three, none, three, none]);
        let kl = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((other.kl - kl).abs() < 1e-7 && other.moved == 0.0, "{} and not {kl}", other.kl);
        assert!((other.other_loss - 4f64.ln()).abs() < 1e-7, "{}", other.other_loss);
    }

    #[test]
    fn what_is_no_number_agrees_with_nothing() {
        let even = [1.0, 1.0, 5.0, 5.0];
        for other in [[f32::NAN; 4], [f32::NAN, 1.0, 5.0, 5.0], [1.0, 1.0, f32::INFINITY, 5.0]] {
            let broken = Agreement::new(&[0, 1], &even, &even, &other);
            assert!(broken.kl.is_nan() && !broken.logits_apart.is_finite(), "{other:?}: {broken:?}");
        }
    }
}
