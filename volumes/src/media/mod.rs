//! Where bytes live, behind one small trait.
//!
//! ```text
//!   BlockDevice: read_at, write_at, flush     file | block device | nbd | s3 | memory | faulty wrapper
//!   Location: a path or a URL -- connect --^
//! ```
//!
//! Awkward cases: on a medium that several hosts share, the page cache serves stale bytes for
//! ever, so direct I/O is required there; a truncated or vanished medium answers with a fault,
//! never with a signal (nothing is mapped).

pub mod conformance;
pub mod fault;
pub mod file;
pub mod location;
pub mod memory;
pub mod nbd;
pub mod power_cut;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(not(feature = "s3"))]
#[path = "s3/absent.rs"]
pub mod s3;

use crate::buffer::Pool;
use crate::event::{IoFault, RecordName};
use crate::pace::Class;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::sync::Arc;

pub use fault::{Doom, FaultDevice};
pub use file::{Direct, FileDevice, How, Kind, OpenError, open};
pub use location::{Location, LocationError};
pub use memory::MemoryDevice;
pub use power_cut::PowerCutDevice;

/// Whole blocks at aligned offsets and addresses; every implementation passes [`conformance`].
pub trait BlockDevice: Send + Sync + Debug {
    /// Bytes from the start to the end.
    fn size(&self) -> u64;
    /// Smallest unit of a read or write, in bytes.
    fn logical_block(&self) -> u32;
    /// Fills `buf`, or fails.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault>;
    /// Writes all of `data`, or fails, having written any part of it.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault>;
    /// Returns when all completed writes survive a loss of power.
    fn flush(&self) -> Result<(), IoFault>;
    /// How fast it is, and what a look costs.
    fn class(&self) -> Class {
        Class::Local
    }
    /// Looks for one record, which stands at `offset` if it is there. A medium of blocks returns the
    /// `len` bytes that stand there, whatever they are. One that knows records by their names
    /// returns that record whole, shorter or longer than `len`, or nothing when it is not there.
    fn read_record(
        &self,
        pool: &Pool,
        offset: u64,
        len: usize,
        _name: &RecordName,
    ) -> Result<Bytes, IoFault> {
        let mut buf = pool.take_len(len);
        self.read_at(offset, buf.as_mut())?;
        Ok(buf.freeze())
    }
    /// What was asked of a medium where that costs something.
    fn requests(&self) -> Option<Requests> {
        None
    }
    /// Whether its name still leads to it (a file may have been renamed or replaced).
    fn still_there(&self) -> bool {
        true
    }
}

/// Requests sent to a store since its volume was attached, whatever became of them, and bytes of
/// bodies both ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    pub put: u64,
    pub get: u64,
    pub head: u64,
    pub list: u64,
    pub delete: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Answers that asked for fewer.
    pub throttled: u64,
}

impl Requests {
    #[must_use]
    pub fn all(&self) -> u64 {
        self.by_kind().iter().map(|(_, count)| count).sum()
    }

    /// As stores bill them.
    #[must_use]
    pub fn by_kind(&self) -> [(&'static str, u64); 5] {
        [
            ("put", self.put),
            ("get", self.get),
            ("head", self.head),
            ("list", self.list),
            ("delete", self.delete),
        ]
    }
}

/// Opens whatever a location names, for a command that a person waits for; how to reach the page
/// cache and the kernel's users is for what is on this host.
pub fn connect(at: &Location, how: How) -> Result<Arc<dyn BlockDevice>, OpenError> {
    match at {
        Location::Path(path) => Ok(Arc::new(open(path, how)?)),
        Location::S3(url) => {
            let connector = s3::Connector::new((**url).clone(), s3::Options::patient(how.write));
            let place = at.label();
            Ok(Arc::new(connector.open().map_err(|source| OpenError::S3 { place, source })?))
        }
        Location::Nbd(url) => {
            let options = nbd::Options::patient(how.write);
            let device = nbd::Connector::new(url.clone(), options).open();
            Ok(Arc::new(device.map_err(OpenError::Nbd)?))
        }
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for Arc<D> {
    fn size(&self) -> u64 {
        (**self).size()
    }
    fn logical_block(&self) -> u32 {
        (**self).logical_block()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault> {
        (**self).read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault> {
        (**self).write_at(offset, data)
    }
    fn flush(&self) -> Result<(), IoFault> {
        (**self).flush()
    }
    fn class(&self) -> Class {
        (**self).class()
    }
    fn read_record(
        &self,
        pool: &Pool,
        offset: u64,
        len: usize,
        name: &RecordName,
    ) -> Result<Bytes, IoFault> {
        (**self).read_record(pool, offset, len, name)
    }
    fn requests(&self) -> Option<Requests> {
        (**self).requests()
    }
    fn still_there(&self) -> bool {
        (**self).still_there()
    }
}
