//! `plimsoll bundle diff`: what changes for a device, and for the application beside it, from one version to another.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use plimsoll_protocol::bundle::{FileEntry, Manifest};
use serde::Serialize;
use serde_json::{Value, json};

use super::subject;
use crate::api::Api;
use crate::output::{Screen, bytes};

/// `plimsoll bundle diff A B`
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// A bundle's folder, an export, or MODEL@VERSION on the server.
    a: String,
    /// The same, of what comes after it.
    b: String,
}

/// What became of one file.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct FileChange {
    path: String,
    /// Bytes; `None`: it was not there.
    before: Option<u64>,
    /// Bytes; `None`: it is no longer there. The same size as before means other contents.
    after: Option<u64>,
}

/// What became of one thing that the manifest says.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct FieldChange {
    /// `inputs.pixels.shape`.
    field: String,
    before: Option<String>,
    after: Option<String>,
}

/// Shows the difference. Nothing is verified.
pub async fn run(args: &Diff, api: impl Fn() -> Result<Api>, screen: &Screen) -> Result<()> {
    let a = subject::read(&args.a, &api).await?;
    let b = subject::read(&args.b, &api).await?;
    let (files, fields) = (files(&a.manifest, &b.manifest), fields(&a.manifest, &b.manifest)?);
    let name = |s: &subject::Subject| json!({ "model": s.manifest.model, "version": s.manifest.version, "digest": s.digest });
    let same = a.digest == b.digest;
    let result = json!({ "a": name(&a), "b": name(&b), "same": same, "files": files, "fields": fields });
    screen.show(&result, || {
        let title = |s: &subject::Subject| {
            format!("{} {} ({})", s.manifest.model, s.manifest.version, s.digest.short())
        };
        if same {
            return format!("Both are {}.", title(&a));
        }
        let mut lines = vec![format!("{} -> {}", title(&a), title(&b)), String::new()];
        let (from, to) = (a.manifest.total_bytes(), b.manifest.total_bytes());
        lines.push(format!("files       {} -> {} in all", bytes(from), bytes(to)));
        lines.extend(files.iter().map(FileChange::words));
        lines.extend(fields.iter().map(FieldChange::words));
        lines.join("\n")
    })
}

fn files(a: &Manifest, b: &Manifest) -> Vec<FileChange> {
    let by_path = |m: &Manifest| -> BTreeMap<String, FileEntry> {
        m.files.iter().map(|f| (f.path.as_str().to_owned(), f.clone())).collect()
    };
    let (a, b) = (by_path(a), by_path(b));
    let paths: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let changed = paths.into_iter().filter(|p| a.get(*p).map(|f| f.sha256) != b.get(*p).map(|f| f.sha256));
    let size = |of: &BTreeMap<String, FileEntry>, path: &String| of.get(path).map(|f| f.size);
    changed.map(|p| FileChange { path: p.clone(), before: size(&a, p), after: size(&b, p) }).collect()
}

/// Everything else that the manifest says, leaf by leaf. Files were compared; when it was packed always differs.
fn fields(a: &Manifest, b: &Manifest) -> Result<Vec<FieldChange>> {
    let leaves = |m: &Manifest| -> Result<BTreeMap<String, String>> {
        let mut value = serde_json::to_value(m)?;
        if let Some(fields) = value.as_object_mut() {
            for name in ["files", "created", "format"] {
                fields.remove(name);
            }
        }
        let mut leaves = BTreeMap::new();
        flatten("", &value, &mut leaves);
        Ok(leaves)
    };
    let (a, b) = (leaves(a)?, leaves(b)?);
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let changed = names.into_iter().filter(|name| a.get(*name) != b.get(*name));
    let change = |name: &String| FieldChange {
        field: name.clone(),
        before: a.get(name).cloned(),
        after: b.get(name).cloned(),
    };
    Ok(changed.map(change).collect())
}

/// Leaves by their path. Parts of a list are known by their name where they have one, so that one more input at the
/// front is not a change of all of them; a list of plain values is one leaf.
fn flatten(path: &str, value: &Value, leaves: &mut BTreeMap<String, String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, v)| flatten(&below(name), v, leaves)),
        Value::Array(parts) if parts.iter().any(Value::is_object) => {
            for (n, part) in parts.iter().enumerate() {
                let name =
                    part.get("name").and_then(Value::as_str).map_or_else(|| n.to_string(), str::to_owned);
                flatten(&below(&name), part, leaves);
            }
        }
        Value::String(text) => drop(leaves.insert(path.to_owned(), text.clone())),
        other => drop(leaves.insert(path.to_owned(), other.to_string())),
    }
}

impl FileChange {
    fn words(&self) -> String {
        let words = match (self.before, self.after) {
            (Some(before), Some(after)) if before == after => format!("other contents, {}", bytes(after)),
            (Some(before), Some(after)) => format!("{} -> {}", bytes(before), bytes(after)),
            (Some(before), None) => format!("removed ({})", bytes(before)),
            (None, after) => format!("added ({})", bytes(after.unwrap_or(0))),
        };
        format!("  {}: {words}", self.path)
    }
}

impl FieldChange {
    fn words(&self) -> String {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        format!("{}: {} -> {}", self.field, text(&self.before), text(&self.after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_protocol::bundle::SafePath;
    use plimsoll_runtime::testing;

    #[test]
    fn a_wider_input_and_a_new_annotation_are_told_and_nothing_else() {
        let (a, mut b) = (testing::classifier_manifest(3, 2), testing::classifier_manifest(3, 2));
        b.inputs[0].shape = vec![-1, 4];
        b.annotations.insert("commit".into(), "abc".into());
        b.created = "2027-01-01T00:00:00Z".into();
        let mut told: Vec<String> = fields(&a, &b).unwrap().iter().map(FieldChange::words).collect();
        told.sort();
        assert_eq!(told, ["annotations.commit: - -> abc", "inputs.x.shape: [-1,3] -> [-1,4]"]);
    }

    #[test]
    fn files_are_compared_by_contents() {
        let entry = |path: &str, size, contents: &[u8]| FileEntry {
            path: SafePath::new(path).unwrap(),
            size,
            sha256: plimsoll_protocol::Digest::of(contents),
        };
        let (mut a, mut b) = (testing::classifier_manifest(3, 2), testing::classifier_manifest(3, 2));
        a.files = vec![entry("a", 1, b"x"), entry("b", 2, b"y"), entry("c", 3, b"z"), entry("e", 1, b"e")];
        b.files =
            vec![entry("b", 2, b"other"), entry("c", 4, b"zz"), entry("d", 5, b"d"), entry("e", 1, b"e")];
        let words: Vec<String> = files(&a, &b).iter().map(FileChange::words).collect();
        assert_eq!(
            words,
            ["  a: removed (1 B)", "  b: other contents, 2 B", "  c: 3 B -> 4 B", "  d: added (5 B)"]
        );
    }
}
