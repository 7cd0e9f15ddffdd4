//! API calls as answers, compared with a list of known APIs as Gorilla's evaluation compares them (AST sub-tree match).
//!
//! The call is the text between `api_call` and `api_provider`, from behind the colon to the last parenthesis. It is
//! parsed; for every API of the list, in order, the first sub-tree whose first child is the API's function has to hold
//! all arguments of the API as text. The first API that fits is what the answer names:
//!
//! * accuracy: the API's *domain* is the expected one (not the API itself: see `exact`);
//! * hallucination: no API fits;
//! * exact: the answer holds every literal of the reference's own call. This is stricter, and what a user would want.
//!
//! Where no sub-tree has the function, Gorilla's script goes on with the last one it visited; so does this. Where the
//! text does not parse (broken quotes, mostly), the calls that can be found in it are taken instead. One difference is
//! on purpose: the script keeps a quote that opens before the call, and cannot read what stands behind a single one.
//! Here the quote is dropped, so that a right call counts however it is quoted; on Gorilla's own answers for TorchHub,
//! where 5 to 22 of 186 answers stand behind one, the script's hallucination is that much higher than ours.

use super::python::{Argument, Expr, Kind, Statement, expression, statements};
use serde_json::Value as Json;

/// A known API: its function and the arguments that tell it from others.
#[derive(Clone, Debug)]
pub struct Api {
    pub domain: String,
    function: String,
    arguments: Vec<String>,
}

/// The list of known APIs: JSON lines with `api_call` and `domain`. Entries that are no plain call are never matched.
pub fn list(text: &str) -> Result<Vec<Api>, String> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let api = |(number, line): (usize, &str)| {
        let entry: Json = serde_json::from_str(line).map_err(|e| format!("line {number}: not JSON: {e}"))?;
        let field = |name: &str| entry[name].as_str().ok_or(format!("line {number}: there is no text called {name}"));
        let (call, domain) = (field("api_call")?, field("domain")?.to_string());
        let (function, arguments) = identity(call).unwrap_or_default();
        Ok(Api { domain, function, arguments })
    };
    lines.map(api).collect()
}

/// The function of a call and the arguments that Gorilla's scripts look at: of `torch.hub.load` the repository and the
/// model; of others all, without the names of the keywords.
fn identity(call: &str) -> Option<(String, Vec<String>)> {
    let first = statements(call)?.into_iter().next().filter(|s| s.targets.is_empty())?.value;
    let Kind::Call { function, arguments } = &first.kind else { return None };
    let function = function.text(call).to_string();
    let named = |a: &&Argument| ["repo_or_dir", "model"].iter().any(|name| call[a.span.clone()].contains(name));
    let used = arguments.iter().filter(|a| function != "torch.hub.load" || named(a));
    let value = |a: &Argument| a.value.text(call).trim_matches('\'').to_string();
    Some((function.clone(), used.map(value).collect()))
}

/// The call of an answer. Answers without the word `api_call` are calls themselves.
pub fn call_of(answer: &str) -> &str {
    let Some((_, behind)) = answer.split_once("api_call") else { return answer.trim() };
    let behind = behind.split("api_call").next().unwrap_or(behind);
    let behind = behind.split("api_provider").next().unwrap_or(behind);
    let start = behind.find(':').map_or(0, |at| at + 1);
    let end = behind.rfind(')').map_or(behind.len(), |at| at + 1);
    behind.get(start..end).unwrap_or_default().trim().trim_start_matches(['\\', '\'', '"', '`'])
}

/// A sub-tree: its text and that of its first child.
struct Tree<'a> {
    first: &'a str,
    text: &'a str,
    children: Vec<Tree<'a>>,
}

/// All sub-trees in the order in which Gorilla's script visits them: from a stack, the last child first.
fn subtrees(source: &str) -> Vec<(&str, &str)> {
    let Some(all) = statements(source) else { return loose_calls(source) };
    let children: Vec<Tree> = all.iter().map(|s| statement_tree(source, s)).collect();
    let first = children.first().map_or("", |c| c.text);
    let (mut stack, mut visited) = (vec![Tree { first, text: source, children }], Vec::new());
    while let Some(Tree { first, text, children }) = stack.pop() {
        visited.push((first, text));
        stack.extend(children);
    }
    visited
}

