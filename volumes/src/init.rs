//! Formatting, with the fear of destroying what somebody needs.
//!
//! ```text
//!   in use? -> signature? -> a sidepath volume? alive (three beats)? -> foreign bytes?
//!      -> geometry fits? -> write every block once -> flush -> superblocks -> flush
//! ```
//!
//! Awkward cases: an interrupted init leaves zeros at both ends and can be repeated; `--force`
//! alone never suffices, the name of what is there must be typed (the volume's name, or for
//! foreign data the name of the file or device itself); a live volume and a device the kernel
//! uses are refused whatever is typed; nothing outside the volume's region is written.

use crate::buffer::Pool;
use crate::event::{IoFault, IoFaultKind};
use crate::format::superblock::{
    Copy, DATA_BYTES_DEFAULT, DATA_BYTES_MIN, EXPRESS_BYTES_DEFAULT, EXPRESS_BYTES_MIN,
    FormatError, Geometry, NAME_BYTES_MAX, Superblock, Uuid,
};
use crate::format::table::Table;
use crate::format::{BLOCK_MAX, BLOCK_MIN, NODES_MAX};
use crate::keeper::WATCH_BEATS;
use crate::media::s3::{self, NO_END, S3Device, S3Url};
use crate::media::{self, BlockDevice, Direct, How, Location, OpenError};
use crate::pace::{Class, watched_beat};
use crate::probe;
use crate::runtime::{AttachError, read_superblock};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    pub name: String,
    pub nodes: Vec<u8>,
    /// Bytes; for a file that does not exist it is required.
    pub size: Option<u64>,
    /// Bytes of each data ring.
    pub lane_size: Option<u64>,
    /// Least block unit.
    pub sector: Option<u32>,
    pub force: bool,
    /// Node ids without a machine yet; they get lanes too.
    pub spare: Vec<u8>,
    /// One host alone uses the medium: no direct I/O needed.
    pub single_host: bool,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    #[error("--name: {why}")]
    Name { why: &'static str },
    #[error("--nodes: {why}")]
    Nodes { why: String },
    #[error("--sector {sector}: it must be a power of two from 512 to {BLOCK_MAX}")]
    Sector { sector: u32 },
    #[error("{path}: does not exist; give --size to create it as a file")]
    NeedsSize { path: PathBuf },
    #[error(
        "{path}: --size {want} but it has {have} bytes; leave --size out or give at most {have}"
    )]
    SizeBeyond { path: PathBuf, want: u64, have: u64 },
    #[error(
        "{path}: {have} bytes are too few for {nodes} nodes ({lanes} lanes): at least {need} are \
         needed; give more --size, fewer --nodes or a smaller --lane-size"
    )]
    TooSmall { path: PathBuf, have: u64, need: u64, nodes: usize, lanes: u64 },
    #[error(
        "--lane-size {want}: at least {DATA_BYTES_MIN}, at most 4 GiB, in whole blocks of {block}"
    )]
    LaneSize { want: u64, block: u32 },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{path}: {user}; it is not touched, free it first")]
    InUse { path: PathBuf, user: String },
    #[error(
        "{path}: it carries {what}; if it may be destroyed, erase it (`wipefs -a`) or give \
         --force together with --name {expect}"
    )]
    Foreign { path: PathBuf, what: &'static str, expect: String },
    #[error(
        "{path}: objects that are not of sidepath lie there ({example}); choose another prefix, or give \
         --force together with --name {expect} to put a volume beside them"
    )]
    ForeignObjects { path: PathBuf, example: String, expect: String },
    #[error(
        "{path}: it is the sidepath volume {name:?} (uuid {uuid}); to destroy it give --force \
         together with --name {name}"
    )]
    IsAVolume { path: PathBuf, name: String, uuid: Uuid },
    #[error(
        "{path}: the sidepath volume {name:?} is alive, node {node} is beating; stop its daemons first"
    )]
    Live { path: PathBuf, name: String, node: u8 },
    #[error("{path}: a sidepath daemon on this host has it attached; stop it first")]
    Attached { path: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: IoFault },
    #[error("{path}: cannot create it: {source}")]
    Create { path: PathBuf, source: std::io::Error },
    #[error("no random numbers: {detail}")]
    Random { detail: String },
}

