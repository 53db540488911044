//! The trees themselves, packed for walking.
//!
//! A node is 12 bytes (16 with 64-bit thresholds): five to a cache line. The two children of a node are neighbours, so
//! a step is `next + yes`, an addition where a branch would be a guess; a leaf points at itself, so several walks can
//! go in step until none moves. That is the speed: one walk waits for memory at each level, eight walks wait together.
//! One row walks eight trees at a time, many rows walk each tree eight rows at a time, while it is in the cache.

use tract_onnx::tract_hir::internal::*;

use super::read::Plan;
use crate::values::{Real, Table};

/// Walks in step. Measured on x86-64, 64 rows through 100 fully grown trees: 181 us by 4, 149 us by 8, 214 us by 16.
const LANES: usize = 8;
/// Rows that go through all trees before the next rows do: 64 rows of 100 columns are 25 kB and stay in the first
/// cache beside a tree.
const BLOCK: usize = 64;

/// Lowest bits of [`Node::facts`]: the feature. 16 million columns are more than a row of 64 MB has.
const FEATURE: u32 = 0x00ff_ffff;
/// Largest number of a feature.
pub(super) const MAX_FEATURE: usize = FEATURE as usize;
/// Bits of [`Node::facts`] that hold the comparison, see [`Mode`].
const MODE_SHIFT: u32 = 24;
/// A hole (NaN) goes the way of yes.
const HOLES_YES: u32 = 1 << 30;
/// The node is a leaf.
const LEAF: u32 = 1 << 31;

/// How a node compares its feature (left) with its threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Mode {
    Leq,
    Lt,
    Gte,
    Gt,
    Eq,
    Neq,
}

/// What becomes of the weights of all trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aggregate {
    Sum,
    Average,
    Min,
    Max,
}

/// A number of a row that can be compared with a threshold of type `T`.
pub(super) trait Feature<T>: Real {
    fn threshold(threshold: T) -> Self;
}
impl Feature<Self> for f32 {
    fn threshold(threshold: Self) -> Self {
        threshold
    }
}
impl Feature<f32> for f64 {
    fn threshold(threshold: f32) -> Self {
        Self::from(threshold)
    }
}
impl Feature<Self> for f64 {
    fn threshold(threshold: Self) -> Self {
        threshold
    }
}

#[derive(Debug, Clone, Copy)]
struct Node<T> {
    /// Of a leaf: its first weight.
    threshold: T,
    /// Feature, comparison and flags.
    facts: u32,
    /// The node for "no"; the one for "yes" follows it. Of a leaf: itself.
    next: u32,
}

/// Packed trees.
#[derive(Debug)]
pub(super) struct Forest<T> {
    nodes: Vec<Node<T>>,
    roots: Vec<u32>,
    /// Weights of node `n` are `weights[starts[n] .. starts[n + 1]]`; empty lists when there is one target, whose
    /// weights are in the leaves.
    starts: Vec<u32>,
    weights: Vec<(u32, T)>,
    targets: usize,
    features: usize,
    aggregate: Aggregate,
    /// How all nodes compare, where they do alike.
    walk: Walk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    Leq,
    Lt,
    /// `<=`, and some holes go the way of yes.
    LeqOrHole,
    Mixed,
}

impl<T: Real> Forest<T> {
    /// Packs checked trees. Every node is the child of one parent at most (`plan` has proven it), so this ends.
    pub(super) fn plant(plan: &Plan, aggregate: Aggregate) -> TractResult<Self> {
        let mut forest = Self {
            nodes: Vec::with_capacity(plan.nodes.len()),
            roots: Vec::with_capacity(plan.roots.len()),
            starts: Vec::new(),
            weights: Vec::new(),
            targets: plan.targets,
            features: plan.features,
            aggregate,
            walk: Walk::of(plan),
        };
        let blank = Node { threshold: T::default(), facts: LEAF, next: 0 };
        let mut sources = Vec::with_capacity(plan.nodes.len());
        let mut open = Vec::new();
        for root in &plan.roots {
            forest.roots.push(forest.nodes.len() as u32);
            open.push((*root, forest.nodes.len()));
            forest.nodes.push(blank);
            sources.push(*root);
            while let Some((source, at)) = open.pop() {
                let raw = &plan.nodes[source];
                let Some([no, yes]) = raw.children else {
                    let weight = plan.weights_of(source).first().map_or(0.0, |w| w.value);
                    forest.nodes[at] = Node { threshold: T::of(weight), facts: LEAF, next: at as u32 };
                    continue;
                };
                let next = forest.nodes.len();
                let holes = if raw.holes_yes { HOLES_YES } else { 0 };
                let facts = raw.feature as u32 | (raw.mode as u32) << MODE_SHIFT | holes;
                forest.nodes[at] = Node { threshold: T::of(raw.threshold), facts, next: next as u32 };
                forest.nodes.extend([blank, blank]);
                sources.extend([no, yes]);
                open.extend([(no, next), (yes, next + 1)]);
            }
        }
        if plan.targets > 1 {
            for source in sources {
                forest.starts.push(forest.weights.len() as u32);
                if plan.nodes[source].children.is_none() {
                    forest.weights.extend(plan.weights_of(source).iter().map(|w| (w.target, T::of(w.value))));
                }
            }
            forest.starts.push(forest.weights.len() as u32);
        }
        Ok(forest)
    }

