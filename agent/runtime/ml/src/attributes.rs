//! Attributes of a node, with errors that name them. A list that is absent is empty: exporters write either.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;

use crate::values::numbers;

/// Classes, targets or clusters of one model, most: ImageNet-21k with every synonym has 65,000 names, and each row
/// of an answer carries one number for each.
pub(crate) const MAX_TARGETS: usize = 65_536;

/// Class names, integers or texts.
#[derive(Debug, Clone)]
pub(crate) enum Labels {
    Ints(Vec<i64>),
    Texts(Vec<String>),
}

impl Labels {
    /// The list that the node has: `ints` or `texts`, exactly one.
    pub(crate) fn read(node: &NodeProto, ints: &str, texts: &str) -> TractResult<Self> {
        match (self::ints(node, ints)?, self::texts(node, texts)?) {
            (a, b) if a.is_empty() && b.is_empty() => bail!("has neither {ints:?} nor {texts:?}"),
            (a, b) if b.is_empty() => Ok(Self::Ints(a)),
            (a, b) if a.is_empty() => Ok(Self::Texts(b)),
            _ => bail!("has both {ints:?} and {texts:?}; one is meant"),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Ints(ints) => ints.len(),
            Self::Texts(texts) => texts.len(),
        }
    }

    pub(crate) fn kind(&self) -> DatumType {
        match self {
            Self::Ints(_) => DatumType::I64,
            Self::Texts(_) => DatumType::String,
        }
    }

    /// One label a row.
    pub(crate) fn pick(&self, classes: &[usize]) -> TractResult<Tensor> {
        fn each<T: Datum>(labels: &[T], classes: &[usize]) -> TractResult<Tensor> {
            let of = |class: &usize| {
                labels.get(*class).cloned().with_context(|| format!("no label for class {class}"))
            };
            crate::values::tensor(&[classes.len()], classes.iter().map(of).collect::<TractResult<Vec<T>>>()?)
        }
        match self {
            Self::Ints(ints) => each(ints, classes),
            Self::Texts(texts) => each(texts, classes),
        }
    }
}

pub(crate) fn floats(node: &NodeProto, name: &str) -> TractResult<Vec<f32>> {
    Ok(node.get_attr_opt_slice::<f32>(name)?.unwrap_or_default().to_vec())
}

pub(crate) fn ints(node: &NodeProto, name: &str) -> TractResult<Vec<i64>> {
    Ok(node.get_attr_opt_slice::<i64>(name)?.unwrap_or_default().to_vec())
}

pub(crate) fn texts(node: &NodeProto, name: &str) -> TractResult<Vec<String>> {
    Ok(node.get_attr_opt_vec::<String>(name)?.unwrap_or_default())
}

pub(crate) fn text(node: &NodeProto, name: &str, default: &str) -> TractResult<String> {
    Ok(node.get_attr_opt::<String>(name)?.unwrap_or_else(|| default.into()))
}

pub(crate) fn int(node: &NodeProto, name: &str, default: i64) -> TractResult<i64> {
    Ok(node.get_attr_opt::<i64>(name)?.unwrap_or(default))
}

/// A list of numbers that newer versions of an operator take as a tensor (`name_as_tensor`), in whose precision the
/// model then computes; `true` with it says that it was a tensor of doubles.
pub(crate) fn wide_floats(
    ctx: &ParsingContext,
    node: &NodeProto,
    name: &str,
) -> TractResult<(Vec<f64>, bool)> {
    let narrow = floats(node, name)?;
    let Some(proto) = node.get_attr_opt::<&TensorProto>(&format!("{name}_as_tensor"))? else {
        return Ok((narrow.into_iter().map(f64::from).collect(), false));
    };
    ensure!(narrow.is_empty(), "has both {name:?} and its form as a tensor; one is meant");
    let tensor = ctx.load_tensor(proto)?;
    Ok((numbers::<f64>(&tensor)?.into_owned(), tensor.datum_type() == DatumType::F64))
}

/// A tensor that the node must have.
pub(crate) fn loaded(ctx: &ParsingContext, node: &NodeProto, name: &str) -> TractResult<Tensor> {
    ctx.load_tensor(node.get_attr::<&TensorProto>(name)?)
}

/// A count that is neither negative nor absurd.
pub(crate) fn targets(count: i64) -> TractResult<usize> {
    match usize::try_from(count) {
        Ok(count) if (1..=MAX_TARGETS).contains(&count) => Ok(count),
        _ => bail!("has {count} targets or classes; 1 to {MAX_TARGETS} are possible"),
    }
}

/// Refuses a list that has another length than the one it goes with.
pub(crate) fn same_length(name: &str, has: usize, needs: usize) -> TractResult<()> {
    ensure!(has == needs, "attribute {name:?} has {has} elements; {needs} are expected");
    Ok(())
}
