//! Files by digest, to and fro.

use plimsoll_protocol::Digest;
use reqwest::Method;

use crate::rig::{Publisher, Rig, problem, put_blob, until};

#[tokio::test]
async fn an_upload_with_another_digest_is_refused_and_nothing_is_kept() {
    let rig = Rig::start().await;
    let digest = Digest::of(b"what was announced");
    let path = format!("/blobs/sha256/{digest}");
    let wrong = rig.call(Method::PUT, &path).body("what was sent").send().await.unwrap();
    let wrong = problem(wrong, 400).await;
    assert!(wrong.kind == "wrong-digest" && wrong.detail.contains(&digest.to_string()), "{wrong:?}");
    let blobs = rig.server.as_ref().unwrap().app().blobs.clone();
    assert_eq!(blobs.length(&digest).await, None);
    assert_eq!(put_blob(&rig, b"what was announced").await.status(), 201);
    assert_eq!(put_blob(&rig, b"what was announced").await.status(), 200, "once more changes nothing");
    let bad = rig.call(Method::PUT, "/blobs/sha256/xyz").body("").send().await.unwrap();
    assert_eq!(problem(bad, 400).await.kind, "bad-id");
}

#[tokio::test]
async fn a_device_resumes_with_ranges() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n * 7) as u8).collect();
    assert_eq!(put_blob(&rig, &bytes).await.status(), 201);
    let digest = Digest::of(&bytes);
    let device = rig.enrol(&rig.join_token(1, 5).await, "cam-1").await;
    let client = rig.device_client(Some(&device));
    let url = format!("{}/blobs/sha256/{digest}", rig.https);
    let etag = format!("\"{digest}\"");

    let whole = client.get(&url).send().await.unwrap();
    assert_eq!(whole.headers()["etag"], etag);
    assert_eq!(whole.bytes().await.unwrap().to_vec(), bytes);

    let rest =
        client.get(&url).header("Range", "bytes=100000-").header("If-Range", &etag).send().await.unwrap();
    assert_eq!(rest.status(), 206);
    assert_eq!(rest.headers()["content-range"], "bytes 100000-299999/300000");
    assert_eq!(rest.bytes().await.unwrap().to_vec(), bytes[100_000..]);

    let other =
        client.get(&url).header("Range", "bytes=1-").header("If-Range", "\"old\"").send().await.unwrap();
    assert_eq!((other.status().as_u16(), other.content_length()), (200, Some(300_000)));
    let beyond = client.get(&url).header("Range", "bytes=300000-").send().await.unwrap();
    assert_eq!(beyond.status(), 416);
    assert_eq!(beyond.headers()["content-range"], "bytes */300000");
    let head = client.head(&url).send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), &head.headers()["content-length"]),
        (200, &"300000".parse().unwrap())
    );
    let known = client.get(&url).header("If-None-Match", &etag).send().await.unwrap();
    assert_eq!(known.status(), 304);
    let none = client.get(format!("{}/blobs/sha256/{}", rig.https, Digest::of(b"?"))).send().await.unwrap();
    assert!(problem(none, 404).await.detail.contains("no blob"));
}

#[tokio::test]
async fn a_device_gets_a_delta_when_there_is_one_and_is_told_when_there_is_none() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let noise = |seed: u32| -> Vec<u8> {
        (0..1_500_u32).flat_map(|n| *Digest::of(&(n + seed).to_le_bytes()).as_bytes()).collect()
    };
    let (old, other) = (noise(0), noise(9_000));
    let mut new = old.clone();
    new[20_000] ^= 1;
    for bytes in [&old, &new, &other] {
        assert_eq!(put_blob(&rig, bytes).await.status(), 201);
    }
    let device = rig.enrol(&rig.join_token(1, 5).await, "cam-1").await;
    let client = rig.device_client(Some(&device));
    let url = |new: &[u8]| format!("{}/deltas/sha256/{}/{}", rig.https, Digest::of(&old), Digest::of(new));
    let known = async |new: &[u8]| {
        until(&rig, "the delta to be built", async || {
            let answer = client.get(url(new)).send().await.unwrap();
            if answer.status() == 202 {
                assert_eq!(answer.headers()["retry-after"], "2");
                return None;
            }
            Some(answer)
        })
        .await
    };
    let delta = known(&new).await;
    assert_eq!(delta.status(), 200);
    let etag = delta.headers()["etag"].to_str().unwrap().to_owned();
    let bytes = delta.bytes().await.unwrap();
    assert!(bytes.len() < 1000, "one byte of 48,000 changed: {}", bytes.len());
    let part =
        client.get(url(&new)).header("Range", "bytes=96-").header("If-Range", etag).send().await.unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await.unwrap(), bytes.slice(96..));

    assert!(problem(known(&other).await, 404).await.detail.contains("0.9 of the file"));
    let unknown = client.get(url(b"never uploaded")).send().await.unwrap();
    assert!(problem(unknown, 404).await.detail.contains("does not have both files"));
    let stranger = rig.device_client(None).get(url(&new)).send().await.unwrap();
    assert_eq!(stranger.status(), 401);
}
