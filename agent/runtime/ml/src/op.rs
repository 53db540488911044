//! What makes a kernel an operator of tract: shape inference, typing and evaluation from one description.

use std::fmt::Debug;
use std::sync::Arc;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// How tract asks for an operator of a node.
pub(crate) type Builder = fn(&ParsingContext, &NodeProto) -> Built;
/// The operator, and the outer tensors it reads (none here).
pub(crate) type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// The data do not suit the model, though their shape does: the caller's fault, not the model's. Found in the chain
/// of causes of a failed run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DataError(pub String);

/// Type and shape of a tensor; dimensions may be symbols.
#[derive(Debug, Clone)]
pub(crate) struct Fact {
    pub(crate) kind: DatumType,
    pub(crate) shape: TVec<TDim>,
}

impl Fact {
    pub(crate) fn new(kind: DatumType, shape: impl IntoIterator<Item = TDim>) -> Self {
        Self { kind, shape: shape.into_iter().collect() }
    }

    /// Rows and columns of a table; a single dimension is one row.
    pub(crate) fn table(&self) -> TractResult<(TDim, TDim)> {
        match &self.shape[..] {
            [columns] => Ok((1.to_dim(), columns.clone())),
            [rows, columns] => Ok((rows.clone(), columns.clone())),
            other => bail!("takes a table [rows, columns]; its input has shape {other:?}"),
        }
    }

    /// The table's rows, after checking that it has enough columns where that is known.
    pub(crate) fn rows(&self, needs: usize) -> TractResult<TDim> {
        let (rows, columns) = self.table()?;
        if let Ok(has) = columns.to_i64() {
            ensure!(has >= needs as i64, "reads {needs} columns; its input has {has}");
        }
        Ok(rows)
    }
}

/// An operator with its attributes checked: a pure function of its inputs.
pub(crate) trait Kernel: Debug + Send + Sync + 'static {
    /// The operator's name.
    fn name(&self) -> &'static str;
    /// How many inputs it takes; `None` is any number from one.
    fn inputs(&self) -> Option<usize> {
        Some(1)
    }
    /// Types and shapes of its outputs.
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>>;
    /// Its outputs.
    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>>;
}

/// The operator of a node around its kernel. `outputs` is how many the kernel gives; a node may leave some unnamed.
pub(crate) fn operator(node: &NodeProto, outputs: usize, kernel: impl Kernel) -> Built {
    ensure!(
        !node.output.is_empty() && node.output.len() <= outputs,
        "{} has {} outputs; 1 to {outputs} are possible",
        kernel.name(),
        node.output.len()
    );
    if let Some(expected) = kernel.inputs() {
        let given = node.input.len();
        ensure!(given == expected, "{} has {given} inputs; {expected} are expected", kernel.name());
    }
    let kept =
        node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()).map(|(at, _)| at).collect();
    Ok((expand(Operator { kernel: Arc::new(kernel), kept }), Vec::new()))
}

#[derive(Debug, Clone)]
struct Operator {
    kernel: Arc<dyn Kernel>,
    /// Which of the kernel's outputs the node names: tract numbers only those.
    kept: TVec<usize>,
}

impl Operator {
    fn kept_facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let all = self.kernel.facts(inputs).with_context(|| self.kernel.name())?;
        self.kept
            .iter()
            .map(|at| all.get(*at).cloned().context("an output that the operator lacks"))
            .collect()
    }
}

// Two operators are the same when they share a kernel; tract asks in order to merge equal nodes.
impl PartialEq for Operator {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel) && self.kept == other.kept
    }
}
impl Eq for Operator {}

impl Expansion for Operator {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.kept.len())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_output_arity(outputs, self.kept.len())?;
        solver.given_all(inputs.iter().map(|i| &i.datum_type), move |solver, kinds| {
            solver.given_all(inputs.iter().map(|i| &i.shape), move |solver, shapes| {
                let facts = kinds.iter().zip(shapes).map(|(kind, shape)| Fact { kind: *kind, shape });
                let given = self.kept_facts(&facts.collect::<Vec<_>>())?;
                for (output, fact) in outputs.iter().zip(given) {
                    solver.equals(&output.datum_type, fact.kind)?;
                    solver.equals(&output.shape, ShapeFactoid::from(fact.shape))?;
                }
                Ok(())
            })
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Operator {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }
    fn as_typed(&self) -> Option<&dyn TypedOp> {
        Some(self)
    }
}

impl EvalOp for Operator {
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let inputs: TVec<&Tensor> = inputs.iter().map(|input| &**input).collect();
        let all = self.kernel.eval(&inputs).with_context(|| self.kernel.name())?;
        let mut all: TVec<Option<Tensor>> = all.into_iter().map(Some).collect();
        let kept = self.kept.iter().map(|at| {
            let output = all.get_mut(*at).and_then(Option::take);
            output.map(IntoTValue::into_tvalue).context("an output that the operator lacks")
        });
        kept.collect()
    }

    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        self.eval(&EvalContext::out_of_plan(), inputs).map(Some)
    }
}

impl TypedOp for Operator {
    fn as_op(&self) -> &dyn Op {
        self
    }
    fn as_op_mut(&mut self) -> &mut dyn Op {
        self
    }
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let facts: Vec<Fact> =
            inputs.iter().map(|fact| Fact::new(fact.datum_type, fact.shape.iter().cloned())).collect();
        Ok(self.kept_facts(&facts)?.into_iter().map(|fact| fact.kind.fact(&fact.shape)).collect())
    }
}
