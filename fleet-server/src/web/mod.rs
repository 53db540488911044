//! The web page: values in, markup out.
//!
//! Nothing here knows a store, a router or a clock; the caller gathers values and names the time. Everything is
//! escaped by construction (maud), and the page needs neither inline script nor inline style, so that
//! [`CONTENT_SECURITY_POLICY`] can forbid both. Without the script the page still works: it reloads itself.
//!
//! Each page is a [`layout`] around a fragment. The script listens to the server's events and swaps the fragment,
//! so what it shows is always what a reload would show.
//!
//! | page | fragment | renders |
//! |---|---|---|
//! | `/` | `/fragment` | [`fleet_page`], [`fleet_fragment`] |
//! | `/devices/{device}` | `/devices/{device}/fragment` | [`device_page`], [`device_fragment`] |
//! | `/rollouts/{rollout}` | `/rollouts/{rollout}/fragment` | [`rollout_page`], [`rollout_fragment`] |
//! | `/static/{name}` | | [`asset`] |
//!
//! Deliberately absent: buttons that change something. The page is read-only; changes go through `plimsoll`, with a
//! token and a reason.

mod assets;
mod device;
mod events;
mod fleet;
mod histogram;
mod layout;
mod models;
mod rollout;
mod shadow;
#[cfg(test)]
mod tests;
mod words;

use maud::Markup;
use plimsoll_protocol::UnixMillis;
use plimsoll_protocol::api::{DeviceInfo, EventInfo, ModelVersion, RolloutInfo, ServerInfo};

pub use assets::{Asset, CONTENT_SECURITY_POLICY, asset};
pub use histogram::{Histogram, charts, histogram};

/// What the fleet page shows.
#[derive(Debug, Clone, Copy)]
pub struct FleetPage<'a> {
    /// Server time.
    pub now_ms: UnixMillis,
    /// This server.
    pub server: &'a ServerInfo,
    /// By name.
    pub devices: &'a [DeviceInfo],
    /// Newest first.
    pub rollouts: &'a [RolloutInfo],
    /// Newest first.
    pub models: &'a [ModelVersion],
    /// Newest first.
    pub events: &'a [EventInfo],
}

/// What the page of one device shows.
#[derive(Debug, Clone, Copy)]
pub struct DevicePage<'a> {
    /// Server time.
    pub now_ms: UnixMillis,
    /// This server.
    pub server: &'a ServerInfo,
    /// The device.
    pub device: &'a DeviceInfo,
    /// Its own events, newest first.
    pub events: &'a [EventInfo],
    /// Its last measurement window against the baseline, a feature each, alarms first; empty when there is none.
    pub drift: &'a [Histogram],
}

/// What the page of one rollout shows.
#[derive(Debug, Clone, Copy)]
pub struct RolloutPage<'a> {
    /// Server time.
    pub now_ms: UnixMillis,
    /// This server.
    pub server: &'a ServerInfo,
    /// The rollout.
    pub rollout: &'a RolloutInfo,
    /// Devices it concerns, by name.
    pub devices: &'a [DeviceInfo],
}

/// The whole fleet.
pub fn fleet_page(page: &FleetPage) -> Markup {
    layout::document("Fleet", "/fragment", page.server, fleet_fragment(page))
}

/// The live part of [`fleet_page`].
pub fn fleet_fragment(page: &FleetPage) -> Markup {
    fleet::fragment(page)
}

/// One device.
pub fn device_page(page: &DevicePage) -> Markup {
    let name = page.device.device.as_str();
    layout::document(name, &format!("/devices/{name}/fragment"), page.server, device_fragment(page))
}

/// The live part of [`device_page`].
pub fn device_fragment(page: &DevicePage) -> Markup {
    device::fragment(page)
}

/// One rollout.
pub fn rollout_page(page: &RolloutPage) -> Markup {
    let id = page.rollout.id.as_str();
    layout::document(id, &format!("/rollouts/{id}/fragment"), page.server, rollout_fragment(page))
}

/// The live part of [`rollout_page`].
pub fn rollout_fragment(page: &RolloutPage) -> Markup {
    rollout::fragment(page)
}

/// What a browser shows when a device or rollout does not exist.
pub fn not_found_page(server: &ServerInfo, what: &str) -> Markup {
    layout::not_found(server, what)
}
