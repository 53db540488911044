//! Categories to numbers and back: OneHotEncoder, LabelEncoder in its three versions, CategoryMapper.

use std::collections::BTreeMap;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::attributes::{Labels, floats, int, ints, loaded, same_length, text, texts};
use crate::op::{Built, DataError, Fact, Kernel, operator};
use crate::values::{slice, tensor};

/// A category as a key: floats by their bits, with one NaN and one zero.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Int(i64),
    Bits(u64),
    Text(String),
}

impl Key {
    fn float(value: f64) -> Self {
        Self::Bits(if value.is_nan() { f64::NAN.to_bits() } else { (value + 0.0).to_bits() })
    }
}

/// Keys of all elements of a tensor, compared as the type `kind`.
fn keys(tensor: &Tensor, kind: DatumType) -> TractResult<Vec<Key>> {
    let is_text = tensor.datum_type() == DatumType::String;
    ensure!(
        is_text == (kind == DatumType::String),
        "its categories are {kind:?}, its input {:?}",
        tensor.datum_type()
    );
    Ok(match kind {
        DatumType::String => slice::<String>(tensor)?.iter().map(|t| Key::Text(t.clone())).collect(),
        DatumType::F32 | DatumType::F64 => {
            slice::<f64>(&*tensor.cast_to::<f64>()?)?.iter().map(|x| Key::float(*x)).collect()
        }
        _ => slice::<i64>(&*tensor.cast_to::<i64>()?)?.iter().map(|x| Key::Int(*x)).collect(),
    })
}

/// One column of zeros and one 1 a category.
#[derive(Debug)]
struct OneHotEncoder {
    kind: DatumType,
    categories: BTreeMap<Key, usize>,
    count: usize,
    /// Whether a category that is not known gives zeros; otherwise it is an error.
    zeros: bool,
}

pub(crate) fn one_hot_encoder(_: &ParsingContext, node: &NodeProto) -> Built {
    let labels = Labels::read(node, "cats_int64s", "cats_strings")?;
    let keys: Vec<Key> = match &labels {
        Labels::Ints(ints) => ints.iter().map(|x| Key::Int(*x)).collect(),
        Labels::Texts(texts) => texts.iter().map(|t| Key::Text(t.clone())).collect(),
    };
    let kernel = OneHotEncoder {
        kind: labels.kind(),
        count: keys.len(),
        categories: keys.into_iter().enumerate().map(|(at, key)| (key, at)).collect(),
        zeros: int(node, "zeros", 1)? != 0,
    };
    operator(node, 1, kernel)
}

impl Kernel for OneHotEncoder {
    fn name(&self) -> &'static str {
        "OneHotEncoder"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let shape = inputs[0].shape.iter().cloned().chain([self.count.to_dim()]);
        Ok(tvec!(Fact::new(DatumType::F32, shape)))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let keys = keys(inputs[0], self.kind)?;
        let mut values = vec![0f32; keys.len() * self.count];
        for (at, key) in keys.iter().enumerate() {
            match self.categories.get(key) {
                Some(category) => values[at * self.count + category] = 1.0,
                None if self.zeros => {}
                None => bail!(DataError(format!("category {key} is none of the {} it knows", self.count))),
            }
        }
        let shape: Vec<usize> = inputs[0].shape().iter().copied().chain([self.count]).collect();
        Ok(tvec!(tensor(&shape, values)?))
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(int) => write!(f, "{int}"),
            Self::Bits(bits) => write!(f, "{}", f64::from_bits(*bits)),
            Self::Text(text) => write!(f, "{:?}", text.chars().take(40).collect::<String>()),
        }
    }
}

/// From one list of categories to another. LabelEncoder and CategoryMapper differ only in their attributes.
#[derive(Debug)]
struct Mapping {
    name: &'static str,
    from: DatumType,
    index: BTreeMap<Key, usize>,
    /// What each key becomes; a tensor of one dimension.
    to: Tensor,
    /// What an unknown one becomes: one element.
    default: Tensor,
}

impl Mapping {
    fn new(name: &'static str, from: &Tensor, to: Tensor, default: Tensor) -> TractResult<Self> {
        same_length("keys", from.len(), to.len())?;
        ensure!(default.len() == 1, "has a default of {} elements; one is expected", default.len());
        let default = default.cast_to_dt(to.datum_type())?.into_owned();
        // The first of equal keys wins, as a reader from the top would find it.
        let mut index = BTreeMap::new();
        for (at, key) in keys(from, from.datum_type())?.into_iter().enumerate() {
            index.entry(key).or_insert(at);
        }
        Ok(Self { name, from: from.datum_type(), index, to, default })
    }

