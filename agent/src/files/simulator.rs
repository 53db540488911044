//! What a power cut may leave.
//!
//! [`watch`] runs real code on a real folder and writes down what it does to the disk ([`super::disk`]). A [`Disk`]
//! replays so many of these operations and then loses power: what was flushed is there, and of the rest any part.
//! Names of a directory that was not flushed may be new or old, one by one, but for a rename, which happens whole or
//! not at all. Of data that was not flushed every sector of 512 bytes may be there or not, whatever its order. That is
//! less than any file system promises, so what survives here survives there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plimsoll_agent_core::retry::mix;

const SECTOR: usize = 512;

/// One change of the disk.
#[derive(Debug, Clone)]
pub enum Op {
    /// A file that was not there.
    Create(PathBuf),
    /// Bytes at an offset.
    Write(PathBuf, u64, Vec<u8>),
    /// A new length.
    SetLen(PathBuf, u64),
    /// The file's bytes are flushed.
    Sync(PathBuf),
    /// From the first name to the second.
    Rename(PathBuf, PathBuf),
    /// A file or an empty folder is gone.
    Remove(PathBuf),
    /// A folder that was not there.
    MakeDir(PathBuf),
    /// The folder's names are flushed.
    SyncDir(PathBuf),
}

thread_local! {
    static LOG: RefCell<Option<Vec<Op>>> = const { RefCell::new(None) };
}

/// Writes an operation down, when a [`watch`] runs.
pub fn record(op: Op) {
    LOG.with_borrow_mut(|log| log.iter_mut().for_each(|log| log.push(op.clone())));
}

/// The removal of a tree, entry by entry, the deepest first.
pub fn record_tree(path: &Path) {
    for entry in std::fs::read_dir(path).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            record_tree(&entry.path());
        } else {
            record(Op::Remove(entry.path()));
        }
    }
    record(Op::Remove(path.to_owned()));
}

/// Runs code and gives back what it did to the disk. `done` inside it says how many operations that were so far.
pub fn watch(work: impl FnOnce()) -> Vec<Op> {
    LOG.set(Some(Vec::new()));
    work();
    LOG.take().unwrap()
}

/// Operations of the [`watch`] that runs.
pub fn done() -> usize {
    LOG.with_borrow(|log| log.as_ref().map_or(0, Vec::len))
}

/// Whether a [`watch`] runs on this thread.
pub fn watching() -> bool {
    LOG.with_borrow(Option::is_some)
}

/// The outbox's store on a file whose changes are written down.
#[derive(Debug)]
pub struct Recorded(super::disk::DiskFile);

impl Recorded {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        use rustix::fs::OFlags;
        super::disk::DiskFile::open(path, OFlags::RDWR | OFlags::CREATE, super::SECRET).map(Self)
    }
}

impl redb::StorageBackend for Recorded {
    fn len(&self) -> std::io::Result<u64> {
        self.0.size()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

type Id = usize;
/// Names that change together.
type Change = Vec<((Id, String), Option<Id>)>;

#[derive(Debug, Clone)]
enum Data {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

/// A disk on its way: what is durable, and what is not yet.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    names: BTreeMap<(Id, String), Id>,
    seen: BTreeMap<(Id, String), Id>,
    changes: Vec<Change>,
    contents: BTreeMap<Id, Vec<u8>>,
    data: BTreeMap<Id, Vec<Data>>,
    dirs: Vec<Id>,
    next: Id,
}

impl Disk {
    /// An empty disk that plays operations below `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            names: BTreeMap::new(),
            seen: BTreeMap::new(),
            changes: Vec::new(),
            contents: BTreeMap::new(),
            data: BTreeMap::new(),
            dirs: vec![0],
            next: 1,
        }
    }

    fn parts(&self, path: &Path) -> Vec<String> {
        let inside = path.strip_prefix(&self.root).unwrap();
        inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect()
    }

    /// The object at a path, as a running system sees it.
    fn find(&self, path: &Path) -> Id {
        self.parts(path).into_iter().fold(0, |dir, name| self.seen[&(dir, name)])
    }

    fn entry(&self, path: &Path) -> (Id, String) {
        let dir = self.find(path.parent().unwrap());
        (dir, path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.seen, &change);
        self.changes.push(change);
    }

