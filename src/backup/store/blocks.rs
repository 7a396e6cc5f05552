//! Reads blocks of the packs of one backup. Several threads may, with one of it.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    super::block::Block,
    catalogue::BlockAt,
    error::StoreError,
    folder::{Folder, Lock},
};

/// Packs that stay open. A restore reads them one after another.
const OPEN_MAX: usize = 8;

/// Version and number of a pack, and the pack.
type OpenPack = ((u32, u32), Arc<File>);

/// While it is there, no version of this name is removed.
#[derive(Debug)]
pub(crate) struct Blocks {
    folder: Folder,
    /// The one used last is the last.
    open: Mutex<Vec<OpenPack>>,
    _reading: Option<Lock>,
}

impl Blocks {
    pub(super) fn new(folder: Folder) -> Result<Self, StoreError> {
        let reading = folder.reading()?;
        Ok(Self { folder, open: Mutex::default(), _reading: reading })
    }

    /// A block as it was stored; all but its decompression is checked.
    pub(crate) fn read(&self, at: &BlockAt) -> Result<Block, StoreError> {
        let damaged = |reason: String| {
            let path = self.folder.pack((at.version, at.pack));
            let reason = format!("the block at byte {} of it: {reason}", at.offset);
            StoreError::Damaged { path, reason }
        };
        if !at.is_possible() {
            return Err(damaged("no block can lie there".into()));
        }
        let pack = self.pack((at.version, at.pack))?;
        let mut bytes = vec![0; usize::try_from(at.stored).unwrap_or(0)];
        pack.read_exact_at(&mut bytes, at.offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged("the pack ends before its end".into()),
            _ => StoreError::io("read", &self.folder.pack((at.version, at.pack)))(e),
        })?;
        let block = Block::parse(bytes).map_err(|e| damaged(e.to_string()))?;
        if !u32::try_from(block.raw_len()).is_ok_and(|n| n == at.raw) {
            return Err(damaged("it is another one than the catalogue says".into()));
        }
        Ok(block)
    }

    fn pack(&self, pack: (u32, u32)) -> Result<Arc<File>, StoreError> {
        // A list is never left half changed.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match open.iter().position(|(p, _)| *p == pack) {
            Some(at) => open.remove(at).1,
            None => {
                let path = self.folder.pack(pack);
                let file = File::open(&path).map_err(|e| match e.kind() {
                    std::io::ErrorKind::NotFound => {
                        StoreError::Damaged { path: path.clone(), reason: "it is missing".into() }
                    }
                    _ => StoreError::io("open", &path)(e),
                })?;
                Arc::new(file)
            }
        };
        if open.len() >= OPEN_MAX {
            open.remove(0);
        }
        open.push((pack, found.clone()));
        Ok(found)
    }
}
