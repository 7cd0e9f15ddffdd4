//! Generation: prompts go through the cache in chunks, then all sequences decode a token a step; sampling on the host.

use super::decoder::{Decoder, Pass, Slots};
use super::load::Base;
use super::seam::{Patches, split_virtual};
use crate::error::{Error, Result};
use crate::ops::gather::NONE;
use crate::plan::{Plan, SequenceId};

#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probability reaches this.
    pub top_p: f32,
    /// The k likeliest; 0 for all.
    pub top_k: usize,
    pub seed: u64,
    pub max_new_tokens: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, max_new_tokens: 64 }
    }
}

impl Sampling {
    pub fn check(&self) -> Result<()> {
        let bad = |flag: &str, what: String, hint: &str| Err(Error::setting(flag, what, hint));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", format!("is {}, expected 0 or more", self.temperature), "0 is greedy");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top-p", format!("is {}, expected more than 0, at most 1", self.top_p), "1 turns it off");
        }
        if self.max_new_tokens == 0 {
            return bad("max-new-tokens", "is 0, expected at least 1".into(), "64 is the default");
        }
        Ok(())
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The end token came.
    Stop,
    /// There was no more room, or no more was wanted.
    Length,
    /// Whoever read it had enough.
    Cancelled,
}

#[derive(Clone, Debug)]
pub struct Generated {
    pub ids: Vec<u32>,
    pub finish: Finish,
}

/// Rows of a prefill chunk.
const CHUNK: usize = 64;

/// The sequences for some number of prompts, with and without an adapter. Reused for as many prompts as wanted.
pub struct Generator {
    io: Slots,
    plain: Pass,
    adapted: Option<Pass>,
    vocab: usize,
    padded: usize,
}

/// What [`Generator::run`] is asked to continue, and how.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub prompts: &'a [Vec<u32>],
    /// Number of the first prompt among all that are asked: each draws from its own random numbers.
    pub first: usize,
    pub adapted: bool,
    /// Tokens that end a continuation.
    pub stop: &'a [u32],
    pub sampling: &'a Sampling,
}

impl Generator {
    pub async fn new(
        base: &mut Base,
        patches: Option<&Patches>,
        sequences: usize,
        capacity: usize,
    ) -> Result<Generator> {
        let (io, plain) = base.decoder.generation(&mut base.plan, sequences, capacity, CHUNK);
        let spec = base.decoder.spec.clone();
        let mut generator = Generator { io, plain, adapted: None, vocab: spec.vocab, padded: spec.padded_vocab() };
        match patches {
            Some(patches) => generator.adapt(base, patches).await?,
            None => base.device.prepare(&base.plan).await?,
        }
        base.device.write_floats(generator.io.rope_table, 0, &spec.rope_table(capacity));
        Ok(generator)
    }

    /// A plan with the sequences for one prompt added, without and with the patches.
    pub fn sketch(decoder: &Decoder, mut plan: Plan, patches: &Patches) -> Plan {
        let (io, _) = decoder.generation(&mut plan, 1, CHUNK, CHUNK);
        decoder.generation_pass(&mut plan, &io, Some(patches));
        plan
    }

    /// Adds the sequences with an adapter.
    pub async fn adapt(&mut self, base: &mut Base, patches: &Patches) -> Result<()> {
        self.adapted = Some(base.decoder.generation_pass(&mut base.plan, &self.io, Some(patches)));
        base.device.prepare(&base.plan).await
    }

    /// The adapter is another one now, or none: what was built for it is not used again.
    pub fn forget_adapter(&mut self) {
        self.adapted = None;
    }

    pub fn is_adapted(&self) -> bool {
        self.adapted.is_some()
    }

    pub fn sequences(&self) -> usize {
        self.io.sequences
    }

    pub fn capacity(&self) -> usize {
        self.io.capacity
    }

    fn pass(&self, adapted: bool) -> Pass {
        if adapted { self.adapted.expect("a generator made with an adapter") } else { self.plain }
    }

