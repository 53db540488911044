//! Where the endpoint listens: an address of loopback, and a Unix socket whose permissions say who may ask.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;

use super::http::{Endpoint, connection};

/// A Unix socket that is to be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketAt {
    /// Where. Its folder must exist; systemd's `RuntimeDirectory=` makes one.
    pub path: PathBuf,
    /// Permission bits: who may write may ask. `0o660`: its user and its group.
    pub mode: u32,
}

/// An open listener.
pub enum Listener {
    /// On loopback.
    Tcp(TcpListener),
    /// Removes its file when it is dropped.
    Unix(UnixListener, SocketFile),
}

/// One accepted connection.
pub enum Stream {
    /// On loopback.
    Tcp(TcpStream),
    /// On the socket.
    Unix(UnixStream),
}

/// The file of a socket that is ours.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // gone already, or the next start replaces it
    }
}

impl Listener {
    /// Listens on an address; the error says what to do.
    pub async fn tcp(listen: SocketAddr) -> Result<(Self, SocketAddr), String> {
        let opened =
            TcpListener::bind(listen).await.and_then(|l| l.local_addr().map(|addr| (Self::Tcp(l), addr)));
        opened.map_err(|error| {
            format!(
                "cannot listen on {listen} for inference: {error}; is another program there? choose another `listen`"
            )
        })
    }

    /// Listens on a Unix socket. One that a dead process left is replaced; one that somebody answers on is not, and a
    /// file that is no socket is never touched.
    pub fn unix(at: &SocketAt) -> Result<Self, String> {
        let path = &at.path;
        let fail = |what: &str, error: io::Error| {
            format!(
                "cannot {what} the inference socket {}: {error}; see `socket` in the settings",
                path.display()
            )
        };
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(format!("{} exists and is no socket; choose another `socket`", path.display()));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                let path = path.display();
                return Err(format!("another program answers on the socket {path}; choose another `socket`"));
            }
            _ => {}
        }
        // Made beside and moved there: nobody meets it with other permissions, and a stale one is replaced at once.
        let fresh = beside(path);
        let _ = std::fs::remove_file(&fresh); // left by a process that died in between
        let listener = UnixListener::bind(&fresh).map_err(|e| fail("open", e))?;
        let placed = std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(at.mode))
            .map_err(|e| fail("set the permissions of", e))
            .and_then(|()| std::fs::rename(&fresh, path).map_err(|e| fail("place", e)));
        placed.inspect_err(|_| drop(SocketFile(fresh)))?;
        Ok(Self::Unix(listener, SocketFile(path.clone())))
    }

    /// The next connection.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true); // a slower answer otherwise, nothing worse
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

impl Stream {
    /// Speaks HTTP on it to the end.
    pub async fn serve(self, endpoint: Arc<Endpoint>, stop: watch::Receiver<bool>) {
        match self {
            Self::Tcp(stream) => connection(stream, endpoint, stop).await,
            Self::Unix(stream) => connection(stream, endpoint, stop).await,
        }
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_has_its_permissions_replaces_a_dead_one_and_leaves_all_else_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = SocketAt { path: dir.path().join("infer.sock"), mode: 0o620 };
        drop(std::os::unix::net::UnixListener::bind(&at.path).unwrap()); // its file stays, as after a crash
        let listener = Listener::unix(&at).unwrap();
        assert_eq!(std::fs::metadata(&at.path).unwrap().permissions().mode() & 0o777, 0o620);
        let error = Listener::unix(&at).err().unwrap();
        assert!(error.contains("another program answers"), "{error}");
        drop(listener);
        assert!(!at.path.exists(), "its file goes with it");

        std::fs::write(&at.path, b"a letter").unwrap();
        let error = Listener::unix(&at).err().unwrap();
        assert!(error.contains("is no socket"), "{error}");
        assert_eq!(std::fs::read(&at.path).unwrap(), b"a letter");

        let nowhere = SocketAt { path: dir.path().join("no/infer.sock"), mode: 0o600 };
        let error = Listener::unix(&nowhere).err().unwrap();
        assert!(error.contains("no/infer.sock") && error.contains("`socket`"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }
}
