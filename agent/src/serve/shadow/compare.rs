//! Two versions' answers to the same rows: how many differ, and how far numbers lie apart.
//!
//! Where a model answers classes (scores, or a label), a row differs when the class does: scores that move a little
//! are not another answer. Where it answers nothing but numbers, a row differs when it lies more than [`APART`]
//! standard deviations of the running version's own answers away; so a candidate in another unit, or on wrongly scaled
//! inputs, differs, and one that was trained a little longer does not.

use plimsoll_protocol::bundle::{DataType, Manifest, OutputKind, OutputSpec};
use plimsoll_protocol::wire::v1::{Distance, ShadowTotals};
use plimsoll_runtime::{Data, Tensor};

/// Distance in standard deviations from which on a number is another answer. A candidate whose answers are all half a
/// deviation off still explains three quarters of what the running version's vary by (1 - 0.5²); a useful successor is
/// nearer than that.
const APART: f64 = 0.5;
/// Rows from which on the spread of the running version's answers is known well enough: a standard deviation from 30
/// values is right to about 13 % (1 / sqrt(2 x 29)). Rows before are judged when it is.
const WARM_UP: u64 = 30;
/// A version that always answers the same has no spread: a thousandth of what it answers stands for it.
const LEAST_SPREAD: f64 = 1e-3;

/// What is counted.
#[derive(Debug)]
pub struct Comparison {
    pairs: Vec<Pair>,
    /// Whether classes decide; otherwise numbers do.
    by_class: bool,
    rows: u64,
    differ: u64,
    failed: u64,
    /// Rows whose numbers are not judged yet: the mean distance of each pair, in the order of the pairs.
    early: Vec<Vec<f64>>,
}

/// An output that both have.
#[derive(Debug)]
struct Pair {
    at: (usize, usize),
    kind: Kind,
    distance: Apart,
}

#[derive(Debug)]
enum Kind {
    /// Scores of classes along the last axis. Names, where both have them.
    Scores(Option<(Vec<String>, Vec<String>)>),
    /// A label: equal or not.
    Label,
    Numbers,
}

/// Distances of one output, and the spread of the running version's values.
#[derive(Debug, Default)]
struct Apart {
    elements: u64,
    sum: f64,
    max: f64,
    mean: f64,
    squares: f64,
}

impl Comparison {
    /// What two bundles have in common; says why when they cannot be compared.
    pub fn of(current: &Manifest, candidate: &Manifest) -> Result<Self, String> {
        let (old, new) = (&current.version, &candidate.version);
        if current.inputs.len() != candidate.inputs.len() {
            let (has, had) = (candidate.inputs.len(), current.inputs.len());
            return Err(format!("{new} takes {has} inputs, {old} takes {had}"));
        }
        for (old_spec, new_spec) in current.inputs.iter().zip(&candidate.inputs) {
            let fits = old_spec.shape.len() == new_spec.shape.len()
                && old_spec.shape.iter().zip(&new_spec.shape).all(|(a, b)| a == b || *b == -1);
            if old_spec.name != new_spec.name || old_spec.datatype != new_spec.datatype || !fits {
                return Err(format!(
                    "{new} takes {:?} ({} {:?}) where {old} takes {:?} ({} {:?})",
                    new_spec.name,
                    new_spec.datatype.as_str(),
                    new_spec.shape,
                    old_spec.name,
                    old_spec.datatype.as_str(),
                    old_spec.shape
                ));
            }
        }
        let pairs: Vec<Pair> = current
            .outputs
            .iter()
            .enumerate()
            .filter_map(|(at, old_spec)| {
                let other = candidate.outputs.iter().position(|o| o.name == old_spec.name)?;
                let kind = kind(old_spec, candidate.outputs.get(other)?)?;
                Some(Pair { at: (at, other), kind, distance: Apart::default() })
            })
            .collect();
        if pairs.is_empty() {
            return Err(format!("{new} and {old} have no output in common that could be compared"));
        }
        let by_class = pairs.iter().any(|p| !matches!(p.kind, Kind::Numbers));
        Ok(Self { pairs, by_class, rows: 0, differ: 0, failed: 0, early: Vec::new() })
    }

    /// Adds the answers to one request of so many rows.
    pub fn add(&mut self, current: &[Tensor], candidate: &[Tensor], rows: usize) {
        let lengths = current.iter().chain(candidate).map(Tensor::len);
        let rows = if lengths.clone().all(|len| len.is_multiple_of(rows.max(1))) { rows.max(1) } else { 1 };
        for row in 0..rows {
            self.rows += 1;
            let mut class_differs = false;
            let mut away = Vec::with_capacity(self.pairs.len());
            for pair in &mut self.pairs {
                let (Some(old), Some(new)) = (current.get(pair.at.0), candidate.get(pair.at.1)) else {
                    continue;
                };
                let part = |tensor: &Tensor| {
                    let each = tensor.len() / rows;
                    row * each..(row + 1) * each
                };
                class_differs |= pair.kind.differs((old, part(old)), (new, part(new)));
                if !matches!(pair.kind, Kind::Label) {
                    away.push(pair.distance.add((old, part(old)), (new, part(new))));
                }
            }
            if self.by_class {
                self.differ += u64::from(class_differs);
            } else {
                self.judge(away);
            }
        }
    }

    /// The candidate gave no answer to so many rows.
    pub const fn failed(&mut self, rows: usize) {
        self.rows += rows as u64;
        self.differ += rows as u64;
        self.failed += rows as u64;
    }

