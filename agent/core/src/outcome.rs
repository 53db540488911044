//! What the shell has to do, and the order it has to do it in: persist, then act.

use plimsoll_protocol::wire::v1::{self as wire, JobReport, ShadowReport};
use plimsoll_protocol::{Digest, Generation, ModelName};

use crate::core::Core;
use crate::event::Event;
use crate::record::Persistent;

/// Work for the shell. Idempotent: the same effect may be ordered again after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Refresh trust, admit the manifest (model, version and digest must be these), run preflight, fetch and hash
    /// the files into the staging folder. Answers `FetchDone`, `FetchFailed` or `NotApplicable`.
    Fetch {
        /// Model.
        model: ModelName,
        /// Version.
        version: semver::Version,
        /// Digest of its `bundle.json`.
        digest: Digest,
    },
    /// Stop a fetch, a staging or a self-test of this bundle if one runs. What was fetched stays. No answer.
    Cancel {
        /// Model.
        model: ModelName,
        /// Bundle.
        digest: Digest,
    },
    /// Drop the staging folder of this bundle. No answer.
    Discard {
        /// Bundle.
        digest: Digest,
    },
    /// Make the staged bundle durable in its slot. Answers `Staged` or `StageFailed`.
    Stage {
        /// Model.
        model: ModelName,
        /// Bundle.
        digest: Digest,
    },
    /// Run the golden samples in a child process. Answers `SelfTestPassed` or `SelfTestFailed`.
    SelfTest {
        /// Model.
        model: ModelName,
        /// Bundle.
        digest: Digest,
    },
    /// Have the serving child load it beside what it serves. Answers `Loaded` or `LoadFailed`.
    Load {
        /// Model.
        model: ModelName,
        /// Version.
        version: semver::Version,
        /// Bundle.
        digest: Digest,
    },
    /// Have the serving child answer requests with it. Answers `Serving`.
    Serve {
        /// Model.
        model: ModelName,
        /// Bundle.
        digest: Digest,
    },
    /// Have the serving child ask it, too, a share of what it asks `with`, and compare the answers; nobody gets them.
    /// Answers `ShadowSample` again and again, or `ShadowRefused`. Ends with the bundle's `Unload`.
    Shadow {
        /// Model.
        model: ModelName,
        /// The candidate, loaded.
        digest: Digest,
        /// What runs.
        with: Digest,
        /// Share of the requests, 1 to 100.
        sample_percent: u32,
        /// Which ones.
        seed: u64,
    },
    /// Have the serving child compare no more; the candidate stays loaded. No answer.
    EndShadow {
        /// Model.
        model: ModelName,
        /// The candidate.
        digest: Digest,
    },
    /// Have the serving child drop it. No answer.
    Unload {
        /// Model.
        model: ModelName,
        /// Bundle.
        digest: Digest,
    },
    /// Mark the slot as proven on this device, so that a lost anchor can be rebuilt from the slots. No answer.
    MarkProven {
        /// Bundle.
        digest: Digest,
        /// The newest mark of a model is what it should run.
        generation: Generation,
    },
    /// No model needs the slot any more. No answer.
    DeleteSlot {
        /// Bundle.
        digest: Digest,
    },
}

impl Effect {
    /// Whether it is an order to the serving child.
    pub const fn is_for_child(&self) -> bool {
        matches!(
            self,
            Self::Load { .. }
                | Self::Serve { .. }
                | Self::Unload { .. }
                | Self::Shadow { .. }
                | Self::EndShadow { .. }
        )
    }
}

/// Something to tell the server, through the outbox.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// Progress of an order.
    Job(JobReport),
    /// A transition or an alarm.
    Event(wire::Event),
    /// What a candidate answered beside the version that runs.
    Shadow(Box<ShadowReport>),
}

/// An event that has no place in the present state. Ordinary (a cancelled fetch still answers), so it is an answer
/// and not an error: the shell logs it and goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} was refused in state {state}{}: {why}", .model.as_ref().map(|m| format!(" of {m}")).unwrap_or_default())]
pub struct Refused {
    /// The model, when the event was about one.
    pub model: Option<ModelName>,
    /// State it was in.
    pub state: &'static str,
    /// Name of the event.
    pub event: &'static str,
    /// Why.
    pub why: String,
}

/// A decision that is not yet true. [`Outcome::commit`] makes it so; dropping it leaves the core as it was.
#[must_use = "a decision that is not committed never happened"]
#[derive(Debug)]
pub struct Outcome {
    pub(crate) next: Core,
    pub(crate) changed: bool,
    pub(crate) after: After,
    /// What was decided on, kept by the core when the decision cannot be written.
    pub(crate) event: Option<Event>,
}

/// What may be done once the decision is durable.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct After {
    /// In order.
    pub effects: Vec<Effect>,
    /// In order.
    pub reports: Vec<Report>,
    /// What was refused, if anything.
    pub refused: Vec<Refused>,
    /// Send [`crate::Event::Tick`] when the monotonic clock reaches this; replaces the wake-up before.
    pub wake_mono_ms: Option<u64>,
}

impl Outcome {
    /// Persists, then makes the decision the core's state, then hands out what to do.
    ///
    /// `write` must return only when the record is durable; it is not called when nothing changed. On its error
    /// nothing is to be done and the core is what it was, but that it keeps the event and decides it again before the
    /// next one (a tick in some seconds, say).
    pub fn commit<E>(
        self,
        core: &mut Core,
        write: impl FnOnce(&Persistent) -> Result<(), E>,
    ) -> Result<After, E> {
        if self.changed
            && let Err(error) = write(self.next.record())
        {
            if let Some(event) = self.event {
                core.keep_for_later(event);
            }
            return Err(error);
        }
        *core = self.next;
        Ok(self.after)
    }

    /// Whether [`Outcome::commit`] will write.
    pub const fn must_persist(&self) -> bool {
        self.changed
    }
}
