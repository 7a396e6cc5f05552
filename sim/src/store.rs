//! One host's volume plane: the three machines of `volumes` over the simulated disk, and their
//! facts in the words of the core.
//!
//! Each machine has at most one operation under way; what the threads of the daemon do around the
//! machines (gather heads before a beat, spread the table after it, open the medium anew after
//! three failures, report an operation that does not return) is done here in the same order.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use failover::{NodeId, StorageFault, VolumeFact, VolumeOrder};
use volumes::{
    Fact, IoFault, IoFaultKind, Keeper, Mode, Op, Permit, Reader, Reason, Refused, Step,
    Superblock, Writer, buffer::Pool, keeper::KeeperOptions, log::receive::ReaderOptions,
    log::send::WriterOptions,
};

use crate::{disk::Pending, records::Did};

/// An operation older than this is reported as stalled.
pub(crate) const IO_DEADLINE: u64 = 1_000_000;
/// Failures in a row after which the medium is opened anew.
const REOPEN_AFTER: u32 = 3;
/// Nothing honest steps more often without an operation.
const STEPS_MAX: u32 = 1_000;

/// The three machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Keeper,
    Writer,
    Reader,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Keeper, Self::Writer, Self::Reader];
}

/// What a volume has for the turn loop.
#[derive(Debug)]
pub(crate) enum FromStore {
    Frames { from: NodeId, frames: Vec<Bytes> },
    Mailbox { from: NodeId, bytes: Bytes },
    Fact(VolumeFact),
}

/// The descriptor of one thread.
#[derive(Debug, Default)]
struct Medium {
    closed: bool,
    failures: u32,
}

/// What surrounds one machine.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    /// True time of the next look; later events for it are void.
    pub(crate) due: u64,
    pub(crate) pending: Option<Pending>,
    /// It ended while the process slept.
    pub(crate) ended: Option<Result<Bytes, IoFault>>,
    /// When the operation under way began, by the host's clock.
    began: u64,
    op: &'static str,
    told_stuck: bool,
    medium: Medium,
    pub(crate) stopped: bool,
}

/// What a machine wants of the world after a look.
#[derive(Debug)]
pub(crate) enum Want {
    Do(Op),
    /// By the host's clock.
    At(u64),
    Nothing,
}

/// The store plane of a host.
#[derive(Debug)]
pub(crate) struct Store {
    keeper: Keeper,
    writer: Writer,
    reader: Reader,
    permit: Arc<Permit>,
    pub(crate) seats: [Seat; 3],
    active: bool,
    interval: u64,
    refused: BTreeSet<u8>,
    /// Machines that were changed from outside and should look again.
    pub(crate) woken: [bool; 3],
    pub(crate) out: VecDeque<FromStore>,
    facts: Vec<Fact>,
    /// What is worth a line in the trace and nothing to the core.
    pub(crate) notes: Vec<String>,
    pub(crate) fenced: Option<String>,
    /// For the books of the world.
    pub(crate) did: Vec<Did>,
}

impl Store {
    pub(crate) fn new(
        node: u8,
        superblock: &Superblock,
        epoch: u64,
        nonce: u64,
        interval: u64,
        wall_unix_us_at_zero: u64,
    ) -> Option<Self> {
        let permit = Arc::new(Permit::default());
        let pool = Pool::new();
        let keeper = Keeper::new(KeeperOptions {
            node,
            superblock: superblock.clone(),
            epoch,
            nonce: nonce.max(1),
            interval,
            wall_unix_us_at_zero,
            permit: permit.clone(),
            pool: pool.clone(),
        })?;
        let writer = Writer::new(WriterOptions {
            node,
            superblock: superblock.clone(),
            permit: permit.clone(),
            pool,
            flush_bytes: 64 << 10,
            flush_delay: 500,
            outbox_bytes_max: 8 << 20,
        })?;
        let reader = Reader::new(ReaderOptions { node, superblock: superblock.clone() })?;
        Some(Self {
            keeper,
            writer,
            reader,
            permit,
            seats: Default::default(),
            active: true,
            interval,
            refused: BTreeSet::new(),
            woken: [true; 3],
            out: VecDeque::new(),
            facts: Vec::new(),
            notes: Vec::new(),
            fenced: None,
            did: Vec::new(),
        })
    }

