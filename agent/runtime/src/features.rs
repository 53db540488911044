//! What of a request is measured for drift: the row of cells that a [`Window`](plimsoll_protocol::drift::Window)
//! counts. The packer fits the baseline through this file and the device observes through it, so both measure the
//! same thing by construction.
//!
//! Inputs are measured as they arrive, before any step: it is the world that drifts. A tabular input gives its
//! columns, an image its pseudo-features, class scores give class, confidence and entropy.

use plimsoll_protocol::bundle::{
    DataType, FeatureKind, InputContent, InputSpec, Manifest, OutputKind, OutputSpec,
};
use plimsoll_protocol::drift::baseline::ImageStatistic;
use plimsoll_protocol::drift::signal::{ClassSignal, IMAGE_STATISTICS, ImageSignal, PROJECTIONS, norm};
use plimsoll_protocol::drift::{Baseline, Cell, Column, FitError, MAX_FEATURES, Order, Source};

use crate::error::RuntimeError;
use crate::golden::Exchange;
use crate::tensor::Tensor;

/// Most columns of an input whose columns have no names: beyond, nobody could read the report, and pixels or
/// spectra that were not declared as images would fill the baseline.
pub const MAX_UNNAMED_COLUMNS: usize = 64;
/// Most numbers of a regression output that are measured.
pub const MAX_REGRESSION: usize = 16;

/// A feature that a manifest gives rise to.
#[derive(Debug, Clone, PartialEq)]
pub struct FeaturePlan {
    /// Unique among the features of the model.
    pub name: String,
    /// Where its values come from.
    pub source: Source,
    /// Valid range that the author states.
    pub range: Option<(f32, f32)>,
    /// Whether the author says that it is a category.
    pub categorical: bool,
}

/// The features of a model: inputs first, then outputs, at most [`MAX_FEATURES`].
pub fn plan(manifest: &Manifest) -> Vec<FeaturePlan> {
    let mut plans: Vec<FeaturePlan> = manifest.inputs.iter().flat_map(plan_input).collect();
    plans.extend(manifest.outputs.iter().flat_map(plan_output));
    // Two tensors may well have columns of one name.
    let names: Vec<String> = plans.iter().map(|p| p.name.clone()).collect();
    for plan in &mut plans {
        if names.iter().filter(|n| **n == plan.name).count() > 1 {
            plan.name = format!("{} {}", tensor_of(&plan.source), plan.name);
        }
    }
    plans.truncate(MAX_FEATURES);
    plans
}

fn plan_input(spec: &InputSpec) -> Vec<FeaturePlan> {
    let measured = |name: String, source| FeaturePlan { name, source, range: None, categorical: false };
    let tensor = || spec.name.clone();
    let Some(width) = row_width(&spec.shape) else { return Vec::new() };
    match spec.content {
        InputContent::Opaque => Vec::new(),
        _ if spec.datatype == DataType::Bytes => Vec::new(),
        InputContent::Image => {
            let projections =
                (0..PROJECTIONS).map(|k| (ImageStatistic::Projection(k), format!("projection {k}")));
            let named = IMAGE_STATISTICS.iter().map(|(s, name)| (*s, (*name).to_owned()));
            let all = named.chain(projections);
            all.map(|(statistic, name)| measured(name, Source::Image { tensor: tensor(), statistic }))
                .collect()
        }
        InputContent::Tabular if spec.features.is_empty() && width > MAX_UNNAMED_COLUMNS => Vec::new(),
        InputContent::Tabular => (0..width)
            .map(|at| {
                let source = Source::Input { tensor: tensor(), index: at as u32 };
                match spec.features.get(at) {
                    None => measured(format!("{}[{at}]", spec.name), source),
                    Some(feature) => FeaturePlan {
                        name: feature.name.clone(),
                        source,
                        range: feature.range.map(|(low, high)| (low as f32, high as f32)),
                        categorical: feature.kind == FeatureKind::Categorical,
                    },
                }
            })
            .collect(),
    }
}

