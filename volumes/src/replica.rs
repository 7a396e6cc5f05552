//! Making a replica, and the fear of copying the wrong way.
//!
//! ```text
//!   source: a volume? an original?
//!      -> destination: the same medium? its replica already? another volume? foreign? blank?
//!      -> blank: zeros everywhere -> superblocks that say "replica"
//! ```
//!
//! Awkward cases: a path that does not exist becomes a file of the source's size, but never below
//! `/dev`, where it is a device that is missing; what somebody may need is replaced only as
//! `init` replaces it, by name; an interrupted making leaves zeros and can be repeated. Behind a
//! URL nothing is created, and only equal URLs are known to be one medium: another name of the
//! source is no marked replica, and is refused as that.

use crate::event::IoFault;
use crate::format::superblock::Superblock;
use crate::init::{self, Held, InitError, InitOptions};
use crate::log::replicate::{Refusal, Side};
use crate::media::{self, BlockDevice, Direct, How, Location, OpenError};
use crate::pace::Class;
use crate::probe;
use crate::runtime::{AttachError, read_superblock};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What may be replaced by a replica; see [`crate::init()`].
#[derive(Debug, Clone, Default)]
pub struct Consent {
    pub force: bool,
    /// Name of what is there now.
    pub name: String,
}

impl Consent {
    fn words(&self) -> InitOptions {
        InitOptions { force: self.force, name: self.name.clone(), ..InitOptions::default() }
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    #[error("source {0}")]
    Source(AttachError),
    #[error("destination {0}")]
    Destination(AttachError),
    #[error("destination {0}")]
    Make(#[from] InitError),
    #[error("{path}: source and destination are the same medium; give two")]
    Same { path: PathBuf },
    #[error("{from} -> {to}: {why}")]
    Refused { from: PathBuf, to: PathBuf, why: Refusal },
    #[error(
        "{path}: the source is {need} bytes long, the destination only {have}; \
         give a medium of at least {need} bytes"
    )]
    TooSmall { path: PathBuf, need: u64, have: u64 },
    #[error(
        "{path}: its sectors of {logical} bytes are larger than the source's blocks of {block}; \
         format the source with `--sector {logical}`"
    )]
    WrongSector { path: PathBuf, logical: u32, block: u32 },
    #[error("{path}: no such device; check the path")]
    NoDevice { path: PathBuf },
    #[error("{path}: another replicator on this host writes to it; stop it first")]
    Locked { path: PathBuf },
    #[error("cannot start a thread: {detail}")]
    Thread { detail: String },
    #[error("no random numbers: {detail}; is getrandom(2) allowed here?")]
    Random { detail: String },
}

impl CopyError {
    /// Whether the operator's words are at fault rather than the machine.
    #[must_use]
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Source(e) | Self::Destination(e) => e.is_input_error(),
            Self::Make(e) => e.is_input_error(),
            Self::Thread { .. } | Self::Random { .. } => false,
            _ => true,
        }
    }

    /// Whether the same words may work later without anybody changing them.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Source(e) | Self::Destination(e) => e.may_pass(),
            Self::Make(InitError::Io { .. }) | Self::NoDevice { .. } | Self::Locked { .. } => true,
            // The source may be claimed anew, the right medium may return.
            Self::Refused { why, .. } => {
                matches!(why, Refusal::Ahead { .. } | Refusal::OtherVolume { .. })
            }
            _ => false,
        }
    }
}

/// Opens both places, checks the direction, makes the replica when there is none yet. Returns the
/// source's superblock. Only the destination is ever written.
pub(crate) fn prepare(
    from: &Location,
    to: &Location,
    single_host: bool,
    consent: &Consent,
    progress: &mut impl FnMut(u64, u64),
) -> Result<Superblock, CopyError> {
    let labels = (from.label(), to.label());
    let direct = if single_host { Direct::Preferred } else { Direct::Required };
    let how = How { write: false, direct, exclusive: false };
    let opened = |e: OpenError| AttachError::Open(Arc::new(e));
    let source = media::connect(from, how).map_err(|e| CopyError::Source(opened(e)))?;
    let original = check_source(&*source, &labels.0, &labels.1)?;
    let created = match to.path() {
        Some(path) => create(path, original.geometry.bytes())?,
        None => false,
    };
    if from.is_same(to) {
        return Err(CopyError::Same { path: labels.1 });
    }
    if let Location::S3(url) = to {
        let device = init::open_objects(&labels.1, url);
        let device = device.map_err(|e| CopyError::Destination(opened(e)))?;
        if !is_replica(&device, &original, (&labels.0, &labels.1), consent)? {
            let old = init::check_objects(&labels.1, url, &device, &consent.words())?;
            let replica = Superblock { replica: true, ..original.clone() };
            init::write_objects(&labels.1, &device, &replica, old.as_ref())?;
        }
        return Ok(original);
    }
    let result = (|| {
        let how = How { write: true, direct, exclusive: false };
        let device = media::connect(to, how).map_err(|e| CopyError::Destination(opened(e)))?;
        if is_replica(&*device, &original, (&labels.0, &labels.1), consent)? {
            return Ok(());
        }
        let names = init::Names::at(&labels.1, to);
        let Some(path) = to.path() else {
            return make(&*device, &names, &original, consent, Held::ByName, progress);
        };
        if let Some(user) = probe::user(path) {
            return Err(InitError::InUse { path: path.to_owned(), user }.into());
        }
        let lock = crate::lock::take(path, 0, 0);
        let lock = lock.map_err(|source| InitError::Create { path: path.to_owned(), source })?;
        make(&*device, &names, &original, consent, Held::File(lock.is_none()), progress)
    })();
    if let (Err(_), true, Some(path)) = (&result, created, to.path()) {
        let _ = std::fs::remove_file(path);
    }
    result.map(|()| original)
}

