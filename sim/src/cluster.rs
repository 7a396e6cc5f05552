//! What is done to the cluster, and what an all-knowing observer makes of it.

use std::time::Duration;

use failover::Command;

use crate::{
    disk::View,
    fault::Fault,
    host::{In, node_id},
    net::Wire,
    plan::Action,
    world::{Ev, World},
};

impl World {
    /// Does one thing of the plan.
    pub(crate) fn act(&mut self, action: &Action) {
        let now = self.now;
        self.trace.tell(now, 0, "then", format!("{action:?}"));
        match *action {
            Action::Wire { from, to, wire } => self.net.change(from, to, |w| *w = wire),
            Action::Cut { from, to, cut } => self.net.change(from, to, |w| w.cut = cut),
            Action::CutAll(cut) => self.every_wire(|w| w.cut = cut),
            Action::Carrier { host, up } => self.carrier(host, up),
            Action::View { host, view } => self.disk.change(now, host, |v| {
                let stalled_until = v.stalled_until;
                *v = View { stalled_until, ..view };
            }),
            Action::Stall { host, length } => {
                for h in 1..=self.machines() {
                    if host == 0 || host == h {
                        self.disk.change(now, h, |v| v.stalled_until = now + length);
                    }
                }
            }
            Action::Crash { host, lose_state, reboot } => {
                if self.host(host).daemon.is_some() {
                    self.fired.count(Fault::Crash);
                    if lose_state {
                        self.fired.count(Fault::LostState);
                        self.host(host).lose_state();
                    }
                    if reboot {
                        self.fired.count(Fault::Reboot);
                        let clock = crate::host::Clock::random(&mut self.rng);
                        self.host(host).clock = clock;
                    }
                    self.crash(host);
                }
            }
            Action::Start { host } => self.start(host),
            Action::Pause { host, length } => {
                let until = now + length;
                if self.host(host).daemon.is_some() && self.host(host).paused_until < until {
                    self.fired.count(Fault::Pause);
                    self.host(host).paused_until = until;
                    self.truth.restart(now, host);
                    self.push(until, Ev::Resume { host });
                }
            }
            Action::Late { host, turn, beat } => {
                let host = self.host(host);
                (host.turn_late, host.beat_late) = (turn, beat);
            }
            Action::Freeze { host, length } => {
                if self.host(host).daemon.is_some() && self.host(host).paused_until <= now {
                    self.fired.count(Fault::FrozenClock);
                    self.host(host).frozen = length;
                    self.host(host).paused_until = now + length;
                    self.truth.restart(now, host);
                    self.push(now + length, Ev::Resume { host });
                }
            }
            Action::Twin { host, runs } => self.twin(host, runs),
            Action::Snapshot => self.disk.snapshot(),
            Action::RollBack => {
                if !self.disk.is_alien() && self.disk.roll_back() {
                    self.fired.count(Fault::RolledBack);
                    // Whoever lost its place in the table may not write until that is sure.
                    for host in 1..=self.plan.hosts {
                        self.truth.restart(now, host);
                    }
                }
            }
            Action::Overwrite { reinit } => {
                if !self.disk.is_alien() {
                    self.fired.count(if reinit { Fault::Reinit } else { Fault::ForeignData });
                    self.disk.overwrite(now, reinit, &mut self.rng);
                }
            }
            Action::Restore => {
                if self.disk.is_alien() {
                    self.disk.roll_back();
                }
            }
            Action::Mirror(settings) => self.disk.set_mirror(settings),
            Action::Split { length } => self.disk.split(now + length),
            Action::Stranger { every } => self.stranger_comes(every),
            Action::Key { host, peer, wrong } => self.key(host, peer, wrong),
            Action::Version { host, other } => self.host(host).other_version = other,
            Action::Reload { host } => {
                self.host(host).reloads += 1;
                self.configure(host);
                self.fired.count(Fault::Reload);
            }
            Action::Drill { host, peer, cut, length, force } => {
                let order = Command::Drill {
                    peer: node_id(peer),
                    cut,
                    length: Duration::from_micros(length),
                    force,
                };
                self.drills.push((host, peer, now + length + 100_000));
                self.put(host, In::Command(Box::new(order)));
            }
            Action::Traffic(on) => self.traffic = on,
            Action::Heal => self.heal(),
        }
        self.refresh();
    }

    fn every_wire(&mut self, change: impl Fn(&mut Wire)) {
        for from in 1..=self.machines() {
            for to in 1..=self.machines() {
                self.net.change(from, to, &change);
            }
        }
    }

    fn carrier(&mut self, host: u8, up: bool) {
        self.host(host).carrier = up;
        for peer in 1..=self.machines() {
            self.net.change(host, peer, |w| w.cut = !up);
            self.net.change(peer, host, |w| w.cut = !up);
        }
        let at = self.now + self.rng.range(200, 3_000);
        self.push(at, Ev::Link { host, up });
    }

