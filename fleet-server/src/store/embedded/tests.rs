//! The rules of [`super::durable`], one by one.

use std::path::Path;

use super::*;
use crate::store::contract::{device, enrolment, join_token, report};
use crate::store::{Change, ReportBody, contract};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn what_was_answered_is_there_when_the_process_dies_in_the_next_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store")).unwrap();
    store.add_join_token(join_token("t1", 100)).await.unwrap();
    for n in 0..20 {
        store.enrol(enrolment(&format!("d{n}"), b"k")).await.unwrap();
        // The files as a killed process would leave them: nothing was closed or flushed since the answer.
        let dead = dir.path().join(format!("dead-{n}"));
        copy(&dir.path().join("store"), &dead);
        let revived = Embedded::open(&dead).unwrap();
        assert_eq!(revived.devices().await.unwrap().len(), n + 1);
        assert_eq!(revived.join_tokens().await.unwrap()[0].uses_left, 99 - n as u32);
    }
}

#[tokio::test]
async fn a_store_that_is_dropped_without_a_word_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    for n in 1..=3 {
        let store = Embedded::open(dir.path()).unwrap();
        store.commit_reports(vec![report("a", n, ReportBody::Seen)]).await.unwrap();
        let again = store.commit_reports(vec![report("a", n, ReportBody::Seen)]).await.unwrap();
        assert_eq!(again, [Outcome::Duplicate]);
        drop(store);
        assert!(dir.path().join(durable::CLEAN_MARKER).exists());
    }
}

#[tokio::test]
async fn a_torn_snapshot_file_is_removed_before_sled_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    store.add_join_token(join_token("t1", 1)).await.unwrap();
    drop(store);
    let torn = dir.path().join("snap.00000000000FFFFF.generating");
    std::fs::write(&torn, b"").unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    assert!(!torn.exists());
    assert_eq!(store.join_tokens().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_store_that_does_not_open_is_set_aside_and_the_export_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (path, export) = (dir.path().join("store"), dir.path().join("export.jsonl"));
    let store = Embedded::open(&path).unwrap();
    store.add_join_token(join_token("t1", 5)).await.unwrap();
    store.enrol(enrolment("a", b"a")).await.unwrap();
    contract::a_long_value_is_kept_whole(&store).await;
    store.export(&export).unwrap();
    drop(store);
    std::fs::write(path.join("conf"), b"not a configuration").unwrap();
    let (e, p) = (export.clone(), path.clone());
    let opened = tokio::task::spawn_blocking(move || open_or_recover(&p, &e, &Probe::Skip, 77))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(opened.notes.len(), 2, "{:?}", opened.notes);
    assert!(dir.path().join("store.damaged-77").join("db").exists(), "nothing is deleted");
    assert_eq!(opened.store.devices().await.unwrap()[0].device, device("a"));
    assert_eq!(opened.store.rollouts().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_clean_store_is_not_looked_at_by_a_child_and_an_unclean_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let (path, export) = (dir.path().join("store"), dir.path().join("export.jsonl"));
    drop(Embedded::open(&path).unwrap());
    let failing = Probe::Child("/bin/false".into());
    let (p, e, probe) = (path.clone(), export.clone(), failing.clone());
    let open = move || open_or_recover(&p, &e, &probe, 1).map(|o| o.notes);
    let notes = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    std::fs::remove_file(path.join(durable::CLEAN_MARKER)).unwrap();
    let open = move || open_or_recover(&path, &export, &failing, 2).map(|o| o.notes);
    let notes = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
    assert!(notes[0].contains("does not open in a child process"), "{notes:?}");
}

#[tokio::test]
async fn many_writers_share_commits_and_all_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(Embedded::open(dir.path()).unwrap());
    let writers = (1..=200).map(|n| {
        let store = std::sync::Arc::clone(&store);
        tokio::spawn(
            async move { store.commit_reports(vec![report("a", n, ReportBody::Seen)]).await.unwrap() },
        )
    });
    for writer in writers.collect::<Vec<_>>() {
        assert_eq!(writer.await.unwrap(), [Outcome::Fresh(Change::Nothing)]);
    }
    drop(store);
    let store = Embedded::open(dir.path()).unwrap();
    let again = (1..=200).map(|n| report("a", n, ReportBody::Seen)).collect();
    assert!(store.commit_reports(again).await.unwrap().iter().all(|o| *o == Outcome::Duplicate));
}
