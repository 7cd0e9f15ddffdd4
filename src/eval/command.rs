//! Command lines as answers. Words are cut as a shell cuts them (quotes and backslashes), `--name=value` is the flag
//! `--name` and the word `value`; a flag is a word that begins with `-` and is no number. Nothing is run.
//!
//! * exact: the same words in the same order;
//! * same: the same program, flags and other words, in any order;
//! * program: the first word;
//! * flags: F1 of the flags.

use super::score::Counts;

/// Places of the counts: items, exact, same, program, and flags matched, answered, expected.
pub const COUNTS: usize = 7;

pub fn counts(answer: &str, expected: &str) -> Counts {
    let (answer, expected) = (words(answer), words(expected));
    let (mut given, mut wanted) = (answer.clone(), expected.clone());
    given.sort();
    wanted.sort();
    let flags = |words: &[String]| words.iter().filter(|w| is_flag(w)).cloned().collect::<Vec<_>>();
    let (given_flags, wanted_flags) = (flags(&given), flags(&wanted));
    let mut left = wanted_flags.clone();
    let matched = given_flags.iter().filter(|flag| {
        let at = left.iter().position(|l| l == *flag);
        at.map(|at| left.swap_remove(at)).is_some()
    });
    let matched = matched.count();
    let program = answer.first() == expected.first();
    let number = |is: bool| f64::from(u8::from(is));
    let amounts = [
        1.0,
        number(answer == expected),
        number(program && given == wanted),
        number(program),
        matched as f64,
        given_flags.len() as f64,
        wanted_flags.len() as f64,
    ];
    amounts.into_iter().enumerate().collect()
}

fn is_flag(word: &str) -> bool {
    word.len() > 1 && word.starts_with('-') && word.parse::<f64>().is_err()
}

/// The words of a command line; an open quote goes to the end.
pub fn words(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.trim().chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, c) if c.is_whitespace() => all.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    all.extend(word);
    all.into_iter().flat_map(parted).collect()
}

/// `--name=value` as two words.
fn parted(word: String) -> Vec<String> {
    match word.split_once('=') {
        Some((name, value)) if name.starts_with("--") => vec![name.into(), value.into()],
        _ => vec![word],
    }
}