    fn map<T: Datum>(&self, input: &Tensor) -> TractResult<Tensor> {
        let (to, default) = (slice::<T>(&self.to)?, slice::<T>(&self.default)?);
        let default = default.first().context("has no default")?;
        let of = |key: &Key| self.index.get(key).and_then(|at| to.get(*at)).unwrap_or(default).clone();
        tensor(input.shape(), keys(input, self.from)?.iter().map(of).collect())
    }
}

impl Kernel for Mapping {
    fn name(&self) -> &'static str {
        self.name
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Ok(tvec!(Fact::new(self.to.datum_type(), inputs[0].shape.clone())))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let mapped = match self.to.datum_type() {
            DatumType::String => self.map::<String>(inputs[0])?,
            DatumType::I64 => self.map::<i64>(inputs[0])?,
            DatumType::I32 => self.map::<i32>(inputs[0])?,
            DatumType::I16 => self.map::<i16>(inputs[0])?,
            DatumType::F32 => self.map::<f32>(inputs[0])?,
            DatumType::F64 => self.map::<f64>(inputs[0])?,
            other => bail!("gives {other:?}, which no version of it does"),
        };
        Ok(tvec!(mapped))
    }
}

/// What the standard gives to a text that is not known.
const NO_TEXT: &str = "_Unused";

pub(crate) fn label_encoder(ctx: &ParsingContext, node: &NodeProto) -> Built {
    const NAME: &str = "LabelEncoder";
    let default_int = int(node, "default_int64", -1)?;
    let default_text = text(node, "default_string", NO_TEXT)?;
    // Version 1: texts to their positions, or back; which one shows only in the type of the input.
    let classes = texts(node, "classes_strings")?;
    if !classes.is_empty() {
        let positions: Vec<i64> = (0..classes.len() as i64).collect();
        let (texts, ints) = (line(classes)?, line(positions)?);
        let encode = Mapping::new(NAME, &texts, ints.clone(), line(vec![default_int])?)?;
        let decode = Mapping::new(NAME, &ints, texts, line(vec![default_text])?)?;
        return operator(node, 1, BothWays { encode, decode });
    }
    let from = list(ctx, node, "keys")?;
    let to = list(ctx, node, "values")?;
    let default = match (node.attribute.iter().any(|a| a.name == "default_tensor"), to.datum_type()) {
        (true, _) => loaded(ctx, node, "default_tensor")?.into_shape(&[1])?,
        (_, DatumType::String) => line(vec![default_text])?,
        (_, DatumType::F32 | DatumType::F64) => {
            line(vec![node.get_attr_opt::<f32>("default_float")?.unwrap_or(-0.0)])?
        }
        _ => line(vec![default_int])?,
    };
    operator(node, 1, Mapping::new(NAME, &from, to, default)?)
}

/// `keys_*` or `values_*`, whichever type the node has.
fn list(ctx: &ParsingContext, node: &NodeProto, prefix: &str) -> TractResult<Tensor> {
    let name = |kind: &str| format!("{prefix}_{kind}");
    let has = |kind: &str| node.attribute.iter().any(|a| a.name == name(kind));
    match ["strings", "int64s", "floats", "tensor"].into_iter().find(|kind| has(kind)) {
        Some("strings") => line(texts(node, &name("strings"))?),
        Some("int64s") => line(ints(node, &name("int64s"))?),
        Some("floats") => line(floats(node, &name("floats"))?),
        Some(_) => {
            let tensor = loaded(ctx, node, &name("tensor"))?;
            let count = tensor.len();
            tensor.into_shape(&[count])
        }
        None => bail!("has no {prefix:?} of any type"),
    }
}

fn line<T: Datum>(values: Vec<T>) -> TractResult<Tensor> {
    tensor(&[values.len()], values)
}

/// The mapping or its inverse, by the type of the input.
#[derive(Debug)]
struct BothWays {
    encode: Mapping,
    decode: Mapping,
}

impl BothWays {
    fn side(&self, input: DatumType) -> &Mapping {
        if input == DatumType::String { &self.encode } else { &self.decode }
    }
}

impl Kernel for BothWays {
    fn name(&self) -> &'static str {
        self.encode.name
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        self.side(inputs[0].kind).facts(inputs)
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        self.side(inputs[0].datum_type()).eval(inputs)
    }
}

pub(crate) fn category_mapper(_: &ParsingContext, node: &NodeProto) -> Built {
    const NAME: &str = "CategoryMapper";
    let (ints, texts) = (line(ints(node, "cats_int64s")?)?, line(texts(node, "cats_strings")?)?);
    let encode = Mapping::new(NAME, &texts, ints.clone(), line(vec![int(node, "default_int64", -1)?])?)?;
    let decode = Mapping::new(NAME, &ints, texts, line(vec![text(node, "default_string", NO_TEXT)?])?)?;
    operator(node, 1, BothWays { encode, decode })
}
