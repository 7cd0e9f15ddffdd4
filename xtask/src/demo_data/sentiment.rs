//! Short reviews and what they say of their subject: positive, negative or neutral.
//!
//! A review is a subject and a verdict, with a remark around them that says nothing. No verdict is told by one word:
//! "good" stands in praise and, with a "not", in complaint. Held out are pairs of subject and verdict that do not stand
//! together in the training data, and reviews of subjects that do not stand there at all.

use super::{Part, Random, Row, Set, capitalized};
use serde_json::json;
use std::collections::HashSet;

const TRAIN_ROWS: usize = 120;
const HELD_OUT_ROWS: usize = 20;

const SUBJECTS: &[&str] = &[
    "soup",
    "coffee",
    "bread",
    "pizza",
    "hotel",
    "lamp",
    "backpack",
    "concert",
    "bike",
    "phone",
    "blanket",
    "kettle",
    "tour",
    "museum",
    "train ride",
    "book",
    "film",
    "keyboard",
    "chair",
    "umbrella",
];
const NEW_SUBJECTS: &[&str] =
    &["cake", "camera", "hostel", "play", "table", "watch", "jacket", "ferry", "printer", "tea"];

/// What is said of a subject, by label.
const VERDICTS: [(&str, [&str; 16]); 3] = [
    (
        "positive",
        [
            "is wonderful",
            "was excellent",
            "is really good",
            "was great from start to end",
            "is better than I had hoped",
            "was a real joy",
            "is worth every cent",
            "made my day",
            "was not bad at all",
            "never let me down",
            "is the best I know",
            "was lovely",
            "is perfect for me",
            "made us all happy",
            "is one I love",
            "was a nice surprise",
        ],
    ),
    (
        "negative",
        [
            "is awful",
            "was terrible",
            "is really bad",
            "was poor from start to end",
            "is worse than I had feared",
            "was a waste of money",
            "is not worth a cent",
            "ruined my day",
            "was not good at all",
            "let me down",
            "is the worst I know",
            "was horrible",
            "is useless for me",
            "made us all angry",
            "is one I hate",
            "was a nasty surprise",
        ],
    ),
    (
        "neutral",
        [
            "is okay",
            "was average",
            "is neither good nor bad",
            "was nothing special",
            "is about what I had expected",
            "was like any other",
            "is as good as the old one",
            "did not change my day",
            "was fine, no more",
            "did what it should",
            "is like the others I know",
            "was ordinary",
            "is normal",
            "is all right",
            "is one of many",
            "was no surprise",
        ],
    ),
];

/// What stands before a review or behind it; `*` is the review.
const REMARKS: &[&str] = &[
    "*.",
    "I must say *.",
    "We think *.",
    "Well, *.",
    "*, my sister says.",
    "In short: *.",
    "Last week I told a friend: *.",
    "*. That is all.",
    "*. I write this on Friday.",
    "I paid for it myself: *.",
    "*, and I have had many.",
];

pub fn set() -> Set {
    let mut random = Random(5);
    let mut taken = HashSet::new();
    let train = rows(TRAIN_ROWS, SUBJECTS, &mut random, &mut taken);
    let pairs = rows(HELD_OUT_ROWS, SUBJECTS, &mut random, &mut taken);
    let subjects = rows(HELD_OUT_ROWS, NEW_SUBJECTS, &mut random, &mut taken);
    Set {
        id: "sentiment",
        title: "Sentiment of reviews",
        about: "Short reviews are labelled positive, negative or neutral, also for subjects it has never met.",
        task: "classification",
        train: Part { file: "gallery/sentiment_train.jsonl", rows: random.shuffled(train) },
        heldout: vec![
            ("New combinations", Part { file: "gallery/sentiment_combinations.jsonl", rows: random.shuffled(pairs) }),
            ("New subjects", Part { file: "gallery/sentiment_subjects.jsonl", rows: random.shuffled(subjects) }),
        ],
        options: json!({ "steps": 200, "lr": 0.005, "warmup_steps": 10, "seq_len": 128 }),
    }
}

/// `count` rows for every label, its verdicts in turn; no pair of subject and verdict is used twice.
fn rows(count: usize, subjects: &[&str], random: &mut Random, taken: &mut HashSet<String>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (label, verdicts) in VERDICTS {
        for i in 0..count {
            let verdict = verdicts[i % verdicts.len()];
            let review = loop {
                let review = format!("the {} {verdict}", random.pick(subjects));
                if taken.insert(review.clone()) {
                    break review;
                }
            };
            rows.push((capitalized(&random.pick(REMARKS).replace('*', &review)), label.to_string()));
        }
    }
    rows
}
