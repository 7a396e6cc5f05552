//! The permit to write, and how it is renewed.
//!
//! ```text
//!   Keeper, at each beat ----- check(superblock, own entry) ---> Permit: "good at 12.300 s"
//!   Writer, before a write --- younger than one beat? write : check again first
//! ```
//!
//! A process that slept (SIGSTOP, a frozen virtual machine) wakes up holding an old permit and must
//! look again before it writes. Awkward cases: the time of a check is when its read was *issued*;
//! a look that shows neither us nor anybody else proves nothing and renews nothing; a foreign
//! epoch ends writing for good.

use crate::canary::{Bug, planted};
use crate::event::{FenceReason, Micros};
use crate::format::bytes::to_usize;
use crate::format::superblock::{Copy, FormatError, Superblock};
use crate::format::table::Table;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Looks in a row that miss our own epoch before we conclude a roll-back, at the least...
pub const MISSES_MAX: u32 = 3;
/// ...and for how long they must go on missing it. A cache that serves old bytes (another path of
/// the array, a host's page cache) catches up, typically within a second; a roll-back does not.
/// Waiting costs nothing: no look in between renews the permit, so nothing is written meanwhile.
pub const ROLLED_BACK_AFTER: Micros = 2_000_000;

/// Looks further apart than this are not in a row: the process slept in between.
const ROW_GAP_MAX: Micros = 10_000_000;

/// Looks in a row that showed an older entry of ours or none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Misses {
    looks: u32,
    first_at: Micros,
    last_at: Micros,
}

impl Misses {
    /// One more; whether the volume must have been rolled back.
    pub fn add(&mut self, now: Micros) -> bool {
        if self.looks == 0 || now.saturating_sub(self.last_at) > ROW_GAP_MAX {
            (self.looks, self.first_at) = (0, now);
        }
        self.last_at = now;
        self.looks = self.looks.saturating_add(1);
        self.looks >= MISSES_MAX && now.saturating_sub(self.first_at) >= ROLLED_BACK_AFTER
    }

    /// Our entry was seen.
    pub fn clear(&mut self) {
        self.looks = 0;
    }
}

/// Shared by the Keeper (and its Writer) of one volume.
#[derive(Debug, Default)]
pub struct Permit {
    epoch: AtomicU64,
    nonce: AtomicU64,
    checked_at: AtomicU64,
    /// Looks issued until then were at what may be another medium.
    opened_at: AtomicU64,
    interval: AtomicU64,
    fenced: AtomicBool,
}

impl Permit {
    /// The epoch we hold, 0 before the claim is done.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        // SYNC: pairs with the store in `grant`, which comes after nonce and interval.
        self.epoch.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn nonce(&self) -> u64 {
        self.nonce.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Whether a write may be issued now without another look.
    #[must_use]
    pub fn valid(&self, now: Micros) -> bool {
        self.valid_for(now, self.interval.load(Ordering::Relaxed))
    }

    /// The same, with another interval than the one that was announced.
    pub(crate) fn valid_for(&self, now: Micros, interval: Micros) -> bool {
        if planted(Bug::NoFence) && self.epoch() != 0 {
            return true;
        }
        let at = self.checked_at.load(Ordering::Acquire);
        self.epoch() != 0
            && !self.fenced()
            && at > self.opened_at.load(Ordering::Acquire)
            && now.saturating_sub(at) < interval
    }

    pub fn grant(&self, epoch: u64, nonce: u64, at: Micros) {
        self.nonce.store(nonce, Ordering::Relaxed);
        self.renew(at);
        self.epoch.store(epoch, Ordering::Release);
    }

    pub fn renew(&self, at: Micros) {
        self.checked_at.fetch_max(at.max(1), Ordering::AcqRel);
    }

    /// The medium was opened anew: only looks issued after `now` count, not one that is on its way.
    pub fn reopened(&self, now: Micros) {
        self.opened_at.fetch_max(now, Ordering::AcqRel);
    }

    /// Look before the next write.
    pub fn revoke(&self) {
        self.checked_at.store(0, Ordering::Release);
    }

    pub fn set_interval(&self, interval: Micros) {
        self.interval.store(interval, Ordering::Relaxed);
    }

    pub fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
    }