fn plan_output(spec: &OutputSpec) -> Vec<FeaturePlan> {
    let measured =
        |name: &str, source| FeaturePlan { name: name.into(), source, range: None, categorical: false };
    let tensor = spec.name.clone();
    let Some(width) = row_width(&spec.shape) else { return Vec::new() };
    match spec.kind {
        OutputKind::Raw => Vec::new(),
        // One vector of scores a row; a detector's thousands have no single confidence.
        OutputKind::ClassScores if spec.shape.last().is_some_and(|last| *last == width as i64) => vec![
            measured("class", Source::Class { tensor: tensor.clone() }),
            measured("confidence", Source::Confidence { tensor: tensor.clone() }),
            measured("entropy", Source::Entropy { tensor }),
        ],
        OutputKind::ClassScores => Vec::new(),
        OutputKind::Regression => (0..width.min(MAX_REGRESSION) as u32)
            .map(|index| {
                let name = if width == 1 { spec.name.clone() } else { format!("{}[{index}]", spec.name) };
                measured(&name, Source::Output { tensor: tensor.clone(), index })
            })
            .collect(),
        OutputKind::Embedding => vec![measured("norm", Source::Norm { tensor })],
    }
}

/// Elements of one row, when the shape fixes them. The first of two or more dimensions counts rows; a vector is one
/// row, unless its length varies.
fn row_width(shape: &[i64]) -> Option<usize> {
    let row = match shape {
        [] | [-1] => &[],
        [_] => shape,
        [_, rest @ ..] => rest,
    };
    row.iter().try_fold(1usize, |all, d| all.checked_mul(usize::try_from(*d).ok()?))
}

fn tensor_of(source: &Source) -> &str {
    match source {
        Source::Input { tensor, .. }
        | Source::Image { tensor, .. }
        | Source::Class { tensor }
        | Source::Confidence { tensor }
        | Source::Entropy { tensor }
        | Source::Output { tensor, .. }
        | Source::Norm { tensor } => tensor,
    }
}

/// Turns requests and answers into rows for a given list of sources.
#[derive(Debug, Clone)]
pub struct Featurizer {
    /// What to read for each feature, in order.
    sources: Vec<Source>,
    /// Which tensor each feature reads: index into `tensors`.
    reads: Vec<usize>,
    /// The tensors that are read at all.
    tensors: Vec<Read>,
}

#[derive(Debug, Clone)]
struct Read {
    from_output: bool,
    position: usize,
    /// Height, width and whether channels come last; for images only.
    image: Option<Layout>,
    /// Whether its class scores are read.
    classes: bool,
    /// Whether the first dimension counts rows.
    by_row: bool,
}

#[derive(Debug, Clone, Copy)]
struct Layout {
    height: usize,
    width: usize,
    /// Channels that lie side by side in each pixel; 1 when planes lie one after the other.
    interleaved: usize,
}

/// One row's values of one tensor, with what was computed of them.
struct Row<'a> {
    values: &'a [f32],
    image: Option<ImageSignal>,
    class: Option<ClassSignal>,
}

impl Featurizer {
    /// For the features of a baseline; refuses one that reads what the manifest does not have.
    pub fn new(manifest: &Manifest, baseline: &Baseline) -> Result<Self, RuntimeError> {
        Self::of(manifest, baseline.features().iter().map(|f| f.source.clone()).collect())
    }

    fn of(manifest: &Manifest, sources: Vec<Source>) -> Result<Self, RuntimeError> {
        let mut this =
            Self { reads: Vec::with_capacity(sources.len()), tensors: Vec::new(), sources: Vec::new() };
        for source in &sources {
            let (name, from_output) = (tensor_of(source), source.is_output());
            let unknown = || {
                let kind = if from_output { "output" } else { "input" };
                RuntimeError::Manifest(format!(
                    "its drift baseline measures {kind} {name:?}, which does not exist"
                ))
            };
            let (position, shape) = if from_output {
                let at = manifest.outputs.iter().position(|o| o.name == name).ok_or_else(unknown)?;
                (at, manifest.outputs.get(at).map(|o| o.shape.as_slice()))
            } else {
                let at = manifest.inputs.iter().position(|i| i.name == name).ok_or_else(unknown)?;
                (at, manifest.inputs.get(at).map(|i| i.shape.as_slice()))
            };
            let shape = shape.unwrap_or(&[]);
            let same = |r: &Read| r.from_output == from_output && r.position == position;
            let at = this.tensors.iter().position(same).unwrap_or_else(|| {
                let by_row = shape.len() != 1 || shape == [-1];
                this.tensors.push(Read { from_output, position, image: None, classes: false, by_row });
                this.tensors.len() - 1
            });
            if let Some(read) = this.tensors.get_mut(at) {
                read.classes |= matches!(
                    source,
                    Source::Class { .. } | Source::Confidence { .. } | Source::Entropy { .. }
                );
                if matches!(source, Source::Image { .. }) {
                    read.image = Some(Layout::of(shape));
                }
            }
            this.reads.push(at);
        }
        this.sources = sources;
        Ok(this)
    }

