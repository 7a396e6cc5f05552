//! Stands for the client where this program is built without the feature `s3`: URLs are still
//! understood, and opening one says what is missing.

#[path = "options.rs"]
mod options;
#[path = "url.rs"]
pub mod url;

pub use options::Options;
pub use url::{S3Url, Settings};

use super::BlockDevice;
use crate::event::IoFault;
use crate::format::superblock::Superblock;

pub(crate) const NO_END: u64 = 1 << 48;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum S3Error {
    #[error("this program was built without the feature `s3`")]
    Absent,
}

impl S3Error {
    #[must_use]
    pub fn is_input_error(&self) -> bool {
        true
    }

    #[must_use]
    pub fn may_pass(&self) -> bool {
        false
    }
}

#[derive(Debug)]
pub struct Connector;

impl Connector {
    #[must_use]
    pub fn new(_url: S3Url, _o: Options) -> Self {
        Self
    }

    pub fn open(&self) -> Result<S3Device, S3Error> {
        Err(S3Error::Absent)
    }
}

/// There is none.
#[derive(Debug)]
pub enum S3Device {}

impl S3Device {
    pub(crate) fn foreign(&self) -> Result<Option<String>, IoFault> {
        match *self {}
    }

    pub(crate) fn clear(&self, _old: Option<&Superblock>) -> Result<(), IoFault> {
        match *self {}
    }

    pub(crate) fn begin(&self, _volume: &Superblock) -> Result<(), IoFault> {
        match *self {}
    }
}

impl BlockDevice for S3Device {
    fn size(&self) -> u64 {
        match *self {}
    }

    fn logical_block(&self) -> u32 {
        match *self {}
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), IoFault> {
        match *self {}
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> Result<(), IoFault> {
        match *self {}
    }

    fn flush(&self) -> Result<(), IoFault> {
        match *self {}
    }
}
