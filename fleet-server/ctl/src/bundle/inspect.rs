//! `plimsoll bundle inspect`: what a bundle says of itself.

use std::path::Path;

use anyhow::Result;
use plimsoll_protocol::bundle::{GoldenOrigin, Manifest, RuntimeKind};

use super::files::LocalBundle;
use super::pack::policy;
use crate::output::{Screen, bytes};

/// Shows a bundle.
pub fn run(dir: &Path, screen: &Screen) -> Result<()> {
    let bundle = LocalBundle::open(dir)?;
    screen.show(&bundle.manifest, || describe(&bundle))
}

fn describe(bundle: &LocalBundle) -> String {
    let m = &bundle.manifest;
    let mut lines = vec![
        format!("{} {} ({}), packed {}", m.model, m.version, bundle.digest.short(), m.created),
        format!(
            "{} in {} files; {} RAM",
            bytes(m.total_bytes()),
            m.files.len(),
            bytes(m.requires.min_ram_bytes)
        ),
    ];
    for v in &m.variants {
        let runtime = match &v.runtime {
            RuntimeKind::Onnx { opsets, .. } => {
                let opsets = opsets.iter().map(|(domain, version)| {
                    format!("{} {version}", if domain.is_empty() { "ai.onnx" } else { domain })
                });
                format!("ONNX, opset {}", opsets.collect::<Vec<_>>().join(", "))
            }
            RuntimeKind::External { engine } => format!("external engine {engine}"),
        };
        lines.push(format!("variant  {}: {} ({runtime})", v.name, v.entry));
    }
    for t in &m.inputs {
        let content = serde_json::to_value(t.content).unwrap_or_default();
        let content = content.as_str().unwrap_or_default().to_owned();
        lines.push(format!("input    {}: {} {:?}, {content}", t.name, t.datatype.as_str(), t.shape));
        lines.extend(policy::in_words(t));
    }
    for t in &m.outputs {
        let kind = serde_json::to_value(t.kind).unwrap_or_default();
        let kind = kind.as_str().unwrap_or_default().replace('_', " ");
        let labels = if t.labels.is_empty() { String::new() } else { format!(": {}", t.labels.join(", ")) };
        lines.push(format!("output   {}: {} {:?}, {kind}{labels}", t.name, t.datatype.as_str(), t.shape));
    }
    lines.push(format!("golden   {} sample(s), {}", m.golden.samples.len(), proves(m)));
    lines.push(match &m.baseline {
        Some(path) => format!("drift    baseline in {path}"),
        None => "drift    no baseline: drift is not measured".into(),
    });
    lines.extend(m.annotations.iter().map(|(k, v)| format!("         {k} = {v}")));
    lines.join("\n")
}

/// What golden samples prove, which depends on where they come from.
pub fn proves(manifest: &Manifest) -> &'static str {
    match manifest.golden.origin {
        GoldenOrigin::Supplied => "from the training framework: they prove that devices answer as it does",
        GoldenOrigin::Recorded => {
            "recorded while packing: they prove stability, not agreement with the training framework"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_runtime::testing;

    #[test]
    fn a_bundle_is_described_and_says_what_its_samples_prove() {
        let dir = tempfile::tempdir().unwrap();
        testing::write_bundle(
            dir.path(),
            &testing::classifier(3, 2, 1.0),
            testing::classifier_manifest(3, 2),
        );
        let text = describe(&LocalBundle::open(dir.path()).unwrap());
        for expect in [
            "meter 1.0.0",
            "input    x: FP32 [-1, 3], tabular",
            "output   y: FP32 [-1, 2], class scores",
            "golden   2 sample(s), recorded while packing: they prove stability, not agreement",
            "drift    baseline in baseline.json",
        ] {
            assert!(text.contains(expect), "{expect:?} is not in\n{text}");
        }
    }
}
