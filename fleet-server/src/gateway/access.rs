//! Who may say and hear what. Pure comparisons of an identity with a topic or filter: there is no rule file.
//!
//! A filter is parsed into what it can match. What does not parse is refused, so a filter that could match
//! anything else never exists: `$share`, `$SYS`, `#` and other people's topics have no representation.

use plimsoll_protocol::wire::v1::{Down, ROOT, Topic, Up};
use plimsoll_protocol::{DeviceId, DeviceIdentity, TenantId};

/// A filter that a device may subscribe to: its own orders and the settings of its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DeviceFilter {
    /// `…/dn/+` or `…/dn/#`.
    AllDown,
    /// One of its own `dn` topics.
    One(Down),
    /// `all/dn/cfg`.
    Config,
}

impl DeviceFilter {
    /// What `filter` means for this device; `None` when it is not its to hear.
    pub(super) fn parse(filter: &str, who: &DeviceIdentity) -> Option<Self> {
        let own = format!("{ROOT}/{}/{}/dn/", who.tenant, who.device);
        if let Some("+" | "#") = filter.strip_prefix(&own) {
            return Some(Self::AllDown);
        }
        match Topic::parse(filter).ok()? {
            Topic::Down(owner, kind) if owner == *who => Some(Self::One(kind)),
            Topic::AllConfig(tenant) if tenant == who.tenant => Some(Self::Config),
            _ => None,
        }
    }

    /// Whether a topic of this device, or of its tenant, is meant.
    pub(super) fn matches(self, topic: &Topic) -> bool {
        match (self, topic) {
            (Self::AllDown, Topic::Down(..)) | (Self::Config, Topic::AllConfig(_)) => true,
            (Self::One(wanted), Topic::Down(_, kind)) => wanted == *kind,
            _ => false,
        }
    }
}

/// A filter that a dashboard may subscribe to: `plimsoll/1/{tenant}/{device or +}/up/{kind, + or #}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DashboardFilter {
    device: Option<DeviceId>,
    kind: Option<Up>,
}

impl DashboardFilter {
    /// What `filter` means for someone who may watch `tenant`; `None` when it reaches outside `up`.
    pub(super) fn parse(filter: &str, tenant: &TenantId) -> Option<Self> {
        let rest = filter.strip_prefix(ROOT)?.strip_prefix('/')?;
        let rest = rest.strip_prefix(tenant.as_str())?.strip_prefix('/')?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [device, "up", kind] = parts.as_slice() else { return None };
        let device = match *device {
            "+" => None,
            name => Some(DeviceId::new(name).ok()?),
        };
        let kind = match *kind {
            "+" | "#" => None,
            name => Some(Up::ALL.into_iter().find(|k| k.as_str() == name)?),
        };
        Some(Self { device, kind })
    }

    /// Whether a message of this tenant's `device` is meant.
    pub(super) fn matches(&self, device: &DeviceId, kind: Up) -> bool {
        self.device.as_ref().is_none_or(|d| d == device) && self.kind.is_none_or(|k| k == kind)
    }
}

/// The kind of topic that `who` may publish `topic` as; `None` when it is not its own to speak on.
pub(super) fn publish(topic: &str, who: &DeviceIdentity) -> Option<Up> {
    match Topic::parse(topic).ok()? {
        topic if !topic.may_publish(who) => None,
        Topic::Up(_, kind) => Some(kind),
        _ => None,
    }
}

/// Whether `topic` may be the will of `who`: only its own state.
pub(super) fn is_own_will(topic: &str, who: &DeviceIdentity) -> bool {
    publish(topic, who) == Some(Up::State)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cam() -> DeviceIdentity {
        "acme.cam-1".parse().unwrap()
    }

    #[test]
    fn a_device_hears_only_its_own_orders_and_its_tenants_settings() {
        let hears = |f: &str| DeviceFilter::parse(f, &cam());
        assert_eq!(hears("plimsoll/1/acme/cam-1/dn/+"), Some(DeviceFilter::AllDown));
        assert_eq!(hears("plimsoll/1/acme/cam-1/dn/#"), Some(DeviceFilter::AllDown));
        assert_eq!(hears("plimsoll/1/acme/cam-1/dn/desired"), Some(DeviceFilter::One(Down::Desired)));
        assert_eq!(hears("plimsoll/1/acme/all/dn/cfg"), Some(DeviceFilter::Config));
        for topic in Topic::subscriptions(&cam()) {
            assert!(hears(&topic).is_some(), "{topic} must be allowed: the agent subscribes to it");
        }
        for bad in [
            "#",
            "+/#",
            "",
            "$SYS/#",
            "plimsoll/1/acme/+/dn/desired",
            "plimsoll/1/acme/cam-2/dn/+",
            "plimsoll/1/other/cam-1/dn/+",
            "plimsoll/1/acme/cam-1/#",
            "plimsoll/1/acme/cam-1/+/desired",
            "plimsoll/1/acme/cam-1/up/+",
            "plimsoll/1/acme/cam-1/up/state",
            "plimsoll/1/other/all/dn/cfg",
            "plimsoll/1/acme/all/dn/+",
            "plimsoll/1/acme/all/dn/#",
            "$share/g/plimsoll/1/acme/cam-1/dn/+",
            "plimsoll/1/acme/cam-1/dn/+/x",
            "plimsoll/1/acme/cam-1/dn",
        ] {
            assert_eq!(hears(bad), None, "{bad:?} was allowed");
        }
    }

    #[test]
    fn a_dashboard_hears_what_its_tenants_devices_say_and_nothing_else() {
        let acme = TenantId::new("acme").unwrap();
        let hears = |f: &str| DashboardFilter::parse(f, &acme);
        let all = hears("plimsoll/1/acme/+/up/#").unwrap();
        assert!(all.matches(&cam().device, Up::Health));
        assert_eq!(hears("plimsoll/1/acme/+/up/+"), Some(all));
        let states = hears("plimsoll/1/acme/+/up/state").unwrap();
        assert!(states.matches(&cam().device, Up::State) && !states.matches(&cam().device, Up::Health));
        let one = hears("plimsoll/1/acme/cam-1/up/+").unwrap();
        assert!(one.matches(&cam().device, Up::Drift));
        assert!(!one.matches(&DeviceId::new("cam-2").unwrap(), Up::Drift));
        for bad in [
            "#",
            "plimsoll/#",
            "plimsoll/1/acme/#",
            "plimsoll/1/+/+/up/#",
            "plimsoll/1/acme/+/+/state",
            "plimsoll/1/acme/+/dn/#",
            "plimsoll/1/acme/cam-1/dn/desired",
            "plimsoll/1/acme/+/up",
            "plimsoll/1/acme/+/up/nothing",
            "plimsoll/1/acme/+/up/state/#",
            "$SYS/#",
            "$share/g/plimsoll/1/acme/+/up/#",
            "plimsoll/1/acmecorp/+/up/#",
            "plimsoll/1/acme/c#/up/+",
            "",
        ] {
            assert_eq!(hears(bad), None, "{bad:?} was allowed");
        }
    }

    #[test]
    fn a_will_is_a_devices_own_state() {
        assert!(is_own_will("plimsoll/1/acme/cam-1/up/state", &cam()));
        for bad in ["plimsoll/1/acme/cam-1/up/event", "plimsoll/1/acme/cam-2/up/state", "x", ""] {
            assert!(!is_own_will(bad, &cam()), "{bad:?} was allowed");
        }
    }
}
