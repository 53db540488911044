//! Every case under `models/`: what onnxruntime answered, this crate answers. See `train.py` for what they are.

#![allow(clippy::unwrap_used)] // a test's unwrap is an assertion, in its helpers too

use std::path::{Path, PathBuf};

use prost::Message;
use tract_onnx::Onnx;
use tract_onnx::pb::{ModelProto, TensorProto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::{Factoid, InferenceModelExt};

/// Largest relative difference of a number from the reference.
const RELATIVE: f64 = 1e-5;
/// And absolute, for numbers near zero: differences of 32-bit sums of numbers near 1.
const ABSOLUTE: f64 = 2e-6;

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
    let mut cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    cases
}

fn engine() -> Onnx {
    let mut onnx = tract_onnx::onnx();
    plimsoll_runtime_ml::register(&mut onnx.op_register);
    onnx
}

/// The model with every open dimension a symbol, planned.
fn plan(onnx: &Onnx, folder: &Path) -> TractResult<Arc<TypedRunnableModel>> {
    let proto = ModelProto::decode(&*std::fs::read(folder.join("model.onnx"))?)?;
    let mut model = onnx.parse(&proto, None)?.model;
    let batch = model.symbols.sym("batch");
    for input in 0..model.inputs.len() {
        let mut fact = model.input_fact(input)?.clone();
        let dims: TVec<TDim> =
            fact.shape.dims().map(|d| d.concretize().unwrap_or_else(|| batch.clone().into())).collect();
        fact = fact.with_shape(dims);
        model.set_input_fact(input, fact)?;
    }
    for output in 0..model.outputs.len() {
        model.set_output_fact(output, Default::default())?;
    }
    model.into_optimized()?.into_runnable()
}

fn tensors(onnx: &Onnx, folder: &Path, kind: &str) -> Vec<Tensor> {
    let files = (0..).map(|at| folder.join(format!("test_data_set_0/{kind}_{at}.pb")));
    let load = |file: PathBuf| {
        let proto = TensorProto::decode(&*std::fs::read(file).unwrap()).unwrap();
        tract_onnx::tensor::load_tensor(&*onnx.provider, &proto, None).unwrap()
    };
    files.take_while(|file| file.exists()).map(load).collect()
}

fn compare(got: &Tensor, expected: &Tensor) -> Result<(), String> {
    if got.shape() != expected.shape() {
        return Err(format!("shape {:?}, not {:?}", got.shape(), expected.shape()));
    }
    // Indices that tract computed as sizes: integers for whoever reads them.
    let is_size = got.datum_type() == DatumType::TDim && expected.datum_type() == DatumType::I64;
    if got.datum_type() != expected.datum_type() && !is_size {
        return Err(format!("type {:?}, not {:?}", got.datum_type(), expected.datum_type()));
    }
    if expected.datum_type() == DatumType::String {
        let (got, expected) = (got.to_plain_array_view::<String>(), expected.to_plain_array_view::<String>());
        return if got.unwrap() == expected.unwrap() { Ok(()) } else { Err("texts differ".into()) };
    }
    let (got, expected) = (got.cast_to::<f64>().unwrap(), expected.cast_to::<f64>().unwrap());
    let (got, expected) =
        (got.to_plain_array_view::<f64>().unwrap(), expected.to_plain_array_view::<f64>().unwrap());
    for (at, (got, expected)) in got.iter().zip(expected.iter()).enumerate() {
        let close = (got - expected).abs() <= ABSOLUTE + RELATIVE * expected.abs();
        let same_hole = got.is_nan() && expected.is_nan();
        if !close && !same_hole {
            return Err(format!("element {at} is {got}, not {expected}"));
        }
    }
    Ok(())
}

fn answers_as_the_reference(onnx: &Onnx, folder: &Path) -> Result<(), String> {
    let plan = plan(onnx, folder).map_err(|e| format!("does not load: {e:#}"))?;
    let (inputs, expected) = (tensors(onnx, folder, "input"), tensors(onnx, folder, "output"));
    let run = |inputs: &[Tensor]| {
        let inputs = inputs.iter().map(|t| t.clone().into_tvalue()).collect();
        plan.run(inputs).map_err(|e| format!("does not run: {e:#}"))
    };
    for (at, (got, expected)) in run(&inputs)?.iter().zip(&expected).enumerate() {
        compare(got, expected).map_err(|why| format!("output {at}: {why}"))?;
    }
    // One row alone takes another way through the kernels than many.
    let rows = inputs[0].shape()[0];
    if inputs.iter().chain(&expected).all(|t| t.shape().first() == Some(&rows)) {
        let cut = |t: &Tensor| t.slice(0, rows - 1, rows).unwrap();
        let last: Vec<Tensor> = inputs.iter().map(cut).collect();
        for (at, (got, expected)) in run(&last)?.iter().zip(&expected).enumerate() {
            compare(got, &cut(expected)).map_err(|why| format!("output {at} of one row: {why}"))?;
        }
    }
    Ok(())
}

#[test]
fn every_export_answers_as_onnxruntime() {
    let onnx = engine();
    let cases = cases();
    assert!(cases.len() > 200, "only {} cases", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let why = answers_as_the_reference(&onnx, case).err()?;
            Some(format!("{}: {why}", case.file_name().unwrap().display()))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
