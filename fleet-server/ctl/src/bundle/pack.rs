//! `plimsoll bundle pack`: everything that a tool can know of a model, measured; the rest comes from flags.
//!
//! The bundle is built in a folder beside its destination and moved there whole, so an interrupted or refused pack
//! leaves nothing behind that looks like a bundle.
//!
//! The model is somebody's file, so this command never opens it: it asks a limited child whether the model runs, then
//! starts itself once more to pack, limited too, and that child has the samples run by a third, whose peak memory is
//! the model's and nobody else's.

mod draft;
mod golden;
pub(super) mod policy;
mod reference;
mod tensors;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plimsoll_protocol::ModelName;
use plimsoll_protocol::bundle::{Manifest, Step, Tolerance};
use plimsoll_protocol::drift::Order;
use plimsoll_runtime::{Bounds, Model, SelfTestReport, Trial, confine, describe, features, how_it_ended};
use serde_json::json;

use super::inspect::proves;
use crate::cli::pair;
use crate::failure::{FAILED, Refused, Told, Usage};
use crate::model::confined::{Room, check_model, self_test_bundle};
use crate::model::{does_not_run, size};
use crate::output::{Screen, bytes};
use draft::Draft;
pub(crate) use golden::{data_sets, numbered};

/// Says to this program that it is the child that packs.
const CONFINED: &str = "PLIMSOLL_PACK_CONFINED";

/// `plimsoll bundle pack MODEL.onnx`
#[derive(Debug, clap::Args)]
pub struct Pack {
    /// The model.
    onnx: PathBuf,
    /// Name under which devices run it.
    #[arg(long)]
    model: ModelName,
    /// Semantic version.
    #[arg(long)]
    version: semver::Version,
    /// Folder to make; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Golden samples (expected outputs) from the training framework: `test_data_set_N/input_K.pb, output_K.pb`.
    /// Without it, samples are recorded here and prove stability only.
    #[arg(long, value_name = "DIR")]
    golden: Option<PathBuf>,
    /// Reference data for the drift baseline: a CSV with a header row, or a folder like that of --golden.
    #[arg(long, value_name = "FILE|DIR")]
    reference: Option<PathBuf>,
    /// Rows of the reference follow each other in time, as one device saw them.
    #[arg(long, requires = "reference")]
    reference_in_time: bool,
    /// Class names, in order.
    #[arg(long, value_delimiter = ',', value_name = "A,B,…")]
    labels: Vec<String>,
    /// Input that holds pixels: its drift is measured by brightness, contrast, sharpness, … Repeatable. An input of
    /// rank 4 with 1, 3 or 4 channels is taken for one anyway.
    #[arg(long = "image", value_name = "INPUT")]
    images: Vec<String>,
    /// Input whose drift is not measured. Repeatable.
    #[arg(long = "opaque", value_name = "INPUT")]
    opaque: Vec<String>,
    /// Columns of the reference that are categories although they are numbers.
    #[arg(long, value_delimiter = ',', value_name = "A,B,…")]
    categorical: Vec<String>,
    /// Smallest and largest valid value of a column of the reference. Repeatable. Values outside are counted as data
    /// quality, or refused with --refuse out_of_range.
    #[arg(long, value_name = "COLUMN=LOW,HIGH", value_parser = policy::range, allow_hyphen_values = true)]
    valid: Vec<policy::Range>,
    /// Values for which a request is refused instead of answered: missing (NaN, null, an empty text), infinite,
    /// out_of_range or unknown_category (one that a --categorical column has not in the reference); of everything, or of
    /// one input or column. Repeatable. By default all are let through and counted.
    #[arg(long, value_name = "RULE[=NAME]", value_parser = policy::refusal)]
    refuse: Vec<policy::Refusal>,
    /// FP32 input or output that travels as BF16: half the bytes, eight bits of precision. Repeatable.
    #[arg(long, value_name = "TENSOR")]
    bf16: Vec<String>,
    /// Ship this file for an accelerator's own engine instead of the ONNX model, which then only says what goes in and
    /// out, gives the golden samples and the baseline: `tensorrt=meter.plan`.
    #[arg(long, value_name = "ENGINE=FILE", value_parser = policy::external)]
    external: Option<policy::External>,
    /// Multiply an input before the model sees it, and add an offset: `x=0.00392` or `x=0.0078,-1`. Repeatable.
    #[arg(long, value_name = "INPUT=FACTOR[,OFFSET]", value_parser = scale, allow_hyphen_values = true)]
    pre_scale: Vec<Step>,
    /// Largest absolute difference from an expected output.
    #[arg(long, default_value_t = Tolerance::default().absolute, value_name = "X")]
    tolerance_absolute: f64,
    /// And relative to it.
    #[arg(long, default_value_t = Tolerance::default().relative, value_name = "X")]
    tolerance_relative: f64,
    /// Memory that the model may take at most: 200MB. A device on which it takes more refuses it in its self-test.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    ram_limit: Option<u64>,
    /// Lineage, free: `commit=abc123`, `author=…`, `licence=…`. Repeatable.
    #[arg(long = "annotation", value_name = "K=V", value_parser = pair)]
    annotations: Vec<(String, String)>,
    /// This is the child that packs.
    #[arg(long, hide = true, env = CONFINED)]
    confined: bool,
}