    fn wake(&mut self, role: Role) {
        self.woken[role as usize] = true;
    }

    // --- orders of the core --------------------------------------------------------------------

    pub(crate) fn store(&mut self, now: u64, to: NodeId, ring: failover::Ring, frame: &[u8]) {
        match self.writer.store(now, to.get(), ring_of(ring), frame) {
            Ok(()) => {
                if !self.writer.is_writing() {
                    self.wake(Role::Writer);
                }
            }
            Err(_) => {
                self.refused.insert(to.get());
            }
        }
    }

    pub(crate) fn mailbox(&mut self, to: NodeId, message: &[u8]) {
        let taken: Result<(), Refused> = self.writer.mailbox(to.get(), message);
        self.wake(Role::Writer);
        if taken.is_err() {
            self.refused.insert(to.get());
        }
    }

    pub(crate) fn order(&mut self, now: u64, order: VolumeOrder) {
        match order {
            VolumeOrder::Poll { active } => {
                self.active = active;
                self.set_mode(now);
            }
            VolumeOrder::BeatEvery(interval) => {
                self.interval = failover::micros(interval);
                self.keeper.set_interval(self.interval);
                self.wake(Role::Keeper);
                self.set_mode(now);
            }
            VolumeOrder::BeatNow => {
                self.keeper.beat_now();
                self.wake(Role::Keeper);
            }
            VolumeOrder::Released { to, ring, number } => {
                self.writer.released(to.get(), ring_of(ring), number);
                self.wake(Role::Writer);
            }
            VolumeOrder::ResetLane { to } => {
                self.writer.reset_lane(to.get());
                self.wake(Role::Writer);
            }
        }
    }

    fn set_mode(&mut self, now: u64) {
        let mode =
            if self.active { Mode::Active } else { Mode::Standby { interval: self.interval } };
        self.reader.set_mode(now, mode);
        self.wake(Role::Reader);
    }

    /// Refusals since the last call, as facts; true when there were any.
    pub(crate) fn tell_refusals(&mut self) -> bool {
        let refused = std::mem::take(&mut self.refused);
        let any = !refused.is_empty();
        for to in refused {
            if let Some(to) = NodeId::new(to) {
                self.out.push_back(FromStore::Fact(VolumeFact::Refused { to }));
            }
        }
        any
    }

    /// Bytes waiting to be written to that host.
    pub(crate) fn buffered(&self, to: u8) -> usize {
        self.writer.buffered_bytes(to)
    }

    // --- the threads ---------------------------------------------------------------------------

    fn step(&mut self, role: Role, now: u64) -> Step {
        match role {
            Role::Keeper => self.keeper.step(now),
            Role::Writer => self.writer.step(now),
            Role::Reader => self.reader.step(now),
        }
    }

    fn drain(&mut self, role: Role) {
        let facts = &mut self.facts;
        match role {
            Role::Keeper => facts.extend(self.keeper.drain_facts()),
            Role::Writer => facts.extend(self.writer.drain_facts()),
            Role::Reader => facts.extend(self.reader.drain_facts()),
        }
    }

    /// Asks a machine what it wants; `now` is the host's clock.
    pub(crate) fn look(&mut self, role: Role, now: u64) -> Want {
        for _ in 0..STEPS_MAX {
            if role == Role::Keeper {
                self.gather();
            }
            let step = self.step(role, now);
            self.drain(role);
            let told = !self.facts.is_empty();
            self.report(now);
            match step {
                Step::Do(op) => return self.open(role, now, op),
                Step::Stopped(reason) => {
                    self.seats[role as usize].stopped = true;
                    if let Reason::Fenced(_) | Reason::ClaimRefused(_) = reason {
                        self.fenced.get_or_insert_with(|| reason.to_string());
                    }
                    return Want::Nothing;
                }
                _ if told => {}
                Step::WaitUntil(at) if at <= now => {}
                Step::WaitUntil(at) => return Want::At(at),
                Step::Idle => return Want::Nothing,
            }
        }
        panic!("{role:?} steps without end and without an operation");
    }

