//! Will this model run on the agent? Asked of a model's file before anything is packed, with the code that will serve
//! it. Every node that the runtime lacks is named, not only the first, because each costs its owner an export.
//!
//! Meant for a child process: the model is loaded and run, and what it does to its process is not bounded here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plimsoll_protocol::bundle::{InputSpec, MAX_ELEMENTS, OutputKind, OutputSpec, Tolerance};
use serde::{Deserialize, Serialize};

use crate::document::ExternalData;
use crate::engine::{Description, Engine, Runtime, TensorInfo, TractRuntime, caught, refused_nodes};
use crate::error::{RuntimeError, TensorError};
use crate::golden::{Exchange, Mismatch, SplitMix, compare, draw_input};
use crate::memory;
use crate::proto::read_tensor;
use crate::tensor::Tensor;

/// Most runs that the median is taken of.
const RUNS: usize = 20;
/// No run is started after so long: a model of 200 ms an inference gets ten, a slower one fewer, any model one.
const RUN_FOR: Duration = Duration::from_secs(2);
/// Any number; the same one draws the same inputs on every machine.
const SEED: u64 = 1;

/// What a model is tried with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Shapes of inputs, by name, where the file leaves dimensions open; those not named here are 1.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Inputs and expected outputs; without any, inputs are drawn and the answers not judged.
    pub samples: Vec<SampleFiles>,
    /// How far an answer may be from the expected one.
    pub tolerance: Tolerance,
}

/// Files of one sample, ONNX `TensorProto` each, in the model's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleFiles {
    /// `input_0.pb`, …
    pub inputs: Vec<PathBuf>,
    /// `output_0.pb`, …
    pub outputs: Vec<PathBuf>,
}

/// What was found of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Whether it runs here, and answers the samples as expected.
    pub runs: bool,
    /// Why it does not; empty when it runs.
    pub problems: Vec<Problem>,
    /// What it is; absent when it could not be loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Description>,
    /// What it takes of this machine; absent when it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// What was not as one may think, though it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One reason why a model does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The node, when one is the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its operator's domain; `""` is `ai.onnx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Its operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// What is wrong.
    pub why: String,
    /// What the model's owner can do about it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Time and memory, measured on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Of this machine.
    pub architecture: String,
    /// Opening and planning, milliseconds.
    pub load_ms: u64,
    /// The first inference, microseconds.
    pub first_us: u64,
    /// Median of the inferences, microseconds.
    pub p50_us: u64,
    /// Inferences that were run.
    pub runs: u32,
    /// Shape of each input, in order.
    pub shapes: Vec<Vec<usize>>,
    /// Samples whose answers were compared.
    pub samples: u32,
    /// Largest distance of an answer from the expected one.
    pub max_abs_error: f64,
    /// Resident memory of the process before it opened the model, bytes.
    pub base_rss_bytes: u64,
    /// Peak resident memory of a process that opened and ran this model and nothing else, bytes.
    pub peak_rss_bytes: u64,
}

impl Problem {
    fn of_model(why: String) -> Self {
        Self { node: None, domain: None, operator: None, why, remedy: None }
    }

    /// A node that the engine refuses although it knows the operator.
    pub(crate) fn of_node(node: &str, domain: &str, operator: &str, why: String) -> Self {
        let remedy = "this form of the operator is not supported: simplify the model (onnxsim), or export with \
                      another opset (17 suits)";
        Self {
            node: Some(node.to_owned()),
            domain: Some(domain.to_owned()),
            operator: Some(operator.to_owned()),
            why,
            remedy: Some(remedy.to_owned()),
        }
    }
}

