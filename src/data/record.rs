//! What one record may be, and how it is recognised from the names of its fields.
//!
//! | fields | read as |
//! |---|---|
//! | `messages` (and `tools`) | a chat, as OpenAI writes it; `"weight": 0` keeps an answer out of the loss |
//! | `conversations` | a chat, as ShareGPT writes it (`from`, `value`) |
//! | `prompt`, `completion` | a question and its answer; either may also be a list of messages |
//! | `instruction`, `input`?, `output` | the same, as Alpaca writes it |
//! | `text` | a text, every token of which is learned |
//!
//! `ColumnMap` gives other names to `prompt`, `completion` and `text`; it goes before all of these.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Chat(Turns),
    Pair {
        prompt: String,
        completion: String,
    },
    Instruction {
        instruction: String,
        input: String,
        output: String,
    },
    /// `splits`: a text longer than the window goes on in the next example instead of being cut.
    Text {
        text: String,
        splits: bool,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turns {
    pub messages: Vec<Message>,
    /// Tool definitions, handed to the template as they are.
    pub tools: Option<Value>,
}

/// A message as the template sees it. `extra` holds further fields (`name`, `tool_calls` …).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
    #[serde(flatten)]
    pub extra: Map<String, Value>,
    /// Whether an assistant's message is to be learned.
    #[serde(skip, default = "yes")]
    pub learned: bool,
}

fn yes() -> bool {
    true
}

impl Message {
    pub fn new(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into(), extra: Map::new(), learned: true }
    }

    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

/// Names of the columns to use where they are not the usual ones. In a file without a header, columns are named
/// by their number, counting from 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColumnMap {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl ColumnMap {
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [&self.prompt, &self.completion, &self.text].into_iter().flatten().map(String::as_str)
    }
}

/// Why a record cannot be used.
type Reason = String;
pub(super) type Fields = Map<String, Value>;

/// What a record is, told from the names of its fields and the columns asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Messages,
    Conversations,
    Pair,
    Instruction,
    Text,
}

impl Kind {
    /// A field that is null is as good as absent, unless nothing else tells what the record is.
    pub fn of(fields: &Fields, map: &ColumnMap) -> Option<Kind> {
        if map.text.is_some() {
            return Some(Kind::Text);
        }
        if map.prompt.is_some() || map.completion.is_some() {
            return Some(Kind::Pair);
        }
        Kind::by_names(|name| given(fields, name)).or_else(|| Kind::by_names(|name| fields.contains_key(name)))
    }

    fn by_names(has: impl Fn(&str) -> bool) -> Option<Kind> {
        match () {
            () if has("messages") => Some(Kind::Messages),
            () if has("conversations") => Some(Kind::Conversations),
            () if has("prompt") && has("completion") => Some(Kind::Pair),
            () if has("instruction") && has("output") => Some(Kind::Instruction),
            () if has("text") => Some(Kind::Text),
            () => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Messages => "messages",
            Kind::Conversations => "conversations",
            Kind::Pair => "prompt/completion",
            Kind::Instruction => "instruction",
            Kind::Text => "text",
        }
    }

    /// The fields that a record of this kind is made of; none where a list of messages holds everything.
    pub fn mapping(self, map: &ColumnMap) -> ColumnMap {
        let or = |given: &Option<String>, usual: &str| Some(given.clone().unwrap_or(usual.into()));
        let none = ColumnMap::default();
        match self {
            Kind::Messages | Kind::Conversations => none,
            Kind::Pair => {
                ColumnMap { prompt: or(&map.prompt, "prompt"), completion: or(&map.completion, "completion"), ..none }
            }
            Kind::Instruction => {
                ColumnMap { prompt: or(&None, "instruction"), completion: or(&None, "output"), ..none }
            }
            Kind::Text => ColumnMap { text: or(&map.text, "text"), ..none },
        }
    }
}

