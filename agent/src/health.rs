//! Health of the machine, by `sysinfo`: read every interval, reported as it was then.

use std::path::Path;

use sysinfo::{Components, CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// What was measured of the machine itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    /// Share of all cores since the last sample, 0 to 1.
    pub cpu: f32,
    /// Memory in use, bytes.
    pub ram_used_bytes: u64,
    /// Highest temperature, °C.
    pub temperature_c: Option<f32>,
    /// Free on the state folder's file system for this user, bytes.
    pub disk_free_bytes: u64,
    /// Resident memory of the driver, bytes (the children report their own).
    pub own_rss_bytes: u64,
}

/// What does not change while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// `Debian GNU/Linux 12`, for people.
    pub os: String,
    /// Bytes.
    pub ram_bytes: u64,
}

/// Keeps what `sysinfo` needs between two samples.
#[derive(Debug)]
pub struct Sampler {
    system: Option<System>,
    components: Option<Components>,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

impl Sampler {
    /// Where `sysinfo` cannot read the machine, samples are zero: health must not stop a device.
    pub fn new() -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        Self {
            system: System::new_with_specifics(kinds).ok(),
            components: Components::new_with_refreshed_list().ok(),
        }
    }

    /// The machine for the birth.
    pub fn machine(&self) -> Machine {
        Machine {
            os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
            ram_bytes: self.system.as_ref().map_or(0, System::total_memory),
        }
    }

    /// Memory that one more process could have now, bytes: of the machine, or of this service's control group when
    /// that is less. `None` where neither is known.
    pub fn ram_available(&mut self) -> Option<u64> {
        let system = self.system.as_mut()?;
        system.refresh_memory();
        let group = system.cgroup_limits().map(|limits| limits.free_memory).filter(|free| *free > 0);
        Some(system.available_memory()).into_iter().chain(group).min().filter(|bytes| *bytes > 0)
    }

    /// Measures now; the share of the processors is since the last call.
    pub fn sample(&mut self, state_dir: &Path) -> Sample {
        let mut sample =
            Sample { disk_free_bytes: disk_free(state_dir), own_rss_bytes: own_rss(), ..Sample::default() };
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            sample.cpu = (system.global_cpu_usage() / 100.0).clamp(0.0, 1.0);
            sample.ram_used_bytes = system.used_memory();
        }
        if let Some(components) = &mut self.components {
            components.refresh(false);
            let readings = components.iter().filter_map(|c| c.temperature()).filter(|t| t.is_finite());
            sample.temperature_c = readings.reduce(f32::max);
        }
        sample
    }
}

/// Bytes that this user may still write, 0 when the file system does not say.
pub fn disk_free(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
}

/// Resident memory of this process: `VmRSS` of `/proc/self/status`, which is in kB.
fn own_rss() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib = line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    kib.saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_of_this_machine_is_plausible() {
        let mut sampler = Sampler::new();
        let machine = sampler.machine();
        let sample = sampler.sample(Path::new("/"));
        assert!(machine.ram_bytes > 16 * 1024 * 1024, "{machine:?}");
        assert!(sample.ram_used_bytes > 0 && sample.ram_used_bytes <= machine.ram_bytes, "{sample:?}");
        assert!((0.0..=1.0).contains(&sample.cpu), "{sample:?}");
        assert!(sample.own_rss_bytes > 100 * 1024 && sample.disk_free_bytes > 0, "{sample:?}");
    }

    #[test]
    fn a_path_that_is_not_there_has_no_free_space() {
        assert_eq!(disk_free(Path::new("/nonexistent")), 0);
    }
}