    /// The descriptor comes first: one that was opened anew is looked at before it is written to.
    fn open(&mut self, role: Role, now: u64, op: Op) -> Want {
        let seat = &mut self.seats[role as usize];
        seat.began = now;
        seat.op = match op {
            Op::Read { .. } => "read",
            Op::Write { .. } => "write",
            Op::Flush => "flush",
        };
        Want::Do(op)
    }

    /// What the open descriptor makes of an operation about to begin; `Err` ends it at once.
    pub(crate) fn reopen(&mut self, role: Role, op: &Op, gone: bool) -> Result<(), IoFault> {
        let seat = &mut self.seats[role as usize];
        if !seat.medium.closed {
            return Ok(());
        }
        if gone {
            return Err(IoFault::new(IoFaultKind::Gone, "it cannot be opened"));
        }
        seat.medium.closed = false;
        self.permit.revoke();
        if matches!(op, Op::Write { .. }) {
            return Err(IoFault::new(IoFaultKind::Other, "opened anew; looked at first"));
        }
        Ok(())
    }

    /// An operation ended.
    pub(crate) fn complete(&mut self, role: Role, now: u64, result: Result<Bytes, IoFault>) {
        let seat = &mut self.seats[role as usize];
        match &result {
            Ok(_) => seat.medium.failures = 0,
            Err(_) => {
                seat.medium.failures += 1;
                if seat.medium.failures >= REOPEN_AFTER {
                    seat.medium = Medium { closed: true, failures: 0 };
                }
            }
        }
        if std::mem::take(&mut seat.told_stuck) {
            self.facts.push(Fact::Returned { op: seat.op });
            self.facts.push(Fact::Recovered);
        }
        match role {
            Role::Keeper => self.keeper.complete(now, result),
            Role::Writer => self.writer.complete(now, result),
            Role::Reader => self.reader.complete(now, result),
        }
        self.drain(role);
        if role == Role::Keeper
            && let Some(table) = self.keeper.take_table()
        {
            self.reader.table_update(now, &table);
            self.wake(Role::Reader);
        }
        self.report(now);
    }

    /// The watcher: operations that do not return are reported, once each.
    pub(crate) fn watch(&mut self, now: u64) {
        for seat in &mut self.seats {
            let old = now.saturating_sub(seat.began) >= IO_DEADLINE;
            if seat.pending.is_some() && old && !seat.told_stuck {
                seat.told_stuck = true;
                self.facts.push(Fact::Stalled { op: seat.op, since: seat.began });
            }
        }
        self.report(now);
    }

    fn gather(&mut self) {
        for (to, heads, letters) in self.writer.heads() {
            self.keeper.set_heads(to, heads, letters);
        }
        for (from, epoch, cursors) in self.reader.cursors() {
            self.keeper.set_cursors(from, epoch, cursors);
        }
    }

    fn report(&mut self, now: u64) {
        let mut facts = std::mem::take(&mut self.facts);
        for fact in facts.drain(..) {
            match &fact {
                Fact::Frames { from, ring, number, frames } => {
                    let lane = self.reader.cursors().find(|c| c.0 == *from);
                    self.did.push(Did::Read {
                        from: *from,
                        epoch: lane.map_or(0, |l| l.1),
                        ring: *ring,
                        number: *number,
                        frames: frames.clone(),
                    });
                }
                Fact::MailboxWritten { .. } => {
                    self.keeper.beat_now();
                    self.wake(Role::Keeper);
                }
                Fact::PeerRead { node, ring, number } => {
                    self.writer.released(*node, *ring, *number);
                    self.wake(Role::Writer);
                }
                Fact::Missing { from, ring, last, .. } => {
                    self.did.push(Did::Missed { from: *from, ring: *ring, last: *last });
                    self.notes.push(format!("{fact:?}"));
                }
                Fact::CorruptRecord { .. } | Fact::PeerWentBack { .. } => {
                    self.notes.push(format!("{fact:?}"));
                }
                Fact::Attached { epoch } => {
                    self.did.push(Did::Attached { epoch: *epoch });
                    self.wake(Role::Writer);
                }
                _ => {}
            }
            self.out.extend(translate(now, fact));
        }
        self.facts = facts;
    }
}

