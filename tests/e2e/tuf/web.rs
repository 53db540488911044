//! A repository as files on loopback, and what was asked for. It answers what it has and nothing else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Files by path: `metadata/1.root.json`.
pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
struct Shared {
    files: Files,
    asked: Vec<String>,
}

/// The server; ends when it is dropped.
pub struct Web {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

impl Web {
    /// Starts to serve files.
    pub async fn serve(files: Files) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Mutex::new(Shared { files, asked: Vec::new() }));
        let own = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&own);
                // A client that goes away in the middle is no failure of the server.
                tokio::spawn(async move { drop(answer(stream, &shared).await) });
            }
        });
        Ok(Self { address, shared, task })
    }

    /// Every file below a folder.
    pub async fn serve_folder(folder: &Path) -> Result<Self> {
        let mut files = Files::new();
        read(folder, "", &mut files)?;
        Self::serve(files).await
    }

    /// Address of a part, `metadata` or `targets`.
    pub fn url(&self, part: &str) -> String {
        format!("http://{}/{part}", self.address)
    }

    /// Replaces what is served.
    pub fn set(&self, files: Files) {
        self.lock().files = files;
    }

    /// What was asked for since the last time.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().asked)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(stream: TcpStream, shared: &Mutex<Shared>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut first = String::new();
    stream.read_line(&mut first).await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).context("no path")?.trim_start_matches('/').to_owned();
    let body = {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.asked.push(path.clone());
        shared.files.get(&path.replace("%20", " ")).cloned()
    };
    let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
    let body = body.unwrap_or_default();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await?;
    Ok(())
}

fn read(folder: &Path, prefix: &str, files: &mut Files) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            read(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.insert(name, std::fs::read(entry.path())?);
        }
    }
    Ok(())
}
