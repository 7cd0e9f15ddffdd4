//! A file before anything is trained on it: what it holds, how it is read, what the model would see of it, and which
//! records cannot be used. Bad records are part of the answer, not errors.

use super::encode::{Dataset, EncodeOptions, Example, encode_record};
use super::inspect::{Lengths, visible};
use super::read::{ReadOptions, first_rows, read_any};
use super::record::{ColumnMap, Fields, Kind, Record};
use super::tokenizer::{TextStream, Tokenizer};
use crate::error::Result;
use serde::Serialize;
use serde_json::Value;

#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    /// [`Kind::name`] of the first record; "unknown" where its columns have to be named first.
    pub kind: &'static str,
    /// Columns of a table, or keys of the first JSON record.
    pub columns: Vec<String>,
    pub mapping: ColumnMap,
    /// The first rows as they stand in the file, cell by cell.
    pub rows: Vec<Vec<String>>,
    pub records: Vec<PreviewRecord>,
    pub examples: usize,
    pub truncated: usize,
    pub duplicates: usize,
    pub tokens: usize,
    pub supervised_tokens: usize,
    pub longest: usize,
    pub histogram: Lengths,
    /// The first thousand records that cannot be used, in the order of the file.
    pub problems: Vec<Problem>,
    /// All records that cannot be used.
    pub bad: u64,
}

/// An example as the model sees it.
#[derive(Clone, Debug, Serialize)]
pub struct PreviewRecord {
    pub line: u64,
    pub pieces: Vec<TokenText>,
    pub tokens: usize,
    pub supervised: usize,
    pub truncated: bool,
}

/// A token; a character made of several stands in the last of them.
#[derive(Clone, Debug, Serialize)]
pub struct TokenText {
    pub text: String,
    pub supervised: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    pub line: u64,
    pub message: String,
}

/// Looks through the whole file and shows its first `limit` rows and examples.
pub fn preview(
    name: &str,
    bytes: &[u8],
    options: &ReadOptions,
    tokenizer: &Tokenizer,
    seq_len: usize,
    limit: usize,
) -> Result<Preview> {
    let encode = EncodeOptions { seq_len, use_template: true };
    encode.check()?;
    let table = first_rows(name, bytes, options, limit)?;
    let read = read_any(name, bytes, options)?;
    let (mut problems, mut examples) = (read.problems, Vec::new());
    for (line, record) in &read.records {
        match encode_record(tokenizer, record, *line, &encode) {
            Ok(made) => examples.extend(made),
            Err(err) => problems.add(*line, err.to_string(), err.hint()),
        }
    }
    let data = Dataset::new(read.file, examples, read.records.len(), problems.count(), seq_len);
    let kind = kind(&table.columns, &read.records, &options.columns);
    let mut list: Vec<Problem> =
        problems.kept().iter().map(|(line, message)| Problem { line: *line, message: message.clone() }).collect();
    list.sort_by_key(|problem| problem.line);
    Ok(Preview {
        kind: kind.map_or("unknown", Kind::name),
        mapping: kind
            .filter(|_| !table.columns.is_empty())
            .map_or_else(ColumnMap::default, |kind| kind.mapping(&options.columns)),
        columns: table.columns,
        rows: table.rows,
        records: data.examples.iter().take(limit).map(|example| shown(tokenizer, example)).collect(),
        examples: data.stats.examples,
        truncated: data.stats.truncated,
        duplicates: data.stats.duplicates,
        tokens: data.stats.tokens,
        supervised_tokens: data.stats.supervised,
        longest: data.stats.longest,
        histogram: Lengths::new(&data),
        problems: list,
        bad: problems.count(),
    })
}

/// By the first record; where that is a chat or cannot be read, by the columns' names.
fn kind(columns: &[String], records: &[(u64, Record)], map: &ColumnMap) -> Option<Kind> {
    let fields: Fields = columns.iter().map(|name| (name.clone(), Value::Null)).collect();
    match records.first() {
        Some((_, Record::Text { .. })) => Some(Kind::Text),
        Some((_, Record::Pair { .. })) => Some(Kind::Pair),
        Some((_, Record::Instruction { .. })) => Some(Kind::Instruction),
        _ => Kind::of(&fields, map),
    }
}

fn shown(tokenizer: &Tokenizer, example: &Example) -> PreviewRecord {
    let mut stream = TextStream::with_special();
    let token = |(id, supervised): (&u32, &bool)| TokenText {
        text: visible(&stream.push(tokenizer, *id)),
        supervised: *supervised,
    };
    let mut pieces: Vec<TokenText> = example.ids.iter().zip(&example.supervised).map(token).collect();
    if let Some(last) = pieces.last_mut() {
        last.text += &visible(&stream.finish(tokenizer));
    }
    PreviewRecord {
        line: example.line,
        tokens: pieces.len(),
        pieces,
        supervised: example.targets(),
        truncated: example.truncated,
    }
}
