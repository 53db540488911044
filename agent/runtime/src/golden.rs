//! Golden samples: the model's expected outputs, checked on the hardware that will serve it.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use plimsoll_protocol::bundle::{
    DataType, FeatureKind, GoldenSample, InputContent, InputSpec, Manifest, OutputKind, OutputSpec, Tolerance,
};
use serde::{Deserialize, Serialize};

use crate::error::RuntimeError;
use crate::memory;
use crate::model::Model;
use crate::proto::read_tensor;
use crate::steps::{self, arg_max};
use crate::tensor::{Data, Tensor, bf16_bits, f16_bits};

/// What was asked of a model, and what it answered: inputs and outputs in the manifest's order.
pub type Exchange = (Vec<Tensor>, Vec<Tensor>);

/// What a self-test found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelfTestReport {
    /// Whether every sample was within tolerance.
    pub ok: bool,
    /// Samples that were run.
    pub samples: u32,
    /// Largest distance of any element from its expected value; infinite distances are reported as the mismatch.
    pub max_abs_error: f64,
    /// The first sample that was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<Mismatch>,
    /// Opening and planning the model, milliseconds.
    pub load_ms: u64,
    /// Median of the samples' inference times, microseconds.
    pub infer_us: u64,
    /// Peak resident memory of this process, bytes.
    pub peak_rss_bytes: u64,
}

/// Where an answer first differed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mismatch {
    /// Sample, from 0.
    pub sample: u32,
    /// Output.
    pub output: String,
    /// What differed.
    #[serde(flatten)]
    pub difference: Difference,
}

/// How an answer differed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum Difference {
    /// Another shape or datatype.
    Shape {
        /// What came.
        got: String,
        /// What was expected.
        expected: String,
    },
    /// An element is out of tolerance. A number that JSON cannot write is `null`.
    Value {
        /// Position in row-major order.
        element: u64,
        /// What came.
        got: Option<f64>,
        /// What was expected.
        expected: Option<f64>,
        /// How far apart they may be.
        tolerance: f64,
    },
    /// Every element is within tolerance, but another class wins.
    Top1 {
        /// Row.
        row: u64,
        /// The class that won.
        got: u64,
        /// The class that should have.
        expected: u64,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "golden sample {}, output {:?}: ", self.sample, self.output)?;
        let number = |v: &Option<f64>| v.map_or("not finite".to_owned(), |v| v.to_string());
        match &self.difference {
            Difference::Shape { got, expected } => write!(f, "got {got}, expected {expected}"),
            Difference::Value { element, got, expected, tolerance } => write!(
                f,
                "element {element} is {}, expected {} within {tolerance:.3e}",
                number(got),
                number(expected)
            ),
            Difference::Top1 { row, got, expected } => {
                write!(f, "row {row} is class {got}, expected class {expected}")
            }
        }
    }
}

/// Loads the bundle in `dir` and runs its golden samples. An error means that it does not load or run; a difference
/// is a report that is not `ok`. Meant for a child process: what a model may do to its process is not bounded here.
pub fn self_test(
    dir: &Path,
    manifest: &Manifest,
    architecture: &str,
) -> Result<SelfTestReport, RuntimeError> {
    let before = memory::rss_bytes();
    let start = Instant::now();
    let variant = manifest.variant_for(architecture).ok_or_else(|| {
        RuntimeError::Manifest(format!("it has no variant for architecture {architecture:?}"))
    })?;
    let model = Model::load(dir, manifest, variant)?;
    let load_ms = start.elapsed().as_millis() as u64;
    let tolerance = manifest.tolerance_for(architecture);
    let mut times = Vec::with_capacity(manifest.golden.samples.len());
    let (mut worst, mut mismatch) = (0.0f64, None);
    for (at, sample) in manifest.golden.samples.iter().enumerate() {
        let (inputs, expected) = read_sample(dir, sample)?;
        let start = Instant::now();
        let got = model.infer(inputs)?;
        times.push(start.elapsed().as_micros() as u64);
        let (distance, difference) = compare(&manifest.outputs, &got, &expected, tolerance);
        worst = worst.max(distance);
        if let Some((output, difference)) = difference
            && mismatch.is_none()
        {
            mismatch = Some(Mismatch { sample: at as u32, output, difference });
        }
    }
    times.sort_unstable();
    let peak_rss_bytes = memory::peak_rss_bytes();
    check_memory(manifest, peak_rss_bytes.saturating_sub(before))?;
    Ok(SelfTestReport {
        ok: mismatch.is_none(),
        samples: times.len() as u32,
        max_abs_error: worst,
        mismatch,
        load_ms,
        infer_us: times.get(times.len() / 2).copied().unwrap_or(0),
        peak_rss_bytes,
    })
}

