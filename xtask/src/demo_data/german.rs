//! A little English, and the German for it.
//!
//! The grammar is small but real: three genders, the accusative of a thing that is done something to ("der Hund", but
//! "ich sehe den Hund"), endings of adjectives after "der" and after "ein", verbs by person, the verb as the second
//! part of a sentence ("Heute sehe ich ..."), first in a question, and at the end after "will", "kann" and "muss".
//!
//! Held out are sentences whose verb or adjective never stands with their noun in the training data.

use super::{Part, Random, Row, Set, capitalized};
use serde_json::json;
use std::collections::HashSet;

const TRAIN_ROWS: usize = 100;
const HELD_OUT_ROWS: usize = 15;

#[derive(Clone, Copy)]
enum Gender {
    Masculine,
    Feminine,
    Neuter,
}
use Gender::{Feminine, Masculine, Neuter};

struct Noun {
    english: &'static str,
    german: &'static str,
    gender: Gender,
}

const fn noun(english: &'static str, german: &'static str, gender: Gender) -> Noun {
    Noun { english, german, gender }
}

const NOUNS: [Noun; 12] = [
    noun("dog", "Hund", Masculine),
    noun("table", "Tisch", Masculine),
    noun("ball", "Ball", Masculine),
    noun("hat", "Hut", Masculine),
    noun("cat", "Katze", Feminine),
    noun("lamp", "Lampe", Feminine),
    noun("cup", "Tasse", Feminine),
    noun("flower", "Blume", Feminine),
    noun("book", "Buch", Neuter),
    noun("car", "Auto", Neuter),
    noun("house", "Haus", Neuter),
    noun("picture", "Bild", Neuter),
];

/// An adjective and its stem in German, to which endings are put.
const ADJECTIVES: [(&str, &str); 5] =
    [("small", "klein"), ("old", "alt"), ("new", "neu"), ("red", "rot"), ("big", "groß")];

struct Verb {
    english: &'static str,
    infinitive: &'static str,
    /// Of ich, er and sie (she), wir and sie (they).
    forms: [&'static str; 3],
}

const fn verb(english: &'static str, infinitive: &'static str, forms: [&'static str; 3]) -> Verb {
    Verb { english, infinitive, forms }
}

const VERBS: [Verb; 5] = [
    verb("see", "sehen", ["sehe", "sieht", "sehen"]),
    verb("buy", "kaufen", ["kaufe", "kauft", "kaufen"]),
    verb("find", "finden", ["finde", "findet", "finden"]),
    verb("need", "brauchen", ["brauche", "braucht", "brauchen"]),
    verb("draw", "zeichnen", ["zeichne", "zeichnet", "zeichnen"]),
];

const MODALS: [(&str, [&str; 3]); 2] = [("can", ["kann", "kann", "können"]), ("must", ["muss", "muss", "müssen"])];

struct Person {
    english: &'static str,
    german: &'static str,
    /// Which of a verb's forms.
    form: usize,
}

const PERSONS: [Person; 5] = [
    Person { english: "I", german: "ich", form: 0 },
    Person { english: "he", german: "er", form: 1 },
    Person { english: "she", german: "sie", form: 1 },
    Person { english: "we", german: "wir", form: 2 },
    Person { english: "they", german: "sie", form: 2 },
];

const ADVERBS: [(&str, &str); 3] = [("today", "heute"), ("now", "jetzt"), ("here", "hier")];

impl Person {
    /// "see", but "he sees".
    fn english_verb(&self, verb: &Verb) -> String {
        if self.form == 1 { format!("{}s", verb.english) } else { verb.english.to_string() }
    }

    fn do_or_does(&self) -> &'static str {
        if self.form == 1 { "does" } else { "do" }
    }
}

#[derive(Clone, Copy)]
enum Article {
    The,
    A,
    My,
}

impl Article {
    fn english(self, next: &str) -> &'static str {
        match self {
            Article::The => "the",
            Article::A if next.starts_with(['a', 'e', 'i', 'o', 'u']) => "an",
            Article::A => "a",
            Article::My => "my",
        }
    }

    fn nominative(self, gender: Gender) -> &'static str {
        match (self, gender) {
            (Article::The, Masculine) => "der",
            (Article::The, Feminine) => "die",
            (Article::The, Neuter) => "das",
            (Article::A, Feminine) => "eine",
            (Article::A, _) => "ein",
            (Article::My, Feminine) => "meine",
            (Article::My, _) => "mein",
        }
    }

    /// Only masculine nouns show that something is done to them.
    fn accusative(self, gender: Gender) -> &'static str {
        match (self, gender) {
            (Article::The, Masculine) => "den",
            (Article::A, Masculine) => "einen",
            (Article::My, Masculine) => "meinen",
            _ => self.nominative(gender),
        }
    }

    /// An adjective's ending in the accusative: it shows the gender where the article does not.
    fn ending(self, gender: Gender) -> &'static str {
        match (self, gender) {
            (_, Masculine) => "en",
            (_, Feminine) | (Article::The, Neuter) => "e",
            (_, Neuter) => "es",
        }
    }
}

/// Something to which something is done, in English and German.
fn object(article: Article, adjective: Option<(&str, &str)>, noun: &Noun) -> (String, String) {
    let accusative = article.accusative(noun.gender);
    match adjective {
        None => {
            (format!("{} {}", article.english(noun.english), noun.english), format!("{accusative} {}", noun.german))
        }
        Some((english, stem)) => (
            format!("{} {english} {}", article.english(english), noun.english),
            format!("{accusative} {stem}{} {}", article.ending(noun.gender), noun.german),
        ),
    }
}