    /// Calls `each` with every row of a request: a cell for each feature, in order. `outputs` in the manifest's order.
    pub fn rows(&self, inputs: &[Tensor], outputs: &[Tensor], mut each: impl FnMut(&[Cell])) {
        let tensors: Vec<Option<&Tensor>> = self
            .tensors
            .iter()
            .map(|r| if r.from_output { outputs.get(r.position) } else { inputs.get(r.position) })
            .collect();
        let rows = self
            .tensors
            .iter()
            .zip(&tensors)
            .map(|(r, t)| if r.by_row { t.map_or(0, |t| t.rows()) } else { 1 })
            .max()
            .unwrap_or(0);
        let values: Vec<Option<Vec<f32>>> = tensors.iter().map(|t| t.map(numbers)).collect();
        let mut cells = Vec::with_capacity(self.sources.len());
        for at in 0..rows {
            let row: Vec<Option<Row<'_>>> = self
                .tensors
                .iter()
                .zip(&values)
                .map(|(read, values)| {
                    let values = values.as_ref()?;
                    let width = values.len() / if read.by_row { rows.max(1) } else { 1 };
                    let start = if read.by_row { at * width } else { 0 };
                    let values = values.get(start..start + width)?;
                    Some(read.measure(values))
                })
                .collect();
            cells.clear();
            cells.extend(self.sources.iter().zip(&self.reads).map(|(source, read)| {
                let row = row.get(*read).and_then(Option::as_ref);
                row.map_or(Cell::Missing, |row| row.cell(source))
            }));
            each(&cells);
        }
    }
}

impl Read {
    fn measure<'a>(&self, values: &'a [f32]) -> Row<'a> {
        let image = self.image.and_then(|layout| layout.signal(values));
        let class = if self.classes { ClassSignal::of(values) } else { None };
        Row { values, image, class }
    }
}

impl Row<'_> {
    fn cell(&self, source: &Source) -> Cell {
        let not_a_number = Cell::Number(f32::NAN);
        match source {
            Source::Input { index, .. } | Source::Output { index, .. } => {
                self.values.get(*index as usize).map_or(Cell::Missing, |x| Cell::Number(*x))
            }
            Source::Image { statistic, .. } => {
                self.image.as_ref().map_or(Cell::Missing, |s| s.get(*statistic))
            }
            Source::Class { .. } => self.class.map_or(not_a_number, |c| Cell::Number(c.class as f32)),
            Source::Confidence { .. } => self.class.map_or(not_a_number, |c| Cell::Number(c.confidence)),
            Source::Entropy { .. } => self.class.map_or(not_a_number, |c| Cell::Number(c.entropy)),
            Source::Norm { .. } => Cell::Number(norm(self.values)),
        }
    }
}

impl Layout {
    /// Reads a shape as images: `[n, c, h, w]`, `[n, h, w, c]`, `[n, h, w]`, or `[n, k]` with k a square number.
    fn of(shape: &[i64]) -> Self {
        let sizes: Vec<usize> = shape.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
        let channels = |d: usize| matches!(d, 1 | 3 | 4);
        match sizes.as_slice() {
            // A square image whose side is 3 or 4 is likelier than one with as many channels as rows.
            [_, c, h, w] if channels(*w) && (!channels(*c) || c == h) => {
                Self { height: *c, width: *h, interleaved: *w }
            }
            [_, _, h, w] | [_, h, w] => Self { height: *h, width: *w, interleaved: 1 },
            [.., k] => {
                let side = k.isqrt();
                let (height, width) = if side * side == *k { (side, side) } else { (1, *k) };
                Self { height, width, interleaved: 1 }
            }
            [] => Self { height: 1, width: 1, interleaved: 1 },
        }
    }

