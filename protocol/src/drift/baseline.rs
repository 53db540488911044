//! The drift reference of a model version, as it lies in the signed bundle.
//!
//! Strict, like everything that is signed: an unknown field, an unknown format or a contradiction refuses the
//! whole document. A [`Baseline`] that exists is valid; there is no other way to get one than [`Baseline::parse`]
//! and [`Baseline::fit`](super::fit).

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::bins::{Bins, FAULT_CELLS};

/// The only format there is.
pub const FORMAT: u32 = 1;
/// Most features of a baseline: 256 x ~70 bytes of counts are six reports a window.
pub const MAX_FEATURES: usize = 256;
/// Largest baseline document: 256 features of ~1.2 KB each, and room for names.
pub const MAX_BASELINE_BYTES: usize = 512 * 1024;
/// Longest feature name.
pub const MAX_FEATURE_NAME: usize = 120;

/// A baseline that was not accepted, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaselineError {
    /// Longer than [`MAX_BASELINE_BYTES`].
    #[error("the drift baseline has {0} bytes; at most {MAX_BASELINE_BYTES} are read")]
    TooBig(usize),
    /// Not JSON of this schema, or it contradicts itself.
    #[error("the drift baseline does not parse: {0}")]
    Parse(String),
}

/// Where a feature's values come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// One column of a tabular input.
    Input {
        /// Tensor.
        tensor: String,
        /// Position in the row.
        index: u32,
    },
    /// A pseudo-feature of an image.
    Image {
        /// Tensor.
        tensor: String,
        /// Which one.
        statistic: ImageStatistic,
    },
    /// The class with the highest score; always categorical.
    Class {
        /// Tensor.
        tensor: String,
    },
    /// The highest class probability, 20 equal bins.
    Confidence {
        /// Tensor.
        tensor: String,
    },
    /// Entropy of the class probabilities over its maximum, 20 equal bins.
    Entropy {
        /// Tensor.
        tensor: String,
    },
    /// One number of a regression output.
    Output {
        /// Tensor.
        tensor: String,
        /// Position in the row.
        index: u32,
    },
    /// Euclidean length of an embedding.
    Norm {
        /// Tensor.
        tensor: String,
    },
}

impl Source {
    /// Whether this is something the model answered, rather than something it was asked.
    pub const fn is_output(&self) -> bool {
        !matches!(self, Self::Input { .. } | Self::Image { .. })
    }
}

/// Pseudo-features of an image; [`super::signal`] computes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageStatistic {
    /// Brightness.
    Mean,
    /// Standard deviation of the pixels.
    Contrast,
    /// Root mean square of the pixels.
    Norm,
    /// Variance of the Laplacian: falls when a lens blurs.
    Sharpness,
    /// One of the fixed random projections.
    Projection(u8),
}

/// One feature of the reference. Numbers are f32: seven digits are more than any reference earns, and they survive
/// JSON exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureBaseline {
    /// For people and reports: `humidity`, `image sharpness`, `confidence`.
    pub name: String,
    /// Where its values come from.
    pub source: Source,
    /// Its cells.
    pub bins: Bins,
    /// How the reference filled all cells, faults included.
    pub counts: Vec<u64>,
    /// Mean of the reference's finite values.
    pub mean: f32,
    /// Standard deviation of the reference's finite values.
    pub std: f32,
    /// Smallest and largest valid value: of the reference, or as the author states.
    pub range: (f32, f32),
    /// Longest run of one unchanged value in the reference; 0 when its rows have no order.
    pub longest_flat_run: u32,
    /// Lag-1 autocorrelation, 0 when the reference's rows have no order: slow data carry fewer independent samples
    /// than rows.
    pub r1: f32,
    /// `(n, q)`: in the reference itself, blocks of n rows reach this PSI against the rest (99.9 % quantile).
    /// A feature that wanders even when all is well says so here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub block_psi: Vec<(u32, f32)>,
}

impl FeatureBaseline {
    /// Reference counts of the value cells.
    pub fn values(&self) -> &[u64] {
        self.counts.get(..self.bins.value_cells()).unwrap_or(&[])
    }

    /// How many independent samples `n` consecutive values are worth: n (1 - r1) / (1 + r1).
    pub fn n_eff(&self, n: u64) -> f64 {
        let r1 = f64::from(self.r1);
        n as f64 * (1.0 - r1) / (1.0 + r1)
    }

