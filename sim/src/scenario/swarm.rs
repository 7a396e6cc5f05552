//! A story drawn from the seed: a random subset of the fault kinds, each with a random strength, at
//! random times. A run in which everything breaks at once tests little (all packets die of age);
//! one in which three things break together finds what nobody thought of.
//!
//! Applications talk in spells: around everything that breaks, and now and then in between. Long
//! quiet is when a cluster looks most like itself, and costs the simulator least.

use failover::Cut;
use volumes::IoFaultKind;

use crate::{
    disk::{MirrorSettings, View},
    net::Wire,
    plan::{Action, Expect, Plan},
    rng::Rng,
    talks::Talk,
    workload::Flow,
};

/// The kinds of things a swarm may do.
const KINDS: usize = 27;

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    of_length(seed, 40)
}

/// The story of a seed with a safety phase of so many seconds: exactly, when it is long, and down
/// to three eighths of it when it is shorter than two minutes.
#[must_use]
pub fn of_length(seed: u64, seconds: u64) -> Plan {
    let mut rng = Rng::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let hosts = match rng.below(100) {
        0..=64 => 2,
        65..=87 => 3,
        88..=95 => 4,
        _ => 5,
    };
    let seconds = if seconds < 120 { rng.range(seconds * 3 / 8, seconds) } else { seconds };
    let length = seconds.max(10) * 1_000;
    let mirror = rng.chance(250_000).then(|| MirrorSettings {
        lag: rng.spread(200, 15_000),
        jitter: rng.spread(10, 15_000),
        reorder: 0,
    });
    let mut plan = Plan {
        name: "swarm",
        hosts,
        delay: rng.spread(50, 4_000),
        latency: rng.spread(60, 600),
        data_blocks: u32::try_from(rng.spread(64, 512)).unwrap_or(64),
        mirror,
        rekey: if rng.chance(400_000) { rng.spread(3, 200) } else { 3_600 },
        flows: flows(hosts, &mut rng),
        talks: talks(hosts, seed),
        steps: Vec::new(),
        heal_at: length * 1_000,
        expect: Expect::default(),
        canary: false,
    };
    let mut wanted = [false; KINDS];
    let kinds = if seconds > 120 { 6 } else { 4 };
    for _ in 0..rng.range(1, kinds) {
        wanted[rng.index(KINDS)] = true;
    }
    let mut views: Vec<View> = (0..hosts).map(|_| plan.healthy().1).collect();
    let mut spells = Vec::new();
    for kind in (0..KINDS).filter(|k| wanted[*k]) {
        for _ in 0..rng.range(1, 3) {
            // Leave the last seconds for what was begun.
            let from = rng.below(length - 1_000);
            let until = (from + rng.spread(20, 15_000)).min(length - 1);
            plan = step(plan, kind, (from, until), &mut views, &mut rng);
            spells
                .push((from.saturating_sub(rng.range(500, 3_000)), until + rng.range(500, 6_000)));
        }
    }
    talk(plan, length, spells, &mut rng)
}

/// Applications talk in these spells (milliseconds), at the very beginning, and at random.
fn talk(mut plan: Plan, length: u64, mut spells: Vec<(u64, u64)>, rng: &mut Rng) -> Plan {
    // Some never stop.
    spells.push((0, if rng.chance(30_000) { length } else { 3_000 }));
    for _ in 0..length / 60_000 {
        let from = rng.below(length);
        spells.push((from, from + rng.spread(500, 8_000)));
    }
    if length <= 60_000 && rng.chance(600_000) {
        spells.push((0, length));
    }
    spells.sort_unstable();
    let mut until = 0;
    let mut on = false;
    for (from, to) in spells {
        if on && from > until {
            plan = plan.at(until, Action::Traffic(false));
            on = false;
        }
        if !on {
            plan = plan.at(from, Action::Traffic(true));
            on = true;
        }
        until = until.max(to);
    }
    plan.at(until, Action::Traffic(false))
}

fn flows(hosts: u8, rng: &mut Rng) -> Vec<Flow> {
    let mut flows = Vec::new();
    for from in 1..=hosts {
        for to in (1..=hosts).filter(|to| *to != from) {
            for _ in 0..rng.range(1, if hosts > 3 { 1 } else { 3 }) {
                flows.push(Flow::random(from, to, rng));
            }
        }
    }
    flows
}

/// A fifth of the seeds have sessions, too; drawn apart, so that the others stay as they were.
fn talks(hosts: u8, seed: u64) -> Vec<Talk> {
    let mut rng = Rng::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x7a1c);
    let mut talks = Vec::new();
    if rng.chance(800_000) {
        return talks;
    }
    for from in 1..=hosts {
        for to in (1..=hosts).filter(|to| *to != from) {
            for _ in 0..rng.below(if hosts > 2 { 2 } else { 3 }) {
                talks.push(Talk::random(from, to, &mut rng));
            }
        }
    }
    talks
}

fn ppm(rng: &mut Rng, most: u64) -> u32 {
    u32::try_from(rng.spread(most / 100, most)).unwrap_or(0)
}

