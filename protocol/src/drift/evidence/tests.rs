//! Golden values, the defining property (mean at most 1 when nothing changed) by exact enumeration and by
//! simulation with fixed seeds, and power where power is claimed.

use super::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

fn near(value: f64, expected: f64, within: f64) {
    assert!((value - expected).abs() <= within, "{value} is not {expected} +- {within}");
}

fn draw(rng: &mut StdRng, shares: &[f64], n: u64) -> Vec<u64> {
    let mut counts = vec![0; shares.len()];
    for _ in 0..n {
        let mut u: f64 = rng.random_range(0.0..1.0);
        let at = shares.iter().position(|p| {
            u -= p;
            u < 0.0
        });
        counts[at.unwrap_or(shares.len() - 1)] += 1;
    }
    counts
}

#[test]
fn a_uniform_prior_on_a_fair_coin_gives_the_golden_values() {
    let e = |counts: [f64; 2]| ln_e_dirichlet(&counts, &[0.5, 0.5], &[1.0, 1.0]).exp();
    near(e([8.0, 2.0]), 2.068_687, 5e-7);
    near(e([10.0, 0.0]), 93.090_909, 5e-7);
}

#[test]
fn the_mean_over_every_outcome_is_one() {
    // All counts of ten throws with three sides, weighted by their probability.
    let (p, alpha, n) = ([0.5, 0.3, 0.2], [5.0, 3.0, 2.0], 10u64);
    let f = Factorials::new(n);
    let mut mean = 0.0;
    for a in 0..=n {
        for b in 0..=n - a {
            let x = [a as f64, b as f64, (n - a - b) as f64];
            let ln_p = f.ln(n) - f.ln(a) - f.ln(b) - f.ln(n - a - b)
                + x.iter().zip(p).map(|(x, p): (&f64, f64)| x * p.ln()).sum::<f64>();
            mean += (ln_p + ln_e_dirichlet(&x, &p, &alpha)).exp();
        }
    }
    near(mean, 1.0, 1e-9);
}

#[test]
fn the_mean_over_every_split_of_a_table_is_one() {
    // Given the margins: 9 left, 7 right, 6 in the first sample.
    let f = Factorials::new(16);
    let mean: f64 = (0..=6u64)
        .map(|k| {
            let ln_p = f.ln_choose(9, k) + f.ln_choose(7, 6 - k) - f.ln_choose(16, 6);
            (ln_p + ln_e_table((k, 9 - k), (6 - k, 1 + k), &f)).exp()
        })
        .sum();
    near(mean, 1.0, 1e-9);
}

#[test]
fn quiet_windows_rarely_look_like_drift_even_with_a_small_reference() {
    let mut rng = StdRng::seed_from_u64(11);
    let truth = [0.1; 10];
    let (mut alarms, mut mean) = (0, 0.0);
    for _ in 0..1000 {
        let reference = draw(&mut rng, &truth, 1000);
        let ln_e = ln_e_window(&reference, &draw(&mut rng, &truth, 500), 500.0);
        mean += ln_e.exp() / 1000.0;
        alarms += u32::from(ln_e >= 100f64.ln());
    }
    assert!(mean <= 1.0, "mean e-value {mean}");
    assert!(alarms <= 10, "{alarms} of 1000 reach 100, at most 10 may");
}

#[test]
fn the_mixture_has_the_power_that_a_uniform_prior_lacks() {
    // Fifteen cells, a slight shift, a thousand samples: what a device meets in the field.
    let p = [1.0 / 15.0; 15];
    let q: Vec<f64> = (0..15).map(|i| (1.0 + 0.018 * (f64::from(i) - 7.0)) / 15.0).collect();
    let mut rng = StdRng::seed_from_u64(5);
    let (mut uniform, mut mixture) = (0.0, 0.0);
    for _ in 0..200 {
        let counts: Vec<f64> = draw(&mut rng, &q, 1000).iter().map(|c| *c as f64).collect();
        uniform += ln_e_dirichlet(&counts, &p, &[1.0; 15]) / 200.0;
        let each = CONCENTRATIONS.map(|k| ln_e_dirichlet(&counts, &p, &[k / 15.0; 15]));
        mixture += ln_mean(&each) / 200.0;
    }
    assert!(mixture > uniform + 10.0, "mixture {mixture}, uniform {uniform}");
    assert!(uniform < 0.0, "{uniform}");
}

#[test]
fn evidence_of_a_plain_shift_grows_and_tempering_only_weakens_it() {
    let (p, q) = ([1000u64; 10], [160u64, 140, 120, 110, 100, 90, 80, 70, 70, 60]);
    let full = ln_e_window(&p, &q, 1000.0);
    let slow = ln_e_window(&p, &q, 10.0);
    let small_reference = ln_e_window(&[100; 10], &q, 1000.0);
    assert!(full > THRESHOLD.ln(), "one window of 1,000 at PSI 0.1 is proof: {full}");
    assert!(
        (5.0..full - 5.0).contains(&small_reference),
        "a reference of 1,000 is a sample too: {small_reference}"
    );
    assert!(slow < 1.0, "ten independent samples prove nothing: {slow}");
    assert_eq!(ln_e_window(&p, &[0; 10], 0.0), 0.0);
}

