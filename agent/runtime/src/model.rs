//! A model of a bundle: the engine, the manifest that says what it must be, and the steps around it.

use std::collections::BTreeSet;
use std::path::Path;

use plimsoll_protocol::bundle::{DataType, Manifest, OutputSpec, RuntimeKind, SafePath, Variant};

use crate::document::ExternalData;
use crate::engine::{Description, Engine, Runtime, TractRuntime, caught};
use crate::error::{RuntimeError, TensorError};
use crate::steps::{self, Named};
use crate::tensor::Tensor;
use crate::values::ValueCheck;

/// A loaded model. Shared as `Arc`: running it changes nothing.
pub struct Model {
    manifest: Manifest,
    engine: Box<dyn Engine>,
    values: ValueCheck,
}

impl Model {
    /// Opens the entry of a variant in the bundle's folder. The caller has verified the bundle's files; this checks
    /// that the model and its manifest describe the same tensors, and touches no file that the manifest does not list.
    pub fn load(dir: &Path, manifest: &Manifest, variant: &Variant) -> Result<Self, RuntimeError> {
        Self::load_with(&TractRuntime, dir, manifest, variant)
    }

    /// [`Model::load`] with another engine.
    pub fn load_with(
        runtime: &dyn Runtime,
        dir: &Path,
        manifest: &Manifest,
        variant: &Variant,
    ) -> Result<Self, RuntimeError> {
        if let RuntimeKind::External { engine } = &variant.runtime {
            return Err(RuntimeError::Manifest(format!(
                "variant {:?} is for the external engine {engine:?}, which the owner's own process loads",
                variant.name
            )));
        }
        let listed = listed_beside(manifest, &variant.entry);
        let engine = runtime.open(&dir.join(variant.entry.as_str()), &ExternalData::Listed(listed))?;
        check_fit(manifest, engine.description())?;
        Ok(Self { values: ValueCheck::of(manifest), manifest: manifest.clone(), engine })
    }

    /// The manifest it was loaded by.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The input policy. [`Model::infer`] does not ask it: golden samples and reference data are the author's own.
    pub const fn values(&self) -> &ValueCheck {
        &self.values
    }

    /// What the file itself says.
    pub fn description(&self) -> &Description {
        self.engine.description()
    }

    /// Refuses inputs that do not fit the manifest, naming tensor and problem. Cheap: no element is read.
    pub fn check_inputs(&self, inputs: &[Tensor]) -> Result<(), TensorError> {
        check_inputs(&self.manifest, inputs)
    }

