//! What is going to happen in a run: who is there, what flows, what breaks when.

use failover::session::Preference;

use crate::{
    disk::{MirrorSettings, View},
    net::Wire,
    talks::Talk,
    workload::Flow,
};

/// One thing that is done to the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The wire from one host to another behaves so from now on.
    Wire {
        /// Sender.
        from: u8,
        /// Receiver.
        to: u8,
        /// How.
        wire: Wire,
    },
    /// Cuts or mends the wire from one host to another, all else as it was.
    Cut {
        /// Sender.
        from: u8,
        /// Receiver.
        to: u8,
        /// Cut, or mended.
        cut: bool,
    },
    /// Cuts or mends every wire.
    CutAll(bool),
    /// A host's own link goes down or comes up: it is told, its peers see silence.
    Carrier {
        /// Whose.
        host: u8,
        /// Up or down.
        up: bool,
    },
    /// A host sees the disk so from now on (a running stall stays).
    View {
        /// Who.
        host: u8,
        /// How.
        view: View,
    },
    /// The disk answers a host (0: everybody) only after so many microseconds.
    Stall {
        /// Whom.
        host: u8,
        /// For how long.
        length: u64,
    },
    /// A host's daemon dies without a word.
    Crash {
        /// Whose.
        host: u8,
        /// What it kept on its own disk is lost, too.
        lose_state: bool,
        /// The machine went down with it: its clock begins anew.
        reboot: bool,
    },
    /// A host's daemon starts, unless it runs.
    Start {
        /// Whose.
        host: u8,
    },
    /// A host's daemon is stopped in its tracks and goes on later.
    Pause {
        /// Whose.
        host: u8,
        /// For how long.
        length: u64,
    },
    /// A host's threads are late, with these chances (parts per million) by up to so much.
    Late {
        /// Whose.
        host: u8,
        /// The turn loop: chance, microseconds.
        turn: (u32, u64),
        /// The beat thread.
        beat: (u32, u64),
    },
    /// A host stands still with its clock, as a virtual machine that is moved.
    Freeze {
        /// Whose.
        host: u8,
        /// For how long.
        length: u64,
    },
    /// A second daemon starts on another machine with the key and number of this one, or stops.
    Twin {
        /// Whose number it has.
        host: u8,
        /// Starts, or stops.
        runs: bool,
    },
    /// The disk's contents are remembered.
    Snapshot,
    /// They are as they were at the snapshot.
    RollBack,
    /// Somebody formats the live volume anew (`reinit`) or writes something else over it.
    Overwrite {
        /// Formats it.
        reinit: bool,
    },
    /// What was overwritten is restored.
    Restore,
    /// The mirror behaves so from now on.
    Mirror(MirrorSettings),
    /// The mirror copies nothing for so many microseconds.
    Split {
        /// For how long.
        length: u64,
    },
    /// A stranger sends something each so many microseconds (0: goes away).
    Stranger {
        /// Between two.
        every: u64,
    },
    /// A host has a wrong key of a peer, or the right one again.
    Key {
        /// Who.
        host: u8,
        /// Of whom.
        peer: u8,
        /// Wrong, or right again.
        wrong: bool,
    },
    /// A host speaks another version of the wire format, or ours again.
    Version {
        /// Who.
        host: u8,
        /// Another.
        other: bool,
    },
    /// A host reads its configuration again: other times, same peers.
    Reload {
        /// Who.
        host: u8,
    },
    /// A path is cut on command.
    Drill {
        /// By whom.
        host: u8,
        /// With whom.
        peer: u8,
        /// Which path.
        cut: failover::Cut,
        /// For how long.
        length: u64,
        /// Even if the other path is not up.
        force: bool,
    },
    /// Applications send, or do not.
    Traffic(bool),
    /// Everything is well again.
    Heal,
}

