//! The lifecycle from outside: a shell made of values drives the public interface of the core.

#![allow(clippy::unwrap_used)] // all of it is test code, its helpers too

mod crashes;
mod fake;
mod holds;
mod scenarios;
mod shadow;
mod trust;
