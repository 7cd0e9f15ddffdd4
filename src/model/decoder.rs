//! The decoder: weights declared in a plan, and the sequences for training, evaluation and generation.

use super::block::{Block, Cache, Common, Kept};
use super::linear::{Build, Group, Linear};
use super::norm::{Gradient, Norm};
use super::seam::{Module, Patches, Site};
use super::spec::ModelSpec;
use super::tensors::{NormAt, Tensor};
use crate::device::Device;
use crate::format::WeightFormat;
use crate::ops::cross_entropy::{self, Chunk};
use crate::ops::gain::Vector;
use crate::ops::low_rank::Narrow;
use crate::ops::matmul::{self, Epilogue, Matrix, Shard};
use crate::ops::{control, embedding, gather, rows, softcap};
use crate::plan::{Buf, Elem, Plan, SequenceId};

/// The frozen base model as buffers of a plan.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub spec: ModelSpec,
    pub embed: Matrix,
    /// Learned positions.
    pub positions: Option<Matrix>,
    /// The embedding itself where the head is tied.
    pub head: Matrix,
    pub norm: Norm,
    pub blocks: Vec<Block>,
    /// A small buffer bound where a kernel reads nothing.
    pub none: Buf,
    /// A word that is 0.
    pub zero: Buf,
}

impl Decoder {
    /// Declares the buffers. `format` says how each matrix is stored; matrices over `max_binding` bytes are split by
    /// rows.
    pub fn declare(
        plan: &mut Plan,
        spec: &ModelSpec,
        format: impl Fn(Tensor) -> WeightFormat,
        max_binding: u64,
    ) -> Decoder {
        let s = spec;
        let norm = |plan: &mut Plan, at: NormAt| {
            let width = s.norm_width(at);
            let mut vector = |tensor| plan.persistent(s.hf_name(tensor), Elem::Float, width);
            let w = vector(Tensor::Norm(at));
            Norm { at, w, b: s.layer_norm.then(|| vector(Tensor::NormBias(at))), width, eps: s.eps }
        };
        let embed = matrix(plan, "embed_tokens", s.padded_vocab(), s.hidden, format(Tensor::Embed), max_binding);
        let head = match s.tied {
            true => embed.clone(),
            false => matrix(plan, "lm_head", s.padded_vocab(), s.hidden, format(Tensor::Head), max_binding),
        };
        let positions = s
            .rope
            .is_none()
            .then(|| matrix(plan, "positions", s.context, s.hidden, format(Tensor::Positions), max_binding));
        let last = norm(plan, NormAt::Final);
        let mut blocks = Vec::with_capacity(s.layers);
        for layer in 0..s.layers {
            let group = |plan: &mut Plan, modules: &[Module]| {
                let modules = modules.iter().filter(|module| s.gated || **module != Module::Gate);
                let sites: Vec<Site> = modules.map(|module| Site { layer, module: *module }).collect();
                group(plan, s, &sites, &format, max_binding)
            };
            blocks.push(Block {
                attention_norm: norm(plan, NormAt::Attention(layer)),
                qk_norm: s.qk_norm.then(|| [NormAt::Q(layer), NormAt::K(layer)].map(|at| norm(plan, at))),
                qkv: group(plan, &[Module::Q, Module::K, Module::V]),
                o: group(plan, &[Module::O]),
                post_attention_norm: s.post_norms.then(|| norm(plan, NormAt::PostAttention(layer))),
                mlp_norm: norm(plan, NormAt::Mlp(layer)),
                up: group(plan, &[Module::Gate, Module::Up]),
                down: group(plan, &[Module::Down]),
                post_mlp_norm: s.post_norms.then(|| norm(plan, NormAt::PostMlp(layer))),
            });
        }
        let none = plan.persistent("none", Elem::Float, 4);
        let zero = plan.persistent("zero", Elem::Word, 4);
        Decoder { spec: spec.clone(), embed, positions, head, norm: last, blocks, none, zero }
    }