impl InitError {
    /// Whether the operator's words are at fault rather than the machine.
    #[must_use]
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Open(e) => e.is_input_error(),
            Self::Io { .. } | Self::Create { .. } | Self::Random { .. } => false,
            _ => true,
        }
    }
}

/// Formats what is there; `progress(written, all)` is called every MiB. Behind a URL nobody can see
/// who else uses it: only what the medium itself says keeps it from being overwritten.
pub fn init(
    at: impl Into<Location>,
    o: &InitOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<Superblock, InitError> {
    let nodes = check_words(o)?;
    let at = at.into();
    if let Location::S3(url) = &at {
        return init_objects(&at.label(), url, o, nodes);
    }
    let Some(path) = at.path() else {
        let how = How { write: true, direct: Direct::Required, exclusive: false };
        let device = media::connect(&at, how)?;
        let label = at.label();
        let names = Names { path: &label, short: at.short_name() };
        let old = check_content(&names, &*device, o, Held::ByName)?;
        return write_volume(&label, &*device, o, nodes, old.as_ref(), &mut progress);
    };
    let created = create(path, o, &nodes)?;
    let result = format(path, o, nodes, created, &mut progress);
    if result.is_err() && created {
        let _ = std::fs::remove_file(path);
    }
    result
}

/// A store has no blocks to fill: the old volume's objects go, and two new ones come. Others are left
/// alone whatever is typed.
fn init_objects(
    label: &Path,
    url: &S3Url,
    o: &InitOptions,
    nodes: Vec<u8>,
) -> Result<Superblock, InitError> {
    let device = open_objects(label, url)?;
    let old = check_objects(label, url, &device, o)?;
    let superblock = new_superblock(label, &device, o, &nodes, old.as_ref())?;
    write_objects(label, &device, &superblock, old.as_ref())?;
    Ok(superblock)
}

pub(crate) fn open_objects(label: &Path, url: &S3Url) -> Result<S3Device, OpenError> {
    let connector = s3::Connector::new(url.clone(), s3::Options::patient(true));
    connector.open().map_err(|source| OpenError::S3 { place: label.to_owned(), source })
}

/// As [`check_content`], where it is objects that somebody may need.
pub(crate) fn check_objects(
    label: &Path,
    url: &S3Url,
    device: &S3Device,
    o: &InitOptions,
) -> Result<Option<Superblock>, InitError> {
    let io = |source| InitError::Io { path: label.to_owned(), source };
    let short = url.short_name();
    match read_superblock(device, label) {
        Ok(volume) => {
            check_volume(label, device, &volume, o, Held::ByName)?;
            Ok(Some(volume))
        }
        Err(AttachError::Io { detail, .. }) => Err(io(IoFault::new(IoFaultKind::Other, detail))),
        Err(_) => {
            let foreign = device.foreign().map_err(io)?;
            let by_name = o.force && o.name == short;
            match foreign.filter(|_| !by_name) {
                None => Ok(None),
                Some(example) => {
                    let path = label.to_owned();
                    Err(InitError::ForeignObjects { path, example, expect: short })
                }
            }
        }
    }
}

/// The old volume's objects go, the new superblocks come.
pub(crate) fn write_objects(
    label: &Path,
    device: &S3Device,
    superblock: &Superblock,
    old: Option<&Superblock>,
) -> Result<(), InitError> {
    let io = |source| InitError::Io { path: label.to_owned(), source };
    device.clear(old).map_err(io)?;
    device.begin(superblock).map_err(io)
}

fn check_words(o: &InitOptions) -> Result<Vec<u8>, InitError> {
    if o.name.is_empty() || o.name.len() > NAME_BYTES_MAX {
        return Err(InitError::Name { why: "it must have 1 to 63 bytes" });
    }
    if o.name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(InitError::Name { why: "it must not contain spaces or control characters" });
    }
    if let Some(sector) = o.sector
        && (!sector.is_power_of_two() || !(512..=65536).contains(&sector))
    {
        return Err(InitError::Sector { sector });
    }
    let mut nodes: Vec<u8> = o.nodes.iter().chain(&o.spare).copied().collect();
    nodes.sort_unstable();
    let why = if let Some(w) = nodes.windows(2).find(|w| w[0] == w[1]) {
        format!("{} is named twice", w[0])
    } else if let Some(n) = nodes.iter().find(|&&n| n == 0 || usize::from(n) > NODES_MAX) {
        format!("{n} is not an id from 1 to {NODES_MAX}")
    } else if nodes.len() < 2 {
        "a volume needs at least two nodes".into()
    } else {
        return Ok(nodes);
    };
    Err(InitError::Nodes { why })
}

