//! Gets packs to disk, and the journal behind them, while more is appended.
//!
//! ```text
//!   writer ── cut: packs, blocks, entries ──> [one waits] ──> thread: sync packs, write journal
//!          <── how far it is durable ─────────────────────────  sync it
//! ```
//!
//! One cut is under way and one waits; with a third the writer waits. While none is, the next may be
//! small: a disk that keeps up leaves little to be sent again after a crash. With [`Cut`]s of 16 MiB
//! one that does not leaves at most 48 MiB.

use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use super::{
    catalogue::BlockAt,
    error::StoreError,
    folder::{Folder, sync_folder},
    frames::{self, EntryWriter},
    journal::{Journal, Partial},
};

/// What is to be made durable together.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// Packs that were written to, with what to call them.
    pub(super) packs: Vec<(PathBuf, Arc<File>)>,
    /// One of them is new.
    pub(super) new_pack: bool,
    /// Runs of blocks, and the number of the first of each.
    pub(super) blocks: Vec<(u32, Vec<BlockAt>)>,
    pub(super) files: Vec<Progress>,
    /// How far the session is with it: blocks and bytes.
    pub(super) reached: (u32, u64),
}

/// A part of a file, for the journal.
#[derive(Debug)]
pub(super) struct Progress {
    /// With the pieces of this part only.
    pub(super) part: Partial,
    pub(super) first: bool,
}

#[derive(Debug)]
pub(super) struct Syncer {
    cuts: Option<SyncSender<Cut>>,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    durable: (u32, u64),
    /// Cuts that were put and are not durable.
    under_way: u32,
    error: Option<StoreError>,
}

impl Syncer {
    pub(super) fn start(folder: Folder, journal: Journal) -> Result<Self, StoreError> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (cuts, jobs) = sync_channel(1);
        let path = folder.path.clone();
        let said = shared.clone();
        let thread = std::thread::Builder::new()
            .name("backup sync".into())
            .spawn(move || work(&folder, journal, &jobs, &said))
            .map_err(StoreError::io("start a thread for", &path))?;
        Ok(Self { cuts: Some(cuts), shared, thread: Some(thread) })
    }

    pub(super) fn durable(&self) -> (u32, u64) {
        locked(&self.shared).durable
    }

    /// What went wrong since it was asked last.
    pub(super) fn trouble(&self) -> Result<(), StoreError> {
        locked(&self.shared).error.take().map_or(Ok(()), Err)
    }

    /// Nothing is under way and nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        locked(&self.shared).under_way == 0
    }

    /// Waits when two cuts are before it.
    pub(super) fn put(&self, cut: Cut) -> Result<(), StoreError> {
        locked(&self.shared).under_way += 1;
        let gone = self.cuts.as_ref().is_none_or(|cuts| cuts.send(cut).is_err());
        self.trouble()?;
        if gone {
            return Err(StoreError::nonsense("an earlier step of this session failed"));
        }
        Ok(())
    }

    /// Waits for all that was put.
    pub(super) fn end(&mut self) -> Result<(), StoreError> {
        self.cuts = None;
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        self.trouble()?;
        if !ended {
            return Err(StoreError::nonsense("an earlier step of this session failed"));
        }
        Ok(())
    }
}

impl Drop for Syncer {
    /// Nobody else may write while the thread does: the lock, which goes next, is kept until then.
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn work(folder: &Folder, mut journal: Journal, cuts: &Receiver<Cut>, shared: &Mutex<Shared>) {
    while let Ok(cut) = cuts.recv() {
        match make_durable(folder, &mut journal, &cut) {
            Ok(()) => {
                let mut shared = locked(shared);
                shared.durable = cut.reached;
                shared.under_way -= 1;
            }
            Err(e) => {
                // Later cuts name what is not durable: none of them may be.
                locked(shared).error = Some(e);
                return;
            }
        }
    }
}

fn make_durable(folder: &Folder, journal: &mut Journal, cut: &Cut) -> Result<(), StoreError> {
    for (path, pack) in &cut.packs {
        pack.sync_data().map_err(StoreError::io("sync", path))?;
    }
    if cut.new_pack {
        sync_folder(&folder.path)?;
    }
    let frames = written(cut).map_err(StoreError::io("write", journal.path()))?;
    journal.append(&frames)
}

fn written(cut: &Cut) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for (first, blocks) in &cut.blocks {
        frames::write_blocks(&mut out, *first, blocks)?;
    }
    let mut entries = EntryWriter::new(&mut out);
    for Progress { part, first } in &cut.files {
        entries.put(&part.entry, &part.pieces, *first, part.whole)?;
    }
    entries.finish()?;
    Ok(out)
}

/// Nothing is left half done under the lock, so one who panicked with it harmed nothing.
fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn cut(blocks: u32) -> Cut {
        Cut { reached: (blocks, 10 * u64::from(blocks)), ..Cut::default() }
    }

    #[test]
    fn a_cut_is_durable_when_all_before_it_are() {
        let store = tempfile::tempdir().unwrap();
        let folder = Folder::new(store.path(), "n").unwrap();
        let lock = folder.create().unwrap();
        let path = folder.journal(1);
        let journal = Journal::on(&path, File::create(&path).unwrap());
        let mut syncer = Syncer::start(folder, journal).unwrap();
        for n in 1..=20 {
            syncer.put(cut(n)).unwrap();
            // One under way, one waiting.
            assert!(syncer.durable().0 + 3 >= n);
        }
        syncer.end().unwrap();
        assert_eq!((syncer.durable(), syncer.is_idle()), ((20, 200), true));
        assert!(syncer.put(cut(21)).is_err());
        drop(lock);
    }

    /// Prevents: blocks said to be durable behind some that are not.
    #[test]
    fn a_full_disk_ends_it_and_nothing_more_is_durable() {
        let store = tempfile::tempdir().unwrap();
        let folder = Folder::new(store.path(), "n").unwrap();
        let full = Path::new("/dev/full");
        let journal = Journal::on(full, File::options().write(true).open(full).unwrap());
        let mut syncer = Syncer::start(folder, journal).unwrap();
        let at = BlockAt { version: 1, pack: 1, offset: 0, stored: 30, raw: 10 };
        let first = syncer.put(Cut { blocks: vec![(0, vec![at])], ..cut(1) });
        let errors = [first, syncer.put(cut(2)), syncer.put(cut(3)), syncer.end()];
        let mut errors = errors.into_iter().filter_map(Result::err);
        assert!(matches!(errors.next(), Some(StoreError::Full { .. })));
        assert_eq!(syncer.durable(), (0, 0));
    }
}