fn one(hosts: u8, rng: &mut Rng) -> u8 {
    u8::try_from(rng.range(1, u64::from(hosts))).unwrap_or(1)
}

/// Adds one fault of a kind from `from` to `until` (milliseconds).
fn step(
    plan: Plan,
    kind: usize,
    (from, until): (u64, u64),
    views: &mut [View],
    rng: &mut Rng,
) -> Plan {
    let host = one(plan.hosts, rng);
    let peer = (1..=plan.hosts).filter(|p| *p != host).nth(rng.index(usize::from(plan.hosts) - 1));
    let peer = peer.unwrap_or(1);
    let between = |plan: Plan, action: Action, undo: Action| plan.at(from, action).at(until, undo);
    match kind {
        0 => between(plan, Action::CutAll(true), Action::CutAll(false)),
        1 => {
            let cut = |cut| Action::Cut { from: host, to: peer, cut };
            between(plan, cut(true), cut(false))
        }
        2 => {
            let carrier = |up| Action::Carrier { host, up };
            between(plan, carrier(false), carrier(true))
        }
        3 => {
            let (mut plan, mut at) = (plan, from);
            // Some flap for a minute.
            let until = if rng.chance(300_000) { from + 60_000 } else { until };
            while at < until {
                plan = plan.at(at, Action::CutAll(true));
                at += rng.spread(20, 3_000);
                plan = plan.at(at, Action::CutAll(false));
                at += rng.spread(20, 5_000);
            }
            plan
        }
        4 | 13 => wires(plan, (host, peer), (from, until), kind == 13, rng),
        5 => {
            let length = rng.spread(50_000, 6_000_000);
            let host = if rng.chance(500_000) { host } else { 0 };
            plan.at(from, Action::Stall { host, length })
        }
        6 | 7 | 14 | 15 => {
            let healthy = plan.healthy().1;
            let view = &mut views[usize::from(host) - 1];
            *view = match kind {
                6 => refuse(healthy, rng),
                7 => spoil(healthy, rng),
                14 => lie(healthy, rng),
                _ => View { wrong: true, ..healthy },
            };
            let bad = Action::View { host, view: *view };
            between(plan, bad, Action::View { host, view: healthy })
        }
        8 => {
            let (lose_state, reboot) = (rng.chance(300_000), rng.chance(300_000));
            between(plan, Action::Crash { host, lose_state, reboot }, Action::Start { host })
        }
        9 => plan.at(from, Action::Pause { host, length: rng.spread(20_000, 12_000_000) }),
        10 => {
            let turn = (ppm(rng, 200_000), rng.spread(1_000, 80_000));
            let beat = (ppm(rng, 50_000), rng.spread(1_000, 15_000));
            let well = Action::Late { host, turn: (0, 0), beat: (0, 0) };
            between(plan, Action::Late { host, turn, beat }, well)
        }
        11 => see_saw(plan, from, rng),
        // A cold start of somebody, with or without a network.
        12 => {
            let plan = if rng.chance(500_000) {
                plan.at(0, Action::CutAll(true)).at(until, Action::CutAll(false))
            } else {
                plan
            };
            plan.at(from.min(5_000), Action::Start { host })
        }
        16 => mirrored(plan, (from, until), rng),
        17 => {
            // Restored while it runs, or with somebody dead who comes back to it.
            let plan = plan.at(from.saturating_sub(rng.spread(50, 20_000)), Action::Snapshot);
            let plan = if rng.chance(400_000) {
                let (lose_state, reboot) = (rng.chance(300_000), rng.chance(300_000));
                plan.at(from, Action::Crash { host, lose_state, reboot })
                    .at(until + 5, Action::Start { host })
            } else {
                plan
            };
            plan.at(until, Action::RollBack)
        }
        18 => {
            let plan = network_or_not(plan, (from, until), rng);
            between(plan, Action::Twin { host, runs: true }, Action::Twin { host, runs: false })
        }
        19 => {
            let reinit = rng.chance(500_000);
            between(plan, Action::Overwrite { reinit }, Action::Restore)
        }
        20 => {
            let every = rng.spread(2_000, 400_000);
            between(plan, Action::Stranger { every }, Action::Stranger { every: 0 })
        }
        21 => plan.at(from, Action::Freeze { host, length: rng.spread(20_000, 12_000_000) }),
        22 => {
            let key = |wrong| Action::Key { host, peer, wrong };
            between(plan, key(true), key(false))
        }
        23 => {
            let version = |other| Action::Version { host, other };
            between(plan, version(true), version(false))
        }
        25 => {
            // A wire that loses a little, and for long: nobody may lose anything.
            let good = plan.healthy().0;
            let wire = Wire { loss: ppm(rng, 15_000), jitter: rng.spread(10, 2_000), ..good };
            let length = rng.range(15_000, 60_000);
            plan.at(from, Action::Wire { from: host, to: peer, wire })
                .at(from + length, Action::Wire { from: host, to: peer, wire: good })
        }
        24 => plan.at(from, Action::Reload { host }),
        _ => {
            let cut = [Cut::Network, Cut::Storage, Cut::Both][rng.index(3)];
            let length = (until - from) * 1_000;
            let force = cut == Cut::Both || rng.chance(500_000);
            plan.at(from, Action::Drill { host, peer, cut, length, force })
        }
    }
}

