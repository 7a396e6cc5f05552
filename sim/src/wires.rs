//! Datagrams, streams and beats between hosts.

use bytes::Bytes;
use failover::{
    NetworkFact, Time,
    wire::{FIRST_BYTE_BEAT, VERSION},
};

use crate::{
    fault::Fault,
    host::{In, SOCKET_MAX, node_id},
    net::{Pipe, Retry, Tcp},
    world::{Ev, World},
};

impl World {
    pub(crate) fn send(&mut self, host: u8, to: std::net::SocketAddr, frame: Bytes) {
        let std::net::IpAddr::V4(address) = to.ip() else { return };
        let to = address.octets()[3];
        let now = self.now;
        if to == 0 || to > self.machines() {
            return;
        }
        let frame = self.spoken(host, frame);
        self.record(host, to, &frame);
        self.trace.note(now, host, "sends", (u64::from(to), frame.len() as u64));
        if !self.hosts[usize::from(host) - 1].carrier {
            self.fired.count(Fault::CarrierLost);
            if self.rng.chance(50_000) {
                let peer = node_id(self.host(to).node);
                let detail = "Network is down".to_owned();
                self.put(host, In::Network(NetworkFact::SendError { peer, detail }));
            }
            return;
        }
        let mut arrivals = Vec::new();
        let put = |at, bytes| arrivals.push((at, bytes));
        self.net.send(now, (host, to), frame, &mut self.rng, &mut self.fired, put);
        for (at, bytes) in arrivals {
            self.push(at, Ev::Datagram { from: host, to, bytes, stamp: at });
        }
    }

    pub(crate) fn arrives(&mut self, from: u8, to: u8, bytes: Bytes, stamp: u64) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(to) - 1];
        let Some(daemon) = &mut machine.daemon else { return };
        if machine.paused_until > now {
            if machine.socket.len() < SOCKET_MAX {
                machine.socket.push_back((stamp, from, bytes));
            }
            return;
        }
        if bytes.first() != Some(&FIRST_BYTE_BEAT) {
            return self.put(to, In::Datagram { from, bytes });
        }
        let (chance, most) = machine.beat_late;
        if stamp == now && chance > 0 && self.rng.chance(chance) {
            self.fired.count(Fault::LateBeat);
            let at = now + 1 + self.rng.below(most + 1);
            return self.push(at, Ev::Datagram { from, to, bytes, stamp });
        }
        let at = Time(machine.clock.shows(stamp));
        if let Some(heard) = daemon.pulse.open(at, &bytes) {
            self.put(to, In::Heard(heard));
        }
    }

    /// A frame in the version the host speaks.
    pub(crate) fn spoken(&mut self, host: u8, frame: Bytes) -> Bytes {
        if let Err(why) = self.nonces.used(&frame) {
            self.check.fail(self.now, "I11 nonces", why);
        }
        if !self.host(host).other_version || frame.is_empty() {
            return frame;
        }
        self.fired.count(Fault::OtherVersion);
        let mut other = frame.to_vec();
        other[0] = (VERSION + 1) << 4 | other[0] & 0x0f;
        other.into()
    }

    pub(crate) fn tcp(&mut self, from: u8, to: u8, pipe: Pipe, frame: &Bytes) {
        let now = self.now;
        self.record(from, to, frame);
        match self.net.stream(now, (from, to, pipe), frame, &mut self.rng, &mut self.fired) {
            Tcp::Arrives(at) => self.tcp_flows(at, (from, to, pipe), frame.clone()),
            Tcp::Waits(0) => {}
            Tcp::Waits(at) => self.push(at, Ev::TcpRetry { from, to, pipe }),
            Tcp::Refused => self.tcp_broke(from, to, pipe),
        }
    }

    fn tcp_flows(&mut self, at: u64, (from, to, pipe): (u8, u8, Pipe), bytes: Bytes) {
        let incarnations = (self.host(from).incarnation, self.host(to).incarnation);
        self.push(at, Ev::TcpFrame { from, to, pipe, incarnations, bytes });
    }

    fn tcp_broke(&mut self, from: u8, to: u8, pipe: Pipe) {
        let peer = node_id(self.host(to).node);
        let fact = match pipe {
            Pipe::Frames => NetworkFact::TcpRefused { peer },
            Pipe::Sessions => NetworkFact::PipeBroke { peer },
        };
        self.put(from, In::Network(fact));
        if pipe == Pipe::Sessions {
            let bytes = self.net.room(from, to, 0);
            self.put(from, In::Network(NetworkFact::PipeTakes { peer, bytes }));
        }
    }

    pub(crate) fn tcp_arrives(
        &mut self,
        (from, to, pipe): (u8, u8, Pipe),
        incarnations: (u32, u32),
        bytes: Bytes,
    ) {
        if pipe == Pipe::Sessions && self.host(from).incarnation == incarnations.0 {
            let room = self.net.room(from, to, bytes.len());
            let peer = node_id(self.host(to).node);
            self.put(from, In::Network(NetworkFact::PipeTakes { peer, bytes: room }));
        }
        if self.host(to).incarnation == incarnations.1 {
            self.put(to, In::Tcp(bytes));
        }
    }

    pub(crate) fn tcp_retry(&mut self, from: u8, to: u8, pipe: Pipe) {
        match self.net.retry(self.now, (from, to, pipe), &mut self.rng, &mut self.fired) {
            Retry::Flows(frames) => {
                for (at, bytes) in frames {
                    self.tcp_flows(at, (from, to, pipe), bytes);
                }
            }
            Retry::Later(at) => self.push(at, Ev::TcpRetry { from, to, pipe }),
            Retry::Broke => self.tcp_broke(from, to, pipe),
        }
    }

    pub(crate) fn beat_soon(&mut self, host: u8) {
        let now = self.now;
        let machine = self.host(host);
        let (clock, incarnation) = (machine.clock, machine.incarnation);
        let Some(daemon) = &mut machine.daemon else { return };
        let next = daemon.pulse.next();
        if next == Time::NEVER {
            return;
        }
        let at = clock.when(now, next.micros()).max(now + 1);
        // A sleeping thread is awake some microseconds after its time.
        if at + 60 < daemon.pulse_at {
            let (chance, most) = machine.beat_late;
            let mut at = at + self.rng.below(60);
            if chance > 0 && self.rng.chance(chance) {
                self.fired.count(Fault::LateBeat);
                at += self.rng.below(most + 1);
            }
            if let Some(daemon) = &mut self.host(host).daemon {
                daemon.pulse_at = at;
            }
            self.push(at, Ev::Pulse { host, incarnation });
        }
    }

    pub(crate) fn pulse_due(&mut self, host: u8, incarnation: u32) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        if machine.incarnation != incarnation {
            return;
        }
        let shown = machine.clock.shows(now);
        let age = machine.loop_age(shown);
        let Some(daemon) = machine.daemon.as_mut().filter(|d| d.pulse_at == now) else { return };
        if machine.paused_until > now {
            daemon.pulse_at = machine.paused_until;
            let at = machine.paused_until;
            return self.push(at, Ev::Pulse { host, incarnation });
        }
        daemon.pulse_at = u64::MAX;
        let mut beats = Vec::new();
        daemon.pulse.send(Time(shown), age, &mut |_, to, frame| beats.push((to, frame)));
        for (to, frame) in beats {
            self.send(host, to, frame);
        }
        self.beat_soon(host);
    }
}
