//! What is asked: a text, or a conversation that the model goes on with.

use super::Session;
use crate::data::Message;
use crate::error::{Error, Result};
use serde::Deserialize;

/// Who may speak.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a prompt is a text, or a list of messages with role and content")]
pub enum Prompt {
    Text(String),
    Talk(Vec<Message>),
}

impl<T: Into<String>> From<T> for Prompt {
    fn from(text: T) -> Prompt {
        Prompt::Text(text.into())
    }
}

impl Session {
    /// A prompt's ids, through the chat template (a text is a user's turn) or as plain text. Of a conversation that
    /// leaves too little room for an answer of so many tokens, the oldest turns are dropped.
    pub fn prompt_ids(&self, prompt: &Prompt, chat: bool, answer: usize) -> Result<Vec<u32>> {
        match (prompt, chat) {
            (Prompt::Text(text), false) => self.tokenizer.encode(text, true),
            (Prompt::Text(text), true) => self.tokenizer.encode_chat(&[Message::new("user", text)]),
            (Prompt::Talk(messages), true) => self.talk_ids(messages, answer),
            (Prompt::Talk(messages), false) => {
                let what = format!("is off, and a prompt has {} messages", messages.len());
                Err(Error::setting("chat", what, "turn it on, or ask with plain text"))
            }
        }
    }

    fn talk_ids(&self, messages: &[Message], answer: usize) -> Result<Vec<u32>> {
        check(messages)?;
        let context = self.room(true);
        // An answer may be allowed to be as long as the context: what was said before counts as much.
        let room = context - answer.min(context / 2);
        let mut talk = messages.to_vec();
        loop {
            let ids = self.tokenizer.encode_chat(&talk)?;
            if ids.len() <= room || !drop_oldest(&mut talk) {
                return Ok(ids);
            }
        }
    }
}

fn check(messages: &[Message]) -> Result<()> {
    if messages.is_empty() {
        return Err(Error::setting("prompt", "is a conversation without messages", "ask something"));
    }
    let known = |m: &Message| ROLES.contains(&m.role.as_str());
    let Some(at) = messages.iter().position(|m| !known(m)) else { return Ok(()) };
    let what = format!("has the role {:?} in message {}", messages[at].role, at + 1);
    Err(Error::setting("prompt", what, format!("the roles are {}", ROLES.join(", "))))
}

/// Drops the oldest question with what was said to it; what the system says stays, and so does the last question.
fn drop_oldest(talk: &mut Vec<Message>) -> bool {
    let from = talk.iter().take_while(|m| m.role == "system").count();
    let next = talk.iter().skip(from + 1).position(|m| m.role == "user");
    let Some(next) = next else { return false };
    talk.drain(from..from + 1 + next);
    true
}
