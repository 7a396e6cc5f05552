//! The kinds of faults, and how often each one really fired.
//!
//! A fault that is configured but never happens proves nothing: a long run fails when a counter
//! stays at zero. What must survive each kind is told in `docs/testing.md`.

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs, reason = "the words below say it")]
pub enum Fault {
    Loss,
    Duplicate,
    Reorder,
    Corrupt,
    Jitter,
    MtuHole,
    OneWayCut,
    FullCut,
    CarrierLost,
    TcpStall,
    TcpBroken,
    SlowDisk,
    DiskStall,
    StuckOperation,
    ReadError,
    WriteError,
    ReadOnly,
    Full,
    Vanished,
    TornRead,
    TornWrite,
    LateWrite,
    StaleRead,
    BitFlip,
    Crash,
    LostState,
    Reboot,
    Pause,
    LateLoop,
    LateBeat,
    SlowReader,
    Shrunk,
    LostWrite,
    Misdirected,
    BitRot,
    WrongVolume,
    MirrorLag,
    MirrorReorder,
    MirrorSplit,
    RolledBack,
    Reinit,
    ForeignData,
    Collapse,
    Spike,
    Replayed,
    Reflected,
    Forged,
    Garbage,
    FrozenClock,
    WallClock,
    TwoDaemons,
    WrongKey,
    OtherVersion,
    Reload,
    Drill,
    Rekey,
}

/// Every kind with its word.
pub const ALL: [(Fault, &str); 56] = [
    (Fault::Loss, "loss"),
    (Fault::Duplicate, "duplicate"),
    (Fault::Reorder, "reorder"),
    (Fault::Corrupt, "corrupt"),
    (Fault::Jitter, "jitter"),
    (Fault::MtuHole, "mtu_hole"),
    (Fault::OneWayCut, "one_way_cut"),
    (Fault::FullCut, "full_cut"),
    (Fault::CarrierLost, "carrier_lost"),
    (Fault::TcpStall, "tcp_stall"),
    (Fault::TcpBroken, "tcp_broken"),
    (Fault::SlowDisk, "slow_disk"),
    (Fault::DiskStall, "disk_stall"),
    (Fault::StuckOperation, "stuck_operation"),
    (Fault::ReadError, "read_error"),
    (Fault::WriteError, "write_error"),
    (Fault::ReadOnly, "read_only"),
    (Fault::Full, "full"),
    (Fault::Vanished, "vanished"),
    (Fault::TornRead, "torn_read"),
    (Fault::TornWrite, "torn_write"),
    (Fault::LateWrite, "late_write"),
    (Fault::StaleRead, "stale_read"),
    (Fault::BitFlip, "bit_flip"),
    (Fault::Crash, "crash"),
    (Fault::LostState, "lost_state"),
    (Fault::Reboot, "reboot"),
    (Fault::Pause, "pause"),
    (Fault::LateLoop, "late_loop"),
    (Fault::LateBeat, "late_beat"),
    (Fault::SlowReader, "slow_reader"),
    (Fault::Shrunk, "shrunk"),
    (Fault::LostWrite, "lost_write"),
    (Fault::Misdirected, "misdirected"),
    (Fault::BitRot, "bit_rot"),
    (Fault::WrongVolume, "wrong_volume"),
    (Fault::MirrorLag, "mirror_lag"),
    (Fault::MirrorReorder, "mirror_reorder"),
    (Fault::MirrorSplit, "mirror_split"),
    (Fault::RolledBack, "rolled_back"),
    (Fault::Reinit, "reinit"),
    (Fault::ForeignData, "foreign_data"),
    (Fault::Collapse, "collapse"),
    (Fault::Spike, "spike"),
    (Fault::Replayed, "replayed"),
    (Fault::Reflected, "reflected"),
    (Fault::Forged, "forged"),
    (Fault::Garbage, "garbage"),
    (Fault::FrozenClock, "frozen_clock"),
    (Fault::WallClock, "wall_clock"),
    (Fault::TwoDaemons, "two_daemons"),
    (Fault::WrongKey, "wrong_key"),
    (Fault::OtherVersion, "other_version"),
    (Fault::Reload, "reload"),
    (Fault::Drill, "drill"),
    (Fault::Rekey, "rekey"),
];

/// How often each kind fired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fired([u64; ALL.len()]);

impl Default for Fired {
    fn default() -> Self {
        Self([0; ALL.len()])
    }
}

impl Fired {
    /// It happened once more.
    pub fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// How often it happened.
    #[must_use]
    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Word and count of each kind.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ALL.iter().map(|(fault, word)| (*word, self.of(*fault)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_place() {
        assert!(ALL.iter().enumerate().all(|(i, (f, _))| *f as usize == i));
    }
}
