//! A bundle under construction: files in a folder beside the destination, and the manifest that lists them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plimsoll_protocol::Digest;
use plimsoll_protocol::bundle::{
    FORMAT, FileEntry, Golden, GoldenOrigin, InputContent, InputSpec, MANIFEST_FILE, Manifest, OutputSpec,
    RuntimeKind, SafePath, ServeLimits, Step, Tolerance, ValuePolicy, Variant,
};
use plimsoll_runtime::{Description, TensorInfo};

use super::{Pack, unknown_tensor};
use crate::bundle::files::hash;
use crate::failure::Usage;

/// Name of the model inside a bundle.
pub const ENTRY: &str = "model.onnx";

/// See the top of this file. Dropped unfinished, it removes its folder.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    /// What is known so far.
    pub manifest: Manifest,
}

impl Draft {
    /// Starts with what the model's file and the flags tell.
    pub fn begin(args: &Pack, description: &Description) -> Result<Self> {
        if args.out.exists() {
            bail!(Usage(format!("{} exists already: a bundle is never overwritten", args.out.display())));
        }
        let manifest = manifest(args, description)?;
        let dir = partial(&args.out, std::process::id())
            .ok_or_else(|| Usage(format!("--out {:?} is not a folder's name", args.out)))?;
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir, manifest })
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds a file from elsewhere.
    pub fn copy(&mut self, from: &Path, name: &str) -> Result<SafePath> {
        let path = SafePath::new(name)?;
        let to = self.place(&path)?;
        std::fs::copy(from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        self.list(path, &to)
    }

    /// Adds a file of these bytes.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<SafePath> {
        let path = SafePath::new(name)?;
        let to = self.place(&path)?;
        std::fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        self.list(path, &to)
    }

    /// Takes out every file that is not to be kept.
    pub fn keep(&mut self, which: impl Fn(&str) -> bool) -> Result<()> {
        let (kept, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.manifest.files).into_iter().partition(|f| which(f.path.as_str()));
        self.manifest.files = kept;
        for file in gone {
            let path = self.dir.join(file.path.as_str());
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    fn place(&self, path: &SafePath) -> Result<PathBuf> {
        let to = self.dir.join(path.as_str());
        let folder = to.parent().unwrap_or(&self.dir);
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(to)
    }

    fn list(&mut self, path: SafePath, at: &Path) -> Result<SafePath> {
        let (size, sha256) = hash(at)?;
        self.manifest.files.push(FileEntry { path: path.clone(), size, sha256 });
        Ok(path)
    }

    /// Writes the manifest and moves the bundle to its place. Gives back what a reader will parse.
    pub fn finish(mut self, out: &Path) -> Result<(Manifest, Digest)> {
        self.manifest.files.sort_by(|a, b| a.path.cmp(&b.path));
        let bytes = self.manifest.to_bytes();
        let manifest = Manifest::parse(&bytes)?;
        std::fs::write(self.dir.join(MANIFEST_FILE), &bytes)
            .with_context(|| format!("cannot write {}", self.dir.join(MANIFEST_FILE).display()))?;
        std::fs::rename(&self.dir, out)
            .with_context(|| format!("cannot move the bundle to {}", out.display()))?;
        Ok((manifest, Digest::of(&bytes)))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `finish` the folder is gone and there is nothing to remove.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Where process `id` makes the bundle `out`, when that is a folder's name.
fn partial(out: &Path, id: u32) -> Option<PathBuf> {
    let name = out.file_name()?;
    Some(out.with_file_name(format!(".{}.{id}.partial", name.to_string_lossy())))
}

/// Removes what process `id` left of the bundle `out` when it was killed.
pub fn remove(out: &Path, id: u32) {
    if let Some(dir) = partial(out, id) {
        let _ = std::fs::remove_dir_all(dir); // it may have died before it made one
    }
}

fn manifest(args: &Pack, description: &Description) -> Result<Manifest> {
    let inputs: Vec<InputSpec> = description.inputs.iter().map(|info| input(args, info)).collect();
    let known = || description.inputs.iter().map(|i| i.name.clone());
    for (flag, name) in
        args.images.iter().map(|n| ("--image", n)).chain(args.opaque.iter().map(|n| ("--opaque", n)))
    {
        if !inputs.iter().any(|i| i.name == *name) {
            return Err(unknown_tensor(flag, name, known()));
        }
    }
    for step in &args.pre_scale {
        if let Step::Scale { tensor, .. } = step
            && !inputs.iter().any(|i| i.name == *tensor)
        {
            return Err(unknown_tensor("--pre-scale", tensor, known()));
        }
    }
    let outputs = description.outputs.iter().map(|info| OutputSpec {
        name: info.name.clone(),
        datatype: info.datatype,
        shape: info.shape.clone(),
        kind: Default::default(),
        labels: description.labels.get(&info.name).cloned().unwrap_or_default(),
    });
    let tolerance =
        Tolerance { absolute: args.tolerance_absolute, relative: args.tolerance_relative, top1: true };
    Ok(Manifest {
        format: FORMAT,
        model: args.model.clone(),
        version: args.version.clone(),
        created: created(),
        annotations: annotations(args, description),
        files: Vec::new(),
        variants: vec![Variant {
            name: "default".into(),
            entry: SafePath::new(ENTRY)?,
            runtime: RuntimeKind::Onnx {
                opsets: description.opsets.clone(),
                operators: description.operators_by_domain(),
            },
            architectures: Default::default(),
        }],
        pre: args.pre_scale.clone(),
        post: Vec::new(),
        inputs,
        outputs: outputs.collect(),
        golden: Golden {
            origin: GoldenOrigin::Recorded,
            samples: Vec::new(),
            tolerance,
            per_architecture: BTreeMap::new(),
        },
        baseline: None,
        requires: Default::default(),
        limits: ServeLimits { ram_bytes: args.ram_limit, ..ServeLimits::default() },
    })
}

fn input(args: &Pack, info: &TensorInfo) -> InputSpec {
    let content = if args.images.contains(&info.name) {
        InputContent::Image
    } else if args.opaque.contains(&info.name) {
        InputContent::Opaque
    } else if looks_like_an_image(&info.shape) {
        InputContent::Image
    } else {
        InputContent::Tabular
    };
    let (name, shape) = (info.name.clone(), info.shape.clone());
    InputSpec {
        name,
        datatype: info.datatype,
        shape,
        features: Vec::new(),
        content,
        policy: ValuePolicy::default(),
    }
}

/// `[n, c, h, w]` or `[n, h, w, c]` with one, three or four channels.
fn looks_like_an_image(shape: &[i64]) -> bool {
    let channels = |d: &i64| matches!(d, 1 | 3 | 4);
    matches!(shape, [_, a, h, b] if *h > 4 && (channels(a) || channels(b)))
}

fn annotations(args: &Pack, description: &Description) -> BTreeMap<String, String> {
    let producer = Some(("producer".to_owned(), description.producer.clone())).filter(|(_, p)| !p.is_empty());
    producer.into_iter().chain(args.annotations.iter().cloned()).collect()
}

/// Now, or SOURCE_DATE_EPOCH for those who build the same bundle twice.
fn created() -> String {
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|s| s.parse().ok());
    let fixed = fixed.and_then(|s| jiff::Timestamp::from_second(s).ok());
    let now = || jiff::Timestamp::from_second(crate::time::now()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    fixed.unwrap_or_else(now).to_string()
}
