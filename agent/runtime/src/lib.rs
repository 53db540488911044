//! Loads, describes, runs and self-tests a model.
//!
//! The one place where a file from outside becomes a running model, so it is suspicious in layers: the document is
//! screened for sizes that lie and files that nobody listed (`document`), the engine's panics are caught
//! (`engine`), its tensors must be those of the manifest (`model`), and its answers those of the golden samples
//! (`golden`). What no layer can stop (an abort, memory without end) is why callers load models in a child process.
//!
//! Used by the agent's serving child and by `plimsoll bundle pack`, so a model is packed by the code that serves it.

mod check;
mod confine;
mod convert;
mod document;
mod engine;
mod error;
pub mod features;
mod golden;
pub mod heap;
pub mod memory;
mod model;
mod proto;
mod steps;
mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod values;

pub use check::{CheckReport, Measured, Problem, SampleFiles, Trial, check};
pub use confine::{Bounds, STACK, confine, how_it_ended, share_of, with_room};
pub use document::{ExternalData, MAX_DOCUMENT_BYTES, MAX_NESTING, MAX_NODES, MAX_OPSET};
pub use engine::{
    Description, Engine, PLANS_KEPT, Runtime, TensorInfo, TractRuntime, describe, describe_bytes, operators,
};
pub use error::{MissingOperator, RuntimeError, TensorError};
pub use golden::{Difference, Exchange, Mismatch, SelfTestReport, read_sample, record_golden, self_test};
pub use model::{Model, check_inputs, check_outputs};
pub use proto::{MAX_TENSOR_FILE, decode_tensor, encode_tensor, read_tensor};
pub use steps::{arg_max, softmax};
pub use tensor::{Data, Tensor, bf16_bits, bf16_value, element_count, f16_bits, f16_value};
pub use values::{ValueCheck, ValueRefusal};

/// The architecture of this binary, as manifests name it: `x86_64`, `aarch64`, `armv7`.
pub const fn architecture() -> &'static str {
    if cfg!(target_arch = "arm") { "armv7" } else { std::env::consts::ARCH }
}
