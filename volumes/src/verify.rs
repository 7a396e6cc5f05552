//! `verify`: every record of every ring is checked. Read-only.
//!
//! A ring is walked block by block from its start: a whole record is skipped over as one, anything
//! else as one block. Awkward cases: leftovers inside a ring are normal (an older record whose tail
//! was overwritten is *stale*); only what the table announces as complete and unread must be
//! whole, and a live volume may change while it is read.

use crate::buffer::Pool;
use crate::event::{IoFault, RecordName, Ring};
use crate::format::record::{self, Address, Header, Kind};
use crate::format::superblock::Superblock;
use crate::format::table::Table;
use crate::inspect::{io_error, open_to_read, read_table, read_whole};
use crate::media::{BlockDevice, Location};
use crate::pace::Class;
use crate::runtime::AttachError;
use serde::Serialize;
use std::path::Path;

#[derive(Debug, Clone, Default, Serialize)]
pub struct RecordCounts {
    /// Whole records of the writer's present epoch.
    pub valid: u64,
    /// Headers of the present epoch whose body does not match and that are announced and unread.
    pub torn: u64,
    /// Whole or overwritten records of older epochs or laps.
    pub stale: u64,
    /// Blocks that were never written.
    pub empty_blocks: u64,
    /// Blocks inside or after overwritten records.
    pub leftover_blocks: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct LaneVerification {
    pub from: u8,
    pub to: u8,
    pub ring: Ring,
    #[serde(flatten)]
    pub counts: RecordCounts,
}

#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    pub path: String,
    pub name: String,
    /// First and last copy: `ok`, or what is wrong.
    pub superblocks: [String; 2],
    pub entries_valid: usize,
    pub entries_blank: usize,
    pub entries_damaged: usize,
    pub records: RecordCounts,
    pub lanes: Vec<LaneVerification>,
    /// Both superblocks are whole and equal, every node's newest entry can be read, and no
    /// announced unread record is damaged.
    pub ok: bool,
}

pub fn verify(at: impl Into<Location>) -> Result<Verification, AttachError> {
    let at = at.into();
    let (device, s) = open_to_read(&at)?;
    check(&*device, &at.label(), s)
}

/// The same on any medium; `label` stands for its path.
pub fn verify_medium(device: &dyn BlockDevice, label: &Path) -> Result<Verification, AttachError> {
    let s = read_whole(device, label)?;
    check(device, label, s)
}

fn check(
    device: &dyn BlockDevice,
    path: &Path,
    s: Superblock,
) -> Result<Verification, AttachError> {
    let io = |e: IoFault| io_error(path, &e);
    let copies = crate::init::copies(device, &s).map_err(io)?;
    let superblocks = copies.map(|c| match c {
        Ok(c) if c == s => "ok".to_owned(),
        Ok(_) => "differs from the other copy".to_owned(),
        Err(e) => e.to_string(),
    });
    let table = read_table(device, &s).map_err(io)?;
    let mut sum = RecordCounts::default();
    let mut lanes = Vec::new();
    for &from in &s.geometry.nodes {
        for &to in s.geometry.nodes.iter().filter(|&&to| to != from) {
            for ring in Ring::BOTH {
                let address = Address { uuid: s.uuid, from, to, ring };
                let counts = match device.class() {
                    Class::Object => walk_names(device, &s, &address),
                    Class::Local | Class::Remote => walk(device, &s, &table, &address),
                };
                let counts = counts.map_err(io)?;
                sum.valid += counts.valid;
                sum.torn += counts.torn;
                sum.stale += counts.stale;
                sum.empty_blocks += counts.empty_blocks;
                sum.leftover_blocks += counts.leftover_blocks;
                lanes.push(LaneVerification { from, to, ring, counts });
            }
        }
    }
    // A node whose blocks were written but of which none can be read has lost its place.
    let lost = table.damaged > 0 && table.entries.iter().any(Option::is_none);
    let ok = superblocks.iter().all(|c| c == "ok") && sum.torn == 0 && !lost;
    Ok(Verification {
        path: path.display().to_string(),
        name: s.name,
        superblocks,
        entries_valid: table.valid,
        entries_blank: table.blank,
        entries_damaged: table.damaged,
        records: sum,
        lanes,
        ok,
    })
}

