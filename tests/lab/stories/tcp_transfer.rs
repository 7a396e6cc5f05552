//! One TCP connection across a cut and a heal: every byte equal, the connection never reset.

use std::thread::sleep;
use std::time::Duration;

use crate::transfer::Transfer;
use crate::{Lab, Needs, Plan, Story};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, needs, tell| Story {
        name,
        needs,
        tools: &[],
        guard: Duration::from_secs(300),
        tell,
    };
    vec![
        story("cut_at_a_third_healed_at_two", Needs::Anyone, cut_at_a_third_healed_at_two),
        story("kept_open_across_failback", Needs::Root, kept_open_across_failback),
    ]
}

const MIB: u64 = 1 << 20;

/// As fast as it goes: the cut falls into a full pipe.
fn cut_at_a_third_healed_at_two() {
    let total = if crate::long() { 256 * MIB } else { 64 * MIB };
    let lab = Lab::running(Plan::default());
    let mut transfer = Transfer::start(&lab, 1, 2, total, 0);
    transfer.await_bytes(total / 3, Duration::from_secs(60));
    lab.black_hole();
    let at_cut = transfer.poll();
    transfer.await_bytes(total * 2 / 3, Duration::from_secs(120));
    let status = lab.node(1).status();
    lab.black_hole_heal();
    let at_heal = transfer.poll();
    let took = transfer.assert_whole(Duration::from_secs(120));
    println!(
        "  {} MiB in {:.1} s, cut at {} MiB, healed at {} MiB, equal to the last byte",
        total / MIB,
        took.as_secs_f64(),
        at_cut / MIB,
        at_heal / MIB
    );
    assert!(at_cut < total * 2 / 3, "the cut came too late to mean anything: {at_cut}");
    assert_eq!(status.route(2), "storage", "{}", status.brief());
    lab.await_network(Duration::from_secs(30));
    lab.await_settled(Duration::from_secs(10));
}

/// At a steady pace, so that the same connection lives through the cut, the heal and the way back.
fn kept_open_across_failback() {
    const PACE: u64 = 8 * MIB;
    let lab = Lab::running(Plan::default());
    let mut transfer = Transfer::start(&lab, 1, 2, 12 * PACE, PACE);
    transfer.await_bytes(PACE, Duration::from_secs(10));
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    transfer.await_bytes(3 * PACE, Duration::from_secs(20));
    lab.black_hole_heal();
    lab.await_network(Duration::from_secs(20));
    let back = transfer.poll();
    assert!(back < 12 * PACE, "the transfer ended before the way back");
    sleep(Duration::from_secs(1));
    transfer.assert_whole(Duration::from_secs(60));
    lab.await_settled(Duration::from_secs(10));
}
