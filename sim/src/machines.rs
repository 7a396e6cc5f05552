//! The three volume machines of a host: woken, asked, and told how their operations ended.

use crate::{
    store::{Role, Want},
    world::{Ev, World},
};

/// How often operations that do not return are looked for.
pub(crate) const WATCH_EVERY: u64 = 250_000;

impl World {
    /// Operations that stuck come back within a millisecond.
    pub(crate) fn unstick(&mut self, host: u8) {
        let soon = self.now + 1_000;
        let machine = self.host(host);
        let (incarnation, paused_until) = (machine.incarnation, machine.paused_until);
        for role in Role::ALL {
            let Some(daemon) = &mut self.host(host).daemon else { return };
            let seat = &mut daemon.store.seats[role as usize];
            if let Some(pending) = &mut seat.pending
                && seat.due > soon
                && paused_until <= soon
            {
                pending.done_at = pending.done_at.min(soon);
                self.set_due(host, incarnation, role, soon);
            }
        }
    }

    pub(crate) fn wake_machines(&mut self, host: u8) {
        let machine = self.host(host);
        let incarnation = machine.incarnation;
        let Some(daemon) = &mut machine.daemon else { return };
        let woken = std::mem::take(&mut daemon.store.woken);
        for role in Role::ALL.into_iter().filter(|r| woken[*r as usize]) {
            let at = self.now + self.rng.range(3, 30);
            let Some(daemon) = &mut self.host(host).daemon else { return };
            let seat = &mut daemon.store.seats[role as usize];
            if seat.pending.is_none()
                && seat.ended.is_none()
                && !seat.stopped
                && (seat.due > at || seat.due <= self.now)
            {
                self.set_due(host, incarnation, role, at);
            }
        }
    }

    pub(crate) fn set_due(&mut self, host: u8, incarnation: u32, role: Role, at: u64) {
        if let Some(daemon) = &mut self.host(host).daemon {
            daemon.store.seats[role as usize].due = at;
            self.push(at, Ev::Seat { host, incarnation, role });
        }
    }

    pub(crate) fn seat_due(&mut self, host: u8, incarnation: u32, role: Role) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        if machine.incarnation != incarnation {
            return;
        }
        let shown = machine.clock.shows(now);
        let paused_until = machine.paused_until;
        let Some(daemon) = &mut machine.daemon else { return };
        let seat = &mut daemon.store.seats[role as usize];
        if seat.due != now {
            return;
        }
        if let Some(pending) = seat.pending.take() {
            let ends_at = self.disk.ends_at(&pending, &mut self.fired);
            if ends_at > now {
                seat.pending = Some(pending);
                return self.set_due(host, incarnation, role, ends_at);
            }
            let result = self.disk.end(now, pending, &mut self.rng, &mut self.fired);
            if paused_until > now {
                // The medium does its part while the process sleeps, which learns of it later.
                seat.ended = Some(result);
                return self.set_due(host, incarnation, role, paused_until);
            }
            daemon.store.complete(role, shown, result);
        } else if let Some(result) = seat.ended.take_if(|_| paused_until <= now) {
            daemon.store.complete(role, shown, result);
        } else if paused_until > now {
            return self.set_due(host, incarnation, role, paused_until);
        }
        self.look_at(host, role);
    }

    /// Asks a machine what it wants, and begins it.
    pub(crate) fn look_at(&mut self, host: u8, role: Role) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        let (clock, incarnation) = (machine.clock, machine.incarnation);
        let shown = clock.shows(now);
        let Some(daemon) = &mut machine.daemon else { return };
        // A descriptor that must be opened anew may fail an operation at once; not for ever.
        for _ in 0..8 {
            match daemon.store.look(role, shown) {
                Want::Do(op) => {
                    let gone = self.disk.view(host).gone;
                    if let Err(fault) = daemon.store.reopen(role, &op, gone) {
                        daemon.store.complete(role, shown, Err(fault));
                        continue;
                    }
                    let (rng, fired) = (&mut self.rng, &mut self.fired);
                    let pending = self.disk.begin(now, host, op, rng, fired);
                    let at = pending.done_at;
                    daemon.store.seats[role as usize].pending = Some(pending);
                    self.set_due(host, incarnation, role, at);
                }
                Want::At(at) => {
                    let at = clock.when(now, at).max(now + 1);
                    self.set_due(host, incarnation, role, at);
                }
                Want::Nothing => {}
            }
            break;
        }
        self.after_machines(host);
    }

    pub(crate) fn after_machines(&mut self, host: u8) {
        let now = self.now;
        let Some(daemon) = &mut self.host(host).daemon else { return };
        let news = !daemon.store.out.is_empty();
        for did in std::mem::take(&mut daemon.store.did) {
            let machine = &self.hosts[usize::from(host) - 1];
            let by = (host, machine.incarnation);
            if let Err((invariant, detail)) =
                self.records.did(by, machine.node, &did, self.may_miss)
            {
                self.check.fail(now, invariant, detail);
            }
        }
        let Some(daemon) = &mut self.host(host).daemon else { return };
        if news && daemon.turn_at > now + 5 {
            self.wake_soon(host);
        }
        self.wake_machines(host);
    }

    pub(crate) fn watch_due(&mut self, host: u8, incarnation: u32) {
        let now = self.now;
        let machine = self.host(host);
        if machine.incarnation != incarnation {
            return;
        }
        let shown = machine.clock.shows(now);
        if machine.paused_until <= now
            && let Some(daemon) = &mut machine.daemon
        {
            daemon.store.watch(shown);
            self.after_machines(host);
        }
        self.push(now + WATCH_EVERY, Ev::Watch { host, incarnation });
    }
}
