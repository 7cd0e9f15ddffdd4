//! The model's chat template: Jinja that came with the weights, so it is run as a stranger's code.
//!
//! The sandbox: no loader and no include, bounded source, bounded work (fuel) and bounded output; the only functions
//! are `raise_exception` and `strftime_now`. Otherwise it behaves as `transformers` does: `trim_blocks` and
//! `lstrip_blocks`, Python's string and dict methods, `tojson` without HTML escapes, and `{% generation %}` blocks,
//! whose place in the output is reported.

use super::record::Turns;
use crate::error::{Error, Result};
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context, syntax::SyntaxConfig};
use std::io::Write;
use std::ops::Range;

const MAX_SOURCE: usize = 256 << 10;
const MAX_OUTPUT: usize = 8 << 20;
/// One unit pays for an instruction or for 64 bytes of data; real templates use a few dozen a message.
const FUEL: u64 = 4_000_000;
const NAME: &str = "chat_template";

/// Noncharacters that the filter behind `{% generation %}` puts around its text, to be found again in the output.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    pad: String,
}

pub struct Rendered {
    pub text: String,
    /// Byte ranges that came out of `{% generation %}` blocks.
    pub generated: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// `bos`, `eos` and `pad` are the texts of the special tokens, empty where the model has none.
    pub fn new(source: &str, bos: &str, eos: &str, pad: &str) -> Result<ChatTemplate> {
        if source.len() > MAX_SOURCE {
            let what = format!("the template is {} bytes long; at most {MAX_SOURCE} are read", source.len());
            return Err(bad(what, "a chat template is a few kilobytes of text; check the model's files"));
        }
        let mut env = Environment::new();
        env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(refuse)?);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_fuel(Some(FUEL));
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        env.add_filter("tojson", tojson);
        // In Python None cannot be iterated over; templates ask that before they look at `tools`.
        env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        env.add_filter("generation", |text: String| format!("{OPEN}{text}{CLOSE}"));
        env.add_template_owned(NAME, as_filter_blocks(source)).map_err(refuse)?;
        let [bos, eos, pad] = [bos, eos, pad].map(String::from);
        Ok(ChatTemplate { env, source: source.into(), bos, eos, pad })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders the first `count` messages.
    pub fn render(&self, turns: &Turns, count: usize, add_generation_prompt: bool) -> Result<Rendered> {
        let context = context! {
            messages => Value::from(Serde(&turns.messages[..count])),
            tools => turns.tools.as_ref().map(|tools| Value::from(Serde(tools))),
            documents => (),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            pad_token => self.pad.as_str(),
        };
        let mut output = Capped(Vec::new());
        let template = self.env.get_template(NAME).map_err(refuse)?;
        template.render_captured_to(context, &mut output).map_err(refuse)?;
        let text = String::from_utf8(output.0).map_err(|_| bad("the output is not UTF-8", ""))?;
        Ok(take_spans(text))
    }
}

/// Rewrites `{% generation %}…{% endgeneration %}`, which is no part of Jinja, as a filter block, keeping the
/// whitespace control on either side.
fn as_filter_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 64);
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(len) = rest[at..].find("%}") else { break };
        let inner = &rest[at + 2..at + len];
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(&rest[..at + 2]);
        match word {
            "generation" => out.push_str(&inner.replace(word, "filter generation")),
            "endgeneration" => out.push_str(&inner.replace(word, "endfilter")),
            _ => out.push_str(inner),
        }
        rest = &rest[at + len..];
    }
    out + rest
}

fn take_spans(marked: String) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut generated = Vec::new();
    let mut start = 0;
    for c in marked.chars() {
        match c {
            OPEN => start = text.len(),
            CLOSE => generated.push(start..text.len()),
            c => text.push(c),
        }
    }
    Rendered { text, generated }
}

/// A writer that stops a template from filling the memory.
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(std::io::Error::other(format!("the output is longer than {MAX_OUTPUT} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The date that some system prompts carry. It is fixed (the one Llama's template falls back to), because a run
/// that trains on the day's date could not be repeated tomorrow.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(match chars.next() {
            Some('Y') => "2024",
            Some('y') => "24",
            Some('m') => "07",
            Some('d' | 'e') => "26",
            Some('B') => "July",
            Some('b' | 'h') => "Jul",
            Some('A') => "Friday",
            Some('a') => "Fri",
            Some('j') => "208",
            Some('F') => "2024-07-26",
            Some('H' | 'M' | 'S') => "00",
            Some('T') => "00:00:00",
            Some('%') => "%",
            _ => return Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?})"))),
        });
    }
    Ok(out)
}

/// As Python's `json.dumps(value, ensure_ascii=False, indent=…)` writes it.
fn tojson(value: Value, indent: Option<usize>, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _ = options.get::<Option<Value>>(ignored)?;
    }
    options.assert_all_used()?;
    let mut out = Vec::new();
    let done = match indent {
        Some(n) => {
            let spaces = " ".repeat(n.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    done.map_err(|err| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {err}")))?;
    Ok(Value::from(String::from_utf8_lossy(&out).into_owned()))
}

/// `{"a": 1, "b": [2, 3]}`: Python's spacing.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn bad(what: impl Into<String>, hint: &str) -> Error {
    Error::Unsupported { file: "chat template".into(), what: what.into(), hint: hint.into() }
}

fn refuse(err: minijinja::Error) -> Error {
    let hint = match err.kind() {
        ErrorKind::OutOfFuel => "the template does far more work than a chat needs; use another one",
        ErrorKind::SyntaxError => "the template uses something outside the safe Jinja subset",
        _ => "the template refuses this conversation; check the order and the roles of its messages",
    };
    // The source of the error (what a failed write said, say) is part of the reason.
    let cause = std::error::Error::source(&err).map(|cause| format!(": {cause}")).unwrap_or_default();
    bad(format!("{err}{cause}"), hint)
}
