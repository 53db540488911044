//! Drift (in progress)
use serde::{Deserialize, Serialize};
/// A measurement window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {}
/// Reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {}
