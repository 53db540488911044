//! The declarative steps around a model. The same code runs at pack time, in the self-test and in service, so a model
//! cannot meet other pixels than it was trained on.

use plimsoll_protocol::bundle::{DataType, Step};

use crate::error::{RuntimeError, TensorError};
use crate::tensor::{Data, Tensor};

/// Names with their tensors, in order.
pub(crate) type Named = Vec<(String, Tensor)>;

/// Applies steps in order.
pub(crate) fn apply(steps: &[Step], tensors: &mut Named) -> Result<(), TensorError> {
    steps.iter().try_for_each(|step| apply_one(step, tensors))
}

/// The tensor that a step reads.
pub(crate) fn reads(step: &Step) -> &str {
    match step {
        Step::Scale { tensor, .. }
        | Step::Normalize { tensor, .. }
        | Step::Softmax { tensor }
        | Step::ArgMax { tensor, .. } => tensor,
    }
}

/// What a tensor of this type is after the steps that touch it: all of them compute in FP32.
pub(crate) fn datatype_after(steps: &[Step], name: &str, before: DataType) -> DataType {
    let changes = |s: &Step| !matches!(s, Step::ArgMax { .. }) && reads(s) == name;
    if steps.iter().any(changes) { DataType::Fp32 } else { before }
}

/// The tensors that steps add.
pub(crate) fn added(steps: &[Step]) -> impl Iterator<Item = &str> {
    steps.iter().filter_map(|s| if let Step::ArgMax { name, .. } = s { Some(name.as_str()) } else { None })
}

/// Refuses, at load time, steps that name no tensor or that make no sense where they stand.
pub(crate) fn check(place: &str, steps: &[Step], known: &[&str]) -> Result<(), RuntimeError> {
    let mut known = known.to_vec();
    for step in steps {
        let tensor = reads(step);
        if !known.contains(&tensor) {
            return Err(RuntimeError::Manifest(format!(
                "a {place} step works on {tensor:?}, which does not exist"
            )));
        }
        if let Step::ArgMax { name, .. } = step {
            if place == "pre" {
                return Err(RuntimeError::Manifest(
                    "arg_max is a step after the model, not before it".into(),
                ));
            }
            if known.contains(&name.as_str()) {
                return Err(RuntimeError::Manifest(format!("arg_max adds {name:?}, which exists already")));
            }
            known.push(name);
        }
    }
    Ok(())
}

fn apply_one(step: &Step, tensors: &mut Named) -> Result<(), TensorError> {
    let name = reads(step);
    let missing = || TensorError::new(name, "does not exist here");
    let at = tensors.iter().position(|(n, _)| n == name).ok_or_else(missing)?;
    let Some((_, tensor)) = tensors.get_mut(at) else { return Err(missing()) };
    if tensor.datatype() == DataType::Bytes {
        return Err(TensorError::new(name, "holds BYTES, on which no step can compute"));
    }
    match step {
        Step::Scale { factor, offset, .. } => in_place(tensor, |values| {
            values.iter_mut().for_each(|x| *x = *x * factor + offset);
        }),
        Step::Normalize { axis, mean, std, .. } => {
            let channels = tensor.shape().get(*axis).copied();
            if channels != Some(mean.len()) {
                let why = format!(
                    "shape {:?} has no axis {axis} of {} channels, which step normalize needs",
                    tensor.shape(),
                    mean.len()
                );
                return Err(TensorError::new(name, why));
            }
            let inner: usize = tensor.shape().iter().skip(axis + 1).product();
            in_place(tensor, |values| {
                let channels = mean.iter().zip(std).cycle();
                for (run, (mean, std)) in values.chunks_mut(inner.max(1)).zip(channels) {
                    run.iter_mut().for_each(|x| *x = (*x - mean) / std);
                }
            });
        }
        Step::Softmax { .. } => {
            let last = tensor.shape().last().copied().unwrap_or(1);
            in_place(tensor, |values| values.chunks_mut(last.max(1)).for_each(softmax));
        }
        Step::ArgMax { name: added, .. } => {
            let last = tensor.shape().last().copied().unwrap_or(1).max(1);
            let shape = tensor.shape().split_last().map_or(&[][..], |(_, rest)| rest).to_vec();
            let best = tensor.to_f32().chunks(last).map(|row| arg_max(row) as i64).collect();
            let result = Tensor::new(shape, Data::Int64(best)).map_err(|why| TensorError::new(added, why))?;
            tensors.push((added.clone(), result));
        }
    }
    Ok(())
}

