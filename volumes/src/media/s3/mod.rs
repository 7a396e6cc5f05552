//! A volume in an object store: what each write means is one object.
//!
//! ```text
//!   keeper: look -> GET node/1, node/2, ... at once (and the superblock)    beat  -> PUT node/ID
//!   flusher:                                                                record -> PUT lane/../NUMBER
//!   reader: record NUMBER of EPOCH? -> GET lane/../NUMBER, 404: not yet
//! ```
//!
//! The machines, their epochs, permits, heads and cursors are those of every medium; only here an
//! offset becomes a name. The rings bound what is in flight, and nothing is ever written into a ring:
//! a record is an object of its own, deleted once it was read. No rule rests on conditional requests,
//! which servers ignore or break; each object has one writer.
//!
//! Awkward cases: a PUT replaces a whole object, so a node has one entry object instead of two
//! alternating blocks, which halves what a look costs; the superblock is fetched with every look that
//! is ten seconds younger than the last fetch or that misses an entry it knew, which is enough
//! because all other names hold the volume's UUID: whoever writes to a volume that was formatted anew
//! meanwhile meets nobody; nothing can be read or written at any other offset.

mod client;
mod credentials;
mod link;
mod names;
mod options;
mod sweep;
mod trouble;
pub mod url;

pub use options::Options;
pub use trouble::S3Error;
pub use url::{S3Url, Settings};

use super::{BlockDevice, Requests};
use crate::buffer::Pool;
use crate::event::{IoFault, IoFaultKind, RecordName};
use crate::format::bytes::to_usize;
use crate::format::record::{Address, Header};
use crate::format::superblock::{Copy, Superblock, Uuid};
use crate::format::table::{Entry, Table};
use crate::format::{BLOCK_MIN, HEADER_BYTES, bytes, mailbox, record, table};
use crate::log::receive::short_read;
use crate::pace::Class;
use ::bytes::Bytes;
use client::Meter;
use credentials::Credentials;
use link::Link;
use names::{Names, Spot, spot};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use sweep::Sweeper;

/// A store has no end; a place without a volume seems this large.
pub(crate) const NO_END: u64 = 1 << 48;
/// How old the superblock may be that a look at the table shows.
const SUPERBLOCK_AGE_MAX: Duration = Duration::from_secs(10);

/// Opens one place again and again with the same connections; one per attached volume.
#[derive(Debug)]
pub struct Connector {
    url: S3Url,
    o: Options,
    meter: Arc<Meter>,
    sweeper: Sweeper,
    mine: Arc<Mutex<Mine>>,
    open: Mutex<Option<(Credentials, Settings, Arc<Link>)>>,
}

impl Connector {
    #[must_use]
    pub fn new(url: S3Url, o: Options) -> Self {
        Self {
            url,
            o,
            meter: Arc::default(),
            sweeper: Sweeper::default(),
            mine: Arc::default(),
            open: Mutex::new(None),
        }
    }

    /// Credentials and settings are read anew each time: they change while daemons run.
    fn link(&self) -> Result<Arc<Link>, S3Error> {
        let settings = self.url.effective();
        settings.check()?;
        let file = settings.credentials_file.as_deref();
        let credentials = Credentials::find(file, |name| std::env::var(name).ok())?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((c, s, link)) = &*open
            && (c, s) == (&credentials, &settings)
        {
            return Ok(link.clone());
        }
        let link = Link::new(&self.url, &settings, &credentials, &self.o, self.meter.clone())?;
        let link = Arc::new(link);
        *open = Some((credentials, settings, link.clone()));
        Ok(link)
    }

    /// Looks at the superblock, so what cannot be reached or is not allowed shows here.
    pub fn open(&self) -> Result<S3Device, S3Error> {
        let link = self.link()?;
        let names = Names::new(&self.url.prefix);
        let mut device = S3Device {
            link,
            names,
            write: self.o.write,
            meter: self.meter.clone(),
            sweeper: self.sweeper.clone(),
            mine: self.mine.clone(),
            volume: Mutex::new(None),
            seen: Mutex::default(),
        };
        *device.volume.get_mut().unwrap_or_else(PoisonError::into_inner) = device.find()?;
        Ok(device)
    }
}

/// The entry that this process writes. On blocks the older one survives a torn write beside the newer;
/// here there is one object, which a server that dies in the middle may leave damaged. Until that PUT is
/// repeated, the one before stands for it.
#[derive(Debug, Default)]
struct Mine {
    slot: usize,
    uuid: Option<Uuid>,
    good: Option<Bytes>,
    /// A PUT began and was not answered.
    doubtful: bool,
}