/// Creates the file when there is none.
fn create(path: &Path, o: &InitOptions, nodes: &[u8]) -> Result<bool, InitError> {
    let fail = |source| InitError::Create { path: path.to_owned(), source };
    let is_empty_file = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(fail(e)),
        Ok(m) if m.is_file() && m.len() == 0 => true,
        Ok(_) => return Ok(false),
    };
    let size = o.size.ok_or_else(|| InitError::NeedsSize { path: path.to_owned() })?;
    // Nothing is left behind when the numbers are wrong.
    plan(path, o, nodes, size, 512)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let file = options.create_new(!is_empty_file).open(path).map_err(fail)?;
    file.set_len(size).map_err(fail)?;
    Ok(!is_empty_file)
}

/// Room for rings of the usual size.
fn usual_bytes(o: &InitOptions, nodes: &[u8]) -> u64 {
    let n = nodes.len() as u64;
    let block = BLOCK_MAX as u64;
    let data = o.lane_size.unwrap_or(DATA_BYTES_DEFAULT).min(4 << 30);
    let lane = EXPRESS_BYTES_DEFAULT + data + 3 * block;
    n * (n - 1) * lane + (2 * n + 2) * block
}

/// The geometry for a medium of `have` bytes.
fn plan(
    path: &Path,
    o: &InitOptions,
    nodes: &[u8],
    have: u64,
    logical: u32,
) -> Result<Geometry, InitError> {
    let block = logical.max(o.sector.unwrap_or(0)).max(u32::try_from(BLOCK_MIN).unwrap_or(4096));
    if !block.is_power_of_two() || block as usize > BLOCK_MAX {
        return Err(InitError::Sector { sector: block });
    }
    let b = u64::from(block);
    let size = o.size.unwrap_or(have);
    if size > have {
        return Err(InitError::SizeBeyond { path: path.to_owned(), want: size, have });
    }
    let blocks = |bytes: u64| u32::try_from(bytes.div_ceil(b)).unwrap_or(u32::MAX);
    let mut g = Geometry {
        block_bytes: block,
        blocks: size / b,
        nodes: nodes.to_vec(),
        express_blocks: blocks(EXPRESS_BYTES_MIN),
        data_blocks: blocks(DATA_BYTES_MIN),
    };
    if let Some(want) = o.lane_size {
        if want < DATA_BYTES_MIN || want % b != 0 || want > 4 << 30 {
            return Err(InitError::LaneSize { want, block });
        }
        g.data_blocks = blocks(want);
    }
    let need = g.blocks_needed();
    if need > g.blocks {
        let (have, need) = (size, need * b);
        let (nodes, lanes) = (g.nodes.len(), g.lanes());
        return Err(InitError::TooSmall { path: path.to_owned(), have, need, nodes, lanes });
    }
    // What is left is shared out: express rings up to 1 MiB or a sixteenth, then data rings.
    let spare = u32::try_from((g.blocks - need) / g.lanes()).unwrap_or(u32::MAX);
    let both = spare.saturating_add(g.express_blocks).saturating_add(g.data_blocks);
    if o.lane_size.is_some() {
        let most = blocks(EXPRESS_BYTES_DEFAULT).max(g.express_blocks);
        g.express_blocks = g.express_blocks.saturating_add(spare).min(most);
    } else {
        let most = blocks(EXPRESS_BYTES_DEFAULT).max(g.express_blocks);
        g.express_blocks = (both / 16).clamp(g.express_blocks, most);
        g.data_blocks = (both - g.express_blocks).min(blocks(DATA_BYTES_DEFAULT));
    }
    Ok(g)
}

