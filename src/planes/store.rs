//! Frames by storage: between the core's words and those of the crate `volumes`. Moves bytes,
//! decides nothing; writing, reading and beating happen on threads of `volumes`.
//!
//! ```text
//!   loop ── Store, Mailbox, Volume ──> Handle ──> outbox, flusher ──> medium
//!   loop <── Stored, Mailbox, facts ── one bounded queue <── sink <── reader, keeper, flusher
//! ```
//!
//! Awkward cases:
//! * A volume that is not there yet (a device that appears late, a read error) is waited for and
//!   the daemon runs meanwhile; what an operator must correct refuses the start.
//! * Volumes are numbered by their path as the file system knows it: two names of one file are
//!   one volume.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use failover::{NodeId, StorageFault, VolumeFact, VolumeId, VolumeOrder};
use volumes::{
    AttachError, AttachOptions, Fact, Handle, IoFault, IoFaultKind, Mode, media::Location,
};

use super::store_queue::{FromStore, StoreQueue};
use crate::sys::{clock, sched};

/// What a volume is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Our lanes and those of peers.
    Shared,
    /// Our lanes.
    Send,
    /// Lanes of peers.
    Receive,
}

impl Role {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }
}

/// One volume to attach.
#[derive(Debug, Clone)]
pub(crate) struct VolumePlan {
    pub(crate) location: Location,
    pub(crate) role: Role,
}

/// Which volumes a configuration names, and which of them carries the lane of which peer.
#[derive(Debug, Clone)]
pub(crate) struct StorePlan {
    pub(crate) volumes: Vec<VolumePlan>,
    /// Peer name to volume; peers not named are read on the send volume.
    pub(crate) receive: BTreeMap<String, VolumeId>,
}

impl StorePlan {
    /// The send volume is number 0.
    pub(crate) fn new(send: &Location, receive: &[(String, Location)], peers: usize) -> Self {
        let mut plan = Self {
            volumes: vec![VolumePlan { location: send.clone(), role: Role::Send }],
            receive: BTreeMap::new(),
        };
        for (name, location) in receive {
            let known = plan.volumes.iter().position(|v| v.location.is_same(location));
            let at = known.unwrap_or_else(|| {
                plan.volumes.push(VolumePlan { location: location.clone(), role: Role::Receive });
                plan.volumes.len() - 1
            });
            // At most 63 peers, so at most 64 volumes.
            plan.receive.insert(name.clone(), VolumeId(u8::try_from(at).unwrap_or(u8::MAX)));
        }
        let also_read = plan.receive.len() < peers || plan.receive.values().any(|v| v.0 == 0);
        if also_read {
            plan.volumes[0].role = Role::Shared;
        }
        plan
    }

    pub(crate) fn send_volume(&self) -> VolumeId {
        VolumeId(0)
    }

    pub(crate) fn receive_volume(&self, peer: &str) -> VolumeId {
        self.receive.get(peer).copied().unwrap_or(VolumeId(0))
    }
}

/// How to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoreSettings {
    pub(crate) node: NodeId,
    pub(crate) epoch: u64,
    pub(crate) flush_bytes: usize,
    pub(crate) flush_delay: Duration,
    pub(crate) single_host: bool,
    pub(crate) beat_interval: Duration,
}

/// Why a volume refuses the start.
#[derive(Debug)]
pub(crate) struct VolumeRefused {
    pub(crate) path: PathBuf,
    pub(crate) error: AttachError,
}

/// All attached volumes.
#[derive(Debug)]
pub(crate) struct StorePlane {
    queue: Arc<StoreQueue>,
    volumes: Vec<Attached>,
    /// Refusals of this flush, one fact each.
    refused: BTreeSet<(VolumeId, NodeId)>,
}

#[derive(Debug)]
struct Attached {
    plan: VolumePlan,
    handle: Handle,
    /// As last ordered.
    active: bool,
    interval: Duration,
    /// Frames were put and its flusher was not woken.
    unflushed: bool,
}

impl StorePlane {
    /// Attaches every volume of the plan.
    pub(crate) fn attach(
        plan: &StorePlan,
        settings: StoreSettings,
        queue: Arc<StoreQueue>,
    ) -> Result<Self, VolumeRefused> {
        let mut plane = Self {
            queue,
            volumes: Vec::with_capacity(plan.volumes.len()),
            refused: BTreeSet::new(),
        };
        for (volume, number) in plan.volumes.iter().zip(0..) {
            let handle = attach_nicely(volume, VolumeId(number), settings, &plane.queue)
                .map_err(|error| VolumeRefused { path: volume.location.label(), error })?;
            plane.volumes.push(Attached {
                plan: volume.clone(),
                handle,
                active: true,
                interval: settings.beat_interval,
                unflushed: false,
            });
        }
        Ok(plane)
    }

    fn volume(&self, id: VolumeId) -> Option<&Attached> {
        self.volumes.get(usize::from(id.0))
    }

