//! `inspect`: what a volume says about itself. Read-only, also on a live volume.

use crate::buffer::Pool;
use crate::event::{IoFault, Ring};
use crate::format::superblock::{Superblock, Uuid, VERSION};
use crate::format::table::{Head, Table};
use crate::media::{self, BlockDevice, Direct, How, Location};
use crate::runtime::{AttachError, read_superblock};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

#[derive(Debug, Clone, Serialize)]
pub struct NodeInspection {
    pub node: u8,
    /// `never`, `left` (said goodbye) or `present` (beating when its beat counter moves).
    pub state: &'static str,
    pub epoch: Option<u64>,
    pub beat: Option<u64>,
    pub beat_interval_us: Option<u64>,
    /// By the wall clocks of both machines; for people only.
    pub age_ms: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct LaneInspection {
    pub from: u8,
    pub to: u8,
    pub ring: Ring,
    pub size_bytes: u64,
    /// Number and place of the record that comes next.
    pub head: Head,
    /// Read by the other end, when it reads this epoch.
    pub read_up_to: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    pub path: String,
    pub name: String,
    pub uuid: Uuid,
    pub version: u32,
    pub generation: u64,
    /// It is filled by a replicator.
    pub replica: bool,
    pub created_unix_us: u64,
    pub block_bytes: u32,
    pub size_bytes: u64,
    pub medium_bytes: u64,
    pub express_bytes: u64,
    pub data_bytes: u64,
    pub nodes: Vec<NodeInspection>,
    pub lanes: Vec<LaneInspection>,
}

/// Opens for reading; direct where possible, so that another host's writes are seen.
pub(crate) fn open_to_read(
    at: &Location,
) -> Result<(Arc<dyn BlockDevice>, Superblock), AttachError> {
    let how = How { write: false, direct: Direct::Preferred, exclusive: false };
    let device = media::connect(at, how).map_err(|e| AttachError::Open(Arc::new(e)))?;
    let superblock = read_whole(&*device, &at.label())?;
    Ok((device, superblock))
}

/// The superblock of a medium that is large enough for it.
pub(crate) fn read_whole(device: &dyn BlockDevice, path: &Path) -> Result<Superblock, AttachError> {
    let superblock = read_superblock(device, path)?;
    let (need, have) = (superblock.geometry.bytes(), device.size());
    if have < need {
        return Err(AttachError::TooSmall { path: path.to_owned(), need, have });
    }
    Ok(superblock)
}

pub(crate) fn io_error(path: &Path, e: &IoFault) -> AttachError {
    AttachError::Io { path: path.to_owned(), detail: e.to_string() }
}

pub(crate) fn read_table(device: &dyn BlockDevice, s: &Superblock) -> Result<Table, IoFault> {
    let mut region = Pool::new().take_len(s.geometry.table_region_bytes());
    device.read_at(0, region.as_mut())?;
    Ok(Table::decode(region.as_ref(), s))
}

pub fn inspect(at: impl Into<Location>) -> Result<Inspection, AttachError> {
    let at = at.into();
    let (device, s) = open_to_read(&at)?;
    report(&*device, &at.label(), s)
}

/// The same on any medium; `label` stands for its path.
pub fn inspect_medium(device: &dyn BlockDevice, label: &Path) -> Result<Inspection, AttachError> {
    let s = read_whole(device, label)?;
    report(device, label, s)
}

fn report(device: &dyn BlockDevice, path: &Path, s: Superblock) -> Result<Inspection, AttachError> {
    let table = read_table(device, &s).map_err(|e| io_error(path, &e))?;
    let g = &s.geometry;
    let b = u64::from(g.block_bytes);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    let nodes = g.nodes.iter().enumerate().map(|(slot, &node)| {
        let e = table.get(slot);
        NodeInspection {
            node,
            state: e.map_or("never", |e| if e.goodbye { "left" } else { "present" }),
            epoch: e.map(|e| e.epoch),
            beat: e.map(|e| e.beat),
            beat_interval_us: e.map(|e| e.interval_us),
            age_ms: e.map(|e| now_us.saturating_sub(e.wall_unix_us) / 1000),
        }
    });
    let mut lanes = Vec::new();
    for (i, &from) in g.nodes.iter().enumerate() {
        for (j, &to) in g.nodes.iter().enumerate().filter(|&(j, _)| j != i) {
            let Some(writer) = table.get(i) else { continue };
            let reader = table.get(j).and_then(|e| e.cells.get(i));
            let reader = reader.filter(|c| c.reads_epoch == writer.epoch);
            for ring in Ring::BOTH {
                lanes.push(LaneInspection {
                    from,
                    to,
                    ring,
                    size_bytes: u64::from(g.ring_blocks(ring)) * b,
                    head: writer.head(j, ring),
                    read_up_to: reader.map(|c| c.cursors[ring.index()]),
                });
            }
        }
    }
    Ok(Inspection {
        path: path.display().to_string(),
        name: s.name.clone(),
        uuid: s.uuid,
        version: VERSION,
        generation: s.generation,
        replica: s.replica,
        created_unix_us: s.created_unix_us,
        block_bytes: g.block_bytes,
        size_bytes: g.bytes(),
        medium_bytes: device.size(),
        express_bytes: u64::from(g.express_blocks) * b,
        data_bytes: u64::from(g.data_blocks) * b,
        nodes: nodes.collect(),
        lanes,
    })
}
