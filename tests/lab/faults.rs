//! Draws what goes wrong in a round, and lets it go wrong.
//!
//! Four things can break: each daemon, the network, the storage. What breaks one of them is drawn
//! as pairs (break, mend) that do not overlap on that thing; across things they overlap freely.
//! A seed gives the plan; the instants are kept as well as a busy machine can.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::bench::Lab;
use super::fuse::{Rest, Stall};
use super::rng::Rng;
use super::sys;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cut {
    /// Nothing passes, nobody is told.
    BlackHole,
    /// Nothing from the network reaches this node.
    OneWay(usize),
    /// This node's cable is pulled: it is told.
    Carrier(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Storage {
    StallAll,
    StallReads,
    StallWrites,
    StuckOperation,
    TornWrites,
    TornAndFailed,
    TornAndHidden,
    BitFlips,
    StaleReads,
    SomeErrors,
    NothingButErrors,
    NoSpace,
    ReadOnly,
    PowerCut,
}

impl Storage {
    pub(crate) const ALL: [Self; 14] = [
        Self::StallAll,
        Self::StallReads,
        Self::StallWrites,
        Self::StuckOperation,
        Self::TornWrites,
        Self::TornAndFailed,
        Self::TornAndHidden,
        Self::BitFlips,
        Self::StaleReads,
        Self::SomeErrors,
        Self::NothingButErrors,
        Self::NoSpace,
        Self::ReadOnly,
        Self::PowerCut,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Kill(usize),
    Start(usize),
    Stop(usize),
    Resume(usize),
    Cut(Cut),
    Mend(Cut),
    /// The fault, and the host that has it.
    Storage(Storage, usize),
    Repair(usize),
    /// The image is kept, to be rolled back to.
    Snapshot,
    RollBack,
}

/// How much of each a round shall have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) kills: usize,
    pub(crate) stops: usize,
    pub(crate) cuts: usize,
    pub(crate) storage: usize,
    pub(crate) rollbacks: usize,
    /// Roll back while all daemons are down, rather than under them.
    pub(crate) down: bool,
}

pub(crate) struct Plan {
    pub(crate) acts: Vec<(u64, Act)>,
}

/// Between the mending of a thing and its next break, ms.
const GAP_MS: (u64, u64) = (100, 800);

impl Plan {
    pub(crate) fn draw(rng: &mut Rng, nodes: usize, wanted: Wanted, storage: &[Storage]) -> Self {
        let mut acts = Vec::new();
        // Each thing has its own clock; 600 ms of peace come first, for the books.
        let mut daemons = vec![600 + rng.below(500); nodes + 1];
        let (mut network, mut array) = (600 + rng.below(500), 600 + rng.below(500));
        let mut pair = |clock: &mut u64, length: u64, gap: u64, start: Act, end: Act| {
            acts.push((*clock, start));
            acts.push((*clock + length, end));
            *clock += length + gap;
        };
        let mut todo: Vec<char> = Vec::new();
        for (kind, count) in [
            ('k', wanted.kills),
            ('s', wanted.stops),
            ('c', wanted.cuts),
            ('f', wanted.storage),
            ('r', wanted.rollbacks),
        ] {
            todo.extend(std::iter::repeat_n(kind, count));
        }
        rng.shuffle(&mut todo);
        for kind in todo {
            let gap = rng.between(GAP_MS.0, GAP_MS.1);
            match kind {
                'k' | 's' => {
                    let node = rng.between(1, nodes as u64) as usize;
                    let clock = &mut daemons[node];
                    if kind == 'k' {
                        let length = rng.between(20, 1500);
                        pair(clock, length, gap, Act::Kill(node), Act::Start(node));
                    } else {
                        let length = rng.between(50, 3000);
                        pair(clock, length, gap, Act::Stop(node), Act::Resume(node));
                    }
                }
                'c' => {
                    let node = rng.between(1, nodes as u64) as usize;
                    let cut = rng.pick(&[
                        Cut::BlackHole,
                        Cut::BlackHole,
                        Cut::OneWay(node),
                        Cut::Carrier(node),
                    ]);
                    let length = rng.between(50, 1500);
                    pair(&mut network, length, gap, Act::Cut(cut), Act::Mend(cut));
                }
                'f' => {
                    let node = rng.between(1, nodes as u64) as usize;
                    let fault = rng.pick(storage);
                    let length = rng.between(50, 1500);
                    pair(&mut array, length, gap, Act::Storage(fault, node), Act::Repair(node));
                }
                _ if wanted.down => {
                    let at = daemons.iter().copied().max().unwrap_or(0).max(array);
                    for (node, clock) in daemons.iter_mut().enumerate().skip(1) {
                        *clock = at;
                        pair(clock, 300, gap, Act::Kill(node), Act::Start(node));
                    }
                    array = at + 100;
                    pair(&mut array, 50, gap, Act::RollBack, Act::Snapshot);
                }
                _ => pair(&mut array, 20, gap, Act::RollBack, Act::Snapshot),
            }
        }
        acts.sort_by_key(|(at, _)| *at);
        Self { acts }
    }

    pub(crate) fn has(&self, what: impl Fn(&Act) -> bool) -> bool {
        self.acts.iter().any(|(_, act)| what(act))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, act) in &self.acts {
            write!(f, " {at}:{act:?}")?;
        }
        Ok(())
    }
}

/// What was done so far, and what the array remembers.
#[derive(Default)]
pub(crate) struct Deeds {
    pub(crate) count: BTreeMap<String, u64>,
    snapshots: Vec<Arc<Vec<u8>>>,
}

/// Older images kept to roll back to.
const SNAPSHOTS_MAX: usize = 3;

impl Deeds {
    pub(crate) fn add(&mut self, what: impl Into<String>) {
        *self.count.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn get(&self, what: &str) -> u64 {
        self.count.get(what).copied().unwrap_or(0)
    }

    /// Does one act.
    pub(crate) fn perform(&mut self, lab: &Lab, act: Act, rng: &mut Rng) {
        match act {
            Act::Kill(node) => {
                // A killed process stays until the kernel lets go of its last operation, and keeps
                // its socket and locks for so long: a successor is refused, rightly.
                sys::signal(lab.node(node).pid(), libc::SIGKILL);
                lab.disk().array().port(node).stall(Stall::Nothing);
                lab.node(node).kill();
                self.add("kill -9");
            }
            Act::Start(node) => lab.node(node).start(),
            Act::Stop(node) => {
                lab.node(node).pause();
                self.add("SIGSTOP");
            }
            Act::Resume(node) => lab.node(node).resume(),
            Act::Cut(cut) => {
                match cut {
                    Cut::BlackHole => lab.black_hole(),
                    Cut::OneWay(node) => lab.deafen(node),
                    Cut::Carrier(node) => lab.pull_cable(node),
                }
                let word = match cut {
                    Cut::BlackHole => "cut, black hole",
                    Cut::OneWay(_) => "cut, one way",
                    Cut::Carrier(_) => "cut, carrier",
                };
                self.add(word);
                self.add("cuts");
            }
            Act::Mend(Cut::BlackHole) => lab.black_hole_heal(),
            Act::Mend(Cut::OneWay(node)) => lab.undeafen(node),
            Act::Mend(Cut::Carrier(node)) => lab.plug_cable(node),
            Act::Storage(fault, node) => {
                self.break_storage(lab, fault, node, rng);
                self.add(format!("storage, {fault:?}"));
                self.add("storage faults");
            }
            Act::Repair(node) => {
                let array = lab.disk().array();
                array.port(node).heal();
                array.lie_about_flush(false);
            }
            Act::Snapshot => self.snapshot(lab),
            Act::RollBack => {
                let at = rng.below(self.snapshots.len().max(1) as u64) as usize;
                if let Some(older) = self.snapshots.get(at) {
                    lab.disk().array().roll_back(older);
                    self.add("rollbacks");
                }
            }
        }
    }

    pub(crate) fn snapshot(&mut self, lab: &Lab) {
        if self.snapshots.len() == SNAPSHOTS_MAX {
            self.snapshots.remove(1);
        }
        self.snapshots.push(lab.disk().array().snapshot());
    }

    fn break_storage(&mut self, lab: &Lab, fault: Storage, node: usize, rng: &mut Rng) {
        let array = lab.disk().array();
        let port = array.port(node);
        match fault {
            Storage::StallAll => port.stall(Stall::All),
            Storage::StallReads => port.stall(Stall::Reads),
            Storage::StallWrites => port.stall(Stall::Writes),
            Storage::StuckOperation => port.stick_next(),
            Storage::TornWrites => {
                port.tear_writes(2, Rest::After(Duration::from_millis(rng.between(1, 30))));
            }
            Storage::TornAndFailed => port.tear_writes(2, Rest::Error),
            Storage::TornAndHidden => port.tear_writes(3, Rest::Lie),
            Storage::BitFlips => port.flip_reads(rng.between(2, 20) as u32),
            Storage::StaleReads => array.stale(node),
            Storage::SomeErrors => {
                port.fail_reads(rng.between(2, 9) as u32, libc::EIO);
                port.fail_writes(rng.between(2, 9) as u32, libc::EIO);
            }
            Storage::NothingButErrors => {
                port.fail_reads(1, libc::EIO);
                port.fail_writes(1, libc::EIO);
            }
            Storage::NoSpace => port.fail_writes(1, libc::ENOSPC),
            Storage::ReadOnly => port.fail_writes(1, libc::EROFS),
            Storage::PowerCut => {
                array.lie_about_flush(true);
                std::thread::sleep(Duration::from_millis(rng.between(20, 60)));
                array.power_cut(Duration::from_millis(200), rng);
            }
        }
    }
}

/// Performs a plan in its time; `before` is told each act and the instant just before it.
pub(crate) fn run(
    lab: &Lab,
    plan: &Plan,
    deeds: &mut Deeds,
    rng: &mut Rng,
    mut before: impl FnMut(u64, Act),
) {
    let began = sys::monotonic_ns();
    for (at, act) in &plan.acts {
        sys::sleep_until_ns(began + at * 1_000_000);
        before(sys::monotonic_ns(), *act);
        deeds.perform(lab, *act, rng);
    }
}
