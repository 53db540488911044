use plimsoll_protocol::bundle::{DataType, Manifest, OutputKind, OutputSpec};
use plimsoll_runtime::testing::classifier_manifest;
use plimsoll_runtime::{Data, Tensor};

use super::Comparison;

fn with_outputs(outputs: Vec<OutputSpec>) -> Manifest {
    Manifest { outputs, ..classifier_manifest(4, 3) }
}

fn output(name: &str, datatype: DataType, shape: &[i64], kind: OutputKind, labels: &[&str]) -> OutputSpec {
    let labels = labels.iter().map(|l| (*l).to_owned()).collect();
    OutputSpec { name: name.into(), datatype, shape: shape.to_vec(), kind, labels }
}

fn number() -> Manifest {
    with_outputs(vec![output("y", DataType::Fp32, &[-1, 1], OutputKind::Regression, &[])])
}

fn floats(shape: &[usize], values: impl Into<Vec<f32>>) -> Vec<Tensor> {
    vec![Tensor::new(shape.to_vec(), Data::Fp32(values.into())).unwrap()]
}

#[test]
fn classes_are_compared_by_the_best_one_and_scores_only_measured() {
    let manifest = classifier_manifest(4, 3);
    let mut comparison = Comparison::of(&manifest, &manifest).unwrap();
    // Two rows in one request: the second changes its class, the first only its scores.
    let old = floats(&[2, 3], [0.7, 0.2, 0.1, 0.1, 0.8, 0.1]);
    let new = floats(&[2, 3], [0.5, 0.3, 0.2, 0.5, 0.4, 0.1]);
    comparison.add(&old, &new, 2);
    comparison.failed(3);
    let totals = comparison.totals();
    assert_eq!((totals.rows, totals.differ, totals.failed), (5, 4, 3));
    let distance = totals.distance.unwrap();
    assert!((distance.mean - 1.2 / 6.0).abs() < 1e-6, "{distance:?}");
    assert!((distance.max - 0.4).abs() < 1e-6, "{distance:?}");
}

#[test]
fn classes_with_names_are_compared_by_name_whatever_their_order_and_number() {
    let scores = |shape: &[i64], labels: &[&str]| {
        with_outputs(vec![output("y", DataType::Fp32, shape, OutputKind::ClassScores, labels)])
    };
    let (old, new) = (scores(&[-1, 2], &["cat", "dog"]), scores(&[-1, 3], &["bird", "dog", "cat"]));
    let mut comparison = Comparison::of(&old, &new).unwrap();
    comparison.add(&floats(&[1, 2], [0.9, 0.1]), &floats(&[1, 3], [0.0, 0.1, 0.9]), 1);
    assert_eq!(comparison.totals().differ, 0, "cat is cat");
    comparison.add(&floats(&[1, 2], [0.9, 0.1]), &floats(&[1, 3], [0.9, 0.0, 0.1]), 1);
    assert_eq!(comparison.totals().differ, 1, "a cat is no bird");
    let nameless = scores(&[-1, 3], &[]);
    assert!(Comparison::of(&old, &nameless).unwrap_err().contains("no output in common"));
}

#[test]
fn numbers_differ_by_the_spread_of_what_the_running_version_answers() {
    // Answers of 0, 1, … 9: their standard deviation is 2.87, half of it 1.44.
    for (off, differ) in [(0.0, 0), (1.3, 0), (1.6, 200), (100.0, 200)] {
        let mut comparison = Comparison::of(&number(), &number()).unwrap();
        for n in 0..200 {
            let y = (n * 7 % 10) as f32;
            comparison.add(&floats(&[1, 1], [y]), &floats(&[1, 1], [y + off]), 1);
        }
        let totals = comparison.totals();
        assert_eq!((totals.rows, totals.differ), (200, differ), "{off} off");
        let distance = totals.distance.unwrap();
        assert!((distance.mean - f64::from(off)).abs() < 1e-3 * f64::from(off).max(1.0), "{distance:?}");
        assert!((distance.relative - f64::from(off) / 2.872).abs() < 0.01 * f64::from(off).max(1.0));
    }
}

#[test]
fn few_numbers_are_judged_at_the_end_and_a_constant_has_a_scale_too() {
    let mut comparison = Comparison::of(&number(), &number()).unwrap();
    for n in 0..10 {
        let y = n as f32;
        comparison.add(&floats(&[1, 1], [y]), &floats(&[1, 1], [y * 255.0]), 1);
    }
    assert_eq!(comparison.totals().differ, 9, "0 times 255 is 0");
    let mut constant = Comparison::of(&number(), &number()).unwrap();
    for off in [0.0, 0.001, 5.0] {
        constant.add(&floats(&[1, 1], [20.0]), &floats(&[1, 1], [20.0 + off]), 1);
    }
    assert_eq!(constant.totals().differ, 1);
}

#[test]
fn what_is_not_a_number_differs_from_what_is_and_never_becomes_a_distance() {
    let mut comparison = Comparison::of(&number(), &number()).unwrap();
    for (old, new) in [(1.0, f32::NAN), (f32::NAN, f32::NAN), (f32::INFINITY, 1.0), (2.0, 2.0)] {
        comparison.add(&floats(&[1, 1], [old]), &floats(&[1, 1], [new]), 1);
    }
    let totals = comparison.totals();
    assert_eq!((totals.rows, totals.differ), (4, 2));
    let distance = totals.distance.unwrap();
    assert!(distance.max == 0.0 && distance.relative.is_finite(), "{distance:?}");
}

#[test]
fn labels_are_equal_or_not() {
    for (datatype, old, new) in [
        (DataType::Int64, Data::Int64(vec![3, 4]), Data::Int64(vec![3, 5])),
        (
            DataType::Bytes,
            Data::Bytes(vec![b"ok".to_vec(), b"worn".to_vec()]),
            Data::Bytes(vec![b"ok".to_vec(), b"broken".to_vec()]),
        ),
    ] {
        let manifest = with_outputs(vec![output("label", datatype, &[-1], OutputKind::Raw, &[])]);
        let mut comparison = Comparison::of(&manifest, &manifest).unwrap();
        let tensor = |data| vec![Tensor::new(vec![2], data).unwrap()];
        comparison.add(&tensor(old), &tensor(new), 2);
        let totals = comparison.totals();
        assert_eq!((totals.rows, totals.differ, totals.distance), (2, 1, None), "{datatype:?}");
    }
}

#[test]
fn bundles_that_are_asked_other_questions_are_not_compared() {
    let manifest = classifier_manifest(4, 3);
    let why = |change: &dyn Fn(&mut Manifest)| {
        let mut other = manifest.clone();
        change(&mut other);
        Comparison::of(&manifest, &other).unwrap_err()
    };
    assert!(why(&|m| m.inputs[0].shape = vec![-1, 5]).contains("[-1, 5]"));
    assert!(why(&|m| m.inputs[0].name = "z".into()).contains("\"z\""));
    assert!(why(&|m| m.inputs.clear()).contains("takes 0 inputs"));
    assert!(why(&|m| m.outputs[0].name = "z".into()).contains("no output in common"));
}