    /// How most of the weights are stored.
    pub fn main_format(&self) -> WeightFormat {
        let mut shares = std::collections::BTreeMap::new();
        let linears = self.blocks.iter().flat_map(Block::groups).flat_map(|group| &group.linears);
        for w in linears.map(|l| &l.w).chain([&self.embed]) {
            *shares.entry(w.format).or_insert(0) += w.rows * w.cols;
        }
        shares.into_iter().max_by_key(|(_, size)| *size).expect("a model has an embedding").0
    }

    /// The matrix a tensor is stored in; norms and biases are vectors.
    pub fn matrix(&self, tensor: Tensor) -> Option<&Matrix> {
        match tensor {
            Tensor::Embed => Some(&self.embed),
            Tensor::Positions => self.positions.as_ref(),
            Tensor::Head => Some(&self.head),
            Tensor::Weight(site) => Some(&self.linear(site).w),
            _ => None,
        }
    }

    /// Where a tensor that is a vector lies.
    pub fn vector(&self, tensor: Tensor) -> Option<Vector> {
        let whole = |buf| Vector { buf, off: 0 };
        match tensor {
            Tensor::Norm(at) => self.norm_at(at).map(|norm| whole(norm.w)),
            Tensor::NormBias(at) => self.norm_at(at)?.b.map(whole),
            Tensor::Bias(site) => self.linear(site).bias,
            _ => None,
        }
    }

    fn norm_at(&self, at: NormAt) -> Option<Norm> {
        match at {
            NormAt::Final => Some(self.norm),
            NormAt::Attention(l) => Some(self.blocks[l].attention_norm),
            NormAt::PostAttention(l) => self.blocks[l].post_attention_norm,
            NormAt::Mlp(l) => Some(self.blocks[l].mlp_norm),
            NormAt::PostMlp(l) => self.blocks[l].post_mlp_norm,
            NormAt::Q(l) => self.blocks[l].qk_norm.map(|[q, _]| q),
            NormAt::K(l) => self.blocks[l].qk_norm.map(|[_, k]| k),
        }
    }

    pub fn linear(&self, site: Site) -> &Linear {
        let mut linears = self.blocks[site.layer].groups().into_iter().flat_map(|group| &group.linears);
        linears.find(|linear| linear.site == site).expect("a site of the model")
    }

    /// Embedded tokens, with the adapter's rows where those stand, and learned positions where the family has them.
    fn embed(&self, cx: &mut Build, ids: Buf, positions: Buf, virtual_rows: Buf) -> Buf {
        let (size, scale) = ((cx.n, self.spec.hidden), self.spec.embed_scale);
        let x = cx.plan.temp("embedded", cx.n * self.spec.hidden);
        embedding::forward(cx.plan, "embed", cx.n, ids, &self.embed, scale, false, x);
        if let Some((patches, at)) = cx.replaced(Tensor::Embed) {
            rows::forward(cx.plan, "trained embed", size, ids, patches.param(at), scale, false, x);
        }
        if let Some((patches, at)) = virtual_embeddings(cx) {
            rows::forward(cx.plan, "virtual tokens", size, virtual_rows, patches.param(at), 1.0, false, x);
        }
        match (&self.positions, cx.replaced(Tensor::Positions)) {
            (_, Some((patches, at))) => {
                rows::forward(cx.plan, "trained positions", size, positions, patches.param(at), 1.0, true, x);
            }
            (Some(learned), None) => {
                embedding::forward(cx.plan, "positions", cx.n, positions, learned, 1.0, true, x);
            }
            (None, None) => {}
        }
        x
    }

    /// Gradients of trained embeddings. `dx` is used up.
    fn embed_backward(&self, cx: &mut Build, io: &Inputs, dx: Buf) {
        let size = (cx.n, self.spec.hidden);
        if let Some((patches, at)) = cx.replaced(Tensor::Positions) {
            rows::backward(cx.plan, "trained positions", size, io.positions, patches.grad(at), 1.0, dx, false);
        }
        if let Some((patches, at)) = virtual_embeddings(cx) {
            rows::backward(cx.plan, "virtual tokens", size, io.virtual_rows, patches.grad(at), 1.0, dx, true);
        }
        if let Some((patches, at)) = cx.replaced(Tensor::Embed) {
            let scale = self.spec.embed_scale;
            rows::backward(cx.plan, "trained embed", size, io.ids, patches.grad(at), scale, dx, false);
        }
    }

