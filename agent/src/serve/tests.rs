//! The child as the driver and its callers meet it: in one process, on a port of the system's choice.

mod child;
mod endpoint;
mod memory;
mod protocol;
mod quality;
mod refusals;
mod shadow;
mod support;
