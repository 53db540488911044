//! TUF metadata, from two sides: bytes that nobody signed, and documents whose signature is good because the fuzzer
//! holds the keys, so that it gets past the signatures to what is behind them.

use plimsoll_protocol::trust::{Client, KeyPair, Response, Signer as _, Step, TrustedDocs, canonical};
use serde_json::{Value, json};

/// A day in 2027, in seconds.
const NOW: i64 = 1_800_000_000;
/// Answers taken before the fuzzer has seen enough of one input.
const ANSWERS: usize = 12;

/// Bytes in the place of the pinned root, and of whatever is fetched after a good one.
pub fn unsigned(data: &[u8]) {
    let stored = TrustedDocs::from([("root.json".to_owned(), data.to_vec())]);
    let _ = Client::new(stored, NOW);
    let Some(mut client) = client() else { return };
    for _ in 0..ANSWERS {
        let kept = format!("{:?}", client.next());
        if client.supply(Response::Bytes(data)).is_err() {
            assert_eq!(format!("{:?}", client.next()), kept, "a refusal moved the client");
            if client.supply(Response::NotFound).is_err() {
                break;
            }
        }
    }
}

/// A JSON array of bodies, signed by the key of all roles and supplied one after the other; `null` is "not found".
pub fn signed(data: &[u8]) {
    let Ok(Value::Array(bodies)) = serde_json::from_slice(data) else { return };
    let Some(mut client) = client() else { return };
    for body in bodies.iter().take(ANSWERS) {
        let before = format!("{:?}", client.next());
        let supplied = match body {
            Value::Null => client.supply(Response::NotFound),
            body => match envelope(body) {
                Some(bytes) => client.supply(Response::Bytes(&bytes)),
                None => return,
            },
        };
        if supplied.is_err() {
            assert_eq!(format!("{:?}", client.next()), before, "a refusal moved the client");
            return;
        }
        if client.next() == Step::Refreshed && client.find("bundles/meter/1.0.0/bundle.json").is_err() {
            return;
        }
    }
}

/// The one key of every role.
fn key() -> KeyPair {
    KeyPair::from_seed(&[7; 32])
}

/// A client that trusts a root of one key.
fn client() -> Option<Client> {
    let id = key().id().to_string();
    let role = json!({"keyids": [id], "threshold": 1});
    let root = json!({
        "_type": "root", "spec_version": "1.0.31", "version": 1, "expires": "2030-01-01T00:00:00Z",
        "consistent_snapshot": true,
        "keys": {id: serde_json::to_value(key().key()).ok()?},
        "roles": {"root": role, "timestamp": role, "snapshot": role, "targets": role},
    });
    Client::new(TrustedDocs::from([("root.json".to_owned(), envelope(&root)?)]), NOW).ok()
}

/// Signs a body as it stands; a body without a canonical form cannot be signed.
fn envelope(body: &Value) -> Option<Vec<u8>> {
    let signature = key().sign(&canonical(body).ok()?).ok()?;
    let signature = json!({"keyid": key().id().to_string(), "sig": hex::encode(signature)});
    serde_json::to_vec(&json!({"signatures": [signature], "signed": body})).ok()
}