/// Refuses a model that took more memory than its manifest allows.
fn check_memory(manifest: &Manifest, took: u64) -> Result<(), RuntimeError> {
    match manifest.limits.ram_bytes.filter(|limit| took > *limit) {
        None => Ok(()),
        Some(limit) => Err(RuntimeError::Refused(format!(
            "opening it and running its golden samples took {took} bytes of memory here; limits.ram_bytes of its \
             bundle.json allows {limit}: pack it with a larger --ram-limit, or make the model smaller"
        ))),
    }
}

/// Reads the tensors of one golden sample: inputs and expected outputs.
pub fn read_sample(dir: &Path, sample: &GoldenSample) -> Result<Exchange, RuntimeError> {
    let read = |paths: &[plimsoll_protocol::bundle::SafePath]| {
        paths.iter().map(|p| read_tensor(&dir.join(p.as_str())).map(|(_, tensor)| tensor)).collect()
    };
    let (inputs, outputs): (Result<Vec<_>, _>, Result<Vec<_>, _>) =
        (read(&sample.inputs), read(&sample.outputs));
    Ok((inputs?, outputs?))
}

/// Compares answers with expectations; returns the largest finite distance and the first difference. Outputs beyond
/// the expected ones are not compared.
pub(crate) fn compare(
    specs: &[OutputSpec],
    got: &[Tensor],
    expected: &[Tensor],
    tolerance: Tolerance,
) -> (f64, Option<(String, Difference)>) {
    let (mut worst, mut first) = (0.0f64, None);
    for ((spec, got), expected) in specs.iter().zip(got).zip(expected) {
        let (distance, difference) = compare_one(spec, got, expected, tolerance);
        worst = worst.max(distance);
        if first.is_none() {
            first = difference.map(|d| (spec.name.clone(), d));
        }
    }
    (worst, first)
}

fn compare_one(
    spec: &OutputSpec,
    got: &Tensor,
    expected: &Tensor,
    tolerance: Tolerance,
) -> (f64, Option<Difference>) {
    let form = |t: &Tensor| format!("{} {:?}", t.datatype().as_str(), t.shape());
    if got.datatype() != expected.datatype() || got.shape() != expected.shape() {
        return (0.0, Some(Difference::Shape { got: form(got), expected: form(expected) }));
    }
    if let (Data::Bytes(a), Data::Bytes(b)) = (got.data(), expected.data()) {
        let at = a.iter().zip(b).position(|(a, b)| a != b);
        let value = |at| Difference::Value { element: at as u64, got: None, expected: None, tolerance: 0.0 };
        return (0.0, at.map(value));
    }
    let (mut worst, mut first) = (0.0f64, None);
    for at in 0..got.len() {
        let (g, e) = (got.at(at), expected.at(at));
        if g == e || (g.is_nan() && e.is_nan()) {
            continue;
        }
        let distance = (g - e).abs();
        if distance.is_finite() {
            worst = worst.max(distance);
        }
        let allowed = tolerance.absolute + tolerance.relative * e.abs();
        // Not `distance > allowed`: that would let NaN pass.
        let within = distance.is_finite() && distance <= allowed;
        if !within && first.is_none() {
            let finite = |v: f64| v.is_finite().then_some(v);
            let allowed = if allowed.is_finite() { allowed } else { tolerance.absolute };
            first = Some(Difference::Value {
                element: at as u64,
                got: finite(g),
                expected: finite(e),
                tolerance: allowed,
            });
        }
    }
    if first.is_none() && tolerance.top1 && spec.kind == OutputKind::ClassScores {
        first = other_winner(got, expected);
    }
    (worst, first)
}

