//! One-off commands: what the server answers an operator.

use serde::{Deserialize, Serialize};

use crate::DeviceId;

/// A command that was handed to a connected device. What became of it is an event of the device, `command.done` or
/// `command.refused`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandSent {
    /// Of the command; in the event's text.
    pub id: String,
    /// To whom.
    pub device: DeviceId,
}
