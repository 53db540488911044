//! The HTTP listeners: one for devices (TLS, certificates), one for operators (tokens). Handlers extract,
//! authorise, call and respond; what they call decides.

mod delta;
pub mod device;
mod extract;
pub mod listener;
pub mod operator;
mod problem;
mod range;
mod renew;
mod targets;
