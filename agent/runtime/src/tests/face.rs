//! The face detector among the fixtures: a real convolutional model of 1.2 MB. Skipped, and said so, without it.

use std::path::PathBuf;

use super::f32s;
use crate::{ExternalData, Runtime, TractRuntime};

fn fixture() -> Option<PathBuf> {
    let beside =
        || Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3)?.join("shared/fixtures"));
    let folder = std::env::var_os("PLIMSOLL_FIXTURES").map(PathBuf::from).or_else(beside)?;
    Some(folder.join("models/face-rfb-320.onnx")).filter(|path| path.is_file())
}

#[test]
fn the_face_detector_describes_itself_and_scores_every_box() {
    let Some(path) = fixture() else {
        println!("skipped: set PLIMSOLL_FIXTURES to the folder with models/face-rfb-320.onnx");
        return;
    };
    let engine = TractRuntime.open(&path, &ExternalData::None).unwrap();
    let d = engine.description();
    assert_eq!(d.inputs[0].shape, [1, 3, 240, 320]);
    assert!(d.operators.contains_key("Conv"));
    let pixels = (0..3 * 240 * 320).map(|i| ((i * 31 % 255) as f32 - 127.0) / 128.0).collect();
    let outputs = engine.run(vec![f32s(&[1, 3, 240, 320], pixels)]).unwrap();
    let scores = outputs.iter().find(|o| o.shape() == [1, 4420, 2]).expect("scores of 4,420 boxes").to_f32();
    assert!(
        scores.chunks(2).all(|p| (p[0] + p[1] - 1.0).abs() < 1e-4),
        "each box is face or not, with certainty 1"
    );
}
