//! Memory of this process and its machine, as the kernel counts it.

/// Resident now, bytes; 0 where the kernel does not tell.
pub fn rss_bytes() -> u64 {
    status_kib("VmRSS:") * 1024
}

/// Peak resident so far, bytes; 0 where the kernel does not tell.
pub fn peak_rss_bytes() -> u64 {
    status_kib("VmHWM:") * 1024
}

/// Of the machine, bytes; 0 where the kernel does not tell.
pub fn total_bytes() -> u64 {
    kib("/proc/meminfo", "MemTotal:") * 1024
}

fn status_kib(key: &str) -> u64 {
    kib("/proc/self/status", key)
}

fn kib(file: &str, key: &str) -> u64 {
    let status = std::fs::read_to_string(file).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_tells_a_plausible_size() {
        let (now, peak) = (super::rss_bytes(), super::peak_rss_bytes());
        assert!(now > 64 * 1024 && peak >= now / 2, "{now} {peak}");
        assert!(super::total_bytes() > peak);
    }
}
