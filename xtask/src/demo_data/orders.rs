//! Short notes about orders and appointments, and the JSON that stands for them.
//!
//! What the model has to learn is to tell the two apart, to copy a name it has never met, and to write values as the
//! JSON wants them: "three" as 3, "2:30 pm" as 14:30. Names are put together from syllables; those held out do not
//! stand in the training data.

use super::{Part, Random, Row, Set, choose};
use serde_json::json;

const TRAIN_ROWS: usize = 240;
const HELD_OUT_ROWS: usize = 30;
/// The other names are held out.
const TRAIN_NAMES: usize = 150;

const ORDERS: &[&str] = &[
    "{name} [orders|wants|needs] {count} {item} [by|until] {day}",
    "[Please send|Send] {count} {item} to {name} [by|before] {day}",
    "{count} {item} for {name}, [needed|wanted] on {day}",
    "[Order from|New order,] {name}: {count} {item}, {day}",
    "On {day} {name} [needs|gets|wants] {count} {item}",
    "[I am|This is] {name}, I [need|want] {count} {item} by {day}",
];
const APPOINTMENTS: &[&str] = &[
    "{name} [comes|visits|is here] on {day} at {time}",
    "[Appointment|Meeting] with {name}, {day}, {time}",
    "On {day} at {time} [I meet|we see] {name}",
    "[Please book|Book] {name} for {day} at {time}",
    "{name} [called|wrote]: {day} at {time} is [fine|good]",
    "At {time} on {day} {name} [will come|has time]",
];

const HEADS: &[&str] =
    &["Al", "Be", "Ca", "Do", "El", "Fa", "Gi", "Ha", "Ir", "Jo", "Ka", "Lo", "Ma", "No", "Or", "Pe"];
const TAILS: &[&str] = &["ra", "lin", "mo", "nas", "ta", "vi", "ran", "sel", "da", "ken", "ro", "mi"];
const ITEMS: &[&str] = &["lamps", "tables", "chairs", "cups", "books", "boxes", "keys", "clocks", "pens", "ropes"];
const DAYS: &[&str] = &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const NUMBERS: &[&str] = &["two", "three", "four", "five", "six"];

pub fn set() -> Set {
    let mut random = Random(14);
    let names = HEADS.iter().flat_map(|head| TAILS.iter().map(move |tail| format!("{head}{tail}"))).collect();
    let names = random.shuffled(names);
    let (known, new) = names.split_at(TRAIN_NAMES);
    let train = rows(TRAIN_ROWS, known, &mut random);
    let heldout = rows(HELD_OUT_ROWS, new, &mut random);
    Set {
        id: "orders",
        title: "Notes to JSON",
        about: "Notes of orders and appointments become JSON; most of the names it has never met are copied right.",
        task: "extraction",
        train: Part { file: "gallery/orders_train.jsonl", rows: train },
        heldout: vec![("New names", Part { file: "gallery/orders_heldout.jsonl", rows: heldout })],
        options: json!({ "steps": 300, "lr": 0.005, "warmup_steps": 10, "seq_len": 128 }),
    }
}

/// `count` orders and as many appointments, their phrasings and the names in turn.
fn rows(count: usize, names: &[String], random: &mut Random) -> Vec<Row> {
    let mut rows = Vec::new();
    for i in 0..count {
        rows.push(order(ORDERS[i % ORDERS.len()], &names[2 * i % names.len()], random));
        rows.push(appointment(APPOINTMENTS[i % APPOINTMENTS.len()], &names[(2 * i + 1) % names.len()], random));
    }
    random.shuffled(rows)
}

fn order(phrasing: &str, name: &str, random: &mut Random) -> Row {
    let (item, day) = (random.pick(ITEMS), random.pick(DAYS));
    let (said, count) = count(random);
    let note = choose(phrasing, random).replace("{count}", &said).replace("{item}", item);
    (
        note.replace("{name}", name).replace("{day}", day),
        json!({ "order": item, "count": count, "name": name, "day": day }).to_string(),
    )
}

fn appointment(phrasing: &str, name: &str, random: &mut Random) -> Row {
    let day = random.pick(DAYS);
    let (said, time) = time(random);
    let note = choose(phrasing, random).replace("{time}", &said);
    (note.replace("{name}", name).replace("{day}", day), json!({ "meet": name, "day": day, "time": time }).to_string())
}

/// A number as a note has it, and as a number.
fn count(random: &mut Random) -> (String, u64) {
    let said = random.below(NUMBERS.len());
    match random.below(2) {
        0 => (NUMBERS[said].to_string(), said as u64 + 2),
        _ => {
            let count = random.between(2, 60);
            (count.to_string(), count)
        }
    }
}

/// A time of the day as a note has it, and as the JSON wants it.
fn time(random: &mut Random) -> (String, String) {
    let (hour, half) = (random.between(8, 18), random.between(0, 1) == 1);
    let (clock, part) = if hour > 12 { (hour - 12, "pm") } else { (hour, if hour == 12 { "pm" } else { "am" }) };
    let said = if half { format!("{clock}:30 {part}") } else { format!("{clock} {part}") };
    (said, format!("{hour:02}:{}", if half { "30" } else { "00" }))
}
