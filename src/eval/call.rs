//! Function calls as answers, checked as the Berkeley Function-Calling Leaderboard (v4, Python) checks them: the call
//! is parsed, its function and parameters compared with the definition, each value with the list of those that are
//! allowed.
//!
//! A string counts without regard to case, spaces and `,./-_*^`; an integer serves as a float; an allowed `""` says
//! that the parameter may be left out. For questions that none of the functions answers, any call is wrong.

use super::python::{Expr, Kind, expression};
use serde_json::Value as Json;

/// A Python value, its type kept apart: `1`, `1.0` and `True` are equal, and of three types.
#[derive(Clone, Debug)]
pub enum Value {
    Text(String),
    Int(i128),
    Float(f64),
    Bool(bool),
    None,
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Type {
    Text,
    Int,
    Float,
    Bool,
    None,
    List,
    Tuple,
    Dict,
}

impl Value {
    fn of(json: &Json) -> Value {
        match json {
            Json::Null => Value::None,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => {
                n.as_i64().map_or(Value::Float(n.as_f64().unwrap_or(f64::NAN)), |i| Value::Int(i.into()))
            }
            Json::String(text) => Value::Text(text.clone()),
            Json::Array(items) => Value::List(items.iter().map(Value::of).collect()),
            Json::Object(map) => Value::Dict(map.iter().map(|(k, v)| (Value::Text(k.clone()), Value::of(v))).collect()),
        }
    }

    fn kind(&self) -> Type {
        match self {
            Value::Text(_) => Type::Text,
            Value::Int(_) => Type::Int,
            Value::Float(_) => Type::Float,
            Value::Bool(_) => Type::Bool,
            Value::None => Type::None,
            Value::List(_) => Type::List,
            Value::Tuple(_) => Type::Tuple,
            Value::Dict(_) => Type::Dict,
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Value::Int(i) => Some(*i as f64),
            Value::Float(x) => Some(*x),
            Value::Bool(b) => Some(f64::from(u8::from(*b))),
            _ => None,
        }
    }

    /// The string as it is compared; other values as they are.
    fn standard(&self) -> Value {
        match self {
            Value::Text(text) => Value::Text(standard(text)),
            other => other.clone(),
        }
    }
}

/// Python's `==`.
impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::None, Value::None) => true,
            (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => a == b,
            (Value::Dict(a), Value::Dict(b)) => a.len() == b.len() && a.iter().all(|pair| b.contains(pair)),
            (a, b) => a.number().is_some() && a.number() == b.number(),
        }
    }
}

fn standard(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !" ,./-_*^".contains(*c)).collect();
    kept.to_lowercase().replace('\'', "\"")
}

/// A decoded call: the function's name and its named arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub function: String,
    pub arguments: Vec<(String, Value)>,
}

/// The calls of an answer, which may stand in a list; None where the answer is no list of calls.
pub fn decode(answer: &str) -> Option<Vec<Call>> {
    let mut text = answer.trim_matches(['`', '\n', ' ']).to_string();
    if !text.starts_with('[') {
        text.insert(0, '[');
    }
    if !text.ends_with(']') {
        text.push(']');
    }
    let parsed = expression(&text)?;
    let (Kind::List(items) | Kind::Tuple(items)) = &parsed.kind else { return None };
    items.iter().map(|item| call(&text, item)).collect()
}

fn call(source: &str, expr: &Expr) -> Option<Call> {
    let Kind::Call { function, arguments } = &expr.kind else { return None };
    let named = arguments.iter().filter_map(|a| Some((a.name.clone()?, &a.value)));
    let arguments = named.map(|(name, value)| Some((name, value_of(source, value)?))).collect::<Option<_>>()?;
    Some(Call { function: function.dotted().unwrap_or_default(), arguments })
}

