//! What counting costs on the device, as `name value unit` lines. The budget is 50 ns and 320 bytes a feature.

use std::hint::black_box;
use std::time::Instant;

use plimsoll_protocol::drift::signal::{ClassSignal, ImageSignal};
use plimsoll_protocol::drift::{Baseline, Cell, Column, FeatureCounts, Judge, Order, Source, Window};

/// Features of a wide tabular model.
const FEATURES: usize = 64;
/// Rows of one window.
const ROWS: usize = 1000;

fn main() {
    let columns: Vec<Column> = (0..FEATURES)
        .map(|f| Column {
            name: format!("feature {f}"),
            source: Source::Input { tensor: "x".into(), index: f as u32 },
            range: None,
            categorical: false,
            values: (0..10_000).map(|i| Cell::from(noise(i * FEATURES + f))).collect(),
        })
        .collect();
    let Ok(baseline) = Baseline::fit(&columns, Order::Unordered) else {
        eprintln!("the baseline of the benchmark does not fit");
        std::process::exit(1);
    };
    let rows: Vec<Vec<Cell>> =
        (0..ROWS).map(|r| (0..FEATURES).map(|f| Cell::from(noise(r * 977 + f))).collect()).collect();

    let mut window = Window::open(&baseline, 0);
    let per_pass = best_of(20, || {
        for row in &rows {
            let _ = black_box(window.observe(&baseline, black_box(row)));
        }
    });
    println!("drift.observe {:.1} ns/feature/sample", per_pass / (ROWS * FEATURES) as f64);

    let state = size_of::<FeatureCounts>() + window.features.first().map_or(0, |f| size_of_val(&*f.counts));
    println!("drift.window_ram {state} B/feature");
    let json = serde_json::to_vec(&window).map_or(0, |bytes| bytes.len());
    println!("drift.window_json {:.1} B/feature", json as f64 / FEATURES as f64);
    println!("drift.baseline_json {:.1} B/feature", baseline.to_bytes().len() as f64 / FEATURES as f64);

    let other = window.clone();
    println!("drift.merge {:.1} ns/feature", best_of(200, || drop(window.merge(&other))) / FEATURES as f64);
    let mut judge = Judge::new(&baseline);
    println!(
        "drift.judge {:.2} us/feature",
        best_of(20, || drop(judge.judge(&baseline, &window))) / FEATURES as f64 / 1e3
    );

    let image: Vec<f32> = (0..320 * 240).map(noise).collect();
    println!(
        "drift.image_320x240 {:.0} us",
        best_of(20, || consume(&ImageSignal::of(&image, 240, 320))) / 1e3
    );
    let scores: Vec<f32> = (0..10).map(noise).collect();
    println!("drift.classes_10 {:.0} ns", best_of(1000, || consume(&ClassSignal::of(black_box(&scores)))));
}

/// Keeps the compiler from leaving out work whose result nobody reads.
fn consume<T>(result: &T) {
    let _ = black_box(result);
}

/// Nanoseconds of the fastest run: the one that was disturbed least.
fn best_of(runs: usize, mut work: impl FnMut()) -> f64 {
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_nanos() as f64
    };
    (0..runs).map(|_| time(&mut work)).fold(f64::INFINITY, f64::min)
}

/// The same numbers on every run, in no order that a branch predictor could learn.
fn noise(i: usize) -> f32 {
    let x = (i as u32).wrapping_mul(0x9e37_79b9);
    let x = (x ^ (x >> 15)).wrapping_mul(0x85eb_ca6b);
    ((x ^ (x >> 13)) >> 8) as f32 / 65_536.0
}
