//! Which cell a value falls into.
//!
//! A feature has *value cells*, over which distances are computed, and behind them three *fault cells* for what is
//! not a value: missing, NaN or infinite, of the wrong type. Faults are a finding of their own and never enter a
//! distance, so that a loose cable is not reported as drift.

use serde::{Deserialize, Serialize};

/// Reference bins of a numeric feature, each holding a tenth of the reference. With ten, PSI above 0.1 means
/// something from about 290 samples on (99.9 % point of chance: 28/n); with twenty only from about 460.
pub const NUMERIC_BINS: usize = 10;
/// Bins of a score between 0 and 1 (confidence, entropy), all of one width: 0.05 is as fine as anyone reads it.
pub const UNIT_BINS: usize = 20;
/// Most categories told apart; the others share one cell. With the fault cells a feature stays within 35 counts.
pub const MAX_CATEGORIES: usize = 31;
/// Cells behind the value cells: missing, NaN or infinite, wrong type.
pub const FAULT_CELLS: usize = 3;

/// One value of one feature in one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell {
    /// A number, which may be NaN or infinite. Categories are numbers too (a class index, a code).
    Number(f32),
    /// Nothing was there.
    Missing,
    /// Something was there, but not a number.
    WrongType,
}

impl From<f32> for Cell {
    fn from(value: f32) -> Self {
        Self::Number(value)
    }
}

/// The value cells of a feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum Bins {
    /// Below the first edge, one bin between each two edges (the last includes its upper edge), above the last.
    Numeric {
        /// Strictly rising, finite, 2 to 21 of them.
        edges: Vec<f32>,
    },
    /// One cell a value, and one for every other value.
    Categorical {
        /// Strictly rising, finite, 1 to 31 of them.
        values: Vec<f32>,
    },
}

impl Bins {
    /// Equal bins over 0 to 1.
    pub fn unit() -> Self {
        Self::Numeric { edges: (0..=UNIT_BINS).map(|i| i as f32 / UNIT_BINS as f32).collect() }
    }

    /// Cells over which distances are computed.
    pub fn value_cells(&self) -> usize {
        match self {
            Self::Numeric { edges } => edges.len() + 1,
            Self::Categorical { values } => values.len() + 1,
        }
    }

    /// All cells.
    pub fn cells(&self) -> usize {
        self.value_cells() + FAULT_CELLS
    }

    /// The cell of a value. Branchless over the edges: a count of comparisons, which the compiler turns into a few
    /// vector instructions and no branch predictor can get wrong.
    #[inline]
    pub fn find(&self, cell: Cell) -> usize {
        let x = match cell {
            Cell::Number(x) if x.is_finite() => x,
            Cell::Number(_) => return self.value_cells() + 1,
            Cell::Missing => return self.value_cells(),
            Cell::WrongType => return self.value_cells() + 2,
        };
        match self {
            Self::Numeric { edges } => {
                let (top, lower) = match edges.split_last() {
                    Some((top, lower)) => (*top, lower),
                    None => return 0, // a validated baseline has edges
                };
                let passed: u32 = lower.iter().map(|e| u32::from(x >= *e)).sum();
                passed as usize + usize::from(x > top)
            }
            Self::Categorical { values } => {
                let at: usize = values.iter().map(|v| usize::from(*v < x)).sum();
                if values.get(at) == Some(&x) { at } else { values.len() }
            }
        }
    }

    /// Where a value cell lies on the feature's axis: the middle of a bin, the edge of the open ends. `None` for
    /// categories, which have no axis.
    pub fn position(&self, cell: usize) -> Option<f64> {
        let Self::Numeric { edges } = self else { return None };
        let edge = |i: usize| edges.get(i).map(|e| f64::from(*e));
        match cell {
            0 => edge(0),
            c if c == edges.len() => edge(edges.len() - 1),
            c => Some((edge(c - 1)? + edge(c)?) / 2.0),
        }
    }

