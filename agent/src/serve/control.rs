//! What the driver and its serving child say to each other: one JSON object a line, orders on the child's standard
//! input, answers on its standard output. Both ends are the same binary, so the format has no version; the child
//! writes nothing else to standard output, and its log goes to standard error.
//!
//! End of file on standard input means that the driver died: the child answers the requests that are running and
//! exits, because nobody would restart or stop it any more.

use std::net::SocketAddr;
use std::path::PathBuf;

use plimsoll_protocol::wire::v1::{DriftReport, ModelHealth, ShadowTotals};
use plimsoll_protocol::{Digest, ModelName, UnixMillis};
use serde::{Deserialize, Serialize};

use super::bridge::Bridge;
use super::listen::SocketAt;

/// Longest line either side accepts: a drift report is at most 3 KiB, statistics of 8 models are under 4 KiB, a
/// reason is cut to [`MAX_REASON`]; the rest is room.
pub const MAX_LINE: usize = 64 * 1024;
/// Longest reason in bytes: an event's text holds 600.
pub const MAX_REASON: usize = 600;

/// From the driver to the child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// First order: where to listen. Answered by [`Answer::Listening`] or [`Answer::ListenFailed`].
    Configure {
        /// Loopback address of the inference endpoint; port 0 lets the system choose.
        listen: SocketAddr,
        /// A Unix socket beside it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        socket: Option<SocketAt>,
        /// Sensors' readings on a local broker.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bridge: Option<Box<Bridge>>,
        /// Largest request body in bytes; a larger one is answered 413.
        max_body: u64,
        /// The agent's version, told to callers of `GET /v2`.
        agent_version: String,
    },
    /// Second order: the models that this device runs. Until they serve, a request for one of them is told to come
    /// again; one for any other model, that it is not here. Not answered.
    Expect {
        /// Models.
        models: Vec<ModelName>,
    },
    /// Opens and warms up a bundle that the driver verified, beside whatever runs; takes no requests yet. Answered by
    /// [`Answer::Loaded`] or [`Answer::LoadFailed`]. Loading what is loaded answers at once.
    Load {
        /// Model.
        model: ModelName,
        /// Version.
        version: semver::Version,
        /// Digest of its `bundle.json`.
        digest: Digest,
        /// The slot.
        dir: PathBuf,
        /// Index that its next measurement window gets, so that a restarted child does not count from 0 again.
        #[serde(default)]
        next_window: u64,
    },
    /// Requests for the model go to this bundle from now on; the one before finishes what it has. Answered by
    /// [`Answer::Serving`], or [`Answer::Fault`] when it is not loaded.
    Serve {
        /// Model.
        model: ModelName,
        /// Digest of a loaded bundle.
        digest: Digest,
        /// When its first measurement window opens.
        now_ms: UnixMillis,
    },
    /// Asks a loaded bundle, too, what the bundle that serves its model is asked, for a share of the requests, and
    /// compares the answers; nobody gets the candidate's. Every [`Order::Stats`] is answered by [`Answer::Shadow`]
    /// from then on. Answered by [`Answer::ShadowRefused`] when the two cannot be compared. Ends when either leaves
    /// memory, or when the candidate serves.
    Shadow {
        /// Model.
        model: ModelName,
        /// The candidate.
        digest: Digest,
        /// What serves the model.
        with: Digest,
        /// Share of the requests, 1 to 100.
        sample_percent: u32,
        /// Which ones.
        seed: u64,
    },
    /// Compares no more; the candidate stays loaded. No answer.
    EndShadow {
        /// Model.
        model: ModelName,
        /// The candidate.
        digest: Digest,
    },
    /// Drops a bundle from memory, after its running requests. Its open window is closed and sent first. Answered
    /// by [`Answer::Unloaded`], also when it was not loaded.
    Unload {
        /// Model.
        model: ModelName,
        /// Digest.
        digest: Digest,
        /// End of its open window.
        now_ms: UnixMillis,
    },
    /// Closes every open measurement window and opens the next of what is served. Answered by [`Answer::Window`] for
    /// each part of each, empty ones too (silence is a report), then by [`Answer::WindowsClosed`].
    CloseWindows {
        /// End of these windows, start of the next.
        now_ms: UnixMillis,
    },
    /// What became of an [`Answer::HoldAsked`].
    HoldAnswered {
        /// As asked.
        id: u64,
        /// Whether it was done.
        done: bool,
        /// In words.
        text: String,
    },
    /// Answered by [`Answer::Stats`].
    Stats,
    /// Stop accepting, finish what runs, exit with 0. Answered by [`Answer::Drained`].
    Drain,
}