    /// The tensor that the head is: the embedding itself where it is tied.
    fn head_tensor(&self) -> Tensor {
        if self.spec.tied { Tensor::Embed } else { Tensor::Head }
    }

    /// `logits = cap(x·headᵀ)` for `rows` rows.
    fn logits(&self, cx: &mut Build, rows: usize, x: Buf, logits: Buf) {
        let head = cx.matrix(self.head_tensor(), &self.head);
        matmul::forward(cx.plan, "lm_head", rows, x, &head, 1.0, Epilogue::default(), cx.none, logits);
        if let Some(cap) = self.spec.final_cap {
            softcap::forward(cx.plan, "lm_head", rows * self.spec.padded_vocab(), cap, logits);
        }
    }
}

fn virtual_embeddings<'a>(cx: &Build<'a>) -> Option<(&'a Patches, usize)> {
    let patches = cx.patches?;
    Some((patches, patches.rows.as_ref()?.embeddings?))
}

/// Linears of one input: one matrix, where all are stored alike, and one bias.
fn group(
    plan: &mut Plan,
    spec: &ModelSpec,
    sites: &[Site],
    format: impl Fn(Tensor) -> WeightFormat,
    max_binding: u64,
) -> Group {
    let names: Vec<&str> = sites.iter().map(|site| site.module.name()).collect();
    let label = |names: &[&str]| format!("layers.{}.{}", sites[0].layer, names.join("+"));
    let formats: Vec<WeightFormat> = sites.iter().map(|site| format(Tensor::Weight(*site))).collect();
    let widths: Vec<usize> = sites.iter().map(|site| spec.linear_shape(site.module).0).collect();
    let cols = spec.linear_shape(sites[0].module).1;
    let width = widths.iter().sum();
    let alike = formats.iter().all(|format| *format == formats[0]);
    let joined = alike.then(|| matrix(plan, &label(&names), width, cols, formats[0], max_binding));
    let bias = spec.has_bias(sites[0].module);
    let bias = bias.then(|| plan.persistent(format!("{}.bias", label(&names)), Elem::Float, width));
    let mut col = 0;
    let linears = sites.iter().enumerate().map(|(i, site)| {
        let (rows, first) = (widths[i], col);
        col += rows;
        let w = match &joined {
            Some(joined) => joined.slice(first..first + rows),
            None => matrix(plan, &label(&names[i..=i]), rows, cols, formats[i], max_binding),
        };
        Linear { site: *site, w, bias: bias.map(|buf| Vector { buf, off: first }), col: first }
    });
    Group { linears: linears.collect() }
}

fn matrix(plan: &mut Plan, label: &str, rows: usize, cols: usize, format: WeightFormat, max_binding: u64) -> Matrix {
    let words = format.words(cols);
    let most = ((max_binding / (words as u64 * 4)) as usize / 4 * 4).max(4);
    let shards = (0..rows).step_by(most).map(|row0| {
        let rows = most.min(rows - row0);
        Shard { buf: plan.persistent(format!("{label}[{row0}..]"), Elem::Word, rows * words), row0, rows, offset: 0 }
    });
    Matrix { format, rows, cols, shards: shards.collect() }
}

/// What the host writes for a micro-batch of N = B·T tokens, and what it reads back.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    pub n: usize,
    pub ids: Buf,
    pub positions: Buf,
    /// [N, 2]: first row and one past the last row of each row's document.
    pub spans: Buf,
    /// [N]: targets of the supervised rows, one after the other; NONE beyond.
    pub targets: Buf,
    /// [N]: the supervised rows; NONE beyond.
    pub rows: Buf,
    /// [N]: for each row its place among the supervised rows, or NONE.
    pub inverse: Buf,
    /// [N]: which row of the adapter's table stands here, or NONE.
    pub virtual_rows: Buf,
    pub control: Buf,
    /// [N, 4] per supervised row: loss, hit, log-sum-exp.
    pub row_results: Buf,
    /// Report ring: loss sum, hits, gradient norm, applied.
    pub ring: Buf,
    pub rope_table: Buf,
    max_position: usize,
    /// [C] ones and [C] zeros, for gradients of norms.
    units: [Buf; 2],
}

