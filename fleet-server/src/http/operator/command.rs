//! One-off commands to a connected device. The server only passes them on: what became of one is an event of the
//! device (`command.done`, `command.refused`), with the command's id in its text.

use std::sync::Arc;

use axum::extract::{Path, State};
use bytes::Bytes;
use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::{CommandSent, Role};
use plimsoll_protocol::wire::v1::{Command, CommandKind, Down};

use super::access::need;
use crate::app::App;
use crate::auth::Caller;
use crate::http::extract::{Json, id};
use crate::http::problem::{Answer, Failure};
use crate::secret;

/// Longest log filter that is passed on, bytes: three modules with their levels.
const MAX_FILTER: usize = 256;

/// `POST /devices/{device}/commands`. A device that is not connected is an error and not a queue: a command of
/// yesterday is not what somebody wants today, and what a device should *be* is its desired state's.
pub async fn send(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(device): Path<String>,
    Json(what): Json<CommandKind>,
) -> Answer<axum::Json<CommandSent>> {
    need(&caller, Role::Operator)?;
    let device: DeviceId = id(&device)?;
    if app.fleet.device(&device).is_none() {
        return Err(Failure::not_found(format!("device {device} does not exist")));
    }
    check(&what)?;
    let id = hex::encode(secret::random::<8>().map_err(|e| Failure::internal(&e))?);
    let command = Command { id: id.clone(), what };
    let payload = serde_json::to_vec(&command).map_err(|e| Failure::internal(&e))?;
    let gateway =
        app.gateway().ok_or_else(|| Failure::conflict("not-ready", "the MQTT listener is not up yet"))?;
    gateway.send(&app.identity(&device), Down::Command, Bytes::from(payload), false).map_err(|error| {
        Failure::conflict(
            "not-connected",
            format!("the command was not sent to {device}: {error}; try again when it is online"),
        )
    })?;
    app.audit(&caller.id, "device.command", device.to_string(), format!("{:?}, id {id}", command.what))
        .await?;
    Ok(axum::Json(CommandSent { id, device }))
}

fn check(what: &CommandKind) -> Answer<()> {
    match what {
        CommandKind::Unknown => {
            Err(Failure::bad("unknown-command", "a command is one of refresh, report, log, pause, resume"))
        }
        CommandKind::Log { filter, .. } if filter.len() > MAX_FILTER => {
            Err(Failure::bad("log-filter", format!("a log filter has at most {MAX_FILTER} bytes")))
        }
        _ => Ok(()),
    }
}
