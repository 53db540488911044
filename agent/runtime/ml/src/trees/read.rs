//! From attributes to trees that are known to be trees: every child exists in the same tree, has one parent, and no
//! root has any. What this lets through can be walked without a step count.

use std::collections::BTreeMap;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::forest::{MAX_FEATURE, Mode};
use crate::attributes::{ints, loaded, same_length, texts, wide_floats};
use crate::values::{numbers, slice};

/// Checked trees as they were listed.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) nodes: Vec<RawNode>,
    /// Indices of roots, in the order in which their trees are added up.
    pub(super) roots: Vec<usize>,
    /// Sorted by node, otherwise as listed.
    pub(super) weights: Vec<Weight>,
    pub(super) targets: usize,
    /// Columns that are read; at least one.
    pub(super) features: usize,
    /// Whether thresholds and weights were given in 64 bits.
    pub(super) is_double: bool,
}

#[derive(Debug)]
pub(super) struct RawNode {
    pub(super) feature: usize,
    pub(super) threshold: f64,
    pub(super) mode: Mode,
    pub(super) holes_yes: bool,
    /// For "no" and for "yes"; `None` is a leaf.
    pub(super) children: Option<[usize; 2]>,
}

/// What a leaf gives to a target or class.
#[derive(Debug)]
pub(super) struct Weight {
    node: usize,
    pub(super) target: u32,
    pub(super) value: f64,
}

impl Plan {
    /// Attributes of versions 1 and 3; `prefix` is `class` or `target`.
    pub(super) fn read(
        ctx: &ParsingContext,
        node: &NodeProto,
        prefix: &str,
        targets: usize,
    ) -> TractResult<Self> {
        let column = |name: &str| ints(node, &format!("nodes_{name}"));
        let (trees, ids) = (column("treeids")?, column("nodeids")?);
        let (yes, no, features) = (column("truenodeids")?, column("falsenodeids")?, column("featureids")?);
        let holes = column("missing_value_tracks_true")?;
        let modes = texts(node, "nodes_modes")?;
        let (thresholds, mut is_double) = wide_floats(ctx, node, "nodes_values")?;
        let count = trees.len();
        ensure!(count > 0, "has no \"nodes_treeids\": no tree");
        for (name, length) in [
            ("nodes_nodeids", ids.len()),
            ("nodes_truenodeids", yes.len()),
            ("nodes_falsenodeids", no.len()),
            ("nodes_featureids", features.len()),
            ("nodes_modes", modes.len()),
            ("nodes_values", thresholds.len()),
        ] {
            same_length(name, length, count)?;
        }
        if !holes.is_empty() {
            same_length("nodes_missing_value_tracks_true", holes.len(), count)?;
        }

        let mut index = BTreeMap::new();
        for (at, key) in trees.iter().copied().zip(ids.iter().copied()).enumerate() {
            ensure!(index.insert(key, at).is_none(), "lists node {} of tree {} twice", key.1, key.0);
        }
        let find = |tree: i64, id: i64| {
            index
                .get(&(tree, id))
                .copied()
                .with_context(|| format!("refers to node {id} of tree {tree}, which is not there"))
        };
        let mut nodes = Vec::with_capacity(count);
        for at in 0..count {
            let branch = mode_of(&modes[at])?;
            nodes.push(RawNode {
                feature: feature_of(features[at])?,
                threshold: thresholds[at],
                mode: branch.unwrap_or(Mode::Leq),
                holes_yes: holes.get(at).is_some_and(|h| *h != 0),
                children: match branch {
                    None => None,
                    Some(_) => Some([find(trees[at], no[at])?, find(trees[at], yes[at])?]),
                },
            });
        }
        let new_tree = |at: &usize| *at == 0 || trees[*at] != trees[*at - 1];
        let roots: Vec<usize> = (0..count).filter(new_tree).collect();

        let part = |name: &str| ints(node, &format!("{prefix}_{name}"));
        let (leaf_trees, leaf_nodes, leaf_targets) = (part("treeids")?, part("nodeids")?, part("ids")?);
        let (values, wide) = wide_floats(ctx, node, &format!("{prefix}_weights"))?;
        is_double |= wide;
        for (name, length) in
            [("treeids", leaf_trees.len()), ("ids", leaf_targets.len()), ("weights", values.len())]
        {
            same_length(&format!("{prefix}_{name}"), length, leaf_nodes.len())?;
        }
        let mut weights = Vec::with_capacity(values.len());
        for (at, value) in values.into_iter().enumerate() {
            let node = find(leaf_trees[at], leaf_nodes[at])?;
            weights.push(Weight { node, target: target_of(leaf_targets[at], targets)?, value });
        }
        Self::checked(nodes, roots, weights, targets, is_double)
    }