fn other_winner(got: &Tensor, expected: &Tensor) -> Option<Difference> {
    let classes = got.shape().last().copied().unwrap_or(1).max(1);
    let (got, expected) = (got.to_f32(), expected.to_f32());
    let rows = got.chunks(classes).zip(expected.chunks(classes));
    rows.enumerate().find_map(|(row, (got, expected))| {
        let (g, e) = (arg_max(got), arg_max(expected));
        let tie = got.get(g) == got.get(e);
        (!tie).then_some(Difference::Top1 { row: row as u64, got: g as u64, expected: e as u64 })
    })
}

/// Inputs drawn from a seed and what the model answers to them: they prove that devices agree with the machine that
/// packed, not that anybody agrees with the training framework.
pub fn record_golden(model: &Model, samples: u32, seed: u64) -> Result<Vec<Exchange>, RuntimeError> {
    let mut random = SplitMix(seed);
    (0..samples)
        .map(|_| {
            // Pixels that a step scales down arrive as 0 to 255, others as the model takes them.
            let scaled = |name: &str| model.manifest().pre.iter().any(|s| steps::reads(s) == name);
            let draw = |spec: &InputSpec| draw_input(spec, scaled(&spec.name), &mut random);
            let inputs: Vec<Tensor> = model.manifest().inputs.iter().map(draw).collect();
            let outputs = model.infer(inputs.clone())?;
            Ok((inputs, outputs))
        })
        .collect()
}

/// One row of plausible values: pixels for images, the stated range for columns, small integers for indices.
pub(crate) fn draw_input(spec: &InputSpec, scaled: bool, random: &mut SplitMix) -> Tensor {
    let shape: Vec<usize> = spec.shape.iter().map(|d| usize::try_from(*d).unwrap_or(1)).collect();
    let count: usize = shape.iter().product(); // bounded by the manifest's own limit
    let float = |at: usize, random: &mut SplitMix| -> f32 {
        match spec.content {
            InputContent::Image if scaled => (random.unit() * 255.0).round(),
            InputContent::Image => random.unit(),
            _ => match spec.features.get(at % spec.features.len().max(1)) {
                Some(f) if f.kind == FeatureKind::Categorical => (random.next() % 2) as f32,
                Some(f) => match f.range {
                    Some((low, high)) => (low + f64::from(random.unit()) * (high - low)) as f32,
                    None => random.normal(),
                },
                None => random.normal(),
            },
        }
    };
    let mut floats = || (0..count).map(|at| float(at, random)).collect::<Vec<f32>>();
    let data = match spec.datatype {
        DataType::Fp32 => Data::Fp32(floats()),
        DataType::Fp64 => Data::Fp64(floats().into_iter().map(f64::from).collect()),
        DataType::Fp16 => Data::Fp16(floats().into_iter().map(f16_bits).collect()),
        DataType::Bf16 => Data::Bf16(floats().into_iter().map(bf16_bits).collect()),
        DataType::Uint8 => Data::Uint8((0..count).map(|_| random.next() as u8).collect()),
        // Other integers are mostly indices and codes: 0 and 1 exist everywhere.
        DataType::Bool => Data::Bool((0..count).map(|_| random.next() % 2 == 1).collect()),
        DataType::Uint16 => Data::Uint16((0..count).map(|_| (random.next() % 2) as u16).collect()),
        DataType::Uint32 => Data::Uint32((0..count).map(|_| (random.next() % 2) as u32).collect()),
        DataType::Uint64 => Data::Uint64((0..count).map(|_| random.next() % 2).collect()),
        DataType::Int8 => Data::Int8((0..count).map(|_| (random.next() % 2) as i8).collect()),
        DataType::Int16 => Data::Int16((0..count).map(|_| (random.next() % 2) as i16).collect()),
        DataType::Int32 => Data::Int32((0..count).map(|_| (random.next() % 2) as i32).collect()),
        DataType::Int64 => Data::Int64((0..count).map(|_| (random.next() % 2) as i64).collect()),
        DataType::Bytes => Data::Bytes((0..count).map(|_| b"a".to_vec()).collect()),
    };
    Tensor::of(shape, data)
}

/// SplitMix64: the same sequence on every machine for a seed, in six lines; nothing here needs better randomness.
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// 0 to 1, 24 bits: what an f32 holds.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }
    /// About normal: twelve uniforms less six have variance one.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}
