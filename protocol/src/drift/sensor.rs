//! Faults that must be seen at once, reading by reading.
//!
//! Drift needs hundreds of independent samples; a jammed or jumping sensor needs none. The five checks have the names
//! of QARTOD, the ocean observers' standard: gross range, spike, rate of change, flat line, attenuated signal. Their
//! limits are the sensor's: stated by who knows it, except that range and flat line can be read off a reference.
//! There are no defaults, because there is no number that suits every sensor.

use serde::{Deserialize, Serialize};

use super::baseline::FeatureBaseline;

/// A flat line is this many times longer than any in the reference. Runs of a healthy, coarse sensor are short and
/// their lengths fall off geometrically; four times the longest of thousands is not met by chance.
const FLAT_FACTOR: u32 = 4;
/// Shortest flat line that is a fault, for references without order and sensors that never repeat.
const FLAT_LEAST: u32 = 30;

/// Limits of one sensor, in its own unit. What is `None` is not checked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Gross range: outside lies no reading that this sensor can make.
    pub range: Option<(f32, f32)>,
    /// Spike: largest distance of a reading from the middle between its neighbours.
    pub spike: Option<f32>,
    /// Rate of change: largest difference of two readings that follow each other.
    pub rate: Option<f32>,
    /// Flat line: so many equal readings in a row are a stuck sensor.
    pub flat_run: Option<u32>,
    /// Attenuated signal: within so many readings, highest and lowest differ by at least so much.
    pub attenuated: Option<(u32, f32)>,
}

impl Limits {
    /// What a reference tells by itself: its valid range and how long it stays flat. A categorical feature repeats
    /// itself rightly and has no flat line.
    pub fn of(feature: &FeatureBaseline) -> Self {
        let numeric = feature.bins.position(0).is_some();
        let flat = feature.longest_flat_run.saturating_mul(FLAT_FACTOR).max(FLAT_LEAST);
        Self { range: Some(feature.range), flat_run: numeric.then_some(flat), ..Self::default() }
    }
}

/// What is wrong with a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Outside what the sensor can measure, or not a number.
    GrossRange,
    /// The reading before this one stands alone.
    Spike,
    /// Further from the last reading than the thing measured can move.
    RateOfChange,
    /// The same reading for too long.
    FlatLine,
    /// Hardly moves at all.
    AttenuatedSignal,
}

impl Fault {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GrossRange => "outside the range that this sensor can measure",
            Self::Spike => "one reading far from both its neighbours",
            Self::RateOfChange => "changes faster than the thing it measures can",
            Self::FlatLine => "stuck: the same reading for too long",
            Self::AttenuatedSignal => "hardly moves: the signal is attenuated",
        }
    }
}

/// The faults of one reading; usually none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults(u8);

impl Faults {
    const ALL: [Fault; 5] =
        [Fault::GrossRange, Fault::Spike, Fault::RateOfChange, Fault::FlatLine, Fault::AttenuatedSignal];

    fn add(&mut self, fault: Fault, holds: bool) {
        self.0 |= u8::from(holds) << fault as u8;
    }
    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// Whether this one is among them.
    pub const fn has(self, fault: Fault) -> bool {
        self.0 >> fault as u8 & 1 == 1
    }
    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        Self::ALL.into_iter().filter(move |fault| self.has(*fault))
    }
}

/// The last readings of one sensor: a few numbers, whatever the limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Checker {
    limits: Limits,
    last: Option<f32>,
    before: Option<f32>,
    run: u32,
    /// Readings, lowest and highest of the span under way.
    span: (u32, f32, f32),
}

impl Checker {
    /// Has seen nothing yet.
    pub const fn new(limits: Limits) -> Self {
        Self { limits, last: None, before: None, run: 0, span: NO_SPAN }
    }

    /// Takes the next reading. A reading outside the gross range is told as that alone and not remembered, so that it
    /// does not make its good neighbour a jump. A spike is known one reading later; an attenuated signal at the end
    /// of each span.
    pub fn check(&mut self, x: f32) -> Faults {
        let mut faults = Faults::default();
        let outside = self.limits.range.is_some_and(|(low, high)| x < low || x > high);
        if outside || !x.is_finite() {
            faults.add(Fault::GrossRange, true);
            return faults;
        }
        if let Some(last) = self.last {
            faults.add(Fault::RateOfChange, self.limits.rate.is_some_and(|most| (x - last).abs() > most));
            if let (Some(before), Some(most)) = (self.before, self.limits.spike) {
                // Beyond both neighbours: else the neighbours of a spike would be spikes themselves.
                let alone = (last - before) * (last - x) > 0.0;
                faults.add(Fault::Spike, alone && (last - (before + x) / 2.0).abs() > most);
            }
        }
        self.run = if self.last == Some(x) { self.run.saturating_add(1) } else { 1 };
        faults.add(Fault::FlatLine, self.limits.flat_run.is_some_and(|most| self.run >= most));
        if let Some((readings, least)) = self.limits.attenuated {
            let (n, low, high) = self.span;
            self.span = (n + 1, low.min(x), high.max(x));
            if n + 1 >= readings {
                faults.add(Fault::AttenuatedSignal, self.span.2 - self.span.1 < least);
                self.span = NO_SPAN;
            }
        }
        self.before = self.last.replace(x);
        faults
    }
}

const NO_SPAN: (u32, f32, f32) = (0, f32::INFINITY, f32::NEG_INFINITY);

#[cfg(test)]
mod tests;