    /// Attributes of version 5: leaves are a list of their own.
    pub(super) fn read_v5(ctx: &ParsingContext, node: &NodeProto, targets: usize) -> TractResult<Self> {
        let column = |name: &str| ints(node, &format!("nodes_{name}"));
        let (features, yes, no) = (column("featureids")?, column("truenodeids")?, column("falsenodeids")?);
        let (yes_is_leaf, no_is_leaf) = (column("trueleafs")?, column("falseleafs")?);
        let holes = column("missing_value_tracks_true")?;
        ensure!(
            !node.attribute.iter().any(|a| a.name == "membership_values"),
            "compares with sets (\"membership_values\"), which is not supported; export plain comparisons"
        );
        let (modes, splits) = (loaded(ctx, node, "nodes_modes")?, loaded(ctx, node, "nodes_splits")?);
        let is_double = splits.datum_type() == DatumType::F64;
        let (modes, splits) = (slice::<u8>(&modes)?.to_vec(), numbers::<f64>(&splits)?.into_owned());
        let count = features.len();
        for (name, length) in [
            ("nodes_truenodeids", yes.len()),
            ("nodes_falsenodeids", no.len()),
            ("nodes_trueleafs", yes_is_leaf.len()),
            ("nodes_falseleafs", no_is_leaf.len()),
            ("nodes_modes", modes.len()),
            ("nodes_splits", splits.len()),
        ] {
            same_length(name, length, count)?;
        }
        if !holes.is_empty() {
            same_length("nodes_missing_value_tracks_true", holes.len(), count)?;
        }
        let (leaf_targets, leaf_weights) =
            (ints(node, "leaf_targetids")?, loaded(ctx, node, "leaf_weights")?);
        let leaf_weights = numbers::<f64>(&leaf_weights)?;
        same_length("leaf_weights", leaf_weights.len(), leaf_targets.len())?;

        // Leaves follow the branches in the list of nodes. Two branches may share a leaf; each gets its own copy.
        let mut leaves = Vec::new();
        let mut child = |id: i64, is_leaf: i64| -> TractResult<usize> {
            let at = usize::try_from(id).unwrap_or(usize::MAX);
            let limit = if is_leaf == 0 { count } else { leaf_targets.len() };
            ensure!(at < limit, "refers to node or leaf {id}, which is not there");
            if is_leaf == 0 {
                return Ok(at);
            }
            leaves.push(at);
            Ok(count + leaves.len() - 1)
        };
        let mut nodes = Vec::with_capacity(2 * count + 1);
        for at in 0..count {
            let (no, yes) = (child(no[at], no_is_leaf[at])?, child(yes[at], yes_is_leaf[at])?);
            nodes.push(RawNode {
                feature: feature_of(features[at])?,
                threshold: splits[at],
                mode: mode_of_number(modes[at])?,
                holes_yes: holes.get(at).is_some_and(|h| *h != 0),
                // A tree of one leaf is written as a branch with twice the same leaf.
                children: Some([no, yes]),
            });
        }
        let mut weights = Vec::with_capacity(leaves.len());
        for (at, leaf) in leaves.into_iter().enumerate() {
            nodes.push(RawNode {
                feature: 0,
                threshold: 0.0,
                mode: Mode::Leq,
                holes_yes: false,
                children: None,
            });
            let target = target_of(leaf_targets[leaf], targets)?;
            weights.push(Weight { node: count + at, target, value: leaf_weights[leaf] });
        }
        let roots = ints(node, "tree_roots")?.into_iter().map(|root| match usize::try_from(root) {
            Ok(at) if at < count => Ok(at),
            _ => bail!("has a root {root}, which is not there"),
        });
        let roots = roots.collect::<TractResult<_>>()?;
        Self::checked(nodes, roots, weights, targets, is_double)
    }