fn statement_tree<'a>(source: &'a str, s: &Statement) -> Tree<'a> {
    let value = tree(source, &s.value);
    let Some(target) = s.targets.first() else {
        let text = s.value.text(source);
        return Tree { first: text, text, children: value.into_iter().collect() };
    };
    let text = &source[target.span.start..s.value.span.end];
    let children = tree(source, target).into_iter().chain(value).collect();
    let assignment = Tree { first: target.text(source), text, children };
    Tree { first: text, text, children: vec![assignment] }
}

/// The tree of an expression as tree-sitter would make it; None for a leaf.
fn tree<'a>(source: &'a str, expr: &Expr) -> Option<Tree<'a>> {
    let text = expr.text(source);
    let of = |first: &'a str, parts: &[&Expr]| {
        Some(Tree { first, text, children: parts.iter().filter_map(|p| tree(source, p)).collect() })
    };
    match &expr.kind {
        Kind::Name(_) | Kind::Int(_) | Kind::Float(_) | Kind::Bool(_) | Kind::None => None,
        Kind::Text(_) => of(&text[..1], &[]),
        Kind::Attribute(object, _) => of(object.text(source), &[object]),
        Kind::Subscript(object, index) => of(object.text(source), &[object, index]),
        Kind::Unary(_, operand) => of(&text[..1], &[operand]),
        Kind::Binary(left, _, right) => of(left.text(source), &[left, right]),
        Kind::List(items) | Kind::Tuple(items) | Kind::Set(items) => of(&text[..1], &items.iter().collect::<Vec<_>>()),
        Kind::Dict(pairs) => {
            let pair = |(k, v): &(Expr, Expr)| {
                let children = [k, v].into_iter().filter_map(|e| tree(source, e)).collect();
                Tree { first: k.text(source), text: &source[k.span.start..v.span.end], children }
            };
            Some(Tree { first: &text[..1], text, children: pairs.iter().map(pair).collect() })
        }
        Kind::Call { function, arguments } => {
            let list = &source[function.span.end..expr.span.end];
            let children = arguments.iter().filter_map(|a| argument_tree(source, a)).collect();
            let list = Tree { first: "(", text: list, children };
            let children = tree(source, function).into_iter().chain([list]).collect();
            Some(Tree { first: function.text(source), text, children })
        }
    }
}

fn argument_tree<'a>(source: &'a str, a: &Argument) -> Option<Tree<'a>> {
    let value = tree(source, &a.value);
    let text = &source[a.span.clone()];
    let first = match a.name.as_deref() {
        None => return value,
        Some("**") => "**",
        Some(_) => text.split('=').next().unwrap_or(text).trim_end(),
    };
    Some(Tree { first, text, children: value.into_iter().collect() })
}

/// (function, call) wherever a name with a parenthesis stands in a text that is no Python as a whole. A call ends where
/// its parenthesis closes, else with the text; quotes are not looked at, for they are what is usually broken.
fn loose_calls(source: &str) -> Vec<(&str, &str)> {
    let opening = source.char_indices().filter(|(_, c)| *c == '(').map(|(at, _)| at);
    let call = |open: usize| {
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        let before = source[..open].trim_end_matches(word).len();
        let mut depth = 0;
        let close = source[open..].char_indices().find(|(_, c)| {
            depth += i32::from(*c == '(') - i32::from(*c == ')');
            depth == 0
        });
        let end = close.map_or(source.len(), |(at, _)| open + at + 1);
        (before < open).then(|| (&source[before..open], &source[before..end]))
    };
    opening.filter_map(call).collect()
}

/// Which of the APIs the answer names.
pub fn find(answer: &str, apis: &[Api]) -> Option<usize> {
    let visited = subtrees(call_of(answer));
    let last = visited.last()?;
    apis.iter().position(|api| {
        let (_, text) = visited.iter().find(|(first, _)| *first == api.function).unwrap_or(last);
        !api.arguments.is_empty() && api.arguments.iter().all(|argument| text.contains(argument.as_str()))
    })
}

/// Whether the answer holds all literals of the reference's call.
pub fn exact(answer: &str, reference: &str) -> bool {
    let call = call_of(answer);
    let reference = call_of(reference);
    let literals = |text: &str| {
        let Expr { kind: Kind::Call { function, arguments }, .. } = expression(text)? else { return None };
        let value = |a: &Argument| a.value.text(text).trim_matches(['\'', '"']).to_string();
        Some((function.text(text).to_string(), arguments.iter().map(value).collect::<Vec<_>>()))
    };
    match literals(reference) {
        Some((function, values)) => {
            call.contains(&function) && values.iter().all(|value| call.contains(value.as_str()))
        }
        None => call == reference,
    }
}
