//! What one device's update costs in trust metadata: `name value unit`, one a line.
//!
//! A repository of 1,000 bundles in 50 delegated roles, one a model. A device of one model must load its own role
//! only: what the other 49 models add is a snapshot entry and a delegation each, never their bundles. The last
//! lines show that: twice the bundles of the *other* models change nothing.

use std::collections::BTreeMap;
use std::time::Instant;

use plimsoll_protocol::ModelName;
use plimsoll_protocol::api::TrustUpload;
use plimsoll_protocol::bundle::target_path;
use plimsoll_protocol::trust::repository::{
    OFFLINE_LIFETIME_S, Online, ROLE_LIFETIME_S, Repository, RootKeys, model_paths, sign_next,
};
use plimsoll_protocol::trust::{Client, KeyPair, Response, Root, Signer, Step, Store, Targets, TrustedDocs};

const NOW: i64 = 1_800_000_000;
const ROUNDS: u32 = 50;

fn main() {
    let small = measure("trust.50_roles.1000_bundles", 50, 20, 20);
    let alone = measure("trust.1_role.20_bundles", 1, 20, 20);
    let others = measure("trust.50_roles.1980_bundles_of_others", 50, 20, 40);
    println!("trust.bytes_per_other_model {} B", (small - alone) / 49);
    println!("trust.bytes_per_bundle_of_another_model {} B", (others - small) as f64 / (49.0 * 20.0));
}

/// Bytes of a first visit; `own` bundles of the device's model, `others` of each other one.
fn measure(name: &str, models: u32, own: u32, others: u32) -> u64 {
    let repository = repository(models, own, others);
    let root = repository.root().unwrap_or_default().to_vec();
    let enrolled = TrustedDocs::from([("root.json".to_owned(), root)]);
    let (stored, first, requests) = visit(&repository, enrolled.clone());
    println!("{name}.first_visit {first} B");
    println!("{name}.first_visit {requests} requests");
    let started = Instant::now();
    for _ in 0..ROUNDS {
        visit(&repository, enrolled.clone());
    }
    println!("{name}.first_visit {:.0} us", started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
    let (_, again, _) = visit(&repository, stored.clone());
    println!("{name}.unchanged {again} B");
    let started = Instant::now();
    for _ in 0..ROUNDS {
        visit(&repository, stored.clone());
    }
    println!("{name}.unchanged {:.0} us", started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
    first
}

/// One refresh and look-up: what is stored afterwards, bytes fetched, requests.
fn visit(repository: &Repository, mut stored: TrustedDocs) -> (TrustedDocs, u64, u32) {
    let (mut bytes, mut requests) = (0, 0);
    let mut client = Client::new(stored.clone(), NOW).expect("the repository is sound");
    let path = target_path(&model(0), &semver::Version::new(1, 0, 0));
    loop {
        match client.next() {
            Step::Fetch(fetch) => {
                let document = repository.document(&fetch.path);
                bytes += document.map_or(0, |d| d.len() as u64);
                requests += 1;
                let response = document.map_or(Response::NotFound, Response::Bytes);
                let stores = client.supply(response).expect("the repository is sound");
                for change in stores {
                    match change {
                        Store::Write { name, bytes } => stored.insert(name, bytes),
                        Store::Delete { name } => stored.remove(&name),
                    };
                }
            }
            Step::Refreshed => client.find(&path).expect("the repository is sound"),
            Step::Found(_) => return (stored, bytes, requests),
            Step::NotListed { path } => panic!("{path} is not listed"),
        }
    }
}

fn model(index: u32) -> ModelName {
    ModelName::new(&format!("model-{index}")).expect("a valid name")
}

fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

fn repository(models: u32, own: u32, others: u32) -> Repository {
    let online = Online { snapshot: key(1), timestamp: key(2) };
    let root = Root::of(&RootKeys {
        root: (vec![key(3).key()], 1),
        targets: (vec![key(4).key()], 1),
        snapshot: online.snapshot.key(),
        timestamp: online.timestamp.key(),
    });
    let mut targets = Targets::default();
    let mut roles = BTreeMap::new();
    for index in 0..models {
        // A key of its own for each team.
        let team = KeyPair::from_seed(&[(100 + index) as u8; 32]);
        let name = model(index);
        targets.delegate(name.as_str(), &[team.key()], 1, model_paths(&name));
        let mut body = Targets::default();
        for minor in 0..if index == 0 { own } else { others } {
            let version = semver::Version::new(1, u64::from(minor), 0);
            body.add_bundle(&name, &version, format!("manifest of {name} {version}").as_bytes());
        }
        let signed = sign_next(None, body, NOW, ROLE_LIFETIME_S, &[&team as &dyn Signer]).expect("signs");
        roles.insert(name.to_string(), signed);
    }
    let upload = TrustUpload {
        root: Some(sign_next(None, root, NOW, OFFLINE_LIFETIME_S, &[&key(3) as &dyn Signer]).expect("signs")),
        targets: Some(
            sign_next(None, targets, NOW, OFFLINE_LIFETIME_S, &[&key(4) as &dyn Signer]).expect("signs"),
        ),
        roles,
    };
    Repository::default().propose(&upload, &online, NOW).expect("the repository is sound").repository
}
