//! The shared disk, and every way it lies, sleeps and dies.
//!
//! An operation begins, takes its time and ends. What a write leaves on the medium appears at its
//! end, or half of it earlier (whoever reads meanwhile sees a torn record). Faults belong to a
//! host's view of the disk (its cable, its adapter), so that one host may suffer alone.
//!
//! Awkward cases: a host that dies leaves its write half done, not done, done, or *on its way*: it
//! may land seconds later, when a successor writes already. Stale reads serve, for a while, what
//! blocks held when the spell began, as a cache of another host would. Polls that find nothing
//! changed get the same bytes again without a copy; that is speed, not behaviour. A mirrored disk
//! is several images, one for each storage system, and hosts see only their own.

mod image;
mod mirror;
mod view;

use std::collections::BTreeMap;

use bytes::Bytes;
use volumes::{
    Geometry, IoFault, IoFaultKind, Op, Superblock, Uuid, format::superblock::Copy as Which,
};

use crate::{
    fault::{Fault, Fired},
    rng::Rng,
};
use image::{BLOCK, Image, at};
use mirror::Mirror;
pub use mirror::MirrorSettings;
pub use view::View;

/// A volume that was exchanged under an open descriptor is noticed at the next look of the fence,
/// a second away at most; nothing that began later may land there.
const NOTICED: u64 = 1_500_000;

/// An operation under way.
#[derive(Debug)]
pub(crate) struct Pending {
    op: Op,
    host: u8,
    began: u64,
    /// Ends then, unless the disk stalls.
    pub(crate) done_at: u64,
    half: bool,
    failed: Option<IoFaultKind>,
}

impl Pending {
    pub(crate) const fn is_write(&self) -> bool {
        matches!(self.op, Op::Write { .. })
    }
}

/// A write whose host died before it ended.
#[derive(Debug)]
struct Abandoned {
    at: u64,
    place: Place,
    offset: u64,
    data: Bytes,
}

/// An image, or the volume that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Image(usize),
    Wrong,
}

/// The disk.
#[derive(Debug)]
pub struct Disk {
    /// One, or one for each storage system of a mirror.
    images: Vec<Image>,
    mirror: Option<Mirror>,
    /// Another volume, for views that are `wrong`, and since when a host sees it.
    wrong: Option<Image>,
    wrong_since: BTreeMap<u8, u64>,
    /// Which image a host sees; like all that is kept per host, by its place in their row.
    seen: Vec<usize>,
    snapshot: Option<Vec<Vec<u8>>>,
    keeps_history: bool,
    /// Parts of writes that have landed although the write has not ended: where, how long.
    halves: Vec<(Place, u64, usize)>,
    abandoned: Vec<Abandoned>,
    /// Spells of stale reads: from when, until when.
    spells: Vec<(u64, u64)>,
    views: Vec<View>,
    /// Something was written where nothing of ours may be written.
    pub(crate) breach: Option<String>,
    superblock: Superblock,
}

fn fault(kind: IoFaultKind) -> IoFault {
    IoFault::new(kind, "simulated")
}

/// The place of a host in their row.
fn index(host: u8) -> usize {
    usize::from(host) - 1
}

/// An empty volume of that superblock.
fn formatted(superblock: &Superblock) -> Vec<u8> {
    let size = at(superblock.geometry.bytes());
    let mut bytes = vec![0; size];
    bytes[..BLOCK].copy_from_slice(&superblock.encode(Which::First));
    bytes[size - BLOCK..].copy_from_slice(&superblock.encode(Which::Last));
    bytes
}