/// What earlier looks at the table showed.
#[derive(Debug, Default)]
struct Seen {
    /// First superblock, when fetched.
    superblock: Option<(Instant, Bytes)>,
    /// By slot, whether there was an entry.
    entries: Vec<bool>,
}

/// An open place. Devices of one [`Connector`] share connections and counts.
#[derive(Debug)]
pub struct S3Device {
    link: Arc<Link>,
    names: Names,
    write: bool,
    meter: Arc<Meter>,
    sweeper: Sweeper,
    mine: Arc<Mutex<Mine>>,
    /// The volume that lay here when it was opened, or was written since.
    volume: Mutex<Option<Arc<Superblock>>>,
    seen: Mutex<Seen>,
}

fn fill(buf: &mut [u8], object: Option<&Bytes>) {
    let object = object.map_or(&[][..], |o| &o[..o.len().min(buf.len())]);
    buf[..object.len()].copy_from_slice(object);
    buf[object.len()..].fill(0);
}

impl S3Device {
    fn volume(&self) -> Option<Arc<Superblock>> {
        self.volume.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first superblock, or the last when the first is damaged or missing.
    fn find(&self) -> Result<Option<Arc<Superblock>>, S3Error> {
        for (last, copy) in [(false, Copy::First), (true, Copy::Last)] {
            let found = self.link.get(self.names.superblock(last))?;
            let found = found.map(|b| Superblock::decode(&padded(&b), copy));
            if let Some(Ok(superblock)) = found {
                return Ok(Some(Arc::new(superblock)));
            }
        }
        Ok(None)
    }

    fn get(&self, what: &str, key: String) -> Result<Option<Bytes>, IoFault> {
        self.link.get(key).map_err(|e| e.fault(what))
    }

    fn put(&self, what: &str, key: String, data: &[u8]) -> Result<(), IoFault> {
        let data = Bytes::copy_from_slice(data);
        self.link.put(key, data).map_err(|e| e.fault(what))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Superblock and table as they would stand in blocks.
    fn read_table(&self, volume: &Superblock, buf: &mut [u8]) -> Result<(), IoFault> {
        let g = &volume.geometry;
        let known = self.seen().superblock.clone().filter(|(at, bytes)| {
            at.elapsed() < SUPERBLOCK_AGE_MAX
                && Superblock::decode(&padded(bytes), Copy::First).as_ref() == Ok(volume)
        });
        let mut keys: Vec<_> = g.nodes.iter().map(|&n| self.names.node(volume.uuid, n)).collect();
        let first = self.names.superblock(false);
        if known.is_none() {
            keys.push(first.clone());
        }
        let what = "look at the table";
        let issued = Instant::now();
        let mut found = self.link.get_all(keys).map_err(|e| e.fault(what))?;
        let mut superblock = match known {
            Some((_, bytes)) => Some(bytes),
            None => {
                let fetched = found.pop().flatten();
                self.seen().superblock = fetched.clone().map(|b| (issued, b));
                fetched
            }
        };
        let now: Vec<bool> = found.iter().map(Option::is_some).collect();
        let vanished = {
            let mut seen = self.seen();
            let before = std::mem::replace(&mut seen.entries, now.clone());
            before.iter().zip(&now).any(|(&was, &is)| was && !is)
        };
        if vanished {
            // Nobody takes an entry away but who formats the volume anew.
            superblock = self.get(what, first)?;
            self.seen().superblock = superblock.clone().map(|b| (Instant::now(), b));
        }
        self.mend(volume, &mut found);
        let block = g.block();
        fill(&mut buf[..block], superblock.as_ref());
        for (slot, entry) in found.iter().enumerate() {
            let beat =
                entry.as_ref().filter(|e| e.len() >= BLOCK_MIN).map(|e| bytes::u64_at(e, 48));
            let copy = beat.map_or(0, |beat| to_usize(beat & 1));
            let at = to_usize(g.entry_offset(slot, 0));
            buf[at..at + 2 * block].fill(0);
            let at = at + copy * block;
            fill(&mut buf[at..at + block], entry.as_ref());
        }
        if self.write {
            self.sweeper.saw(&self.link, &self.names, volume, &Table::decode(buf, volume));
        }
        Ok(())
    }

    fn mine(&self) -> std::sync::MutexGuard<'_, Mine> {
        self.mine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody else damages our entry: whoever takes our place writes a whole one.
    fn mend(&self, volume: &Superblock, found: &mut [Option<Bytes>]) {
        let mine = self.mine();
        let (slot, uuid) = (mine.slot, volume.uuid);
        if !mine.doubtful || mine.uuid != Some(uuid) {
            return;
        }
        let whole = |bytes: &Bytes| {
            let copy = bytes.get(48).map_or(0, |beat| usize::from(beat & 1));
            Entry::decode(bytes, uuid, &volume.geometry, slot, copy).is_some()
        };
        if let Some(entry) = found.get_mut(slot)
            && !entry.as_ref().is_some_and(whole)
        {
            entry.clone_from(&mine.good);
        }
    }

    /// Bytes of another volume than the one that was opened belong nowhere.
    fn check_uuid(&self, volume: &Superblock, data: &[u8]) -> Result<Uuid, IoFault> {
        let uuid = Uuid(bytes::array16_at(data, 8));
        if uuid == volume.uuid {
            return Ok(uuid);
        }
        let detail = "another volume lies there than the one that is written to";
        Err(IoFault::new(IoFaultKind::Gone, detail))
    }

    /// What lies at this place and is neither ours nor of an older volume of ours: one of it.
    pub(crate) fn foreign(&self) -> Result<Option<String>, IoFault> {
        let all = self.link.list(self.names.prefix(), 100);
        let all = all.map_err(|e| e.fault("list what is there"))?;
        let ours = [self.names.superblock(false), self.names.superblock(true)];
        let is_ours = |key: &String| ours.contains(key);
        Ok(all.into_iter().find(|key| !is_ours(key)))
    }

    /// Takes a volume away: first its superblocks, so that there is none half way through.
    pub(crate) fn clear(&self, old: Option<&Superblock>) -> Result<(), IoFault> {
        let fail = |e: S3Error| e.fault("delete the old volume");
        let both = [false, true].map(|last| self.names.superblock(last));
        self.link.delete(both.into()).map_err(fail)?;
        let Some(old) = old else { return Ok(()) };
        loop {
            let keys = self.link.list(&self.names.tree(old.uuid), 1000).map_err(fail)?;
            if keys.is_empty() {
                return Ok(());
            }
            self.link.delete(keys).map_err(fail)?;
        }
    }

    /// Makes this place hold this volume.
    pub(crate) fn begin(&self, volume: &Superblock) -> Result<(), IoFault> {
        for (last, copy) in [(true, Copy::Last), (false, Copy::First)] {
            let image = volume.encode(copy);
            self.put("write the superblock", self.names.superblock(last), &image[..BLOCK_MIN])?;
        }
        *self.seen() = Seen::default();
        let found = self.find().map_err(|e| e.fault("read the superblock back"))?;
        let same = found.as_deref() == Some(volume);
        *self.volume.lock().unwrap_or_else(PoisonError::into_inner) = found;
        if same {
            return Ok(());
        }
        let detail = "the superblock does not read back as it was written";
        Err(IoFault::new(IoFaultKind::Other, detail))
    }

    /// Those that lie side by side, all at once.
    fn read_mailboxes(
        &self,
        volume: &Superblock,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), IoFault> {
        let g = &volume.geometry;
        let places = (0..buf.len().div_ceil(g.block())).map(|i| offset + (i * g.block()) as u64);
        let keys = places.map(|at| match spot(g, at) {
            Spot::Mailbox { from, to } => Ok(self.names.mailbox(volume.uuid, from, to)),
            _ => Err(Self::nowhere("read", at)),
        });
        let found = self.link.get_all(keys.collect::<Result<_, _>>()?);
        let found = found.map_err(|e| e.fault("read a message"))?;
        for (there, object) in buf.chunks_mut(g.block()).zip(&found) {
            fill(there, object.as_ref());
        }
        Ok(())
    }

    /// One object for each of the records, which follow one another in the ring and in `data`.
    fn write_records(
        &self,
        volume: &Superblock,
        address: Address,
        offset: u64,
        data: &[u8],
    ) -> Result<(), IoFault> {
        let g = &volume.geometry;
        let Address { from, to, ring, .. } = address;
        let nowhere = || Self::nowhere("write", offset);
        let base = g.ring_offset(from, to, ring).ok_or_else(nowhere)?;
        let mut at = 0;
        while at < data.len() {
            let there = &data[at..];
            let place = record::place_of(there);
            let here = base + u64::from(place) * u64::from(g.block_bytes) == offset + at as u64;
            let header = Header::decode(there, &address, place).filter(|_| here);
            let header = header.ok_or_else(nowhere)?;
            let (epoch, number) = (header.epoch, header.number);
            let name = RecordName { from, to, ring, epoch, number };
            let object = there.get(..header.bytes()).ok_or_else(nowhere)?;
            let object = Bytes::copy_from_slice(object);
            let key = self.names.record(address.uuid, &name);
            self.link.put_once(key, object).map_err(|e| e.fault("write a record"))?;
            self.sweeper.wrote_record(&name, place, header.blocks);
            at += header.blocks as usize * g.block();
        }
        Ok(())
    }

    fn nowhere(what: &str, offset: u64) -> IoFault {
        let detail = format!("{what} at {offset}: an object store has nothing at that place");
        IoFault::new(IoFaultKind::Other, detail)
    }
}

/// Objects hold no padding; parsers want whole blocks.
fn padded(bytes: &Bytes) -> Vec<u8> {
    let mut block = bytes.to_vec();
    block.resize(block.len().max(BLOCK_MIN), 0);
    block
}

impl BlockDevice for S3Device {
    fn size(&self) -> u64 {
        self.volume().map_or(NO_END, |v| v.geometry.bytes())
    }

    fn logical_block(&self) -> u32 {
        512
    }

    fn class(&self) -> Class {
        Class::Object
    }

    fn requests(&self) -> Option<Requests> {
        Some(self.meter.read())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size()) {
            return Err(short_read(offset, buf.len(), 0));
        }
        let Some(volume) = self.volume() else {
            // Whoever looks for a volume finds none.
            buf.fill(0);
            return Ok(());
        };
        let key = match spot(&volume.geometry, offset) {
            Spot::Start if buf.len() >= volume.geometry.table_region_bytes() => {
                return self.read_table(&volume, buf);
            }
            Spot::Start => self.names.superblock(false),
            Spot::Last => self.names.superblock(true),
            Spot::Mailbox { .. } => return self.read_mailboxes(&volume, offset, buf),
            Spot::Entry { .. } | Spot::Ring { .. } | Spot::Nowhere => {
                return Err(Self::nowhere("read", offset));
            }
        };
        fill(buf, self.get("read", key)?.as_ref());
        Ok(())
    }

    fn read_record(
        &self,
        pool: &Pool,
        _offset: u64,
        _len: usize,
        name: &RecordName,
    ) -> Result<Bytes, IoFault> {
        let volume = self.volume().ok_or_else(|| {
            IoFault::new(IoFaultKind::Gone, "read a record: there is no volume any more")
        })?;
        let found = self.get("read a record", self.names.record(volume.uuid, name))?;
        let Some(found) = found else { return Ok(Bytes::new()) };
        // In whole blocks, as it would stand in a ring: it may be written to one.
        let mut buf = pool.take_len(found.len().next_multiple_of(volume.geometry.block()));
        fill(buf.as_mut(), Some(&found));
        Ok(buf.freeze())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault> {
        if !self.write {
            let detail = format!("write at {offset}: it was opened for reading");
            return Err(IoFault::new(IoFaultKind::ReadOnly, detail));
        }
        let nowhere = || Self::nowhere("write", offset);
        let volume = self.volume().ok_or_else(nowhere)?;
        let g = &volume.geometry;
        if data.len() < BLOCK_MIN {
            return Err(nowhere());
        }
        match spot(g, offset) {
            Spot::Entry { slot } => {
                let uuid = self.check_uuid(&volume, data)?;
                let node = *g.nodes.get(slot).ok_or_else(nowhere)?;
                if data[..4] != *table::MAGIC || data[4] != node {
                    return Err(nowhere());
                }
                let entry = Bytes::copy_from_slice(&data[..BLOCK_MIN]);
                {
                    let mut mine = self.mine();
                    if (mine.slot, mine.uuid) != (slot, Some(uuid)) {
                        *mine = Mine { slot, uuid: Some(uuid), ..Mine::default() };
                    }
                    mine.doubtful = true;
                }
                let key = self.names.node(uuid, node);
                self.link.put(key, entry.clone()).map_err(|e| e.fault("write our beat"))?;
                {
                    let mut mine = self.mine();
                    (mine.good, mine.doubtful) = (Some(entry), false);
                }
                self.sweeper.wrote(&volume, node, bytes::u64_at(data, 32));
                Ok(())
            }
            Spot::Mailbox { from, to } => {
                let uuid = self.check_uuid(&volume, data)?;
                if data[..4] != *mailbox::MAGIC {
                    return Err(nowhere());
                }
                let end = HEADER_BYTES.saturating_add(bytes::u32_at(data, 48) as usize);
                let data = &data[..end.min(data.len())];
                self.put("write a message", self.names.mailbox(uuid, from, to), data)
            }
            Spot::Ring { from, to, ring } => {
                let uuid = self.check_uuid(&volume, data)?;
                self.write_records(&volume, Address { uuid, from, to, ring }, offset, data)
            }
            Spot::Start | Spot::Last | Spot::Nowhere => Err(nowhere()),
        }
    }

    /// A PUT that was answered is as durable as the store ever makes it.
    fn flush(&self) -> Result<(), IoFault> {
        Ok(())
    }
}
