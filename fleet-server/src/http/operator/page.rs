//! The page: gathers values, lets [`crate::web`] render them. Read-only; whoever may read the API may read it, and
//! on loopback everybody when the configuration says so.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{DOCTYPE, Markup, html};
use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::{DeviceInfo, EventInfo, ServerInfo};
use plimsoll_protocol::ids::RolloutId;

use super::access::{COOKIE, Reader};
use super::{devices, drift, publish, server_info};
use crate::app::App;
use crate::clock;
use crate::http::problem::{Answer, Failure};
use crate::web::{self, DevicePage, FleetPage, RolloutPage};

/// Events on the fleet's page, and looked through for a device's.
const EVENTS: usize = 50;
const EVENTS_SEARCHED: usize = 1000;
/// How long a browser stays signed in: a working day.
const SIGNED_IN_S: u32 = 12 * 3600;
/// The sign-in page is the only one with a form.
const LOGIN_POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; \
     form-action 'self'; frame-ancestors 'none'";

/// A page, or why a browser is shown something else.
type Page = Result<Response, Instead>;

/// What a browser is shown instead of the page that it asked for.
pub enum Instead {
    /// The problem as it is.
    Failed(Failure),
    /// The form that takes a token.
    SignIn,
    /// A page that says what is missing.
    Missing(Markup),
}