impl Inputs {
    pub fn declare(plan: &mut Plan, spec: &ModelSpec, n: usize, max_position: usize) -> Inputs {
        let mut words = |label: &str, len| plan.persistent(label, Elem::Word, len);
        let (ids, positions, spans) = (words("ids", n), words("positions", n), words("spans", 2 * n));
        let (targets, rows, inverse) = (words("targets", n), words("supervised rows", n), words("inverse rows", n));
        let virtual_rows = words("virtual rows", n);
        let control = words("control", control::WORDS);
        let mut floats = |label: &str, len| plan.persistent(label, Elem::Float, len);
        Inputs {
            n,
            ids,
            positions,
            spans,
            targets,
            rows,
            inverse,
            virtual_rows,
            control,
            row_results: floats("row results", n * cross_entropy::ROW),
            ring: floats("report ring", control::RING_SLOTS * control::REPORT),
            rope_table: floats("rope table", spec.rope_len(max_position)),
            max_position,
            units: ["ones", "zeros"].map(|label| floats(label, spec.hidden.max(spec.head_dim))),
        }
    }

    /// Writes what never changes, for rows of up to `max_position` tokens; the plan is prepared.
    pub fn write_tables(&self, device: &mut Device, spec: &ModelSpec, max_position: usize) {
        device.write_floats(self.rope_table, 0, &spec.rope_table(max_position));
        device.write_floats(self.units[0], 0, &vec![1.0; spec.hidden.max(spec.head_dim)]);
    }

    fn common(&self) -> Common {
        let Inputs { positions, spans, rope_table, max_position, virtual_rows, .. } = *self;
        Common { positions, spans, rope_table, max_position, virtual_rows }
    }
}

/// Bytes of logits that may exist at a time.
const LOGITS_BYTES: usize = 48 << 20;

/// Supervised rows in a chunk of the head.
pub fn head_chunk(spec: &ModelSpec, n: usize) -> usize {
    (LOGITS_BYTES / (4 * spec.padded_vocab())).clamp(8, 1024).next_multiple_of(8).min(n)
}

/// The sequences of one shape [B, T].
#[derive(Clone, Copy, Debug)]
pub struct LossSequences {
    /// Forward, loss and backward: adds to the adapter's gradients.
    pub train: Option<SequenceId>,
    /// Forward and loss.
    pub evaluate: SequenceId,
}

/// What a training step keeps from forward to backward.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// The activations of the upper so many blocks; those of the others are recomputed.
    pub blocks: usize,
    /// The widest of them as bf16, in recomputed blocks as well: how many are kept must not change a bit of the result.
    pub packed: bool,
}

impl Decoder {
    /// Appends "evaluate" and, where something is to be trained and kept, "train".
    pub fn loss_sequences(
        &self,
        plan: &mut Plan,
        io: &Inputs,
        patches: Option<&Patches>,
        train: Option<Keep>,
    ) -> LossSequences {
        let evaluate = plan.begin("evaluate");
        let mut cx = self.build(plan, io.n, patches, io.control, false);
        let (x, _) = self.trunk(&mut cx, io, |_| false);
        let hidden = self.norm.forward(&mut cx, io.n, x, None);
        self.head_loss(&mut cx, io, hidden, None);
        let train = train.map(|keep| self.train_sequence(plan, io, patches.expect("something to train"), keep));
        LossSequences { train, evaluate }
    }

    /// Appends the logits [N, padded vocab] of every position.
    pub fn all_logits(&self, plan: &mut Plan, io: &Inputs, patches: Option<&Patches>, logits: Buf) -> SequenceId {
        let sequence = plan.begin("all logits");
        let mut cx = self.build(plan, io.n, patches, io.control, false);
        let (x, _) = self.trunk(&mut cx, io, |_| false);
        let hidden = self.norm.forward(&mut cx, io.n, x, None);
        self.logits(&mut cx, io.n, hidden, logits);
        sequence
    }