    /// Continues each prompt. `on_token` gets (prompt, token) as they come and returns false to end that prompt.
    pub async fn run(
        &self,
        base: &mut Base,
        request: Request<'_>,
        mut on_token: impl FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Generated>> {
        let Request { prompts, first, adapted, stop, sampling } = request;
        self.check(prompts)?;
        let mut state: Vec<Sequence> = prompts.iter().map(|p| Sequence::new(p.len())).collect();
        let mut logits = self.prefill(base, self.pass(adapted).prefill, prompts).await?;
        loop {
            for (i, s) in state.iter_mut().enumerate().filter(|(_, s)| s.finish.is_none()) {
                let row = &logits[i * self.padded..][..self.vocab];
                let id = sample(row, sampling, (first + i) as u64, s.ids.len() as u64)?;
                s.accept(id, stop, sampling, self.io.capacity);
                if s.finish != Some(Finish::Stop) && !on_token(i, *s.ids.last().expect("one was accepted")) {
                    s.finish = Some(Finish::Cancelled);
                }
            }
            if state.iter().all(|s| s.finish.is_some()) {
                return Ok(finish(state));
            }
            logits = self.decode(base, self.pass(adapted).decode, &state).await?;
        }
    }

    /// The logits after each prompt's last token: [prompts, vocab].
    pub async fn prompt_logits(&self, base: &mut Base, adapted: bool, prompts: &[Vec<u32>]) -> Result<Vec<f32>> {
        self.check(prompts)?;
        let padded = self.prefill(base, self.pass(adapted).prefill, prompts).await?;
        let rows = padded.chunks_exact(self.padded).take(prompts.len());
        Ok(rows.flat_map(|row| row[..self.vocab].iter().copied()).collect())
    }

    fn check(&self, prompts: &[Vec<u32>]) -> Result<()> {
        assert!(prompts.len() <= self.io.sequences, "{} prompts for {} sequences", prompts.len(), self.io.sequences);
        for (i, p) in prompts.iter().enumerate() {
            if p.is_empty() {
                return Err(Error::setting("prompt", format!("prompt {} has no tokens", i + 1), "give some text"));
            }
            if let Some(id) = split_virtual(p).0.iter().find(|id| **id as usize >= self.vocab) {
                let what = format!("prompt {} holds the token {id}, the model knows ids below {}", i + 1, self.vocab);
                return Err(Error::setting("prompt", what, "use the tokenizer that belongs to the model"));
            }
            if p.len() >= self.io.capacity {
                let what = format!("prompt {} has {} tokens, room is for {}", i + 1, p.len(), self.io.capacity);
                return Err(Error::setting("prompt", what, "shorten the prompt"));
            }
        }
        Ok(())
    }

    /// Feeds all prompts, CHUNK rows at a time, and returns the logits after each prompt's last token.
    async fn prefill(&self, base: &mut Base, pass: SequenceId, prompts: &[Vec<u32>]) -> Result<Vec<f32>> {
        let mut logits = vec![0.0; self.io.sequences * self.padded];
        let all: Vec<Row> = prompts
            .iter()
            .enumerate()
            .flat_map(|(sequence, prompt)| {
                let row = move |(position, id): (usize, &u32)| Row {
                    id: *id,
                    sequence,
                    position,
                    last: position + 1 == prompt.len(),
                };
                prompt.iter().enumerate().map(row)
            })
            .collect();
        for chunk in all.chunks(self.io.chunk) {
            let ends = self.write_rows(base, chunk, self.io.chunk);
            base.device.run(&base.plan, pass, u32::MAX)?;
            if ends {
                let out = base.device.read(self.io.logits, 0, logits.len()).await?;
                for row in chunk.iter().filter(|r| r.last) {
                    let at = row.sequence * self.padded..(row.sequence + 1) * self.padded;
                    logits[at.clone()].copy_from_slice(&out[at]);
                }
            }
        }
        Ok(logits)
    }

    async fn decode(&self, base: &mut Base, pass: SequenceId, state: &[Sequence]) -> Result<Vec<f32>> {
        let running = state.iter().enumerate().filter(|(_, s)| s.finish.is_none());
        let rows: Vec<Row> = running
            .map(|(sequence, s)| {
                let id = *s.ids.last().expect("decoding follows a token");
                Row { id, sequence, position: s.prompt + s.ids.len() - 1, last: true }
            })
            .collect();
        self.write_rows(base, &rows, self.io.sequences);
        base.device.run(&base.plan, pass, u32::MAX)?;
        base.device.read(self.io.logits, 0, self.io.sequences * self.padded).await
    }

    /// Writes the inputs of a run of `n` rows, idle beyond `rows`; true when a prompt ends in it.
    fn write_rows(&self, base: &mut Base, rows: &[Row], n: usize) -> bool {
        let (mut ids, mut positions, mut slots) = (vec![0; n], vec![0; n], vec![NONE; 2 * n]);
        let mut logit_rows = vec![NONE; self.io.sequences];
        for (i, row) in rows.iter().enumerate() {
            (ids[i], positions[i]) = (row.id, row.position as u32);
            (slots[2 * i], slots[2 * i + 1]) = (row.sequence as u32, row.position as u32);
            if row.last {
                logit_rows[row.sequence] = i as u32;
            }
        }
        let (ids, virtual_rows) = split_virtual(&ids);
        for (buf, words) in [
            (self.io.ids, &ids),
            (self.io.virtual_rows, &virtual_rows),
            (self.io.positions, &positions),
            (self.io.slots, &slots),
            (self.io.rows, &logit_rows),
        ] {
            base.device.write(buf, 0, words);
        }
        rows.iter().any(|r| r.last)
    }
}

struct Row {
    id: u32,
    sequence: usize,
    position: usize,
    /// The last of its prompt: its logits are wanted.
    last: bool,
}

struct Sequence {
    prompt: usize,
    ids: Vec<u32>,
    finish: Option<Finish>,
}

impl Sequence {
    fn new(prompt: usize) -> Sequence {
        Sequence { prompt, ids: Vec::new(), finish: None }
    }