fn format(
    path: &Path,
    o: &InitOptions,
    nodes: Vec<u8>,
    created: bool,
    progress: &mut impl FnMut(u64, u64),
) -> Result<Superblock, InitError> {
    let direct = if o.single_host { Direct::Preferred } else { Direct::Required };
    if let Some(user) = probe::user(path) {
        return Err(InitError::InUse { path: path.to_owned(), user });
    }
    let device = media::open(path, How { write: true, direct, exclusive: true })?;
    let lock = crate::lock::take(path, 0, 0)
        .map_err(|source| InitError::Create { path: path.to_owned(), source })?;
    let names = Names::of(path);
    let held = Held::File(lock.is_none());
    let old = if created { None } else { check_content(&names, &device, o, held)? };
    if lock.is_none() {
        return Err(InitError::Attached { path: path.to_owned() });
    }
    write_volume(path, &device, o, nodes, old.as_ref(), progress)
}

/// Formats any medium as [`init`] does a file or device; `label` stands for its path in errors.
/// Nobody but the caller can know whether it is in use on this host.
pub fn init_medium(
    device: &dyn BlockDevice,
    label: &Path,
    o: &InitOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<Superblock, InitError> {
    let nodes = check_words(o)?;
    let old = check_content(&Names::of(label), device, o, Held::File(false))?;
    write_volume(label, device, o, nodes, old.as_ref(), &mut progress)
}

fn write_volume(
    path: &Path,
    device: &dyn BlockDevice,
    o: &InitOptions,
    nodes: Vec<u8>,
    old: Option<&Superblock>,
    progress: &mut impl FnMut(u64, u64),
) -> Result<Superblock, InitError> {
    let superblock = new_superblock(path, device, o, &nodes, old)?;
    write_whole(path, device, &superblock, old, progress)?;
    Ok(superblock)
}

/// Zeros everywhere, then the superblocks.
pub(crate) fn write_whole(
    path: &Path,
    device: &dyn BlockDevice,
    superblock: &Superblock,
    old: Option<&Superblock>,
    progress: &mut impl FnMut(u64, u64),
) -> Result<(), InitError> {
    let io = |source| InitError::Io { path: path.to_owned(), source };
    let all = superblock.geometry.bytes();
    let pool = Pool::new();
    let mut zeros = pool.take_len(CHUNK_BYTES);
    zeros.as_mut().fill(0);
    // An interrupted init must leave neither copy of the old superblock.
    let ends = [Some(superblock), old].into_iter().flatten();
    for offset in ends.map(|s| s.geometry.last_offset()).chain([0]) {
        let unit = superblock.geometry.block();
        if offset % unit as u64 == 0 && offset + unit as u64 <= device.size() {
            device.write_at(offset, &zeros.as_ref()[..unit]).map_err(io)?;
        }
    }
    device.flush().map_err(io)?;
    let mut at = 0;
    while at < all {
        let len = CHUNK_BYTES.min(crate::format::bytes::to_usize(all - at));
        device.write_at(at, &zeros.as_ref()[..len]).map_err(io)?;
        at += len as u64;
        progress(at, all);
    }
    device.flush().map_err(io)?;
    write_superblocks(path, device, superblock, &pool).inspect_err(|_| {
        // The caller was told that there is no volume, so there must be none.
        let unit = superblock.geometry.block();
        for offset in [0, superblock.geometry.last_offset()] {
            let _ = device.write_at(offset, &zeros.as_ref()[..unit]);
        }
        let _ = device.flush();
    })
}

/// What will be written, before anything is.
fn new_superblock(
    path: &Path,
    device: &dyn BlockDevice,
    o: &InitOptions,
    nodes: &[u8],
    old: Option<&Superblock>,
) -> Result<Superblock, InitError> {
    let geometry = if device.class() == Class::Object {
        // A store gives as much as is asked for: enough for the usual rings, when nothing is.
        let size = o.size.unwrap_or_else(|| usual_bytes(o, nodes));
        let o = InitOptions { size: Some(size), ..o.clone() };
        plan(path, &o, nodes, NO_END, device.logical_block())?
    } else {
        plan(path, o, nodes, device.size(), device.logical_block())?
    };
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid).map_err(|e| InitError::Random { detail: e.to_string() })?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let superblock = Superblock {
        uuid: Uuid(uuid),
        name: o.name.clone(),
        generation: old.map_or(1, |s| s.generation.saturating_add(1)),
        created_unix_us: u64::try_from(now.as_micros()).unwrap_or(0),
        replica: false,
        geometry,
    };
    Ok(superblock)
}

