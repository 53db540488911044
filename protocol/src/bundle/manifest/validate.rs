//! What a manifest must hold beyond its schema: limits, names used once, and references to files that it lists.

use std::collections::BTreeSet;

use super::{
    DataType, Feature, FeatureKind, InputSpec, MAX_ELEMENTS, MAX_FILE_BYTES, MAX_FILES,
    MAX_LISTED_CATEGORIES, MAX_OPERATORS, MAX_RANK, MAX_TENSORS, Manifest, RuntimeKind, Step, ValueRule,
};
use crate::bundle::SafePath;

impl Manifest {
    /// Everything that the schema alone does not say.
    pub(super) fn validate(&self) -> Result<(), String> {
        self.validate_files()?;
        self.validate_variants()?;
        let inputs = self.inputs.iter().map(|t| (t.name.as_str(), t.shape.as_slice()));
        validate_tensors("input", inputs)?;
        self.inputs.iter().try_for_each(validate_features)?;
        let outputs = self.outputs.iter().map(|t| (t.name.as_str(), t.shape.as_slice()));
        validate_tensors("output", outputs)?;
        self.validate_golden()?;
        self.validate_steps()?;
        if let Some(path) = &self.baseline {
            self.listed(path, "the baseline")?;
        }
        if self.limits.timeout_ms == 0 || self.limits.max_batch == 0 || self.limits.queue == 0 {
            return Err("limits of zero would refuse every request".into());
        }
        if self.limits.ram_bytes == Some(0) {
            return Err("limits.ram_bytes of zero would refuse every device".into());
        }
        Ok(())
    }

    fn listed(&self, path: &SafePath, what: &str) -> Result<(), String> {
        self.file(path).map(|_| ()).ok_or_else(|| format!("{what} {path} is not in `files`"))
    }

    fn validate_files(&self) -> Result<(), String> {
        if self.files.is_empty() || self.files.len() > MAX_FILES {
            return Err(format!("it lists {} files; 1 to {MAX_FILES} are allowed", self.files.len()));
        }
        let mut seen = BTreeSet::new();
        for file in &self.files {
            // Lower case, because two names that differ by case are one file on some file systems.
            if !seen.insert(file.path.as_str().to_ascii_lowercase()) {
                return Err(format!("file {} is listed twice", file.path));
            }
            if file.path.as_str().eq_ignore_ascii_case(crate::bundle::MANIFEST_FILE) {
                return Err("bundle.json cannot list itself".into());
            }
            if file.size > MAX_FILE_BYTES {
                return Err(format!("file {} has {} bytes; at most {MAX_FILE_BYTES}", file.path, file.size));
            }
        }
        for file in &self.files {
            let inside = format!("{}/", file.path.as_str().to_ascii_lowercase());
            if seen.range(inside.clone()..).next().is_some_and(|other| other.starts_with(&inside)) {
                return Err(format!("{} is both a file and a folder", file.path));
            }
        }
        Ok(())
    }

    fn validate_variants(&self) -> Result<(), String> {
        if self.variants.is_empty() || self.variants.len() > 16 {
            return Err(format!("it has {} variants; 1 to 16 are allowed", self.variants.len()));
        }
        for v in &self.variants {
            if let RuntimeKind::Onnx { operators, .. } = &v.runtime {
                let count: usize = operators.values().map(BTreeSet::len).sum();
                if count > MAX_OPERATORS {
                    return Err(format!(
                        "variant {} lists {count} operators; at most {MAX_OPERATORS}",
                        v.name
                    ));
                }
            }
            self.listed(&v.entry, "the model of variant")?;
        }
        Ok(())
    }

    fn validate_golden(&self) -> Result<(), String> {
        let external = self.variants.iter().all(|v| matches!(v.runtime, RuntimeKind::External { .. }));
        if self.golden.samples.is_empty() && !external {
            return Err("it has no golden sample, so no device could check it".into());
        }
        for sample in &self.golden.samples {
            if sample.inputs.len() != self.inputs.len() || sample.outputs.len() > self.outputs.len() {
                return Err(format!(
                    "a golden sample has {} inputs and {} outputs; the model has {} and {}",
                    sample.inputs.len(),
                    sample.outputs.len(),
                    self.inputs.len(),
                    self.outputs.len()
                ));
            }
            sample.inputs.iter().chain(&sample.outputs).try_for_each(|p| self.listed(p, "golden file"))?;
        }
        for t in std::iter::once(&self.golden.tolerance).chain(self.golden.per_architecture.values()) {
            let sane = |v: f64| v.is_finite() && v >= 0.0;
            if !sane(t.absolute) || !sane(t.relative) {
                return Err("a tolerance is negative or not a number".into());
            }
        }
        Ok(())
    }

