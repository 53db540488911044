//! Blobs from a server that cuts, lies and stalls; small documents.

use super::testing::{Fault, Server};
use super::{BlobSink, FetchError};

/// A sink in memory.
#[derive(Default)]
pub(super) struct Memory(pub Vec<u8>);

impl BlobSink for Memory {
    fn have(&self) -> u64 {
        self.0.len() as u64
    }
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
    fn restart(&mut self) -> std::io::Result<()> {
        self.0.clear();
        Ok(())
    }
}

/// More than one batch and more than one TLS record, with no repeating pattern.
fn content() -> Vec<u8> {
    (0..700_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

async fn get(server: &Server, have: Vec<u8>) -> (Vec<u8>, Result<(), FetchError>) {
    let content = content();
    let digest = server.put_blob(&content);
    let (sink, result) = server.source(None).blob(digest, content.len() as u64, Memory(have)).await;
    (sink.unwrap().0, result)
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_stopped() {
    let server = Server::start().await;
    server.fault(Fault::CutAfter(300_000));
    let (have, cut) = get(&server, Vec::new()).await;
    assert!(cut.clone().unwrap_err().transient, "{cut:?}");
    assert!(!have.is_empty() && have.len() <= 300_000, "{} bytes were kept", have.len());
    server.fault(Fault::None);
    server.ranges();
    let kept = have.len();
    let (have, result) = get(&server, have).await;
    assert_eq!((result, have == content()), (Ok(()), true));
    assert_eq!(server.ranges(), [Some(format!("bytes={kept}-"))], "only the rest was asked for");
}

#[tokio::test]
async fn what_is_complete_is_not_asked_for_and_what_is_too_long_starts_over() {
    let server = Server::start().await;
    let (have, result) = get(&server, content()).await;
    assert_eq!((result, have.len(), server.ranges()), (Ok(()), content().len(), Vec::new()));
    let mut long = content();
    long.push(0);
    let (have, result) = get(&server, long).await;
    assert_eq!((result, have == content()), (Ok(()), true));
}

#[tokio::test]
async fn a_server_whose_parts_do_not_fit_is_asked_for_the_whole() {
    let server = Server::start().await;
    for fault in [Fault::WrongPart, Fault::NoRanges] {
        server.fault(fault);
        let (have, result) = get(&server, content()[..1000].to_vec()).await;
        assert_eq!((result, have == content()), (Ok(()), true), "{fault:?}");
    }
}

#[tokio::test]
async fn endless_data_is_cut_off_and_a_busy_server_says_when() {
    let server = Server::start().await;
    server.fault(Fault::Endless);
    let error = get(&server, Vec::new()).await.1.unwrap_err();
    assert!(!error.transient && error.code == "fetch.oversized", "{error:?}");
    server.fault(Fault::Busy);
    let error = get(&server, Vec::new()).await.1.unwrap_err();
    assert!(error.transient && error.retry_after.is_some_and(|d| d.as_secs() == 7), "{error:?}");
}

#[tokio::test]
async fn the_bandwidth_cap_holds_over_all_transfers() {
    let server = Server::start().await;
    let digest = server.put_blob(&content());
    let start = std::time::Instant::now();
    let source = server.source(Some(1_400_000));
    let (_, result) = source.blob(digest, content().len() as u64, Memory::default()).await;
    assert_eq!(result, Ok(()));
    assert!(
        start.elapsed().as_millis() >= 400,
        "0.7 MB at 1.4 MB/s take half a second: {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn small_documents_are_bounded_and_absence_is_an_answer() {
    let server = Server::start().await;
    server.put("/tuf/timestamp.json", b"0123456789");
    let source = server.source(None);
    assert_eq!(source.document("/tuf/timestamp.json", 10).await, Ok(Some(b"0123456789".to_vec())));
    assert_eq!(source.document("/tuf/2.root.json", 10).await, Ok(None));
    let error = source.document("/tuf/timestamp.json", 9).await.unwrap_err();
    assert!(error.code == "fetch.oversized" && !error.transient, "{error:?}");
}

#[tokio::test]
async fn another_fleets_server_is_not_spoken_to() {
    let (mine, other) = (Server::start().await, Server::start().await);
    let mut stray = mine;
    stray.identity.https = other.identity.https.clone();
    let error = stray.source(None).document("/tuf/timestamp.json", 10).await.unwrap_err();
    assert!(error.transient && error.text.contains("certificate"), "{error:?}");
}