/// The kinds of sentences.
#[derive(Clone, Copy)]
enum Sentence {
    /// I see the dog.
    Plain,
    /// Today I see the dog.
    Fronted,
    /// Do I see the dog?
    Question,
    /// I can see the dog.
    Modal,
    /// My dog is small.
    Trait,
}

const SENTENCES: [Sentence; 5] =
    [Sentence::Plain, Sentence::Fronted, Sentence::Question, Sentence::Modal, Sentence::Trait];

pub fn set() -> Set {
    let mut random = Random(3);
    let mut taken = HashSet::new();
    let train = rows(TRAIN_ROWS, false, &mut random, &mut taken);
    let heldout = rows(HELD_OUT_ROWS, true, &mut random, &mut taken);
    Set {
        id: "german",
        title: "English to German",
        about: "Sentences of a small vocabulary become German, with articles, cases, endings and the verb in its place.",
        task: "translation",
        train: Part { file: "gallery/german_train.jsonl", rows: random.shuffled(train) },
        heldout: vec![(
            "New combinations",
            Part { file: "gallery/german_heldout.jsonl", rows: random.shuffled(heldout) },
        )],
        options: json!({ "steps": 300, "lr": 0.005, "warmup_steps": 10, "seq_len": 128 }),
    }
}

/// `count` sentences of every kind, none of them used twice.
fn rows(count: usize, heldout: bool, random: &mut Random, taken: &mut HashSet<String>) -> Vec<Row> {
    let mut rows = Vec::new();
    for sentence in SENTENCES {
        let mut left = count;
        while left > 0 {
            let words = Words::draw(random);
            let (english, german) = words.say(sentence);
            if words.held_out(sentence) == heldout && taken.insert(english.clone()) {
                rows.push((english, german));
                left -= 1;
            }
        }
    }
    rows
}

/// What a sentence is made of, by place in the tables.
struct Words {
    noun: usize,
    verb: usize,
    adjective: usize,
    /// Whether the adjective stands before the noun.
    described: bool,
    article: Article,
    person: &'static Person,
    adverb: (&'static str, &'static str),
    modal: &'static (&'static str, [&'static str; 3]),
}

impl Words {
    fn draw(random: &mut Random) -> Self {
        Words {
            noun: random.below(NOUNS.len()),
            verb: random.below(VERBS.len()),
            adjective: random.below(ADJECTIVES.len()),
            described: random.below(2) == 0,
            article: [Article::The, Article::A, Article::My][random.below(3)],
            person: &PERSONS[random.below(PERSONS.len())],
            adverb: ADVERBS[random.below(ADVERBS.len())],
            modal: &MODALS[random.below(MODALS.len())],
        }
    }

    /// A fifth of all pairs of verb and noun, and of adjective and noun, is kept from the training data.
    fn held_out(&self, sentence: Sentence) -> bool {
        let apart = |word: usize| (word + self.noun).is_multiple_of(5);
        match sentence {
            Sentence::Trait => apart(self.adjective),
            _ => apart(self.verb) || self.described && apart(self.adjective),
        }
    }

    fn say(&self, sentence: Sentence) -> Row {
        let Words { person, adverb, .. } = self;
        let verb = &VERBS[self.verb];
        let (thing, ding) =
            object(self.article, self.described.then_some(ADJECTIVES[self.adjective]), &NOUNS[self.noun]);
        let (me, ich, form) = (person.english, person.german, verb.forms[person.form]);
        let sees = person.english_verb(verb);
        let (english, german) = match sentence {
            Sentence::Plain => (format!("{me} {sees} {thing}."), format!("{ich} {form} {ding}.")),
            Sentence::Fronted => {
                (format!("{} {me} {sees} {thing}.", adverb.0), format!("{} {form} {ich} {ding}.", adverb.1))
            }
            Sentence::Question => {
                (format!("{} {me} {} {thing}?", person.do_or_does(), verb.english), format!("{form} {ich} {ding}?"))
            }
            Sentence::Modal => {
                let (can, kann) = (self.modal.0, self.modal.1[person.form]);
                (format!("{me} {can} {} {thing}.", verb.english), format!("{ich} {kann} {ding} {}.", verb.infinitive))
            }
            Sentence::Trait => self.say_trait(),
        };
        (capitalized(&english), capitalized(&german))
    }

    fn say_trait(&self) -> Row {
        let (noun, (small, klein)) = (&NOUNS[self.noun], ADJECTIVES[self.adjective]);
        (
            format!("{} {} is {small}.", self.article.english(noun.english), noun.english),
            format!("{} {} ist {klein}.", self.article.nominative(noun.gender), noun.german),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn german_is_correct() {
        let answers: std::collections::HashMap<String, String> = all().into_iter().collect();
        for (english, german) in [
            ("I see the dog.", "Ich sehe den Hund."),
            ("He needs a small house.", "Er braucht ein kleines Haus."),
            ("Today they find my red hat.", "Heute finden sie meinen roten Hut."),
            ("Does she draw an old lamp?", "Zeichnet sie eine alte Lampe?"),
            ("We must buy the new car.", "Wir müssen das neue Auto kaufen."),
            ("I can see a big ball.", "Ich kann einen großen Ball sehen."),
            ("My picture is old.", "Mein Bild ist alt."),
            ("The flower is red.", "Die Blume ist rot."),
        ] {
            assert_eq!(answers.get(english).map(String::as_str), Some(german), "{english}");
        }
    }

    /// Enough sentences to have every one among them.
    fn all() -> Vec<Row> {
        let mut random = Random(0);
        (0..200_000).map(|i| Words::draw(&mut random).say(SENTENCES[i % SENTENCES.len()])).collect()
    }
}