fn write_superblocks(
    path: &Path,
    device: &dyn BlockDevice,
    superblock: &Superblock,
    pool: &Pool,
) -> Result<(), InitError> {
    let io = |source| InitError::Io { path: path.to_owned(), source };
    for (offset, bytes) in superblock.image() {
        let mut buf = pool.take(bytes.len());
        buf.extend(&bytes);
        device.write_at(offset, buf.as_ref()).map_err(io)?;
        device.flush().map_err(io)?;
    }
    if read_superblock(device, path).as_ref().ok() != Some(superblock) {
        let detail = "the superblock does not read back as it was written";
        return Err(io(IoFault::new(IoFaultKind::Other, detail)));
    }
    Ok(())
}

/// How a medium is called in errors, and what must be typed to destroy foreign data on it.
pub(crate) struct Names<'a> {
    pub(crate) path: &'a Path,
    short: String,
}

impl<'a> Names<'a> {
    pub(crate) fn of(path: &'a Path) -> Self {
        Self { path, short: Location::from(path).short_name() }
    }

    /// `label` stands for the location.
    pub(crate) fn at(label: &'a Path, place: &Location) -> Self {
        Self { path: label, short: place.short_name() }
    }
}

/// How it shows that a daemon of this host has the place.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Held {
    /// By the lock on the file or device, which was tried.
    File(bool),
    /// Behind a URL there is nothing to lock but the volume's name, to be asked when that is read.
    ByName,
}