#[test]
fn shiryaev_roberts_forgets_the_quiet_past() {
    let mut m = ShiryaevRoberts::default();
    for _ in 0..10_000 {
        m.add(-3.0);
    }
    assert!(m.value() < 0.06, "{}", m.value());
    for _ in 0..4 {
        m.add(5.0);
    }
    assert!(m.value() > 4e8, "four windows of e^5 alarm at once: {}", m.value());
    m.add(1e6);
    assert!(m.value().is_finite());
    assert_eq!(serde_json::from_str::<ShiryaevRoberts>(&serde_json::to_string(&m).unwrap()).unwrap(), m);
}

#[test]
fn shiryaev_roberts_keeps_its_average_run_length() {
    // Threshold 200: over 60,000 quiet windows at most 300 alarms are allowed; each restarts the statistic.
    let mut rng = StdRng::seed_from_u64(17);
    let shares = [0.25; 4];
    let (mut m, mut alarms) = (ShiryaevRoberts::default(), 0);
    for _ in 0..60_000 {
        let counts: Vec<f64> = draw(&mut rng, &shares, 20).iter().map(|c| *c as f64).collect();
        m.add(ln_e_dirichlet(&counts, &shares, &[7.5; 4]));
        if m.value() >= 200.0 {
            alarms += 1;
            m = ShiryaevRoberts::default();
        }
    }
    assert!(alarms <= 300, "{alarms} alarms");
}

#[test]
fn e_bh_rejects_what_stands_out_and_nothing_else() {
    let ln = |e: f64| e.ln();
    // m = 4 at 5 %: one alone needs 80, two need 40 each.
    assert_eq!(e_bh(&[ln(79.0), 0.0, 0.0, 0.0], 0.05), Vec::<usize>::new());
    assert_eq!(e_bh(&[0.0, ln(80.0), 0.0, 0.0], 0.05), [1]);
    assert_eq!(e_bh(&[ln(41.0), 0.0, ln(60.0), 0.0], 0.05), [2, 0]);
    assert_eq!(e_bh(&[], 0.05), Vec::<usize>::new());
}

#[test]
fn two_samples_of_one_distribution_rarely_differ_and_two_of_two_do() {
    let mut rng = StdRng::seed_from_u64(23);
    let (p, q) = ([0.1, 0.2, 0.3, 0.2, 0.1, 0.1], [0.3, 0.3, 0.2, 0.1, 0.05, 0.05]);
    let (mut mean, mut found) = (0.0, 0);
    for _ in 0..2000 {
        let before = draw(&mut rng, &p, 60);
        mean += ln_e_two_samples(&before, &draw(&mut rng, &p, 40), 1.0).exp() / 2000.0;
        let (before, after) = (draw(&mut rng, &p, 150), draw(&mut rng, &q, 150));
        found += u32::from(ln_e_two_samples(&before, &after, 1.0) >= 100f64.ln());
    }
    assert!(mean <= 1.1, "mean e-value {mean}");
    assert!(found > 1500, "found {found} of 2000 with 150 against 150 samples");
}

fn device(rng: &mut StdRng, before: &[f64], after: &[f64]) -> BeforeAfter {
    BeforeAfter { statistics: vec![(draw(rng, before, 120), draw(rng, after, 120))], temper: 1.0 }
}

#[test]
fn two_canaries_that_changed_stop_a_version_unless_the_controls_changed_too() {
    let mut rng = StdRng::seed_from_u64(29);
    let (sure, unsure) = ([0.02, 0.03, 0.05, 0.1, 0.8], [0.15, 0.2, 0.25, 0.2, 0.2]);
    let bad = [device(&mut rng, &sure, &unsure), device(&mut rng, &sure, &unsure)];
    let quiet: Vec<_> = (0..4).map(|_| device(&mut rng, &sure, &sure)).collect();
    let moved: Vec<_> = (0..4).map(|_| device(&mut rng, &sure, &unsure)).collect();

    let verdict = small_fleet(&bad, &quiet, 0.99);
    assert!(verdict.canaries_changed && !verdict.vetoed, "{verdict:?}");
    let verdict = small_fleet(&bad, &moved, 0.99);
    assert!(!verdict.canaries_changed && verdict.vetoed, "{verdict:?}");
    let good = [device(&mut rng, &sure, &sure), device(&mut rng, &sure, &sure)];
    assert!(!small_fleet(&good, &quiet, 0.99).canaries_changed);
    assert!(!small_fleet(&[], &[], 0.99).canaries_changed, "no canary is no evidence");
}

#[test]
fn good_versions_are_falsely_stopped_less_often_than_promised() {
    let mut rng = StdRng::seed_from_u64(31);
    let sure = [0.02, 0.03, 0.05, 0.1, 0.8];
    let stopped = (0..500)
        .filter(|_| {
            let canaries = [device(&mut rng, &sure, &sure), device(&mut rng, &sure, &sure)];
            small_fleet(&canaries, &[], 0.99).canaries_changed
        })
        .count();
    assert!(stopped <= 5, "{stopped} of 500 good versions were stopped at 99 %");
}

#[test]
fn absurd_counts_are_thinned_instead_of_counted_for_ever() {
    let huge = [u64::MAX, u64::MAX, 0];
    assert!(ln_e_two_samples(&huge, &huge, 1.0) < 0.1);
    assert!(ln_e_two_samples(&huge, &[0, u64::MAX, u64::MAX], 1.0) > 1000.0);
    let few = ln_e_two_samples(&[500_000, 480_000], &[480_000, 500_000], 1.0);
    assert!(few > 100.0 && few.is_finite(), "{few}");
    assert_eq!(ln_e_two_samples(&[], &[], 1.0), 0.0);
}