/// From the child to the driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The endpoint is open.
    Listening {
        /// With the port that the system chose, if asked to.
        addr: SocketAddr,
    },
    /// The endpoint could not be opened.
    ListenFailed {
        /// What was asked for.
        addr: SocketAddr,
        /// Why, and what to do.
        reason: String,
    },
    /// Loaded and warm.
    Loaded {
        /// Model.
        model: ModelName,
        /// Digest.
        digest: Digest,
        /// Resident memory of the child now.
        rss_bytes: u64,
        /// Load and first inference together.
        load_ms: u64,
    },
    /// Not loaded; nothing else changed.
    LoadFailed {
        /// Model.
        model: ModelName,
        /// Digest.
        digest: Digest,
        /// Why, at most [`MAX_REASON`] bytes.
        reason: String,
    },
    /// Requests go to this bundle.
    Serving {
        /// Model.
        model: ModelName,
        /// Digest.
        digest: Digest,
    },
    /// Out of memory (or was never in it).
    Unloaded {
        /// Model.
        model: ModelName,
        /// Digest.
        digest: Digest,
    },
    /// One part of a closed measurement window, small enough for one report.
    Window(Box<DriftReport>),
    /// All windows of one [`Order::CloseWindows`] were sent.
    WindowsClosed {
        /// As ordered.
        now_ms: UnixMillis,
    },
    /// Counters since each bundle was loaded; one entry a bundle in memory.
    Stats {
        /// Sorted by model and digest.
        models: Vec<ModelHealth>,
        /// Resident memory of the child.
        rss_bytes: u64,
    },
    /// What a shadow has compared since it began.
    Shadow {
        /// Model.
        model: ModelName,
        /// The candidate.
        digest: Digest,
        /// Rows, differences, times.
        totals: ShadowTotals,
    },
    /// The two cannot be compared.
    ShadowRefused {
        /// Model.
        model: ModelName,
        /// The candidate.
        digest: Digest,
        /// Why, at most [`MAX_REASON`] bytes.
        reason: String,
    },
    /// Something went wrong with a model or an order; the child goes on.
    Fault {
        /// The model, when one is concerned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<ModelName>,
        /// The bundle, when one is concerned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<Digest>,
        /// What was tried and why it failed, at most [`MAX_REASON`] bytes.
        reason: String,
    },
    /// An application asks over the inference endpoint that no update takes over for so many seconds; 0 ends that.
    /// Answered by [`Order::HoldAnswered`].
    HoldAsked {
        /// Rises with every one.
        id: u64,
        /// See above.
        for_s: u32,
    },
    /// A run will not end, and its thread cannot be stopped but with this process: it is to be replaced. Answers
    /// [`Order::Stats`] or [`Order::Unload`].
    Hangs {
        /// Which model.
        model: ModelName,
        /// Which bundle of it.
        digest: Digest,
        /// For how long, at most [`MAX_REASON`] bytes.
        reason: String,
    },
    /// Everything answered; the child exits next.
    Drained,
}

/// The one line that `plimsoll-agent selftest` prints: the report, or why there is none. Its exit status says the
/// same: 0 passed, 3 answered wrongly, 4 does not load or run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SelfTestLine {
    /// It ran.
    Report(plimsoll_runtime::SelfTestReport),
    /// It did not.
    Broken {
        /// Why.
        error: String,
    },
}

/// Cuts a reason to [`MAX_REASON`] bytes at a character's edge.
pub fn cut_reason(mut reason: String) -> String {
    if reason.len() > MAX_REASON {
        let mut end = MAX_REASON - '…'.len_utf8();
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        reason.push('…');
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_are_single_lines_that_read_back() {
        let digest = Digest::of(b"bundle");
        let model = ModelName::new("meter").unwrap();
        let order = Order::Load {
            model: model.clone(),
            version: "1.0.0".parse().unwrap(),
            digest,
            dir: "/slots/a".into(),
            next_window: 3,
        };
        let line = serde_json::to_string(&order).unwrap();
        assert!(line.starts_with(r#"{"order":"load","#) && !line.contains('\n'), "{line}");
        assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
        let answer = Answer::LoadFailed { model, digest, reason: "two\nlines".into() };
        let line = serde_json::to_string(&answer).unwrap();
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), answer);
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(cut_reason("short".into()), "short");
        let cut = cut_reason("é".repeat(MAX_REASON));
        assert!(cut.len() <= MAX_REASON && cut.ends_with('…'), "{} bytes", cut.len());
    }
}
