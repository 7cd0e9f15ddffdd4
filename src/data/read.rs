//! Files of records. A record that cannot be used is an error that names its line and the reason (all of them in
//! one message); nothing is left out unless the user asks for that, and then it is counted.

use super::problems::Problems;
use super::record::{ColumnMap, Record};
use crate::digest::sha256;
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// The longest line that is read: a conversation is some kilobytes; more is a file of another kind.
const MAX_LINE: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    /// A JSON object a line.
    Jsonl,
    /// One JSON list of objects.
    Json,
    Csv,
    /// Tab-separated, a row a line. A cell that is quoted from its first character to its last, with quotes inside
    /// doubled, is taken out of its quotes, as pandas and Excel write them; other quotes are part of the text.
    Tsv,
    /// Plain text; blank lines separate documents. Every token is learned.
    Text,
}

#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// None: from the file's name.
    pub format: Option<Format>,
    pub columns: ColumnMap,
    /// Whether the first row of a CSV or TSV file names the columns. None: it does, unless the columns were
    /// asked for by number.
    pub header: Option<bool>,
    /// Leave out what cannot be used (it is counted) instead of refusing the file.
    pub skip_bad: bool,
}

/// The records of a file, each with its line (in a JSON list: its number), counting from 1.
#[derive(Clone, Debug)]
pub struct Records {
    pub file: String,
    pub records: Vec<(u64, Record)>,
    pub skip_bad: bool,
    /// Which columns were asked for.
    pub columns: ColumnMap,
    /// Of the file as it was read.
    pub sha256: String,
    pub(super) problems: Problems,
    pub(super) unit: &'static str,
}

impl Records {
    /// Records that come from no file; each one's line is its place, counting from 1.
    pub fn of(name: &str, records: Vec<Record>) -> Records {
        Records {
            file: name.into(),
            records: (1..).zip(records).collect(),
            skip_bad: false,
            columns: ColumnMap::default(),
            sha256: String::new(),
            problems: Problems::default(),
            unit: "record",
        }
    }

    /// Other records in the place of these: a part of them, say.
    pub fn with(&self, records: Vec<(u64, Record)>) -> Records {
        Records { records, ..self.clone() }
    }

    /// Records left out because they could not be used.
    pub fn skipped(&self) -> u64 {
        self.problems.count()
    }

    fn push(&mut self, number: u64, record: Result<Record, String>) {
        match record {
            Ok(record) => self.records.push((number, record)),
            Err(reason) => self.problems.add(number, reason, ""),
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub fn read_file(path: &std::path::Path, options: &ReadOptions) -> Result<Records> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|err| Error::io(&name, err))?;
    read(&name, &bytes, options)
}

/// Reads the file called `name`, whose content is `bytes`.
pub fn read(name: &str, bytes: &[u8], options: &ReadOptions) -> Result<Records> {
    let records = read_any(name, bytes, options)?;
    let (unit, problems) = (records.unit, &records.problems);
    let seen = records.records.len() as u64 + problems.count();
    if !problems.is_empty() && !records.skip_bad {
        return Err(problems.error(name, unit, seen));
    }
    if records.records.is_empty() {
        let what = match seen {
            0 => "there is no record in this file".to_string(),
            _ => format!("none of the {seen} records can be used\n  {}", problems.list(unit)),
        };
        return Err(data(name, what, "a record is one line of JSON, one row of CSV, or a paragraph of text"));
    }
    Ok(records)
}

/// What can be read of a file: an error only where the file as a whole is none of ours.
pub(super) fn read_any(name: &str, bytes: &[u8], options: &ReadOptions) -> Result<Records> {
    let sha256 = sha256(bytes);
    let (format, bytes) = open(name, bytes, options)?;
    let unit = if format == Format::Json { "record" } else { "line" };
    let (file, skip_bad, columns) = (name.to_string(), options.skip_bad, options.columns.clone());
    let problems = Problems::default();
    let mut into = Records { file, records: Vec::new(), skip_bad, columns, sha256, problems, unit };
    match format {
        Format::Jsonl => read_jsonl(bytes, options, &mut into),
        Format::Json => read_json(bytes, options, &mut into)?,
        Format::Csv => read_table(bytes, b',', options, &mut into)?,
        Format::Tsv => read_table(bytes, b'\t', options, &mut into)?,
        Format::Text => read_text(bytes, &mut into)?,
    }
    Ok(into)
}

/// The format of a file that is text, and its content without the byte order mark.
fn open<'a>(name: &str, bytes: &'a [u8], options: &ReadOptions) -> Result<(Format, &'a [u8])> {
    refuse_binary(name, bytes)?;
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let format = options.format.map_or_else(|| format_of(name, bytes), Ok)?;
    Ok((format, bytes))
}

