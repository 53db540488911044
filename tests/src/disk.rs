//! A disk of its own for one state folder, whose power can be cut: ext4 in an image file, mounted through a loop
//! device.
//!
//! A cut is ext4's own shutdown (`EXT4_IOC_SHUTDOWN`): from one instant on nothing reaches the disk any more. What the
//! page cache held unwritten and what the journal had not committed is gone, and after the next mount the journal is
//! replayed as after a pulled plug. What it cannot show is a disk that lies about its own cache.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use crate::{STEP, until};

/// A server keeps 256 MiB free, and a state folder of a test takes some ten; the file is sparse.
const BYTES: u64 = 600 * 1024 * 1024;
/// Harsher than the 5 s of the default: what nobody flushes is nowhere for a minute.
const OPTIONS: &str = "loop,noatime,commit=60";
/// `_IOR('X', 125, __u32)` of Linux's ext4; Debian's perl-base is on every machine, and knows `ioctl`.
const SHUTDOWN: &str = r#"open(my $d, "<", $ARGV[0]) or die "open: $!"; my $how = pack("L", $ARGV[1]);
    ioctl($d, 0x8004587d, $how) or die "ioctl: $!""#;

/// What a cut takes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Everything that is not on the disk, the running transaction of the journal too.
    Everything,
    /// The journal is written to its end first: names and sizes are there whose contents were not flushed.
    Contents,
}

/// A mounted disk. Unmounted when dropped, its image stays.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes an empty one and mounts it at `at`, for its owner alone. An error where this machine does not let us: it
    /// takes root, a loop device and e2fsprogs.
    pub async fn make(image: &Path, at: &Path) -> Result<Self> {
        ensure!(rustix::process::getuid().is_root(), "only root may mount a disk");
        std::fs::File::create(image)
            .and_then(|file| file.set_len(BYTES))
            .with_context(|| format!("cannot make {}", image.display()))?;
        std::fs::create_dir_all(at).with_context(|| format!("cannot make {}", at.display()))?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1", &text(image)]).await?;
        let this = Self { image: image.to_owned(), at: at.to_owned() };
        this.mount().await?;
        std::fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(this)
    }

    /// Cuts the power in this instant. Whoever works with the disk gets errors from now on.
    pub async fn cut(&self, how: Cut) -> Result<()> {
        let how = match how {
            Cut::Everything => "2", // EXT4_GOING_FLAGS_NOLOGFLUSH
            Cut::Contents => "1",   // EXT4_GOING_FLAGS_LOGFLUSH
        };
        run("perl", &["-e", SHUTDOWN, &text(&self.at), how]).await
    }

    /// Brings the disk back as it is: waits until nobody holds it, and lets the journal be replayed.
    pub async fn power_on(&self) -> Result<()> {
        let at = text(&self.at);
        until("the disk to be free", STEP, || async { run("umount", &[&at]).await }).await?;
        self.mount().await
    }

    async fn mount(&self) -> Result<()> {
        run("mount", &["-o", OPTIONS, &text(&self.image), &text(&self.at)]).await
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: who still holds it is being killed. The loop device goes with the last of them.
        let gone =
            std::process::Command::new("umount").arg("-l").arg(&self.at).stderr(Stdio::null()).status();
        let _ = gone; // it was not mounted
    }
}

async fn run(program: &str, args: &[&str]) -> Result<()> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).stdin(Stdio::null()).output();
    let output = output.await.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}: {said}", args.join(" "), output.status);
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
