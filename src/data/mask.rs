//! Which part of a record is learned.
//!
//! Of a chat: what the assistant says and the token that ends its turn; not the cue before it and not the line end
//! behind it. The place is found by rendering: the text up to and with the cue for answer `i` is what the template
//! gives for the messages before it when asked for a cue, and that text must be the beginning of the whole. So the
//! mask follows the model's own template, and token ids play no part: a model whose padding token is its end token
//! still learns to stop. Where a template renders the past differently once there is more of it, its
//! `{% generation %}` blocks are used; where it has none, the record is refused rather than guessed at.

use super::record::{Record, Turns};
use super::template::{ChatTemplate, Rendered};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use std::ops::Range;

/// A stretch of text that is learned or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub text: String,
    pub learned: bool,
}

/// A record cut into pieces. `plain` text takes BOS before it and an end token behind it; a rendered chat has both
/// where its template wants them.
pub struct Marked {
    pub pieces: Vec<Piece>,
    pub plain: bool,
}

pub fn mark(tokenizer: &Tokenizer, record: &Record, use_template: bool) -> Result<Marked> {
    if let (Some(template), Some(turns), true) = (tokenizer.template(), record.turns(), use_template) {
        return Ok(Marked { pieces: mark_chat(tokenizer, template, &turns)?, plain: false });
    }
    let Some((before, after)) = record.plain() else {
        let what = "the record is a chat, and the model has no chat template (or it was switched off)";
        return Err(refuse(what, "use prompt and completion records, or an instruct model"));
    };
    let pieces = [(before, false), (after, true)].map(|(text, learned)| Piece { text, learned });
    Ok(Marked { pieces: pieces.into_iter().filter(|piece| !piece.text.is_empty()).collect(), plain: true })
}

fn refuse(what: impl Into<String>, hint: &str) -> Error {
    Error::Unsupported { file: "chat template".into(), what: what.into(), hint: hint.into() }
}

fn mark_chat(tokenizer: &Tokenizer, template: &ChatTemplate, turns: &Turns) -> Result<Vec<Piece>> {
    let whole = template.render(turns, turns.messages.len(), false)?;
    let answers = answers(turns);
    let mut spans = Vec::with_capacity(answers.len());
    for index in answers {
        let behind = spans.last().map_or(0, |last: &Range<usize>| last.end);
        match find_answer(tokenizer, template, turns, index, &whole.text)? {
            Some(span) if span.start >= behind => spans.push(span),
            _ => {
                spans = generation_blocks(tokenizer, turns, index, &whole)?;
                break;
            }
        }
    }
    Ok(cut(&whole.text, &spans))
}

/// The messages that are to be learned.
fn answers(turns: &Turns) -> Vec<usize> {
    (0..turns.messages.len()).filter(|i| turns.messages[*i].is_assistant() && turns.messages[*i].learned).collect()
}

/// Where answer `index` stands in `whole`, its end token included; None if the template renders it in a way that
/// its place cannot be told.
fn find_answer(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    turns: &Turns,
    index: usize,
    whole: &str,
) -> Result<Option<Range<usize>>> {
    let content = turns.messages[index].content.trim();
    let cue = template.render(turns, index, true)?.text;
    let start = common_prefix(&cue, whole);
    let follows = !content.is_empty() && whole[start..].trim_start().starts_with(content);
    // Some templates cue more than they write in the end ("<think>"): then the answer must follow at once.
    if start < cue.len() && !follows {
        return Ok(None);
    }
    let upto = template.render(turns, index + 1, false)?.text;
    let end = if whole.starts_with(&upto) {
        last_stop(tokenizer, &whole[start..upto.len()])
    } else {
        // The past is rendered anew; the end token must then follow the content at once.
        let Some(at) = whole[start..].find(content) else { return Ok(None) };
        let behind = whole[start + at + content.len()..].trim_start();
        let Some(stop) = tokenizer.stop_texts().find(|stop| behind.starts_with(stop)) else { return Ok(None) };
        Some(whole.len() - behind.len() + stop.len() - start)
    };
    match end {
        Some(end) => Ok(Some(start..start + end)),
        None => Err(refuse(
            "the chat template puts no end token behind the assistant's message, so the model would never learn to \
             stop",
            "correct the template or the model's eos token, or switch the template off to train on plain text",
        )),
    }
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map_or(a.len().min(b.len()), |((at, _), _)| at)
}

fn last_stop(tokenizer: &Tokenizer, text: &str) -> Option<usize> {
    tokenizer.stop_texts().filter_map(|stop| text.rfind(stop).map(|at| at + stop.len())).max()
}

fn generation_blocks(
    tokenizer: &Tokenizer,
    turns: &Turns,
    failed: usize,
    whole: &Rendered,
) -> Result<Vec<Range<usize>>> {
    if whole.generated.is_empty() {
        let what = format!(
            "cannot tell where messages[{failed}] stands: the template renders the messages before it differently \
             once it is there, and has no generation blocks"
        );
        return Err(refuse(
            what,
            "begin with a user's message, leave thoughts out of earlier answers, or mark the answer in the template \
             with {% generation %}",
        ));
    }
    let learned: Vec<bool> =
        turns.messages.iter().filter(|message| message.is_assistant()).map(|message| message.learned).collect();
    if learned.len() != whole.generated.len() && learned.contains(&false) {
        let (blocks, answers) = (whole.generated.len(), learned.len());
        let what = format!("the template marks {blocks} generation blocks for {answers} answers, some of weight 0");
        return Err(refuse(what, "leave `weight` out, or use a template with one block an answer"));
    }
    let kept = whole.generated.iter().zip(learned.into_iter().chain(std::iter::repeat(true)));
    Ok(kept.filter(|(_, learned)| *learned).map(|(span, _)| with_stop(tokenizer, &whole.text, span)).collect())
}

/// Ends a block with its end token: takes it in where the block stops just before it, and leaves out the line end
/// behind it.
fn with_stop(tokenizer: &Tokenizer, text: &str, span: &Range<usize>) -> Range<usize> {
    let block = text[span.clone()].trim_end();
    if tokenizer.stop_texts().any(|stop| block.ends_with(stop)) {
        return span.start..span.start + block.len();
    }
    let behind = &text[span.end..];
    let stop = tokenizer.stop_texts().find(|stop| behind.starts_with(stop)).map_or(0, str::len);
    span.start..span.end + stop
}

/// Cuts a text at the ends of its learned spans, which are in order and apart.
fn cut(text: &str, spans: &[Range<usize>]) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(2 * spans.len() + 1);
    let mut at = 0;
    for span in spans {
        pieces.push(Piece { text: text[at..span.start].into(), learned: false });
        pieces.push(Piece { text: text[span.clone()].into(), learned: true });
        at = span.end;
    }
    pieces.push(Piece { text: text[at..].into(), learned: false });
    pieces.retain(|piece| !piece.text.is_empty());
    pieces
}