/// The first rows of a file as they stand in it: the names of its columns and, under them, cells. JSON's columns are
/// the keys of the first object; a text has none.
pub(super) fn first_rows(name: &str, bytes: &[u8], options: &ReadOptions, limit: usize) -> Result<Rows> {
    let (format, bytes) = open(name, bytes, options)?;
    match format {
        Format::Jsonl => {
            let lines = bytes.split(|byte| *byte == b'\n').filter(|line| line.len() <= MAX_LINE);
            Ok(Rows::of_objects(lines.filter_map(|line| serde_json::from_slice(line).ok()), limit))
        }
        Format::Json => {
            let list: Vec<Value> = serde_json::from_slice(bytes).unwrap_or_default();
            Ok(Rows::of_objects(list.into_iter(), limit))
        }
        Format::Csv | Format::Tsv => {
            let delimiter = if format == Format::Csv { b',' } else { b'\t' };
            let mut reader = table(bytes, delimiter);
            let mut columns = Columns::new(options, delimiter);
            let mut rows = Vec::new();
            for row in reader.byte_records().filter_map(|row| row.ok()).take(limit + 1) {
                let first = columns.names.is_empty();
                if first {
                    columns.name(&row, name)?;
                }
                if !first || !columns.from_header {
                    let named = row.iter().zip(&columns.names).filter(|(_, name)| !name.is_empty());
                    rows.push(named.map(|(field, _)| columns.cell(field)).collect());
                }
            }
            rows.truncate(limit);
            columns.names.retain(|name| !name.is_empty());
            Ok(Rows { columns: columns.names, rows })
        }
        Format::Text => Ok(Rows::default()),
    }
}

