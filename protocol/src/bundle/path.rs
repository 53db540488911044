//! Paths inside a bundle that cannot leave it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest path in a bundle: under the 255 bytes of a file name on every common file system, so that a path is
/// creatable wherever the state folder lies.
pub const MAX_PATH: usize = 200;

/// A path that a bundle may not use, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path {path:?} in the bundle is refused: {why}")]
pub struct PathError {
    /// The path, cut to 80 characters.
    pub path: String,
    /// The rule it breaks.
    pub why: &'static str,
}

/// A relative path of ASCII letters, digits and `. _ - +`, separated by `/`, with no part that starts with a dot.
/// It therefore cannot be absolute, cannot climb (`..`), cannot name a hidden file or a device of another system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SafePath(String);

impl SafePath {
    /// Parses a path; the error says which rule it breaks.
    pub fn new(path: &str) -> Result<Self, PathError> {
        let refuse = |why| Err(PathError { path: path.chars().take(80).collect(), why });
        if path.is_empty() || path.len() > MAX_PATH {
            return refuse("it must have 1 to 200 characters");
        }
        if path.starts_with('/') {
            return refuse("it is absolute");
        }
        for part in path.split('/') {
            if part.is_empty() {
                return refuse("it has an empty part");
            }
            if part.starts_with('.') {
                return refuse("a part starts with a dot, which could leave the bundle or hide a file");
            }
            if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b)) {
                return refuse("only A-Z a-z 0-9 . _ - + and / are allowed");
            }
        }
        Ok(Self(path.to_owned()))
    }

    /// The path as text, `/`-separated, relative to the bundle's directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl TryFrom<String> for SafePath {
    type Error = PathError;
    fn try_from(s: String) -> Result<Self, PathError> {
        Self::new(&s)
    }
}
impl From<SafePath> for String {
    fn from(p: SafePath) -> String {
        p.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_the_bundle() {
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a/.ssh",
            "a\\b",
            "c:x",
            "a\0b",
            "é",
            "a b",
            "~/x",
            &"x".repeat(MAX_PATH + 1),
        ] {
            assert!(SafePath::new(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["model.onnx", "golden/test_data_set_0/input_0.pb", "a-b_c+1.2"] {
            assert!(SafePath::new(good).is_ok(), "{good:?} was refused");
        }
    }
}