/// Asks whether the model runs, then has it packed; neither in this process.
pub async fn run(args: &Pack, screen: &Screen) -> Result<()> {
    if args.confined {
        let bounds = Bounds::serving(); // reference data may take hours: no limit of time
        confine(&bounds).context("this process cannot be limited, so no model is opened")?;
        let test = async |dir: &Path, m: &Manifest| self_test_bundle(dir, m, Room::default()).await;
        return show(args, &pack(args, test).await?, screen);
    }
    let report = check_model(&args.onnx, Trial::default(), Room::default()).await?;
    // What was drawn for it may not suit it: then its golden samples decide.
    if !report.runs && (report.description.is_none() || args.golden.is_none()) {
        return Err(does_not_run(&args.onnx, &report));
    }
    let program = std::env::current_exe().context("this program does not know where it lies")?;
    let mut child = tokio::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(CONFINED, "true")
        .env_remove("PLIMSOLL_TOKEN") // nothing is sent from there
        .kill_on_drop(true)
        .spawn()
        .context("the process that packs could not be started")?;
    let id = child.id();
    let status = child.wait().await.context("the process that packs")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Told(u8::try_from(code).unwrap_or(FAILED)).into()),
        None => {
            if let Some(id) = id {
                draft::remove(&args.out, id);
            }
            let (onnx, how) = (args.onnx.display(), how_it_ended(status));
            bail!(Refused(format!("model {onnx} ended the process that packed it: {how}")))
        }
    }
}

/// Says what came out.
fn show(args: &Pack, packed: &Packed, screen: &Screen) -> Result<()> {
    let m = &packed.manifest;
    let result = json!({
        "model": m.model, "version": m.version, "digest": packed.digest, "out": args.out,
        "bytes": m.total_bytes(), "files": m.files.len(),
        "golden": { "origin": m.golden.origin, "samples": m.golden.samples.len(), "proves": proves(m) },
        "self_test": packed.report,
        "baseline": packed.baseline.map(|(features, rows)| json!({ "features": features, "rows": rows })),
        "notes": packed.notes,
    });
    for note in &packed.notes {
        screen.note(&format!("plimsoll: {note}"));
    }
    screen.show(&result, || {
        let baseline = match packed.baseline {
            Some((features, rows)) => format!("{features} features over {rows} reference rows"),
            None => "none".into(),
        };
        format!(
            "{} {} is packed in {} ({}, {}).\n\
             golden    {} sample(s), {}\n\
             self-test passed: largest difference {:.2e}, {} us an inference, {} RAM\n\
             drift     baseline: {baseline}\n\
             Next: plimsoll bundle publish {}",
            m.model,
            m.version,
            args.out.display(),
            packed.digest.short(),
            bytes(m.total_bytes()),
            m.golden.samples.len(),
            proves(m),
            packed.report.max_abs_error,
            packed.report.infer_us,
            bytes(packed.report.peak_rss_bytes),
            args.out.display()
        )
    })
}

/// What a pack gave.
#[derive(Debug)]
struct Packed {
    manifest: Manifest,
    digest: plimsoll_protocol::Digest,
    report: SelfTestReport,
    /// Features and rows.
    baseline: Option<(usize, usize)>,
    notes: Vec<String>,
}

