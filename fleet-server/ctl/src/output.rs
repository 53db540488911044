//! What a person or a program reads: text or JSON on standard output, notes and errors on standard error.

use std::io::Write;

use serde::Serialize;
use serde_json::json;

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Form {
    /// For people.
    #[default]
    Text,
    /// One JSON value on standard output; errors as `{"error": …, "exit_code": …}` on standard error.
    Json,
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    form: Form,
}

impl Screen {
    /// A screen of this form.
    pub const fn new(form: Form) -> Self {
        Self { form }
    }

    /// Whether programs read.
    pub fn is_json(&self) -> bool {
        self.form == Form::Json
    }

    /// Prints a result: `value` to programs, `text` to people.
    pub fn show<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let line = match self.form {
            Form::Json => serde_json::to_string(value)?,
            Form::Text => text().trim_end().to_owned(),
        };
        // A reader that went away (`plimsoll … | head`) is no error of ours.
        let _ = writeln!(std::io::stdout().lock(), "{line}");
        Ok(())
    }

    /// Says something by the way, to people and to logs; never part of the result.
    pub fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Says why a command failed, with every cause.
    pub fn error(&self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        let line = match self.form {
            Form::Json => json!({ "error": text, "exit_code": crate::failure::exit_code(error) }).to_string(),
            Form::Text => format!("plimsoll: {text}"),
        };
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

/// Columns as wide as their widest cell; the last is not padded.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// `1.2 MB`: powers of 1000, as disks are sold and networks are measured.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} GB")
}

/// What a model needs, where it is known: an engine elsewhere does not tell, and 0 would be a claim.
pub fn memory(count: u64) -> Option<String> {
    (count > 0).then(|| bytes(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up() {
        let rows = [vec!["cam-1".into(), "1".into()], vec!["x".into(), "22".into()]];
        assert_eq!(table(&["DEVICE", "N"], &rows), "DEVICE  N\ncam-1   1\nx       22");
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!(
            [bytes(0), bytes(999), bytes(1_500), bytes(2_000_000_000)],
            ["0 B", "999 B", "1.5 kB", "2.0 GB"]
        );
    }
}
