//! Rows of named values to the tensors of a request: what a CSV file and a sensor's message have in common.
//!
//! A column belongs to one element of one input's row. Its name is the feature's, as the bundle's reference data named
//! it; where there are none, `input[3]`, or the input's own name when its rows have one element.

use plimsoll_protocol::bundle::{DataType, InputSpec, Manifest};
use plimsoll_runtime::{Data, Tensor, bf16_bits, f16_bits};

/// One value as text; `None` when it is missing. A missing value is NaN where the datatype has one, and an error where
/// it has none.
pub type Cell = Option<String>;

/// The columns of a model, in the order of its inputs.
#[derive(Debug, Clone)]
pub struct Columns {
    inputs: Vec<(InputSpec, Vec<String>)>,
    /// Whether the bundle says what its columns are called.
    named: bool,
    /// Rows that one request may bring.
    max_rows: usize,
}

impl Columns {
    /// Of a model whose rows have a fixed size; otherwise says which input has none.
    pub fn of(manifest: &Manifest) -> Result<Self, String> {
        let mut max_rows = manifest.limits.max_batch.max(1) as usize;
        let mut inputs = Vec::with_capacity(manifest.inputs.len());
        for spec in &manifest.inputs {
            let width = row_width(spec).ok_or_else(|| {
                format!(
                    "input {:?} of shape {:?} has rows of no fixed size: send it as tensors",
                    spec.name, spec.shape
                )
            })?;
            match spec.shape.as_slice() {
                [-1, ..] => {}
                [rows, _, ..] if *rows != 1 => {
                    return Err(format!(
                        "input {:?} takes exactly {rows} rows at a time: send it as tensors",
                        spec.name
                    ));
                }
                _ => max_rows = 1,
            }
            inputs.push((spec.clone(), names(spec, width)));
        }
        let named = manifest.inputs.iter().all(|spec| !spec.features.is_empty());
        Ok(Self { inputs, named, max_rows })
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().flat_map(|(_, names)| names).map(String::as_str)
    }

    /// Rows that one request may bring.
    pub const fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Which column of a header holds each of [`Columns::names`]. The others are not used. A model whose columns have
    /// no names takes them in order, when there are as many.
    pub fn find_in(&self, header: &[String]) -> Result<Vec<usize>, String> {
        let found: Vec<Option<usize>> =
            self.names().map(|name| header.iter().position(|column| column == name)).collect();
        if found.iter().all(Option::is_none) && !self.named && found.len() == header.len() {
            return Ok((0..header.len()).collect());
        }
        let lacking: Vec<&str> =
            self.names().zip(&found).filter(|(_, at)| at.is_none()).map(|(name, _)| name).collect();
        if !lacking.is_empty() {
            let shown = lacking.iter().take(8).copied().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "{} of the model's {} columns are missing: {shown}{}",
                lacking.len(),
                found.len(),
                if lacking.len() > 8 { ", …" } else { "" }
            ));
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Checks that the cells of a row are what their columns take; the error names the column.
    pub fn check(&self, row: &[Cell]) -> Result<(), String> {
        self.tensors(&[row]).map(|_| ())
    }

    /// The inputs of a request of these rows, each as long as [`Columns::names`].
    pub fn tensors<R: AsRef<[Cell]>>(&self, rows: &[R]) -> Result<Vec<Tensor>, String> {
        let mut start = 0;
        let mut tensors = Vec::with_capacity(self.inputs.len());
        for (spec, names) in &self.inputs {
            let cells = rows.iter().flat_map(|row| {
                let row: &[Cell] = row.as_ref();
                names
                    .iter()
                    .enumerate()
                    .map(move |(at, name)| (name.as_str(), row.get(start + at).and_then(Option::as_deref)))
            });
            let data = data(spec.datatype, cells)?;
            let mut shape: Vec<usize> = spec.shape.iter().map(|d| usize::try_from(*d).unwrap_or(1)).collect();
            if let (Some(first), Some(-1)) = (shape.first_mut(), spec.shape.first()) {
                *first = rows.len();
            }
            tensors.push(Tensor::new(shape, data).map_err(|why| format!("input {:?}: {why}", spec.name))?);
            start += names.len();
        }
        Ok(tensors)
    }
}

/// Elements of one row, when the shape fixes them: the first of several dimensions counts rows.
fn row_width(spec: &InputSpec) -> Option<usize> {
    let row = match spec.shape.as_slice() {
        [] | [-1] => &[],
        [_] => spec.shape.as_slice(),
        [_, rest @ ..] => rest,
    };
    row.iter().try_fold(1usize, |all, d| all.checked_mul(usize::try_from(*d).ok()?))
}

fn names(spec: &InputSpec, width: usize) -> Vec<String> {
    let name = |at: usize| match spec.features.get(at) {
        Some(feature) => feature.name.clone(),
        None if width == 1 => spec.name.clone(),
        None => format!("{}[{at}]", spec.name),
    };
    (0..width).map(name).collect()
}

type Named<'a> = (&'a str, Option<&'a str>);

