//! From reference rows to a baseline.

use super::baseline::{Baseline, BaselineError, FeatureBaseline, MAX_R1, Source};
use super::bins::{Bins, Cell, MAX_CATEGORIES, NUMERIC_BINS};
use super::compare::Comparison;

/// Block sizes at which the reference is compared with itself: about a quarter, one and three windows.
const BLOCKS: [usize; 3] = [300, 1000, 3000];
/// Fewest blocks from which a quantile is worth anything.
const FEWEST_BLOCKS: usize = 5;
/// Fewest bins that still describe a distribution; below, the most frequent values are told apart instead.
const FEWEST_BINS: usize = 4;

/// Whether the order of the reference's rows means anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Rows follow each other as a device would see them: autocorrelation, flat runs and blocks are measured.
    Time,
    /// Rows are shuffled, or come from many places (a data set's test split): each counts as independent. Rows
    /// *sorted by class* are this too, but read as time they would look like one endless repetition.
    Unordered,
}

/// The reference values of one feature, a row each.
#[derive(Debug, Clone)]
pub struct Column {
    /// For people and reports.
    pub name: String,
    /// Where the values come from.
    pub source: Source,
    /// Valid range, when the author states one; otherwise the reference's own.
    pub range: Option<(f32, f32)>,
    /// The author says that these are categories, whatever their number.
    pub categorical: bool,
    /// A row each.
    pub values: Vec<Cell>,
}

/// A reference from which no baseline can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FitError {
    /// No finite number in a column.
    #[error("reference column {0:?} has no finite number: leave it out, or mark its input as opaque")]
    Empty(String),
    /// Columns of different lengths.
    #[error("reference column {name:?} has {rows} rows where the first has {expected}")]
    Ragged {
        /// Column.
        name: String,
        /// Its rows.
        rows: usize,
        /// The first column's.
        expected: usize,
    },
    /// What came out is not a valid baseline.
    #[error(transparent)]
    Invalid(#[from] BaselineError),
}

impl Baseline {
    /// Makes the baseline of a model from reference columns. Decides per feature between numeric bins and
    /// categories; sources that bring their own cells (class, confidence, entropy) are not asked.
    pub fn fit(columns: &[Column], order: Order) -> Result<Self, FitError> {
        let expected = columns.first().map_or(0, |c| c.values.len());
        let mut features = Vec::with_capacity(columns.len());
        for column in columns {
            if column.values.len() != expected {
                let (name, rows) = (column.name.clone(), column.values.len());
                return Err(FitError::Ragged { name, rows, expected });
            }
            features.push(fit_one(column, order).ok_or_else(|| FitError::Empty(column.name.clone()))?);
        }
        Ok(Self::new(features)?)
    }
}

fn fit_one(column: &Column, order: Order) -> Option<FeatureBaseline> {
    let series: Vec<f32> = column.values.iter().filter_map(finite).collect();
    let mut sorted = series.clone();
    sorted.sort_by(f32::total_cmp);
    let (low, high) = (*sorted.first()?, *sorted.last()?);
    let bins = match column.source {
        Source::Confidence { .. } | Source::Entropy { .. } => Bins::unit(),
        Source::Class { .. } => categories(&sorted),
        _ if column.categorical => categories(&sorted),
        _ => numeric(&sorted).unwrap_or_else(|| categories(&sorted)),
    };
    let mut counts = vec![0u64; bins.cells()];
    for cell in &column.values {
        if let Some(count) = counts.get_mut(bins.find(*cell)) {
            *count += 1;
        }
    }
    let n = series.len() as f64;
    let mean = series.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = series.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    let in_time = order == Order::Time;
    Some(FeatureBaseline {
        name: column.name.clone(),
        source: column.source.clone(),
        mean: mean as f32,
        std: variance.sqrt() as f32,
        range: column.range.unwrap_or((low, high)),
        longest_flat_run: if in_time { longest_flat_run(&series) } else { 0 },
        r1: if in_time { (lag_1(&series, &bins) as f32).clamp(0.0, MAX_R1) } else { 0.0 },
        block_psi: if in_time { block_psi(&series, &bins) } else { Vec::new() },
        counts,
        bins,
    })
}

/// A finite value; -0.0 becomes 0.0, so that the two are one category.
fn finite(cell: &Cell) -> Option<f32> {
    match cell {
        Cell::Number(x) if x.is_finite() => Some(x + 0.0),
        _ => None,
    }
}

