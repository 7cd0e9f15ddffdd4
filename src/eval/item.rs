//! Records as items of a test: what is asked, what is expected, and the further fields of the line, which some tasks
//! need (`domain` of an API call; `functions` and `ground_truth` of a function call).

use crate::data::{Message, Record, Records, Turns};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;

#[derive(Clone, Debug)]
pub struct Item {
    /// Where it stands in its file.
    pub line: u64,
    pub record: Record,
    /// What is asked last, for people.
    pub input: String,
    /// The last answer of the record; a text is expected as a whole.
    pub expected: String,
    /// The line as JSON; null where the file is none.
    pub fields: Value,
}

/// The items of a file, whose text was read into `records`.
pub fn items(records: &Records, text: &str) -> Result<Vec<Item>> {
    let lines: HashMap<u64, Value> =
        (1..).zip(text.lines()).filter_map(|(n, line)| Some((n, serde_json::from_str(line).ok()?))).collect();
    let item = |(line, record): &(u64, Record)| {
        let (input, expected) = last_turn(record).ok_or_else(|| Error::Data {
            file: records.file.clone(),
            line: Some(*line),
            what: "the conversation does not end with an assistant's message, which would be the expected answer"
                .into(),
            hint: "leave such records out, or add the answer".into(),
        })?;
        let fields = lines.get(line).cloned().unwrap_or_default();
        Ok(Item { line: *line, record: record.clone(), input, expected, fields })
    };
    records.records.iter().map(item).collect()
}

/// The last question and its answer.
fn last_turn(record: &Record) -> Option<(String, String)> {
    match record {
        Record::Chat(turns) => {
            let (answer, before) = turns.messages.split_last()?;
            let asked = before.iter().rev().find(|m| !m.is_assistant()).map(|m| m.content.clone());
            answer.is_assistant().then(|| (asked.unwrap_or_default(), answer.content.clone()))
        }
        Record::Pair { prompt, completion } => Some((prompt.clone(), completion.clone())),
        Record::Instruction { instruction, input, output } if input.is_empty() => {
            Some((instruction.clone(), output.clone()))
        }
        Record::Instruction { instruction, input, output } => {
            Some((format!("{instruction}\n\n{input}"), output.clone()))
        }
        Record::Text { text, .. } => Some((String::new(), text.clone())),
    }
}

/// The record with another last answer, and nothing else to learn.
pub fn with_answer(record: &Record, answer: &str) -> Record {
    let mut record = record.clone();
    match &mut record {
        Record::Chat(turns) => {
            turns.messages.iter_mut().for_each(|m| m.learned = false);
            if let Some(last) = turns.messages.last_mut() {
                (last.content, last.learned) = (answer.into(), true);
            }
        }
        // Where prompt and completion are joined as they stand, the completion's first space is part of the joint.
        Record::Pair { completion, .. } => *completion = format!("{}{answer}", leading_space(completion)),
        Record::Instruction { output, .. } => *output = answer.into(),
        Record::Text { text, .. } => *text = answer.into(),
    }
    record
}

fn leading_space(text: &str) -> &str {
    &text[..text.len() - text.trim_start().len()]
}

/// The record with worked examples before it: as earlier turns of the conversation where the model has a chat template,
/// else as text, a blank line between them.
pub fn with_shots(record: &Record, shots: &[&Record], chat: bool) -> Record {
    if shots.is_empty() {
        return record.clone();
    }
    match (chat, record.turns()) {
        (true, Some(Turns { messages, tools })) => {
            let (system, asked): (Vec<Message>, Vec<Message>) =
                messages.into_iter().partition(|message| message.role == "system");
            let shown = shots.iter().filter_map(|shot| shot.turns()).flat_map(|turns| turns.messages);
            let shown = shown.filter(|m| m.role != "system").map(|m| Message { learned: false, ..m });
            let messages = system.into_iter().chain(shown).chain(asked).collect();
            Record::Chat(Turns { messages, tools })
        }
        _ => {
            let shown: String =
                shots.iter().filter_map(|s| s.plain()).map(|(before, after)| format!("{before}{after}\n\n")).collect();
            let (before, after) = record.plain().unwrap_or_default();
            Record::Pair { prompt: shown + &before, completion: after }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(prompt: &str, completion: &str) -> Record {
        Record::Pair { prompt: prompt.into(), completion: completion.into() }
    }

    #[test]
    fn shots_go_before_the_question() {
        let (shot, asked) = (pair("2+2=", " 4"), pair("3+3=", " 6"));
        assert_eq!(with_shots(&asked, &[&shot], false), pair("2+2= 4\n\n3+3=", " 6"));
        let Record::Chat(turns) = with_shots(&asked, &[&shot], true) else { panic!("a chat") };
        let said: Vec<(&str, bool)> = turns.messages.iter().map(|m| (m.content.as_str(), m.learned)).collect();
        assert_eq!(said, [("2+2=", false), (" 4", false), ("3+3=", true), (" 6", true)]);
        assert_eq!(with_answer(&asked, "7"), pair("3+3=", " 7"), "the joint stays");
    }
}
