//! From rows of numbers to the tensors of a request.

use plimsoll_protocol::bundle::{DataType, InputSpec, Manifest};
use plimsoll_runtime::{Data, Tensor, bf16_bits, f16_bits};

/// Elements of one row, when the shape fixes them: the first of several dimensions counts rows.
pub fn row_width(shape: &[i64]) -> Option<usize> {
    let row = match shape {
        [] | [-1] => &[],
        [_] => shape,
        [_, rest @ ..] => rest,
    };
    row.iter().try_fold(1usize, |all, d| all.checked_mul(usize::try_from(*d).ok()?))
}

/// Cuts rows into requests as large as the model and its limits take. Rows that do not fill a fixed batch are left.
pub fn batches(manifest: &Manifest, rows: &[Vec<f64>]) -> Result<Vec<Vec<Tensor>>, String> {
    let fixed = |spec: &InputSpec| match spec.shape.as_slice() {
        [first, _, ..] => usize::try_from(*first).ok(),
        [-1] => None,
        _ => Some(1),
    };
    let fixed = manifest.inputs.iter().find_map(fixed);
    let size = fixed.unwrap_or(manifest.limits.max_batch as usize).max(1);
    let mut requests = Vec::with_capacity(rows.len() / size + 1);
    for chunk in rows.chunks(size) {
        if fixed.is_some() && chunk.len() < size {
            break;
        }
        let mut start = 0;
        let mut inputs = Vec::with_capacity(manifest.inputs.len());
        for spec in &manifest.inputs {
            let width = row_width(&spec.shape).ok_or("the rows of an input have no fixed size")?;
            let cells = chunk.iter().flat_map(|row| row.iter().skip(start).take(width).copied());
            inputs.push(tensor(spec, chunk.len(), cells.collect())?);
            start += width;
        }
        requests.push(inputs);
    }
    if requests.is_empty() {
        return Err(format!("it has {} rows, and the model takes {size} at a time", rows.len()));
    }
    Ok(requests)
}

fn tensor(spec: &InputSpec, rows: usize, values: Vec<f64>) -> Result<Tensor, String> {
    let mut shape: Vec<usize> = spec.shape.iter().map(|d| usize::try_from(*d).unwrap_or(1)).collect();
    let by_row = spec.shape.len() > 1 || spec.shape == [-1];
    if let Some(first) = shape.first_mut().filter(|_| by_row) {
        *first = rows;
    }
    macro_rules! integers {
        ($kind:ident, $type:ty) => {
            Data::$kind(
                values
                    .iter()
                    .map(|v| whole(spec, *v, <$type>::MIN as f64, <$type>::MAX as f64).map(|v| v as $type))
                    .collect::<Result<_, _>>()?,
            )
        };
    }
    let data = match spec.datatype {
        DataType::Fp32 => Data::Fp32(values.iter().map(|v| *v as f32).collect()),
        DataType::Fp64 => Data::Fp64(values),
        DataType::Fp16 => Data::Fp16(values.iter().map(|v| f16_bits(*v as f32)).collect()),
        DataType::Bf16 => Data::Bf16(values.iter().map(|v| bf16_bits(*v as f32)).collect()),
        DataType::Uint8 => integers!(Uint8, u8),
        DataType::Uint16 => integers!(Uint16, u16),
        DataType::Uint32 => integers!(Uint32, u32),
        DataType::Uint64 => integers!(Uint64, u64),
        DataType::Int8 => integers!(Int8, i8),
        DataType::Int16 => integers!(Int16, i16),
        DataType::Int32 => integers!(Int32, i32),
        DataType::Int64 => integers!(Int64, i64),
        DataType::Bool => {
            let bits = values.iter().map(|v| whole(spec, *v, 0.0, 1.0).map(|v| v == 1.0));
            Data::Bool(bits.collect::<Result<_, _>>()?)
        }
        DataType::Bytes => {
            return Err(format!("input {} takes text, which a CSV of numbers cannot give", spec.name));
        }
    };
    Tensor::new(shape, data).map_err(|why| format!("input {}: {why}", spec.name))
}

fn whole(spec: &InputSpec, value: f64, low: f64, high: f64) -> Result<f64, String> {
    if value.fract() == 0.0 && (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(format!("{value} does not fit input {} ({})", spec.name, spec.datatype.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_runtime::testing;

    fn rows(n: usize) -> Vec<Vec<f64>> {
        (0..n).map(|i| vec![i as f64, 0.5, -1.0]).collect()
    }

    #[test]
    fn rows_become_batches_of_the_models_own_shape() {
        let mut manifest = testing::classifier_manifest(3, 2);
        manifest.limits.max_batch = 4;
        let requests = batches(&manifest, &rows(10)).unwrap();
        let shapes: Vec<_> = requests.iter().map(|r| r[0].shape().to_vec()).collect();
        assert_eq!(shapes, [[4, 3], [4, 3], [2, 3]]);
        assert_eq!(requests[1][0].to_f32()[..3], [4.0, 0.5, -1.0]);
        manifest.inputs[0].shape = vec![1, 3];
        assert_eq!(batches(&manifest, &rows(2)).unwrap().len(), 2);
        manifest.inputs[0].shape = vec![8, 3];
        assert_eq!(batches(&manifest, &rows(10)).unwrap().len(), 1);
        assert!(batches(&manifest, &rows(7)).unwrap_err().contains("takes 8 at a time"));
    }

    #[test]
    fn a_number_that_an_integer_input_cannot_hold_is_refused() {
        let mut manifest = testing::classifier_manifest(3, 2);
        manifest.inputs[0].datatype = DataType::Uint8;
        assert!(batches(&manifest, &rows(1)).unwrap_err().contains("0.5 does not fit input x (UINT8)"));
    }
}