    fn build<'a>(
        &self,
        plan: &'a mut Plan,
        n: usize,
        patches: Option<&'a Patches>,
        control: Buf,
        dropout: bool,
    ) -> Build<'a> {
        let (none, zero, units) = (self.none, self.zero, [self.none; 2]);
        Build { plan, n, patches, control, none, zero, units, dropout, packs: false }
    }

    /// Appends a "train" sequence: forward, loss and backward.
    pub fn train_sequence(&self, plan: &mut Plan, io: &Inputs, patches: &Patches, keep: Keep) -> SequenceId {
        let sequence = plan.begin("train");
        let (spec, common) = (&self.spec, io.common());
        let lowest = patches.lowest_layer(self.blocks.len());
        let first_kept = self.blocks.len().saturating_sub(keep.blocks).max(lowest);
        let mut cx = self.build(plan, io.n, Some(patches), io.control, true);
        (cx.units, cx.packs) = (io.units, keep.packed);
        let (x, mut states) = self.trunk(&mut cx, io, |layer| layer >= first_kept);
        let hidden = self.norm.forward(&mut cx, io.n, x, None);
        let d_hidden = cx.plan.temp("dfinal", io.n * spec.hidden);
        self.head_loss(&mut cx, io, hidden, Some(d_hidden));
        let dx = cx.plan.temp("dresidual", io.n * spec.hidden);
        self.norm.backward(&mut cx, io.n, x, d_hidden, Gradient::Over(dx));
        for layer in (lowest..self.blocks.len()).rev() {
            let block = &self.blocks[layer];
            let (input, kept) = states.pop().expect("each layer has a state");
            // Recomputing a block appends its forward steps again; the first pass's temporaries then end early.
            let kept = kept.unwrap_or_else(|| block.recompute(&mut cx, spec, &common, input));
            block.backward(&mut cx, spec, &common, &kept, dx, layer > lowest || patches.embeds());
        }
        self.embed_backward(&mut cx, io, dx);
        sequence
    }

    /// Embedding and blocks: what comes out, the inputs of the blocks, and the activations of those that `keep` names.
    fn trunk(&self, cx: &mut Build, io: &Inputs, keep: impl Fn(usize) -> bool) -> (Buf, Vec<(Buf, Option<Kept>)>) {
        let mut x = self.embed(cx, io.ids, io.positions, io.virtual_rows);
        let mut states = Vec::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            let (out, kept) = block.forward(cx, &self.spec, &io.common(), x, cx.packs && keep(layer));
            states.push((x, keep(layer).then_some(kept)));
            x = out;
        }
        (x, states)
    }

    /// Loss of the supervised rows, chunk by chunk; with `d_hidden`, also its gradient.
    fn head_loss(&self, cx: &mut Build, io: &Inputs, hidden: Buf, d_hidden: Option<Buf>) {
        let (c, ld, n) = (self.spec.hidden, self.spec.padded_vocab(), io.n);
        let rows = head_chunk(&self.spec, n);
        for first in (0..n).step_by(rows) {
            let m = rows.min(n - first);
            let chunk = Chunk { m, first, v: self.spec.vocab, ld, cap: self.spec.final_cap.unwrap_or(0.0) };
            let beyond = if first == 0 { 0 } else { first as u32 };
            let skip = std::mem::replace(&mut cx.plan.skip_up_to, beyond);
            let h = cx.plan.temp("supervised", m * c);
            let logits = cx.plan.temp("logits", m * ld);
            gather::forward(cx.plan, (m, first), c, io.rows, hidden, h);
            self.logits(cx, m, h, logits);
            cross_entropy::forward(cx.plan, chunk, io.targets, logits, io.row_results);
            if let Some(d_hidden) = d_hidden {
                cross_entropy::backward(cx.plan, chunk, io.control, io.targets, io.row_results, logits);
                let dh = cx.plan.temp("dsupervised", m * c);
                let head = cx.matrix(self.head_tensor(), &self.head);
                let dlogits = Narrow { buf: logits, width: ld };
                cx.matrix_grad(self.head_tensor(), m, (dlogits, 0, ld), (h, c));
                matmul::backward(cx.plan, "lm_head", m, logits, &head, None, false, cx.none, dh);
                gather::backward(cx.plan, n, (m, first), c, io.inverse, dh, d_hidden);
            }
            cx.plan.skip_up_to = skip;
        }
        cross_entropy::report(cx.plan, io.control, io.row_results, io.ring);
    }
}