fn data<'a>(datatype: DataType, cells: impl Iterator<Item = Named<'a>>) -> Result<Data, String> {
    fn parsed<'a, T>(
        cells: impl Iterator<Item = Named<'a>>,
        datatype: DataType,
        missing: Option<T>,
    ) -> Result<Vec<T>, String>
    where
        T: std::str::FromStr + Copy,
    {
        cells
            .map(|(name, text)| match text.map(str::trim) {
                None | Some("") => missing.ok_or_else(|| {
                    format!("column {name:?} is missing, and {} has no value for that", datatype.as_str())
                }),
                Some(text) => text
                    .parse()
                    .map_err(|_| format!("column {name:?}: {:?} is not {}", short(text), kind(datatype))),
            })
            .collect()
    }
    let nan = Some(f32::NAN);
    Ok(match datatype {
        DataType::Fp32 => Data::Fp32(parsed(cells, datatype, nan)?),
        DataType::Fp64 => Data::Fp64(parsed(cells, datatype, Some(f64::NAN))?),
        DataType::Fp16 => Data::Fp16(parsed(cells, datatype, nan)?.into_iter().map(f16_bits).collect()),
        DataType::Bf16 => Data::Bf16(parsed(cells, datatype, nan)?.into_iter().map(bf16_bits).collect()),
        DataType::Uint8 => Data::Uint8(parsed(cells, datatype, None)?),
        DataType::Uint16 => Data::Uint16(parsed(cells, datatype, None)?),
        DataType::Uint32 => Data::Uint32(parsed(cells, datatype, None)?),
        DataType::Uint64 => Data::Uint64(parsed(cells, datatype, None)?),
        DataType::Int8 => Data::Int8(parsed(cells, datatype, None)?),
        DataType::Int16 => Data::Int16(parsed(cells, datatype, None)?),
        DataType::Int32 => Data::Int32(parsed(cells, datatype, None)?),
        DataType::Int64 => Data::Int64(parsed(cells, datatype, None)?),
        DataType::Bool => {
            let as_bool =
                |(name, text): Named<'_>| match text.map(|t| t.trim().to_ascii_lowercase()).as_deref() {
                    Some("true" | "1") => Ok(true),
                    Some("false" | "0") => Ok(false),
                    other => {
                        Err(format!("column {name:?}: {:?} is not true, false, 1 or 0", other.unwrap_or("")))
                    }
                };
            Data::Bool(cells.map(as_bool).collect::<Result<_, _>>()?)
        }
        // A missing text is the empty one, as encoders of categories see it.
        DataType::Bytes => {
            Data::Bytes(cells.map(|(_, text)| text.unwrap_or("").as_bytes().to_vec()).collect())
        }
    })
}

fn kind(datatype: DataType) -> String {
    match datatype {
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => "a number".into(),
        other => format!("an integer that fits {}", other.as_str()),
    }
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_protocol::bundle::{Feature, FeatureKind};
    use plimsoll_runtime::testing::classifier_manifest;

    fn row(cells: &[&str]) -> Vec<Cell> {
        cells.iter().map(|c| Some((*c).to_owned())).collect()
    }

    fn named() -> Manifest {
        let mut manifest = classifier_manifest(2, 2);
        manifest.inputs[0].features =
            ["flow", "temp"].map(|name| Feature::new(name, FeatureKind::Numeric)).into();
        manifest
    }

    #[test]
    fn columns_are_found_by_name_wherever_they_stand() {
        let columns = Columns::of(&named()).unwrap();
        let header = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(columns.find_in(&header(&["temp", "target", "flow"])), Ok(vec![2, 0]));
        let error = columns.find_in(&header(&["temp", "x"])).unwrap_err();
        assert!(error.contains("1 of the model's 2 columns are missing: flow"), "{error}");
        let unnamed = Columns::of(&classifier_manifest(2, 2)).unwrap();
        assert_eq!(unnamed.names().collect::<Vec<_>>(), ["x[0]", "x[1]"]);
        assert_eq!(unnamed.find_in(&header(&["a", "b"])), Ok(vec![0, 1]), "in order");
        assert!(unnamed.find_in(&header(&["a", "b", "c"])).is_err());
    }

    #[test]
    fn rows_become_one_batch_and_an_empty_cell_is_missing() {
        let columns = Columns::of(&named()).unwrap();
        let tensors = columns.tensors(&[row(&["1", " 2.5"]), vec![Some(String::new()), None]]).unwrap();
        assert_eq!(tensors[0].shape(), [2, 2]);
        let Data::Fp32(values) = tensors[0].data() else { panic!("{tensors:?}") };
        assert!(values[..2] == [1.0, 2.5] && values[2].is_nan() && values[3].is_nan());
    }

    #[test]
    fn a_cell_that_does_not_fit_its_datatype_is_named() {
        for (datatype, cell, expect) in [
            (DataType::Fp32, "warm", "column \"flow\": \"warm\" is not a number"),
            (DataType::Uint8, "256", "is not an integer that fits UINT8"),
            (DataType::Int64, "", "column \"flow\" is missing, and INT64 has no value for that"),
            (DataType::Bool, "maybe", "is not true, false, 1 or 0"),
        ] {
            let mut manifest = named();
            manifest.inputs[0].datatype = datatype;
            let error = Columns::of(&manifest).unwrap().check(&row(&[cell, "1"])).unwrap_err();
            assert!(error.contains(expect), "{error:?} does not say {expect:?}");
        }
        let mut manifest = named();
        manifest.inputs[0].datatype = DataType::Int64;
        let exact = Columns::of(&manifest).unwrap().tensors(&[row(&["9007199254740993", "-1"])]).unwrap();
        assert_eq!(exact[0].data(), &Data::Int64(vec![9_007_199_254_740_993, -1]), "no way through a float");
    }

    #[test]
    fn rows_without_a_fixed_size_are_refused() {
        for (shape, expect) in [(vec![-1, -1], "no fixed size"), (vec![8, 2], "exactly 8 rows")] {
            let mut manifest = named();
            manifest.inputs[0].shape = shape;
            let error = Columns::of(&manifest).unwrap_err();
            assert!(error.contains(expect), "{error}");
        }
    }
}
