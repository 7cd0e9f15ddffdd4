//! Text from a session: prompts to ids, ids to text as it comes.

use super::{Prompt, Session};
use crate::data::TextStream;
use crate::error::{Error, Result};
use crate::model::generate::{Finish, Generated, Generator, Request, Sampling};
use serde::Serialize;

/// One continuation.
#[derive(Clone, Debug, Serialize)]
pub struct Text {
    pub text: String,
    pub tokens: usize,
    pub finish: Finish,
}

/// The most that the keys and values of generation may take.
const CACHE_GIB: f64 = 4.0;

/// Sequences decoded together; more prompts go in groups.
pub const SEQUENCES: usize = 8;

impl Session {
    /// Continues prompts, some at a time, with the adapter if asked. `on_token` gets (prompt, token) as they come.
    pub async fn generate_ids(
        &mut self,
        prompts: &[Vec<u32>],
        adapted: bool,
        sampling: &Sampling,
        mut on_token: impl FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Generated>> {
        sampling.check()?;
        let adapted = adapted && self.adapter.is_some();
        let prompts = self.prefixed(prompts, adapted);
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        if longest + 1 > self.spec().context {
            let room = self.room(adapted);
            let longest = longest + room - self.spec().context;
            let what = format!("has {longest} tokens, the model has room for {room} with the answer");
            return Err(Error::setting("prompt", what, "shorten it"));
        }
        let need = longest.saturating_add(sampling.max_new_tokens).min(self.spec().context);
        let sequences = prompts.len().clamp(1, SEQUENCES);
        self.check_cache(sequences, need)?;
        self.prepare_generator(sequences, need).await?;
        let generator = self.generator.as_ref().expect("just prepared");
        let stop = self.tokenizer.eos_ids().to_vec();
        let mut out = Vec::new();
        for (g, group) in prompts.chunks(generator.sequences()).enumerate() {
            let first = g * generator.sequences();
            let token = |i: usize, id: u32| on_token(first + i, id);
            let request = Request { prompts: group, first, adapted, stop: &stop, sampling };
            out.extend(generator.run(&mut self.base, request, token).await?);
        }
        Ok(out)
    }

    /// The prompts behind the adapter's virtual tokens, where it has some.
    fn prefixed(&self, prompts: &[Vec<u32>], adapted: bool) -> Vec<Vec<u32>> {
        let before = if adapted { self.virtual_ids() } else { Vec::new() };
        prompts.iter().map(|prompt| [before.as_slice(), prompt].concat()).collect()
    }

    /// Refuses a cache of keys and values that no machine would hold.
    fn check_cache(&self, sequences: usize, positions: usize) -> Result<()> {
        let spec = self.spec();
        let floats = 2 * spec.layers as u64 * (spec.kv_heads * spec.head_dim) as u64;
        let gib = (floats * 4 * (sequences * positions) as u64) as f64 / (1u64 << 30) as f64;
        if gib <= CACHE_GIB {
            return Ok(());
        }
        let what =
            format!("the cache for {sequences} x {positions} tokens takes {gib:.1} GiB, allowed are {CACHE_GIB}");
        Err(Error::setting("max-new-tokens", what, "lower it, or ask fewer prompts at a time"))
    }

    /// Makes the cache, or a larger one; room is rounded up so that it seldom grows.
    async fn prepare_generator(&mut self, sequences: usize, capacity: usize) -> Result<()> {
        let fits = |g: &Generator| g.sequences() >= sequences && g.capacity() >= capacity;
        if !self.generator.as_ref().is_some_and(fits) {
            let capacity = capacity.next_multiple_of(256).min(self.spec().context.max(capacity));
            let patches = self.adapter.as_ref().map(|(_, p)| p);
            self.generator = Some(Generator::new(&mut self.base, patches, sequences, capacity).await?);
        }
        // The adapter may have come after the generator: compare before, train, compare after.
        match (&mut self.generator, &self.adapter) {
            (Some(generator), Some((_, patches))) if !generator.is_adapted() => {
                generator.adapt(&mut self.base, patches).await
            }
            _ => Ok(()),
        }
    }

    /// [`Session::generate_ids`] for texts.
    pub async fn generate(
        &mut self,
        prompts: &[Prompt],
        chat: bool,
        adapted: bool,
        sampling: &Sampling,
    ) -> Result<Vec<Text>> {
        let ids = self.ids_of(prompts, chat, sampling)?;
        let generated = self.generate_ids(&ids, adapted, sampling, |_, _| true).await?;
        Ok(generated.iter().map(|g| self.text(g)).collect())
    }

    /// [`Session::generate`] that hands text over as it comes: `on_text` gets (prompt, piece), whole characters only,
    /// and returns false to end that prompt.
    pub async fn generate_streaming(
        &mut self,
        prompts: &[Prompt],
        chat: bool,
        adapted: bool,
        sampling: &Sampling,
        mut on_text: impl FnMut(usize, &str) -> bool,
    ) -> Result<Vec<Text>> {
        let ids = self.ids_of(prompts, chat, sampling)?;
        let mut streams: Vec<TextStream> = ids.iter().map(|_| TextStream::default()).collect();
        let tokenizer = self.tokenizer.clone();
        let on_token = |prompt: usize, id: u32| {
            let piece = streams[prompt].push(&tokenizer, id);
            piece.is_empty() || on_text(prompt, &piece)
        };
        let generated = self.generate_ids(&ids, adapted, sampling, on_token).await?;
        for (prompt, (stream, g)) in streams.iter_mut().zip(&generated).enumerate() {
            let rest = stream.finish(&tokenizer);
            if !rest.is_empty() && g.finish != Finish::Cancelled {
                on_text(prompt, &rest);
            }
        }
        Ok(generated.iter().map(|g| self.text(g)).collect())
    }

    fn ids_of(&self, prompts: &[Prompt], chat: bool, sampling: &Sampling) -> Result<Vec<Vec<u32>>> {
        prompts.iter().map(|p| self.prompt_ids(p, chat, sampling.max_new_tokens)).collect()
    }

    /// The text of a continuation, without its end token.
    pub fn text(&self, g: &Generated) -> Text {
        let shown = g.ids.len() - usize::from(g.finish == Finish::Stop);
        Text { text: self.tokenizer.decode(&g.ids[..shown], true), tokens: g.ids.len(), finish: g.finish }
    }
}
