//! What can go wrong with a model, each naming the object it was tried on.

use std::io;
use std::path::PathBuf;

/// A model that was not opened, checked or run, and why.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bytes are not an ONNX document.
    #[error("{what} is not a valid ONNX document: {why}; is it complete, and in binary (not text) form?")]
    Malformed {
        /// The file, or what the bytes were said to be.
        what: String,
        /// Why.
        why: String,
    },
    /// A document that breaks a limit or a rule of safety; nothing was handed to the engine.
    #[error("the model is refused: {0}")]
    Refused(String),
    /// Well-formed, but the engine cannot run it. Names operator and node where the engine tells.
    #[error("the runtime cannot run this model: {0}")]
    Unsupported(String),
    /// Well-formed, but it uses operators that the engine does not have; never empty.
    #[error("the runtime cannot run this model: {}", first_and_more(.0))]
    Operators(Vec<MissingOperator>),
    /// The manifest and the model do not describe the same tensors.
    #[error("bundle.json does not fit the model: {0}")]
    Manifest(String),
    /// A tensor that does not fit the model: the caller's fault.
    #[error("{0}")]
    Input(#[from] TensorError),
    /// The engine failed while it ran the model.
    #[error("inference failed: {0}")]
    Run(String),
    /// The engine panicked; the panic was caught and this model should not be trusted.
    #[error("the runtime crashed while it tried to {doing}: {why}")]
    Panicked {
        /// What it was doing.
        doing: &'static str,
        /// The panic's message.
        why: String,
    },
}

/// A node whose operator the engine does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operator {} of node {node:?} is not supported; {remedy}", full_name(domain, operator))]
pub struct MissingOperator {
    /// Its name, or that of its first output: exporters leave names out.
    pub node: String,
    /// `""` is `ai.onnx`.
    pub domain: String,
    /// Name of the operator in its domain.
    pub operator: String,
    /// What the owner of the model can do about it.
    pub remedy: &'static str,
}

/// `Relu` of `ai.onnx`, `ai.onnx.ml.Scaler` of another domain.
pub(crate) fn full_name(domain: &str, operator: &str) -> String {
    if domain.is_empty() { operator.to_owned() } else { format!("{domain}.{operator}") }
}

fn first_and_more(missing: &[MissingOperator]) -> String {
    let first = missing.first().map(ToString::to_string).unwrap_or_default();
    match missing.len() {
        0 | 1 => first,
        n => format!("{first} (and {} more nodes; `plimsoll model check` lists them all)", n - 1),
    }
}

/// A tensor that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor {tensor:?}: {why}")]
pub struct TensorError {
    /// Its name, cut to 80 characters.
    pub tensor: String,
    /// What is wrong with it.
    pub why: String,
}

impl TensorError {
    /// Builds one.
    pub fn new(tensor: &str, why: impl Into<String>) -> Self {
        Self { tensor: tensor.chars().take(80).collect(), why: why.into() }
    }
}