/// Tries a model's file. An error means that a file could not be read or that `trial` does not fit the model; whatever
/// is wrong with the model itself is in the report.
pub fn check(path: &Path, trial: &Trial) -> Result<CheckReport, RuntimeError> {
    let base_rss_bytes = memory::rss_bytes();
    let start = Instant::now();
    let engine = match TractRuntime.open(path, &ExternalData::Beside) {
        Ok(engine) => engine,
        Err(error @ RuntimeError::Io { .. }) => return Err(error),
        Err(error) => return Ok(CheckReport::of_problems(None, problems(path, error))),
    };
    let load_ms = start.elapsed().as_millis() as u64;
    let description = engine.description().clone();
    let mut runs = Runs::default();
    let problems = if trial.samples.is_empty() {
        runs.with_drawn(&*engine, trial)?
    } else {
        runs.with_samples(&*engine, trial)?
    };
    if !problems.is_empty() {
        return Ok(CheckReport::of_problems(Some(description), problems));
    }
    let first_us = runs.times_us.first().copied().unwrap_or(0);
    runs.times_us.sort_unstable();
    let measured = Measured {
        architecture: crate::architecture().to_owned(),
        load_ms,
        first_us,
        p50_us: runs.times_us.get(runs.times_us.len() / 2).copied().unwrap_or(0),
        runs: runs.times_us.len() as u32,
        shapes: runs.shapes,
        samples: trial.samples.len() as u32,
        max_abs_error: runs.worst,
        base_rss_bytes,
        peak_rss_bytes: memory::peak_rss_bytes(),
    };
    let (description, measured) = (Some(description), Some(measured));
    Ok(CheckReport { runs: true, problems: Vec::new(), description, measured, notes: runs.notes })
}

impl CheckReport {
    fn of_problems(description: Option<Description>, problems: Vec<Problem>) -> Self {
        Self { runs: false, problems, description, measured: None, notes: Vec::new() }
    }
}

/// Every reason that can be told apart for an error of opening.
fn problems(path: &Path, error: RuntimeError) -> Vec<Problem> {
    match error {
        RuntimeError::Operators(missing) => missing
            .into_iter()
            .map(|m| Problem {
                why: format!("operator {} is not supported", crate::error::full_name(&m.domain, &m.operator)),
                node: Some(m.node),
                domain: Some(m.domain),
                operator: Some(m.operator),
                remedy: Some(m.remedy.to_owned()),
            })
            .collect(),
        error @ (RuntimeError::Unsupported(_) | RuntimeError::Panicked { .. }) => {
            let nodes = refused_nodes(path);
            if nodes.is_empty() { vec![Problem::of_model(error.to_string())] } else { nodes }
        }
        error => vec![Problem::of_model(error.to_string())],
    }
}

/// Inferences and what they showed.
#[derive(Default)]
struct Runs {
    times_us: Vec<u64>,
    shapes: Vec<Vec<usize>>,
    worst: f64,
    notes: Vec<String>,
}

