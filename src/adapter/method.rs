//! The seam behind which the methods stand. A method says which tensors are trained, what they are and how they start;
//! all the rest (their place in the flat buffer, the model's patches, the optimizer, names in files) follows from that.
//!
//! All parts lie in one flat buffer, each at a multiple of 4 floats, in the order the method names them. Gradients
//! and AdamW's moments have the same layout; moments of 8 bits are cut into blocks across all parts.

use super::linalg::Dense;
use crate::error::Result;
use crate::model::family::Family;
use crate::model::load::Opened;
use crate::model::seam::{Gain, LowRankPatch, Virtual};
use crate::model::tensors::Tensor;
use crate::model::{LinearPatch, ModelSpec, Patches, Site};
use crate::num::{normal, uniform};
use crate::ops::row_squares;
use crate::plan::{Buf, Elem, Plan};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

/// What a trained tensor does to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A:[R, I] of a low-rank update; those of the linears that files fuse with this one have no A of their own.
    A(Site),
    /// Its Bᵀ:[R, O].
    B(Site),
    /// Multiplies the output: [1, O].
    Gain(Site),
    /// Multiplies the input: [1, I].
    InputGain(Site),
    /// The length of each row of W + s·B·A: [1, O].
    Magnitude(Site),
    /// Stands in place of a tensor of the base.
    Base(Tensor),
    /// Embeddings before the text: [tokens, C].
    Prompt,
    /// Keys before the text in a layer: [tokens, kv width].
    PrefixK(usize),
    PrefixV(usize),
}

/// How a part starts. A pure function of the seed and the base.
#[derive(Clone, Debug, PartialEq)]
pub enum Initial {
    Zero,
    One,
    /// Uniform in ± this.
    Uniform(f64),
    /// Normal around 0 with this deviation.
    Normal(f64),
    /// The base's own values.
    Base(Tensor),
    /// The lengths of the rows of a matrix of the base.
    RowNorms(Tensor),
    /// The embeddings of a text, repeated or cut to the part's rows.
    Text(String),
    /// The embeddings of tokens drawn from the vocabulary.
    Vocabulary,
    /// A factor of a part of the linear's own weight, and then the same with the sign that takes it back, frozen.
    Factor(Taken),
}

/// Which part of a weight low-rank factors start as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// That of the largest singular values.
    Principal,
    /// That of the first columns, by Q and R.
    Leading,
}

/// A low-rank update's settings at a linear.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRank {
    pub scale: f32,
    pub dropout: f32,
    /// The last ranks that stay as they are.
    pub frozen: usize,
}

/// A parameter-efficient method with its settings, for a model.
pub trait Method: Debug + Send + Sync {
    /// What `--method` calls it.
    fn name(&self) -> &'static str;

    /// The trained tensors with their rows and columns.
    fn parts(&self, spec: &ModelSpec) -> Vec<(Role, [usize; 2])>;

    fn initial(&self, role: Role, shape: [usize; 2]) -> Initial;

    /// Settings of the low-rank update at a linear that has one.
    fn low_rank(&self, _site: Site) -> LowRank {
        LowRank { scale: 1.0, dropout: 0.0, frozen: 0 }
    }

    /// What the learning rate of a part is multiplied with.
    fn rate(&self, _role: Role) -> f32 {
        1.0
    }

    /// The same with another ratio of learning rates (LoRA+), which is a run's and in no file; none where there is no
    /// ratio.
    fn with_ratio(&self, _ratio: f32) -> Option<Arc<dyn Method>> {
        None
    }

    /// Steps after which other blocks are trained, where not all are at the same time.
    fn interval(&self) -> Option<u64> {
        None
    }

    /// The blocks of a drawing, in order; asked for only where there is an interval.
    fn drawn(&self, _seed: u64, _drawing: u64) -> Vec<usize> {
        Vec::new()
    }

    /// Rows that stand before each text.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// `adapter_config.json`, without the keys that all methods share. It begins with `peft_type`, or with
    /// `luthier_method` where PEFT has no such method.
    fn config(&self) -> Value;

    /// Whether PEFT reads what was trained.
    fn is_peft(&self) -> bool {
        self.config().get("peft_type").is_some()
    }
}

