//! The server as its users meet it: real sockets, real TLS, real MQTT, a state folder of its own.

#![allow(clippy::unwrap_used)] // a test program: also in its helpers, an unwrap is an assertion

mod blobs;
mod cam;
mod drift;
mod enrolment;
mod evidence;
mod kill;
mod operators;
mod owners;
mod publishing;
mod rig;
mod rollout;
mod telemetry;
