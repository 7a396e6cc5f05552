//! What is done to the cluster, and what an all-knowing observer makes of it.

use crate::{
    disk::View,
    fault::Fault,
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
            Action::View { host, view } => self.disk.change(host, |v| {
                let stalled_until = v.stalled_until;
                *v = View { stalled_until, ..view };
            }),
            Action::Stall { host, length } => {
                for h in 1..=self.plan.hosts {
                    if host == 0 || host == h {
                        self.disk.change(h, |v| v.stalled_until = now + length);
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
            Action::Traffic(on) => self.traffic = on,
            Action::Heal => self.heal(),
        }
        self.refresh();
    }

    fn every_wire(&mut self, change: impl Fn(&mut Wire)) {
        for from in 1..=self.plan.hosts {
            for to in 1..=self.plan.hosts {
                self.net.change(from, to, &change);
            }
        }
    }

    fn carrier(&mut self, host: u8, up: bool) {
        self.host(host).carrier = up;
        for peer in 1..=self.plan.hosts {
            self.net.change(host, peer, |w| w.cut = !up);
            self.net.change(peer, host, |w| w.cut = !up);
        }
        let at = self.now + self.rng.range(200, 3_000);
        self.push(at, Ev::Link { host, up });
    }

    fn heal(&mut self) {
        let (wire, view) = self.plan.healthy();
        self.every_wire(|w| *w = wire);
        for host in 1..=self.plan.hosts {
            self.disk.change(host, |v| *v = view);
            if !self.host(host).carrier {
                self.carrier(host, true);
            }
            let machine = self.host(host);
            (machine.turn_late, machine.beat_late) = ((0, 0), (0, 0));
            self.start(host);
            self.unstick(host);
        }
    }

    /// Tells the truth how things are now.
    pub(crate) fn refresh(&mut self) {
        let now = self.now;
        let hosts = 1..=self.plan.hosts;
        let awake = |h: u8| {
            let host = &self.hosts[usize::from(h) - 1];
            host.daemon.is_some() && host.paused_until <= now
        };
        for from in hosts.clone() {
            for to in hosts.clone().filter(|to| *to != from) {
                let (there, back) = (self.net.wire(from, to), self.net.wire(to, from));
                let both = awake(from) && awake(to);
                let network = both && there.works() && back.works();
                let disks = [self.disk.view(from), self.disk.view(to)];
                let storage = both && disks.iter().all(|v| v.works(now));
                self.truth.set(now, (from, to), network, storage);
                if there.is_disorderly() || back.is_disorderly() || there.hole_over.is_some() {
                    self.truth.disorder(now + crate::truth::SETTLED, (from, to));
                }
            }
        }
    }
}