/// Lets `f` change the values as FP32; another number type becomes FP32 first.
fn in_place(tensor: &mut Tensor, f: impl FnOnce(&mut [f32])) {
    let empty = Tensor::empty();
    let (shape, data) = std::mem::replace(tensor, empty).into_parts();
    let mut values = match data {
        Data::Fp32(values) => values,
        other => Tensor::of(shape.clone(), other).to_f32(),
    };
    f(&mut values);
    *tensor = Tensor::of(shape, Data::Fp32(values));
}

/// Soft-max of one row, shifted by its maximum so that no exponent overflows.
pub fn softmax(row: &mut [f32]) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !top.is_finite() {
        return; // all NaN or an infinity: there is no distribution to make, and the caller sees it
    }
    row.iter_mut().for_each(|x| *x = (*x - top).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

/// Index of the largest value, the first of equals; NaN never wins; 0 for an empty row.
pub fn arg_max(row: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (at, value) in row.iter().enumerate() {
        if *value > best.1 {
            best = (at, *value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(step: Step, shape: &[usize], data: Data) -> Result<Named, TensorError> {
        let mut tensors = vec![("x".to_owned(), Tensor::new(shape.to_vec(), data).unwrap())];
        apply(&[step], &mut tensors).map(|()| tensors)
    }

    fn values(named: &Named) -> Vec<f32> {
        named[0].1.to_f32()
    }

    #[test]
    fn scale_turns_bytes_of_pixels_into_floats() {
        let step = Step::Scale { tensor: "x".into(), factor: 0.5, offset: -1.0 };
        let out = run(step, &[1, 3], Data::Uint8(vec![0, 2, 255])).unwrap();
        assert_eq!(values(&out), [-1.0, 0.0, 126.5]);
        assert_eq!(out[0].1.datatype(), DataType::Fp32);
    }

    #[test]
    fn normalize_follows_its_axis() {
        let step =
            |axis| Step::Normalize { tensor: "x".into(), axis, mean: vec![1.0, 10.0], std: vec![1.0, 2.0] };
        let planes = run(step(1), &[1, 2, 2], Data::Fp32(vec![1.0, 2.0, 10.0, 12.0])).unwrap();
        assert_eq!(values(&planes), [0.0, 1.0, 0.0, 1.0]);
        let pixels = run(step(2), &[1, 2, 2], Data::Fp32(vec![1.0, 10.0, 2.0, 12.0])).unwrap();
        assert_eq!(values(&pixels), [0.0, 0.0, 1.0, 1.0]);
        let error = run(step(3), &[1, 2, 2], Data::Fp32(vec![0.0; 4])).unwrap_err().to_string();
        assert!(error.contains("\"x\"") && error.contains("no axis 3"), "{error}");
    }

    #[test]
    fn softmax_sums_to_one_even_for_large_scores() {
        let out = run(Step::Softmax { tensor: "x".into() }, &[2, 2], Data::Fp32(vec![1e30, 1e30, 0.0, 1.0]))
            .unwrap();
        let v = values(&out);
        assert_eq!(v[..2], [0.5, 0.5]);
        assert!((v[2] + v[3] - 1.0).abs() < 1e-6 && v[3] > v[2]);
    }

    #[test]
    fn arg_max_adds_the_winning_class_of_each_row() {
        let step = Step::ArgMax { tensor: "x".into(), name: "class".into() };
        let out = run(step, &[2, 3], Data::Fp32(vec![0.1, 0.7, 0.2, f32::NAN, 0.0, 5.0])).unwrap();
        assert_eq!(out[1].0, "class");
        assert_eq!(out[1].1, Tensor::new(vec![2], Data::Int64(vec![1, 2])).unwrap());
    }

    #[test]
    fn a_step_that_cannot_work_is_refused_by_name() {
        let step = Step::Softmax { tensor: "y".into() };
        assert!(
            check("post", std::slice::from_ref(&step), &["x"]).unwrap_err().to_string().contains("\"y\"")
        );
        assert!(run(step, &[1], Data::Fp32(vec![0.0])).is_err());
        let argmax = [Step::ArgMax { tensor: "x".into(), name: "c".into() }];
        assert!(check("pre", &argmax, &["x"]).is_err());
        assert!(check("post", &argmax, &["x", "c"]).is_err());
        assert!(check("post", &argmax, &["x"]).is_ok());
        assert!(run(Step::Softmax { tensor: "x".into() }, &[1], Data::Bytes(vec![vec![]])).is_err());
    }
}
