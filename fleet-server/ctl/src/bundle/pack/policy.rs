//! Flags that say which values are valid, what happens to the others, how tensors travel, and who runs the model.

use std::path::PathBuf;

use anyhow::{Result, bail};
use plimsoll_protocol::bundle::{
    DataType, FeatureKind, Manifest, RuntimeKind, Tolerance, ValueRule, Variant,
};

use super::draft::Draft;
use super::{Pack, unknown_tensor};
use crate::cli::pair;
use crate::failure::Usage;

/// Largest error of one rounding to BF16 is 2^-9 of the value; two devices whose FP32 differ in the last digit may
/// round to neighbours, 2^-7 apart. A golden sample must bear that.
const BF16_RELATIVE: f64 = 1.0 / 128.0;

/// `flow=0,100`
#[derive(Debug, Clone)]
pub struct Range {
    column: String,
    range: (f64, f64),
}

/// `missing`, or `missing=flow` for one input or column.
#[derive(Debug, Clone)]
pub struct Refusal {
    rule: ValueRule,
    of: Option<String>,
}

/// Reads `--valid`.
pub fn range(text: &str) -> Result<Range, String> {
    let (column, numbers) = pair(text)?;
    let number = |t: &str| t.trim().parse::<f64>().ok().filter(|n| n.is_finite());
    let ends = numbers.split_once(',').and_then(|(low, high)| Some((number(low)?, number(high)?)));
    match ends.filter(|(low, high)| low <= high) {
        Some(range) => Ok(Range { column, range }),
        None => Err(format!("{text:?} is not of the form COLUMN=LOW,HIGH")),
    }
}

/// Reads `--refuse`.
pub fn refusal(text: &str) -> Result<Refusal, String> {
    let (rule, of) = match text.split_once('=') {
        Some((rule, of)) => (rule, Some(of.to_owned())),
        None => (text, None),
    };
    Ok(Refusal { rule: rule.parse()?, of })
}

/// `tensorrt=meter.plan`
#[derive(Debug, Clone)]
pub struct External {
    engine: String,
    file: PathBuf,
}

impl External {
    /// Name of the engine.
    pub fn engine(&self) -> &str {
        &self.engine
    }
}

/// Reads `--external`.
pub fn external(text: &str) -> Result<External, String> {
    let (engine, file) = pair(text)?;
    // It is a key of the device's settings.
    let plain =
        engine.len() <= 64 && engine.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if plain {
        Ok(External { engine, file: file.into() })
    } else {
        Err(format!("{engine:?} is no name of an engine"))
    }
}

/// Puts the engine's file in the place of the ONNX model and its weights.
pub fn hand_over(external: &External, draft: &mut Draft) -> Result<()> {
    let named = external.file.file_name().and_then(|name| name.to_str());
    let name =
        named.ok_or_else(|| Usage(format!("--external: {} names no file", external.file.display())))?;
    draft.keep(|path| path.starts_with("golden/") || path == "baseline.json")?;
    let entry = draft.copy(&external.file, name)?;
    let runtime = RuntimeKind::External { engine: external.engine.clone() };
    draft.manifest.variants =
        vec![Variant { name: external.engine.clone(), entry, runtime, architectures: Default::default() }];
    draft.manifest.requires.min_ram_bytes = 0; // what was measured is the agent's own runtime
    Ok(())
}

/// Writes the flags into a manifest whose columns have their names.
pub fn apply(args: &Pack, manifest: &mut Manifest) -> Result<()> {
    for Range { column, range } in &args.valid {
        let features = manifest.inputs.iter_mut().flat_map(|i| &mut i.features);
        let mut named = features.filter(|f| f.name == *column).peekable();
        if named.peek().is_none() {
            bail!(Usage(unknown_column("--valid", column, manifest)));
        }
        named.for_each(|f| f.range = Some(*range));
    }
    for Refusal { rule, of } in &args.refuse {
        refuse(manifest, *rule, of.as_deref())?;
    }
    Ok(())
}

/// Writes `--bf16` into a manifest that has no golden sample yet: they travel so too.
pub fn carry(args: &Pack, manifest: &mut Manifest) -> Result<()> {
    args.bf16.iter().try_for_each(|name| carry_as_bf16(manifest, name))
}

