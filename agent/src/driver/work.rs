//! The work of an update, beside the driver: each function ends in one event and changes nothing of the driver's.
//!
//! All of it may be cut off at any instruction. What was fetched stays in the staging folder and is continued; what
//! is not verified never leaves it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use plimsoll_agent_core::{Device, Failure, ModelEvent, preflight};
use plimsoll_protocol::{Digest, ModelName, UnixSeconds};
use plimsoll_runtime::{MAX_OPSET, operators};

use crate::control::Downloads;
use crate::fetch::{self, Came, FetchError, HttpSource, Local, Trust, blocking, slot_error};
use crate::slots::Slots;

/// The end of a piece of work.
#[derive(Debug)]
pub(super) struct Done {
    /// Which bundle.
    pub about: Option<(ModelName, Digest)>,
    /// For the core.
    pub what: ModelEvent,
    /// Newest time that verified metadata proves.
    pub issued: Option<UnixSeconds>,
    /// Something was refused that the operator must hear of under its own code.
    pub refusal: Option<FetchError>,
    /// How the files of a fetch came, in words and in numbers.
    pub came: Option<(String, Downloads)>,
}

impl Done {
    /// An end that is an event and nothing else.
    pub const fn plain(what: ModelEvent) -> Self {
        Self { about: None, what, issued: None, refusal: None, came: None }
    }
}

/// What a fetch needs.
pub(super) struct FetchJob {
    pub source: HttpSource,
    pub trust: Trust,
    pub slots: Slots,
    pub model: ModelName,
    pub version: semver::Version,
    pub digest: Digest,
    pub now: UnixSeconds,
    pub ram_bytes: u64,
    pub engines: BTreeSet<String>,
}

/// Names the program that children are started with, where the kernel cannot execute this one by itself: under
/// user-mode emulation without binfmt it is the wrapper that starts the emulator. Whoever sets the agent's
/// environment also chooses its program, so nothing is trusted here that was not before.
const PROGRAM_VARIABLE: &str = "PLIMSOLL_AGENT_PROGRAM";

/// This program, for its children. The link in `/proc` still names it after an upgrade replaced the file.
pub(super) fn own_program() -> PathBuf {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE) {
        return PathBuf::from(program);
    }
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"))
}

/// Refreshes trust, admits the manifest, checks that this device can run it, fetches what is missing.
pub(super) async fn fetch(job: FetchJob) -> Done {
    let (mut issued, mut came) = (None, Came::default());
    let what = match fetch_inner(&job, &mut issued, &mut came).await {
        Ok(what) => what,
        Err(error) => {
            let failure = if error.transient { Failure::Transient } else { Failure::Permanent };
            let retry_after_ms = error.retry_after.and_then(|d| u64::try_from(d.as_millis()).ok());
            let what = ModelEvent::FetchFailed { failure, reason: error.text.clone(), retry_after_ms };
            return Done { issued, refusal: Some(error), ..Done::plain(what) };
        }
    };
    let came = (!came.files.is_empty()).then(|| {
        let downloads = Downloads { bundles: 1, bytes: came.size(), received: came.received };
        (format!("{} {}: {came}", job.model, job.version), downloads)
    });
    Done { issued, came, ..Done::plain(what) }
}

async fn fetch_inner(
    job: &FetchJob,
    issued: &mut Option<UnixSeconds>,
    came: &mut Came,
) -> Result<ModelEvent, FetchError> {
    let mut view = job.trust.refresh(&job.source, job.now).await?;
    *issued = view.issued();
    let (manifest, bytes) = view.manifest(&job.source, &job.model, &job.version, job.digest).await?;
    drop(view); // the next look need not wait for the files
    let device = device(&job.slots, job.ram_bytes, job.digest, job.engines.clone())?;
    if let Err(reason) = preflight(&manifest, &device) {
        return Ok(ModelEvent::NotApplicable { reason });
    }
    let slots = job.slots.clone();
    let (staging, missing) = blocking(move || {
        let staging = slots.stage(&manifest, &bytes)?;
        let missing = staging.missing();
        Ok((staging, missing))
    })
    .await?;
    let (slots, model, digest) = (job.slots.clone(), job.model.clone(), job.digest);
    let local = blocking(move || Ok(Local::find(&slots, &model, digest))).await?;
    let before = job.source.bytes_received();
    for entry in &missing {
        let way = fetch::file(&job.source, &local, &staging, entry).await?;
        came.files.push((entry.clone(), way));
        came.received = job.source.bytes_received() - before;
    }
    Ok(ModelEvent::FetchDone)
}

/// What this device brings to a bundle.
pub(super) fn device(
    slots: &Slots,
    ram_bytes: u64,
    digest: Digest,
    engines: BTreeSet<String>,
) -> Result<Device, FetchError> {
    Ok(Device {
        architecture: crate::arch().to_owned(),
        agent_version: crate::version(),
        ram_bytes,
        disk_free_bytes: slots.disk_free().map_err(slot_error)?,
        already_staged_bytes: slots.staged_bytes(digest),
        disk_reserve_bytes: slots.limits().reserve_bytes,
        quota_left_bytes: slots.quota_left(),
        max_opset: MAX_OPSET,
        engines,
        operators: operators(),
    })
}

/// Makes what was fetched a slot.
pub(super) async fn stage(slots: Slots, digest: Digest) -> ModelEvent {
    match blocking(move || slots.commit(digest)).await {
        Ok(_) => ModelEvent::Staged,
        Err(error) => {
            let failure = if error.transient { Failure::Transient } else { Failure::Permanent };
            ModelEvent::StageFailed { failure, reason: error.text }
        }
    }
}

#[cfg(test)]
mod tests;
