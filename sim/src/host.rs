//! A machine and the daemon on it.
//!
//! The daemon is what the real one is: a turn loop that drives the node, a thread of its own that
//! drives the pulse, a store plane with three machines. The machine has a clock that began
//! somewhere and runs a little wrong, a socket buffer and an interface queue that outlive a pause.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use failover::{
    ClassRules, Command, Node, NodeId, Options, PeerOptions, Time, Timing, VolumeId, World,
    beat::{Heard, Pulse},
    session::SessionLimits,
};
use snow::{params::DHChoice, resolvers::CryptoResolver};
use zeroize::Zeroizing;

use crate::{disk::Disk, rng::Rng, store::Store, talks::Talks, workload};

/// Datagrams that wait in the socket of a paused process at most.
pub(crate) const SOCKET_MAX: usize = 512;
/// Packets that wait in the interface's queue at most.
pub(crate) const TUN_MAX: usize = 500;
/// The turn loop turns at least so often.
pub(crate) const SLEEP_MAX: u64 = 50_000;

/// A clock: began somewhere, runs a little wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    offset: i64,
    /// Microseconds gained per second.
    drift: i64,
}

impl Clock {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let offset = i64::try_from(rng.spread(1_000_000, 3_000_000_000_000)).unwrap_or(0);
        let drift = i64::try_from(rng.below(161)).unwrap_or(0) - 80;
        Self { offset, drift }
    }

    /// What it shows.
    pub(crate) fn shows(self, now: u64) -> u64 {
        let now = i64::try_from(now).unwrap_or(i64::MAX / 2);
        u64::try_from(self.offset + now + now * self.drift / 1_000_000).unwrap_or(0)
    }

    /// When it will show that, at the earliest; now, if it does already.
    pub(crate) fn when(self, now: u64, shown: u64) -> u64 {
        let ahead = shown.saturating_sub(self.shows(now));
        if ahead == 0 {
            return now;
        }
        let ahead = i64::try_from(ahead).unwrap_or(i64::MAX / 4_000_000);
        let mut at = now + u64::try_from(ahead - ahead * self.drift / 1_000_000).unwrap_or(0);
        while self.shows(at) < shown {
            at += 1;
        }
        at
    }

    /// It stood still for so long.
    fn stood_still(&mut self, length: u64) {
        let length = i64::try_from(length).unwrap_or(0);
        // A little less: rounding must never turn it back.
        self.offset -= (length + length * self.drift / 1_000_000 - 4).max(0);
    }
}

/// Something for the turn loop.
#[derive(Debug)]
pub(crate) enum In {
    Datagram { from: u8, bytes: Bytes },
    Tcp(Bytes),
    Heard(Heard),
    Network(failover::NetworkFact),
    Command(Box<Command>),
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) node: Node,
    pub(crate) pulse: Pulse,
    pub(crate) store: Store,
    pub(crate) inbox: VecDeque<In>,
    /// True times of the next turn and the next beat; later events for them are void.
    pub(crate) turn_at: u64,
    pub(crate) pulse_at: u64,
    epoch: u64,
    /// When the loop last ended a turn, by its own clock.
    pub(crate) turned: u64,
    pub(crate) turns: u64,
    /// The same at the last count.
    pub(crate) turns_told: u64,
    /// Applications with sessions.
    pub(crate) talks: Talks,
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Host {
    /// Its number among the machines, and in its address.
    pub(crate) id: u8,
    /// The number its daemon goes by: another's, when it is a second daemon by mistake.
    pub(crate) node: u8,
    pub(crate) clock: Clock,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) incarnation: u32,
    pub(crate) paused_until: u64,
    /// The pause stops the clock, too; for so long.
    pub(crate) frozen: u64,
    pub(crate) carrier: bool,
    /// Peers whose key it has wrong.
    pub(crate) wrong_keys: BTreeSet<u8>,
    /// It speaks another version.
    pub(crate) other_version: bool,
    /// It read its configuration again so many times.
    pub(crate) reloads: u32,
    pub(crate) turn_late: (u32, u64),
    pub(crate) beat_late: (u32, u64),
    /// The high half of the last epoch, on its own disk.
    stored: Option<u64>,
    /// Datagrams that wait in the socket: when they came, from whom.
    pub(crate) socket: VecDeque<(u64, u8, Bytes)>,
    /// Packets of applications: flow and first unit.
    pub(crate) tun: VecDeque<(usize, u64)>,
}

/// The core's surroundings during a turn.
#[derive(Debug)]
pub(crate) struct Hands<'a> {
    pub(crate) rng: &'a mut Rng,
    pub(crate) outputs: &'a mut Vec<failover::Output>,
}

impl World for Hands<'_> {
    fn random(&mut self, buffer: &mut [u8]) {
        self.rng.fill(buffer);
    }

    fn put(&mut self, output: failover::Output) {
        self.outputs.push(output);
    }
}

/// A host as a node id.
pub(crate) fn node_id(host: u8) -> NodeId {
    NodeId::new(host).expect("hosts are numbered 1 to 64")
}

/// Where a host's network plane listens.
pub(crate) fn endpoint(host: u8) -> std::net::SocketAddr {
    ([192, 0, 2, host], 7440).into()
}

fn private_key(host: u8) -> [u8; 32] {
    [host ^ 0x55; 32]
}

