//! Requests, and the commands of a tool that does not exist: the data of the demo.
//!
//! `larder` keeps a pantry: ten subcommands with items, counts, shelves, dates, months, paths and people. No model has
//! seen it, so whatever a tuned model knows of it, it learned from these files:
//!
//! * `train.jsonl`              the requests to learn from
//! * `heldout_values.jsonl`     the same phrasings, with values that do not stand in them in the training data
//! * `heldout_phrasings.jsonl`  phrasings of which the training data have none
//!
//! A record has at most 57 tokens of `models/nano`. What PEFT reaches with them
//! (LoRA r = 8, alpha 16, all projections, 200 steps of 16, learning rate 5e-3 falling to 0; one run): exact match
//! from 0 % to 100 % on new values, and from 0 % to 82 % on new phrasings.

use super::{Part, Random, Row, Set, choose};
use serde_json::json;
use std::collections::HashSet;

const TRAIN_ROWS: usize = 60;
const HELD_OUT_ROWS: usize = 8;

/// A subcommand and how people ask for it. `{slot}` is a value (the same in request and command); `[a|b]` is a
/// choice of words.
struct Command {
    form: &'static str,
    seen: [&'static str; 9],
    unseen: [&'static str; 3],
}

const COMMANDS: [Command; 10] = [
    Command {
        form: "larder add {item} --count {count} --shelf {shelf}",
        seen: [
            "[Add|Put] {count} {item} [to|on] shelf {shelf}",
            "[Please store|Store|Place] {count} {item} on shelf {shelf}",
            "Shelf {shelf} [gets|receives] {count} {item}",
            "We bought {count} {item}, [put|store] them on shelf {shelf}",
            "{count} new {item} [for|go on] shelf {shelf}",
            "Stock shelf {shelf} with {count} [more |]{item}",
            "[Record|Note] {count} [more|new] {item} on shelf {shelf}",
            "I [want|need] to add {item} on shelf {shelf}, {count} of them",
            "New [delivery|stock]: {item}, {count} pieces, shelf {shelf}",
        ],
        unseen: [
            "Please put {count} {item} away on shelf {shelf}",
            "{count} {item} arrived, they go on shelf {shelf}",
            "Add to shelf {shelf}: {item}, {count} pieces",
        ],
    },
    Command {
        form: "larder take {item} --count {count}",
        seen: [
            "[Take|Please take] {count} {item}",
            "[Remove|Use] {count} {item} from stock",
            "I [just |]used {count} {item}",
            "We ate {count} {item} [today|for lunch]",
            "{count} {item} are [gone|used up]",
            "Give me {count} {item}",
            "[Get|Fetch] {count} {item} out [of the larder|]",
            "[Reduce|Lower] {item} by {count}",
            "I [need|take] {item} for cooking, {count} of them",
        ],
        unseen: [
            "Please take out {count} {item}",
            "I have just eaten {count} {item}",
            "Use {item} for dinner, {count} of them",
        ],
    },
    Command {
        form: "larder move {item} --from {shelf} --to {to}",
        seen: [
            "[Move|Please move] {item} from shelf {shelf} to shelf {to}",
            "[Carry|Bring] the {item} from {shelf} [over |]to {to}",
            "Shift {item} from shelf {shelf} [over |]to {to}",
            "The {item} on shelf {shelf} should [move|go] to shelf {to}",
            "Transfer {item}, shelf {shelf} to shelf {to}",
            "[Take|Put] the {item} of shelf {shelf} [over |]to shelf {to}",
            "Relocate {item} from {shelf} to {to}",
            "I [want|need] {item} moved from shelf {shelf} to shelf {to}",
            "From shelf {shelf} [bring|send] the {item} to shelf {to}",
        ],
        unseen: [
            "Please bring the {item} of shelf {shelf} over to shelf {to}",
            "The {item} should be moved from shelf {shelf} to {to}",
            "From shelf {shelf} to shelf {to}, move the {item}",
        ],
    },
    Command {
        form: "larder find {item}",
        seen: [
            "Where [is|are] the {item}",
            "[Find|Please find] [the |]{item}",
            "[Which|What] shelf has [the |]{item}",
            "Do we [still |]have [any |]{item}",
            "[Look|Search] for [the |]{item}",
            "[Is|Are] there any {item} [left|here]",
            "Locate [the |some ]{item}",
            "On which shelf [is|are] the {item}",
            "[Show|Tell] me where the {item} [is|are]",
        ],
        unseen: ["Where can I find the {item}", "Please look for {item}", "Which shelf is the {item} on"],
    },
    Command {
        form: "larder list --shelf {shelf} --sort {key}",
        seen: [
            "[List|Please list] shelf {shelf} by {key}",
            "Show [everything|all] on shelf {shelf} sorted by {key}",
            "What is on shelf {shelf}, [ordered|sorted] by {key}",
            "[Contents|Items] of shelf {shelf} by {key}",
            "Sort shelf {shelf} by {key} and [show|print] it",
            "[Print|Display] [all of |]shelf {shelf} by {key}",
            "[Give|Get] me a list of shelf {shelf} by {key}",
            "Shelf {shelf} listing [sorted|ordered] by {key}",
            "List all items of shelf {shelf} in order of {key}",
        ],
        unseen: [
            "Please show shelf {shelf} ordered by {key}",
            "Give me the contents of shelf {shelf} sorted by {key}",
            "Print what is on shelf {shelf} in order of {key}",
        ],
    },
    Command {
        form: "larder expire --before {date}",
        seen: [
            "What [expires|goes bad] before {date}",
            "[Show|Please show] [food|items] expiring before {date}",
            "[List|Find] everything that [expires|goes bad] by {date}",
            "Which [items|food] must be eaten before {date}",
            "Anything [expiring|going bad] [by|before] {date}",
            "What should we eat [by|before] {date}",
            "[Check|Show] expiry dates before {date}",
            "Food that will be bad [by|on] {date}",
            "I want to know what expires by {date}",
        ],
        unseen: [
            "Please list food that expires before {date}",
            "Which items go bad before {date}",
            "Find what must be eaten by {date}",
        ],
    },
    Command {
        form: "larder report --month {month} --out {path}",
        seen: [
            "[Write|Please write] the {month} report to {path}",
            "[Save|Export] a report for {month} [to|in] {path}",
            "Make a report of {month} and [save|put] it in {path}",
            "Report [for|on] {month}, file {path}",
            "[Create|Generate] {path} with the report for {month}",
            "I [need|want] the {month} report in {path}",
            "{month} report to {path}",
            "Put [a|the] report of {month} into {path}",
            "[Store|Export] the numbers of {month} in {path}",
        ],
        unseen: [
            "Please save the {month} report in {path}",
            "Generate a report of {month}, write it to {path}",
            "Into {path} goes the report for {month}",
        ],
    },
    Command {
        form: "larder alert {item} --below {count}",
        seen: [
            "[Warn|Alert] me when {item} [falls|drops] below {count}",
            "[Alert|Tell] me [if|when] there are fewer than {count} {item}",
            "Set an alert for {item} [at|below] {count}",
            "Remind me to buy {item} [when|if] below {count}",
            "[Warn|Notify] me if we have less than {count} {item}",
            "I want a warning when {item} [is|are] under {count}",
            "Alert below {count} for {item}",
            "[Send|Give] a warning if {item} [goes|go] under {count}",
            "Watch the {item} and [warn|tell] me below {count}",
        ],
        unseen: [
            "Please warn me if {item} drops under {count}",
            "Set a warning for fewer than {count} {item}",
            "Notify me when the {item} are below {count}",
        ],
    },
    Command {
        form: "larder share {shelf} --with {person}",
        seen: [
            "[Share|Please share] shelf {shelf} with {person}",
            "Let {person} [see|use] shelf {shelf}",
            "Give {person} access to shelf {shelf}",
            "{person} [may|can] use shelf {shelf}",
            "Open shelf {shelf} [for|to] {person}",
            "Allow {person} to [see|use|open] shelf {shelf}",
            "I want {person} to [have|see] shelf {shelf}",
            "Shelf {shelf} is [shared with|open to] {person}",
            "[Invite|Add] {person} to shelf {shelf}",
        ],
        unseen: [
            "Please give {person} access to my shelf {shelf}",
            "I want to share shelf {shelf} with {person}",
            "Let {person} have shelf {shelf} too",
        ],
    },
    Command {
        form: "larder label {shelf} --name {label}",
        seen: [
            "[Label|Please label] shelf {shelf} [as |]{label}",
            "[Name|Call] shelf {shelf} {label}",
            "Shelf {shelf} is [called|named] {label}",
            "[Set|Change] the name of shelf {shelf} to {label}",
            "Rename shelf {shelf} to {label}",
            "[Write|Put] {label} on the label of shelf {shelf}",
            "The label of shelf {shelf} [is|should be] {label}",
            "Use {label} as the [name|label] [of|for] shelf {shelf}",
            "Give shelf {shelf} the [name|label] {label}",
        ],
        unseen: [
            "Please name shelf {shelf} {label}",
            "Change the label of shelf {shelf} to {label}",
            "Shelf {shelf} should be called {label}",
        ],
    },
];

const ITEMS: &[&str] = &[
    "apples", "beans", "carrots", "cookies", "crackers", "dates", "eggs", "figs", "jam", "lemons", "lentils", "milk",
    "noodles", "nuts", "oats", "olives", "onions", "pasta", "peas", "plums", "rice", "soup", "sugar", "tea",
];
const PEOPLE: &[&str] =
    &["alice", "anna", "ben", "bob", "carl", "dana", "emma", "eric", "john", "mary", "max", "paul", "sam", "tom"];
const MONTHS: &[&str] = &[
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const LABELS: &[&str] =
    &["baking", "bread", "cans", "candy", "drinks", "fruit", "grain", "snacks", "spices", "sweets", "treats", "water"];
const KEYS: &[&str] = &["name", "date", "count"];
const FOLDERS: &[&str] = &["reports", "backup", "home", "shared", "data", "files"];
const FILES: &[&str] = &["stock.csv", "food.txt", "list.csv", "larder.txt", "month.csv", "all.txt"];

pub fn set() -> Set {
    let mut random = Random(2026);
    let mut taken = HashSet::new();
    let train = rows(TRAIN_ROWS, |command| &command.seen, &mut random, &mut taken);
    let values = rows(HELD_OUT_ROWS, |command| &command.seen, &mut random, &mut taken);
    let phrasings = rows(HELD_OUT_ROWS, |command| &command.unseen, &mut random, &mut taken);
    Set {
        id: "larder",
        title: "A private command-line tool",
        about: "Requests become commands of a pantry tool that does not exist, so no model can know it.",
        task: "commands",
        train: Part { file: "train.jsonl", rows: random.shuffled(train) },
        heldout: vec![
            ("New values", Part { file: "heldout_values.jsonl", rows: values }),
            ("New phrasings", Part { file: "heldout_phrasings.jsonl", rows: phrasings }),
        ],
        options: json!({ "steps": 200, "lr": 0.005, "warmup_steps": 10, "seq_len": 128 }),
    }
}

/// `count` rows for every command, its phrasings in turn. No request is used twice, and no command line where there
/// are enough of them (of `larder find` there are only as many as items).
fn rows(
    count: usize,
    phrasings: impl Fn(&Command) -> &[&'static str],
    random: &mut Random,
    taken: &mut HashSet<String>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for command in &COMMANDS {
        let phrasings = phrasings(command);
        for i in 0..count {
            let (request, line) = loop {
                let row = fill(phrasings[i % phrasings.len()], command.form, random);
                let scarce = command.form.matches('{').count() == 1;
                if !taken.contains(&row.0) && (scarce || !taken.contains(&row.1)) {
                    break row;
                }
            };
            taken.extend([request.clone(), line.clone()]);
            rows.push((request, line));
        }
    }
    rows
}

/// Puts the same values into a request and its command.
fn fill(phrasing: &str, form: &str, random: &mut Random) -> Row {
    let mut request = choose(phrasing, random);
    let mut line = form.to_string();
    while let Some((_, rest)) = line.split_once('{') {
        let slot = rest.split('}').next().unwrap_or_default().to_string();
        let mut value = value(&slot, random);
        while slot == "to" && line.contains(&format!("--from {value} ")) {
            value = self::value(&slot, random);
        }
        let slot = format!("{{{slot}}}");
        request = request.replace(&slot, &value);
        line = line.replace(&slot, &value);
    }
    (request, line)
}

fn value(slot: &str, random: &mut Random) -> String {
    match slot {
        "item" => random.pick(ITEMS).to_string(),
        "person" => random.pick(PEOPLE).to_string(),
        "month" => random.pick(MONTHS).to_string(),
        "label" => random.pick(LABELS).to_string(),
        "key" => random.pick(KEYS).to_string(),
        "path" => format!("{}/{}", random.pick(FOLDERS), random.pick(FILES)),
        "count" | "shelf" | "to" => random.between(2, 40).to_string(),
        "date" => format!("{}-{:02}-{:02}", random.between(2025, 2029), random.between(1, 12), random.between(1, 28)),
        other => unreachable!("COMMANDS has no values for {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_of_the_promised_size_and_apart() {
        let set = set();
        let (train, heldout) = (&set.train.rows, set.heldout.iter().flat_map(|(_, part)| &part.rows));
        assert_eq!((train.len(), heldout.clone().count()), (600, 160));
        for (request, command) in train.iter().chain(heldout) {
            assert!(command.starts_with("larder ") && !format!("{request}{command}").contains(['{', '[', '|', '"']));
        }
    }
}
