//! Where the real programs are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The folder that holds `plimsoll-server`, `plimsoll-agent` and `plimsoll`.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// `PLIMSOLL_BIN_DIR`, or the build folder that this program itself lies in.
    pub fn locate() -> Result<Self> {
        if let Some(dir) = std::env::var_os("PLIMSOLL_BIN_DIR") {
            return Self::at(Path::new(&dir));
        }
        let own = std::env::current_exe().context("cannot tell where this program lies")?;
        // A test lies in <build>/deps, a program in <build>.
        own.ancestors().skip(1).take(2).find_map(|dir| Self::at(dir).ok()).with_context(|| {
            format!("no plimsoll programs beside {}: run `cargo build --workspace --bins`", own.display())
        })
    }

    /// The programs of one folder; a test that puts another program in a device's place makes such a folder.
    pub fn at(dir: &Path) -> Result<Self> {
        for name in ["plimsoll-server", "plimsoll-agent", "plimsoll"] {
            if !dir.join(name).is_file() {
                bail!("{} is missing: run `cargo build --workspace --bins`", dir.join(name).display());
            }
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// The fleet server.
    pub fn server(&self) -> PathBuf {
        self.dir.join("plimsoll-server")
    }
    /// The device agent.
    pub fn agent(&self) -> PathBuf {
        self.dir.join("plimsoll-agent")
    }
    /// The operator's command.
    pub fn ctl(&self) -> PathBuf {
        self.dir.join("plimsoll")
    }
}