/// Public keys of hosts 1 to `hosts`; worth computing once.
pub(crate) fn public_keys(hosts: u8) -> Vec<[u8; 32]> {
    let public = |host| {
        let mut dh = snow::resolvers::DefaultResolver
            .resolve_dh(&DHChoice::Curve25519)
            .expect("the resolver knows Curve25519");
        dh.set(&private_key(host));
        dh.pubkey().try_into().expect("a public key has 32 bytes")
    };
    (1..=hosts).map(public).collect()
}

impl Host {
    pub(crate) fn new(id: u8, rng: &mut Rng) -> Self {
        Self {
            id,
            node: id,
            clock: Clock::random(rng),
            daemon: None,
            incarnation: 0,
            paused_until: 0,
            frozen: 0,
            carrier: true,
            wrong_keys: BTreeSet::new(),
            other_version: false,
            reloads: 0,
            turn_late: (0, 0),
            beat_late: (0, 0),
            stored: None,
            socket: VecDeque::new(),
            tun: VecDeque::new(),
        }
    }

    pub(crate) fn lose_state(&mut self) {
        self.stored = None;
    }

    /// Its configuration, as it is now.
    fn options(&self, epoch: u64, keys: &[[u8; 32]], rekey: u64) -> Options {
        let volume = VolumeId(0);
        let peers = (1..).zip(keys).filter(|(host, _)| *host != self.node);
        let peers = peers.map(|(host, key)| {
            let mut public_key = *key;
            if self.wrong_keys.contains(&host) {
                public_key[3] ^= 0x40;
            }
            PeerOptions {
                id: node_id(host),
                name: format!("host{host}"),
                public_key,
                endpoints: vec![endpoint(host)],
                addresses: vec![workload::address(host)],
                send_volume: Some(volume),
                receive_volume: Some(volume),
            }
        });
        let base = Timing::default();
        let hold = base.hold * (1 + self.reloads % 2);
        Options {
            id: node_id(self.node),
            name: format!("host{}", self.node),
            group: b"simulated".to_vec(),
            private_key: Zeroizing::new(private_key(self.node)),
            epoch,
            addresses: vec![workload::address(self.node)],
            peers: peers.collect(),
            timing: Timing { hold, rekey_after: Duration::from_secs(rekey), ..base },
            sessions: SessionLimits::default(),
            classes: ClassRules::default(),
            plaintext: false,
        }
    }

    /// The order to read the configuration again.
    pub(crate) fn configuration(&self, keys: &[[u8; 32]], rekey: u64) -> Option<In> {
        let epoch = self.daemon.as_ref()?.epoch;
        let options = self.options(epoch, keys, rekey);
        Some(In::Command(Box::new(Command::Configure(Box::new(options)))))
    }

    /// The process goes on; its clock stood still if the whole machine did.
    pub(crate) fn thaw(&mut self) {
        let length = std::mem::take(&mut self.frozen);
        if length > 0 {
            self.clock.stood_still(length);
        }
    }

    /// Starts a daemon; the turn loop, the beat thread and the machines are due at once.
    pub(crate) fn start(
        &mut self,
        now: u64,
        keys: &[[u8; 32]],
        rekey: u64,
        disk: &Disk,
        rng: &mut Rng,
    ) {
        // As the daemon chooses it: seconds since 1970, or one more than the last.
        let seconds = 1_700_000_000 + now / 1_000_000;
        let high = self.stored.map_or(0, |s| s + 1).max(seconds);
        self.stored = Some(high);
        let epoch = high << 32 | (rng.draw() >> 32);
        let options = self.options(epoch, keys, rekey);
        let interval = failover::micros(Timing::default().storage_beat_active);
        let nonce = rng.draw();
        // Wall clocks are for people: any will do.
        let wall = rng.spread(1, 2_000_000_000_000_000);
        let store = Store::new(self.node, disk.superblock(), epoch, nonce, interval, wall)
            .expect("the disk was formatted for this host");
        let shown = self.clock.shows(now);
        let mut outputs = Vec::new();
        let node = Node::new(options, &mut Hands { rng, outputs: &mut outputs });
        let mut pulse = Pulse::new(node_id(self.node));
        for output in outputs {
            if let failover::Output::Beat(order) = output {
                pulse.order(Time(shown), order);
            }
        }
        self.incarnation += 1;
        self.daemon = Some(Daemon {
            node,
            pulse,
            store,
            inbox: VecDeque::new(),
            turn_at: u64::MAX,
            pulse_at: u64::MAX,
            epoch,
            turned: shown,
            turns: 0,
            turns_told: 0,
            talks: Talks::default(),
        });
    }

    /// A write of the daemon is under way.
    pub(crate) fn is_writing(&self) -> bool {
        let seats = self.daemon.iter().flat_map(|d| &d.store.seats);
        seats.filter_map(|s| s.pending.as_ref()).any(crate::disk::Pending::is_write)
    }

    /// The age of the turn loop, as a beat tells it.
    pub(crate) fn loop_age(&self, shown: u64) -> Duration {
        let turned = self.daemon.as_ref().map_or(shown, |d| d.turned);
        Duration::from_micros(shown.saturating_sub(turned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_never_early() {
        let mut rng = Rng::new(3);
        for _ in 0..200 {
            let clock = Clock::random(&mut rng);
            let now = rng.below(1 << 32);
            let shown = clock.shows(now) + rng.below(10_000_000);
            let at = clock.when(now, shown);
            assert!(clock.shows(at) >= shown && (at == now || clock.shows(at - 2) < shown));
        }
    }
}
