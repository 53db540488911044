//! A key that is kept elsewhere: a command signs with it. Smart cards, PKCS#11 and key management services are
//! reached this way, with whatever program their owner trusts.
//!
//! The command gets the exact bytes to be signed on its standard input and prints the signature, in hexadecimal
//! digits or base64, on its standard output. Its standard error is the user's, so that it can ask for a PIN. What it
//! prints counts only if the public key that was named verifies it, by the rule that devices use.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use plimsoll_protocol::trust::{Key, Signer};

/// Most that is read of a command's output: a signature is 64 bytes, 128 digits of hexadecimal; the rest is room for a
/// command that talks too much and shall be told so.
const MAX_OUTPUT: u64 = 4096;
/// Bytes of an Ed25519 signature.
const SIGNATURE: usize = 64;

/// A public key, and the command that signs with the private one.
#[derive(Debug, Clone)]
pub struct External {
    pub command: String,
    pub key: Key,
}

impl Signer for External {
    fn key(&self) -> Key {
        self.key.clone()
    }

    /// Runs the command and waits for as long as it takes: it may be asking a person for a PIN or a touch.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let named = |what: &str| format!("signing command `{}` {what}", self.command);
        let mut child = Command::new("sh")
            .args(["-c", &self.command])
            .env("PLIMSOLL_KEY_ID", self.key.id().0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| named(&format!("cannot be started: {e}")))?;
        let stdin = child.stdin.take();
        let bytes = message.to_vec();
        // From a thread of its own: a command that prints before it has read everything must not wait for ever.
        // A command that does not read at all is judged by what it prints, so a broken pipe is no error here.
        let writer = std::thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&bytes)));
        let mut text = String::new();
        let read = child.stdout.take().map(|out| out.take(MAX_OUTPUT).read_to_string(&mut text));
        let status = child.wait().map_err(|e| named(&format!("was lost: {e}")))?;
        let _ = writer.join();
        if !status.success() {
            return Err(named(&format!("failed: {status}")));
        }
        if let Some(Err(error)) = read {
            return Err(named(&format!(
                "printed no text ({error}): hexadecimal digits or base64 are expected"
            )));
        }
        let signature = decode(text.trim()).ok_or_else(|| {
            named("printed no Ed25519 signature: 128 hexadecimal digits, or 64 bytes in base64, are expected")
        })?;
        Ok(signature)
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let bytes = if text.len() == 2 * SIGNATURE { hex::decode(text).ok() } else { STANDARD.decode(text).ok() };
    bytes.filter(|bytes| bytes.len() == SIGNATURE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_protocol::trust::KeyPair;

    fn external(command: &str) -> External {
        External { command: command.to_owned(), key: KeyPair::from_seed(&[1; 32]).key() }
    }

    #[test]
    fn a_command_gets_the_bytes_and_answers_in_hexadecimal_or_base64() {
        let digits = "ab".repeat(SIGNATURE);
        let dir = tempfile::tempdir().unwrap();
        let seen = dir.path().join("seen");
        let command = format!("cat > {}; echo {digits}", seen.display());
        assert_eq!(external(&command).sign(b"exact bytes").unwrap(), vec![0xab; SIGNATURE]);
        assert_eq!(std::fs::read(&seen).unwrap(), b"exact bytes");
        let base64 = STANDARD.encode([7; SIGNATURE]);
        assert_eq!(external(&format!("echo {base64}")).sign(&vec![0; 1 << 20]).unwrap(), vec![7; SIGNATURE]);
    }

    #[test]
    fn a_command_that_fails_or_prints_something_else_is_told_by_its_name() {
        for (command, expect) in [
            ("exit 3", "exit status: 3"),
            ("echo hello", "printed no Ed25519 signature"),
            ("printf '\\377\\376'", "printed no text"),
            ("true", "printed no Ed25519 signature"),
        ] {
            let error = external(command).sign(b"x").unwrap_err();
            assert!(error.contains(expect) && error.contains(command), "{error}");
        }
    }
}
