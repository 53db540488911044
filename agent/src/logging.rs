//! Logs: to standard error, where systemd's journal takes them, and the newest of them in memory, for a person at a
//! device without a journal and for `export-diagnostics`.
//!
//! The memory is a ring of [`RING_BYTES`]; nothing is written to the disk, whose wear a log would multiply. What is
//! older is in the journal, where there is one. The filter can be changed while the agent runs: by a reload, or by
//! the server for a while.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// Some 300 lines: an update with all its steps is 15, a day of an idle agent 30. A tenth of a percent of a small
/// device's memory.
pub const RING_BYTES: usize = 48 * 1024;
/// A line that is longer is cut: the causes of one error are a few hundred bytes.
const MAX_LINE: usize = 1024;

static FILTER: OnceLock<Handle<Targets, Registry>> = OnceLock::new();
static RING: Ring = Ring(Mutex::new(Lines { lines: VecDeque::new(), bytes: 0 }));

/// A filter that is none.
#[derive(Debug, thiserror::Error)]
#[error("log filter {filter:?}: {why}; try info, debug, or module=level")]
pub struct FilterError {
    filter: String,
    why: String,
}

/// Starts logging; once a process. `remember` keeps the newest lines in memory too.
pub fn start(filter: &str, remember: bool) -> Result<(), FilterError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let ansi = io::stderr().is_terminal();
    let to_stderr = fmt::layer().with_writer(io::stderr).with_ansi(ansi);
    let to_ring = remember.then(|| fmt::layer().with_writer(&RING).with_ansi(false));
    tracing_subscriber::registry().with(filter).with(to_stderr).with(to_ring).init();
    let _ = FILTER.set(handle); // set once: `init` ends a second start
    Ok(())
}

/// Changes the filter of a process that logs; one that does not only checks it.
pub fn set_filter(filter: &str) -> Result<(), FilterError> {
    let parsed = parse(filter)?;
    let refuse = |e: reload::Error| FilterError { filter: filter.to_owned(), why: e.to_string() };
    FILTER.get().map_or(Ok(()), |handle| handle.reload(parsed)).map_err(refuse)
}

/// Whether a text is a filter.
pub fn check_filter(filter: &str) -> Result<(), FilterError> {
    parse(filter).map(|_| ())
}

/// The newest lines, the oldest first.
pub fn recent() -> Vec<String> {
    RING.lines(|lines| lines.lines.iter().cloned().collect())
}

/// By module and level only: `EnvFilter` can look into spans too, for a megabyte of regular expressions.
fn parse(filter: &str) -> Result<Targets, FilterError> {
    filter.parse().map_err(|e: ParseError| FilterError { filter: filter.to_owned(), why: e.to_string() })
}

struct Lines {
    lines: VecDeque<String>,
    bytes: usize,
}

/// Lines in memory, bounded in bytes.
struct Ring(Mutex<Lines>);

impl Ring {
    /// A panic of another thread between two lines has damaged nothing.
    fn lines<T>(&self, work: impl FnOnce(&mut Lines) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let mut line: String =
            text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        line.truncate(
            (0..=MAX_LINE.min(line.len())).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0),
        );
        self.lines(|ring| {
            ring.bytes += line.len();
            ring.lines.push_back(line);
            while ring.bytes > RING_BYTES {
                ring.bytes -= ring.lines.pop_front().map_or(ring.bytes, |old| old.len());
            }
        });
    }
}

/// `fmt` writes an event with one call.
struct LineWriter(&'static Ring);

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for &'static Ring {
    type Writer = LineWriter;
    fn make_writer(&self) -> LineWriter {
        LineWriter(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_lines_within_its_bytes() {
        let ring = Ring(Mutex::new(Lines { lines: VecDeque::new(), bytes: 0 }));
        for n in 0..2_000 {
            ring.push(format!("line {n} {}\n", "x".repeat(90)).as_bytes());
        }
        ring.push("é".repeat(MAX_LINE).as_bytes());
        ring.push(b"two\x1b[31mcolours\nand lines\n");
        ring.lines(|lines| {
            let held: usize = lines.lines.iter().map(String::len).sum();
            assert_eq!(held, lines.bytes);
            assert!((RING_BYTES - 2 * MAX_LINE..=RING_BYTES).contains(&held), "{held}");
            assert!(lines.lines[0].starts_with("line 1"), "{}", lines.lines[0]);
            let last: Vec<&String> = lines.lines.iter().rev().take(2).collect();
            assert_eq!((last[0].as_str(), last[1].len()), ("two [31mcolours and lines", MAX_LINE));
        });
    }

    #[test]
    fn a_filter_that_is_none_is_named() {
        assert!(check_filter("plimsoll_agent=debug,info").is_ok());
        let error = check_filter("plimsoll=loud").unwrap_err().to_string();
        assert!(error.contains("plimsoll=loud") && error.contains("try info"), "{error}");
    }
}