/// Says a fact of `volumes` in the words of the core; the same rules as in the daemon.
fn translate(now: u64, fact: Fact) -> Option<FromStore> {
    let micros = std::time::Duration::from_micros;
    let fact = match fact {
        Fact::Frames { from, frames, .. } => {
            return Some(FromStore::Frames { from: NodeId::new(from)?, frames });
        }
        Fact::Mailbox { from, bytes } => {
            return Some(FromStore::Mailbox { from: NodeId::new(from)?, bytes });
        }
        Fact::Attached { .. } => VolumeFact::Attached,
        Fact::ClaimRefused { error } => fault(StorageFault::Fenced, error.to_string()),
        Fact::Fenced { why } => fault(StorageFault::Fenced, why.to_string()),
        Fact::Stalled { op, since } => VolumeFact::Hangs {
            reading: op == "read",
            detail: format!("a {op} has not returned for {} ms", now.saturating_sub(since) / 1000),
        },
        Fact::Returned { op } => VolumeFact::Returned { reading: op == "read" },
        Fact::WriteFailed { fault } => io_fault(StorageFault::WriteError, fault),
        Fact::ReadFailed { fault } => io_fault(StorageFault::ReadError, fault),
        Fact::BeatWritten { latency } => VolumeFact::BeatWritten { latency: micros(latency) },
        Fact::BeatsEvery { interval } => VolumeFact::BeatsEvery { interval: micros(interval) },
        Fact::TableRead { latency } => VolumeFact::TableRead { latency: micros(latency) },
        Fact::RecordWritten { to, latency, .. } => {
            VolumeFact::RecordWritten { to: NodeId::new(to)?, latency: micros(latency) }
        }
        Fact::PeerBeat { node, epoch, beat, interval } => VolumeFact::PeerBeat {
            node: NodeId::new(node)?,
            epoch,
            beat,
            interval: micros(interval),
        },
        Fact::Cursor { from, ring, number } => VolumeFact::Cursor {
            from: NodeId::new(from)?,
            ring: match ring {
                volumes::Ring::Express => failover::Ring::Express,
                volumes::Ring::Data => failover::Ring::Data,
            },
            number,
        },
        Fact::Drained { to } => VolumeFact::Drained { to: NodeId::new(to)? },
        _ => return None,
    };
    Some(FromStore::Fact(fact))
}

fn fault(fault: StorageFault, detail: String) -> VolumeFact {
    VolumeFact::Fault { fault, detail }
}

fn io_fault(otherwise: StorageFault, io: IoFault) -> VolumeFact {
    let kind = match io.kind {
        IoFaultKind::ReadOnly => StorageFault::ReadOnly,
        IoFaultKind::NoSpace => StorageFault::Full,
        IoFaultKind::Gone => StorageFault::Gone,
        IoFaultKind::TimedOut => StorageFault::Stalled,
        IoFaultKind::Eio | IoFaultKind::ShortRead | IoFaultKind::Throttled | IoFaultKind::Other => {
            otherwise
        }
    };
    fault(kind, io.detail)
}

const fn ring_of(ring: failover::Ring) -> volumes::Ring {
    match ring {
        failover::Ring::Express => volumes::Ring::Express,
        failover::Ring::Data => volumes::Ring::Data,
    }
}