/// Cells of the first rows, in the order of the columns.
#[derive(Default)]
pub(super) struct Rows {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Rows {
    fn of_objects(values: impl Iterator<Item = Value>, limit: usize) -> Rows {
        let objects = values.filter_map(|value| if let Value::Object(fields) = value { Some(fields) } else { None });
        let mut out = Rows::default();
        for fields in objects.take(limit.max(1)) {
            if out.columns.is_empty() {
                out.columns = fields.keys().cloned().collect();
            }
            let shown = |name: &String| match fields.get(name) {
                None => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
            };
            out.rows.push(out.columns.iter().map(shown).collect());
        }
        out.rows.truncate(limit);
        out
    }
}

fn data(file: &str, what: impl Into<String>, hint: &str) -> Error {
    Error::Data { file: file.into(), line: None, what: what.into(), hint: hint.into() }
}

fn format_of(name: &str, bytes: &[u8]) -> Result<Format> {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    let is_list = bytes.trim_ascii_start().first() == Some(&b'[');
    match ending.as_deref() {
        Some("json" | "jsonl" | "ndjson") if is_list => Ok(Format::Json),
        Some("json" | "jsonl" | "ndjson") => Ok(Format::Jsonl),
        Some("csv") => Ok(Format::Csv),
        Some("tsv" | "tab") => Ok(Format::Tsv),
        Some("txt" | "text" | "md") => Ok(Format::Text),
        _ => {
            let what = "the name does not say what kind of file this is".into();
            let hint = "name it .jsonl, .json, .csv, .tsv or .txt".into();
            Err(Error::Unsupported { file: name.into(), what, hint })
        }
    }
}

/// Files that are often offered by mistake, told by their first bytes.
fn refuse_binary(name: &str, bytes: &[u8]) -> Result<()> {
    let (what, hint) = match bytes {
        [0x1F, 0x8B, ..] => ("this is a gzip archive", "unpack it first: gunzip FILE"),
        [b'P', b'K', 3, 4, ..] => ("this is a zip archive (or a spreadsheet)", "unpack it, or save the sheet as CSV"),
        [b'P', b'A', b'R', b'1', ..] => ("this is a Parquet file", "convert it to JSONL, with pandas or DuckDB, say"),
        [b'A', b'R', b'R', b'O', b'W', ..] => ("this is an Arrow file", "convert it to JSONL with `datasets`"),
        [b'G', b'G', b'U', b'F', ..] => ("this is a model (GGUF), not data", "pass it as --model"),
        [0x80, 2..=5, ..] => ("this is a Python pickle, which is never opened: it could run code", "save it as JSONL"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => ("this is UTF-16 text", "save it as UTF-8"),
        _ => return Ok(()),
    };
    Err(Error::Unsupported { file: name.into(), what: what.into(), hint: hint.into() })
}

fn read_jsonl(bytes: &[u8], options: &ReadOptions, into: &mut Records) {
    for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
        let line = line.trim_ascii();
        if !line.is_empty() {
            into.push(number, json_record(line, &options.columns));
        }
    }
}

fn json_record(line: &[u8], columns: &ColumnMap) -> Result<Record, String> {
    if line.len() > MAX_LINE {
        return Err(format!("the line is {} bytes long; at most {MAX_LINE} are read", line.len()));
    }
    let line = std::str::from_utf8(line).map_err(|err| format!("not UTF-8 from byte {}", err.valid_up_to() + 1))?;
    let value = serde_json::from_str(line).map_err(|err| format!("not JSON: {}", without_line(&err)))?;
    object_record(&value, columns)
}

fn object_record(value: &Value, columns: &ColumnMap) -> Result<Record, String> {
    match value {
        Value::Object(fields) => Record::from_fields(fields, columns),
        _ => Err("not a JSON object ({\"prompt\": …})".into()),
    }
}

/// serde_json counts lines within what it was given, which here is always one line.
fn without_line(err: &serde_json::Error) -> String {
    err.to_string().replace(" at line 1 column ", " at column ")
}

fn read_json(bytes: &[u8], options: &ReadOptions, into: &mut Records) -> Result<()> {
    let list: Vec<Value> = serde_json::from_slice(bytes).map_err(|err| Error::Data {
        file: into.file.clone(),
        line: Some(err.line() as u64),
        what: format!("not JSON: {err}"),
        hint: "the file should be one list of objects, or (better) an object a line (.jsonl)".into(),
    })?;
    for (value, number) in list.iter().zip(1..) {
        into.push(number, object_record(value, &options.columns));
    }
    Ok(())
}

fn read_table(bytes: &[u8], delimiter: u8, options: &ReadOptions, into: &mut Records) -> Result<()> {
    let mut reader = table(bytes, delimiter);
    let mut columns = Columns::new(options, delimiter);
    let mut row = csv::ByteRecord::new();
    let mut lines = Lines { bytes, at: 0, line: 1 };
    loop {
        let more = reader.read_byte_record(&mut row).map_err(|err| data(&into.file, err.to_string(), ""))?;
        if !more {
            return Ok(());
        }
        let (start, end) = (row.position().map_or(0, csv::Position::byte), reader.position().byte());
        let number = lines.of_row(start as usize);
        // The row that a lost quote opens has swallowed the rest of the file: none of it can be trusted.
        if delimiter == b',' && end == bytes.len() as u64 && is_open(&bytes[lines.at..]) {
            let what = "a quote is opened in this row and never closed".into();
            let hint = "close it, and double the quotes inside a quoted cell".into();
            return Err(Error::Data { file: into.file.clone(), line: Some(number), what, hint });
        }
        match std::str::from_utf8(row.as_slice()) {
            Err(_) => into.problems.add(number, "not UTF-8", "save the file as UTF-8"),
            Ok(_) if columns.names.is_empty() => {
                columns.name(&row, &into.file)?;
                if !columns.from_header {
                    into.push(number, columns.record(&row, options));
                }
            }
            Ok(_) => into.push(number, columns.record(&row, options)),
        }
    }
}

fn table(bytes: &[u8], delimiter: u8) -> csv::Reader<&[u8]> {
    let mut builder = csv::ReaderBuilder::new();
    let quoted = delimiter == b',';
    builder.delimiter(delimiter).quoting(quoted).has_headers(false).flexible(true).from_reader(bytes)
}

/// Counts lines, whichever way they end: LF, CR LF or, in old files, CR alone.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Of `at`, counting from 1.
    line: u64,
}

