//! The Open Inference Protocol's JSON and binary tensors, as values: bytes of a request to tensors, tensors to bytes
//! of a response. No socket, no model; what is refused says which tensor and why.

mod classes;
mod data;
mod observation;
mod request;
mod response;

pub use observation::read_observation;
pub use request::{Ask, AskError, Wanted, read};
pub use response::{Outputs, Prediction, encode};

/// Header that gives the length of the JSON when binary tensors follow it.
pub const BINARY_HEADER: &str = "inference-header-content-length";
