//! The engines behind this crate, and the one there is: tract.
//!
//! tract wants shapes when it plans. A model with a variable batch is planned once with the batch as a symbol, which
//! keeps one copy of the packed weights; where tract cannot plan (or run) that, each combination of input shapes gets
//! its own plan, and the last few are kept. tract has panicked on malformed models, so every call into it is caught;
//! what cannot be caught (an abort, a stack overflow) is why models live in a child process.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use plimsoll_protocol::bundle::{DataType, MAX_ELEMENTS, SafePath};
use plimsoll_runtime_ml as ml;
use serde::{Deserialize, Serialize};
use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::{DimFact, Factoid, InferenceModelExt};
use tract_onnx::tract_hir::internal::TractErrorContext;

use crate::check::Problem;
use crate::convert::{from_tract, our_datum_type, to_tract};
use crate::document::{Document, ExternalData, domain, node_name};
use crate::error::{RuntimeError, TensorError};
use crate::tensor::Tensor;

/// Plans kept for a model that cannot be planned with a symbolic batch. Callers use one or two batch sizes; each
/// plan holds a packed copy of the weights, so four is already four times the model.
pub const PLANS_KEPT: usize = 4;

/// An engine that opens models of one format.
pub trait Runtime: Send + Sync {
    /// For people and logs.
    fn name(&self) -> &'static str;
    /// Opens a model file; `external` says which files beside it may carry its weights.
    fn open(&self, path: &Path, external: &ExternalData) -> Result<Box<dyn Engine>, RuntimeError>;
}

/// An opened model.
pub trait Engine: Send + Sync {
    /// What it takes and gives.
    fn description(&self) -> &Description;
    /// Runs it once. Inputs in the order of the description; outputs too. May panic: [`crate::Model`] catches it.
    fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, RuntimeError>;
}

/// What a model is, as far as its file tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Inputs, in order.
    pub inputs: Vec<TensorInfo>,
    /// Outputs, in order.
    pub outputs: Vec<TensorInfo>,
    /// Version of each operator set it imports, by domain (`""` is `ai.onnx`).
    pub opsets: BTreeMap<String, i64>,
    /// How often it uses each operator.
    pub operators: BTreeMap<String, u64>,
    /// Files beside it that carry its weights.
    pub external_data: BTreeSet<SafePath>,
    /// Class names that the file gives to the columns of an output (`ZipMap`), by output.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Vec<String>>,
    /// Which tool exported it.
    pub producer: String,
}

/// One input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub datatype: DataType,
    /// Dimensions; -1 is variable.
    pub shape: Vec<i64>,
}

/// ONNX models by tract.
#[derive(Debug, Clone, Copy, Default)]
pub struct TractRuntime;

impl Runtime for TractRuntime {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn open(&self, path: &Path, external: &ExternalData) -> Result<Box<dyn Engine>, RuntimeError> {
        let document = Document::read(path, external)?;
        caught("load the model", || TractEngine::open(document)).map(|e| Box::new(e) as Box<dyn Engine>)
    }
}

/// Describes a model file that is being packed: external data may lie anywhere under its folder.
pub fn describe(path: &Path) -> Result<Description, RuntimeError> {
    TractRuntime.open(path, &ExternalData::Beside).map(|engine| engine.description().clone())
}

/// Describes a model in memory, whose weights are all inside.
pub fn describe_bytes(bytes: &[u8]) -> Result<Description, RuntimeError> {
    let document = Document::parse(bytes, "the model", None, &ExternalData::None)?;
    caught("load the model", || TractEngine::open(document)).map(|engine| engine.description)
}

/// tract with the operators of scikit-learn exports: the one registration, for packing, self-test and service.
static ONNX: LazyLock<Onnx> = LazyLock::new(|| {
    let mut onnx = tract_onnx::onnx();
    ml::register(&mut onnx.op_register);
    onnx
});

/// Whether the engine has this operator of this domain (`""` is `ai.onnx`). tract itself looks at the name alone, so
/// a stranger's `Conv` of another domain would run as ONNX's.
pub(crate) fn knows_operator(domain: &str, name: &str) -> bool {
    let elsewhere = || ml::has(ml::DOMAIN, name) || ml::has(ml::CONTRIB_DOMAIN, name);
    match domain {
        "" => ONNX.op_register.0.contains_key(name) && !elsewhere(),
        other => ml::has(other, name),
    }
}