impl Record {
    pub fn from_fields(fields: &Fields, map: &ColumnMap) -> Result<Record, Reason> {
        let kind = Kind::of(fields, map).ok_or_else(|| unrecognised(fields))?;
        let ColumnMap { prompt, completion, text: whole } = kind.mapping(map);
        let name = |column: Option<String>| column.expect("the mapping of its kind");
        match kind {
            Kind::Messages => chat(fields, "messages", openai_message),
            Kind::Conversations => chat(fields, "conversations", sharegpt_message),
            Kind::Pair => pair(fields, &name(prompt), &name(completion)),
            Kind::Instruction => Ok(Record::Instruction {
                instruction: filled(fields, &name(prompt))?,
                input: if given(fields, "input") { text(fields, "input")? } else { String::new() },
                output: filled(fields, &name(completion))?,
            }),
            Kind::Text => Ok(Record::Text { text: filled(fields, &name(whole))?, splits: false }),
        }
    }

    /// The record as a conversation, for models that have a chat template; None for a text.
    pub fn turns(&self) -> Option<Turns> {
        let ask = |user: &str, assistant: &str| Turns {
            messages: vec![Message::new("user", user), Message::new("assistant", assistant)],
            tools: None,
        };
        match self {
            Record::Chat(turns) => Some(turns.clone()),
            Record::Pair { prompt, completion } => Some(ask(prompt, completion)),
            Record::Instruction { instruction, input, output } if input.is_empty() => Some(ask(instruction, output)),
            Record::Instruction { instruction, input, output } => {
                Some(ask(&format!("{instruction}\n\n{input}"), output))
            }
            Record::Text { .. } => None,
        }
    }

    /// The record as a text and what follows it, for models without a chat template; None for a chat, which needs
    /// one. A pair is joined as it stands (its own spaces and line ends are the separator); an instruction gets
    /// Alpaca's headings.
    pub fn plain(&self) -> Option<(String, String)> {
        match self {
            Record::Chat(_) => None,
            Record::Pair { prompt, completion } => Some((prompt.clone(), completion.clone())),
            Record::Instruction { instruction, input, output } => {
                let input = if input.is_empty() { String::new() } else { format!("### Input:\n{input}\n\n") };
                Some((format!("### Instruction:\n{instruction}\n\n{input}### Response:\n"), output.clone()))
            }
            Record::Text { text, .. } => Some((String::new(), text.clone())),
        }
    }
}

fn pair(fields: &Fields, prompt: &str, completion: &str) -> Result<Record, Reason> {
    match (get(fields, prompt)?, get(fields, completion)?) {
        (Value::Array(before), Value::Array(after)) => {
            let mut messages = messages(before, prompt, openai_message)?;
            messages.iter_mut().for_each(|message| message.learned = false);
            messages.extend(self::messages(after, completion, openai_message)?);
            Ok(Record::Chat(Turns { messages, tools: tools(fields)? }))
        }
        _ => Ok(Record::Pair { prompt: text(fields, prompt)?, completion: filled(fields, completion)? }),
    }
}

type ReadMessage = fn(&Fields) -> Result<Message, Reason>;

fn chat(fields: &Fields, name: &str, read: ReadMessage) -> Result<Record, Reason> {
    let Value::Array(list) = get(fields, name)? else {
        return Err(format!("`{name}` is {}, not a list of messages", described(&fields[name])));
    };
    let mut messages = messages(list, name, read)?;
    if let (Some(Value::String(system)), "conversations") = (fields.get("system"), name)
        && !system.is_empty()
    {
        messages.insert(0, Message::new("system", system));
    }
    Ok(Record::Chat(Turns { messages, tools: tools(fields)? }))
}

fn messages(list: &[Value], name: &str, read: ReadMessage) -> Result<Vec<Message>, Reason> {
    if list.is_empty() {
        return Err(format!("`{name}` is empty"));
    }
    let one = |(i, value): (usize, &Value)| match value {
        Value::Object(message) => read(message).map_err(|reason| format!("{name}[{i}]: {reason}")),
        other => Err(format!("{name}[{i}] is {}, not a message", described(other))),
    };
    list.iter().enumerate().map(one).collect()
}

/// Some data sets hold the definitions as JSON within a string.
fn tools(fields: &Fields) -> Result<Option<Value>, Reason> {
    match fields.get("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(list @ Value::Array(_)) => Ok(Some(list)),
            _ => Err("`tools` is text, not a list of tools nor the JSON of one".into()),
        },
        Some(tools) => Ok(Some(tools.clone())),
    }
}

