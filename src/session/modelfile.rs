//! Ollama's Modelfile: where the weights are, how a conversation is put into text, what ends an answer.
//!
//! Ollama's templates are Go's, models' are Jinja. A Jinja template is not translated but observed: what it puts before
//! each turn of a sample conversation is what the Go template puts there. Where a template does more than that, none is
//! written, and Ollama chooses one by the template that the GGUF file carries.

use crate::data::{Message, Tokenizer};
use crate::error::Result;

/// Stand for the contents of the sample's turns; no template has them.
const CONTENTS: [&str; 5] = ["\u{FDD2}0", "\u{FDD2}1", "\u{FDD2}2", "\u{FDD2}3", "\u{FDD2}4"];

/// The file for a merged model in `gguf`, which lies beside it.
pub fn modelfile(gguf: &str, tokenizer: &Tokenizer) -> String {
    let mut out = format!("FROM ./{gguf}\n");
    match tokenizer.chat_template().and_then(|_| template(tokenizer)) {
        Some(template) => out += &format!("TEMPLATE \"\"\"{template}\"\"\"\n"),
        None if tokenizer.chat_template().is_some() => {
            out +=
                "# The chat template says more than a TEMPLATE can: Ollama takes the one that is in the GGUF file.\n";
        }
        None => out += "TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n",
    }
    let ends = tokenizer.eos_ids().into_iter().filter_map(|id| tokenizer.token(id));
    for end in ends.filter(|end| !end.contains('"')) {
        out += &format!("PARAMETER stop \"{end}\"\n");
    }
    out
}

/// The text before each turn, and at the end the cue to answer.
fn observed(tokenizer: &Tokenizer, roles: &[&str]) -> Result<Vec<String>> {
    let messages: Vec<Message> =
        roles.iter().zip(CONTENTS).map(|(role, content)| Message::new(role, content)).collect();
    let text = tokenizer.render_chat(&messages, true)?;
    let mut rest = text.as_str();
    let mut leads = Vec::new();
    for content in &CONTENTS[..roles.len()] {
        let Some((lead, after)) = rest.split_once(content) else { return Ok(Vec::new()) };
        leads.push(lead.to_string());
        rest = after;
    }
    leads.push(rest.to_string());
    Ok(leads)
}

/// Go's template, where the model's is one text before each kind of turn and nothing else.
fn template(tokenizer: &Tokenizer) -> Option<String> {
    let with_system = observed(tokenizer, &["system", "user", "assistant", "user"]).ok()?;
    let [system, user, assistant, again, cue] = <[String; 5]>::try_from(with_system).ok()?;
    let alone = observed(tokenizer, &["user", "assistant", "user"]).ok()?;
    let [first, answer, next, last] = <[String; 4]>::try_from(alone).ok()?;
    let steady = user == again && again == next && assistant == cue && answer == assistant && last == cue;
    // Ollama puts bos in front by itself where the file says so.
    let bos = tokenizer.prefix();
    let strip = |lead: &str| lead.strip_prefix(&bos).unwrap_or(lead).to_string();
    let (system, first) = (strip(&system), strip(&first));
    let plain =
        [&system, &first, &user, &assistant].iter().all(|text| !text.contains("{{") && !text.contains("\"\"\""));
    if !(steady && plain) {
        return None;
    }
    let opening = if first == user { user } else { format!("{{{{ if $i }}}}{user}{{{{ else }}}}{first}{{{{ end }}}}") };
    Some(format!(
        "{{{{ range $i, $m := .Messages }}}}\
         {{{{ if eq .Role \"system\" }}}}{system}\
         {{{{ else if eq .Role \"user\" }}}}{opening}\
         {{{{ else }}}}{assistant}{{{{ end }}}}\
         {{{{ .Content }}}}{{{{ end }}}}{assistant}"
    ))
}