impl Lines<'_> {
    /// The line of a row that the reader says starts at `start`, which may be before empty lines; rows come in order.
    fn of_row(&mut self, start: usize) -> u64 {
        while let Some(byte) = self.bytes.get(self.at) {
            if self.at >= start && !matches!(byte, b'\r' | b'\n') {
                break;
            }
            self.at += 1;
            let ends = *byte == b'\n' || *byte == b'\r' && self.bytes.get(self.at) != Some(&b'\n');
            self.line += u64::from(ends);
        }
        self.line
    }
}

/// Whether the last row of a CSV file ends within quotes.
fn is_open(row: &[u8]) -> bool {
    #[derive(PartialEq)]
    enum Place {
        Start,
        Plain,
        Quoted,
        /// Behind a quote that closes, unless another follows: then the two are one quote of the text.
        Closed,
    }
    let place = row.iter().fold(Place::Start, |place, byte| match (place, byte) {
        (Place::Start | Place::Closed, b'"') => Place::Quoted,
        (Place::Quoted, b'"') => Place::Closed,
        (Place::Quoted, _) => Place::Quoted,
        (_, b',') => Place::Start,
        _ => Place::Plain,
    });
    place == Place::Quoted
}

fn is_number(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit())
}

struct Columns {
    /// Empty where the header names none: spreadsheets write such columns to the right of what they hold.
    names: Vec<String>,
    from_header: bool,
    /// The reader has left quotes where they are.
    quotes: bool,
}

impl Columns {
    fn new(options: &ReadOptions, delimiter: u8) -> Columns {
        let by_number = options.columns.names().next().is_some() && options.columns.names().all(is_number);
        let from_header = options.header.unwrap_or(!by_number);
        Columns { names: Vec::new(), from_header, quotes: delimiter == b'\t' }
    }

    fn name(&mut self, first: &csv::ByteRecord, file: &str) -> Result<()> {
        for (field, number) in first.iter().zip(1..) {
            let name = if self.from_header { self.cell(field).trim().to_string() } else { number.to_string() };
            if !name.is_empty() && self.names.contains(&name) {
                let hint = "give every column its own name, or name columns by number if this is no header";
                return Err(data(file, format!("the header names the column `{name}` twice"), hint));
            }
            self.names.push(name);
        }
        Ok(())
    }

    fn record(&self, row: &csv::ByteRecord, options: &ReadOptions) -> Result<Record, String> {
        if row.as_slice().len() > MAX_LINE {
            return Err(format!("the row is {} bytes long; at most {MAX_LINE} are read", row.as_slice().len()));
        }
        if row.len() != self.names.len() {
            return Err(format!("{} columns where the first row has {}", row.len(), self.names.len()));
        }
        let mut fields = Map::new();
        for ((name, field), number) in self.names.iter().zip(row.iter()).zip(1..) {
            if !name.is_empty() {
                fields.insert(name.clone(), self.cell(field).into());
            } else if !field.trim_ascii().is_empty() {
                return Err(format!("column {number} holds a value and has no name in the header"));
            }
        }
        Record::from_fields(&fields, &options.columns)
    }

    /// A cell as text; the row was checked to be UTF-8, and no cell boundary cuts a character.
    fn cell(&self, field: &[u8]) -> String {
        let text = String::from_utf8_lossy(field);
        match unquoted(&text).filter(|_| self.quotes) {
            Some(inside) => inside,
            None => text.into_owned(),
        }
    }
}

/// What stands in a quoted cell; None if it is not quoted as a whole.
fn unquoted(text: &str) -> Option<String> {
    let inside = text.strip_prefix('"')?.strip_suffix('"')?;
    let single = inside.replace("\"\"", "").contains('"');
    (!single).then(|| inside.replace("\"\"", "\""))
}

fn read_text(bytes: &[u8], into: &mut Records) -> Result<()> {
    let text = std::str::from_utf8(bytes).map_err(|err| {
        let line = bytes[..err.valid_up_to()].split(|byte| *byte == b'\n').count() as u64;
        let hint = "save the file as UTF-8".into();
        Error::Data { file: into.file.clone(), line: Some(line), what: "not UTF-8".into(), hint }
    })?;
    let (mut document, mut first) = (String::new(), 0);
    for (line, number) in text.lines().chain([""]).zip(1..) {
        if line.trim().is_empty() {
            if !document.is_empty() {
                let text = std::mem::take(&mut document).trim_end().to_string();
                into.push(first, Ok(Record::Text { text, splits: true }));
            }
            continue;
        }
        if document.is_empty() {
            first = number;
        }
        document.push_str(line);
        document.push('\n');
    }
    Ok(())
}