impl Disk {
    /// A freshly formatted volume for hosts 1 to `hosts`, seen by machines 1 to `machines`.
    #[must_use]
    pub fn new(
        (hosts, machines): (u8, u8),
        data_blocks: u32,
        latency: u64,
        uuid: u64,
        mirror: Option<MirrorSettings>,
    ) -> Self {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&uuid.to_le_bytes());
        let mut geometry = Geometry {
            block_bytes: 4096,
            blocks: 0,
            nodes: (1..=hosts).collect(),
            express_blocks: 64,
            data_blocks: data_blocks.max(64),
        };
        geometry.blocks = geometry.blocks_needed();
        let superblock = Superblock {
            uuid: Uuid(id),
            name: "simulated".into(),
            generation: 1,
            created_unix_us: 0,
            replica: false,
            geometry,
        };
        let bytes = formatted(&superblock);
        let images = if mirror.is_some() { 2 } else { 1 };
        // The first host's storage system, and that of all others.
        let seen = (1..=machines).map(|h| usize::from(h > 1).min(images - 1)).collect();
        Self {
            images: (0..images).map(|_| Image::new(bytes.clone())).collect(),
            mirror: mirror.map(Mirror::new),
            wrong: None,
            wrong_since: BTreeMap::new(),
            seen,
            snapshot: None,
            keeps_history: false,
            halves: Vec::new(),
            abandoned: Vec::new(),
            spells: vec![(0, 0); usize::from(machines)],
            views: vec![View::good(latency); usize::from(machines)],
            breach: None,
            superblock,
        }
    }

    // --- what befalls the whole volume -----------------------------------------------------------

    /// Remembers everything as it is, as an array's snapshot does.
    pub(crate) fn snapshot(&mut self) {
        self.snapshot = Some(self.images.iter().map(|i| i.bytes.clone()).collect());
    }

    /// Everything is again as it was at the snapshot; false when there is none.
    pub(crate) fn roll_back(&mut self) -> bool {
        let Some(snapshot) = &self.snapshot else { return false };
        for (image, bytes) in self.images.iter_mut().zip(snapshot) {
            image.replace(bytes.clone());
            image.alien_since = None;
        }
        if let Some(mirror) = &mut self.mirror {
            mirror.forget();
        }
        true
    }

    /// Somebody formats the live volume again, or puts something else there.
    pub(crate) fn overwrite(&mut self, now: u64, reinit: bool, rng: &mut Rng) {
        self.snapshot();
        let bytes = if reinit {
            formatted(&self.other_superblock(rng))
        } else {
            let mut bytes = self.images[0].bytes.clone();
            let most = bytes.len().min(1 << 20);
            rng.fill(&mut bytes[..most]);
            let size = bytes.len();
            rng.fill(&mut bytes[size - BLOCK..]);
            bytes
        };
        for image in &mut self.images {
            image.replace(bytes.clone());
            image.alien_since = Some(now);
        }
        if let Some(mirror) = &mut self.mirror {
            mirror.forget();
        }
    }

    /// It is not our volume that lies there.
    pub(crate) fn is_alien(&self) -> bool {
        self.images.iter().any(|i| i.alien_since.is_some())
    }

    fn other_superblock(&self, rng: &mut Rng) -> Superblock {
        let mut other = self.superblock.clone();
        rng.fill(&mut other.uuid.0);
        other
    }

    /// The mirror, if there is one.
    pub(crate) fn mirror(&self) -> Option<MirrorSettings> {
        self.mirror.as_ref().map(|m| m.settings)
    }

    pub(crate) fn set_mirror(&mut self, settings: MirrorSettings) {
        if let Some(mirror) = &mut self.mirror {
            mirror.settings = settings;
        }
    }

    /// Nothing is copied before that moment.
    pub(crate) fn split(&mut self, until: u64) {
        if let Some(mirror) = &mut self.mirror {
            mirror.split_until = until;
        }
    }

    pub(crate) fn is_split(&self, now: u64) -> bool {
        self.mirror.as_ref().is_some_and(|m| m.split_until > now)
    }

    // --- views -----------------------------------------------------------------------------------

    /// What the disk was formatted with.
    #[must_use]
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// How a host sees it.
    #[must_use]
    pub fn view(&self, host: u8) -> View {
        self.views[index(host)]
    }

    /// Changes how a host sees it.
    pub fn change(&mut self, now: u64, host: u8, change: impl FnOnce(&mut View)) {
        let view = &mut self.views[index(host)];
        change(view);
        self.keeps_history |= view.stale > 0;
        if !view.wrong {
            self.wrong_since.remove(&host);
        } else {
            self.wrong_since.entry(host).or_insert(now);
        }
        if view.wrong && self.wrong.is_none() {
            let mut other = self.superblock.clone();
            other.uuid.0[15] ^= 0xff;
            self.wrong = Some(Image::new(formatted(&other)));
        }
        if self.wrong_since.is_empty() {
            self.wrong = None;
        }
    }

    fn place(&self, host: u8) -> Place {
        let wrong = self.view(host).wrong && self.wrong.is_some();
        if wrong { Place::Wrong } else { Place::Image(self.seen[index(host)]) }
    }

    fn image(&mut self, place: Place) -> &mut Image {
        match (place, &mut self.wrong) {
            (Place::Wrong, Some(wrong)) => wrong,
            (Place::Image(i), _) => &mut self.images[i],
            (Place::Wrong, None) => &mut self.images[0],
        }
    }

    /// An operation begins.
    pub(crate) fn begin(
        &mut self,
        now: u64,
        host: u8,
        op: Op,
        rng: &mut Rng,
        fired: &mut Fired,
    ) -> Pending {
        self.catch_up(now, rng, fired);
        let view = self.view(host);
        let mut takes = view.latency + rng.below(view.latency + 1);
        if rng.chance(2_000) {
            takes *= 10;
        }
        if let Op::Write { data, .. } = &op {
            takes += data.len() as u64 / 500;
        }
        if view.slow > 1 {
            takes *= view.slow;
            fired.count(Fault::SlowDisk);
        }
        if view.slow_reads > 1 && matches!(op, Op::Read { .. }) {
            takes *= view.slow_reads;
            fired.count(Fault::SlowReader);
        }
        if rng.chance(view.stuck) {
            takes += rng.range(500_000, 6_000_000);
            fired.count(Fault::StuckOperation);
        }
        let error = match &op {
            _ if view.gone => {
                fired.count(Fault::Vanished);
                Some(IoFaultKind::Gone)
            }
            Op::Read { offset, .. } | Op::Write { offset, .. }
                if view.shrunk && *offset >= self.superblock.geometry.bytes() / 2 =>
            {
                fired.count(Fault::Shrunk);
                let is_read = matches!(op, Op::Read { .. });
                Some(if is_read { IoFaultKind::ShortRead } else { IoFaultKind::NoSpace })
            }
            Op::Read { .. } if rng.chance(view.read_error) => {
                fired.count(Fault::ReadError);
                Some(IoFaultKind::Eio)
            }
            Op::Write { .. } | Op::Flush if view.refuses.is_some() => {
                let full = view.refuses == Some(IoFaultKind::NoSpace);
                fired.count(if full { Fault::Full } else { Fault::ReadOnly });
                view.refuses
            }
            Op::Write { .. } if rng.chance(view.write_error) => {
                fired.count(Fault::WriteError);
                Some(IoFaultKind::Eio)
            }
            _ => None,
        };
        let refused = view.gone || view.shrunk || view.refuses.is_some();
        let mut half = false;
        if let Op::Write { offset, data } = &op
            && !refused
            && (rng.chance(view.torn) || error.is_some() && rng.chance(500_000))
        {
            let part = rng.index(data.len() / 512) * 512;
            let place = self.place(host);
            let part = data.slice(..part);
            self.land(now, place, (*offset, part), (now, host), rng, fired);
            self.halves.push((place, *offset, data.len()));
            half = true;
        }
        Pending { op, host, began: now, done_at: now + takes, half, failed: error }
    }

    /// The moment a pending operation may end at the earliest: later than it thought when the disk
    /// stalls.
    pub(crate) fn ends_at(&self, pending: &Pending, fired: &mut Fired) -> u64 {
        let until = self.view(pending.host).stalled_until;
        if until > pending.done_at {
            fired.count(Fault::DiskStall);
            return until + pending.done_at % 997;
        }
        pending.done_at
    }

    /// An operation ends.
    pub(crate) fn end(
        &mut self,
        now: u64,
        pending: Pending,
        rng: &mut Rng,
        fired: &mut Fired,
    ) -> Result<Bytes, IoFault> {
        self.catch_up(now, rng, fired);
        let Pending { op, host, began, half, failed, .. } = pending;
        let view = self.view(host);
        if half && let Op::Write { offset, data } = &op {
            self.forget_half(*offset, data.len());
        }
        if let Some(kind) = failed.or_else(|| view.gone.then_some(IoFaultKind::Gone)) {
            return Err(fault(kind));
        }
        match op {
            Op::Flush => Ok(Bytes::new()),
            Op::Write { offset, data } => {
                self.confirmed((now, began), host, offset, data, rng, fired);
                Ok(Bytes::new())
            }
            Op::Read { offset, len, .. } => self.read(now, host, (offset, len), rng, fired),
        }
    }

    /// A write is confirmed: what becomes of it.
    fn confirmed(
        &mut self,
        (now, began): (u64, u64),
        host: u8,
        offset: u64,
        data: Bytes,
        rng: &mut Rng,
        fired: &mut Fired,
    ) {
        let view = self.view(host);
        let place = self.place(host);
        if rng.chance(view.lost) {
            fired.count(Fault::LostWrite);
            return;
        }
        let mut offset = offset;
        if rng.chance(view.misdirected) {
            fired.count(Fault::Misdirected);
            // Anywhere but on a superblock: without those there is no volume any more.
            let blocks = self.superblock.geometry.blocks - 2 - (data.len() / BLOCK) as u64;
            offset = (1 + rng.below(blocks)) * BLOCK as u64;
            return self.image(place).land(now, offset, &data, false);
        }
        let length = data.len();
        self.land(now, place, (offset, data), (began, host), rng, fired);
        if rng.chance(view.rot) {
            fired.count(Fault::BitRot);
            let victim = offset + rng.below(length as u64);
            let keeps = self.keeps_history;
            let image = self.image(place);
            if let Some(byte) = image.bytes.get(at(victim)) {
                let rotten = byte ^ 1 << rng.below(8);
                image.land(now, victim, &[rotten], keeps);
            }
        }
    }

    fn forget_half(&mut self, offset: u64, len: usize) {
        if let Some(i) = self.halves.iter().position(|h| (h.1, h.2) == (offset, len)) {
            self.halves.swap_remove(i);
        }
    }

    fn read(
        &mut self,
        now: u64,
        host: u8,
        (offset, len): (u64, usize),
        rng: &mut Rng,
        fired: &mut Fired,
    ) -> Result<Bytes, IoFault> {
        let view = self.view(host);
        let place = self.place(host);
        let start = at(offset);
        if !self.image(place).has(offset, len) {
            return Err(fault(IoFaultKind::ShortRead));
        }
        if place == Place::Wrong {
            fired.count(Fault::WrongVolume);
        }
        let overlaps = |h: &&(Place, u64, usize)| {
            h.0 == place && at(h.1) < start + len && start < at(h.1) + h.2
        };
        if self.halves.iter().any(|h| overlaps(&h)) {
            fired.count(Fault::TornRead);
        }
        // Between two spells the cache is as good as new for a while.
        let (_, ended) = self.spells[index(host)];
        let rested = ended == 0 || ended + 300_000 < now;
        if rng.chance(view.stale) && rested {
            self.spells[index(host)] = (now, now + rng.spread(500, view.stale_for));
        }
        let spell = Some(self.spells[index(host)]).filter(|s| now < s.1);
        let flips = rng.chance(view.flip);
        if spell.is_none() && !flips {
            return Ok(self.image(place).read(start, len));
        }
        let (mut out, stale) =
            self.image(place).read_as_of(spell.map_or(u64::MAX, |s| s.0), start, len);
        if stale {
            fired.count(Fault::StaleRead);
        }
        if flips {
            fired.count(Fault::BitFlip);
            let i = rng.index(len);
            out[i] ^= 1 << rng.below(8);
        }
        Ok(out.into())
    }

    /// A write reaches an image, and sets out for the others.
    fn land(
        &mut self,
        now: u64,
        place: Place,
        (offset, data): (u64, Bytes),
        (began, host): (u64, u8),
        rng: &mut Rng,
        fired: &mut Fired,
    ) {
        let keeps = self.keeps_history;
        let alien_since = match place {
            Place::Wrong => self.wrong_since.get(&host).copied(),
            Place::Image(i) => self.images[i].alien_since,
        };
        let image = self.image(place);
        if alien_since.is_some_and(|since| since + NOTICED < began) && !data.is_empty() {
            let what =
                format!("host {host} wrote {} bytes at {offset} of another volume", data.len());
            self.breach.get_or_insert(what);
            return;
        }
        image.land(now, offset, &data, keeps);
        if let (Some(mirror), Place::Image(from)) = (&mut self.mirror, place) {
            for to in (0..self.images.len()).filter(|to| *to != from) {
                mirror.carry(now, to, offset, data.clone(), rng, fired);
            }
        }
    }

    /// The host of this operation died.
    pub(crate) fn abandon(&mut self, now: u64, p: Pending, rng: &mut Rng, fired: &mut Fired) {
        let Op::Write { offset, data } = p.op else { return };
        if p.half {
            self.forget_half(offset, data.len());
        }
        if p.failed.is_some() {
            return;
        }
        let place = self.place(p.host);
        match rng.below(4) {
            0 => {}
            1 => self.land(now, place, (offset, data), (p.began, p.host), rng, fired),
            2 => {
                fired.count(Fault::TornWrite);
                let part = data.slice(..rng.index(data.len() / 512) * 512);
                self.land(now, place, (offset, part), (p.began, p.host), rng, fired);
            }
            _ => {
                let at = now + rng.spread(10_000, 4_000_000);
                self.abandoned.push(Abandoned { at, place, offset, data });
            }
        }
    }

    /// What is to land without anybody waiting for it, lands.
    fn catch_up(&mut self, now: u64, rng: &mut Rng, fired: &mut Fired) {
        while let Some(i) = self.abandoned.iter().position(|a| a.at <= now) {
            let Abandoned { place, offset, data, .. } = self.abandoned.swap_remove(i);
            fired.count(Fault::LateWrite);
            // It began long ago; nobody is to blame for where it lands.
            self.land(now, place, (offset, data), (0, 0), rng, fired);
        }
        let keeps = self.keeps_history;
        if let Some(mirror) = &mut self.mirror {
            while let Some((_, (to, offset, data))) = mirror.arrived(now) {
                if self.images[to].alien_since.is_none() {
                    self.images[to].land(now, offset, &data, keeps);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_dead_write_late() {
        let (mut rng, mut fired) = (Rng::new(1), Fired::default());
        let mut disk = Disk::new((2, 2), 64, 100, 1, None);
        let write = |byte| Op::Write { offset: 4096, data: vec![byte; 4096].into() };
        let p = disk.begin(0, 1, write(5), &mut rng, &mut fired);
        disk.end(p.done_at, p, &mut rng, &mut fired).unwrap();
        let read = |disk: &mut Disk, now, rng: &mut Rng, fired: &mut Fired| {
            let p =
                disk.begin(now, 2, Op::Read { offset: 4096, len: 4096, record: None }, rng, fired);
            disk.end(p.done_at, p, rng, fired).unwrap()[4095]
        };
        assert_eq!(read(&mut disk, 10_000, &mut rng, &mut fired), 5);
        while disk.abandoned.is_empty() {
            let p = disk.begin(20_000, 1, write(6), &mut rng, &mut fired);
            disk.abandon(20_000, p, &mut rng, &mut fired);
        }
        assert_eq!(read(&mut disk, 9_000_000, &mut rng, &mut fired), 6);
        assert_eq!(fired.of(Fault::LateWrite), 1);
    }
}
