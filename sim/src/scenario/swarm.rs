//! A story drawn from the seed: a random subset of the fault kinds, each with a random strength, at
//! random times. A run in which everything breaks at once tests little (all packets die of age);
//! one in which three things break together finds what nobody thought of.

use volumes::IoFaultKind;

use crate::{
    disk::View,
    net::Wire,
    plan::{Action, Expect, Plan},
    rng::Rng,
    workload::Flow,
};

/// The kinds of things a swarm may do.
const KINDS: usize = 13;

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    of_length(seed, 40)
}

/// The story of a seed with a safety phase of up to so many seconds.
#[must_use]
pub fn of_length(seed: u64, seconds: u64) -> Plan {
    let mut rng = Rng::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let hosts = if rng.chance(250_000) { 3 } else { 2 };
    let length = rng.range(seconds * 3 / 8, seconds).max(10) * 1_000;
    let mut plan = Plan {
        name: "swarm",
        hosts,
        delay: rng.spread(50, 4_000),
        latency: rng.spread(60, 600),
        data_blocks: u32::try_from(rng.spread(64, 512)).unwrap_or(64),
        flows: flows(hosts, &mut rng),
        steps: vec![(0, Action::Traffic(true))],
        heal_at: length * 1_000,
        expect: Expect::default(),
        canary: false,
    };
    let mut wanted = [false; KINDS];
    for _ in 0..rng.range(1, 4) {
        wanted[rng.index(KINDS)] = true;
    }
    let mut views: Vec<View> = (0..hosts).map(|_| plan.healthy().1).collect();
    for kind in (0..KINDS).filter(|k| wanted[*k]) {
        for _ in 0..rng.range(1, 3) {
            // Leave the last seconds for what was begun.
            let from = rng.below(length - 1_000);
            let until = (from + rng.spread(20, 15_000)).min(length - 1);
            plan = step(plan, kind, (from, until), &mut views, &mut rng);
        }
    }
    plan
}

fn flows(hosts: u8, rng: &mut Rng) -> Vec<Flow> {
    let mut flows = Vec::new();
    for from in 1..=hosts {
        for to in (1..=hosts).filter(|to| *to != from) {
            for _ in 0..rng.range(1, 3) {
                flows.push(Flow::random(from, to, rng));
            }
        }
    }
    flows
}

fn ppm(rng: &mut Rng, most: u64) -> u32 {
    u32::try_from(rng.spread(most / 100, most)).unwrap_or(0)
}

fn one(hosts: u8, rng: &mut Rng) -> u8 {
    u8::try_from(rng.range(1, u64::from(hosts))).unwrap_or(1)
}

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
            while at < until {
                plan = plan.at(at, Action::CutAll(true));
                at += rng.spread(20, 3_000);
                plan = plan.at(at, Action::CutAll(false));
                at += rng.spread(20, 5_000);
            }
            plan
        }
        4 => wires(plan, (host, peer), (from, until), rng),
        5 => {
            let length = rng.spread(50_000, 6_000_000);
            let host = if rng.chance(500_000) { host } else { 0 };
            plan.at(from, Action::Stall { host, length })
        }
        6 | 7 => {
            let healthy = plan.healthy().1;
            let view = &mut views[usize::from(host) - 1];
            *view = spoil(healthy, kind == 6, rng);
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
        11 => {
            // A see-saw: what storage had begun to carry must go back over a shaky network.
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
        // A cold start of somebody, with or without a network.
        _ => {
            let plan = if rng.chance(500_000) {
                plan.at(0, Action::CutAll(true)).at(until, Action::CutAll(false))
            } else {
                plan
            };
            plan.at(from.min(5_000), Action::Start { host })
        }
    }
}

fn wires(plan: Plan, (a, b): (u8, u8), (from, until): (u64, u64), rng: &mut Rng) -> Plan {
    let good = plan.healthy().0;
    let mut wire = Wire { jitter: rng.spread(10, 15_000), ..good };
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
    let mut plan = plan;
    let both = rng.chance(500_000);
    for (x, y) in [(a, b), (b, a)].into_iter().take(1 + usize::from(both)) {
        plan = plan
            .at(from, Action::Wire { from: x, to: y, wire })
            .at(until, Action::Wire { from: x, to: y, wire: good });
    }
    plan
}

fn spoil(good: View, hard: bool, rng: &mut Rng) -> View {
    if hard {
        return match rng.below(5) {
            0 => View { refuses: Some(IoFaultKind::ReadOnly), ..good },
            1 => View { refuses: Some(IoFaultKind::NoSpace), ..good },
            2 => View { gone: true, ..good },
            3 => View { read_error: 1_000_000, ..good },
            _ => View { write_error: 1_000_000, ..good },
        };
    }
    View {
        slow: if rng.chance(300_000) { rng.spread(2, 200) } else { 1 },
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
