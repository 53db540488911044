//! Packing tiny models, and every way in which a pack is refused.

use std::path::Path;

use clap::Parser;
use plimsoll_protocol::bundle::{GoldenOrigin, InputContent, OutputKind, RuntimeKind};
use plimsoll_runtime::{Data, architecture, testing};

use super::*;
use crate::bundle::files::LocalBundle;
use crate::failure::{REFUSED, USAGE, exit_code};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    pack: Pack,
}

struct Home(tempfile::TempDir);

impl Home {
    /// A classifier of three inputs and two classes.
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        home.write("model.onnx", &testing::classifier(3, 2, 1.0));
        home
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    /// Words that begin with `@` are paths below the home.
    fn pack(&self, more: &str) -> Result<Packed> {
        let line = format!("pack @model.onnx --model meter --version 1.0.0 --out @out {more}");
        let words = line.split_whitespace().map(|w| match w.strip_prefix('@') {
            Some(name) => self.path().join(name).to_string_lossy().into_owned(),
            None => w.to_owned(),
        });
        let args = Line::try_parse_from(words)?.pack;
        // The real program has them run by a child; here that would be this test.
        let test = async |dir: &Path, m: &Manifest| Ok(plimsoll_runtime::self_test(dir, m, architecture())?);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(pack(&args, test))
    }
    /// Golden samples as a training framework would leave them: here the model's own answers.
    fn golden(&self, spoil: impl Fn(&mut Vec<f32>)) {
        let manifest = testing::classifier_manifest(3, 2);
        let dir = tempfile::tempdir().unwrap();
        let (manifest, _) = testing::write_bundle(dir.path(), &testing::classifier(3, 2, 1.0), manifest);
        let sample = &manifest.golden.samples[0];
        let (inputs, outputs) = plimsoll_runtime::read_sample(dir.path(), sample).unwrap();
        let mut values = outputs[0].to_f32();
        spoil(&mut values);
        let output = plimsoll_runtime::Tensor::new(outputs[0].shape().to_vec(), Data::Fp32(values)).unwrap();
        self.write("golden/test_data_set_0/input_0.pb", &plimsoll_runtime::encode_tensor("x", &inputs[0]));
        self.write("golden/test_data_set_0/output_0.pb", &plimsoll_runtime::encode_tensor("y", &output));
    }
    /// Nothing may be left of a refused pack.
    fn is_clean(&self) -> bool {
        let names =
            std::fs::read_dir(self.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        !names.into_iter().any(|n| n == "out" || n.contains("partial"))
    }
}

#[test]
fn a_model_alone_packs_and_its_samples_are_said_to_prove_stability_only() {
    let home = Home::new();
    let packed = home.pack("").unwrap();
    assert_eq!(packed.manifest.golden.origin, GoldenOrigin::Recorded);
    assert!(packed.notes.iter().any(|n| n.contains("stability, not agreement")), "{:?}", packed.notes);
    assert!(packed.notes.iter().any(|n| n.contains("drift will not be measured")), "{:?}", packed.notes);
    let bundle = LocalBundle::open(&home.path().join("out")).unwrap();
    bundle.verify().unwrap();
    assert_eq!((bundle.digest, &bundle.manifest), (packed.digest, &packed.manifest));
    assert_eq!(bundle.manifest.outputs[0].kind, OutputKind::ClassScores, "soft-max rows are recognised");
    assert!(bundle.manifest.requires.min_ram_bytes > 0);
    let RuntimeKind::Onnx { operators, .. } = &bundle.manifest.variants[0].runtime else { panic!("ONNX") };
    assert_eq!(operators[""].iter().collect::<Vec<_>>(), ["Gemm", "Softmax"]);
}

#[test]
fn golden_samples_reference_labels_and_annotations_end_up_in_the_bundle() {
    let home = Home::new();
    home.golden(|_| ());
    let rows: Vec<String> =
        (0..200).map(|i| format!("{},{},{}", i % 7, f64::from(i) / 10.0, i % 2)).collect();
    home.write("ref.csv", format!("flow,temp,door\n{}\n", rows.join("\n")).as_bytes());
    let more =
        "--golden @golden --reference @ref.csv --labels ok,bad --annotation commit=abc --categorical door";
    let packed = home.pack(more).unwrap();
    let m = &packed.manifest;
    assert_eq!((m.golden.origin, m.golden.samples.len()), (GoldenOrigin::Supplied, 1));
    assert_eq!(m.outputs[0].labels, ["ok", "bad"]);
    assert_eq!(m.annotations["commit"], "abc");
    let names: Vec<_> = m.inputs[0].features.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["flow", "temp", "door"]);
    // Three columns; class, confidence and entropy.
    assert_eq!(packed.baseline, Some((6, 200)));
    let path = home.path().join("out").join(m.baseline.as_ref().unwrap().as_str());
    let baseline = plimsoll_protocol::drift::Baseline::parse(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(baseline.features()[1].name, "temp");
}

#[test]
fn the_input_policy_comes_from_flags_and_the_categories_from_the_reference() {
    let home = Home::new();
    let rows: Vec<String> = (0..200).map(|i| format!("{},{},{}", i % 7, i, 1 + i % 2)).collect();
    home.write("ref.csv", format!("flow,temp,door\n{}\n", rows.join("\n")).as_bytes());
    let more = "--reference @ref.csv --categorical door --valid flow=-1,50 --refuse missing --refuse \
                out_of_range=flow --refuse unknown_category";
    let packed = home.pack(more).unwrap();
    let input = &packed.manifest.inputs[0];
    assert_eq!(input.policy.refusals(), "missing, unknown_category");
    assert_eq!(input.features[0].range, Some((-1.0, 50.0)));
    assert_eq!(input.features[0].policy.unwrap().refusals(), "missing, out_of_range");
    assert_eq!((input.features[2].categories.join(" "), input.features[2].policy), ("1 2".to_owned(), None));
    let words = policy::in_words(input).join("\n");
    assert!(words.contains("policy   x: refuses missing, unknown_category"), "{words}");
    assert!(words.contains("feature  x.flow: valid -1 to 50; refuses missing, out_of_range"), "{words}");
    assert!(words.contains("feature  x.door: one of 1, 2"), "{words}");
    std::fs::remove_dir_all(home.path().join("out")).unwrap();

    refused(&home, "--reference @ref.csv --valid speed=0,1", USAGE, "there are flow, temp, door");
    refused(&home, "--refuse missing=flow", USAGE, "no column has a name");
    refused(&home, "--refuse out_of_range", exit_code(&plimsoll_error()), "no feature states a range");
    assert!(home.pack("--refuse everything").unwrap_err().to_string().contains("none of missing, infinite"));
    assert!(home.pack("--valid flow=2,1").unwrap_err().to_string().contains("COLUMN=LOW,HIGH"));
}

/// What a manifest that contradicts itself ends with.
fn plimsoll_error() -> anyhow::Error {
    plimsoll_protocol::bundle::ManifestError::Invalid(String::new()).into()
}

#[test]
fn an_engines_file_takes_the_place_of_the_model_and_the_samples_stay() {
    let home = Home::new();
    home.write("meter.plan", b"an engine's plan");
    let plan = home.path().join("meter.plan");
    let packed = home.pack(&format!("--external tensorrt={}", plan.display())).unwrap();
    let m = &packed.manifest;
    assert_eq!(m.variants.len(), 1);
    assert_eq!(m.variants[0].entry.as_str(), "meter.plan");
    assert!(matches!(&m.variants[0].runtime, RuntimeKind::External { engine } if engine == "tensorrt"));
    let bundle = LocalBundle::open(&home.path().join("out")).unwrap();
    bundle.verify().unwrap();
    assert!(!home.path().join("out/model.onnx").exists() && m.golden.samples.len() == 3);
    assert!(packed.notes.iter().any(|n| n.contains("[engines.tensorrt]")), "{:?}", packed.notes);
    assert!(home.pack("--external a/b=x").unwrap_err().to_string().contains("no name of an engine"));
}

#[test]
fn a_tensor_can_travel_as_bf16_and_so_do_its_samples() {
    let home = Home::new();
    home.golden(|_| ());
    let packed = home.pack("--golden @golden --bf16 x --bf16 y").unwrap();
    let m = &packed.manifest;
    assert_eq!((m.inputs[0].datatype.as_str(), m.outputs[0].datatype.as_str()), ("BF16", "BF16"));
    assert_eq!(m.outputs[0].kind, OutputKind::ClassScores);
    let (inputs, _) = plimsoll_runtime::read_sample(&home.path().join("out"), &m.golden.samples[0]).unwrap();
    assert_eq!(inputs[0].datatype().as_str(), "BF16");
    std::fs::remove_dir_all(home.path().join("out")).unwrap();
    refused(&home, "--bf16 pixels", USAGE, "it has x, y");
}

#[test]
fn the_same_model_packs_to_the_same_samples() {
    let home = Home::new();
    let first = home.pack("").unwrap().manifest.files;
    std::fs::rename(home.path().join("out"), home.path().join("first")).unwrap();
    assert_eq!(home.pack("").unwrap().manifest.files, first);
}

#[test]
fn pixels_are_measured_as_pixels_when_they_are_said_to_be() {
    let home = Home::new();
    let packed = home.pack("--image x").unwrap();
    assert_eq!(packed.manifest.inputs[0].content, InputContent::Image);
}

#[track_caller]
fn refused(home: &Home, more: &str, code: u8, expect: &str) {
    let error = home.pack(more).unwrap_err();
    assert_eq!(exit_code(&error), code, "{error:#}");
    let text = format!("{error:#}");
    assert!(text.contains(expect), "{text:?} does not say {expect:?}");
    assert!(home.is_clean(), "a refused pack left something behind");
}

#[test]
fn a_model_that_does_not_parse_is_refused() {
    let home = Home::new();
    let whole = testing::classifier(3, 2, 1.0);
    home.write("model.onnx", &whole[..whole.len() / 2]);
    refused(&home, "", REFUSED, "model.onnx");
    home.write("model.onnx", b"this is not a model");
    refused(&home, "", REFUSED, "model.onnx");
}

#[test]
fn golden_samples_that_differ_are_refused_with_their_place() {
    let home = Home::new();
    home.golden(|values| values[1] += 0.25);
    refused(&home, "--golden @golden", REFUSED, "golden sample 0, output \"y\": element 1 is");
    // A person may say that this much is fine.
    assert!(home.pack("--golden @golden --tolerance-absolute 0.3").is_ok());
}

#[test]
fn golden_folders_that_do_not_fit_are_refused() {
    let home = Home::new();
    home.write("golden/readme", b"");
    refused(&home, "--golden @golden", USAGE, "no test_data_set_0/input_0.pb");
    home.golden(|_| ());
    home.write("golden/test_data_set_0/input_2.pb", b"");
    refused(&home, "--golden @golden", REFUSED, "no input_1.pb");
    std::fs::remove_file(home.path().join("golden/test_data_set_0/input_2.pb")).unwrap();
    std::fs::remove_file(home.path().join("golden/test_data_set_0/output_0.pb")).unwrap();
    refused(&home, "--golden @golden", REFUSED, "0 output(s); the model has 1 and 1");
}

#[test]
fn a_reference_that_does_not_fit_the_model_is_refused() {
    let home = Home::new();
    home.write("ref.csv", b"a,b,c,target\n1,2,3,4\n");
    refused(&home, "--reference @ref.csv", REFUSED, "has 4 columns, a row of the model's inputs has 3");
}

#[test]
fn flags_that_name_what_is_not_there_are_wrong_usage() {
    let home = Home::new();
    refused(&home, "--labels a,b,c", USAGE, "no output scores 3: y [-1, 2]");
    refused(&home, "--image pixels", USAGE, "it has x");
    refused(&home, "--pre-scale pixels=2", USAGE, "it has x");
    home.write("out/precious", b"");
    let error = home.pack("").unwrap_err();
    assert!(exit_code(&error) == USAGE && home.path().join("out/precious").exists(), "{error:#}");
}

#[test]
fn a_scale_is_a_factor_and_an_offset() {
    let expect = Step::Scale { tensor: "x".into(), factor: 0.5, offset: -1.0 };
    assert_eq!(scale("x=0.5,-1"), Ok(expect));
    assert!(scale("x=a").is_err() && scale("x").is_err() && scale("x=inf").is_err());
}