/// A trained tensor in the flat buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    pub role: Role,
    pub at: usize,
    pub rows: usize,
    pub cols: usize,
}

impl Part {
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its floats in a flat buffer.
    pub fn of<'a>(&self, flat: &'a [f32]) -> &'a [f32] {
        &flat[self.at..self.at + self.len()]
    }

    pub fn of_mut<'a>(&self, flat: &'a mut [f32]) -> &'a mut [f32] {
        &mut flat[self.at..self.at + self.len()]
    }
}

/// A method laid out for a model.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub method: Arc<dyn Method>,
    pub parts: Vec<Part>,
    /// Floats of the flat buffer, padding included.
    pub len: usize,
    /// Of the model: embeddings have whole groups of 4 rows in the buffer, and this many in files.
    pub vocab: usize,
    /// Whose names the files use.
    pub family: &'static Family,
}

impl Adapter {
    pub fn new(spec: &ModelSpec, method: impl Method + 'static) -> Adapter {
        Adapter::of(spec, Arc::new(method))
    }

    pub fn of(spec: &ModelSpec, method: Arc<dyn Method>) -> Adapter {
        let (mut parts, mut len) = (Vec::new(), 0usize);
        for (role, [rows, cols]) in method.parts(spec) {
            parts.push(Part { role, at: len, rows, cols });
            len = (len + rows * cols).next_multiple_of(4);
        }
        Adapter { method, parts, len, vocab: spec.vocab, family: spec.family }
    }

    pub fn part(&self, role: Role) -> Option<&Part> {
        self.parts.iter().find(|part| part.role == role)
    }

    /// What the flat buffer's meaning depends on.
    pub fn layout(&self) -> String {
        format!("{} of {} numbers", self.method.config(), self.len)
    }

    /// Numbers that are trained, without padding.
    pub fn parameters(&self) -> u64 {
        self.parts.iter().map(|part| self.trained(part)).sum()
    }

    /// Of [`Adapter::parameters`], those that stand in place of none of the base's.
    pub fn added(&self, spec: &ModelSpec) -> u64 {
        let base: Vec<Tensor> = spec.tensors().into_iter().map(|(tensor, _)| tensor).collect();
        let added = |part: &&Part| !matches!(part.role, Role::Base(tensor) if base.contains(&tensor));
        self.parts.iter().filter(added).map(|part| self.trained(part)).sum()
    }

    fn trained(&self, part: &Part) -> u64 {
        ((self.rows_of(part) - self.frozen(part)) * part.cols) as u64
    }

    /// The rows of a part that files have: padding is not among them.
    pub fn rows_of(&self, part: &Part) -> usize {
        if matches!(part.role, Role::Base(Tensor::Embed | Tensor::Head)) { self.vocab } else { part.rows }
    }

    /// The last rows of a part that are not trained.
    fn frozen(&self, part: &Part) -> usize {
        match part.role {
            Role::A(site) | Role::B(site) => self.method.low_rank(site).frozen,
            _ => 0,
        }
    }

