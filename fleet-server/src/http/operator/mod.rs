//! What people and programs call: `/api/v1` with tokens, the page, `/metrics`, `/healthz`.

mod access;
mod authorities;
mod command;
mod devices;
mod drift;
mod events;
mod export;
mod page;
mod publish;
mod rollouts;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use plimsoll_protocol::api::{Role, ServerInfo};

use super::problem::{Answer, Failure, no_such_method, no_such_path};
use crate::app::App;
use crate::auth::Caller;
use crate::metrics;

use self::access::Reader;

/// The routes.
pub fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/server", get(server))
        .route("/tokens", post(tokens::create))
        .route("/join-tokens", get(tokens::list_join).post(tokens::create_join))
        .route("/join-tokens/{id}/revoke", post(tokens::revoke_join))
        .route("/ca", get(authorities::show))
        .route("/ca/prepare", post(authorities::prepare))
        .route("/ca/switch", post(authorities::switch))
        .route("/trust", get(publish::trust))
        .route("/trust/metadata", put(publish::metadata))
        .route("/trust/documents/{name}", get(publish::document))
        .route("/trust/online-keys", post(publish::online_keys))
        .route("/trust/freshness", post(export::freshness))
        .route("/trust/proposals", get(publish::proposals))
        .route("/trust/proposals/{id}", put(publish::propose).delete(publish::drop_proposal))
        .route(
            "/blobs/sha256/{digest}",
            put(publish::blob).layer(DefaultBodyLimit::disable()).get(publish::read_blob),
        )
        .route("/models", get(publish::models))
        .route("/devices", get(devices::list))
        .route("/devices/{device}", get(devices::show))
        .route("/devices/{device}/drift", get(drift::show))
        .route("/devices/{device}/commands", post(command::send))
        .route("/devices/{device}/revoke", post(devices::revoke))
        .route("/devices/{device}/readmit", post(devices::readmit))
        .route("/rollouts", get(rollouts::list).post(rollouts::start))
        .route("/rollouts/{id}", get(rollouts::show))
        .route("/rollouts/{id}/{action}", post(rollouts::act))
        .route("/events", get(events::list))
        .route("/events/stream", get(events::stream))
        .route("/audit", get(events::audit));
    Router::new()
        .nest("/api/v1", api)
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(numbers))
        .route("/", get(page::fleet))
        .route("/fragment", get(page::fleet_fragment))
        .route("/devices/{device}", get(page::device))
        .route("/devices/{device}/fragment", get(page::device_fragment))
        .route("/rollouts/{id}", get(page::rollout))
        .route("/rollouts/{id}/fragment", get(page::rollout_fragment))
        .route("/events/stream", get(events::page_stream))
        .route("/static/{name}", get(page::asset))
        .route("/login", get(page::login_form).post(page::login))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(app)
}

async fn server(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<ServerInfo>> {
    access::need(&caller, Role::Viewer)?;
    server_info(&app).map(axum::Json)
}

/// This server, as the API and the page show it.
fn server_info(app: &App) -> Answer<ServerInfo> {
    let addresses = app.addresses.get().ok_or(crate::store::StoreError::Stopped)?;
    let version = semver::Version::parse(env!("CARGO_PKG_VERSION")).map_err(|e| Failure::internal(&e))?;
    Ok(ServerInfo {
        version,
        tenant: app.tenant.to_string(),
        device_https: format!("https://{}:{}", app.public_host, addresses.https.port()),
        device_mqtt: format!("{}:{}", app.public_host, addresses.mqtt.port()),
        dashboard_mqtt: addresses.dashboard.to_string(),
        ca: app.ca.issuing().fingerprint(),
    })
}

async fn numbers(State(app): State<Arc<App>>, _: Reader) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::render(&app).await)
}