    /// A cell in words: `below 0.1`, `0.1 to 0.2`, `7`, `missing`.
    pub fn label(&self, cell: usize) -> String {
        let values = self.value_cells();
        match (cell.checked_sub(values), self) {
            (Some(0), _) => "missing".into(),
            (Some(1), _) => "not a finite number".into(),
            (Some(_), _) => "of the wrong type".into(),
            (None, Self::Numeric { edges }) => {
                match (cell.checked_sub(1).and_then(|i| edges.get(i)), edges.get(cell)) {
                    (None, Some(first)) => format!("below {}", short(*first)),
                    (Some(last), None) => format!("above {}", short(*last)),
                    (Some(low), Some(high)) => format!("{} to {}", short(*low), short(*high)),
                    (None, None) => "no cell".into(),
                }
            }
            (None, Self::Categorical { values }) => values.get(cell).map_or("other".into(), |v| short(*v)),
        }
    }

    /// What makes these bins unusable, if anything does.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let (points, fewest, most) = match self {
            Self::Numeric { edges } => (edges, 2, UNIT_BINS + 1),
            Self::Categorical { values } => (values, 1, MAX_CATEGORIES),
        };
        if !(fewest..=most).contains(&points.len()) {
            return Some("has too few or too many edges or categories");
        }
        let rising = points.windows(2).all(|w| matches!(w, [a, b] if a < b));
        let finite = points.iter().all(|p| p.is_finite());
        (!rising || !finite).then_some("has edges or categories that are not finite and strictly rising")
    }
}

/// At most four significant digits, without a tail of zeros.
pub(crate) fn short(value: f32) -> String {
    let magnitude = if value == 0.0 { 0.0 } else { value.abs().log10().floor() };
    if (-4.0..7.0).contains(&magnitude) {
        let decimals = (3.0 - magnitude).max(0.0) as usize;
        let text = format!("{value:.decimals$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    } else {
        format!("{value:.2e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_the_cell_that_its_edges_say() {
        let bins = Bins::Numeric { edges: vec![0.0, 1.0, 2.5] };
        for (x, cell) in
            [(-0.1, 0), (0.0, 1), (0.99, 1), (1.0, 2), (2.5, 2), (2.6, 3), (f32::MAX, 3), (f32::MIN, 0)]
        {
            assert_eq!(bins.find(x.into()), cell, "{x}");
        }
        assert_eq!(bins.find(Cell::Missing), 4);
        assert_eq!(bins.find(f32::NAN.into()), 5);
        assert_eq!(bins.find(f32::INFINITY.into()), 5);
        assert_eq!(bins.find(Cell::WrongType), 6);
        assert_eq!(bins.cells(), 7);
    }

    #[test]
    fn an_unknown_category_is_other_and_minus_zero_is_zero() {
        let bins = Bins::Categorical { values: vec![0.0, 3.0, 7.0] };
        for (x, cell) in [(0.0, 0), (-0.0, 0), (3.0, 1), (7.0, 2), (5.0, 3), (-1.0, 3), (9.0, 3)] {
            assert_eq!(bins.find(x.into()), cell, "{x}");
        }
    }

    #[test]
    fn cells_are_named_in_words() {
        let bins = Bins::Numeric { edges: vec![0.0, 0.125, 20_000.0] };
        let labels: Vec<_> = (0..bins.cells()).map(|c| bins.label(c)).collect();
        assert_eq!(
            labels,
            [
                "below 0",
                "0 to 0.125",
                "0.125 to 20000",
                "above 20000",
                "missing",
                "not a finite number",
                "of the wrong type"
            ]
        );
        assert_eq!(Bins::Categorical { values: vec![4.0] }.label(1), "other");
    }

    #[test]
    fn positions_lie_in_their_bins() {
        let bins = Bins::unit();
        for cell in 0..bins.value_cells() {
            let x = bins.position(cell).unwrap();
            assert!((0.0..=1.0).contains(&x));
            if (1..=UNIT_BINS).contains(&cell) {
                assert_eq!(bins.find((x as f32).into()), cell);
            }
        }
    }
}
