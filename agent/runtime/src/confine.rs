//! What a process that tries or runs models may take of its machine.
//!
//! A model that exhausts memory, aborts, overflows its stack or computes without end cannot be stopped from within, so
//! models live in processes of their own, and each such process bounds itself before it reads a byte of a model: at its
//! limit an allocation fails and the process aborts. That is a death like any other, told to whoever started it, where a
//! machine that swaps or thrashes until the kernel chooses a victim would serve nobody.

use std::io;
use std::process::ExitStatus;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::memory;

/// Stack of a thread that loads or runs a model, and of the process's first thread. The default of 2 MiB suffices for
/// every model measured; address space costs nothing, and an overflow would cost the process.
pub const STACK: usize = 16 * 1024 * 1024;
/// Of the machine's memory, what a process of models may use for data: four fifths. The rest is for the kernel, the
/// agent's driver (8 MB) and the device's own application; on 512 MiB that is 102 MiB.
const SHARE: (u64, u64) = (4, 5);
/// Between the signal that tells of too much processor time and the kill of whoever ignored it, seconds.
const CPU_GRACE_S: u64 = 5;

/// Limits of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Memory for data in bytes: allocated memory, not address space that is only reserved. `None` for no limit.
    pub data_bytes: Option<u64>,
    /// Processor time in seconds. `None` for no limit: a process that serves lives for months.
    pub cpu_s: Option<u64>,
}

impl Bounds {
    /// Of a process that serves on this machine.
    pub fn serving() -> Self {
        Self { data_bytes: share_of(memory::total_bytes()), cpu_s: None }
    }

    /// Of a process that tries one model on this machine, for at most so many seconds of processor time.
    pub fn trying(cpu_s: u64) -> Self {
        Self { cpu_s: Some(cpu_s), ..Self::serving() }
    }
}

/// The share of a machine's memory that a process of models may have; `None` where the memory is not known.
pub fn share_of(ram_bytes: u64) -> Option<u64> {
    let (of, parts) = SHARE;
    Some(ram_bytes / parts * of).filter(|bytes| *bytes > 0)
}

/// Bounds this process, for good: data, processor time, stack, and no core dump, which would write all of its memory to
/// the flash. A limit that is lower already stays. Every limit is tried; the first error is told.
pub fn confine(bounds: &Bounds) -> io::Result<()> {
    let cpu = bounds.cpu_s.map(|s| (s, s.saturating_add(CPU_GRACE_S)));
    let wanted = [
        (Resource::Core, Some((0, 0))),
        (Resource::Stack, Some((STACK as u64, STACK as u64))),
        (Resource::Data, bounds.data_bytes.map(|bytes| (bytes, bytes))),
        (Resource::Cpu, cpu),
    ];
    let mut result = Ok(());
    for (resource, limit) in wanted {
        let Some((soft, hard)) = limit else { continue };
        let now = getrlimit(resource);
        let lower = |wanted: u64, now: Option<u64>| Some(now.map_or(wanted, |now| now.min(wanted)));
        let (current, maximum) = (lower(soft, now.current), lower(hard, now.maximum));
        let set = setrlimit(resource, Rlimit { current, maximum });
        result = result.and(set.map_err(|e| io::Error::other(format!("limit of {resource:?}: {e}"))));
    }
    result
}

/// Runs `work` on a thread with [`STACK`], as models run in service, and waits for it. A panic goes on in the caller.
pub fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("model".into()).stack_size(STACK);
        let ended = thread.spawn_scoped(scope, work)?.join();
        Ok(ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// How a process of models ended, in words that follow "the process".
pub fn how_it_ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(9)) => "it was killed (signal 9; the kernel does so when memory runs out)".into(),
        (None, Some(6)) => {
            "it aborted (signal 6; an allocation beyond its memory limit does so, or an overflowing stack)"
                .into()
        }
        (None, Some(11)) => "it crashed (signal 11, a bad memory access)".into(),
        (None, Some(24)) => "it used more processor time than its limit (signal 24)".into(),
        (None, Some(signal)) => format!("it ended by signal {signal}"),
        (None, None) => "it ended in an unknown way".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_a_known_memory_is_for_models_and_an_unknown_one_bounds_nothing() {
        assert_eq!(share_of(512 * 1024 * 1024), Some(429_496_728));
        assert_eq!(share_of(0), None);
        assert!(Bounds::trying(7).data_bytes.is_some_and(|b| b < memory::total_bytes()));
    }

    #[test]
    fn work_with_room_recurses_deeper_than_a_thread_of_two_mib() {
        fn depth(n: u64) -> u64 {
            let room = std::hint::black_box([n; 64]);
            if n == 0 { 0 } else { 1 + depth(n - 1).max(room[0] - n) }
        }
        assert_eq!(with_room(|| depth(8_000)).unwrap(), 8_000);
    }

    #[test]
    fn ends_are_told_apart() {
        use std::os::unix::process::ExitStatusExt;
        for (raw, words) in
            [(3 << 8, "code 3"), (6, "stack"), (9, "memory"), (11, "crashed"), (24, "processor")]
        {
            assert!(how_it_ended(ExitStatus::from_raw(raw)).contains(words), "{raw}");
        }
    }
}
