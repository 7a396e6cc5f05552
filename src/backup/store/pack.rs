//! Packs being written: blocks one after another, in files of at most 256 MiB.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
    sync::Arc,
};

use super::{
    super::block::{BLOCK_HEADER, Block},
    catalogue::BlockAt,
    error::StoreError,
    folder::Folder,
};

#[derive(Debug)]
pub(super) struct Packer {
    folder: Folder,
    version: u32,
    /// The last one's number.
    number: u32,
    max: u64,
    open: Option<(PathBuf, Arc<File>, u64)>,
    /// Written to since they were taken, and whether one was made.
    dirty: Vec<(PathBuf, Arc<File>)>,
    new: bool,
}

impl Packer {
    /// Packs of `version`, numbered behind `last`, of at most `max` bytes.
    pub(super) fn new(folder: Folder, version: u32, last: u32, max: u64) -> Self {
        Self { folder, version, number: last, max, open: None, dirty: Vec::new(), new: false }
    }

    /// After an error nothing more can be appended.
    pub(super) fn append(&mut self, block: &Block) -> Result<BlockAt, StoreError> {
        let bytes = block.bytes();
        let length = |n: usize| u32::try_from(n).map_err(|_| StoreError::nonsense("a long block"));
        let (stored, raw) = (length(bytes.len())?, length(block.raw_len())?);
        if bytes.len() <= BLOCK_HEADER || raw == 0 {
            return Err(StoreError::nonsense("an empty block"));
        }
        if self.open.as_ref().is_some_and(|(_, _, end)| end + u64::from(stored) > self.max) {
            self.open = None;
        }
        let (path, file, end) = match &mut self.open {
            Some(open) => open,
            none => {
                self.number = self
                    .number
                    .checked_add(1)
                    .ok_or_else(|| StoreError::nonsense("more packs than have numbers"))?;
                let path = self.folder.pack((self.version, self.number));
                let file = OpenOptions::new().write(true).create_new(true).open(&path);
                let file = Arc::new(file.map_err(StoreError::io("make", &path))?);
                self.new = true;
                none.insert((path, file, 0))
            }
        };
        let at = BlockAt { version: self.version, pack: self.number, offset: *end, stored, raw };
        (&**file).write_all(bytes).map_err(StoreError::io("write", path))?;
        *end = at.end();
        if !self.dirty.last().is_some_and(|(_, last)| Arc::ptr_eq(last, file)) {
            self.dirty.push((path.clone(), file.clone()));
        }
        Ok(at)
    }

    /// The packs written to since last time, and whether one of them is new.
    pub(super) fn take_dirty(&mut self) -> (Vec<(PathBuf, Arc<File>)>, bool) {
        (std::mem::take(&mut self.dirty), std::mem::take(&mut self.new))
    }
}
