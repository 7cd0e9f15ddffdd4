//! JSON as answers: whether it is JSON at all, whether it is the expected object, and which of its fields are right.
//!
//! The whole answer has to be JSON, but for white space around it. Objects are equal whatever the order of their keys.
//! A field is a path to a value that holds no others, with the value; the place in a list is no part of the path.

use super::score::Counts;
use serde_json::Value;

/// Places of the counts: items, same, valid, and fields matched, answered, expected.
pub const COUNTS: usize = 6;

pub fn counts(answer: &str, expected: &Value) -> Counts {
    let answered = serde_json::from_str::<Value>(answer.trim()).ok();
    let wanted = fields(expected);
    let given = answered.as_ref().map(fields).unwrap_or_default();
    let mut left = wanted.clone();
    let matched = given.iter().filter(|field| match left.iter().position(|l| l == *field) {
        Some(at) => {
            left.swap_remove(at);
            true
        }
        None => false,
    });
    let matched = matched.count();
    let flag = |is: bool| f64::from(u8::from(is));
    let amounts = [
        1.0,
        flag(answered.as_ref().is_some_and(|a| same(a, expected))),
        flag(answered.is_some()),
        matched as f64,
        given.len() as f64,
        wanted.len() as f64,
    ];
    amounts.into_iter().enumerate().collect()
}

/// Equal, numbers by their value.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

fn fields(value: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    collect(value, &mut String::new(), &mut all);
    all
}

fn collect(value: &Value, path: &mut String, all: &mut Vec<(String, String)>) {
    let length = path.len();
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                path.push('/');
                path.push_str(key);
                collect(value, path, all);
                path.truncate(length);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            path.push_str("[]");
            items.iter().for_each(|item| collect(item, path, all));
            path.truncate(length);
        }
        Value::Number(n) => all.push((path.clone(), n.as_f64().map_or(n.to_string(), |x| x.to_string()))),
        other => all.push((path.clone(), other.to_string())),
    }
}