    /// What needs no base to start from; the other parts are zero.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        let mut flat = vec![0.0; self.len];
        // Random parts are counted apart, so that their numbers do not depend on what lies between them.
        let mut stream = 0;
        for part in &self.parts {
            let draw: &dyn Fn(u64, u64) -> f64 = match self.method.initial(part.role, [part.rows, part.cols]) {
                Initial::One => {
                    part.of_mut(&mut flat).fill(1.0);
                    continue;
                }
                Initial::Uniform(bound) => &move |stream, j| (2.0 * uniform(seed, stream, j) - 1.0) * bound,
                Initial::Normal(deviation) => &move |stream, j| normal(seed, stream, j) * deviation,
                _ => continue,
            };
            for (j, x) in part.of_mut(&mut flat).iter_mut().enumerate() {
                *x = draw(stream, j as u64) as f32;
            }
            stream += 1;
        }
        flat
    }

    /// The start of a run: [`Adapter::init`], and what is read from the base. `encode` turns text to ids.
    pub async fn start(
        &self,
        seed: u64,
        opened: &Opened<'_>,
        encode: impl Fn(&str) -> Result<Vec<u32>>,
    ) -> Result<Vec<f32>> {
        let (mut flat, mut factors) = (self.init(seed), Vec::new());
        for part in &self.parts {
            let (values, cols) = (part.of_mut(&mut flat), part.cols);
            match self.method.initial(part.role, [part.rows, part.cols]) {
                // Where the base lacks the tensor (a bias), it starts at zero.
                Initial::Base(tensor) if opened.spec.tensors().iter().any(|(t, _)| *t == tensor) => {
                    let more = opened.spec.family.less(tensor);
                    let read = async |row: usize, rows: Vec<f32>| {
                        let out = values[row * cols..].iter_mut().zip(rows);
                        out.for_each(|(out, w)| *out = w + more);
                        Ok(())
                    };
                    opened.read(tensor, read).await?;
                }
                Initial::RowNorms(tensor) => {
                    let width = opened.spec.tensors().iter().find(|(t, _)| *t == tensor).map_or(1, |(_, s)| s[1]);
                    let norm = |row: &[f32]| row.iter().map(|w| *w as f64 * *w as f64).sum::<f64>().sqrt() as f32;
                    let norms = |rows: Vec<f32>| rows.chunks(width as usize).map(norm).collect::<Vec<_>>();
                    opened.read(tensor, async |row, rows| copy(&mut values[row..], &norms(rows))).await?;
                }
                Initial::Factor(taken) => {
                    if let Role::A(site) = part.role {
                        factors.push((site, taken));
                    }
                }
                Initial::Text(text) => {
                    let ids = encode(&text)?;
                    let ids: Vec<u32> = ids.into_iter().cycle().take(part.rows).collect();
                    embeddings(opened, &ids, values).await?;
                }
                Initial::Vocabulary => {
                    let vocab = opened.spec.vocab as f64;
                    let ids: Vec<u32> = (0..part.rows).map(|i| (uniform(seed, 1, i as u64) * vocab) as u32).collect();
                    embeddings(opened, &ids, values).await?;
                }
                _ => {}
            }
        }
        for (site, taken) in factors {
            self.start_factors(seed, opened, site, taken, &mut flat).await?;
        }
        Ok(flat)
    }

    /// A and the Bs of a linear as a part of its weight `s·B·A`, followed by the frozen −B and A that take it back.
    async fn start_factors(
        &self,
        seed: u64,
        opened: &Opened<'_>,
        site: Site,
        taken: Taken,
        flat: &mut [f32],
    ) -> Result<()> {
        let (mut w, path) = (Vec::new(), self.family.hf.path(site));
        let fused = |part: &&Part| matches!(part.role, Role::B(b) if self.family.hf.path(b) == path);
        for part in self.parts.iter().filter(fused) {
            let Role::B(b) = part.role else { unreachable!() };
            let append = async |_, rows: Vec<f32>| {
                w.extend(rows);
                Ok(())
            };
            opened.read(Tensor::Weight(b), append).await?;
        }
        let a = self.part(Role::A(site)).expect("the linear has an A");
        let (i, rank) = (a.cols, a.rows / 2);
        let dense = Dense { w: &w, o: w.len() / i, i };
        let (left, right) = match taken {
            Taken::Principal => dense.principal(rank, seed),
            Taken::Leading => dense.leading(rank),
        };
        let root = (self.method.low_rank(site).scale as f64).sqrt();
        for (k, row) in a.of_mut(flat).chunks_mut(i).enumerate() {
            row.iter_mut().zip(&right[k % rank]).for_each(|(x, a)| *x = (a / root) as f32);
        }
        let mut row0 = 0;
        for part in self.parts.iter().filter(fused) {
            for (k, row) in part.of_mut(flat).chunks_mut(part.cols).enumerate() {
                let sign = if k < rank { 1.0 } else { -1.0 };
                let b = left[k % rank][row0..].iter();
                row.iter_mut().zip(b).for_each(|(x, b)| *x = (sign * b / root) as f32);
            }
            row0 += part.cols;
        }
        Ok(())
    }

    /// The factor of the learning rate for each float; none where all are 1.
    pub fn rates(&self) -> Option<Vec<f32>> {
        let rated = |part: &Part| self.method.rate(part.role) != 1.0 || self.frozen(part) > 0;
        self.parts.iter().any(rated).then(|| {
            let mut rates = vec![1.0; self.len];
            for part in &self.parts {
                let (trained, frozen) =
                    part.of_mut(&mut rates).split_at_mut((part.rows - self.frozen(part)) * part.cols);
                trained.fill(self.method.rate(part.role));
                frozen.fill(0.0);
            }
            rates
        })
    }

    /// What happens at each linear, in order of layer and module.
    pub fn sites(&self) -> BTreeMap<Site, LinearPatch> {
        let mut sites = BTreeMap::<Site, LinearPatch>::new();
        // Linears that files fuse share the A before their Bs.
        let mut shared = 0;
        for part in &self.parts {
            match part.role {
                Role::A(_) => shared = part.at,
                Role::B(site) => {
                    let LowRank { scale, dropout, frozen } = self.method.low_rank(site);
                    let (rank, a, b) = (part.rows, shared, part.at);
                    let low = LowRankPatch { rank, trained: rank - frozen, scale, a, b, dropout };
                    sites.entry(site).or_default().low_rank = Some(low);
                }
                Role::Gain(site) => sites.entry(site).or_default().gain = Some(Gain::Learned(part.at)),
                Role::Magnitude(site) => sites.entry(site).or_default().gain = Some(Gain::Magnitude(part.at)),
                Role::InputGain(site) => sites.entry(site).or_default().input_gain = Some(part.at),
                Role::Base(_) | Role::Prompt | Role::PrefixK(_) | Role::PrefixV(_) => {}
            }
        }
        sites
    }

    fn rows(&self) -> Option<Virtual> {
        let tokens = self.method.virtual_tokens();
        let at = |role: Role| self.part(role).map(|part| part.at);
        let prefix = (0..).map_while(|l| Some((at(Role::PrefixK(l))?, at(Role::PrefixV(l))?))).collect();
        (tokens > 0).then(|| Virtual { tokens, embeddings: at(Role::Prompt), prefix })
    }

    /// Declares the buffers the model reads and adds gradients to.
    pub fn declare(&self, plan: &mut Plan, train: bool) -> Patches {
        let params = plan.persistent("adapter", Elem::Float, self.len);
        let grads = if train { plan.persistent("adapter gradients", Elem::Float, self.len) } else { Buf(params.0) };
        let replaced = self.parts.iter().filter_map(|part| match part.role {
            Role::Base(tensor) => Some((tensor, part.at)),
            _ => None,
        });
        let magnitudes = self.parts.iter().filter_map(|part| match part.role {
            Role::Magnitude(site) => Some((site, plan.persistent("row squares", Elem::Float, part.cols))),
            _ => None,
        });
        let squares = magnitudes.collect();
        Patches {
            params,
            grads,
            sites: self.sites(),
            replaced: replaced.collect(),
            rows: self.rows(),
            squares,
            active: None,
        }
    }

    /// Appends the steps to be run once before any other, where there are any: what is known of frozen weights.
    pub fn prologue(&self, plan: &mut Plan, patches: &Patches, decoder: &crate::model::Decoder) -> Option<usize> {
        if patches.squares.is_empty() {
            return None;
        }
        let sequence = plan.begin("prologue");
        for (site, out) in &patches.squares {
            row_squares::forward(plan, "row squares", &decoder.linear(*site).w, *out);
        }
        Some(sequence)
    }
}

fn copy(to: &mut [f32], from: &[f32]) -> Result<()> {
    to[..from.len()].copy_from_slice(from);
    Ok(())
}

/// The embeddings of tokens as the model sees them, one after the other.
async fn embeddings(opened: &Opened<'_>, ids: &[u32], out: &mut [f32]) -> Result<()> {
    let (c, scale) = (opened.spec.hidden, opened.spec.embed_scale);
    opened
        .read(Tensor::Embed, async |row0, rows| {
            for (id, out) in ids.iter().zip(out.chunks_mut(c)) {
                if let Some(row) = (*id as usize).checked_sub(row0).filter(|row| *row < rows.len() / c) {
                    out.iter_mut().zip(&rows[row * c..][..c]).for_each(|(out, w)| *out = scale * w);
                }
            }
            Ok(())
        })
        .await
}