fn value_of(source: &str, expr: &Expr) -> Option<Value> {
    let all = |items: &[Expr]| items.iter().map(|item| value_of(source, item)).collect::<Option<Vec<_>>>();
    Some(match &expr.kind {
        Kind::Name(name) => Value::Text(name.clone()),
        Kind::Text(text) => Value::Text(text.clone()),
        Kind::Int(i) => Value::Int(*i),
        Kind::Float(x) => Value::Float(*x),
        Kind::Bool(b) => Value::Bool(*b),
        Kind::None => Value::None,
        Kind::List(items) => Value::List(all(items)?),
        Kind::Tuple(items) => Value::Tuple(all(items)?),
        Kind::Dict(pairs) => {
            let pair = |(k, v): &(Expr, Expr)| Some((value_of(source, k)?, value_of(source, v)?));
            Value::Dict(pairs.iter().map(pair).collect::<Option<_>>()?)
        }
        Kind::Unary('-', of) => match value_of(source, of)? {
            Value::Int(i) => Value::Int(-i),
            Value::Float(x) => Value::Float(-x),
            _ => return None,
        },
        Kind::Binary(a, op, b) => arithmetic(value_of(source, a)?, op, value_of(source, b)?)?,
        Kind::Subscript(..) => Value::Text(expr.text(source).to_string()),
        Kind::Call { arguments, .. } if arguments.iter().all(|a| a.name.is_none()) => {
            Value::Text(expr.text(source).to_string())
        }
        Kind::Call { .. } => {
            let Call { function, arguments } = call(source, expr)?;
            let arguments = arguments.into_iter().map(|(k, v)| (Value::Text(k), v)).collect();
            Value::Dict(vec![(Value::Text(function), Value::Dict(arguments))])
        }
        Kind::Set(_) | Kind::Attribute(..) | Kind::Unary(..) => return None,
    })
}

fn arithmetic(a: Value, op: &str, b: Value) -> Option<Value> {
    if let (Value::Text(a), "+", Value::Text(b)) = (&a, op, &b) {
        return Some(Value::Text(a.clone() + b));
    }
    if let (Value::Int(a), Value::Int(b)) = (&a, &b) {
        let exact = match op {
            "+" => a.checked_add(*b),
            "-" => a.checked_sub(*b),
            "*" => a.checked_mul(*b),
            "//" => a.checked_div_euclid(*b).filter(|_| *b > 0),
            "%" => a.checked_rem_euclid(*b).filter(|_| *b > 0),
            "**" => u32::try_from(*b).ok().and_then(|b| a.checked_pow(b)),
            _ => None,
        };
        if let Some(exact) = exact {
            return Some(Value::Int(exact));
        }
    }
    let (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) = (&a, &b) else { return None };
    let (a, b) = (a.number()?, b.number()?);
    let result = match op {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "//" => (a / b).floor(),
        "%" => a - b * (a / b).floor(),
        _ => a.powf(b),
    };
    Some(result).filter(|x| x.is_finite()).map(Value::Float)
}

/// What is wrong with an answer; None where it is right. `functions` are the definitions offered, `truth` the ground
/// truth: a list with one `{function: {parameter: [allowed …]}}`, or empty (or null) where no call is right.
pub fn wrong(answer: &str, functions: &Json, truth: &Json) -> Option<String> {
    let calls = decode(answer);
    let Some(wanted) = truth.as_array().and_then(|list| list.first()).and_then(Json::as_object) else {
        return calls.filter(|calls| !calls.is_empty()).map(|_| "a call where none is right".into());
    };
    let Some(calls) = calls else { return Some("not a call that can be read".into()) };
    let [call] = &calls[..] else { return Some(format!("{} calls instead of one", calls.len())) };
    let Some((name, allowed)) = wanted.iter().next() else { return Some("the ground truth names no function".into()) };
    let Some(definition) = functions.as_array().into_iter().flatten().find(|f| f["name"] == name.as_str()) else {
        return Some(format!("the data define no function {name}"));
    };
    check_call(call, name, &definition["parameters"], allowed)
}