    /// All together.
    pub fn totals(&self) -> ShadowTotals {
        let early = self.early.iter().filter(|away| self.is_apart(away)).count() as u64;
        ShadowTotals {
            rows: self.rows,
            differ: self.differ + early,
            failed: self.failed,
            distance: self.distance(),
            ..ShadowTotals::default()
        }
    }

    fn judge(&mut self, away: Vec<f64>) {
        self.early.push(away);
        if self.rows - self.failed >= WARM_UP {
            let apart = self.early.iter().filter(|away| self.is_apart(away)).count();
            self.differ += apart as u64;
            self.early.clear();
        }
    }

    fn is_apart(&self, away: &[f64]) -> bool {
        let measured = self.pairs.iter().filter(|p| !matches!(p.kind, Kind::Label));
        // Not finite, in one version only, is as far as can be.
        measured.zip(away).any(|(pair, away)| away.is_nan() || *away > APART * pair.distance.spread())
    }

    fn distance(&self) -> Option<Distance> {
        let measured: Vec<&Apart> =
            self.pairs.iter().map(|p| &p.distance).filter(|d| d.elements > 0).collect();
        if measured.is_empty() {
            return None;
        }
        let elements: u64 = measured.iter().map(|d| d.elements).sum();
        let relative = |d: &&Apart| d.sum / d.elements as f64 / d.spread();
        Some(Distance {
            mean: measured.iter().map(|d| d.sum).sum::<f64>() / elements as f64,
            max: measured.iter().map(|d| d.max).fold(0.0, f64::max),
            relative: measured.iter().map(relative).sum::<f64>() / measured.len() as f64,
        })
    }
}

/// How two outputs of one name are compared; `None` when they are not.
fn kind(old: &OutputSpec, new: &OutputSpec) -> Option<Kind> {
    let is_float = |t: DataType| matches!(t, DataType::Fp16 | DataType::Fp32 | DataType::Fp64);
    let same_row = old.shape.get(1..) == new.shape.get(1..);
    match (old.kind, new.kind) {
        (OutputKind::ClassScores, OutputKind::ClassScores) => {
            let named = !old.labels.is_empty() && !new.labels.is_empty();
            let names = named.then(|| (old.labels.clone(), new.labels.clone()));
            (named || same_row).then_some(Kind::Scores(names))
        }
        _ if !same_row => None,
        _ if is_float(old.datatype) && is_float(new.datatype) => Some(Kind::Numbers),
        (OutputKind::Regression, OutputKind::Regression) if old.datatype != DataType::Bytes => {
            Some(Kind::Numbers)
        }
        _ if is_float(old.datatype) || is_float(new.datatype) => None,
        _ => Some(Kind::Label),
    }
}

/// A tensor and which of its elements belong to the row.
type Part<'a> = (&'a Tensor, std::ops::Range<usize>);

impl Kind {
    fn differs(&self, old: Part<'_>, new: Part<'_>) -> bool {
        match self {
            Self::Numbers => false,
            Self::Label => match (old.0.data(), new.0.data()) {
                (Data::Bytes(a), Data::Bytes(b)) => a.get(old.1) != b.get(new.1),
                _ => old.1.len() != new.1.len() || !old.1.zip(new.1).all(|(a, b)| old.0.at(a) == new.0.at(b)),
            },
            Self::Scores(names) => {
                let (a, b) = (tops(&old), tops(&new));
                match names {
                    None => a != b,
                    Some((olds, news)) => {
                        let name =
                            |names: &[String], at: &Option<usize>| at.and_then(|at| names.get(at).cloned());
                        let pairs = a.iter().zip(&b);
                        a.len() != b.len() || pairs.into_iter().any(|(a, b)| name(olds, a) != name(news, b))
                    }
                }
            }
        }
    }
}

/// The best class at each position along the last axis; none where no score is a number.
fn tops((tensor, part): &Part<'_>) -> Vec<Option<usize>> {
    let classes = tensor.shape().last().copied().unwrap_or(1).max(1);
    let position = |from: usize| {
        let scores = (0..classes).map(|class| (class, tensor.at(from + class)));
        let best = scores.filter(|(_, s)| !s.is_nan()).max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
        best.map(|(class, _)| class)
    };
    part.clone().step_by(classes).map(position).collect()
}

impl Apart {
    /// Adds a row; answers its mean distance, not a number when one version alone gave something infinite or none.
    fn add(&mut self, old: Part<'_>, new: Part<'_>) -> f64 {
        if old.1.len() != new.1.len() {
            return 0.0; // scores of other classes: compared by name
        }
        let (mut sum, count) = (0.0, old.1.len().max(1));
        let mut odd = false;
        for (a, b) in old.1.zip(new.1) {
            let (a, b) = (old.0.at(a), new.0.at(b));
            let distance = if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { (a - b).abs() };
            if !distance.is_finite() {
                odd = true;
                continue;
            }
            sum += distance;
            if a.is_finite() {
                self.elements += 1;
                self.sum += distance;
                self.max = self.max.max(distance);
                // Welford: stable for many values far from zero.
                let delta = a - self.mean;
                self.mean += delta / self.elements as f64;
                self.squares += delta * (a - self.mean);
            }
        }
        if odd { f64::NAN } else { sum / count as f64 }
    }

    /// Standard deviation of what the running version answers.
    fn spread(&self) -> f64 {
        let deviation = (self.squares / self.elements.max(1) as f64).sqrt();
        deviation.max(self.mean.abs() * LEAST_SPREAD).max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests;
