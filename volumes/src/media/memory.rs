//! A medium in memory, for tests and demonstrations; clones share the bytes.

use super::BlockDevice;
use crate::event::IoFault;
use crate::format::bytes::to_usize;
use crate::log::receive::short_read;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug, Clone)]
pub struct MemoryDevice {
    bytes: Arc<Mutex<Vec<u8>>>,
    size: u64,
}

impl MemoryDevice {
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { bytes: Arc::new(Mutex::new(vec![0; to_usize(size)])), size }
    }

    /// All bytes, as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts an earlier snapshot back (a rolled-back volume).
    pub fn restore(&self, bytes: Vec<u8>) {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn logical_block(&self) -> u32 {
        512
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault> {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let at = to_usize(offset);
        let source = at.checked_add(buf.len()).and_then(|end| bytes.get(at..end));
        let source = source.ok_or_else(|| short_read(offset, buf.len(), 0))?;
        buf.copy_from_slice(source);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let at = to_usize(offset);
        let target = at.checked_add(data.len()).and_then(|end| bytes.get_mut(at..end));
        let target = target.ok_or_else(|| short_read(offset, data.len(), 0))?;
        target.copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> Result<(), IoFault> {
        Ok(())
    }
}