/// Where records are objects, only those that are announced and unread must be there.
fn walk_names(
    device: &dyn BlockDevice,
    s: &Superblock,
    address: &Address,
) -> Result<RecordCounts, IoFault> {
    let (from, to, ring) = (address.from, address.to, address.ring);
    let due = || {
        let table = read_table(device, s)?;
        let (i, j) = (s.geometry.slot(from), s.geometry.slot(to));
        let (Some(i), Some(j)) = (i, j) else { return Ok((0, 0, 0)) };
        let Some(writer) = table.get(i) else { return Ok((0, 0, 0)) };
        let cell = table.get(j).and_then(|e| e.cells.get(i));
        let read = cell.filter(|c| c.reads_epoch == writer.epoch);
        // A reader that never saw this epoch goes on at the head.
        let head = writer.head(j, ring).number;
        let read = read.map_or_else(|| head.saturating_sub(1), |c| c.cursors[ring.index()]);
        Ok((writer.epoch, read, head))
    };
    let (epoch, read, head) = due()?;
    let pool = Pool::new();
    let mut counts = RecordCounts::default();
    for number in read + 1..head {
        let name = RecordName { from, to, ring, epoch, number };
        let bytes = device.read_record(&pool, 0, 0, &name)?;
        let header = Header::decode(&bytes, address, record::place_of(&bytes));
        let header = header.filter(|h| (h.epoch, h.number) == (epoch, number));
        let whole =
            header.is_some_and(|h| h.kind == Kind::Wrap || record::open(&bytes, &h).is_some());
        if whole {
            counts.valid += 1;
            continue;
        }
        // It may have been read and deleted meanwhile.
        let (epoch_now, read_now, _) = due()?;
        if (epoch_now, read_now < number) == (epoch, true) {
            counts.torn += 1;
        } else {
            counts.stale += 1;
        }
    }
    Ok(counts)
}

fn walk(
    device: &dyn BlockDevice,
    s: &Superblock,
    table: &Table,
    address: &Address,
) -> Result<RecordCounts, IoFault> {
    let g = &s.geometry;
    let block = g.block();
    let ring_blocks = g.ring_blocks(address.ring);
    let base = g.ring_offset(address.from, address.to, address.ring).unwrap_or(0);
    let (Some(i), Some(j)) = (g.slot(address.from), g.slot(address.to)) else {
        return Ok(RecordCounts::default());
    };
    let writer = table.get(i);
    let (epoch, head) = writer.map_or((0, 1), |e| (e.epoch, e.head(j, address.ring).number));
    let cell = table.get(j).and_then(|e| e.cells.get(i)).filter(|c| c.reads_epoch == epoch);
    let read = cell.map_or(0, |c| c.cursors[address.ring.index()]);
    let mut counts = RecordCounts::default();
    let pool = Pool::new();
    let mut place = 0;
    while place < ring_blocks {
        // One record at most, and never beyond the ring.
        let ahead = (ring_blocks - place)
            .min(g.record_bytes_max(address.ring).div_ceil(block).try_into().unwrap_or(1));
        let mut buf = pool.take_len(block);
        let offset = base + u64::from(place) * block as u64;
        device.read_at(offset, buf.as_mut())?;
        let header =
            Header::decode(buf.as_ref(), address, place).filter(|h| h.fits(ring_blocks, block));
        let Some(h) = header else {
            if buf.as_ref().iter().all(|&b| b == 0) {
                counts.empty_blocks += 1;
            } else {
                counts.leftover_blocks += 1;
            }
            place += 1;
            continue;
        };
        let whole = match h.kind {
            Kind::Wrap => true,
            Kind::Data if h.blocks > ahead => false,
            Kind::Data => {
                let mut all = pool.take_len(h.blocks as usize * block);
                device.read_at(offset, all.as_mut())?;
                record::open(&all.freeze(), &h).is_some()
            }
        };
        let present = h.epoch == epoch;
        match (whole, present) {
            (true, true) => counts.valid += 1,
            (false, true) if h.number < head && h.number > read => counts.torn += 1,
            _ => counts.stale += 1,
        }
        // The blocks a wrap record claims hold leftovers; they are looked at one by one.
        place += if whole && h.kind == Kind::Data { h.blocks } else { 1 };
    }
    Ok(counts)
}