    /// Plays one operation.
    pub fn play(&mut self, op: &Op) {
        match op {
            Op::Create(path) | Op::MakeDir(path) => {
                let id = self.next;
                self.next += 1;
                if matches!(op, Op::MakeDir(_)) {
                    self.dirs.push(id);
                } else {
                    self.contents.insert(id, Vec::new());
                }
                self.change(vec![(self.entry(path), Some(id))]);
            }
            Op::Write(path, at, bytes) => {
                let id = self.find(path);
                self.data.entry(id).or_default().push(Data::Write(*at, bytes.clone()));
            }
            Op::SetLen(path, length) => {
                let id = self.find(path);
                self.data.entry(id).or_default().push(Data::SetLen(*length));
            }
            Op::Sync(path) => {
                let id = self.find(path);
                let content = self.contents.get_mut(&id).unwrap();
                self.data
                    .remove(&id)
                    .unwrap_or_default()
                    .iter()
                    .for_each(|data| put(content, data, |_| true));
            }
            Op::Rename(from, to) => {
                let id = self.find(from);
                self.change(vec![(self.entry(from), None), (self.entry(to), Some(id))]);
            }
            Op::Remove(path) => self.change(vec![(self.entry(path), None)]),
            Op::SyncDir(path) => {
                let dir = self.find(path);
                let touches = |c: &Change| c.iter().any(|((d, _), _)| *d == dir);
                let (now, later): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut self.changes).into_iter().partition(touches);
                now.iter().for_each(|change| apply(&mut self.names, change));
                self.changes = later;
            }
        }
    }

    /// Loses power and writes what is left into a new folder. `seed` 0 loses everything that was not flushed, 1
    /// nothing, any other a part of its own.
    pub fn cut(&self, seed: u64, into: &Path) {
        let mut drawn = seed;
        let mut keeps = || {
            drawn = mix(drawn);
            match seed {
                0 => false,
                1 => true,
                _ => drawn & 1 == 1,
            }
        };
        let mut names = self.names.clone();
        self.changes.iter().filter(|_| keeps()).for_each(|change| apply(&mut names, change));
        let mut contents = self.contents.clone();
        for (id, pending) in &self.data {
            let content = contents.get_mut(id).unwrap();
            pending.iter().for_each(|data| put(content, data, |_| keeps()));
        }
        self.write(0, &names, &contents, into);
    }

    fn write(
        &self,
        dir: Id,
        names: &BTreeMap<(Id, String), Id>,
        contents: &BTreeMap<Id, Vec<u8>>,
        into: &Path,
    ) {
        std::fs::create_dir_all(into).unwrap();
        for ((_, name), id) in names.range((dir, String::new())..(dir + 1, String::new())) {
            let path = into.join(name);
            if self.dirs.contains(id) {
                self.write(*id, names, contents, &path);
            } else {
                std::fs::write(path, &contents[id]).unwrap();
            }
        }
    }
}

fn apply(names: &mut BTreeMap<(Id, String), Id>, change: &Change) {
    for (entry, id) in change {
        match id {
            Some(id) => names.insert(entry.clone(), *id),
            None => names.remove(entry),
        };
    }
}

/// One change of a file's contents, sector by sector.
fn put(content: &mut Vec<u8>, data: &Data, mut keeps: impl FnMut(usize) -> bool) {
    match data {
        Data::SetLen(length) => {
            if keeps(0) {
                content.resize(usize::try_from(*length).unwrap(), 0);
            }
        }
        Data::Write(at, bytes) => {
            for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                let from = usize::try_from(*at).unwrap() + n * SECTOR;
                if keeps(n) {
                    content.resize(content.len().max(from + sector.len()), 0);
                    content[from..from + sector.len()].copy_from_slice(sector);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::OFlags;

    use super::*;
    use crate::files::disk::{self, DiskFile};

    /// What is left of `work` after every operation and a dozen fates, as texts of the file `a`.
    fn left(work: impl Fn(&Path)) -> std::collections::BTreeSet<Option<String>> {
        let folder = tempfile::tempdir().unwrap();
        let ops = watch(|| work(folder.path()));
        let mut found = std::collections::BTreeSet::new();
        for count in 0..=ops.len() {
            for seed in 0..12 {
                let mut disk = Disk::new(folder.path());
                ops[..count].iter().for_each(|op| disk.play(op));
                let after = tempfile::tempdir().unwrap();
                disk.cut(seed, after.path());
                found.insert(std::fs::read_to_string(after.path().join("a")).ok());
            }
        }
        found
    }

    fn file(path: &Path, text: &str, flush: bool) {
        let file = DiskFile::open(path, OFlags::RDWR | OFlags::CREATE, 0o600).unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
        if flush {
            file.sync_all().unwrap();
        }
    }

    #[test]
    fn the_simulator_finds_what_is_wrong_with_a_rename_without_a_flush() {
        let some = |text: &str| Some(text.to_owned());
        let careless = left(|dir| {
            file(&dir.join("t"), "new", false);
            disk::rename(&dir.join("t"), &dir.join("a")).unwrap();
        });
        assert!(careless.contains(&some("")), "an empty file is what the careless get: {careless:?}");
        let careful = left(|dir| {
            file(&dir.join("t"), "new", true);
            disk::rename(&dir.join("t"), &dir.join("a")).unwrap();
            disk::sync_dir(dir).unwrap();
        });
        assert_eq!(careful, [None, some("new")].into());
    }

    #[test]
    fn an_atomic_write_leaves_the_old_contents_or_the_new_ones() {
        let old_then_new = left(|dir| {
            crate::files::write_atomic(&dir.join("a"), b"old", 0o600).unwrap();
            crate::files::write_atomic(&dir.join("a"), b"newer", 0o600).unwrap();
        });
        assert_eq!(old_then_new, [None, Some("old".to_owned()), Some("newer".to_owned())].into());
    }
}
