//! Messages between a device and its server, by version. A wire message tolerates fields it does not know.

pub mod v1;