    /// Copies a frame into the outbox; [`Self::flush`] follows.
    pub(crate) fn put(&mut self, id: VolumeId, to: NodeId, ring: failover::Ring, frame: &[u8]) {
        let Some(volume) = self.volumes.get_mut(usize::from(id.0)) else { return };
        match volume.handle.put(to.get(), ring_of(ring), frame) {
            Ok(()) => volume.unflushed = true,
            Err(refused) => {
                tracing::trace!(%refused, to = to.get(), "frame not taken by storage");
                self.refused.insert((id, to));
            }
        }
    }

    /// Wakes the flushers of what was put since the last call.
    pub(crate) fn flush(&mut self) {
        for volume in &mut self.volumes {
            if std::mem::take(&mut volume.unflushed) {
                volume.handle.rouse();
            }
        }
    }

    pub(crate) fn mailbox(&mut self, id: VolumeId, to: NodeId, message: &[u8]) {
        let Some(volume) = self.volume(id) else { return };
        if let Err(refused) = volume.handle.mailbox(to.get(), message) {
            tracing::debug!(%refused, to = to.get(), "handshake not taken by storage");
            self.refused.insert((id, to));
        }
    }

    pub(crate) fn order(&mut self, id: VolumeId, order: VolumeOrder) {
        let Some(volume) = self.volumes.get_mut(usize::from(id.0)) else { return };
        match order {
            VolumeOrder::Poll { active } => {
                volume.active = active;
                volume.set_mode();
            }
            VolumeOrder::BeatEvery(interval) => {
                volume.interval = interval;
                volume.handle.set_beat_interval(interval);
                volume.set_mode();
            }
            VolumeOrder::BeatNow => volume.handle.beat_now(),
            VolumeOrder::Released { to, ring, number } => {
                volume.handle.released(to.get(), ring_of(ring), number);
            }
            VolumeOrder::ResetLane { to } => volume.handle.reset_lane(to.get()),
        }
    }

    /// What was refused since the last call, as facts.
    pub(crate) fn refusals(&mut self) -> impl Iterator<Item = (VolumeId, VolumeFact)> + use<> {
        std::mem::take(&mut self.refused)
            .into_iter()
            .map(|(volume, to)| (volume, VolumeFact::Refused { to }))
    }

    pub(crate) fn has_refusals(&self) -> bool {
        !self.refused.is_empty()
    }

    /// How each volume is.
    pub(crate) fn status(&self) -> impl Iterator<Item = (Role, volumes::status::VolumeStatus)> {
        self.volumes.iter().map(|v| (v.plan.role, v.handle.status()))
    }

    /// Writes what is buffered, says goodbye and ends within `deadline`, all volumes at once.
    /// Returns false when a thread had to be left behind in the kernel.
    pub(crate) fn shutdown(self, deadline: Duration) -> bool {
        let threads: Vec<_> = self
            .volumes
            .into_iter()
            .map(|v| {
                std::thread::Builder::new()
                    .name("sidepath-end".into())
                    .spawn(move || v.handle.shutdown(deadline))
            })
            .collect();
        // Whoever waits with frames must not hold the shutdown up.
        self.queue.close();
        threads.into_iter().all(|t| t.is_ok_and(|t| t.join().unwrap_or(false)))
    }
}

impl Attached {
    fn set_mode(&self) {
        let interval = failover::micros(self.interval);
        let mode = if self.active { Mode::Active } else { Mode::Standby { interval } };
        self.handle.set_reader_mode(mode);
    }
}

/// Threads inherit the nice value of who starts them: those of volumes carry packets like the
/// loop does, so they are started from a thread that is as nice as the loop, and gone afterwards.
fn attach_nicely(
    plan: &VolumePlan,
    id: VolumeId,
    settings: StoreSettings,
    queue: &Arc<StoreQueue>,
) -> Result<Handle, AttachError> {
    std::thread::scope(|scope| {
        let starter = std::thread::Builder::new().name("sidepath-start".into());
        starter
            .spawn_scoped(scope, || {
                sched::nicest();
                attach_one(plan, id, settings, queue)
            })
            .map_err(|e| AttachError::Thread { detail: e.to_string() })?
            .join()
            .unwrap_or_else(|_| Err(AttachError::Thread { detail: "it panicked".into() }))
    })
}

fn attach_one(
    plan: &VolumePlan,
    id: VolumeId,
    settings: StoreSettings,
    queue: &Arc<StoreQueue>,
) -> Result<Handle, AttachError> {
    let mut options = AttachOptions::new(&plan.location, settings.node.get());
    options.epoch = settings.epoch;
    options.flush_bytes = settings.flush_bytes;
    options.flush_delay = settings.flush_delay;
    options.single_host = settings.single_host;
    options.beat_interval = settings.beat_interval;
    options.sends = plan.role != Role::Receive;
    let attach = |options: AttachOptions| {
        let queue = Arc::clone(queue);
        let sink = Arc::new(move |fact| translate(id, fact, &queue));
        volumes::attach(options, Arc::new(|| clock::now().micros()), sink)
    };
    let error = match attach(options.clone()) {
        Ok(handle) => return Ok(handle),
        Err(error) => error,
    };
    // A device may appear later, a file system may be mounted later; that the name may be
    // misspelt was warned of when the configuration was read.
    let may_appear = matches!(&error, AttachError::Open(_)) && error.may_pass();
    if error.is_input_error() && !may_appear {
        return Err(error);
    }
    tracing::warn!(volume = %plan.location, %error, "starting without this volume; retrying");
    options.wait_for_medium = true;
    attach(options)
}