async fn pack(
    args: &Pack,
    self_test: impl AsyncFnOnce(&Path, &Manifest) -> Result<SelfTestReport>,
) -> Result<Packed> {
    let mut notes = Vec::new();
    let description = describe(&args.onnx).with_context(|| format!("model {}", args.onnx.display()))?;
    let mut draft = Draft::begin(args, &description)?;
    policy::carry(args, &mut draft.manifest)?;
    draft.copy(&args.onnx, draft::ENTRY)?;
    let folder = args.onnx.parent().unwrap_or(Path::new(""));
    for path in &description.external_data {
        draft.copy(&folder.join(path.as_str()), path.as_str())?;
    }

    match &args.golden {
        Some(dir) => golden::supply(&mut draft, dir)?,
        None => {
            golden::record(&mut draft)?;
            notes.push(format!("no --golden: the samples were {}", proves(&draft.manifest)));
        }
    }
    golden::guess_outputs(&mut draft, args)?;
    let report = self_test(draft.dir(), &draft.manifest).await?;
    if let Some(mismatch) = &report.mismatch {
        bail!(Refused(format!(
            "the model does not answer as expected: {mismatch}; was it exported wrongly, or are the samples of \
             another version? (--tolerance-absolute and --tolerance-relative allow more)"
        )));
    }
    draft.manifest.requires.min_ram_bytes = report.peak_rss_bytes;

    let baseline = match &args.reference {
        None => {
            notes.push("no --reference: drift will not be measured".into());
            policy::apply(args, &mut draft.manifest)?;
            None
        }
        Some(path) => measure(args, &mut draft, path, &mut notes)?,
    };
    if let Some(external) = &args.external {
        policy::hand_over(external, &mut draft)?;
        notes.push(format!(
            "devices check the golden samples by the command of their settings ([engines.{}]); this machine checked the \
             ONNX model that the samples are of",
            external.engine()
        ));
    }
    let (manifest, digest) = draft.finish(&args.out)?;
    Ok(Packed { manifest, digest, report, baseline, notes })
}

/// Runs the model over the reference data and adds the baseline.
fn measure(
    args: &Pack,
    draft: &mut Draft,
    path: &Path,
    notes: &mut Vec<String>,
) -> Result<Option<(usize, usize)>> {
    let reference = reference::read(&mut draft.manifest, path, &args.categorical)?;
    policy::apply(args, &mut draft.manifest)?;
    let model = load(draft)?;
    let mut rows = 0;
    let mut answered = Vec::with_capacity(reference.len());
    for inputs in reference {
        rows += inputs.first().map_or(0, |t| t.rows());
        let outputs = model.infer(inputs.clone()).with_context(|| format!("reference {}", path.display()))?;
        answered.push((inputs, outputs));
    }
    let order = if args.reference_in_time { Order::Time } else { Order::Unordered };
    let baseline = features::fit_baseline(&draft.manifest, &answered, order)
        .map_err(|e| Refused(format!("reference {}: {e}", path.display())))?;
    let Some(baseline) = baseline else {
        notes.push("nothing of this model can be measured for drift: mark pixels with --image, classes with --labels".into());
        return Ok(None);
    };
    draft.manifest.baseline = Some(draft.add("baseline.json", &baseline.to_bytes())?);
    Ok(Some((baseline.features().len(), rows)))
}

fn load(draft: &Draft) -> Result<Model> {
    let variant = draft.manifest.variants.first().context("a draft has one variant")?;
    Ok(Model::load(draft.dir(), &draft.manifest, variant)?)
}

/// `x=0.00392` or `x=0.0078,-1`.
fn scale(text: &str) -> Result<Step, String> {
    let (tensor, numbers) = pair(text)?;
    let (factor, offset) = numbers.split_once(',').unwrap_or((&numbers, "0"));
    let number = |t: &str| t.trim().parse::<f32>().ok().filter(|n| n.is_finite());
    match (number(factor), number(offset)) {
        (Some(factor), Some(offset)) => Ok(Step::Scale { tensor, factor, offset }),
        _ => Err(format!("{text:?} is not of the form INPUT=FACTOR or INPUT=FACTOR,OFFSET")),
    }
}

/// A flag names a tensor that the model does not have.
fn unknown_tensor(flag: &str, name: &str, known: impl Iterator<Item = String>) -> anyhow::Error {
    let known = known.collect::<Vec<_>>().join(", ");
    Usage(format!("{flag} {name:?}: the model has no such tensor; it has {known}")).into()
}

#[cfg(test)]
mod tests;
