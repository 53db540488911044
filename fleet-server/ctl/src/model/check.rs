//! `plimsoll model check`: will it run on the agent, and what does it take?

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use plimsoll_protocol::bundle::Tolerance;
use plimsoll_runtime::{CheckReport, Measured, Problem, SampleFiles, TensorInfo, Trial, share_of};

use super::confined::{Room, check_model};
use crate::bundle::{data_sets, numbered};
use crate::failure::Refused;
use crate::output::{Screen, bytes};

/// `plimsoll model check MODEL.onnx`
#[derive(Debug, clap::Args)]
pub struct Check {
    /// The model.
    onnx: PathBuf,
    /// Shape of an input whose dimensions the file leaves open: `x=1,3,240,320`. Otherwise they are 1. Repeatable.
    #[arg(long = "shape", value_name = "INPUT=D,D,…", value_parser = shape, conflicts_with = "golden")]
    shapes: Vec<(String, Vec<usize>)>,
    /// Samples of real inputs and expected outputs, `test_data_set_N/input_K.pb, output_K.pb`: run instead of drawn
    /// inputs, and compared.
    #[arg(long, value_name = "DIR")]
    golden: Option<PathBuf>,
    /// Largest absolute difference from an expected output.
    #[arg(long, default_value_t = Tolerance::default().absolute, value_name = "X")]
    tolerance_absolute: f64,
    /// And relative to it.
    #[arg(long, default_value_t = Tolerance::default().relative, value_name = "X")]
    tolerance_relative: f64,
    /// Try it within the share that the agent would give it on a device of so much memory: 512MB, 1GB. Otherwise that of
    /// this machine.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    ram: Option<u64>,
}

/// Checks, says what was found, and refuses what does not run.
pub async fn run(args: &Check, screen: &Screen) -> Result<()> {
    let trial = Trial {
        shapes: args.shapes.iter().cloned().collect(),
        samples: args.golden.as_deref().map(samples).transpose()?.unwrap_or_default(),
        tolerance: Tolerance {
            absolute: args.tolerance_absolute,
            relative: args.tolerance_relative,
            top1: true,
        },
    };
    let mut room = Room::default();
    if let Some(ram) = args.ram {
        room.data_bytes = share_of(ram);
    }
    let bar = if screen.is_json() { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    bar.set_message(format!("trying {}", args.onnx.display()));
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let report = check_model(&args.onnx, trial, room).await;
    bar.finish_and_clear();
    let report = report?;
    screen.show(&report, || describe(&args.onnx, &report))?;
    if !report.runs {
        bail!(Refused(format!(
            "model {} does not run on the agent: {}",
            args.onnx.display(),
            count(&report.problems)
        )));
    }
    Ok(())
}

fn samples(dir: &Path) -> Result<Vec<SampleFiles>> {
    let set = |set: &PathBuf| {
        Ok(SampleFiles { inputs: numbered(set, "input_")?, outputs: numbered(set, "output_")? })
    };
    data_sets(dir)?.iter().map(set).collect()
}

/// The refusal of a model that another command was given, with every reason.
pub fn does_not_run(onnx: &Path, report: &CheckReport) -> anyhow::Error {
    let reasons: Vec<String> = report.problems.iter().map(reason).collect();
    let what = format!("model {} does not run on the agent: {}", onnx.display(), count(&report.problems));
    Refused(format!("{what}\n{}", reasons.join("\n"))).into()
}

fn count(problems: &[Problem]) -> String {
    if problems.len() == 1 { "1 problem".into() } else { format!("{} problems", problems.len()) }
}

/// One problem on one line.
fn reason(problem: &Problem) -> String {
    let node = problem.node.as_ref().map_or(String::new(), |node| format!("node {node:?}: "));
    let remedy = problem.remedy.as_ref().map_or(String::new(), |remedy| format!("; {remedy}"));
    format!("  {node}{}{remedy}", problem.why)
}

fn describe(onnx: &Path, report: &CheckReport) -> String {
    let mut lines = Vec::new();
    if report.runs {
        lines.push(format!("{} runs on the agent.", onnx.display()));
    } else {
        lines.push(format!("{} does NOT run on the agent:", onnx.display()));
        lines.extend(report.problems.iter().map(reason));
    }
    if let Some(d) = &report.description {
        let opsets = d.opsets.iter().map(|(domain, version)| {
            format!("{} {version}", if domain.is_empty() { "ai.onnx" } else { domain })
        });
        lines.push(format!("opset     {}", opsets.collect::<Vec<_>>().join(", ")));
        let operators = d.operators.iter().map(|(name, times)| format!("{name} {times}"));
        lines.push(format!("operators {}", operators.collect::<Vec<_>>().join(", ")));
        let info =
            |kind: &str, t: &TensorInfo| format!("{kind} {}: {} {:?}", t.name, t.datatype.as_str(), t.shape);
        lines.extend(d.inputs.iter().map(|t| info("input    ", t)));
        lines.extend(d.outputs.iter().map(|t| info("output   ", t)));
    }
    if let Some(measured) = &report.measured {
        lines.push(numbers(measured));
    }
    lines.extend(report.notes.iter().map(|note| format!("note      {note}")));
    lines.join("\n")
}

fn numbers(m: &Measured) -> String {
    let ms = |us: u64| format!("{:.2} ms", us as f64 / 1000.0);
    let shapes: Vec<String> = m.shapes.iter().map(|shape| format!("{shape:?}")).collect();
    let judged = if m.samples == 0 {
        "answers were not judged: --golden does".to_owned()
    } else {
        format!("{} sample(s) answered as expected, largest difference {:.2e}", m.samples, m.max_abs_error)
    };
    [
        format!("measured  here ({}, input {}); {judged}", m.architecture, shapes.join(" ")),
        format!("load      {} ms", m.load_ms),
        format!("inference {} (median of {}; the first {})", ms(m.p50_us), m.runs, ms(m.first_us)),
        format!(
            "memory    {} at its peak, of which {} before it was opened",
            bytes(m.peak_rss_bytes),
            bytes(m.base_rss_bytes)
        ),
    ]
    .join("\n")
}

/// `x=1,3,240,320`
fn shape(text: &str) -> Result<(String, Vec<usize>), String> {
    let wrong = || format!("{text:?} is not of the form INPUT=D,D,… with dimensions of 1 and more");
    let (name, dims) = text.rsplit_once('=').ok_or_else(wrong)?; // a name may hold anything, a shape no `=`
    let dim = |d: &str| d.trim().parse().ok().filter(|d| *d > 0);
    let dims = dims.split(',').map(dim).collect::<Option<Vec<usize>>>().ok_or_else(wrong)?;
    Ok((name.to_owned(), dims))
}

/// `512MB`, `1GiB`, or bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: give bytes, or a number with kB, MB, GB, KiB, MiB or GiB");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.trim().parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_sizes_are_read_or_refused_in_words() {
        assert_eq!(shape("x=1,3, 240"), Ok(("x".into(), vec![1, 3, 240])));
        assert_eq!(shape("a=b:0=4"), Ok(("a=b:0".into(), vec![4])));
        for bad in ["x", "x=", "x=1,a", "x=0", "x=-1"] {
            assert!(shape(bad).is_err(), "{bad}");
        }
        assert_eq!([size("512MB"), size("1 GiB"), size("7")], [Ok(512_000_000), Ok(1 << 30), Ok(7)]);
        for bad in ["", "MB", "1TB", "0", "99999999999GB", "-1MB"] {
            assert!(size(bad).unwrap_err().contains("MiB"), "{bad}");
        }
    }
}
