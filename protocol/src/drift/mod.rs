//! Drift: has what a model sees, or answers, moved away from what it was trained on?
//!
//! Everything rests on **fixed bins**. The signed bundle carries a [`Baseline`]: for each feature the edges of its
//! bins and how the reference data filled them. A device folds every input and output into a [`Window`] of counts
//! over exactly these bins. Counts merge by integer addition, so the sum over a day, a cohort or a fleet is exact,
//! the same in every order and on every run; a gate can rest on it. (Quantile sketches are smaller in theory, but
//! randomised ones give another p-value for the same data each time.)
//!
//! From counts to a decision, in the order of the files:
//!
//! - [`bins`]: which cell a value falls into; cells for what is not a value at all
//! - [`baseline`] and [`fit`]: the reference, as a strict document, and how it is made from rows
//! - [`signal`]: the few numbers by which an image or a vector of class scores is measured
//! - [`window`]: counting, merging, splitting into reports
//! - [`quality`]: values that are not as they should be, and requests refused for them
//! - [`truth`]: labels that come late, and how the answers compare with them
//! - [`compare`]: how far two sets of counts are apart (PSI, Jensen-Shannon, Hellinger, …)
//! - [`evidence`]: whether that could be chance (e-values, Shiryaev-Roberts, e-BH, canaries of a small fleet)
//! - [`verdict`]: both together, in words
//! - [`attribution`]: whether it is the world, the version, or single devices
//! - [`sensor`]: faults that must be seen at once, reading by reading
//!
//! Deliberately absent: p-values on the raw data, sketches, and any statistic whose bins move with the data it
//! judges.

pub mod attribution;
pub mod baseline;
pub mod bins;
pub mod compare;
pub mod evidence;
pub mod fit;
pub mod quality;
pub mod sensor;
pub mod signal;
pub mod truth;
pub mod verdict;
pub mod window;

pub use baseline::{
    Baseline, BaselineError, FeatureBaseline, MAX_BASELINE_BYTES, MAX_FEATURES, Schema, Source,
};
pub use bins::{Bins, Cell};
pub use compare::{CompareError, Comparison};
pub use fit::{Column, FitError, Order};
pub use quality::{ByRule, Quality};
pub use truth::Truth;
pub use verdict::{Judge, Shift, Standing, Verdict};
pub use window::{FeatureCounts, Served, Window, WindowError, WindowPolicy};
