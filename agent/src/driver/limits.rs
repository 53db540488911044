//! What a process that runs models may take of the device.
//!
//! The kernel ends the serving child first when memory runs out (its `oom_score_adj` says so), but a device that
//! swaps or thrashes until then serves nobody. So the children have a limit of their own, at which an allocation
//! fails and the child aborts: a death like any other, told, and in a trial a reason to roll back.

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Of the machine's memory, what a child may use for data: four fifths. The rest is for the kernel, this driver
/// (8 MB) and the device's own application; on 512 MiB that is 102 MiB.
const SHARE: (u64, u64) = (4, 5);

/// Bytes of data that a child may have on a machine with so much memory; `None` where that is not known.
pub(super) fn data_bytes(ram_bytes: u64) -> Option<u64> {
    let (of, parts) = SHARE;
    Some(ram_bytes / parts * of).filter(|bytes| *bytes > 0)
}

/// Limits a child that was just started: its data (which counts memory that is allocated and not address space that is
/// only reserved), and no core dump, which would write all of it to the flash. A child that cannot be limited is told
/// and runs without.
pub(super) fn limit(pid: Option<u32>, data_bytes: Option<u64>) {
    let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) else { return };
    let wanted = [(Resource::Core, Some(0)), (Resource::Data, data_bytes)];
    for (resource, most) in wanted {
        if most.is_none() {
            continue;
        }
        if let Err(error) = prlimit(Some(pid), resource, Rlimit { current: most, maximum: most }) {
            tracing::warn!(%error, resource = ?resource, "a process that runs models has no limit");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_its_limits_and_one_that_needs_more_memory_ends() {
        // It asks for 300 MB, when it is told to.
        let script = "read go; head -c 300000000 /dev/zero | tail -c 300000000 > /dev/null";
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        limit(Some(child.id()), data_bytes(80 * 1024 * 1024));
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        let line = |name: &str| limits.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
        assert!(line("Max data size").contains("67108864"), "{limits}");
        assert!(line("Max core file size").contains(" 0 "), "{limits}");
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
        assert!(!child.wait().unwrap().success(), "it got more than its limit");
        assert_eq!(data_bytes(0), None);
    }
}
