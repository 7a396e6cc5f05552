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

/// Looks in a row that miss our own epoch before we conclude a roll-back.
pub const MISSES_MAX: u32 = 3;

/// Shared by the Keeper (and its Writer) of one volume.
#[derive(Debug, Default)]
pub struct Permit {
    epoch: AtomicU64,
    nonce: AtomicU64,
    checked_at: AtomicU64,
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
        if planted(Bug::NoFence) && self.epoch() != 0 {
            return true;
        }
        let at = self.checked_at.load(Ordering::Acquire);
        self.epoch() != 0
            && !self.fenced()
            && at != 0
            && now.saturating_sub(at) < self.interval.load(Ordering::Relaxed)
    }

    pub fn grant(&self, epoch: u64, nonce: u64, at: Micros) {
        self.nonce.store(nonce, Ordering::Relaxed);
        self.renew(at);
        self.epoch.store(epoch, Ordering::Release);
    }

    pub fn renew(&self, at: Micros) {
        self.checked_at.fetch_max(at.max(1), Ordering::AcqRel);
    }

    /// After the medium was re-opened: look before the next write.
    pub fn revoke(&self) {
        self.checked_at.store(0, Ordering::Release);
    }

    pub fn set_interval(&self, interval: Micros) {
        self.interval.store(interval, Ordering::Relaxed);
    }

    pub fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
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
        p.revoke();
        assert!(!p.valid(1101));
        p.renew(1101);
        p.fence();
        assert!(!p.valid(1102));
    }
}