    fn accept(&mut self, id: u32, stop: &[u32], sampling: &Sampling, capacity: usize) {
        self.ids.push(id);
        if stop.contains(&id) {
            self.finish = Some(Finish::Stop);
        } else if self.ids.len() >= sampling.max_new_tokens || self.prompt + self.ids.len() >= capacity {
            self.finish = Some(Finish::Length);
        }
    }
}

fn finish(state: Vec<Sequence>) -> Vec<Generated> {
    state.into_iter().map(|s| Generated { ids: s.ids, finish: s.finish.unwrap_or(Finish::Length) }).collect()
}

/// A token by the rules of `sampling`; randomness is a hash of (seed, sequence, step), so runs repeat.
fn sample(logits: &[f32], sampling: &Sampling, sequence: u64, step: u64) -> Result<u32> {
    if let Some(i) = logits.iter().position(|x| !x.is_finite()) {
        let what = format!("the logit of token {i} is {}", logits[i]);
        return Err(Error::device(what, "the adapter or the base model holds broken numbers"));
    }
    if sampling.temperature <= 0.0 {
        let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
        return Ok(best as u32);
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let top = logits[order[0] as usize];
    let weights: Vec<f64> =
        order.iter().map(|i| (((logits[*i as usize] - top) / sampling.temperature) as f64).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let nucleus = weights.iter().position(|w| {
        kept += w;
        kept >= sampling.top_p as f64 * total
    });
    let end = nucleus.map_or(weights.len(), |i| i + 1);
    let mut left = crate::num::uniform(sampling.seed, sequence, step) * weights[..end].iter().sum::<f64>();
    let chosen = weights[..end].iter().position(|w| {
        left -= w;
        left < 0.0
    });
    Ok(order[chosen.unwrap_or(end - 1)])
}
