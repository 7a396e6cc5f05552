//! Which incarnation this is: a number greater than any this node ever had, kept on disk.
//!
//! ```text
//!   63            32 31             0
//!   max(last+1, now) |    random       "now" in seconds since 1970
//! ```
//!
//! Peers take a frame of a lower epoch for a ghost, so the number must never go back, also when
//! the clock does (the file wins) or the file is lost (the clock wins). The random half tells a
//! cloned state directory from its original. The number is on disk, flushed, before it is used.
//!
//! The state directory is locked for as long as the daemon lives: two daemons of one configuration
//! would fence each other for ever.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::fs::{FlockOperation, flock};

use super::error::StartError;

const EPOCH_FILE: &str = "epoch";
const LOCK_FILE: &str = "lock";

/// The state directory of a running daemon; unlocked when dropped.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    lock: File,
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // Closing alone is not enough: a hook's child may hold the descriptor until it executes.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

impl StateDir {
    /// Creates the directory if need be and locks it.
    pub(super) fn lock(path: &Path) -> Result<Self, StartError> {
        let error = |source| StartError::StateDir { path: path.into(), source };
        fs::create_dir_all(path).map_err(error)?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK_FILE))
            .map_err(error)?;
        if let Err(e) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if e != rustix::io::Errno::WOULDBLOCK {
                return Err(error(e.into()));
            }
            let mut pid = String::new();
            // Only for the message.
            let _ = lock.take(32).read_to_string(&mut pid);
            return Err(StartError::Running { path: path.into(), pid: pid.trim().parse().ok() });
        }
        lock.set_len(0).map_err(error)?;
        lock.rewind().map_err(error)?;
        writeln!(lock, "{}", std::process::id()).map_err(error)?;
        Ok(Self { path: path.into(), lock })
    }

    /// A fresh epoch, already on disk.
    pub(super) fn next_epoch(&self) -> Result<u64, StartError> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|e| StartError::Random { detail: e.to_string() })?;
        let file = self.path.join(EPOCH_FILE);
        let error = |source| StartError::Epoch { path: file.clone(), source };
        let stored = match fs::read_to_string(&file) {
            Ok(text) => Some(text.trim().parse::<u64>().map_err(|_| {
                error(io::Error::new(io::ErrorKind::InvalidData, "it holds no number"))
            })?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(error(e)),
        };
        let epoch = next(stored, seconds, u32::from_ne_bytes(random))
            .ok_or_else(|| error(io::Error::other("the numbers are used up")))?;
        write_atomically(&file, &format!("{epoch}\n")).map_err(error)?;
        Ok(epoch)
    }
}

fn next(stored: Option<u64>, unix_seconds: u64, random: u32) -> Option<u64> {
    let after = stored.map_or(Some(0), |last| (last >> 32).checked_add(1))?;
    let high = u32::try_from(after.max(unix_seconds)).ok()?;
    Some(u64::from(high) << 32 | u64::from(random))
}

/// Either the old content or the new, whenever the power goes.
fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    // The rename itself must survive too.
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_only_grow() {
        assert_eq!(next(None, 100, 7), Some(100 << 32 | 7));
        assert_eq!(next(Some(100 << 32 | 7), 100, 3), Some(101 << 32 | 3), "same second");
        assert_eq!(next(Some(500 << 32), 100, 3), Some(501 << 32 | 3), "clock went back");
        assert_eq!(next(Some(5 << 32), 100, 3), Some(100 << 32 | 3));
        assert_eq!(next(Some(u64::MAX), 100, 3), None);
    }

    #[test]
    fn the_file_is_kept_and_the_directory_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::lock(&path).unwrap();
        let first = state.next_epoch().unwrap();
        assert!(state.next_epoch().unwrap() > first);
        match StateDir::lock(&path).unwrap_err() {
            StartError::Running { pid, .. } => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other}"),
        }
        drop(state);
        let state = StateDir::lock(&path).unwrap();
        fs::write(path.join(EPOCH_FILE), "rubbish").unwrap();
        let error = state.next_epoch().unwrap_err();
        assert!(error.is_input_error(), "{error}");
    }
}
