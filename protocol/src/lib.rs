//! What agent and server must agree on.
//!
//! Pure: values in, values out. No tokio, no files, no clock, no randomness; a test holds that. A signed
//! document is strict (an unknown field is refused by its schema version), a wire message tolerates fields it
//! does not know.

pub mod api;
pub mod archive;
pub mod bundle;
pub mod delta;
pub mod drift;
pub mod hours;
pub mod ids;
pub mod share;
pub mod trust;
pub mod wire;

pub use ids::{
    DeviceId, DeviceIdentity, Digest, Generation, Incarnation, ModelName, TenantId, UnixMillis, UnixSeconds,
};