/// Every operator that the engine has, by domain (`""` is `ai.onnx`): what a device says that it can run. Made anew each
/// time, so that a process which only asks keeps nothing of it.
pub fn operators() -> BTreeMap<String, BTreeSet<String>> {
    let onnx = tract_onnx::onnx();
    let elsewhere = |name: &str| ml::has(ml::DOMAIN, name) || ml::has(ml::CONTRIB_DOMAIN, name);
    let own = onnx.op_register.0.keys().filter(|name| !elsewhere(name)).cloned();
    let of = |domain: &str| (domain.to_owned(), ml::names(domain).map(str::to_owned).collect());
    BTreeMap::from([(String::new(), own.collect()), of(ml::DOMAIN), of(ml::CONTRIB_DOMAIN)])
}

/// The nodes of the outer graph that the engine refuses to build although it has their operators, each with its reason;
/// it stops at the first itself. Empty when the reason lies elsewhere.
pub(crate) fn refused_nodes(path: &Path) -> Vec<Problem> {
    let Ok(document) = Document::read(path, &ExternalData::Beside) else { return Vec::new() };
    let Some(graph) = document.proto.graph.as_ref() else { return Vec::new() };
    let context = ParsingContext {
        onnx_operator_set_version: document.opsets.get("").copied().unwrap_or(0),
        framework: &ONNX,
        model: &document.proto,
        parent_graphs: vec![graph],
        model_dir: document.folder.as_deref(),
        template: InferenceModel::default(),
    };
    let refused = |node: &NodeProto| {
        let build = ONNX.op_register.0.get(&node.op_type)?;
        let built = caught("build a node", || build(&context, node).map(drop).map_err(unsupported));
        let why = built.err()?.to_string();
        Some(Problem::of_node(node_name(node), domain(&node.domain), &node.op_type, why))
    };
    graph.node.iter().filter_map(refused).collect()
}

type Plan = Arc<TypedRunnableModel>;

struct TractEngine {
    description: Description,
    plans: Plans,
}

enum Plans {
    /// One for all shapes.
    Symbolic(Plan),
    /// One for each combination of input shapes, the most recently used last.
    PerShape { model: Box<InferenceModel>, kept: Mutex<Vec<(Vec<Vec<usize>>, Plan)>> },
}

impl TractEngine {
    fn open(document: Document) -> Result<Self, RuntimeError> {
        let parsed = ONNX.parse(&document.proto, document.folder.as_deref()).map_err(unsupported)?;
        if let Some(name) = parsed.unresolved_inputs.first() {
            return Err(RuntimeError::Refused(format!("a node reads {name:?}, which nothing produces")));
        }
        let mut model = parsed.model;
        name_unknown_dimensions(&mut model).map_err(unsupported)?;
        let declared_outputs = document.declared_outputs();
        let mut description = Description {
            inputs: declared_inputs(&model, &document.input_names)?,
            outputs: Vec::new(),
            opsets: document.opsets,
            operators: document.operators,
            external_data: document.external,
            labels: document.labels,
            producer: format!("{} {}", document.proto.producer_name, document.proto.producer_version)
                .trim()
                .into(),
        };
        drop(document.proto); // a copy of all weights, not needed while the plan makes another
        let unanalysed = model.clone(); // weights are shared, so this is the graph alone
        match plan_symbolic(model, &document.output_names) {
            Ok((plan, outputs)) => {
                description.outputs = outputs;
                Ok(Self { description, plans: Plans::Symbolic(plan) })
            }
            // A model of fixed shapes has no second way, nor has one that means harm.
            Err(why) if description.is_fixed() || matches!(why, RuntimeError::Refused(_)) => Err(why),
            Err(why) => {
                // The second way must work for at least one batch, or the first reason stands.
                let kept = Mutex::new(Vec::new());
                description.outputs =
                    declared_outputs.ok_or_else(|| RuntimeError::Unsupported(why.to_string()))?;
                let this = Self { description, plans: Plans::PerShape { model: Box::new(unanalysed), kept } };
                if this.runs_with(1) || this.runs_with(2) { Ok(this) } else { Err(why) }
            }
        }
    }

    /// Whether zeros with every variable dimension of this size get an answer.
    fn runs_with(&self, size: usize) -> bool {
        let zero = |info: &TensorInfo| {
            let shape: Vec<usize> = info.shape.iter().map(|d| usize::try_from(*d).unwrap_or(size)).collect();
            let width = info.datatype.width()?;
            let bytes = vec![0; width * shape.iter().product::<usize>()];
            Tensor::from_le_bytes(info.datatype, shape, &bytes).ok()
        };
        let zeros: Option<Vec<Tensor>> = self.description.inputs.iter().map(zero).collect();
        zeros.is_some_and(|zeros| caught("run the model once", || self.run(zeros)).is_ok())
    }