    fn fault(&self) -> Option<&'static str> {
        if self.name.is_empty() || self.name.len() > MAX_FEATURE_NAME {
            return Some("must have a name of 1 to 120 bytes");
        }
        if let Some(fault) = self.bins.fault() {
            return Some(fault);
        }
        let finite = self.mean.is_finite()
            && self.std.is_finite()
            && self.range.0.is_finite()
            && self.range.1.is_finite();
        if !finite || self.std < 0.0 || self.range.0 > self.range.1 {
            return Some("has a mean, deviation or range that is not finite and in order");
        }
        if !(0.0..=MAX_R1).contains(&self.r1) {
            return Some("has an autocorrelation outside 0 to 0.9999");
        }
        if self.block_psi.iter().any(|(n, q)| *n == 0 || !(q.is_finite() && *q >= 0.0)) {
            return Some("has a block quantile that is not a finite number");
        }
        if self.counts.len() != self.bins.value_cells() + FAULT_CELLS {
            return Some("has another number of counts than cells");
        }
        // A sum of counts must not overflow: 2^53 rows are more than anyone has.
        let total = self.counts.iter().try_fold(0u64, |sum, c| sum.checked_add(*c));
        let rows = total.filter(|t| *t < 1 << 53);
        match rows {
            None => Some("has counts that overflow"),
            Some(_) if self.values().iter().sum::<u64>() == 0 => Some("has no reference value at all"),
            Some(_) => None,
        }
    }
}

/// Largest lag-1 autocorrelation that is believed: 0.9999 makes 20,000 rows one independent sample, which is
/// slower than any window can wait for. Slow motes of the sensor data have 0.97 to 0.9995.
pub const MAX_R1: f32 = 0.9999;

/// Fingerprint of the cells: counts with another schema are never mixed. 64 bits are plenty against accidents, and
/// nothing is gained by a forged one: windows are filed under the digest of a signed bundle.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schema([u8; 8]);

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "schema:{self}")
    }
}
impl TryFrom<String> for Schema {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0; 8];
        hex::decode_to_slice(&text, &mut bytes)
            .map_err(|_| "a drift schema is 16 hexadecimal digits".to_owned())?;
        Ok(Self(bytes))
    }
}
impl From<Schema> for String {
    fn from(schema: Schema) -> String {
        schema.to_string()
    }
}

/// The reference of one model version: valid by construction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct Baseline {
    features: Vec<FeatureBaseline>,
    schema: Schema,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    features: Vec<FeatureBaseline>,
}