/// Buffers of generation for a number of sequences and a capacity in tokens each.
#[derive(Clone, Debug)]
pub struct Slots {
    pub sequences: usize,
    pub capacity: usize,
    /// Rows of a prefill chunk.
    pub chunk: usize,
    pub ids: Buf,
    pub positions: Buf,
    /// [rows, 2]: sequence and position.
    pub slots: Buf,
    /// [sequences]: the row each sequence's logits come from, or NONE.
    pub rows: Buf,
    control: Buf,
    /// [sequences, padded vocab]
    pub logits: Buf,
    pub rope_table: Buf,
    /// [rows]: which row of the adapter's table stands here, or NONE.
    pub virtual_rows: Buf,
    caches: Vec<Cache>,
}

/// A chunk of prompt rows, and one step of decoding.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    pub prefill: SequenceId,
    pub decode: SequenceId,
}

impl Decoder {
    /// Declares the cache and the inputs, and the passes of the base model.
    pub fn generation(&self, plan: &mut Plan, sequences: usize, capacity: usize, chunk: usize) -> (Slots, Pass) {
        let spec = &self.spec;
        let most = chunk.max(sequences);
        let mut words = |label: &str, len| plan.persistent(label, Elem::Word, len);
        let (ids, positions) = (words("token ids", most), words("token positions", most));
        let (slots, rows) = (words("cache slots", 2 * most), words("logit rows", sequences));
        let virtual_rows = words("virtual rows", most);
        let control = words("control", control::WORDS);
        let mut floats = |label: &str, len| plan.persistent(label, Elem::Float, len);
        let logits = floats("next logits", sequences * spec.padded_vocab());
        let rope_table = floats("rope table", spec.rope_len(capacity));
        let mut cache = || floats("cache", sequences * capacity * spec.kv_width());
        let caches = (0..spec.layers).map(|_| Cache { k: cache(), v: cache(), capacity }).collect();
        let io = Slots {
            sequences,
            capacity,
            chunk,
            ids,
            positions,
            slots,
            rows,
            control,
            logits,
            rope_table,
            virtual_rows,
            caches,
        };
        let plain = self.generation_pass(plan, &io, None);
        (io, plain)
    }

    /// Appends the sequences of a prompt chunk and of a decoding step over the cache.
    pub fn generation_pass(&self, plan: &mut Plan, io: &Slots, patches: Option<&Patches>) -> Pass {
        let spec = &self.spec;
        let Slots { positions, slots: spans, rope_table, capacity: max_position, virtual_rows, .. } = *io;
        let common = Common { positions, spans, rope_table, max_position, virtual_rows };
        let mut sequence = |name: &str, n: usize| {
            let id = plan.begin(name);
            let mut cx = self.build(plan, n, patches, io.control, false);
            let mut x = self.embed(&mut cx, io.ids, positions, virtual_rows);
            for (block, cache) in self.blocks.iter().zip(&io.caches) {
                x = block.forward_cached(&mut cx, spec, &common, cache, x);
            }
            let hidden = self.norm.forward(&mut cx, n, x, None);
            let last = cx.plan.temp("last rows", io.sequences * spec.hidden);
            gather::forward(cx.plan, (io.sequences, 0), spec.hidden, io.rows, hidden, last);
            self.logits(&mut cx, io.sequences, last, io.logits);
            id
        };
        Pass { prefill: sequence("prefill", io.chunk), decode: sequence("decode", io.sequences) }
    }
}