/// OpenAI writes a call's arguments as JSON within a string; templates expect the object and write its JSON themselves.
fn parse_arguments(calls: &mut Value) {
    for call in calls.as_array_mut().into_iter().flatten() {
        for place in ["/function/arguments", "/arguments"] {
            if let Some(arguments) = call.pointer_mut(place)
                && let Some(text) = arguments.as_str()
                && let Ok(object @ Value::Object(_)) = serde_json::from_str(text)
            {
                *arguments = object;
            }
        }
    }
}

fn openai_message(fields: &Fields) -> Result<Message, Reason> {
    let role = text(fields, "role")?;
    if !["system", "developer", "user", "assistant", "tool", "function"].contains(&role.as_str()) {
        return Err(format!("the role `{role}` is not one of system, developer, user, assistant, tool, function"));
    }
    let learned = match fields.get("weight") {
        None | Some(Value::Null) => true,
        Some(weight) => match weight.as_f64() {
            Some(0.0) => false,
            Some(1.0) => true,
            _ => return Err(format!("`weight` is {weight}; it may be 0 or 1")),
        },
    };
    let calls = given(fields, "tool_calls");
    let content = match fields.get("content") {
        None | Some(Value::Null) if calls => String::new(),
        Some(Value::Array(parts)) => parts.iter().map(text_part).collect::<Result<String, Reason>>()?,
        _ => text(fields, "content")?,
    };
    if content.is_empty() && role == "assistant" && learned && !calls {
        return Err("the assistant's `content` is empty".into());
    }
    let mut extra = fields.clone();
    extra.retain(|name, _| !["role", "content", "weight"].contains(&name.as_str()));
    extra.get_mut("tool_calls").into_iter().for_each(parse_arguments);
    Ok(Message { role, content, extra, learned })
}

fn text_part(part: &Value) -> Result<String, Reason> {
    match (part.get("type").and_then(Value::as_str), part.get("text")) {
        (Some("text") | None, Some(Value::String(text))) => Ok(text.clone()),
        (other, _) => Err(format!("a content part of type `{}`; only text can be learned", other.unwrap_or("?"))),
    }
}

fn sharegpt_message(fields: &Fields) -> Result<Message, Reason> {
    let from = text(fields, "from")?;
    let role = match from.as_str() {
        "human" | "user" => "user",
        "gpt" | "assistant" | "model" | "chatgpt" | "bing" | "bard" => "assistant",
        "system" => "system",
        "tool" | "function" | "observation" | "function_response" => "tool",
        _ => return Err(format!("`from` is `{from}`; known are human, user, gpt, assistant, model, system, tool")),
    };
    let learned = fields.get("weight").and_then(Value::as_f64) != Some(0.0);
    let content = if role == "assistant" && learned { filled(fields, "value")? } else { text(fields, "value")? };
    Ok(Message { learned, ..Message::new(role, &content) })
}

/// Whether there is such a field, and something in it.
fn given(fields: &Fields, name: &str) -> bool {
    fields.get(name).is_some_and(|value| !value.is_null())
}

fn get<'a>(fields: &'a Fields, name: &str) -> Result<&'a Value, Reason> {
    fields.get(name).ok_or_else(|| format!("there is no `{name}`; the record has {}", names(fields)))
}

/// A field as text. Numbers and truth values count: they are labels as often as not.
fn text(fields: &Fields, name: &str) -> Result<String, Reason> {
    match get(fields, name)? {
        Value::String(text) => Ok(text.clone()),
        value @ (Value::Number(_) | Value::Bool(_)) => Ok(value.to_string()),
        other => Err(format!("`{name}` is {}, not text", described(other))),
    }
}

fn filled(fields: &Fields, name: &str) -> Result<String, Reason> {
    match text(fields, name)? {
        text if text.trim().is_empty() => Err(format!("`{name}` is empty")),
        text => Ok(text),
    }
}

fn described(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn names(fields: &Fields) -> String {
    if fields.is_empty() {
        return "no fields".into();
    }
    fields.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn unrecognised(fields: &Fields) -> Reason {
    format!(
        "not a record that can be learned: it has {}, and wants `messages`, `prompt` and `completion`, `instruction` \
         and `output`, `conversations`, or `text`; name the columns with --prompt-column and --completion-column, or \
         --text-column",
        names(fields)
    )
}