    /// Steps before, the model, steps after. Inputs in the manifest's order; so are the outputs.
    pub fn infer(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, RuntimeError> {
        self.check_inputs(&inputs)?;
        let mut named: Named = self.manifest.inputs.iter().map(|i| i.name.clone()).zip(inputs).collect();
        steps::apply(&self.manifest.pre, &mut named)?;
        let answers =
            caught("run the model", || self.engine.run(named.into_iter().map(|(_, t)| t).collect()))?;
        let names = self.description().outputs.iter().map(|o| o.name.clone());
        let mut named: Named = names.zip(answers).collect();
        steps::apply(&self.manifest.post, &mut named).map_err(|e| RuntimeError::Run(e.to_string()))?;
        let pick = |spec: &OutputSpec| {
            let at = named.iter().position(|(name, _)| *name == spec.name);
            let lost = || RuntimeError::Run(format!("the model gave no output {:?}", spec.name));
            at.map(|at| as_declared(named.swap_remove(at).1, spec)).ok_or_else(lost)
        };
        self.manifest.outputs.iter().map(pick).collect()
    }
}

/// Whether a manifest may carry what a model has as one datatype as another: FP32 as BF16, half the bytes on the way.
fn carried_as(model: DataType, carried: DataType) -> bool {
    (model, carried) == (DataType::Fp32, DataType::Bf16)
}

/// An output in the datatype that the manifest declares.
fn as_declared(tensor: Tensor, spec: &OutputSpec) -> Tensor {
    if carried_as(tensor.datatype(), spec.datatype) { tensor.into_bf16() } else { tensor }
}

/// The listed files under the folder of the entry, relative to it: where its external data may be.
fn listed_beside(manifest: &Manifest, entry: &SafePath) -> BTreeSet<SafePath> {
    let folder = entry.as_str().rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let inside = manifest.files.iter().filter_map(|f| f.path.as_str().strip_prefix(&folder));
    inside.filter_map(|rest| SafePath::new(rest).ok()).collect()
}

fn check_tensor(tensor: &Tensor, name: &str, datatype: DataType, shape: &[i64]) -> Result<(), TensorError> {
    let refuse = |why: String| Err(TensorError::new(name, why));
    if tensor.datatype() != datatype {
        let (has, needs) = (tensor.datatype().as_str(), datatype.as_str());
        return refuse(format!("has datatype {has}; {needs} is expected"));
    }
    let fits = tensor.shape().len() == shape.len()
        && tensor.shape().iter().zip(shape).all(|(has, needs)| *needs == -1 || *has as i64 == *needs);
    if !fits {
        return refuse(format!("has shape {:?}; {shape:?} is expected (-1 is any size)", tensor.shape()));
    }
    if tensor.is_empty() {
        return refuse(format!("has shape {:?}, which holds no element", tensor.shape()));
    }
    Ok(())
}

/// Refuses inputs that do not fit a manifest, whatever runs its model. Cheap: no element is read.
pub fn check_inputs(manifest: &Manifest, inputs: &[Tensor]) -> Result<(), TensorError> {
    if inputs.len() != manifest.inputs.len() {
        let (has, needs) = (inputs.len(), manifest.inputs.len());
        return Err(TensorError::new("inputs", format!("there are {has} of {needs}")));
    }
    let max_rows = manifest.limits.max_batch as usize;
    let mut batch: Option<(&str, usize)> = None;
    for (tensor, spec) in inputs.iter().zip(&manifest.inputs) {
        check_tensor(tensor, &spec.name, spec.datatype, &spec.shape)?;
        if spec.shape.first() == Some(&-1) {
            let rows = tensor.rows();
            if rows > max_rows {
                let why = format!("has {rows} rows; this model takes at most {max_rows} a request");
                return Err(TensorError::new(&spec.name, why));
            }
            match batch {
                Some((first, expected)) if expected != rows => {
                    let why = format!("has {rows} rows where tensor {first:?} has {expected}");
                    return Err(TensorError::new(&spec.name, why));
                }
                _ => batch = Some((&spec.name, rows)),
            }
        }
    }
    Ok(())
}

/// Refuses outputs that do not fit a manifest: for engines that answer elsewhere.
pub fn check_outputs(manifest: &Manifest, outputs: &[Tensor]) -> Result<(), TensorError> {
    if outputs.len() != manifest.outputs.len() {
        let (has, needs) = (outputs.len(), manifest.outputs.len());
        return Err(TensorError::new("outputs", format!("there are {has} of {needs}")));
    }
    let specs = outputs.iter().zip(&manifest.outputs);
    specs.into_iter().try_for_each(|(t, spec)| check_tensor(t, &spec.name, spec.datatype, &spec.shape))
}

/// Whether the manifest tells of this model what its file tells.
fn check_fit(manifest: &Manifest, model: &Description) -> Result<(), RuntimeError> {
    let refuse = |why: String| Err(RuntimeError::Manifest(why));
    let names =
        |infos: &[crate::engine::TensorInfo]| infos.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
    let ours: Vec<_> = manifest.inputs.iter().map(|i| i.name.clone()).collect();
    if ours != names(&model.inputs) {
        return refuse(format!("it lists inputs {ours:?}, the model has {:?}", names(&model.inputs)));
    }
    for (spec, info) in manifest.inputs.iter().zip(&model.inputs) {
        let fed = steps::datatype_after(&manifest.pre, &spec.name, spec.datatype);
        if fed != info.datatype && !carried_as(info.datatype, fed) {
            let (fed, needs) = (fed.as_str(), info.datatype.as_str());
            return refuse(format!("input {:?} arrives as {fed}, the model takes {needs}", spec.name));
        }
        // The manifest may be narrower than the model (a fixed batch), never wider.
        let narrower = spec.shape.len() == info.shape.len()
            && spec.shape.iter().zip(&info.shape).all(|(ours, its)| *its == -1 || ours == its);
        if !narrower {
            let (ours, its) = (&spec.shape, &info.shape);
            return refuse(format!("input {:?} has shape {ours:?}, the model's is {its:?}", spec.name));
        }
    }
    let input_names: Vec<&str> = manifest.inputs.iter().map(|i| i.name.as_str()).collect();
    let output_names: Vec<&str> = model.outputs.iter().map(|o| o.name.as_str()).collect();
    steps::check("pre", &manifest.pre, &input_names)?;
    steps::check("post", &manifest.post, &output_names)?;
    for spec in &manifest.outputs {
        if steps::added(&manifest.post).any(|name| name == spec.name) {
            continue;
        }
        let Some(info) = model.outputs.iter().find(|o| o.name == spec.name) else {
            return refuse(format!("it lists output {:?}, the model has {output_names:?}", spec.name));
        };
        let given = steps::datatype_after(&manifest.post, &spec.name, info.datatype);
        if given != spec.datatype && !carried_as(given, spec.datatype) {
            let (given, says) = (given.as_str(), spec.datatype.as_str());
            return refuse(format!("output {:?} is {given}, not {says}", spec.name));
        }
    }
    Ok(())
}