fn refuse(manifest: &mut Manifest, rule: ValueRule, of: Option<&str>) -> Result<()> {
    let Some(name) = of else {
        // An input that has nothing to be held against is left alone; if none has, the manifest's own check says so.
        let applies = |i: &plimsoll_protocol::bundle::InputSpec| match rule {
            ValueRule::Missing | ValueRule::Infinite => true,
            ValueRule::OutOfRange => i.features.iter().any(|f| f.range.is_some()),
            ValueRule::UnknownCategory => i.features.iter().any(|f| !f.categories.is_empty()),
        };
        let any = manifest.inputs.iter().any(applies);
        manifest.inputs.iter_mut().filter(|i| !any || applies(i)).for_each(|i| i.policy.refuse(rule));
        return Ok(());
    };
    let mut found = false;
    for input in &mut manifest.inputs {
        if input.name == name {
            input.policy.refuse(rule);
            found = true;
        }
        let policy = input.policy;
        for feature in input.features.iter_mut().filter(|f| f.name == name) {
            feature.policy.get_or_insert(policy).refuse(rule);
            found = true;
        }
    }
    if !found {
        bail!(Usage(unknown_column("--refuse", name, manifest)));
    }
    Ok(())
}

fn carry_as_bf16(manifest: &mut Manifest, name: &str) -> Result<()> {
    let inputs = manifest.inputs.iter_mut().map(|i| (&i.name, &mut i.datatype, false));
    let outputs = manifest.outputs.iter_mut().map(|o| (&o.name, &mut o.datatype, true));
    let Some((_, datatype, output)) = inputs.chain(outputs).find(|(n, ..)| *n == name) else {
        let known = manifest.inputs.iter().map(|i| i.name.clone());
        return Err(unknown_tensor(
            "--bf16",
            name,
            known.chain(manifest.outputs.iter().map(|o| o.name.clone())),
        ));
    };
    if *datatype != DataType::Fp32 {
        bail!(Usage(format!("--bf16 {name:?}: it is {}; only FP32 can travel as BF16", datatype.as_str())));
    }
    *datatype = DataType::Bf16;
    if output {
        let Tolerance { relative, .. } = &mut manifest.golden.tolerance;
        *relative = relative.max(BF16_RELATIVE);
    }
    Ok(())
}

/// Distinct values of a categorical column as the manifest lists them; `None` when they are too many to be a list that
/// somebody reads.
pub fn categories(values: impl Iterator<Item = f64>) -> Option<Vec<String>> {
    let mut distinct: Vec<f64> = Vec::new();
    for value in values.filter(|v| v.is_finite()) {
        if let Err(at) = distinct.binary_search_by(|known| known.total_cmp(&value)) {
            if distinct.len() >= plimsoll_protocol::drift::bins::MAX_CATEGORIES {
                return None;
            }
            distinct.insert(at, value);
        }
    }
    Some(distinct.iter().map(f64::to_string).collect())
}

fn unknown_column(flag: &str, name: &str, manifest: &Manifest) -> String {
    let columns: Vec<&str> =
        manifest.inputs.iter().flat_map(|i| &i.features).map(|f| f.name.as_str()).collect();
    let columns = if columns.is_empty() {
        "no column has a name; a CSV as --reference names them".to_owned()
    } else {
        format!("there are {}", columns.join(", "))
    };
    format!("{flag} {name:?}: no column is called so; {columns}")
}

/// What an input's policy says, for people; empty when it lets everything through.
pub fn in_words(input: &plimsoll_protocol::bundle::InputSpec) -> Vec<String> {
    let mut lines = Vec::new();
    if !input.policy.is_default() {
        lines.push(format!("policy   {}: refuses {}", input.name, input.policy.refusals()));
    }
    for f in &input.features {
        let mut parts = Vec::new();
        parts.extend(f.range.map(|(low, high)| format!("valid {low} to {high}")));
        if f.kind == FeatureKind::Categorical && !f.categories.is_empty() {
            parts.push(format!("one of {}", f.categories.join(", ")));
        }
        parts.extend(f.policy.map(|p| match p.refusals() {
            none if none.is_empty() => "refuses nothing".to_owned(),
            some => format!("refuses {some}"),
        }));
        if !parts.is_empty() {
            lines.push(format!("feature  {}.{}: {}", input.name, f.name, parts.join("; ")));
        }
    }
    lines
}