    fn signal(self, pixels: &[f32]) -> Option<ImageSignal> {
        if self.interleaved <= 1 {
            return ImageSignal::of(pixels, self.height, self.width);
        }
        let planes: Vec<f32> = (0..self.interleaved)
            .flat_map(|c| pixels.iter().skip(c).step_by(self.interleaved).copied())
            .collect();
        ImageSignal::of(&planes, self.height, self.width)
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_f32()
}

/// The baseline of a model from reference requests and their answers. A feature without one finite value is left
/// out: there is nothing to compare it with. `None` when nothing at all can be measured.
pub fn fit_baseline(
    manifest: &Manifest,
    reference: &[Exchange],
    order: Order,
) -> Result<Option<Baseline>, FitError> {
    let plans = plan(manifest);
    let Ok(featurizer) = Featurizer::of(manifest, plans.iter().map(|p| p.source.clone()).collect()) else {
        return Ok(None); // unreachable: the plans name the manifest's own tensors
    };
    let mut columns: Vec<Column> = plans
        .into_iter()
        .map(|p| Column {
            name: p.name,
            source: p.source,
            range: p.range,
            categorical: p.categorical,
            values: Vec::new(),
        })
        .collect();
    for (inputs, outputs) in reference {
        featurizer.rows(inputs, outputs, |row| {
            columns.iter_mut().zip(row).for_each(|(column, cell)| column.values.push(*cell));
        });
    }
    columns.retain(|c| c.values.iter().any(|cell| matches!(cell, Cell::Number(x) if x.is_finite())));
    if columns.is_empty() {
        return Ok(None);
    }
    Baseline::fit(&columns, order).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Data;
    use crate::testing;
    use plimsoll_protocol::drift::Window;

    fn f32s(shape: &[usize], values: Vec<f32>) -> Tensor {
        Tensor::new(shape.to_vec(), Data::Fp32(values)).unwrap()
    }

    #[test]
    fn a_classifier_gives_its_columns_class_confidence_and_entropy() {
        let manifest = testing::classifier_manifest(3, 2);
        let names: Vec<String> = plan(&manifest).into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["x[0]", "x[1]", "x[2]", "class", "confidence", "entropy"]);
        let reference: Vec<_> = (0..50)
            .map(|i| {
                let p = i as f32 / 50.0;
                (vec![f32s(&[1, 3], vec![p, 1.0, -p])], vec![f32s(&[1, 2], vec![p, 1.0 - p])])
            })
            .collect();
        let baseline = fit_baseline(&manifest, &reference, Order::Unordered).unwrap().unwrap();
        let featurizer = Featurizer::new(&manifest, &baseline).unwrap();
        let mut window = Window::open(&baseline, 0);
        let inputs = [f32s(&[2, 3], vec![0.5, 1.0, 0.0, f32::NAN, 1.0, 0.0])];
        let outputs = [f32s(&[2, 2], vec![0.1, 0.9, 0.8, 0.2])];
        let mut seen = Vec::new();
        featurizer.rows(&inputs, &outputs, |row| {
            seen.push(row.to_vec());
            window.observe(&baseline, row).unwrap();
        });
        assert_eq!(seen[0][3..5], [Cell::Number(1.0), Cell::Number(0.9)]);
        assert_eq!(seen[1][3..5], [Cell::Number(0.0), Cell::Number(0.8)]);
        assert_eq!(window.samples, 2);
        assert_eq!(
            window.features[0].faults(&baseline.features()[0]),
            [0, 1, 0],
            "NaN is counted as a fault"
        );
    }

    #[test]
    fn an_image_is_measured_the_same_in_planes_and_interleaved() {
        let pixels: Vec<f32> = (0..16).map(|i| (i * i % 17) as f32).collect();
        let expected = ImageSignal::of(&pixels, 4, 4);
        for shape in [&[-1, 1, 4, 4][..], &[-1, 4, 4, 1], &[-1, 4, 4], &[-1, 16]] {
            assert_eq!(Layout::of(shape).signal(&pixels), expected, "{shape:?}");
        }
        let rgb_planes: Vec<f32> = (0..75).map(|i| (i * 7 % 23) as f32).collect();
        let rgb_pixels: Vec<f32> = (0..75).map(|i| rgb_planes[i % 3 * 25 + i / 3]).collect();
        assert_eq!(
            Layout::of(&[1, 3, 5, 5]).signal(&rgb_planes),
            Layout::of(&[1, 5, 5, 3]).signal(&rgb_pixels)
        );
    }

    #[test]
    fn a_baseline_of_another_model_is_refused_by_name() {
        let manifest = testing::classifier_manifest(1, 2);
        let sources = vec![Source::Confidence { tensor: "scores".into() }];
        let error = Featurizer::of(&manifest, sources).unwrap_err().to_string();
        assert!(error.contains("output \"scores\""), "{error}");
    }
}