    /// Data that the model cannot take (a category it never saw) are the caller's fault, all else is not. Which of
    /// several inputs they came from is not known behind the first operator.
    fn run_error(&self, error: &TractError) -> RuntimeError {
        let Some(data) = data_error(error) else { return RuntimeError::Run(words(error)) };
        let names: Vec<&str> = self.description.inputs.iter().map(|i| i.name.as_str()).collect();
        RuntimeError::Input(TensorError::new(&names.join(", "), data.to_string()))
    }

    fn plan_for(&self, inputs: &[Tensor]) -> Result<Plan, RuntimeError> {
        let (model, kept) = match &self.plans {
            Plans::Symbolic(plan) => return Ok(plan.clone()),
            Plans::PerShape { model, kept } => (model, kept),
        };
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|t| t.shape().to_vec()).collect();
        // Held while planning: two requests of a new shape should not both plan it. A panic while planning leaves
        // the list as it was, so a poisoned lock is still good.
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match kept.iter().position(|(s, _)| *s == shapes) {
            Some(at) => kept.remove(at).1,
            None => plan_for_shapes(model, &shapes).map_err(|e| {
                RuntimeError::Run(format!("no plan for input shapes {shapes:?}: {}", words(&e)))
            })?,
        };
        if kept.len() >= PLANS_KEPT {
            kept.remove(0);
        }
        kept.push((shapes, plan.clone()));
        Ok(plan)
    }
}

impl Engine for TractEngine {
    fn description(&self) -> &Description {
        &self.description
    }

    fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, RuntimeError> {
        let plan = self.plan_for(&inputs)?;
        let infos = self.description.inputs.iter();
        let inputs = inputs
            .into_iter()
            .zip(infos)
            .map(|(t, info)| to_tract(t).map_err(|why| TensorError::new(&info.name, why).into()))
            .collect::<Result<TVec<TValue>, RuntimeError>>()?;
        let outputs = plan.run(inputs).map_err(|e| self.run_error(&e))?;
        let infos = self.description.outputs.iter();
        let named = |(t, info): (TValue, &TensorInfo)| {
            from_tract(t).map_err(|why| RuntimeError::Run(format!("output {:?}: {why}", info.name)))
        };
        outputs.into_iter().zip(infos).map(named).collect()
    }
}

impl Description {
    /// The operators that it uses, by domain (`""` is `ai.onnx`).
    pub fn operators_by_domain(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut by_domain: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for full in self.operators.keys() {
            let (domain, name) = full.rsplit_once('.').unwrap_or(("", full)); // an operator's name holds no point
            by_domain.entry(domain.to_owned()).or_default().insert(name.to_owned());
        }
        by_domain
    }

    /// Whether no input has a variable dimension.
    pub fn is_fixed(&self) -> bool {
        self.inputs.iter().all(|i| !i.shape.contains(&-1))
    }
}

/// Gives every dimension that the file leaves open a symbol: the first of each input is the same batch for all.
fn name_unknown_dimensions(model: &mut InferenceModel) -> TractResult<()> {
    let batch = model.symbols.sym("plimsoll_batch");
    for input in 0..model.inputs.len() {
        let mut fact = model.input_fact(input)?.clone();
        let dims: TVec<TDim> = fact
            .shape
            .dims()
            .enumerate()
            .map(|(axis, dim)| match (dim.concretize(), axis) {
                (Some(known), _) => known,
                (None, 0) => batch.clone().into(),
                (None, _) => model.symbols.new_with_prefix("plimsoll_dim").into(),
            })
            .collect();
        fact = fact.with_shape(dims);
        model.set_input_fact(input, fact)?;
    }
    Ok(())
}

/// An intermediate result too large to be meant is refused by the node's name.
fn refuse_huge_tensors(model: &InferenceModel) -> Result<(), RuntimeError> {
    for node in &model.nodes {
        for output in &node.outputs {
            let dims = output.fact.shape.dims().filter_map(|d| d.concretize()?.to_i64().ok());
            let elements = dims.map(|d| d.unsigned_abs().max(1)).fold(1u64, u64::saturating_mul);
            if elements > MAX_ELEMENTS {
                return Err(RuntimeError::Refused(format!(
                    "node {:?} ({}) makes a tensor of {elements} elements; at most {MAX_ELEMENTS}",
                    node.name,
                    node.op.name()
                )));
            }
        }
    }
    Ok(())
}

/// Inputs as the file declares them, after its open dimensions got names.
fn declared_inputs(model: &InferenceModel, names: &[String]) -> Result<Vec<TensorInfo>, RuntimeError> {
    let info = |(at, name): (usize, &String)| {
        let fact = model.input_fact(at).map_err(unsupported)?;
        let kind = fact.datum_type.concretize();
        let kind =
            kind.ok_or_else(|| RuntimeError::Unsupported(format!("input {name:?} has no datatype")))?;
        let datatype = our_datum_type(kind).map_err(RuntimeError::Unsupported)?;
        let size = |d: &DimFact| d.concretize().and_then(|d| d.to_i64().ok()).unwrap_or(-1);
        Ok(TensorInfo { name: name.clone(), datatype, shape: fact.shape.dims().map(size).collect() })
    };
    names.iter().enumerate().map(info).collect()
}