impl Runs {
    fn once(&mut self, engine: &dyn Engine, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, RuntimeError> {
        if self.shapes.is_empty() {
            self.shapes = inputs.iter().map(|t| t.shape().to_vec()).collect();
        }
        let start = Instant::now();
        let answer = caught("run the model", || engine.run(inputs))?;
        self.times_us.push(start.elapsed().as_micros() as u64);
        Ok(answer)
    }

    /// Runs it with drawn inputs; what comes out is not judged.
    fn with_drawn(&mut self, engine: &dyn Engine, trial: &Trial) -> Result<Vec<Problem>, RuntimeError> {
        let infos = &engine.description().inputs;
        if let Some(name) = trial.shapes.keys().find(|name| !infos.iter().any(|i| i.name == **name)) {
            let known: Vec<&str> = infos.iter().map(|i| i.name.as_str()).collect();
            return Err(
                TensorError::new(name, format!("is no input; the model has {}", known.join(", "))).into()
            );
        }
        let mut random = SplitMix(SEED);
        let mut specs = Vec::with_capacity(infos.len());
        for info in infos {
            let given = trial.shapes.get(&info.name);
            match spec(info, given) {
                Ok(spec) => specs.push(spec),
                Err(why) if given.is_some() => return Err(why.into()),
                Err(why) => return Ok(vec![Problem::of_model(why.to_string())]),
            }
        }
        let started = Instant::now();
        while self.times_us.is_empty() || (self.times_us.len() < RUNS && started.elapsed() < RUN_FOR) {
            let inputs = specs.iter().map(|spec| draw_input(spec, false, &mut random)).collect();
            match self.once(engine, inputs) {
                Ok(_) => {}
                Err(RuntimeError::Input(why)) => {
                    self.notes.push(format!(
                        "it does not take the values that were drawn ({why}), so no time was measured: give samples of \
                         real inputs with --golden"
                    ));
                    break;
                }
                Err(error) => return Ok(vec![Problem::of_model(error.to_string())]),
            }
        }
        Ok(Vec::new())
    }

    /// Runs every sample and compares.
    fn with_samples(&mut self, engine: &dyn Engine, trial: &Trial) -> Result<Vec<Problem>, RuntimeError> {
        let outputs: Vec<OutputSpec> = engine.description().outputs.iter().map(output_spec).collect();
        for (at, files) in trial.samples.iter().enumerate() {
            let (inputs, expected) = read(files)?;
            let count = engine.description().inputs.len();
            if inputs.len() != count {
                let why = format!("sample {at} has {} inputs, the model takes {count}", inputs.len());
                return Ok(vec![Problem::of_model(why)]);
            }
            let got = match self.once(engine, inputs) {
                Ok(got) => got,
                Err(error) => return Ok(vec![Problem::of_model(format!("sample {at}: {error}"))]),
            };
            let (distance, difference) = compare(&outputs, &got, &expected, trial.tolerance);
            self.worst = self.worst.max(distance);
            if let Some((output, difference)) = difference {
                let mismatch = Mismatch { sample: at as u32, output, difference };
                return Ok(vec![Problem::of_model(format!(
                    "it answers otherwise than expected: {mismatch}"
                ))]);
            }
        }
        Ok(Vec::new())
    }
}

fn read(files: &SampleFiles) -> Result<Exchange, RuntimeError> {
    let all = |paths: &[PathBuf]| {
        paths.iter().map(|p| read_tensor(p).map(|(_, t)| t)).collect::<Result<Vec<_>, _>>()
    };
    Ok((all(&files.inputs)?, all(&files.outputs)?))
}

/// An input with every open dimension closed, as `given` says or by 1.
fn spec(info: &TensorInfo, given: Option<&Vec<usize>>) -> Result<InputSpec, TensorError> {
    let closed: Vec<i64> = info.shape.iter().map(|d| if *d == -1 { 1 } else { *d }).collect();
    let shape = match given {
        None => closed,
        Some(given) => given.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect(),
    };
    let fits = shape.len() == info.shape.len()
        && shape.iter().zip(&info.shape).all(|(d, its)| *its == -1 || d == its);
    if !fits {
        let why = format!("cannot have shape {shape:?}: the model's is {:?} (-1 is any size)", info.shape);
        return Err(TensorError::new(&info.name, why));
    }
    let elements = shape.iter().map(|d| d.unsigned_abs()).fold(1u64, u64::saturating_mul);
    if elements == 0 || elements > MAX_ELEMENTS {
        let why = format!("has {elements} elements in shape {shape:?}; 1 to {MAX_ELEMENTS} are served");
        return Err(TensorError::new(&info.name, why));
    }
    let (name, datatype) = (info.name.clone(), info.datatype);
    Ok(InputSpec {
        name,
        datatype,
        shape,
        features: Vec::new(),
        content: Default::default(),
        policy: Default::default(),
    })
}

fn output_spec(info: &TensorInfo) -> OutputSpec {
    let (name, datatype, shape) = (info.name.clone(), info.datatype, info.shape.clone());
    OutputSpec { name, datatype, shape, kind: OutputKind::Raw, labels: Vec::new() }
}

#[cfg(test)]
mod tests;