/// Refuses whatever somebody may need. Returns the volume that is to be replaced.
pub(crate) fn check_content(
    names: &Names<'_>,
    device: &dyn BlockDevice,
    o: &InitOptions,
    held: Held,
) -> Result<Option<Superblock>, InitError> {
    let path = names.path;
    let io = |source| InitError::Io { path: path.to_owned(), source };
    match read_superblock(device, path) {
        Ok(volume) => {
            check_volume(path, device, &volume, o, held)?;
            return Ok(Some(volume));
        }
        // Nobody can tell whether a volume of another version is alive.
        Err(AttachError::Format {
            source: FormatError::Version { .. } | FormatError::Features { .. },
            ..
        }) => return foreign(names, "a sidepath volume of another version", o).map(|()| None),
        // What cannot be read may be a volume that is alive.
        Err(AttachError::Io { detail, .. }) => {
            return Err(io(IoFault::new(IoFaultKind::Other, detail)));
        }
        Err(_) => {}
    }
    let size = device.size();
    let unit = u64::from(device.logical_block().max(512));
    let span = |want: usize| crate::format::bytes::to_usize((want as u64).min(size) / unit * unit);
    let pool = Pool::new();
    let mut head = pool.take_len(span(probe::HEAD_BYTES));
    device.read_at(0, head.as_mut()).map_err(io)?;
    let tail_len = span(probe::TAIL_BYTES);
    let mut tail = pool.take_len(tail_len);
    device.read_at(size / unit * unit - tail_len as u64, tail.as_mut()).map_err(io)?;
    if let Some(what) = probe::signature(head.as_ref(), tail.as_ref()) {
        return foreign(names, what, o).map(|()| None);
    }
    if !probe::is_blank(head.as_ref()) || !probe::is_blank(tail.as_ref()) {
        return foreign(names, "data that sidepath does not know", o).map(|()| None);
    }
    Ok(None)
}

/// Foreign data goes only when the name of the file, device or export itself was typed.
fn foreign(names: &Names<'_>, what: &'static str, o: &InitOptions) -> Result<(), InitError> {
    let expect = names.short.clone();
    if o.force && o.name == expect {
        return Ok(());
    }
    Err(InitError::Foreign { path: names.path.to_owned(), what, expect })
}

fn check_volume(
    path: &Path,
    device: &dyn BlockDevice,
    volume: &Superblock,
    o: &InitOptions,
    held: Held,
) -> Result<(), InitError> {
    let name = || volume.name.clone();
    if !o.force || o.name != volume.name {
        return Err(InitError::IsAVolume {
            path: path.to_owned(),
            name: name(),
            uuid: volume.uuid,
        });
    }
    let held = match held {
        Held::File(held) => held,
        Held::ByName => crate::lock::is_named(volume),
    };
    if held {
        return Err(InitError::Attached { path: path.to_owned() });
    }
    match watch(device, volume).map_err(|source| InitError::Io { path: path.to_owned(), source })? {
        Some(node) => Err(InitError::Live { path: path.to_owned(), name: name(), node }),
        None => Ok(()),
    }
}

/// Watches every entry for three of its beats; the first node seen beating.
pub(crate) fn watch(device: &dyn BlockDevice, volume: &Superblock) -> Result<Option<u8>, IoFault> {
    let pool = Pool::new();
    let look = || {
        let mut region = pool.take_len(volume.geometry.table_region_bytes());
        device.read_at(0, region.as_mut())?;
        Ok(Table::decode(region.as_ref(), volume))
    };
    let first = look()?;
    let slowest = first.entries.iter().flatten().filter(|e| !e.goodbye);
    let slowest = slowest.map(|e| watched_beat(e.interval_us)).max().unwrap_or(0);
    let until = std::time::Instant::now() + Duration::from_micros(slowest * WATCH_BEATS);
    while std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_micros((slowest / 4).clamp(5_000, 100_000)));
        let table = look()?;
        for (before, now) in first.entries.iter().zip(&table.entries) {
            if let Some(e) = now
                && before.as_ref().map(|b| (b.epoch, b.beat)) != Some((e.epoch, e.beat))
                && !e.goodbye
            {
                return Ok(Some(e.node));
            }
        }
    }
    Ok(None)
}

/// Both copies, for `verify`.
pub(crate) fn copies(
    device: &dyn BlockDevice,
    volume: &Superblock,
) -> Result<[Result<Superblock, FormatError>; 2], IoFault> {
    let pool = Pool::new();
    let read = |offset: u64, copy: Copy| {
        let mut buf = pool.take_len(volume.geometry.block());
        device.read_at(offset, buf.as_mut())?;
        Ok(Superblock::decode(buf.as_ref(), copy))
    };
    Ok([read(0, Copy::First)?, read(volume.geometry.last_offset(), Copy::Last)?])
}
