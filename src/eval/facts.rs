//! Short answers, compared as SQuAD's script compares them: lower case, without punctuation and the articles a, an,
//! the.

use super::score::Counts;

/// Places of the counts: items, same, contains.
pub const COUNTS: usize = 3;

/// The words that count.
pub fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let kept: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let article = |word: &str| matches!(word, "a" | "an" | "the");
    kept.split_whitespace().filter(|word| !article(word)).map(String::from).collect()
}

/// `contains`: the expected words stand somewhere in the answer, one behind the other.
pub fn counts(answer: &str, expected: &str) -> Counts {
    let (answer, expected) = (words(answer), words(expected));
    let contains = match expected.len() {
        0 => answer.is_empty(),
        n => answer.windows(n).any(|part| part == expected),
    };
    let flag = |is: bool| f64::from(u8::from(is));
    vec![(0, 1.0), (1, flag(answer == expected)), (2, flag(contains))]
}
