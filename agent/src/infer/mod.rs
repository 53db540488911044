//! `plimsoll-agent infer`: rows on standard input, answers on standard output, one JSON object a line.
//!
//! The bundle is verified and its model is run as in service: the same steps around it and the same checks of its
//! inputs. Rows are asked in batches; answers come in the order of the rows, each with the line it belongs to. A row
//! that cannot be asked is told with its line, and ends the run or is skipped.

mod csv;
mod source;

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use plimsoll_runtime::{Model, RuntimeError, Tensor, architecture};

use crate::serve::bundle::verify_files;
use crate::serve::oip::{self, Outputs};
use crate::serve::rows::{Cell, Columns};
use source::{Row, Source};

pub use source::Format;

/// Exit status when every row was read and some were skipped.
pub const SKIPPED: u8 = 4;
/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);
/// Stack of the thread that runs the model, as in service.
const STACK: usize = 16 * 1024 * 1024;

/// What a bad row does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnError {
    /// Ends the run; what was answered stays.
    Stop,
    /// Is told, counted and left out.
    Skip,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Options {
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// How rows are written.
    pub format: Format,
    /// What a bad row does.
    pub on_error: OnError,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows with an answer.
    pub answered: u64,
    /// Rows without one.
    pub bad: u64,
}

/// A row that ended the run.
#[derive(Debug, thiserror::Error)]
#[error(
    "line {line}: {why}; {answered} rows were answered before it (go on after bad rows with --on-error skip)"
)]
struct Stopped {
    line: u64,
    why: String,
    answered: u64,
}

/// Runs the command on standard input and output. Returns the exit status: 0, or [`SKIPPED`].
pub fn main(options: &Options) -> anyhow::Result<u8> {
    let work = || {
        let counts = run(options, std::io::stdin().lock(), std::io::stdout().lock())?;
        anyhow::Ok(if counts.bad > 0 { SKIPPED } else { 0 })
    };
    // A thread of its own, for its stack.
    let ended = std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("infer".into()).stack_size(STACK).spawn_scoped(scope, work);
        thread.map(std::thread::ScopedJoinHandle::join).context("no thread for the model")
    })?;
    ended.unwrap_or_else(|_| anyhow::bail!("the thread of the model panicked"))
}

/// Reads every row of `input` and writes its answer to `output`; tells bad rows and progress on standard error.
pub fn run(options: &Options, input: impl BufRead, output: impl Write) -> anyhow::Result<Counts> {
    let model = load(&options.bundle).with_context(|| format!("bundle {}", options.bundle.display()))?;
    let columns = Columns::of(model.manifest());
    let mut source = Source::open(input, options.format, columns.as_ref().ok())?;
    let mut run = Run {
        batch: Vec::new(),
        max_rows: columns.as_ref().map_or(1, Columns::max_rows),
        model: &model,
        columns,
        output: std::io::BufWriter::new(output),
        on_error: options.on_error,
        counts: Counts::default(),
        started: Instant::now(),
        told: Instant::now(),
    };
    for column in source.unused() {
        eprintln!("column {column:?} is not used by {}", model.manifest().model);
    }
    while let Some((line, row)) = source.next_row()? {
        match row {
            Ok(Row::Cells(cells)) => run.push(line, cells)?,
            Ok(Row::Request(json)) => run.request(line, &json)?,
            Err(why) => {
                run.flush()?;
                run.bad(line, why)?;
            }
        }
    }
    run.flush()?;
    run.output.flush().context("cannot write the answers")?;
    run.tell();
    Ok(run.counts)
}

fn load(dir: &Path) -> Result<Model, RuntimeError> {
    let (manifest, _) = verify_files(dir)?;
    let variant = manifest.variant_for(architecture()).ok_or_else(|| {
        RuntimeError::Manifest(format!("it has no variant for architecture {:?}", architecture()))
    })?;
    Model::load(dir, &manifest, variant)
}

struct Run<'a, W: Write> {
    model: &'a Model,
    /// Or why this model takes no rows.
    columns: Result<Columns, String>,
    max_rows: usize,
    batch: Vec<(u64, Vec<Cell>)>,
    output: std::io::BufWriter<W>,
    on_error: OnError,
    counts: Counts,
    started: Instant,
    told: Instant,
}

