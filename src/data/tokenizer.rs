//! Text to ids and back. Training and generation share this one type, so a prompt has the same ids in both.

use super::record::{Message, Turns};
use super::template::ChatTemplate;
use crate::error::{Error, Result};
use crate::weights::TokenizerFiles;

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    template: Option<ChatTemplate>,
    /// What goes before plain text: BOS, where the model wants one.
    prefix: Vec<u32>,
    /// What goes behind it in training.
    end: Option<u32>,
    /// Ids that end a generation, each with its text: the model's own list and the template's end of turn.
    stops: Vec<(u32, String)>,
    end_of_turn: Option<u32>,
    /// Ids below are tokens of the model.
    vocab: usize,
    /// See `splits_anywhere`.
    splits: bool,
}

impl Tokenizer {
    pub fn new(files: TokenizerFiles) -> Result<Tokenizer> {
        let mut inner = tokenizers::Tokenizer::from_bytes(files.tokenizer_json.as_bytes()).map_err(broken)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(broken)?;
        let token = |id: Option<u32>| id.and_then(|id| inner.id_to_token(id)).unwrap_or_default();
        let first_eos = files.eos.first().copied();
        let template = match files.chat_template.as_deref() {
            Some(source) => Some(ChatTemplate::new(source, &token(files.bos), &token(first_eos), &token(files.pad))?),
            None => None,
        };
        let prefix = files.bos.filter(|_| files.add_bos).into_iter().collect();
        let splits = splits_anywhere(&inner)?;
        let vocab = files.vocab.unwrap_or(usize::MAX);
        let (end, stops) = (first_eos, Vec::new());
        let mut tokenizer = Tokenizer { inner, template, prefix, end, stops, end_of_turn: None, vocab, splits };
        tokenizer.end_of_turn = tokenizer.find_end_of_turn()?;
        tokenizer.stops = tokenizer.find_stops(&files.eos)?;
        tokenizer.prefix.iter().try_for_each(|bos| tokenizer.known("start", *bos).map(|_| ()))?;
        tokenizer.check(&tokenizer.prefix)?;
        tokenizer.check(tokenizer.end.as_slice())?;
        Ok(tokenizer)
    }

    /// The ids of plain text. `add_special` puts BOS in front where the model was trained with it; nothing is ever
    /// added at the end.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let ids = encode(&self.inner, text)?;
        self.check(&ids)?;
        if !add_special || ids.starts_with(&self.prefix) {
            return Ok(ids);
        }
        Ok([self.prefix.as_slice(), &ids].concat())
    }

    /// The text of what `encode` puts in front; empty for a model that was trained without.
    pub fn prefix(&self) -> String {
        self.prefix.iter().filter_map(|id| self.token(*id)).collect()
    }

    /// Every id has a row in the embedding: what is not there cannot be looked up.
    fn check(&self, ids: &[u32]) -> Result<()> {
        let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab) else { return Ok(()) };
        let text = self.token(*id).unwrap_or_default();
        let what = format!("the token '{text}' has the id {id}, and the model knows ids below {} only", self.vocab);
        let hint = "leave this token out, or use the model that was resized for it";
        Err(Error::Unsupported { file: "tokenizer.json".into(), what, hint: hint.into() })
    }

    /// The ids of `text`, each with the byte range of the text that it came from.
    pub(super) fn encode_offsets(&self, text: &str) -> Result<tokenizers::Encoding> {
        self.inner.encode(text, false).map_err(unencodable)
    }

    /// Whether a text may be encoded in parts: true of byte-level tokenizers, false of those that put a space
    /// before whatever they are given (SentencePiece).
    pub(super) fn splits_anywhere(&self) -> bool {
        self.splits
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        // It fails for nothing but decoders that cannot happen here (unknown ids are left out).
        self.inner.decode(ids, skip_special).unwrap_or_default()
    }

    /// The text of one id as the vocabulary spells it; for showing single tokens to a person.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Ids that end a generation.
    pub fn eos_ids(&self) -> Vec<u32> {
        self.stops.iter().map(|(id, _)| *id).collect()
    }

    pub(super) fn stop_texts(&self) -> impl Iterator<Item = &str> {
        self.stops.iter().map(|(_, text)| text.as_str())
    }

    /// What is put after a text or a completion that has no chat template around it.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end
    }

    /// The token that the chat template puts after an assistant's message; None without a template.
    pub fn end_of_turn(&self) -> Option<u32> {
        self.end_of_turn
    }

    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    pub fn chat_template(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::source)
    }

    pub(super) fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The conversation as the model was trained to see it. With `add_generation_prompt` it ends where the
    /// assistant is to speak.
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let Some(template) = &self.template else {
            let hint = "pass the prompt as plain text, or use an instruct model that has a chat template";
            let what = "the model has no chat template".into();
            return Err(Error::Unsupported { file: "tokenizer".into(), what, hint: hint.into() });
        };
        let turns = Turns { messages: messages.to_vec(), tools: None };
        Ok(template.render(&turns, turns.messages.len(), add_generation_prompt)?.text)
    }

    /// `render_chat` with a cue for the assistant, as ids. The template writes BOS itself where it wants one.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode(&self.render_chat(messages, true)?, false)
    }

    /// Shows the template a two-message conversation and takes the first special token behind the answer.
    fn find_end_of_turn(&self) -> Result<Option<u32>> {
        const ANSWER: &str = "Answer";
        if self.template.is_none() {
            return Ok(None);
        }
        // A template that refuses so plain a conversation speaks up when it meets a real one.
        let probe = [Message::new("user", "Question"), Message::new("assistant", ANSWER)];
        let Ok(text) = self.render_chat(&probe, false) else { return Ok(None) };
        let Some(at) = text.rfind(ANSWER) else { return Ok(None) };
        let added = self.inner.get_added_tokens_decoder();
        let rest = encode(&self.inner, &text[at + ANSWER.len()..])?;
        Ok(rest.into_iter().find(|id| added.get(id).is_some_and(|token| token.special)))
    }

    fn find_stops(&self, eos: &[u32]) -> Result<Vec<(u32, String)>> {
        let mut stops: Vec<(u32, String)> = Vec::new();
        for id in eos.iter().copied().chain(self.end_of_turn) {
            let text = self.known("end", id)?;
            if !stops.iter().any(|(known, _)| *known == id) {
                stops.push((id, text));
            }
        }
        Ok(stops)
    }

    fn known(&self, role: &str, id: u32) -> Result<String> {
        self.inner.id_to_token(id).ok_or_else(|| {
            let what = format!("the {role} token {id} is not in the vocabulary of {} tokens", self.vocab_size());
            malformed(what, "the tokenizer and the model's configuration do not belong together")
        })
    }
}

