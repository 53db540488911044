//! A judge over streams with known truth.

use super::*;
use crate::drift::{Cell, Column, Order, Source};
use rand::{RngExt, SeedableRng, rngs::StdRng};

fn baseline(order: Order, reference: Vec<f32>, source: Source) -> Baseline {
    let values = reference.into_iter().map(Cell::from).collect();
    let column = Column { name: "confidence".into(), source, range: None, categorical: false, values };
    Baseline::fit(&[column], order).unwrap()
}

fn confident(rng: &mut StdRng, n: usize, centre: f32) -> Vec<f32> {
    (0..n).map(|_| (centre + rng.random_range(-0.2f32..0.06)).clamp(0.0, 1.0)).collect()
}

fn window(baseline: &Baseline, values: impl IntoIterator<Item = Cell>) -> Window {
    let mut window = Window::open(baseline, 0);
    for value in values {
        window.observe(baseline, &[value]).unwrap();
    }
    window
}

fn confidence() -> Source {
    Source::Confidence { tensor: "y".into() }
}

#[test]
fn a_model_that_became_unsure_is_in_verdict_after_two_windows_and_says_so() {
    let mut rng = StdRng::seed_from_u64(1);
    let base = baseline(Order::Unordered, confident(&mut rng, 2000, 0.95), confidence());
    let mut judge = Judge::new(&base);
    let quiet = window(&base, confident(&mut rng, 400, 0.95).into_iter().map(Cell::from));
    let unsure = confident(&mut rng, 400, 0.75);
    let unsure = window(&base, unsure.into_iter().map(Cell::from));

    let first = judge.judge(&base, &quiet).unwrap();
    assert!(matches!(first[0].standing, Standing::Quiet(_)), "{}", first[0]);
    let second = judge.judge(&base, &unsure).unwrap();
    assert!(matches!(second[0].standing, Standing::Watch(_)), "one window is not two: {}", second[0]);
    // The judge survives a restart in between.
    judge = serde_json::from_str(&serde_json::to_string(&judge).unwrap()).unwrap();
    let third = judge.judge(&base, &unsure).unwrap();
    assert!(matches!(third[0].standing, Standing::Drift(_)) && third[0].is_alarm(), "{}", third[0]);
    let json = serde_json::to_string(&third[0]).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), third[0], "a verdict reads back");
    let text = third[0].to_string();
    assert!(text.starts_with("confidence fell from 0.8") && text.contains("on average; PSI "), "{text}");
    assert!(text.ends_with("over 400 samples"), "{text}");
}

#[test]
fn a_gross_change_is_told_by_small_windows_and_is_over_when_it_is_over() {
    let mut rng = StdRng::seed_from_u64(7);
    let base = baseline(Order::Unordered, confident(&mut rng, 500, 0.95), confidence());
    let mut judge = Judge::new(&base);
    let mut next = |centre: f32| {
        let w = window(&base, confident(&mut rng, 90, centre).into_iter().map(Cell::from));
        judge.judge(&base, &w).unwrap().remove(0)
    };
    assert!(
        matches!(next(0.95).standing, Standing::Gathering { .. }),
        "90 usual values are too few to say anything"
    );
    let unsure: Vec<Verdict> = (0..3).map(|_| next(0.4)).collect();
    assert!(unsure[2].is_alarm(), "{}", unsure[2]);
    let better: Vec<Verdict> = (0..16).map(|_| next(0.95)).collect();
    assert!(matches!(better[15].standing, Standing::Quiet(_) | Standing::Gathering { .. }), "{}", better[15]);
    assert!(
        better[15].evidence < 1000.0,
        "what is over does not vouch for the next change: {}",
        better[15].evidence
    );
    assert!(matches!(next(0.4).standing, Standing::Watch(_)), "one small window is no proof");
}

