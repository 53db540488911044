//! Tokens and roles, malformed requests, pages, numbers.

use plimsoll_protocol::api::TokenCreated;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::rig::{Rig, problem};

async fn token(rig: &Rig, role: &str) -> String {
    let answer = rig.post("/tokens", json!({ "name": role, "role": role, "days": 1 })).await;
    assert_eq!(answer.status(), 200);
    answer.json::<TokenCreated>().await.unwrap().token
}

#[tokio::test]
async fn each_role_may_do_what_it_is_for_and_nothing_above() {
    let rig = Rig::start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let calls = [
        (Method::GET, "/devices", json!(null)),
        (Method::POST, "/join-tokens", json!({ "uses": 1, "minutes": 1 })),
        (Method::POST, "/rollouts/none/approve", json!({})),
        (Method::PUT, "/trust/metadata", json!({})),
        (Method::PUT, "/trust/metadata", json!({ "root": {} })),
        (Method::POST, "/tokens", json!({ "name": "x", "role": "viewer", "days": 1 })),
    ];
    // For each call of the list above.
    let table = [
        ("viewer", [true, false, false, false, false, false]),
        ("operator", [true, true, false, false, false, false]),
        ("approver", [true, true, true, false, false, false]),
        ("publisher", [true, false, false, true, false, false]),
        ("admin", [true; 6]),
    ];
    for (role, allowed) in table {
        let token = token(&rig, role).await;
        for ((method, path, body), may) in calls.iter().zip(allowed) {
            let request = client.request(method.clone(), format!("{}/api/v1{path}", rig.http));
            let status = request.bearer_auth(&token).json(body).send().await.unwrap().status();
            assert_eq!(status != StatusCode::FORBIDDEN, may, "{role} {method} {path}: {status}");
            assert_ne!(status, StatusCode::UNAUTHORIZED, "{role} {path}");
        }
    }
}

#[tokio::test]
async fn without_a_good_token_the_api_says_so() {
    let rig = Rig::start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/api/v1/devices", rig.http);
    let none = problem(client.get(&url).send().await.unwrap(), 401).await;
    assert!(none.detail.contains("admin.token"), "{none:?}");
    for bad in ["", "nonsense", "plt1.00000000.00000000000000000000000000000000"] {
        problem(client.get(&url).bearer_auth(bad).send().await.unwrap(), 401).await;
    }
}

#[tokio::test]
async fn a_malformed_request_is_a_problem_that_names_its_object() {
    let rig = Rig::start().await;
    let post = |path: &'static str, body: &'static str| rig.call(Method::POST, path).body(body).send();
    for (path, body, status, words) in [
        ("/rollouts", "{", 400, "/rollouts"),
        ("/rollouts", "{\"model\": \"m\"}", 400, "version"),
        ("/rollouts", "{\"model\":\"m\",\"version\":\"1.0.0\",\"stages\":[],\"x\":1}", 400, "unknown field"),
        ("/rollouts", "{\"model\":\"m\",\"version\":\"1.0.0\",\"stages\":[]}", 400, "stages"),
        (
            "/rollouts",
            "{\"model\":\"m\",\"version\":\"1.0.0\",\"stages\":[{\"size\":\"100%\"}]}",
            404,
            "m 1.0.0",
        ),
        ("/rollouts/r9/pause", "", 404, "r9"),
        ("/rollouts/r9/explode", "", 404, "explode"),
        ("/rollouts/a.b/pause", "", 400, "a.b"),
        ("/devices/cam-9/revoke", "", 404, "cam-9"),
        ("/devices/../revoke", "", 404, "revoke"),
        ("/join-tokens", "{\"uses\":0,\"minutes\":5}", 400, "uses"),
        ("/tokens", "{\"name\":\"\",\"role\":\"viewer\",\"days\":1}", 400, "name"),
        ("/nowhere", "", 404, "/nowhere"),
        ("/models", "", 405, "POST"),
    ] {
        let found = problem(post(path, body).await.unwrap(), status).await;
        assert!(found.detail.contains(words), "{path} {body}: {found:?}");
    }
    let big = rig.call(Method::POST, "/rollouts").body(vec![b' '; 1024 * 1024]).send().await.unwrap();
    problem(big, 413).await;
}

#[tokio::test]
async fn pages_are_open_on_loopback_and_closed_when_told_so() {
    let rig = Rig::start().await;
    for path in ["/", "/fragment", "/metrics", "/healthz"] {
        assert_eq!(rig.page(path).send().await.unwrap().status(), 200, "{path}");
    }
    let page = rig.page("/").send().await.unwrap();
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    let rebound = rig.page("/fragment").header("Host", "evil.example").send().await.unwrap();
    assert_eq!(rebound.status(), 401, "another site's name for this address opens nothing");
    let missing = rig.page("/devices/nobody").send().await.unwrap();
    assert_eq!(missing.status(), 404);

    let dir = tempfile::tempdir().unwrap();
    let closed = Rig::with(dir, |raw| plimsoll_server::config::Raw { closed_pages: true, ..raw }).await;
    assert_eq!(closed.page("/metrics").send().await.unwrap().status(), 401);
    let asked = closed.page("/").send().await.unwrap();
    assert!(asked.url().path().ends_with("/login"));
    let client =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let login =
        |token: String| client.post(format!("{}/login", closed.http)).body(format!("token={token}")).send();
    assert_eq!(login("plt1.0.0".into()).await.unwrap().status(), 401);
    let signed_in = login(closed.admin.clone()).await.unwrap();
    let cookie = signed_in.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(closed.page("/").header("Cookie", cookie).send().await.unwrap().status(), 200);
    let api =
        client.get(format!("{}/api/v1/devices", closed.http)).header("Cookie", cookie).send().await.unwrap();
    assert_eq!(api.status(), 401, "a cookie never opens the API");
}

#[tokio::test]
async fn what_people_did_is_in_a_chain_that_holds() {
    let rig = Rig::start().await;
    rig.join_token(1, 1).await;
    token(&rig, "viewer").await;
    let log: Value = rig.get("/audit").await;
    let actions: Vec<&str> = log.as_array().unwrap().iter().map(|e| e["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["join-token.create", "token.create"]);
    assert!(!log.to_string().contains("plt1."), "no secret is logged");
    let log: Vec<plimsoll_server::store::AuditRecord> = serde_json::from_value(log).unwrap();
    plimsoll_server::store::verify_audit(&log).unwrap();
}
