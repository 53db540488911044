//! What an ensemble costs: `cargo bench -p plimsoll-runtime-ml`, one `name value unit` a line; `benches/peer.py` asks
//! onnxruntime the same of the same models, which it also writes: `python3 benches/peer.py FOLDER`, then this with
//! `PLIMSOLL_TREES=FOLDER`. Without the folder there is nothing to measure.

use std::path::Path;
use std::time::{Duration, Instant};

use prost::Message;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;

/// Runs before counting, and how long one figure is measured: long enough for a median of hundreds of runs.
const WARM_UP: usize = 20;
const MEASURED: Duration = Duration::from_millis(1500);

fn main() -> TractResult<()> {
    let Some(folder) = std::env::var_os("PLIMSOLL_TREES") else {
        eprintln!("PLIMSOLL_TREES is not set: run benches/peer.py FOLDER first, then set it to FOLDER");
        return Ok(());
    };
    let mut onnx = tract_onnx::onnx();
    plimsoll_runtime_ml::register(&mut onnx.op_register);
    for name in ["random_forest_100", "gradient_boosting_200"] {
        for rows in [1, 64] {
            let model = Path::new(&folder).join(name).with_extension("onnx");
            let proto = ModelProto::decode(&*std::fs::read(&model)?)?;
            let parsed = onnx.parse(&proto, None)?.model;
            let plan =
                parsed.with_input_fact(0, f32::fact([rows, 20]).into())?.into_optimized()?.into_runnable()?;
            // The same spread of numbers that the models were trained on: from -3 to 3.
            let input = |at: usize| ((at * 7919) % 6007) as f32 / 1001.0 - 3.0;
            let values: Vec<f32> = (0..rows * 20).map(input).collect();
            let input = Tensor::from_shape(&[rows, 20], &values)?;
            let once = || plan.run(tvec!(input.clone().into_tvalue())).map(drop);
            (0..WARM_UP).try_for_each(|_| once())?;
            let (mut times, begin) = (Vec::new(), Instant::now());
            while begin.elapsed() < MEASURED {
                let start = Instant::now();
                once()?;
                times.push(start.elapsed());
            }
            times.sort_unstable();
            println!("{name}_rows_{rows} {:.2} us", times[times.len() / 2].as_secs_f64() * 1e6);
        }
    }
    Ok(())
}