    /// A second daemon with the key and number of that host starts or stops.
    fn twin(&mut self, host: u8, runs: bool) {
        let twin = self.plan.hosts + 1;
        if twin > self.machines() || runs == self.host(twin).daemon.is_some() {
            return;
        }
        if runs {
            self.host(twin).node = host;
            self.fired.count(Fault::TwoDaemons);
            self.check.reincarnated(host);
            self.start(twin);
        } else {
            self.crash(twin);
        }
    }

    fn configure(&mut self, host: u8) {
        let order = self.hosts[usize::from(host) - 1].configuration(&self.keys, self.plan.rekey);
        if let Some(order) = order {
            self.put(host, order);
        }
    }

    /// A host gets a wrong key of a peer, or the right one again.
    pub(crate) fn key(&mut self, host: u8, peer: u8, wrong: bool) {
        let now = self.now;
        let machine = self.host(host);
        if machine.paused_until > now {
            let at = machine.paused_until + 1_000;
            return self.push(at, Ev::Key { host, peer, wrong });
        }
        let keys = &mut machine.wrong_keys;
        let changed = if wrong { keys.insert(peer) } else { keys.remove(&peer) };
        if !changed || self.host(host).daemon.is_none() {
            return;
        }
        if wrong {
            self.fired.count(Fault::WrongKey);
        }
        // What waits for the loop belongs to the old books, what follows to the new.
        self.turn_now(host);
        self.configure(host);
        self.check.forgotten(host, peer);
        self.talking.restarted(now, host);
        self.talking.restarted(now, peer);
        self.turn_now(host);
        self.truth.restart(now, host);
        self.agreed.remove(&(host, peer));
    }

    fn heal(&mut self) {
        let (wire, view) = self.plan.healthy();
        let now = self.now;
        self.every_wire(|w| *w = wire);
        self.stranger_comes(0);
        if self.disk.is_alien() {
            self.disk.roll_back();
        }
        if let Some(mirror) = self.plan.mirror {
            self.disk.set_mirror(mirror);
            self.disk.split(now);
        }
        for host in 1..=self.machines() {
            self.disk.change(now, host, |v| *v = view);
            if !self.host(host).carrier {
                self.carrier(host, true);
            }
            let machine = self.host(host);
            (machine.turn_late, machine.beat_late) = ((0, 0), (0, 0));
            machine.other_version = false;
            if machine.node != host {
                // Whoever finds a second daemon stops it and starts the right one again.
                let node = machine.node;
                self.crash(host);
                self.host(host).node = host;
                self.crash(node);
            }
        }
        for host in 1..=self.plan.hosts {
            for peer in self.host(host).wrong_keys.clone() {
                self.key(host, peer, false);
            }
            for (_, peer, _) in self.drills.clone().into_iter().filter(|d| d.0 == host) {
                let order = Command::Drill {
                    peer: node_id(peer),
                    cut: failover::Cut::Both,
                    length: Duration::ZERO,
                    force: false,
                };
                self.put(host, In::Command(Box::new(order)));
            }
            self.start(host);
            self.unstick(host);
        }
        self.drills.clear();
    }

    /// Tells the truth how things are now.
    pub(crate) fn refresh(&mut self) {
        let now = self.now;
        let hosts = 1..=self.plan.hosts;
        let well = |h: u8| {
            let host = &self.hosts[usize::from(h) - 1];
            let twin = self.hosts.iter().any(|t| t.id != h && t.node == h && t.daemon.is_some());
            host.daemon.is_some() && host.paused_until <= now && !host.other_version && !twin
        };
        let knows = |h: u8, peer: u8| !self.hosts[usize::from(h) - 1].wrong_keys.contains(&peer);
        let stores = |h: u8| {
            let daemon = self.hosts[usize::from(h) - 1].daemon.as_ref();
            self.disk.view(h).works(now) && daemon.is_some_and(|d| d.store.fenced.is_none())
        };
        let volume = !self.disk.is_alien()
            && !self.disk.is_split(now)
            && self.disk.mirror().is_none_or(|m| m.works());
        for from in hosts.clone() {
            for to in hosts.clone().filter(|to| *to != from) {
                let (there, back) = (self.net.wire(from, to), self.net.wire(to, from));
                let drilled = self.drills.iter().any(|(a, b, until)| {
                    now < *until && ((*a, *b) == (from, to) || (*a, *b) == (to, from))
                });
                let both = well(from) && well(to) && knows(from, to) && knows(to, from) && !drilled;
                let network = both && there.works() && back.works();
                let storage = both && volume && stores(from) && stores(to);
                self.truth.set(now, (from, to), network, storage);
                if !both
                    || there.is_disorderly()
                    || back.is_disorderly()
                    || there.hole_over.is_some()
                {
                    self.truth.disorder(now + crate::truth::SETTLED, (from, to));
                }
            }
        }
    }
}