    /// The one way in: proves that these are trees.
    fn checked(
        nodes: Vec<RawNode>,
        roots: Vec<usize>,
        mut weights: Vec<Weight>,
        targets: usize,
        is_double: bool,
    ) -> TractResult<Self> {
        // Packed indices have 32 bits, and a document has 2 GiB; the check is for the arithmetic below.
        ensure!(nodes.len() < (u32::MAX / 2) as usize, "has {} nodes", nodes.len());
        let mut has_parent = vec![false; nodes.len()];
        for child in roots.iter().chain(nodes.iter().filter_map(|n| n.children.as_ref()).flatten()) {
            ensure!(
                !has_parent[*child],
                "is no tree: its node number {child} has two parents, or is the child of its own child"
            );
            has_parent[*child] = true;
        }
        let features =
            nodes.iter().filter(|n| n.children.is_some()).map(|n| n.feature + 1).max().unwrap_or(1);
        weights.sort_by_key(|w| w.node); // stable: a leaf's weights stay in their order
        Ok(Self { nodes, roots, weights, targets, features, is_double })
    }

    /// Weights of one node.
    pub(super) fn weights_of(&self, node: usize) -> &[Weight] {
        let from = self.weights.partition_point(|w| w.node < node);
        let to = self.weights.partition_point(|w| w.node <= node);
        &self.weights[from..to]
    }

    /// How many targets or classes have any weight.
    pub(super) fn targets_used(&self) -> usize {
        let mut used = vec![false; self.targets];
        self.weights.iter().for_each(|w| used[w.target as usize] = true);
        used.into_iter().filter(|used| *used).count()
    }
}

/// The comparison; `None` is a leaf.
fn mode_of(text: &str) -> TractResult<Option<Mode>> {
    Ok(Some(match text {
        "LEAF" => return Ok(None),
        "BRANCH_LEQ" => Mode::Leq,
        "BRANCH_LT" => Mode::Lt,
        "BRANCH_GTE" => Mode::Gte,
        "BRANCH_GT" => Mode::Gt,
        "BRANCH_EQ" => Mode::Eq,
        "BRANCH_NEQ" => Mode::Neq,
        other => bail!("has a node of mode {other:?}, which is not known"),
    }))
}

fn mode_of_number(number: u8) -> TractResult<Mode> {
    Ok(match number {
        0 => Mode::Leq,
        1 => Mode::Lt,
        2 => Mode::Gte,
        3 => Mode::Gt,
        4 => Mode::Eq,
        5 => Mode::Neq,
        other => {
            bail!("has a node of mode {other}, which is not supported; export plain comparisons (0 to 5)")
        }
    })
}

fn feature_of(number: i64) -> TractResult<usize> {
    match usize::try_from(number) {
        Ok(feature) if feature <= MAX_FEATURE => Ok(feature),
        _ => bail!("reads column {number}; 0 to {MAX_FEATURE} are possible"),
    }
}

fn target_of(number: i64, targets: usize) -> TractResult<u32> {
    match u32::try_from(number) {
        Ok(target) if (target as usize) < targets => Ok(target),
        _ => bail!("has a weight for target or class {number} of {targets}"),
    }
}