/// What a story promises beyond the invariants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expect {
    /// No unit is lost for any reason.
    pub lossless: bool,
    /// Some packets took the storage path.
    pub storage_used: bool,
    /// After this moment no route changes.
    pub untouched_after: Option<u64>,
    /// At some time no path was up.
    pub isolated: bool,
    /// Frames above a datagram's size went by TCP or storage: a route left the network.
    pub left_network: bool,
}

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The story's name, or `swarm`.
    pub name: &'static str,
    /// Hosts 1 to this.
    pub hosts: u8,
    /// One way between any two, microseconds.
    pub delay: u64,
    /// Usual time of a disk operation.
    pub latency: u64,
    /// Blocks of a data ring.
    pub data_blocks: u32,
    /// Two storage systems that copy from each other instead of one.
    pub mirror: Option<MirrorSettings>,
    /// Keys are renewed after so many seconds.
    pub rekey: u64,
    /// What flows.
    pub flows: Vec<Flow>,
    /// Sessions that are opened.
    pub talks: Vec<Talk>,
    /// What happens, by time.
    pub steps: Vec<(u64, Action)>,
    /// When everything is healed and the liveness phase begins.
    pub heal_at: u64,
    /// What must come of it.
    pub expect: Expect,
    /// The interface is faulty on purpose: the invariants must notice.
    pub canary: bool,
}

impl Plan {
    /// Two hosts, one steady flow of each class both ways, nothing breaks.
    #[must_use]
    pub fn quiet(name: &'static str, heal_at: u64) -> Self {
        let mut flows = Vec::new();
        for (from, to) in [(1, 2), (2, 1)] {
            flows.push(Flow::steady(from, to, true, 20_000));
            flows.push(Flow { unit: 1200, ..Flow::steady(from, to, false, 15_000) });
            flows.push(Flow { unit: 1000, units: 12, ..Flow::steady(from, to, false, 230_000) });
        }
        Self {
            name,
            hosts: 2,
            delay: 150,
            latency: 120,
            data_blocks: 256,
            mirror: None,
            rekey: 3_600,
            flows,
            talks: vec![
                Talk {
                    from: 1,
                    to: 2,
                    preference: Preference::NetworkFirst,
                    every: 800_000,
                    bytes: 200_000,
                    piece: 9_000,
                },
                Talk {
                    from: 2,
                    to: 1,
                    preference: Preference::StorageFirst,
                    every: 1_500_000,
                    bytes: 300_000,
                    piece: 20_000,
                },
            ],
            steps: vec![(0, Action::Traffic(true))],
            heal_at,
            expect: Expect::default(),
            canary: false,
        }
    }

    /// Whether some host gets a second daemon.
    #[must_use]
    pub fn has_twin(&self) -> bool {
        self.steps.iter().any(|(_, a)| matches!(a, Action::Twin { .. }))
    }

    /// Whether something is done after which a daemon may end its use of the volume for good.
    #[must_use]
    pub fn may_fence(&self) -> bool {
        self.has_twin()
            || self.steps.iter().any(|(_, a)| {
                matches!(a, Action::RollBack | Action::Overwrite { .. })
                    || matches!(a, Action::View { view, .. }
                        if view.wrong || view.misdirected + view.rot > 0)
            })
    }

    /// Whether something is done after which records of a ring may be missing: storage that lies,
    /// copies or loses its writers.
    #[must_use]
    pub fn may_miss(&self) -> bool {
        self.mirror.is_some()
            || self.has_twin()
            || self.steps.iter().any(|(_, a)| match a {
                Action::RollBack | Action::Overwrite { .. } | Action::Crash { .. } => true,
                Action::View { view, .. } => {
                    view.lost + view.misdirected + view.rot + view.stale + view.flip + view.torn > 0
                        || view.wrong
                        || view.shrunk
                        || view.gone
                        || view.read_error + view.write_error > 0
                }
                _ => false,
            })
    }

    /// Adds what happens at a time given in milliseconds.
    #[must_use]
    pub fn at(mut self, ms: u64, action: Action) -> Self {
        self.steps.push((ms * 1000, action));
        self
    }

    /// The good wire and the healthy view of this plan.
    #[must_use]
    pub const fn healthy(&self) -> (Wire, View) {
        (Wire::good(self.delay), View::good(self.latency))
    }
}
