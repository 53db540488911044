//! Each check alone, then real motes: two clean, two with an event of 58 and 100 rows.

use std::path::PathBuf;

use super::*;
use crate::drift::{Baseline, Cell, Column, Judge, Order, Source, Standing, Window};

fn faults(limits: Limits, readings: &[f32]) -> Vec<(usize, Vec<Fault>)> {
    let mut checker = Checker::new(limits);
    let all = readings.iter().enumerate().map(|(at, x)| (at, checker.check(*x).iter().collect::<Vec<_>>()));
    all.filter(|(_, faults)| !faults.is_empty()).collect()
}

#[test]
fn a_reading_outside_the_range_is_told_once_and_its_neighbours_are_good() {
    let limits = Limits { range: Some((0.0, 50.0)), rate: Some(5.0), ..Limits::default() };
    let found = faults(limits, &[20.0, 999.0, 20.1, f32::NAN, 20.2]);
    assert_eq!(found, [(1, vec![Fault::GrossRange]), (3, vec![Fault::GrossRange])]);
}

#[test]
fn a_spike_stands_alone_and_a_step_does_not() {
    let limits = Limits { spike: Some(3.0), ..Limits::default() };
    assert_eq!(faults(limits.clone(), &[1.0, 1.0, 9.0, 1.0, 1.0]), [(3, vec![Fault::Spike])]);
    assert!(faults(limits, &[1.0, 1.0, 4.0, 7.0, 7.0]).is_empty());
}

#[test]
fn a_jump_is_a_rate_of_change() {
    let limits = Limits { rate: Some(2.0), ..Limits::default() };
    assert_eq!(faults(limits, &[1.0, 3.0, 5.5, 5.5]), [(2, vec![Fault::RateOfChange])]);
}

#[test]
fn a_stuck_sensor_is_a_flat_line_for_as_long_as_it_lasts() {
    let limits = Limits { flat_run: Some(3), ..Limits::default() };
    let found = faults(limits, &[1.0, 2.0, 2.0, 2.0, 2.0, 3.0]);
    assert_eq!(found, [(3, vec![Fault::FlatLine]), (4, vec![Fault::FlatLine])]);
}

#[test]
fn a_signal_that_hardly_moves_is_attenuated() {
    let limits = Limits { attenuated: Some((4, 0.5)), ..Limits::default() };
    let found = faults(limits, &[1.0, 2.0, 1.0, 2.0, 1.0, 1.1, 1.0, 1.1]);
    assert_eq!(found, [(7, vec![Fault::AttenuatedSignal])]);
}

#[test]
fn a_reference_gives_range_and_flat_line() {
    let base = fit(&(0..1000).map(|i| (i / 10) as f32).collect::<Vec<_>>());
    let limits = Limits::of(&base.features()[0]);
    assert_eq!(limits.range, Some((0.0, 99.0)));
    assert_eq!(limits.flat_run, Some(40));
    assert_eq!(limits.rate, None);
}

fn fit(values: &[f32]) -> Baseline {
    let values = values.iter().copied().map(Cell::from).collect();
    let source = Source::Input { tensor: "x".into(), index: 0 };
    let column = Column { name: "humidity".into(), source, range: None, categorical: false, values };
    Baseline::fit(&[column], Order::Time).unwrap()
}

/// `(mote, humidity, temperature, labelled)`, in time for each mote; `None` when the fixture is not there.
fn motes() -> Option<Vec<(u32, f32, f32, bool)>> {
    let folder = std::env::var_os("PLIMSOLL_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures"),
        PathBuf::from,
    );
    let Ok(text) = std::fs::read_to_string(folder.join("sensors/multi_hop.csv")) else {
        println!("skipped: {} has no sensors/multi_hop.csv (set PLIMSOLL_FIXTURES)", folder.display());
        return None;
    };
    let rows = text.lines().skip(1).map(|line| {
        let f: Vec<&str> = line.split(',').collect();
        (f[1].parse().unwrap(), f[3].parse().unwrap(), f[4].parse().unwrap(), f[5] == "1")
    });
    Some(rows.collect())
}

#[test]
fn both_events_of_the_motes_are_found_and_the_clean_motes_raise_nothing() {
    let Some(rows) = motes() else { return };
    // What the instrument can measure, and what air can do in the 5 s between two readings.
    let humidity =
        Limits { range: Some((0.0, 100.0)), rate: Some(5.0), flat_run: Some(120), ..Limits::default() };
    let temperature =
        Limits { range: Some((-40.0, 85.0)), rate: Some(1.0), flat_run: Some(120), ..Limits::default() };
    for mote in 1..=4 {
        let (mut h, mut t) = (Checker::new(humidity.clone()), Checker::new(temperature.clone()));
        let readings: Vec<_> = rows.iter().filter(|r| r.0 == mote).collect();
        let alarms: Vec<usize> = readings
            .iter()
            .enumerate()
            .filter(|(_, r)| !h.check(r.1).is_empty() | !t.check(r.2).is_empty())
            .map(|(at, _)| at)
            .collect();
        match readings.iter().position(|r| r.3) {
            None => assert!(alarms.is_empty(), "mote {mote} is clean, but alarms at {alarms:?}"),
            Some(event) => {
                let last = readings.iter().rposition(|r| r.3).unwrap();
                // The way back to normal may end one reading after the label.
                assert!(alarms.iter().all(|at| (event..=last + 1).contains(at)), "mote {mote}: {alarms:?}");
                let delay = alarms.first().map(|first| first - event);
                println!("mote {mote}: event of {} rows, seen after {delay:?} readings", last - event + 1);
                assert!(
                    delay.is_some_and(|d| d <= 6),
                    "mote {mote}: seen after {delay:?} readings, 30 s are allowed"
                );
            }
        }
    }
}

#[test]
fn drift_of_the_motes_stays_silent_and_says_that_the_readings_are_too_alike() {
    let Some(rows) = motes() else { return };
    for mote in 1..=4 {
        let humidity: Vec<f32> = rows.iter().filter(|r| r.0 == mote).map(|r| r.1).collect();
        let (reference, rest) = humidity.split_at(2000);
        let base = fit(reference);
        assert!(base.features()[0].r1 > 0.9, "mote {mote}: r1 {}", base.features()[0].r1);
        let mut judge = Judge::new(&base);
        for hour in rest.chunks(720) {
            let mut window = Window::open(&base, 0);
            for x in hour {
                window.observe(&base, &[Cell::from(*x)]).unwrap();
            }
            let verdict = judge.judge(&base, &window).unwrap().remove(0);
            assert!(matches!(verdict.standing, Standing::Gathering { .. }), "mote {mote}: {verdict}");
            assert!(verdict.to_string().contains("more values are needed"), "{verdict}");
        }
    }
}
