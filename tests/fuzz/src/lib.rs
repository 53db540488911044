//! One function for every parser that reads bytes from outside: any bytes may come, and it may not panic, run away or
//! accept what it would not write itself.
//!
//! The functions are called from two sides: by a coverage-guided fuzzer (`tests/fuzz/run`, libFuzzer), for as long as
//! one likes, and by a test of the ordinary run, with the inputs that the fuzzer found worth keeping (`corpus/NAME/`).

mod archive;
mod delta;
mod messages;
mod metadata;
mod request;

use plimsoll_fleet_core::Selector;
use plimsoll_fleet_core::selector::{MAX_DEPTH, MAX_LENGTH};
use plimsoll_protocol::bundle::Manifest;
use plimsoll_protocol::drift::Baseline;
use plimsoll_protocol::wire::v1::JoinToken;
use plimsoll_protocol::{DeviceId, DeviceIdentity, TenantId};
use plimsoll_server::ca::CheckedRequest;

/// What is done with the bytes of an input.
pub type Target = fn(&[u8]);

/// What is fuzzed: name of the target, which is that of its corpus, and the target.
pub const TARGETS: [(&str, Target); 11] = [
    ("manifest", manifest),
    ("baseline", baseline),
    ("metadata", metadata::unsigned),
    ("signed_metadata", metadata::signed),
    ("join_token", join_token),
    ("certificate_request", certificate_request),
    ("reports", messages::reports),
    ("selector", selector),
    ("delta", delta::delta),
    ("archive", archive::archive),
    ("request", request::request),
];

/// Gives `data` to the target of this name. Panics where the target does, and when there is none.
pub fn run(name: &str, data: &[u8]) {
    match TARGETS.iter().find(|(target, _)| *target == name) {
        Some((_, target)) => target(data),
        None => panic!("no target {name}"),
    }
}

/// `bundle.json`: what is accepted is written as it was read.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        let again = Manifest::parse(&manifest.to_bytes());
        assert_eq!(again.as_ref(), Ok(&manifest), "an accepted manifest must read back as itself");
        let _ = manifest.total_bytes();
    }
}

/// The drift baseline of a bundle.
pub fn baseline(data: &[u8]) {
    if let Ok(baseline) = Baseline::parse(data) {
        let again = Baseline::parse(&baseline.to_bytes());
        assert_eq!(again.as_ref().ok(), Some(&baseline), "an accepted baseline must read back as itself");
    }
}

/// The token that an operator carries to a device.
pub fn join_token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<JoinToken>() {
        Ok(token) => assert_eq!(token.reveal(), text.trim(), "a token has one text"),
        // The refusal must not repeat what may be most of a secret.
        Err(error) => {
            let digits = |part: &&str| part.len() >= 16 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let secret = text.split('.').nth(2).filter(digits);
            assert!(secret.is_none_or(|part| !error.to_string().contains(part)), "{error}");
        }
    }
}

/// What a device asks to be certified.
pub fn certificate_request(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let (Ok(tenant), Ok(device)) = (TenantId::new("main"), DeviceId::new("camera-1")) {
        let _ = CheckedRequest::parse(DeviceIdentity { tenant, device }, text);
    }
}

/// What an operator calls a part of the fleet.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(selector) = Selector::parse(text) {
        let said = selector.to_string();
        let again = Selector::parse(&said).map(|s| s.to_string());
        // Written in full it may be longer or deeper than what is read.
        if said.len() > MAX_LENGTH || said.matches('(').count() > MAX_DEPTH {
            return;
        }
        assert_eq!(again.as_deref().ok(), Some(said.as_str()), "what a selector prints must mean itself");
    }
}