fn check_call(call: &Call, name: &str, parameters: &Json, allowed: &Json) -> Option<String> {
    if call.function != name {
        return Some(format!("calls {}, not {name}", call.function));
    }
    let given = |name: &str| call.arguments.iter().any(|(given, _)| given == name);
    let required = parameters["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
    if let Some(missing) = required.into_iter().find(|name| !given(name)) {
        return Some(format!("{missing} is missing"));
    }
    for (name, value) in &call.arguments {
        let (definition, values) = (&parameters["properties"][name.as_str()], allowed[name.as_str()].as_array());
        let Some(values) = values.filter(|_| !definition.is_null()) else {
            return Some(format!("there is no parameter {name}"));
        };
        let values: Vec<Value> = values.iter().map(Value::of).collect();
        if let Some(why) = check_value(value, definition, &values) {
            return Some(format!("{name} {why}"));
        }
    }
    let optional = |values: &Json| values.as_array().is_some_and(|list| list.contains(&Json::from("")));
    let left_out = allowed.as_object().into_iter().flatten().find(|(name, values)| !given(name) && !optional(values));
    left_out.map(|(name, _)| format!("{name} is missing"))
}

fn type_named(name: &str) -> Option<Type> {
    Some(match name {
        "string" | "any" => Type::Text,
        "integer" => Type::Int,
        "float" => Type::Float,
        "boolean" => Type::Bool,
        "array" | "tuple" => Type::List,
        "dict" => Type::Dict,
        _ => return None,
    })
}

/// The type of the first value that is not the mark of an optional parameter.
fn type_of_allowed(values: &[Value]) -> Option<Type> {
    values.iter().find(|v| **v != Value::Text(String::new())).map(Value::kind)
}

fn check_value(value: &Value, definition: &Json, allowed: &[Value]) -> Option<String> {
    let name = definition["type"].as_str().unwrap_or_default();
    let Some(wanted) = type_named(name) else { return Some(format!("is of an unknown type, {name}")) };
    let nested = matches!(name, "array" | "tuple").then(|| definition["items"]["type"].as_str().and_then(type_named));
    let nested = nested.flatten();
    let value = match value {
        Value::Tuple(items) if name == "tuple" => Value::List(items.clone()),
        Value::Int(i) if name == "float" => Value::Float(*i as f64),
        other => other.clone(),
    };
    let Some(variable) = check_type(&value, allowed, wanted, nested) else {
        return Some(format!("is a {:?}, not a {name}", value.kind()).to_lowercase());
    };
    let right = match (variable, wanted, nested) {
        (true, ..) => allowed.contains(&value),
        (_, Type::Dict, _) => allowed.iter().any(|a| same_dict(&value, a)),
        (_, Type::List, Some(Type::Dict)) => allowed.iter().any(|a| same_dicts(&value, a)),
        (_, Type::Text, _) => allowed.iter().any(|a| a.kind() == Type::Text && a.standard() == value.standard()),
        (_, Type::List, _) => allowed.iter().any(|a| same_list(&value, a)),
        _ => allowed.contains(&value),
    };
    (!right).then(|| "has a value that is not allowed".into())
}

/// Whether the value may be of its type: Some(true) where the allowed values are of another type than the definition
/// says (the name of a variable, say), and the value is of theirs.
fn check_type(value: &Value, allowed: &[Value], wanted: Type, nested: Option<Type>) -> Option<bool> {
    let allowed_type = type_of_allowed(allowed);
    let variable = allowed_type.is_some_and(|t| t != wanted);
    if value.kind() != wanted {
        return (allowed_type == Some(value.kind())).then_some(true);
    }
    let (Some(nested), Value::List(items)) = (nested, value) else { return Some(variable) };
    let fits = |list: &Value| match list {
        Value::List(list) => items.iter().all(|item| check_type(item, list, nested, None).is_some()),
        _ => true,
    };
    allowed.iter().any(fits).then_some(variable)
}

fn items(value: &Value) -> Vec<Value> {
    match value {
        Value::List(items) | Value::Tuple(items) => items.iter().map(Value::standard).collect(),
        // The mark of an optional parameter is a list of nothing here.
        Value::Text(text) => text.chars().map(|c| Value::Text(standard(&c.to_string()))).collect(),
        _ => vec![value.clone()],
    }
}

fn same_list(value: &Value, allowed: &Value) -> bool {
    items(value) == items(allowed)
}

/// Keys as allowed, each value among those that its key allows.
fn same_dict(value: &Value, allowed: &Value) -> bool {
    let (Value::Dict(given), Value::Dict(allowed)) = (value, allowed) else { return false };
    let list = |values: &Value| match values {
        Value::List(list) => list.iter().map(Value::standard).collect(),
        other => vec![other.standard()],
    };
    let right = |(key, value): &(Value, Value)| {
        allowed.iter().any(|(k, values)| k == key && list(values).contains(&value.standard()))
    };
    let left_out = |(key, values): &(Value, Value)| {
        !given.iter().any(|(k, _)| k == key) && !list(values).contains(&Value::Text(String::new()))
    };
    given.iter().all(right) && !allowed.iter().any(left_out)
}

fn same_dicts(value: &Value, allowed: &Value) -> bool {
    let Value::List(given) = value else { return false };
    match allowed {
        Value::List(allowed) => given.len() == allowed.len() && given.iter().zip(allowed).all(|(v, a)| same_dict(v, a)),
        Value::Text(text) => text.is_empty() && given.is_empty(),
        _ => false,
    }
}