/// Ten bins of equal mass, or fewer where edges fall together (many equal values). `None` when the feature is
/// better told by its values: few distinct ones, or too few bins left.
fn numeric(sorted: &[f32]) -> Option<Bins> {
    let top = sorted.last()?;
    let mut edges: Vec<f32> =
        (0..NUMERIC_BINS).filter_map(|k| sorted.get(k * sorted.len() / NUMERIC_BINS).copied()).collect();
    edges.push(*top);
    let full = edges.len();
    edges.dedup();
    let collapsed = edges.len() < full;
    let distinct = 1 + sorted.windows(2).filter(|w| matches!(w, [a, b] if a != b)).count();
    let keep = !collapsed || (distinct > MAX_CATEGORIES && edges.len() > FEWEST_BINS);
    keep.then_some(Bins::Numeric { edges })
}

/// The most frequent values, in rising order.
fn categories(sorted: &[f32]) -> Bins {
    let mut runs: Vec<(f32, usize)> = Vec::new();
    for x in sorted {
        match runs.last_mut() {
            Some((value, count)) if value == x => *count += 1,
            _ => runs.push((*x, 1)),
        }
    }
    runs.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.total_cmp(&b.0)));
    runs.truncate(MAX_CATEGORIES);
    let mut values: Vec<f32> = runs.into_iter().map(|(value, _)| value).collect();
    values.sort_by(f32::total_cmp);
    Bins::Categorical { values }
}

fn longest_flat_run(series: &[f32]) -> u32 {
    let mut longest = u32::from(!series.is_empty());
    let mut run = longest;
    for pair in series.windows(2) {
        run = if matches!(pair, [a, b] if a == b) { run.saturating_add(1) } else { 1 };
        longest = longest.max(run);
    }
    longest
}

/// Lag-1 autocorrelation. Categories have no distance, so there it is how much more often two neighbours agree
/// than two strangers would (the same number for a two-valued series).
fn lag_1(series: &[f32], bins: &Bins) -> f64 {
    let pairs = series.len().saturating_sub(1);
    if pairs == 0 {
        return 0.0;
    }
    let n = series.len() as f64;
    let (agreement, chance) = match bins {
        Bins::Numeric { .. } => {
            let mean = series.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
            let centred: Vec<f64> = series.iter().map(|x| f64::from(*x) - mean).collect();
            let variance = centred.iter().map(|x| x * x).sum::<f64>();
            if variance == 0.0 {
                return 0.0;
            }
            return centred.iter().zip(centred.iter().skip(1)).map(|(a, b)| a * b).sum::<f64>() / variance;
        }
        Bins::Categorical { .. } => {
            let cells: Vec<usize> = series.iter().map(|x| bins.find(Cell::Number(*x))).collect();
            let equal = cells.iter().zip(cells.iter().skip(1)).filter(|(a, b)| a == b).count();
            let mut counts = vec![0u64; bins.cells()];
            for cell in &cells {
                if let Some(count) = counts.get_mut(*cell) {
                    *count += 1;
                }
            }
            let chance = counts.iter().map(|c| (*c as f64 / n).powi(2)).sum::<f64>();
            (equal as f64 / pairs as f64, chance)
        }
    };
    if chance >= 1.0 { 0.0 } else { (agreement - chance) / (1.0 - chance) }
}