/// Says a fact of `volumes` in the words of the core.
fn translate(volume: VolumeId, fact: Fact, queue: &StoreQueue) {
    let micros = Duration::from_micros;
    let fact = match fact {
        Fact::Frames { from, frames, .. } => {
            let Some(from) = NodeId::new(from) else { return };
            return queue.push(FromStore::Frames { from, frames });
        }
        Fact::Mailbox { from, bytes } => {
            let Some(from) = NodeId::new(from) else { return };
            return queue.push(FromStore::Mailbox { from, bytes });
        }
        Fact::Attached { .. } => Some(VolumeFact::Attached),
        Fact::ClaimRefused { error } => Some(fault(StorageFault::Fenced, error.to_string())),
        Fact::Fenced { why } => Some(fault(StorageFault::Fenced, why.to_string())),
        Fact::Stalled { op, since } => {
            let ms = clock::now().micros().saturating_sub(since) / 1000;
            let detail = format!("a {op} has not returned for {ms} ms");
            Some(VolumeFact::Hangs { reading: op == "read", detail })
        }
        Fact::Returned { op } => Some(VolumeFact::Returned { reading: op == "read" }),
        Fact::WriteFailed { fault } => Some(io_fault(StorageFault::WriteError, fault)),
        Fact::ReadFailed { fault } => Some(io_fault(StorageFault::ReadError, fault)),
        Fact::BeatWritten { latency } => Some(VolumeFact::BeatWritten { latency: micros(latency) }),
        Fact::BeatsEvery { interval } => {
            Some(VolumeFact::BeatsEvery { interval: micros(interval) })
        }
        Fact::TableRead { latency } => Some(VolumeFact::TableRead { latency: micros(latency) }),
        Fact::RecordWritten { to, latency, .. } => {
            NodeId::new(to).map(|to| VolumeFact::RecordWritten { to, latency: micros(latency) })
        }
        Fact::PeerBeat { node, epoch, beat, interval } => NodeId::new(node)
            .map(|node| VolumeFact::PeerBeat { node, epoch, beat, interval: micros(interval) }),
        Fact::Cursor { from, ring, number } => NodeId::new(from).map(|from| VolumeFact::Cursor {
            from,
            ring: match ring {
                volumes::Ring::Express => failover::Ring::Express,
                volumes::Ring::Data => failover::Ring::Data,
            },
            number,
        }),
        Fact::Drained { to } => NodeId::new(to).map(|to| VolumeFact::Drained { to }),
        Fact::Missing { from, first, last, .. } => {
            tracing::warn!(from, first, last, "records are missing; their frames are sent again");
            None
        }
        Fact::CorruptRecord { from, number, .. } => {
            tracing::warn!(from, number, "a record stays damaged; still trying");
            None
        }
        Fact::PeerWentBack { node, epoch, beat, known_epoch, known_beat } => {
            tracing::warn!(node, epoch, beat, known_epoch, known_beat, "a stale entry was ignored");
            None
        }
        Fact::PeerSendsElsewhere { node } => {
            tracing::warn!(
                node,
                "this peer only reads on the volume we read it from: what is `send` in its \
                 configuration must be `receive` in ours"
            );
            None
        }
        Fact::StaleEpoch { from, seen, current } => {
            tracing::debug!(from, seen, current, "an old incarnation's bytes were ignored");
            None
        }
        // Peers say goodbye in sealed frames too, and cursors written in the node table are used
        // where they are read.
        Fact::PeerLeft { .. } | Fact::PeerRead { .. } | Fact::MailboxWritten { .. } => None,
        Fact::Recovered => None,
        _ => None,
    };
    if let Some(fact) = fact {
        queue.push(FromStore::Fact(volume, fact));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_of_one_volume_are_one() {
        let receive = [
            ("b".into(), PathBuf::from("/tmp/../x").into()),
            ("c".into(), PathBuf::from("/y").into()),
            ("d".into(), PathBuf::from("/y").into()),
        ];
        let send = PathBuf::from("/z").into();
        let plan = StorePlan::new(&send, &receive, 3);
        assert_eq!(plan.volumes.len(), 3);
        assert_eq!(plan.volumes[0].role, Role::Send);
        assert_eq!(plan.receive_volume("c"), plan.receive_volume("d"));
        let plan = StorePlan::new(&send, &[], 3);
        assert_eq!(plan.volumes[0].role, Role::Shared);
        assert_eq!(plan.receive_volume("b"), VolumeId(0));
    }
}
