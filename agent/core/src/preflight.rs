//! Can this device run that bundle at all? Answered from the manifest, before a file is fetched.
//!
//! "Not applicable" is not "failed": a fleet may mix hardware, and a gate must not count a device that a version
//! was never meant for.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_protocol::bundle::{Manifest, RuntimeKind};

/// What a device is.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// `x86_64`, `aarch64`, `armv7`.
    pub architecture: String,
    /// Of this agent.
    pub agent_version: semver::Version,
    /// Memory of the machine, bytes.
    pub ram_bytes: u64,
    /// Free on the file system of the state folder, bytes.
    pub disk_free_bytes: u64,
    /// Bytes of this bundle that a fetch which was interrupted has already put there.
    pub already_staged_bytes: u64,
    /// What an update must leave free, bytes.
    pub disk_reserve_bytes: u64,
    /// What the operator still allows bundles to take, bytes; `None` for what the disk has.
    pub quota_left_bytes: Option<u64>,
    /// Newest `ai.onnx` operator set that the runtime knows.
    pub max_opset: i64,
    /// Engines of the owner's that its settings name.
    pub engines: BTreeSet<String>,
    /// Operators that the runtime has, by domain (`""` is `ai.onnx`).
    pub operators: BTreeMap<String, BTreeSet<String>>,
}

/// Missing operators that a reason names; the rest are counted. Three tell an owner what kind of model it is.
const NAMED: usize = 3;

/// The requirement that the device does not meet, in words, or nothing.
pub fn preflight(manifest: &Manifest, device: &Device) -> Result<(), String> {
    let what = format!("{} {}", manifest.model, manifest.version);
    let arch = device.architecture.as_str();
    let wanted = &manifest.requires.architectures;
    if !wanted.is_empty() && !wanted.contains(arch) {
        let list: Vec<&str> = wanted.iter().map(String::as_str).collect();
        return Err(format!("{what} is for {}; this device is {arch}", list.join(", ")));
    }
    let Some(variant) = manifest.variant_for(arch) else {
        return Err(format!("{what} has no variant for {arch}"));
    };
    if let RuntimeKind::Onnx { opsets, operators } = &variant.runtime {
        let opset = opsets.get("").or_else(|| opsets.get("ai.onnx")).copied().unwrap_or(0);
        if opset > device.max_opset {
            return Err(format!(
                "{what} uses ai.onnx operator set {opset}; this agent's runtime knows up to {}: export it with a lower one",
                device.max_opset
            ));
        }
        if let Some(missing) = missing_operators(operators, &device.operators) {
            return Err(format!(
                "{what} uses {missing}, which the runtime of this agent ({}) does not have: update the agent, or export \
                 the model without it",
                device.agent_version
            ));
        }
    }
    if let RuntimeKind::External { engine } = &variant.runtime
        && !device.engines.contains(engine)
    {
        return Err(format!(
            "{what} is for the external engine {engine}, of which this device knows no self-test: set `selftest` in \
             [engines.{engine}] of its settings"
        ));
    }
    if let Some(oldest) = manifest.requires.agent_version.as_ref().filter(|v| **v > device.agent_version) {
        return Err(format!("{what} needs agent {oldest} or newer; this is {}", device.agent_version));
    }
    let ram = manifest.requires.min_ram_bytes;
    if ram > device.ram_bytes {
        return Err(format!("{what} needs {ram} bytes of memory; this device has {}", device.ram_bytes));
    }
    let missing = manifest.total_bytes().saturating_sub(device.already_staged_bytes);
    if let Some(left) = device.quota_left_bytes.filter(|left| missing > *left) {
        return Err(format!(
            "{what} needs {missing} bytes of disk; the quota of bundles (setting models_bytes) leaves {left}"
        ));
    }
    let reserve = device.disk_reserve_bytes;
    let needed = missing.saturating_add(reserve);
    if needed > device.disk_free_bytes {
        return Err(format!(
            "{what} needs {needed} bytes of disk ({missing} to fetch and {reserve} in reserve); {} are free",
            device.disk_free_bytes
        ));
    }
    Ok(())
}

/// What is wanted and not there, in words.
fn missing_operators(
    wanted: &BTreeMap<String, BTreeSet<String>>,
    has: &BTreeMap<String, BTreeSet<String>>,
) -> Option<String> {
    let known = |domain: &str, name: &String| has.get(domain).is_some_and(|names| names.contains(name));
    let missing: Vec<String> = wanted
        .iter()
        .flat_map(|(domain, names)| names.iter().map(move |name| (domain.as_str(), name)))
        .filter(|(domain, name)| !known(domain, name))
        .map(|(domain, name)| format!("{name} of {}", if domain.is_empty() { "ai.onnx" } else { domain }))
        .collect();
    let more = missing.len().saturating_sub(NAMED);
    let named = missing.get(..NAMED).unwrap_or(&missing).join(", ");
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (!missing.is_empty()).then(|| format!("operator {named}{more}"))
}

#[cfg(test)]
mod tests;