impl<W: Write> Run<'_, W> {
    fn push(&mut self, line: u64, cells: Vec<Cell>) -> anyhow::Result<()> {
        let fits = match &self.columns {
            Ok(columns) => columns.check(&cells),
            Err(why) => Err(why.clone()),
        };
        if let Err(why) = fits {
            self.flush()?; // answers and complaints in the order of the rows
            return self.bad(line, why);
        }
        self.batch.push((line, cells));
        if self.batch.len() >= self.max_rows { self.flush() } else { Ok(()) }
    }

    /// Asks the model for the rows that wait; when they fail together, one by one, so that the bad one is found.
    fn flush(&mut self) -> anyhow::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        let rows: Vec<&[Cell]> = batch.iter().map(|(_, cells)| cells.as_slice()).collect();
        if let Ok(outputs) = self.ask(&rows)
            && let Some(by_row) = split(&outputs, batch.len())
        {
            for ((line, _), outputs) in batch.iter().zip(by_row) {
                self.answer(*line, &outputs)?;
            }
        } else {
            for (line, cells) in &batch {
                match self.ask(&[cells.as_slice()]) {
                    Ok(outputs) => self.answer(*line, &outputs)?,
                    Err(why) => self.bad(*line, why)?,
                }
            }
        }
        if self.told.elapsed() >= PROGRESS {
            self.tell();
            self.told = Instant::now();
        }
        Ok(())
    }

    fn ask(&self, rows: &[&[Cell]]) -> Result<Vec<Tensor>, String> {
        let inputs = self.columns.as_ref().map_err(Clone::clone)?.tensors(rows)?;
        self.infer(inputs)
    }

    /// As in service: the input policy before the model.
    fn infer(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, String> {
        self.model.check_inputs(&inputs).map_err(|e| e.to_string())?;
        self.model.values().check(&inputs).map_err(|e| e.to_string())?;
        self.model.infer(inputs).map_err(|e| e.to_string())
    }

    /// A line that is a whole inference request, for models whose inputs are no rows.
    fn request(&mut self, line: u64, json: &[u8]) -> anyhow::Result<()> {
        self.flush()?;
        let asked = oip::read(json, None, self.model.manifest()).map_err(|e| e.to_string());
        match asked.and_then(|ask| self.infer(ask.inputs)) {
            Ok(outputs) => self.answer(line, &outputs),
            Err(why) => self.bad(line, why),
        }
    }

    fn answer(&mut self, line: u64, outputs: &[Tensor]) -> anyhow::Result<()> {
        let outputs = Outputs { specs: &self.model.manifest().outputs, tensors: outputs };
        serde_json::to_writer(&mut self.output, &Answer { line, outputs })
            .map_err(std::io::Error::from)
            .and_then(|()| self.output.write_all(b"\n"))
            .context("cannot write the answers")?;
        self.counts.answered += 1;
        Ok(())
    }

    fn bad(&mut self, line: u64, why: String) -> anyhow::Result<()> {
        self.counts.bad += 1;
        if self.on_error == OnError::Stop {
            self.output.flush().context("cannot write the answers")?;
            return Err(Stopped { line, why, answered: self.counts.answered }.into());
        }
        eprintln!("line {line}: {why}");
        Ok(())
    }

    fn tell(&self) {
        let Counts { answered, bad } = self.counts;
        let rate = answered as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        eprintln!("{answered} rows answered, {bad} bad, {rate:.0} rows/s");
    }
}

/// The outputs of each row, when every output has as many rows as were asked.
fn split(outputs: &[Tensor], rows: usize) -> Option<Vec<Vec<Tensor>>> {
    if rows == 1 {
        return Some(vec![outputs.to_vec()]);
    }
    let fits = outputs.iter().all(|t| !t.shape().is_empty() && t.rows() == rows);
    let of_row = |at| outputs.iter().map(|t| t.slice_rows(at, at + 1)).collect::<Result<Vec<_>, _>>().ok();
    fits.then(|| (0..rows).map(of_row).collect::<Option<Vec<_>>>()).flatten()
}

#[derive(serde::Serialize)]
struct Answer<'a> {
    line: u64,
    outputs: Outputs<'a>,
}

#[cfg(test)]
mod tests;