/// What storage had begun to carry must go back over a shaky network.
fn see_saw(plan: Plan, from: u64, rng: &mut Rng) -> Plan {
    let mut plan = plan.at(from, Action::CutAll(true));
    let mut at = from + rng.spread(200, 2_000);
    for _ in 0..3 {
        plan = plan
            .at(at, Action::Stall { host: 0, length: rng.range(1_500_000, 4_000_000) })
            .at(at + rng.below(1_000), Action::CutAll(false));
        at += rng.range(1_000, 2_500);
        plan = plan.at(at, Action::CutAll(true));
        at += rng.range(1_000, 6_000);
    }
    plan.at(at, Action::CutAll(false))
}

/// Half the time the network is away, too.
fn network_or_not(plan: Plan, (from, until): (u64, u64), rng: &mut Rng) -> Plan {
    if rng.chance(500_000) {
        return plan;
    }
    plan.at(from.saturating_sub(500), Action::CutAll(true)).at(until, Action::CutAll(false))
}

fn mirrored(plan: Plan, (from, until): (u64, u64), rng: &mut Rng) -> Plan {
    let mut plan = network_or_not(plan, (from, until), rng);
    let usual = MirrorSettings { lag: 1_000, jitter: 1_000, reorder: 0 };
    let usual = *plan.mirror.get_or_insert(usual);
    let bad = MirrorSettings {
        lag: rng.spread(1_000, 800_000),
        jitter: rng.spread(100, 100_000),
        reorder: ppm(rng, 500_000),
    };
    if rng.chance(500_000) {
        plan = plan.at(from, Action::Mirror(bad)).at(until, Action::Mirror(usual));
    }
    if rng.chance(500_000) {
        plan = plan.at(from, Action::Split { length: (until - from) * 1_000 });
    }
    plan
}

fn wires(
    plan: Plan,
    (a, b): (u8, u8),
    (from, until): (u64, u64),
    slow: bool,
    rng: &mut Rng,
) -> Plan {
    let good = plan.healthy().0;
    let mut wire = Wire { jitter: rng.spread(10, 15_000), ..good };
    if slow {
        if rng.chance(600_000) {
            wire.rate = rng.spread(2_000, 400_000);
        }
        if rng.chance(600_000) {
            wire.spike = rng.spread(10_000, 2_500_000);
        }
    } else {
        if rng.chance(500_000) {
            wire.loss = ppm(rng, 300_000);
        }
        if rng.chance(300_000) {
            wire.duplicate = ppm(rng, 300_000);
        }
        if rng.chance(300_000) {
            wire.reorder = ppm(rng, 200_000);
        }
        if rng.chance(300_000) {
            wire.corrupt = ppm(rng, 50_000);
        }
        if rng.chance(200_000) {
            wire.hole_over = Some(100 + rng.index(1_300));
        }
    }
    let mut plan = plan;
    let both = rng.chance(500_000);
    for (x, y) in [(a, b), (b, a)].into_iter().take(1 + usize::from(both)) {
        plan = plan
            .at(from, Action::Wire { from: x, to: y, wire })
            .at(until, Action::Wire { from: x, to: y, wire: good });
    }
    plan
}

/// Storage that says no.
fn refuse(good: View, rng: &mut Rng) -> View {
    match rng.below(6) {
        0 => View { refuses: Some(IoFaultKind::ReadOnly), ..good },
        1 => View { refuses: Some(IoFaultKind::NoSpace), ..good },
        2 => View { gone: true, ..good },
        3 => View { read_error: 1_000_000, ..good },
        4 => View { shrunk: true, ..good },
        _ => View { write_error: 1_000_000, ..good },
    }
}

/// Storage that works badly.
fn spoil(good: View, rng: &mut Rng) -> View {
    View {
        slow: if rng.chance(300_000) { rng.spread(2, 200) } else { 1 },
        slow_reads: if rng.chance(200_000) { rng.spread(2, 300) } else { 1 },
        stuck: if rng.chance(300_000) { ppm(rng, 100_000) } else { 0 },
        read_error: if rng.chance(300_000) { ppm(rng, 200_000) } else { 0 },
        write_error: if rng.chance(300_000) { ppm(rng, 200_000) } else { 0 },
        torn: if rng.chance(500_000) { ppm(rng, 500_000) } else { 0 },
        stale: if rng.chance(400_000) { ppm(rng, 20_000) } else { 0 },
        stale_for: rng.spread(10_000, 800_000),
        flip: if rng.chance(300_000) { ppm(rng, 20_000) } else { 0 },
        ..good
    }
}

/// Storage that says yes and means no.
fn lie(good: View, rng: &mut Rng) -> View {
    View {
        lost: if rng.chance(600_000) { ppm(rng, 300_000) } else { 0 },
        misdirected: if rng.chance(400_000) { ppm(rng, 30_000) } else { 0 },
        rot: if rng.chance(400_000) { ppm(rng, 100_000) } else { 0 },
        ..good
    }
}