/// The same for any medium: makes `device` a replica of `original`, unless it is one.
pub fn make_replica(
    device: &dyn BlockDevice,
    label: &Path,
    original: &Superblock,
    consent: &Consent,
) -> Result<(), CopyError> {
    if is_replica(device, original, (Path::new("source"), label), consent)? {
        return Ok(());
    }
    make(device, &init::Names::of(label), original, consent, Held::File(false), &mut |_, _| {})
}

pub(crate) fn check_source(
    source: &dyn BlockDevice,
    from: &Path,
    to: &Path,
) -> Result<Superblock, CopyError> {
    let original = crate::inspect::read_whole(source, from).map_err(CopyError::Source)?;
    if original.replica {
        let why = Refusal::SourceIsReplica { name: original.name };
        return Err(refused((from, to), why));
    }
    Ok(original)
}

fn refused((from, to): (&Path, &Path), why: Refusal) -> CopyError {
    CopyError::Refused { from: from.to_owned(), to: to.to_owned(), why }
}

/// Whether it is the replica of that original already. What only looks like it is refused, unless
/// the operator consents to its end.
fn is_replica(
    device: &dyn BlockDevice,
    original: &Superblock,
    paths: (&Path, &Path),
    consent: &Consent,
) -> Result<bool, CopyError> {
    let g = &original.geometry;
    let path = || paths.1.to_owned();
    // A store is as large as what is put there.
    if device.size() < g.bytes() && device.class() != Class::Object {
        return Err(CopyError::TooSmall { path: path(), need: g.bytes(), have: device.size() });
    }
    if device.logical_block() > g.block_bytes {
        let (logical, block) = (device.logical_block(), g.block_bytes);
        return Err(CopyError::WrongSector { path: path(), logical, block });
    }
    let there = match read_superblock(device, paths.1) {
        Ok(there) => there,
        // What cannot be read may well be the replica.
        Err(e @ AttachError::Io { .. }) => return Err(CopyError::Destination(e)),
        Err(_) => return Ok(false),
    };
    if there.uuid != original.uuid {
        return Ok(false);
    }
    if consent.force && consent.name == there.name {
        // Also a replica is made anew when that is what was typed.
        return Ok(false);
    }
    if (Superblock { replica: true, ..original.clone() }) == there {
        return Ok(true);
    }
    let why = if there.replica {
        let (ours, found) = (original.generation, there.generation);
        Refusal::Generation { side: Side::Destination, ours, found }
    } else {
        Refusal::NotAReplica { name: there.name }
    };
    Err(refused(paths, why))
}

fn make(
    device: &dyn BlockDevice,
    names: &init::Names<'_>,
    original: &Superblock,
    consent: &Consent,
    held: Held,
    progress: &mut impl FnMut(u64, u64),
) -> Result<(), CopyError> {
    let path = names.path;
    let old = init::check_content(names, device, &consent.words(), held)?;
    if matches!(held, Held::File(true)) {
        return Err(InitError::Attached { path: path.to_owned() }.into());
    }
    let replica = Superblock { replica: true, ..original.clone() };
    Ok(init::write_whole(path, device, &replica, old.as_ref(), progress)?)
}

/// Creates the file when there is none.
fn create(path: &Path, size: u64) -> Result<bool, CopyError> {
    let fail = |source| CopyError::Make(InitError::Create { path: path.to_owned(), source });
    let new = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => true,
        Err(e) => return Err(fail(e)),
        Ok(m) if m.is_file() && m.len() == 0 => false,
        Ok(_) => return Ok(false),
    };
    if new && path.starts_with("/dev") {
        return Err(CopyError::NoDevice { path: path.to_owned() });
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(new).open(path).map_err(fail)?;
    file.set_len(size).map_err(fail)?;
    Ok(new)
}

/// Which running kernel this is: there the host lock is final.
pub(crate) fn host() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&hex, 16).unwrap_or(0)
}

/// A fault as an attach error, for messages.
pub(crate) fn gone(detail: impl std::fmt::Display) -> IoFault {
    IoFault::new(crate::event::IoFaultKind::Gone, detail.to_string())
}
