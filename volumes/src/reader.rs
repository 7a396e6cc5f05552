//! The three threads and what passes between their machines.
//!
//! ```text
//!   sp-flusher: Writer   sp-reader: Reader   sp-keeper: Keeper   sp-watch: stuck operations
//!        ^  heads              ^ table, cursors     |
//!        +---------------------+--------------------+
//! ```

use crate::event::{FenceReason, Reason};
use crate::flusher::{Seat, drive};
use crate::format::table::Head;
use crate::keeper::Keeper;
use crate::runtime::Shared;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn flusher(shared: &Arc<Shared>) {
    loop {
        let ended = drive(shared, &shared.writer, &shared.pulses[0], false, |_, _| {}, |_, _| {});
        if !claims_anew(shared, ended.as_ref()) {
            return;
        }
    }
}

/// A roll-back takes the place in the table away, but nobody else has it: what a restart of the
/// daemon would do is done at once.
fn claims_anew(shared: &Arc<Shared>, ended: Option<&Reason>) -> bool {
    let rolled_back = matches!(ended, Some(Reason::Fenced(FenceReason::RolledBack { .. })));
    rolled_back && !shared.stopping() && shared.claim_anew()
}

pub(crate) fn reader(shared: &Arc<Shared>) {
    // Naps of 50 us are pointless with the default timer slack of 50 us.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
    drive(shared, &shared.reader, &shared.pulses[1], false, |_, _| {}, |_, _| {});
}

pub(crate) fn keeper(shared: &Arc<Shared>) {
    if !shared.ready() && !shared.wait_for_medium() {
        return;
    }
    loop {
        let ended = drive(shared, &shared.keeper, &shared.pulses[2], true, gather, spread);
        if claims_anew(shared, ended.as_ref()) {
            continue;
        }
        if let Some(Reason::Goodbye) = ended {
            shared.keeper_done();
        }
        return shared.wake_all();
    }
}

/// What the next entry will say.
fn gather(shared: &Shared, seat: &Seat<Keeper>) {
    let heads: Vec<_> = shared.writer.lock().iter().flat_map(|w| w.heads()).collect();
    let cursors: Vec<_> = shared.reader.lock().iter().flat_map(|r| r.cursors()).collect();
    if let Some(keeper) = seat.lock().as_mut() {
        for (to, heads, letters) in heads {
            let heads = if shared.sends() { heads } else { [Head::NONE; 2] };
            keeper.set_heads(to, heads, letters);
        }
        cursors.into_iter().for_each(|(from, e, c)| keeper.set_cursors(from, e, c));
    }
}

/// What the table just read means to the other two.
fn spread(shared: &Shared, seat: &Seat<Keeper>) {
    let table = seat.lock().as_mut().and_then(Keeper::take_table);
    if let Some(table) = table {
        let now = (shared.clock)();
        shared.reader.wake(|r| r.table_update(now, &table));
    }
}

/// Notices operations that never come back, also when every other thread is stuck.
pub(crate) fn watch(shared: &Arc<Shared>) {
    let nap = (shared.io_deadline / 4).clamp(5_000, 250_000);
    while !shared.stopping() {
        let now = (shared.clock)();
        for pulse in &shared.pulses {
            pulse.tell_when_stuck(now, shared.io_deadline, |fact| shared.report(&mut vec![fact]));
        }
        shared.nap(Duration::from_micros(nap));
    }
}