/// Turns ids into text as they arrive. A character made of several tokens appears when its last byte is there.
#[derive(Default)]
pub struct TextStream {
    ids: Vec<u32>,
    /// `ids[..done]` have been shown; decoding begins at `context`, because some decoders treat the first token of
    /// a text differently (SentencePiece drops its space).
    context: usize,
    done: usize,
    /// Special tokens are shown, too.
    special: bool,
}

impl TextStream {
    /// A stream that spells special tokens out.
    pub fn with_special() -> TextStream {
        TextStream { special: true, ..TextStream::default() }
    }

    /// No character has more tokens than this; beyond it the bytes are not UTF-8 and are shown as U+FFFD.
    const LONGEST: usize = 8;

    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.ids.push(id);
        self.emit(tokenizer, self.ids.len() - self.done > Self::LONGEST)
    }

    /// What is left at the end of a generation, an unfinished character included.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> String {
        self.emit(tokenizer, true)
    }

    fn emit(&mut self, tokenizer: &Tokenizer, even_if_broken: bool) -> String {
        let decode = |ids: &[u32]| tokenizer.decode(ids, !self.special);
        let (shown, whole) = (decode(&self.ids[self.context..self.done]), decode(&self.ids[self.context..]));
        if whole.ends_with('\u{FFFD}') && !even_if_broken {
            return String::new();
        }
        let fresh = whole.get(shown.len()..).unwrap_or_default().to_string();
        self.context = self.done;
        self.done = self.ids.len();
        fresh
    }
}

/// The tokenizer's own post-processor is left out: what goes around a text is decided here, in one place.
fn encode(inner: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(inner.encode_fast(text, false).map_err(unencodable)?.get_ids().to_vec())
}

fn splits_anywhere(inner: &tokenizers::Tokenizer) -> Result<bool> {
    let parts = [encode(inner, "a")?, encode(inner, "\na")?].concat();
    Ok(encode(inner, "a\na")? == parts)
}

fn malformed(what: impl Into<String>, hint: &str) -> Error {
    Error::Malformed { file: "tokenizer.json".into(), at: "tokenizer".into(), what: what.into(), hint: hint.into() }
}

fn broken(err: tokenizers::Error) -> Error {
    malformed(err.to_string(), "download the file again, or re-save the tokenizer with a current `transformers`")
}

fn unencodable(err: tokenizers::Error) -> Error {
    malformed(format!("cannot encode a text: {err}"), "the tokenizer has no token for part of the text")
}