#[test]
fn a_thousand_quiet_windows_raise_no_alarm() {
    let mut rng = StdRng::seed_from_u64(2);
    let base = baseline(Order::Unordered, confident(&mut rng, 1000, 0.95), confidence());
    let mut judge = Judge::new(&base);
    for _ in 0..1000 {
        let w = window(&base, confident(&mut rng, 350, 0.95).into_iter().map(Cell::from));
        let verdict = &judge.judge(&base, &w).unwrap()[0];
        assert!(!verdict.is_alarm(), "{verdict}");
    }
}

#[test]
fn slow_data_gather_over_windows_and_say_how_long_it_takes() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut x = 0.0f32;
    let mut walk = |n: usize| -> Vec<f32> {
        (0..n)
            .map(|_| {
                x = 0.9 * x + rng.random_range(-1.0f32..1.0);
                x
            })
            .collect()
    };
    let base = baseline(Order::Time, walk(30_000), Source::Input { tensor: "x".into(), index: 0 });
    let mut judge = Judge::new(&base);
    let mut judged = 0;
    for index in 0..12 {
        let w = window(&base, walk(1000).into_iter().map(Cell::from));
        let verdict = &judge.judge(&base, &w).unwrap()[0];
        match &verdict.standing {
            // 1,000 values at r1 = 0.9 are worth 53: six windows make 300.
            Standing::Gathering { n_eff, values_needed } => {
                assert!(*n_eff < 300.0 && *values_needed > 0, "{verdict}");
                assert!(index == 0 || verdict.to_string().contains("more values are needed"));
            }
            other => {
                judged += 1;
                assert!(matches!(other, Standing::Quiet(shift) if shift.n >= 5000), "{verdict}");
            }
        }
    }
    assert!((1..=2).contains(&judged), "{judged} verdicts");
}

#[test]
fn missing_values_are_a_fault_and_not_drift() {
    let mut rng = StdRng::seed_from_u64(4);
    let base = baseline(Order::Unordered, confident(&mut rng, 1000, 0.95), confidence());
    let good = confident(&mut rng, 350, 0.95).into_iter().map(Cell::from);
    let holes = window(&base, good.chain(std::iter::repeat_n(Cell::Missing, 100)));
    let verdict = Judge::new(&base).judge(&base, &holes).unwrap().remove(0);
    assert!(matches!(verdict.standing, Standing::Fault { .. }) && verdict.is_alarm());
    assert!(verdict.to_string().contains("22 % of the values are missing"), "{verdict}");
    let silent = Judge::new(&base).judge(&base, &Window::open(&base, 0)).unwrap().remove(0);
    assert!(matches!(silent.standing, Standing::Gathering { .. }), "an empty window is no fault: {silent}");
}

#[test]
fn a_shift_between_classes_is_told_by_the_class() {
    let source = Source::Class { tensor: "y".into() };
    let base = baseline(Order::Unordered, (0..1000).map(|i| (i % 10) as f32).collect(), source);
    let w = window(&base, (0..400).map(|i| Cell::from(if i % 2 == 0 { 3.0 } else { (i % 10) as f32 })));
    let shift = Shift::of(&base.features()[0], &w.features[0]).unwrap();
    assert!(shift.is_large());
    assert!(shift.to_string().starts_with("confidence: 3 went from 10 % to 60 %; PSI "), "{shift}");
    assert_eq!(shift.means, None);
}

#[test]
fn a_refused_window_changes_nothing() {
    let base = baseline(Order::Unordered, vec![0.1, 0.5, 0.9], confidence());
    let mut judge = Judge::new(&base);
    let before = judge.clone();
    let mut bad = window(&base, [Cell::Missing]);
    bad.samples = 7;
    assert!(judge.judge(&base, &bad).is_err());
    assert_eq!(judge, before);
}

#[test]
fn a_histogram_leaves_out_open_ends_that_are_empty() {
    let base = baseline(Order::Unordered, (0..1000).map(|i| i as f32 / 1000.0).collect(), confidence());
    let w = window(&base, [0.02f32, 0.5, 1.0].map(Cell::from));
    let bars = histogram(&base.features()[0], &w.features[0]);
    assert_eq!(bars.len(), 20);
    assert_eq!(bars[0], ("0 to 0.05".into(), 0.05, 1.0 / 3.0));
}
