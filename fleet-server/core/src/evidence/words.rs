//! The words and the picture of a comparison.

use plimsoll_protocol::api::DeviceOutputs;
use plimsoll_protocol::drift::Bins;

use super::scale::Measured;
use super::{Compared, Side};

/// Names in a sentence.
pub(super) const NAMED: usize = 4;
/// A difference that two decimals hardly show.
const UNCHANGED: f64 = 0.015;

pub(super) fn listed(compared: &Compared) -> DeviceOutputs {
    let Compared { device, before, after, .. } = compared;
    DeviceOutputs {
        device: device.clone(),
        before_readings: before.n,
        before: before.mean(),
        after_readings: after.n,
        after: after.mean(),
    }
}

/// Shares of the bins over the canaries, in steps of 1/10,000, which is finer than a picture.
pub(super) fn bars(canaries: &[&Compared]) -> Vec<(String, f64, f64)> {
    let bins = Bins::unit();
    let total = |side: fn(&Compared) -> &Side| canaries.iter().map(|c| side(c).n).sum::<u64>().max(1) as f64;
    let (of_before, of_after) = (total(|c| &c.before), total(|c| &c.after));
    let count = |side: &Side, cell: usize| side.cells.get(cell).copied().unwrap_or(0);
    let round = |share: f64| (share * 1e4).round() / 1e4;
    let shares = (0..bins.value_cells()).map(|cell| {
        let before: u64 = canaries.iter().map(|c| count(&c.before, cell)).sum();
        let after: u64 = canaries.iter().map(|c| count(&c.after, cell)).sum();
        (bins.label(cell), round(before as f64 / of_before), round(after as f64 / of_after))
    });
    let last = bins.value_cells().saturating_sub(1);
    let is_drawn = |at: usize, bar: &(String, f64, f64)| bar.1 + bar.2 > 0.0 || (at != 0 && at != last);
    if canaries.is_empty() {
        return Vec::new();
    }
    shares.enumerate().filter(|(at, bar)| is_drawn(*at, bar)).map(|(_, bar)| bar).collect()
}

/// `confidence on camera-4 and camera-6 fell from 0.97 to 0.23 (212 readings each before, 95 since)`
pub(super) fn told(canaries: &[&Compared], m: &Measured) -> String {
    let each = |side: fn(&Compared) -> &Side| {
        canaries.iter().map(|c| side(c).n).sum::<u64>() / (canaries.len() as u64).max(1)
    };
    let verb = match m.fall {
        fall if fall > UNCHANGED => "fell",
        fall if fall < -UNCHANGED => "rose",
        _ => "went",
    };
    let names: Vec<&str> = canaries.iter().map(|c| c.device.as_str()).collect();
    format!(
        "confidence on {} {verb} from {:.2} to {:.2} (mean of {} readings each before, {} since)",
        list(&names),
        m.means.0,
        m.means.1,
        each(|c| &c.before),
        each(|c| &c.after),
    )
}

pub(super) fn told_of_others(n: usize, all: usize, means: Option<(f64, f64)>) -> String {
    let others = if n == 1 { "the other device".to_owned() } else { format!("the {n} others") };
    match means {
        None if all > 0 => "the others have too few readings to compare".to_owned(),
        None => "there are no others to compare with".to_owned(),
        Some((before, after)) if (before - after).abs() <= UNCHANGED => format!("{others} did not change"),
        Some((before, after)) => format!("{others} went from {before:.2} to {after:.2}"),
    }
}

/// `camera-4 and camera-6`; of many the first and how many more.
fn list(names: &[&str]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let head = names.get(..names.len().min(NAMED)).unwrap_or_default();
    match (head.split_last(), more) {
        (None, _) => "no device".to_owned(),
        (Some((last, [])), 0) => (*last).to_owned(),
        (Some((last, rest)), 0) => format!("{} and {last}", rest.join(", ")),
        (Some(_), more) => format!("{} and {more} more", head.join(", ")),
    }
}

/// A power of ten that the chance lies below.
pub(super) fn odds(chance: f64) -> String {
    let powers = ["1,000,000", "100,000", "10,000", "1,000", "100", "10"];
    let limit = |at: usize| 10_f64.powi(at as i32 - 6);
    let found = powers.iter().enumerate().find(|(at, _)| chance < limit(*at));
    found.map_or_else(|| "not small".to_owned(), |(_, text)| format!("below 1 in {text}"))
}