    fn validate_steps(&self) -> Result<(), String> {
        for step in self.pre.iter().chain(&self.post) {
            match step {
                Step::Scale { factor, offset, .. } if !factor.is_finite() || !offset.is_finite() => {
                    return Err("step scale: factor and offset must be finite".into());
                }
                Step::Normalize { mean, std, .. } if mean.len() != std.len() || mean.is_empty() => {
                    return Err("step normalize: mean and std must be of one length".into());
                }
                Step::Normalize { mean, std, .. }
                    if mean.iter().any(|v| !v.is_finite())
                        || std.iter().any(|v| !v.is_finite() || *v == 0.0) =>
                {
                    return Err("step normalize: values must be finite and std not zero".into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Ranges in order, categories that can occur, and policies that can catch something: a rule that refuses nothing
/// because a range was forgotten would be a lock without a door.
fn validate_features(input: &InputSpec) -> Result<(), String> {
    for feature in &input.features {
        let refuse = |why: &str| Err(format!("input {}, feature {:?}: {why}", input.name, feature.name));
        if let Some((low, high)) = feature.range
            && !(low.is_finite() && high.is_finite() && low <= high)
        {
            return refuse("its range must be two finite numbers in order");
        }
        if feature.categories.is_empty() {
            continue;
        }
        if feature.kind != FeatureKind::Categorical {
            return refuse("it lists categories and is not categorical");
        }
        if feature.categories.len() > MAX_LISTED_CATEGORIES {
            return refuse(&format!("it lists more than {MAX_LISTED_CATEGORIES} categories"));
        }
        let number = |text: &String| text.parse::<f64>().is_ok_and(f64::is_finite);
        if input.datatype != DataType::Bytes && !feature.categories.iter().all(number) {
            return refuse(&format!("its categories must be numbers, as {} is", input.datatype.as_str()));
        }
    }
    let without = |rule: ValueRule, has: fn(&Feature) -> bool| {
        let nowhere = input.policy.refuses(rule) && !input.features.iter().any(has);
        let mut own = input.features.iter().filter(|f| f.policy.is_some_and(|p| p.refuses(rule)) && !has(f));
        nowhere.then_some("no feature").or_else(|| own.next().map(|f| f.name.as_str())).map(str::to_owned)
    };
    let lacks = |rule: ValueRule, who: String, what: &str| {
        let rule = rule.as_str();
        Err(format!("input {}: its policy refuses {rule}, but {who} states {what}", input.name))
    };
    if let Some(who) = without(ValueRule::OutOfRange, |f| f.range.is_some()) {
        return lacks(ValueRule::OutOfRange, who, "a range");
    }
    if let Some(who) = without(ValueRule::UnknownCategory, |f| !f.categories.is_empty()) {
        return lacks(ValueRule::UnknownCategory, who, "its categories");
    }
    Ok(())
}

fn validate_tensors<'a>(
    what: &str,
    tensors: impl Iterator<Item = (&'a str, &'a [i64])>,
) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for (name, shape) in tensors {
        if name.is_empty() || name.len() > 200 || !names.insert(name) {
            return Err(format!("{what} name {name:?} is empty, too long or used twice"));
        }
        if shape.len() > MAX_RANK {
            return Err(format!("{what} {name} has {} dimensions; at most {MAX_RANK}", shape.len()));
        }
        let fixed = shape.iter().filter(|d| **d != -1);
        let mut elements: u64 = 1;
        for dim in fixed {
            let dim = u64::try_from(*dim).ok().filter(|d| *d > 0);
            let dim =
                dim.ok_or_else(|| format!("{what} {name} has a dimension that is neither -1 nor positive"))?;
            elements = elements
                .checked_mul(dim)
                .filter(|e| *e <= MAX_ELEMENTS)
                .ok_or_else(|| format!("{what} {name} has more than {MAX_ELEMENTS} elements"))?;
        }
    }
    if names.is_empty() || names.len() > MAX_TENSORS {
        return Err(format!("it has {} {what}s; 1 to {MAX_TENSORS} are allowed", names.len()));
    }
    Ok(())
}