impl From<Failure> for Instead {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl IntoResponse for Instead {
    fn into_response(self) -> Response {
        match self {
            Self::Failed(failure) => failure.into_response(),
            Self::SignIn => Redirect::to("/login").into_response(),
            Self::Missing(markup) => (StatusCode::NOT_FOUND, page(markup)).into_response(),
        }
    }
}

fn page(markup: Markup) -> Response {
    with_policy(Html(markup.into_string()).into_response(), web::CONTENT_SECURITY_POLICY)
}

fn with_policy(mut response: Response, policy: &'static str) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A browser without a token is sent to the form.
fn admitted(reader: Result<Reader, Failure>) -> Result<(), Instead> {
    reader.map(|_| ()).map_err(|_| Instead::SignIn)
}

async fn events(app: &App, limit: usize) -> Answer<Vec<EventInfo>> {
    Ok(app.store.events(None, limit).await?)
}

async fn fleet_markup(app: &App, render: fn(&FleetPage) -> Markup) -> Page {
    let server = server_info(app)?;
    let devices = devices::infos(app).await;
    let rollouts = app.book.lock().await.infos(app);
    let (models, events) = (publish::versions(app), events(app, EVENTS).await?);
    let values = FleetPage {
        now_ms: clock::now_ms(),
        server: &server,
        devices: &devices,
        rollouts: &rollouts,
        models: &models,
        events: &events,
    };
    Ok(page(render(&values)))
}

/// `GET /`.
pub async fn fleet(State(app): State<Arc<App>>, reader: Result<Reader, Failure>) -> Page {
    admitted(reader)?;
    fleet_markup(&app, web::fleet_page).await
}

/// `GET /fragment`.
pub async fn fleet_fragment(State(app): State<Arc<App>>, _: Reader) -> Page {
    fleet_markup(&app, web::fleet_fragment).await
}

async fn device_markup(app: &App, name: &str, render: fn(&DevicePage) -> Markup) -> Page {
    let server = server_info(app)?;
    let id = DeviceId::new(name).ok();
    let found: Option<DeviceInfo> =
        devices::infos(app).await.into_iter().find(|d| Some(&d.device) == id.as_ref());
    let Some(device) = found else { return Err(missing(&server, &format!("device {name}"))) };
    let mut events = events(app, EVENTS_SEARCHED).await?;
    events.retain(|e| e.device == id);
    events.truncate(EVENTS);
    let drift = drift::histograms(app, &device).await;
    let values = DevicePage {
        now_ms: clock::now_ms(),
        server: &server,
        device: &device,
        events: &events,
        drift: &drift,
    };
    Ok(page(render(&values)))
}

fn missing(server: &ServerInfo, what: &str) -> Instead {
    Instead::Missing(web::not_found_page(server, what))
}

/// `GET /devices/{device}`.
pub async fn device(
    State(app): State<Arc<App>>,
    reader: Result<Reader, Failure>,
    Path(name): Path<String>,
) -> Page {
    admitted(reader)?;
    device_markup(&app, &name, web::device_page).await
}

/// `GET /devices/{device}/fragment`.
pub async fn device_fragment(State(app): State<Arc<App>>, _: Reader, Path(name): Path<String>) -> Page {
    device_markup(&app, &name, web::device_fragment).await
}

async fn rollout_markup(app: &App, name: &str, render: fn(&RolloutPage) -> Markup) -> Page {
    let server = server_info(app)?;
    let book = app.book.lock().await;
    let known = RolloutId::new(name).ok().and_then(|id| Some((book.info(app, &id)?, book.members(&id))));
    drop(book);
    let Some((rollout, members)) = known else { return Err(missing(&server, &format!("rollout {name}"))) };
    let mut devices = devices::infos(app).await;
    devices.retain(|d| members.contains(&d.device));
    let values =
        RolloutPage { now_ms: clock::now_ms(), server: &server, rollout: &rollout, devices: &devices };
    Ok(page(render(&values)))
}

/// `GET /rollouts/{id}`.
pub async fn rollout(
    State(app): State<Arc<App>>,
    reader: Result<Reader, Failure>,
    Path(name): Path<String>,
) -> Page {
    admitted(reader)?;
    rollout_markup(&app, &name, web::rollout_page).await
}

/// `GET /rollouts/{id}/fragment`.
pub async fn rollout_fragment(State(app): State<Arc<App>>, _: Reader, Path(name): Path<String>) -> Page {
    rollout_markup(&app, &name, web::rollout_fragment).await
}

/// `GET /static/{name}`: the same for everybody, so open to everybody.
pub async fn asset(Path(name): Path<String>) -> Answer<impl IntoResponse> {
    let asset = web::asset(&name).ok_or_else(|| Failure::not_found(format!("there is no /static/{name}")))?;
    let headers = [(header::CONTENT_TYPE, asset.content_type), (header::CACHE_CONTROL, "max-age=300")];
    Ok((headers, asset.body))
}

/// `GET /login`.
pub async fn login_form() -> Response {
    login_page("").into_response()
}

/// `POST /login`: a token in a form becomes a cookie that scripts cannot read and other sites cannot send.
pub async fn login(State(app): State<Arc<App>>, body: String) -> Response {
    let token = body.strip_prefix("token=").unwrap_or_default().trim();
    // A token is letters, digits and dots: nothing in it is percent-encoded by a browser.
    if app.auth.check(token, clock::now_ms()).is_none() {
        let refused = login_page("This token is unknown, damaged or has expired.");
        return (StatusCode::UNAUTHORIZED, refused).into_response();
    }
    let cookie = format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age={SIGNED_IN_S}");
    match HeaderValue::from_str(&cookie) {
        Ok(cookie) => ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response(),
        Err(e) => Failure::internal(&e).into_response(),
    }
}

fn login_page(error: &str) -> Response {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Sign in · Plimsoll" }
                link rel="stylesheet" href="/static/app.css";
                link rel="icon" href="/static/icon.svg";
            }
            body {
                main {
                    h1 { "Sign in" }
                    @if !error.is_empty() { p role="alert" { (error) } }
                    form method="post" action="/login" {
                        label for="token" { "Token" }
                        " "
                        input id="token" name="token" type="password" autocomplete="current-password" required;
                        " "
                        button { "Sign in" }
                    }
                    p { "The first token is in admin.token of the server's state folder; `plimsoll token new` makes others." }
                }
            }
        }
    };
    with_policy(Html(markup.into_string()).into_response(), LOGIN_POLICY)
}
