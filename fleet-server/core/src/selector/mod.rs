//! Which devices an operator means: `site = lyon and arch in (aarch64, armv7) and not tag = lab`.
//!
//! ```text
//! selector   = [ any ]                               empty: every device
//! any        = all { "or" all }
//! all        = one { "and" one }
//! one        = "not" one | "(" any ")" | comparison
//! comparison = name ( "=" | "!=" ) value
//!            | name [ "not" ] "in" "(" value { "," value } ")"
//! ```
//!
//! `device`, `arch` and `agent_version` are the device's own; every other name is a label. A label that a device
//! does not carry equals nothing, so `tag != lab` and `not tag = lab` both hold for a device without `tag`.

mod parse;

use std::collections::BTreeMap;
use std::fmt;

pub use parse::SelectorError;

/// Longest selector: some 80 comparisons, more than a person keeps in mind; it is evaluated for each device a tick.
pub const MAX_LENGTH: usize = 2_000;
/// Deepest nesting of parentheses and `not`: parsing recurses, and 32 frames are a few kilobytes of stack.
pub const MAX_DEPTH: usize = 32;

/// What selectors see of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Its id.
    pub device: String,
    /// `x86_64`, `aarch64`, `armv7`.
    pub arch: String,
    /// Of its agent.
    pub agent_version: String,
    /// Labels of its join token, overlaid by its own.
    pub labels: BTreeMap<String, String>,
}

impl Attributes {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "device" => Some(&self.device),
            "arch" => Some(&self.arch),
            "agent_version" => Some(&self.agent_version),
            label => self.labels.get(label).map(String::as_str),
        }
    }
}

/// A selector that parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Expr);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expr {
    Everything,
    Any(Vec<Expr>),
    All(Vec<Expr>),
    Not(Box<Expr>),
    In { name: String, values: Vec<String> },
}

impl Selector {
    /// Parses a selector; the error names the column and what was expected there.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parse::parse(text).map(Self)
    }

    /// Whether a device is meant.
    pub fn matches(&self, device: &Attributes) -> bool {
        self.0.matches(device)
    }
}

impl Expr {
    fn matches(&self, device: &Attributes) -> bool {
        match self {
            Self::Everything => true,
            Self::Any(parts) => parts.iter().any(|p| p.matches(device)),
            Self::All(parts) => parts.iter().all(|p| p.matches(device)),
            Self::Not(part) => !part.matches(device),
            Self::In { name, values } => {
                device.get(name).is_some_and(|have| values.iter().any(|want| want == have))
            }
        }
    }
}

/// The selector in full: every group in parentheses, every value in quotes. Parses to the same selector, unless
/// written so it is longer or deeper than what is read.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => Ok(()),
            Self::Any(parts) => group(f, parts, " or "),
            Self::All(parts) => group(f, parts, " and "),
            Self::Not(part) => write!(f, "not {part}"),
            Self::In { name, values } => {
                write!(f, "{name} in (")?;
                for (i, value) in values.iter().enumerate() {
                    let quote = if value.contains('"') { '\'' } else { '"' };
                    write!(f, "{}{quote}{value}{quote}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
        }
    }
}

fn group(f: &mut fmt::Formatter<'_>, parts: &[Expr], word: &str) -> fmt::Result {
    f.write_str("(")?;
    for (i, part) in parts.iter().enumerate() {
        write!(f, "{}{part}", if i == 0 { "" } else { word })?;
    }
    f.write_str(")")
}

#[cfg(test)]
mod tests;
