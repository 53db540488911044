//! Who calls: a bearer token, or for read-only pages a cookie, or nobody when pages are open on loopback.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use plimsoll_protocol::api::Role;

use crate::app::App;
use crate::auth::{Caller, includes};
use crate::clock;
use crate::http::problem::{Answer, Failure};

/// The cookie of a browser that signed in with a token.
pub const COOKIE: &str = "plimsoll_token";

/// Refuses a caller whose role does not include `role`.
pub fn need(caller: &Caller, role: Role) -> Answer<()> {
    if includes(caller.role, role) {
        return Ok(());
    }
    let (have, need) = (name(caller.role), name(role));
    Err(Failure::forbidden(format!("token {} has the role {have}; this needs {need}", caller.id)))
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Approver => "approver",
        Role::Publisher => "publisher",
        Role::Admin => "admin",
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|line| line.split(';')).find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// Calls that change something take a bearer token only: a browser never adds that by itself, so no other site can
/// make one act.
impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let refuse = |detail: &str| Failure::new(StatusCode::UNAUTHORIZED, "unauthorised", detail);
        let token = bearer(&parts.headers).ok_or_else(|| {
            refuse("this needs `Authorization: Bearer <token>`; the first one is in admin.token of the state folder")
        })?;
        app.auth
            .check(token, clock::now_ms())
            .ok_or_else(|| refuse("the token is unknown, damaged or has expired"))
    }
}

/// Somebody who may read pages and numbers.
pub struct Reader;

impl FromRequestParts<Arc<App>> for Reader {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let now = clock::now_ms();
        let token = bearer(&parts.headers).or_else(|| cookie(&parts.headers));
        let known = token.is_some_and(|token| app.auth.check(token, now).is_some());
        if known || (app.open_pages && is_local(&parts.headers)) {
            return Ok(Self);
        }
        let detail = "this needs a token: sign in at /login, or send `Authorization: Bearer <token>`";
        Err(Failure::new(StatusCode::UNAUTHORIZED, "unauthorised", detail))
    }
}

/// Whether the request was addressed to this machine by a name that no other site can take. A page elsewhere can
/// point a name of its own at 127.0.0.1 and then read the answer; it cannot be `localhost` or an address.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|h| h.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for (host, expect) in [
            ("127.0.0.1:8080", true),
            ("localhost:8080", true),
            ("[::1]:8080", true),
            ("10.0.0.7", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            assert_eq!(is_local(&headers), expect, "{host}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let headers =
            HeaderMap::from_iter([(header::COOKIE, "a=b; plimsoll_token=plt1.x.y; c=d".parse().unwrap())]);
        assert_eq!(cookie(&headers), Some("plt1.x.y"));
        let other = HeaderMap::from_iter([(header::COOKIE, "xplimsoll_token=1".parse().unwrap())]);
        assert_eq!(cookie(&other), None);
    }
}
