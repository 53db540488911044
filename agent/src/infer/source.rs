//! Rows out of a stream: CSV with a header, or JSON lines.

use std::io::BufRead;

use anyhow::{Context, bail};
use serde_json::Value;

use super::csv::Records;
use crate::serve::rows::{Cell, Columns};

/// Longest line that is read: the largest request body without a configuration.
const MAX_LINE: u64 = crate::serve::bundle::DEFAULT_MAX_BODY;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// JSON lines when the first line begins with `{` or `[`, CSV otherwise
    Auto,
    /// A header with the names of columns, then a row a line; an empty cell is a missing value
    Csv,
    /// A JSON object a line: columns by name, or a whole inference request with `inputs`
    Jsonl,
}

/// One row as read.
#[derive(Debug, PartialEq)]
pub enum Row {
    /// A cell for each column of the model.
    Cells(Vec<Cell>),
    /// JSON of an inference request.
    Request(Vec<u8>),
}

/// A line's number, from 1, and its row or what is wrong with it.
pub type Numbered = (u64, Result<Row, String>);

/// An open stream of rows.
pub enum Source<R: BufRead> {
    /// With the place of each of the model's columns.
    Csv { records: Records<R>, places: Vec<usize>, header: Vec<String> },
    /// With the names of the model's columns; empty for a model that takes no rows.
    Json { reader: R, names: Vec<String>, line: u64 },
}

impl<R: BufRead> Source<R> {
    /// Reads the header, if there is one. `columns` is `None` for a model that takes no rows.
    pub fn open(mut input: R, format: Format, columns: Option<&Columns>) -> anyhow::Result<Self> {
        let json = match format {
            Format::Csv => false,
            Format::Jsonl => true,
            Format::Auto => {
                let start = input.fill_buf().context("cannot read the rows")?;
                matches!(start.iter().find(|b| !b.is_ascii_whitespace()), Some(b'{' | b'['))
            }
        };
        if json {
            let names = columns.map_or_else(Vec::new, |c| c.names().map(str::to_owned).collect());
            return Ok(Self::Json { reader: input, names, line: 0 });
        }
        let Some(columns) = columns else {
            bail!("this model's inputs are no rows of columns; give JSON lines, each with `inputs`");
        };
        let mut records = Records::new(input);
        let header = records.next_record().context("cannot read the rows")?;
        let (line, header) = header.context("there is no header: standard input is empty")?;
        let at = |why: String| anyhow::anyhow!("line {line}, the header of the CSV: {why}");
        let header: Vec<String> = header.map_err(at)?.iter().map(|name| name.trim().to_owned()).collect();
        let places = columns.find_in(&header).map_err(at)?;
        Ok(Self::Csv { records, places, header })
    }

    /// Columns that the model does not see.
    pub fn unused(&self) -> Vec<String> {
        match self {
            Self::Json { .. } => Vec::new(),
            Self::Csv { places, header, .. } => {
                let unused = header.iter().enumerate().filter(|(at, _)| !places.contains(at));
                unused.map(|(_, name)| name.clone()).collect()
            }
        }
    }

    /// The next row, or `None` at the end. An error is of the stream, not of a row.
    pub fn next_row(&mut self) -> anyhow::Result<Option<Numbered>> {
        match self {
            Self::Csv { records, places, header } => next_record(records, places, header),
            Self::Json { reader, names, line } => next_line(reader, names, line),
        }
    }
}

fn next_record<R: BufRead>(
    records: &mut Records<R>,
    places: &[usize],
    header: &[String],
) -> anyhow::Result<Option<Numbered>> {
    let Some((line, record)) = records.next_record().context("cannot read the rows")? else {
        return Ok(None);
    };
    let row = record.and_then(|record| {
        if record.len() != header.len() {
            return Err(format!("it has {} cells, the header has {}", record.len(), header.len()));
        }
        let cell = |at: &usize| record.get(*at).filter(|text| !text.is_empty()).cloned();
        Ok(Row::Cells(places.iter().map(cell).collect()))
    });
    Ok(Some((line, row)))
}

fn next_line<R: BufRead>(
    reader: &mut R,
    names: &[String],
    line: &mut u64,
) -> anyhow::Result<Option<Numbered>> {
    loop {
        let mut text = Vec::new();
        let read = std::io::Read::take(&mut *reader, MAX_LINE).read_until(b'\n', &mut text);
        if read.context("cannot read the rows")? == 0 {
            return Ok(None);
        }
        *line += 1;
        if text.len() as u64 == MAX_LINE && !text.ends_with(b"\n") {
            bail!("line {line} is longer than {MAX_LINE} bytes");
        }
        if !text.trim_ascii().is_empty() {
            return Ok(Some((*line, row_of(&text, names))));
        }
    }
}

fn row_of(text: &[u8], names: &[String]) -> Result<Row, String> {
    let value: Value = serde_json::from_slice(text).map_err(|e| format!("it is not JSON: {e}"))?;
    match &value {
        Value::Object(object) if object.get("inputs").is_some_and(Value::is_array) => {
            Ok(Row::Request(text.to_vec()))
        }
        Value::Object(object) => {
            let named = |name: &String| {
                let value = object
                    .get(name)
                    .ok_or_else(|| format!("column {name:?} is missing (null says so on purpose)"))?;
                cell(value).map_err(|why| format!("column {name:?} {why}"))
            };
            names.iter().map(named).collect::<Result<_, _>>().map(Row::Cells)
        }
        Value::Array(values) if values.len() == names.len() => {
            let cells = values.iter().map(cell).collect::<Result<_, _>>();
            cells.map(Row::Cells).map_err(|why| format!("a value of it {why}"))
        }
        Value::Array(values) => {
            Err(format!("it has {} values, the model has {} columns", values.len(), names.len()))
        }
        _ => Err("it is neither an object nor an array".into()),
    }
}

/// A JSON value as the text of a cell.
pub fn cell(value: &Value) -> Result<Cell, &'static str> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(value) => Ok(Some(value.to_string())),
        Value::Number(value) => Ok(Some(value.to_string())),
        Value::String(value) => Ok(Some(value.clone())),
        Value::Array(_) | Value::Object(_) => Err("is not a single value"),
    }
}