    /// Back to before the first claim. Only for who seats new machines: a claim is due.
    pub(crate) fn reset(&self) {
        self.revoke();
        self.epoch.store(0, Ordering::Release);
        self.fenced.store(false, Ordering::Release);
    }
}

/// What a look at superblock and table shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// It is our volume and our epoch.
    Ours,
    /// Our volume, but an older epoch or none in our entry: stale, lost or rolled back.
    Older { found: u64 },
    /// Somebody else's: stop.
    Foreign(FenceReason),
    /// The first superblock cannot be read; the last one may tell.
    Unreadable(FormatError),
}

/// Whether the superblock in `block` is still ours.
#[must_use]
pub fn check_superblock(block: &[u8], copy: Copy, ours: &Superblock) -> Option<Look> {
    match Superblock::decode(block, copy) {
        Err(e) => Some(Look::Unreadable(e)),
        Ok(s) if s.uuid != ours.uuid => {
            Some(Look::Foreign(FenceReason::OtherVolume { found: s.uuid.to_string() }))
        }
        Ok(s) if s.generation != ours.generation || s.geometry != ours.geometry => {
            Some(Look::Foreign(FenceReason::Generation {
                ours: ours.generation,
                found: s.generation,
            }))
        }
        Ok(_) => None,
    }
}

/// Whether our entry still carries our epoch.
#[must_use]
pub fn check_entry(table: &Table, slot: usize, epoch: u64, nonce: u64) -> Look {
    match table.get(slot) {
        Some(e) if (e.epoch, e.nonce) == (epoch, nonce) => Look::Ours,
        Some(e) if e.epoch >= epoch => Look::Foreign(FenceReason::ForeignEpoch { epoch: e.epoch }),
        Some(e) => Look::Older { found: e.epoch },
        None => Look::Older { found: 0 },
    }
}

/// Both checks on one read of the region from the start of the volume to the end of the table.
#[must_use]
pub fn check(region: &[u8], ours: &Superblock, slot: usize, epoch: u64, nonce: u64) -> Look {
    if planted(Bug::NoFence) {
        return Look::Ours;
    }
    if let Some(look) = check_superblock(region, Copy::First, ours) {
        return look;
    }
    let short = region.len() < to_usize(ours.geometry.table_region_bytes() as u64);
    if short {
        return Look::Older { found: 0 };
    }
    check_entry(&Table::decode(region, ours), slot, epoch, nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_back_takes_looks_and_time() {
        let mut m = Misses::default();
        assert!(!m.add(100));
        assert!(!m.add(100 + ROLLED_BACK_AFTER), "two looks");
        assert!(m.add(101 + ROLLED_BACK_AFTER));
        m.clear();
        for now in (0..20).map(|i| i * 100_000) {
            assert!(!m.add(now), "a cache may be stale for as long as {now} us");
        }
        assert!(!m.add(ROLLED_BACK_AFTER - 1));
        assert!(m.add(ROLLED_BACK_AFTER));
        let woken = ROLLED_BACK_AFTER + ROW_GAP_MAX + 1;
        assert!(!m.add(woken) && !m.add(woken + 1) && !m.add(woken + 2), "asleep in between");
        assert!(m.add(woken + ROW_GAP_MAX), "on a slow medium it is still a row");
    }

    #[test]
    fn a_permit_is_good_for_less_than_one_interval() {
        let p = Permit::default();
        p.set_interval(100);
        assert!(!p.valid(1), "not granted");
        p.grant(7, 1, 1000);
        assert!(p.valid(1099));
        assert!(!p.valid(1100), "a beat or more: look again");
        p.renew(1100);
        p.renew(1050);
        assert!(p.valid(1199), "an older look never shortens it");
        p.reopened(1100);
        assert!(!p.valid(1101));
        p.renew(1100);
        assert!(!p.valid(1101), "issued before the medium was opened");
        p.renew(1101);
        assert!(p.valid(1102));
        p.revoke();
        assert!(!p.valid(1101));
        p.renew(1101);
        p.fence();
        assert!(!p.valid(1102));
    }
}