    /// Columns that are read; at least one.
    pub(super) fn features(&self) -> usize {
        self.features
    }

    /// Aggregates each row's weights and hands them to `finish` in order, with which targets had any. `finish` may
    /// change the scores. The table has at least [`Forest::features`] columns.
    pub(super) fn scores<X: Feature<T>>(
        &self,
        table: &Table<'_, X>,
        finish: &mut dyn FnMut(&mut [T], &[bool]),
    ) {
        match self.walk {
            Walk::Leq => self.scores_by(table, finish, |x, threshold, _| x <= threshold),
            Walk::Lt => self.scores_by(table, finish, |x, threshold, _| x < threshold),
            Walk::LeqOrHole => self.scores_by(table, finish, |x: X, threshold, facts| {
                (x <= threshold) | (x.is_hole() & (facts & HOLES_YES != 0))
            }),
            Walk::Mixed => self.scores_by(table, finish, |x: X, threshold, facts| {
                let yes = match (facts >> MODE_SHIFT) & 7 {
                    mode if mode == Mode::Leq as u32 => x <= threshold,
                    mode if mode == Mode::Lt as u32 => x < threshold,
                    mode if mode == Mode::Gte as u32 => x >= threshold,
                    mode if mode == Mode::Gt as u32 => x > threshold,
                    mode if mode == Mode::Eq as u32 => x == threshold,
                    _ => x != threshold,
                };
                yes | (x.is_hole() & (facts & HOLES_YES != 0))
            }),
        }
    }

    fn scores_by<X: Feature<T>>(
        &self,
        table: &Table<'_, X>,
        finish: &mut dyn FnMut(&mut [T], &[bool]),
        compare: impl Fn(X, X, u32) -> bool + Copy,
    ) {
        let (mut scores, mut seen) = (Vec::new(), Vec::new());
        for first in (0..table.rows).step_by(BLOCK) {
            let rows = BLOCK.min(table.rows - first);
            scores.clear();
            scores.resize(rows * self.targets, T::default());
            seen.clear();
            seen.resize(rows * self.targets, false);
            let together = rows - rows % LANES;
            if together > 0 {
                for root in &self.roots {
                    for lane in (0..together).step_by(LANES) {
                        let mut at = [*root; LANES];
                        self.walk(&mut at, std::array::from_fn(|k| table.row(first + lane + k)), compare);
                        for (k, leaf) in at.into_iter().enumerate() {
                            self.add(leaf, lane + k, &mut scores, &mut seen);
                        }
                    }
                }
            }
            for row in together..rows {
                let columns = table.row(first + row);
                let (groups, rest) = self.roots.as_chunks::<LANES>();
                for group in groups {
                    let mut at = *group;
                    self.walk(&mut at, [columns; LANES], compare);
                    at.into_iter().for_each(|leaf| self.add(leaf, row, &mut scores, &mut seen));
                }
                for root in rest {
                    let mut at = [*root];
                    self.walk(&mut at, [columns], compare);
                    self.add(at[0], row, &mut scores, &mut seen);
                }
            }
            for row in 0..rows {
                let these = row * self.targets..(row + 1) * self.targets;
                finish(&mut scores[these.clone()], &seen[these]);
            }
        }
    }

    /// Takes every walk to its leaf.
    #[inline(always)]
    fn walk<X: Feature<T>, const N: usize>(
        &self,
        at: &mut [u32; N],
        rows: [&[X]; N],
        compare: impl Fn(X, X, u32) -> bool,
    ) {
        loop {
            let mut moved = 0;
            for (at, row) in at.iter_mut().zip(rows) {
                let node = &self.nodes[*at as usize];
                let yes =
                    compare(row[(node.facts & FEATURE) as usize], X::threshold(node.threshold), node.facts);
                let next = node.next + (u32::from(yes) & !(node.facts >> 31));
                moved |= next ^ *at;
                *at = next;
            }
            if moved == 0 {
                return;
            }
        }
    }

    fn add(&self, leaf: u32, row: usize, scores: &mut [T], seen: &mut [bool]) {
        let leaf = leaf as usize;
        if self.targets == 1 {
            self.fold(&mut scores[row], &mut seen[row], self.nodes[leaf].threshold);
            return;
        }
        for (target, weight) in &self.weights[self.starts[leaf] as usize..self.starts[leaf + 1] as usize] {
            let at = row * self.targets + *target as usize;
            self.fold(&mut scores[at], &mut seen[at], *weight);
        }
    }

    fn fold(&self, score: &mut T, seen: &mut bool, weight: T) {
        let take = match self.aggregate {
            Aggregate::Sum | Aggregate::Average => {
                *score = *score + weight;
                false
            }
            Aggregate::Min => !*seen || weight < *score,
            Aggregate::Max => !*seen || weight > *score,
        };
        if take {
            *score = weight;
        }
        *seen = true;
    }
}

impl Walk {
    fn of(plan: &Plan) -> Self {
        let branches = || plan.nodes.iter().filter(|n| n.children.is_some());
        let all = |mode| branches().all(|n| n.mode == mode);
        match (all(Mode::Leq), all(Mode::Lt), branches().any(|n| n.holes_yes)) {
            (true, _, false) => Self::Leq,
            (true, _, true) => Self::LeqOrHole,
            (_, true, false) => Self::Lt,
            _ => Self::Mixed,
        }
    }
}