/// One plan for all shapes and what it gives, proven by one run on zeros with every variable dimension 1.
fn plan_symbolic(
    mut model: InferenceModel,
    outputs: &[String],
) -> Result<(Plan, Vec<TensorInfo>), RuntimeError> {
    let typed = caught("analyse the model", || {
        model.analyse(false).map_err(unsupported)?;
        refuse_huge_tensors(&model)?;
        model.into_typed().map_err(unsupported)
    })?;
    let info = |(outlet, name): (&OutletId, &String)| {
        let fact = typed.outlet_fact(*outlet).map_err(unsupported)?;
        let datatype = our_datum_type(fact.datum_type)
            .map_err(|why| RuntimeError::Unsupported(format!("output {name:?}: {why}")))?;
        let shape = fact.shape.iter().map(|d| d.to_i64().unwrap_or(-1)).collect();
        Ok(TensorInfo { name: name.clone(), datatype, shape })
    };
    let infos = typed.outputs.iter().zip(outputs).map(info).collect::<Result<Vec<_>, RuntimeError>>()?;
    let plan = caught("plan the model", || {
        typed.into_optimized().and_then(|model| model.into_runnable()).map_err(unsupported)
    })?;
    let inputs =
        plan.model().inputs.iter().map(|o| plan.model().outlet_fact(*o)).collect::<TractResult<Vec<_>>>();
    let inputs = inputs.map_err(unsupported)?;
    if inputs.iter().any(|fact| fact.shape.as_concrete().is_none()) {
        caught("run the model once", || {
            let zero = |fact: &&TypedFact| {
                let size = |d: &TDim| d.to_i64().map_or(1, |d| d.unsigned_abs() as usize);
                let shape: TVec<usize> = fact.shape.iter().map(size).collect();
                if fact.datum_type == DatumType::String {
                    let texts = tract_ndarray::ArrayD::from_elem(&*shape, String::new());
                    return Ok(tract_onnx::prelude::Tensor::from(texts).into_tvalue());
                }
                Ok(tract_onnx::prelude::Tensor::zero_dt(fact.datum_type, &shape)?.into_tvalue())
            };
            let zeros = inputs.iter().map(zero).collect::<TractResult<TVec<TValue>>>();
            match zeros.and_then(|zeros| plan.run(zeros)) {
                // It runs; zeros are no data that it knows.
                Err(error) if data_error(&error).is_some() => Ok(()),
                other => other.map(drop).map_err(unsupported),
            }
        })?;
    }
    Ok((plan, infos))
}

/// What was wrong with the data, if that is why a run failed.
fn data_error(error: &TractError) -> Option<&ml::DataError> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

fn unsupported(error: TractError) -> RuntimeError {
    RuntimeError::Unsupported(words(&error))
}

fn plan_for_shapes(model: &InferenceModel, shapes: &[Vec<usize>]) -> TractResult<Plan> {
    let mut model = model.clone();
    for (input, shape) in shapes.iter().enumerate() {
        let datum_type =
            model.input_fact(input)?.datum_type.concretize().context("the input's type is unknown")?;
        model.set_input_fact(input, InferenceFact::dt_shape(datum_type, shape.clone()))?;
    }
    // What the file declares of inner tensors names the symbols, and would contradict the shapes now given.
    let sources: BTreeSet<usize> = model.inputs.iter().map(|outlet| outlet.node).collect();
    for node in model.nodes_mut().iter_mut().filter(|node| !sources.contains(&node.id)) {
        for output in &mut node.outputs {
            if output.fact.value.concretize().is_none() {
                output.fact = InferenceFact::default();
            }
        }
    }
    model.into_optimized()?.into_runnable()
}

/// Runs a piece of the engine and turns its panic into an error.
pub(crate) fn caught<T>(
    doing: &'static str,
    f: impl FnOnce() -> Result<T, RuntimeError>,
) -> Result<T, RuntimeError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let why = text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        let mut why = why.unwrap_or_else(|| "no message".into());
        if why.starts_with("failed to allocate") {
            why.push_str(": more memory than this process may have (four fifths of the machine's, or what it was given)");
        }
        Err(RuntimeError::Panicked { doing, why })
    })
}

/// An engine's error on one line: outermost first, cut where only internals follow.
fn words(error: &TractError) -> String {
    let mut text = format!("{error:#}").replace('\n', " ");
    if text.len() > 500 {
        let end = (0..=500).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
