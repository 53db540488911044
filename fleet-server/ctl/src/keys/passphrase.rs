//! Where a passphrase comes from: a file, a file descriptor, the environment, or the person at the terminal.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use age::secrecy::SecretString;
use anyhow::{Context, Result, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::failure::Usage;

/// How key files are opened.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PassphraseArgs {
    /// File whose first line is the passphrase of the key files. Without it, PLIMSOLL_PASSPHRASE or a prompt.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// File descriptor of this process whose first line is the passphrase: `--passphrase-fd 3 3< <(pass show fleet)`.
    #[arg(long, value_name = "N", conflicts_with = "passphrase_file")]
    pub passphrase_fd: Option<u32>,
    /// From the environment only: an argument would be visible to every user of the machine.
    #[arg(skip = std::env::var("PLIMSOLL_PASSPHRASE").ok())]
    pub passphrase: Option<String>,
}

impl PassphraseArgs {
    /// The passphrase of a folder of keys; a new one is asked twice.
    pub fn get(&self, keys: &Path, confirm: bool) -> Result<SecretString> {
        // The kernel shows open descriptors as files, so that no unsafe call is needed to read one.
        let descriptor = self.passphrase_fd.map(|n| PathBuf::from(format!("/dev/fd/{n}")));
        let text = if let Some(file) = self.passphrase_file.as_ref().or(descriptor.as_ref()) {
            first_line(file)?
        } else if let Some(text) = &self.passphrase {
            text.clone()
        } else {
            prompt(keys, confirm)?
        };
        if text.is_empty() {
            bail!(Usage("the passphrase is empty".into()));
        }
        Ok(SecretString::from(text))
    }
}

fn first_line(path: &Path) -> Result<String> {
    let fail = || format!("cannot read a passphrase from {}", path.display());
    let mut line = String::new();
    // Of a pipe no more than the line may be waited for: its writer need not close it.
    BufReader::new(File::open(path).with_context(fail)?).read_line(&mut line).with_context(fail)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn prompt(keys: &Path, confirm: bool) -> Result<String> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let Ok(mut terminal) = terminal else {
        bail!(Usage(
            "the keys are encrypted and there is no terminal: set PLIMSOLL_PASSPHRASE, --passphrase-file or \
             --passphrase-fd"
                .into()
        ));
    };
    let new = if confirm { "New passphrase" } else { "Passphrase" };
    let first = ask(&mut terminal, &format!("{new} for the keys in {}: ", keys.display()))?;
    if confirm && first != ask(&mut terminal, "Once more: ")? {
        bail!(Usage("the two passphrases differ".into()));
    }
    Ok(first)
}

/// Reads one line without echo. The terminal is set back whatever happens.
fn ask(terminal: &mut File, question: &str) -> Result<String> {
    struct Restore<'a>(&'a File, Termios);
    impl Drop for Restore<'_> {
        fn drop(&mut self) {
            let _ = tcsetattr(self.0, OptionalActions::Now, &self.1);
        }
    }
    write!(terminal, "{question}").and_then(|()| terminal.flush()).context("cannot write to the terminal")?;
    let before = tcgetattr(&*terminal).context("cannot ask the terminal")?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let mut line = String::new();
    {
        let restore = Restore(terminal, before);
        tcsetattr(restore.0, OptionalActions::Now, &silent).context("cannot silence the terminal")?;
        BufReader::new(restore.0).read_line(&mut line).context("cannot read from the terminal")?;
    }
    let _ = writeln!(terminal);
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
