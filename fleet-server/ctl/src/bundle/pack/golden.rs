//! Golden samples: the expected outputs that every device checks on its own hardware.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plimsoll_protocol::bundle::{DataType, GoldenOrigin, GoldenSample, OutputKind, OutputSpec};
use plimsoll_runtime::{Tensor, encode_tensor, read_sample, read_tensor, record_golden};

use super::draft::Draft;
use super::{Pack, load};
use crate::failure::{Refused, Usage};

/// Samples recorded when none are supplied: one can be an accident, three cover a class or two more.
const RECORDED: u32 = 3;
/// Any number; the same one makes two packs of a model the same.
const SEED: u64 = 1;

/// Copies the training framework's samples into the bundle.
pub fn supply(draft: &mut Draft, dir: &Path) -> Result<()> {
    let sets = data_sets(dir)?;
    let (inputs, outputs) = (draft.manifest.inputs.len(), draft.manifest.outputs.len());
    for (at, set) in sets.iter().enumerate() {
        let (given_inputs, given_outputs) = (numbered(set, "input_")?, numbered(set, "output_")?);
        if given_inputs.len() != inputs || given_outputs.is_empty() || given_outputs.len() > outputs {
            bail!(Refused(format!(
                "golden sample {} has {} input(s) and {} output(s); the model has {inputs} and {outputs}",
                set.display(),
                given_inputs.len(),
                given_outputs.len()
            )));
        }
        let carried: [Vec<DataType>; 2] = [
            draft.manifest.inputs.iter().map(|t| t.datatype).collect(),
            draft.manifest.outputs.iter().map(|t| t.datatype).collect(),
        ];
        let mut copy = |kind: &str, files: &[PathBuf]| -> Result<Vec<_>> {
            let carried = carried.get(usize::from(kind == "output")).into_iter().flatten();
            let each = files.iter().zip(carried).enumerate();
            each.map(|(k, (file, datatype))| {
                let name = format!("golden/test_data_set_{at}/{kind}_{k}.pb");
                if *datatype != DataType::Bf16 {
                    return draft.copy(file, &name);
                }
                // The framework computed in FP32; the sample is what travels.
                let (label, tensor) = read_tensor(file)?;
                draft.add(&name, &encode_tensor(&label, &tensor.into_bf16()))
            })
            .collect()
        };
        let sample =
            GoldenSample { inputs: copy("input", &given_inputs)?, outputs: copy("output", &given_outputs)? };
        draft.manifest.golden.samples.push(sample);
    }
    draft.manifest.golden.origin = GoldenOrigin::Supplied;
    Ok(())
}

/// Records what the agent's own runtime answers to drawn inputs.
pub fn record(draft: &mut Draft) -> Result<()> {
    let samples = record_golden(&load(draft)?, RECORDED, SEED)?;
    for (at, (inputs, outputs)) in samples.iter().enumerate() {
        let mut write = |kind: &str, tensors: &[Tensor]| -> Result<Vec<_>> {
            let each = tensors.iter().enumerate();
            each.map(|(k, t)| {
                draft.add(&format!("golden/test_data_set_{at}/{kind}_{k}.pb"), &encode_tensor("", t))
            })
            .collect()
        };
        let sample = GoldenSample { inputs: write("input", inputs)?, outputs: write("output", outputs)? };
        draft.manifest.golden.samples.push(sample);
    }
    draft.manifest.golden.origin = GoldenOrigin::Recorded;
    Ok(())
}

/// What each output means: as `--labels` says, or as the expected outputs look.
pub fn guess_outputs(draft: &mut Draft, args: &Pack) -> Result<()> {
    let first = draft.manifest.golden.samples.first().context("a bundle has golden samples")?;
    let (_, expected) = read_sample(draft.dir(), first)?;
    for (spec, tensor) in draft.manifest.outputs.iter_mut().zip(&expected) {
        // What the model itself names the classes of are scores of classes.
        spec.kind = if spec.labels.is_empty() { guess(spec, tensor) } else { OutputKind::ClassScores };
    }
    if args.labels.is_empty() {
        return Ok(());
    }
    let count = args.labels.len();
    let fits =
        |o: &&mut OutputSpec| is_float(o.datatype) && o.shape.last() == i64::try_from(count).ok().as_ref();
    match draft.manifest.outputs.iter_mut().find(fits) {
        Some(output) => {
            output.kind = OutputKind::ClassScores;
            output.labels.clone_from(&args.labels);
            Ok(())
        }
        None => {
            let shapes = draft.manifest.outputs.iter().map(|o| format!("{} {:?}", o.name, o.shape));
            let shapes = shapes.collect::<Vec<_>>().join(", ");
            bail!(Usage(format!("--labels names {count} classes, but no output scores {count}: {shapes}")))
        }
    }
}

fn guess(spec: &OutputSpec, tensor: &Tensor) -> OutputKind {
    let width = tensor.shape().last().copied().unwrap_or(1);
    if !is_float(spec.datatype) || tensor.is_empty() {
        return OutputKind::Raw;
    }
    if width <= 1 && spec.shape.len() <= 2 {
        return OutputKind::Regression;
    }
    let values = tensor.to_f32();
    // Rows that are not negative and sum to one are probabilities; a thousandth is what FP16 leaves of a sum, BF16
    // keeps eight bits of each.
    let off = if spec.datatype == DataType::Bf16 { 1e-2 } else { 1e-3 };
    let is_distribution =
        |row: &[f32]| row.iter().all(|p| *p >= 0.0) && (row.iter().sum::<f32>() - 1.0).abs() < off;
    if spec.shape.len() == 2 && values.chunks(width).all(is_distribution) {
        return OutputKind::ClassScores;
    }
    OutputKind::Raw
}

fn is_float(datatype: DataType) -> bool {
    matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64)
}

/// The folders `test_data_set_N` in order of N, or the folder itself when it holds the tensors.
pub fn data_sets(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut sets = entries(dir, |name| name.strip_prefix("test_data_set_")?.parse().ok())?;
    if sets.is_empty() && dir.join("input_0.pb").is_file() {
        sets.push(dir.to_owned());
    }
    if sets.is_empty() {
        bail!(Usage(format!("{} holds no test_data_set_0/input_0.pb", dir.display())));
    }
    Ok(sets)
}

/// The files `<prefix>K.pb` of a folder: K must run from 0 without a gap.
pub fn numbered(dir: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let files = entries(dir, |name| name.strip_prefix(prefix)?.strip_suffix(".pb")?.parse().ok())?;
    for (k, file) in files.iter().enumerate() {
        if file.file_name().and_then(|n| n.to_str()) != Some(&format!("{prefix}{k}.pb")) {
            bail!(Refused(format!("{} holds {}, but no {prefix}{k}.pb", dir.display(), file.display())));
        }
    }
    Ok(files)
}

fn entries(dir: &Path, number: impl Fn(&str) -> Option<u32>) -> Result<Vec<PathBuf>> {
    let read = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut found = Vec::new();
    for entry in read {
        let entry = entry?;
        if let Some(n) = entry.file_name().to_str().and_then(&number) {
            found.push((n, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}