/// PSI of each block of n consecutive rows against all the others: its 99.9 % quantile, which is the largest below
/// a thousand blocks.
fn block_psi(series: &[f32], bins: &Bins) -> Vec<(u32, f32)> {
    let cells: Vec<usize> = series.iter().map(|x| bins.find(Cell::Number(*x))).collect();
    let count = |cells: &[usize]| {
        let mut counts = vec![0u64; bins.value_cells()];
        for cell in cells {
            if let Some(count) = counts.get_mut(*cell) {
                *count += 1;
            }
        }
        counts
    };
    let all = count(&cells);
    let mut quantiles = Vec::new();
    for n in BLOCKS {
        let blocks = cells.chunks_exact(n);
        if blocks.len() < FEWEST_BLOCKS {
            continue;
        }
        let mut scores: Vec<f64> = blocks
            .filter_map(|block| {
                let block = count(block);
                let rest: Vec<u64> = all.iter().zip(&block).map(|(a, b)| a - b).collect();
                Comparison::of(&rest, &block).ok().map(|c| c.psi())
            })
            .collect();
        scores.sort_by(f64::total_cmp);
        let rank = (0.999 * scores.len() as f64).ceil() as usize;
        if let Some(q) = scores.get(rank.saturating_sub(1)) {
            quantiles.push((n as u32, *q as f32));
        }
    }
    quantiles
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    fn column(values: Vec<f32>) -> Column {
        let source = Source::Input { tensor: "x".into(), index: 0 };
        Column {
            name: "x".into(),
            source,
            range: None,
            categorical: false,
            values: values.into_iter().map(Cell::from).collect(),
        }
    }

    fn fit(values: Vec<f32>, order: Order) -> FeatureBaseline {
        Baseline::fit(&[column(values)], order).unwrap().features()[0].clone()
    }

    #[test]
    fn numeric_bins_hold_equal_mass_and_the_open_ends_hold_nothing() {
        let f = fit((0..1000).map(|i| (i * 7 % 1000) as f32).collect(), Order::Unordered);
        assert_eq!(f.counts, [0, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 0, 0, 0, 0]);
        assert_eq!(f.range, (0.0, 999.0));
        assert!((f.mean - 499.5).abs() < 1e-9);
    }

    #[test]
    fn constants_and_few_values_become_categories() {
        let f = fit(vec![3.0; 50], Order::Unordered);
        assert_eq!(f.bins, Bins::Categorical { values: vec![3.0] });
        assert_eq!(f.counts, [50, 0, 0, 0, 0]);
        let f = fit((0..90).map(|i| (i % 3) as f32).collect(), Order::Unordered);
        assert_eq!(f.bins, Bins::Categorical { values: vec![0.0, 1.0, 2.0] });
    }

    #[test]
    fn a_pile_at_zero_keeps_its_numeric_tail() {
        let values = (0..1000).map(|i| if i % 5 < 2 { 0.0 } else { i as f32 }).collect();
        let f = fit(values, Order::Unordered);
        let Bins::Numeric { edges } = &f.bins else { panic!("{:?}", f.bins) };
        assert!(edges.len() >= 7 && edges[0] == 0.0, "{edges:?}");
    }

    #[test]
    fn more_than_31_categories_keep_the_frequent_ones() {
        let mut values: Vec<f32> = (0..40).map(|i| i as f32).collect();
        values.extend([39.0; 10]);
        let mut c = column(values);
        c.categorical = true;
        let f = Baseline::fit(&[c], Order::Unordered).unwrap().features()[0].clone();
        let Bins::Categorical { values } = &f.bins else { panic!("{:?}", f.bins) };
        assert_eq!(values.len(), MAX_CATEGORIES);
        assert_eq!(values.last(), Some(&39.0));
        assert_eq!(f.values().last(), Some(&9)); // the nine that share "other"
    }

    #[test]
    fn faults_are_counted_apart_and_leave_the_bins_alone() {
        let mut c = column((0..100).map(|i| i as f32).collect());
        c.values.extend([Cell::Missing, Cell::Number(f32::NAN), Cell::WrongType, Cell::WrongType]);
        let f = Baseline::fit(&[c], Order::Unordered).unwrap().features()[0].clone();
        assert_eq!(f.counts[f.bins.value_cells()..], [1, 1, 2]);
        assert_eq!(f.values().iter().sum::<u64>(), 100);
    }

    #[test]
    fn slow_data_are_known_as_slow_only_when_their_order_is_time() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut x = 0.0f32;
        let walk: Vec<f32> = (0..20_000)
            .map(|_| {
                x = 0.95 * x + rng.random_range(-1.0..1.0);
                x
            })
            .collect();
        let slow = fit(walk.clone(), Order::Time);
        assert!((slow.r1 - 0.95).abs() < 0.02, "{}", slow.r1);
        assert!((slow.n_eff(1000) - 25.6).abs() < 12.0);
        assert_eq!(slow.block_psi.len(), 3);
        assert!(
            slow.block_psi[0].1 > slow.block_psi[2].1,
            "a longer block wanders less: {:?}",
            slow.block_psi
        );
        let shuffled = fit(walk, Order::Unordered);
        assert_eq!((shuffled.r1, shuffled.longest_flat_run, shuffled.block_psi.len()), (0.0, 0, 0));
    }

    #[test]
    fn a_column_without_a_number_and_ragged_columns_are_refused_by_name() {
        let empty = column(vec![f32::NAN]);
        assert_eq!(Baseline::fit(&[empty], Order::Time), Err(FitError::Empty("x".into())));
        let (a, mut b) = (column(vec![1.0, 2.0]), column(vec![1.0]));
        b.name = "b".into();
        let error = Baseline::fit(&[a, b], Order::Time).unwrap_err();
        assert_eq!(error, FitError::Ragged { name: "b".into(), rows: 1, expected: 2 });
    }
}
