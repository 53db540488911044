//! The agent: the shell around the lifecycle of `plimsoll-agent-core`.
//!
//! Two processes of one binary. The **driver** ([`driver`]) owns the state and never touches a model; **serve**
//! ([`serve`]), its child, holds models, the inference endpoint and the bins of the measurement windows. A third,
//! short-lived child runs the golden samples of a new bundle. Everything else here is an adapter that turns one
//! kind of outside world into values:
//!
//! | module | outside world |
//! |---|---|
//! | [`config`], [`identity`] | what the operator and enrolment left on the disk |
//! | [`anchor`], [`slots`], [`outbox`], [`ballast`] | what must survive a power cut |
//! | [`mqtt`], [`fetch`], [`tls`] | the server |
//! | [`health`], [`clock`], [`hours`] | the machine |
//! | [`control`], [`check`], [`infer`], [`logging`], [`diagnostics`] | the person at the device |
//!
//! Adapters meet only in [`driver`].

pub mod anchor;
pub mod ballast;
pub mod check;
pub mod clock;
pub mod config;
pub mod control;
pub mod diagnostics;
pub mod driver;
pub mod engine;
pub mod fetch;
pub mod files;
pub mod health;
pub mod hours;
pub mod identity;
pub mod import;
pub mod infer;
pub mod logging;
pub mod mqtt;
pub mod outbox;
pub mod serve;
pub mod slots;
pub mod stamp;
pub mod tls;

/// Counts what each model takes. An unused byte of it costs nothing: the driver and the commands never ask.
#[global_allocator]
static ALLOCATOR: plimsoll_runtime::heap::Counting = plimsoll_runtime::heap::Counting;

/// Version of this agent.
pub fn version() -> semver::Version {
    semver::Version::parse(env!("CARGO_PKG_VERSION")).unwrap_or(semver::Version::new(0, 0, 0))
}

/// The architecture this binary was built for, in the words of manifests: `x86_64`, `aarch64`, `armv7`.
pub const fn arch() -> &'static str {
    if cfg!(target_arch = "arm") { "armv7" } else { std::env::consts::ARCH }
}

/// An error with all its causes in one line: the last one is usually the one that helps.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