impl Baseline {
    /// Parses the file that a manifest names.
    pub fn parse(bytes: &[u8]) -> Result<Self, BaselineError> {
        if bytes.len() > MAX_BASELINE_BYTES {
            return Err(BaselineError::TooBig(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(|e| BaselineError::Parse(e.to_string()))
    }

    /// The file that a manifest names.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("validated numbers are finite and every key is a string")
    }

    /// Validates features, in the order in which rows will carry them.
    pub fn new(features: Vec<FeatureBaseline>) -> Result<Self, BaselineError> {
        if features.is_empty() || features.len() > MAX_FEATURES {
            let n = features.len();
            return Err(BaselineError::Parse(format!(
                "it has {n} features; 1 to {MAX_FEATURES} are possible"
            )));
        }
        for (at, feature) in features.iter().enumerate() {
            let refuse = |why: &str| {
                let name: String = feature.name.chars().take(80).collect();
                Err(BaselineError::Parse(format!("feature {at} {name:?} {why}")))
            };
            if let Some(fault) = feature.fault() {
                return refuse(fault);
            }
            if features.iter().take(at).any(|other| other.name == feature.name) {
                return refuse("is listed twice");
            }
        }
        let schema = schema_of(&features);
        Ok(Self { features, schema })
    }

    /// In the order of a row.
    pub fn features(&self) -> &[FeatureBaseline] {
        &self.features
    }

    /// Fingerprint of the cells.
    pub const fn schema(&self) -> Schema {
        self.schema
    }
}

/// Over names, mode and the exact bits of every edge; counts and means may be refined without a new schema.
fn schema_of(features: &[FeatureBaseline]) -> Schema {
    let mut hash = Sha256::new();
    for feature in features {
        let (mode, points) = match &feature.bins {
            Bins::Numeric { edges } => (b'n', edges),
            Bins::Categorical { values } => (b'c', values),
        };
        hash.update((feature.name.len() as u64).to_le_bytes());
        hash.update(feature.name.as_bytes());
        hash.update([mode, points.len() as u8]); // at most 31 points
        for point in points {
            hash.update(point.to_bits().to_le_bytes());
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut schema = [0; 8];
    schema.copy_from_slice(&digest[..8]);
    Schema(schema)
}

impl TryFrom<Document> for Baseline {
    type Error = BaselineError;
    fn try_from(document: Document) -> Result<Self, BaselineError> {
        if document.format != FORMAT {
            let format = document.format;
            return Err(BaselineError::Parse(format!(
                "it has format {format}; this version reads format {FORMAT}: update Plimsoll on this machine"
            )));
        }
        Self::new(document.features)
    }
}
impl From<Baseline> for Document {
    fn from(baseline: Baseline) -> Self {
        Self { format: FORMAT, features: baseline.features }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::{Cell, Column, Order};
    use serde_json::{Value, json};

    fn good() -> Baseline {
        let values = (0..1000).map(|i| Cell::from((i * 37 % 1000) as f32 / 10.0)).collect();
        let column = |name: &str, values| Column {
            name: name.into(),
            source: Source::Input { tensor: "x".into(), index: 0 },
            range: None,
            categorical: false,
            values,
        };
        let few = (0..1000).map(|i| Cell::from((i % 4) as f32)).collect();
        Baseline::fit(&[column("humidity", values), column("gate", few)], Order::Unordered).unwrap()
    }

    fn check(change: impl FnOnce(&mut Value), expect: &str) {
        let mut value = serde_json::to_value(good()).unwrap();
        change(&mut value);
        let error = Baseline::parse(value.to_string().as_bytes()).expect_err(expect).to_string();
        assert!(error.contains(expect), "{error:?} does not say {expect:?}");
    }

    #[test]
    fn a_baseline_round_trips_with_its_schema() {
        let baseline = good();
        let again = Baseline::parse(&baseline.to_bytes()).unwrap();
        assert_eq!(again, baseline);
        assert_eq!(again.schema(), baseline.schema());
    }

    #[test]
    fn each_way_to_be_bad_is_refused_by_name() {
        check(|v| v["format"] = json!(2), "format 2");
        check(|v| v["surprise"] = json!(1), "surprise");
        check(|v| v["features"] = json!([]), "0 features");
        check(|v| v["features"][0]["surprise"] = json!(1), "surprise");
        check(|v| v["features"][0]["name"] = json!(""), "must have a name");
        check(|v| v["features"][1]["name"] = json!("humidity"), "listed twice");
        check(|v| v["features"][0]["bins"]["edges"][3] = json!(1e9), "strictly rising");
        check(|v| v["features"][0]["bins"]["edges"] = json!([1.0]), "too few or too many");
        check(|v| v["features"][0]["bins"]["mode"] = json!("sketch"), "sketch");
        check(
            |v| v["features"][1]["bins"]["values"] = json!((0..40).collect::<Vec<_>>()),
            "too few or too many",
        );
        check(|v| v["features"][0]["counts"] = json!([1, 2]), "another number of counts");
        check(|v| v["features"][0]["counts"] = json!(vec![0; 15]), "no reference value");
        check(|v| v["features"][0]["counts"][0] = json!(u64::MAX), "overflow");
        check(|v| v["features"][0]["r1"] = json!(1.0), "autocorrelation");
        check(|v| v["features"][0]["std"] = json!(-1.0), "deviation");
        check(|v| v["features"][0]["range"] = json!([2.0, 1.0]), "range");
        check(|v| v["features"][0]["block_psi"] = json!([[300, -1.0]]), "block quantile");
    }

    #[test]
    fn an_oversized_baseline_is_refused_before_it_is_parsed() {
        let bytes = vec![b' '; MAX_BASELINE_BYTES + 1];
        assert_eq!(Baseline::parse(&bytes), Err(BaselineError::TooBig(MAX_BASELINE_BYTES + 1)));
    }

    #[test]
    fn other_edges_are_another_schema_and_other_counts_are_not() {
        let mut value = serde_json::to_value(good()).unwrap();
        value["features"][0]["counts"][3] = json!(7);
        assert_eq!(Baseline::parse(value.to_string().as_bytes()).unwrap().schema(), good().schema());
        value["features"][0]["bins"]["edges"][0] = json!(-1.0);
        assert_ne!(Baseline::parse(value.to_string().as_bytes()).unwrap().schema(), good().schema());
    }
}
