//! What applications must never notice.

mod pair;

use std::time::Duration;

use failover::{
    Command, Cut, Event, NodeId, Route, Via, VolumeFact,
    health::Verdict,
    session::{Preference, SessionEvent, SessionOrder},
    status::PeerState,
};
use pair::Pair;

fn routes(pair: &Pair) -> [Route; 2] {
    [0, 1].map(|s| pair.sides[s].peer(pair.now).route)
}

/// Every number from `first` to `last`, once, in order.
fn all(first: u32, last: u32) -> Vec<u32> {
    (first..=last).collect()
}

#[test]
fn two_nodes_find_each_other_and_talk_over_the_network() {
    let mut pair = Pair::settled();
    let before = [0, 1].map(|s| pair.sides[s].peer(pair.now).counters.storage_bytes);
    pair.stream(1, 100);
    pair.run(50);
    for (side, before) in before.into_iter().enumerate() {
        assert_eq!(pair.arrived(side).0, all(1, 100));
        let peer = pair.sides[side].peer(pair.now);
        assert_eq!((peer.state, peer.peer_route), (PeerState::Alive, Some(Route::Network)));
        assert_eq!((peer.counters.acknowledged, peer.counters.queued), (100, 0));
        assert_eq!(peer.counters.storage_bytes, before, "nothing hedged on a good network");
    }
}

#[test]
fn a_black_hole_costs_silence_and_nothing_else() {
    let mut pair = Pair::settled();
    pair.stream(1, 100);
    pair.network = [false; 2];
    pair.stream(101, 1000);
    assert_eq!(routes(&pair), [Route::Storage; 2]);
    pair.run(20);
    for side in 0..2 {
        let (numbers, silence) = pair.arrived(side);
        assert_eq!(numbers, all(1, 1100));
        assert!((15..=40).contains(&silence), "silence {silence} ms");
        let peer = pair.sides[side].peer(pair.now);
        assert_eq!((peer.counters.lost, peer.counters.failovers), (0, 1));
        assert_eq!(peer.network.reason.as_deref(), Some("heartbeats missed"));
        assert_eq!(peer.state, PeerState::Alive);
    }
}

#[test]
fn failback_is_slow_to_begin_and_silent() {
    let mut pair = Pair::settled();
    pair.network = [false; 2];
    pair.stream(1, 500);
    pair.network = [true; 2];
    pair.stream(501, 900);
    assert_eq!(routes(&pair), [Route::Storage; 2], "hold time");
    for side in &mut pair.sides {
        side.delivered.clear();
    }
    pair.stream(1401, 1000);
    pair.run(20);
    assert_eq!(routes(&pair), [Route::Network; 2]);
    for side in 0..2 {
        let (numbers, silence) = pair.arrived(side);
        assert_eq!(numbers.last(), Some(&2400));
        assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1));
        assert!(silence <= 5, "silence {silence} ms");
        assert_eq!(pair.sides[side].peer(pair.now).counters.failbacks, 1);
    }
}

#[test]
fn a_medium_slower_than_the_traffic_is_left_all_the_same() {
    let mut pair = Pair::settled();
    // A write of 5 ms and a packet each millisecond: something always waits to be written.
    pair.storage_delay_us = 8_000;
    pair.storage_drains = false;
    pair.network = [false; 2];
    pair.stream(1, 500);
    assert_eq!(routes(&pair), [Route::Storage; 2]);
    pair.network = [true; 2];
    pair.stream(501, 2500);
    pair.run(20);
    assert_eq!(routes(&pair), [Route::Network; 2]);
    for side in 0..2 {
        assert_eq!(pair.arrived(side).0, all(1, 3000));
    }
}

#[test]
fn express_packets_live_as_long_as_a_slow_store_takes() {
    let quarter = Duration::from_millis(250);
    for slow_by_nature in [false, true] {
        let mut pair = Pair::settled();
        pair.express = true;
        pair.storage_delay_us = 700_000;
        if slow_by_nature {
            for side in 0..2 {
                pair.volume(side, VolumeFact::BeatsEvery { interval: quarter });
            }
        }
        pair.network = [false; 2];
        pair.stream(1, 1500);
        pair.run(2000);
        assert_eq!(routes(&pair), [Route::Storage; 2]);
        for side in 0..2 {
            let status = pair.sides[side].peer(pair.now);
            if slow_by_nature {
                assert_eq!(pair.arrived(side).0, all(1, 1500));
                assert_eq!(status.counters.lost, 0, "{:?}", status.counters);
            } else {
                // A disk that takes so long is in trouble, and old beats of a cluster with it.
                assert!(status.counters.lost_by_cause["ttl"] > 1000, "{:?}", status.counters);
            }
        }
    }
}

#[test]
fn one_direction_alone_moves() {
    let mut pair = Pair::settled();
    pair.stream(1, 100);
    pair.network = [false, true];
    pair.stream(101, 1000);
    pair.run(20);
    assert_eq!(routes(&pair), [Route::Storage, Route::Network]);
    for side in 0..2 {
        let (numbers, silence) = pair.arrived(side);
        assert_eq!(numbers, all(1, 1100));
        assert!(silence <= 60, "silence {silence} ms at side {side}");
    }
}

#[test]
fn nodes_meet_by_storage_when_the_network_is_dead_from_the_start() {
    let mut pair = Pair::new();
    pair.network = [false; 2];
    pair.run(3000);
    assert_eq!(routes(&pair), [Route::Storage; 2]);
    pair.stream(1, 100);
    pair.run(50);
    assert_eq!(pair.arrived(0).0, all(1, 100));
    assert_eq!(pair.arrived(1).0, all(1, 100));
}

#[test]
fn without_any_path_packets_wait_and_then_are_counted() {
    let mut pair = Pair::settled();
    pair.network = [false; 2];
    pair.storage = false;
    pair.run(4000);
    assert_eq!(routes(&pair), [Route::Isolated; 2]);
    pair.stream(1, 10);
    pair.run(1000);
    pair.storage = true;
    pair.run(1500);
    assert_eq!(routes(&pair), [Route::Storage; 2]);
    assert_eq!(pair.arrived(1).0, all(1, 10), "they lived long enough");
    pair.storage = false;
    pair.run(4000);
    pair.stream(11, 10);
    pair.run(6000);
    pair.storage = true;
    pair.run(1500);
    assert_eq!(pair.arrived(1).0, all(1, 10), "nothing stale is delivered");
    let counters = pair.sides[0].peer(pair.now).counters;
    assert_eq!((counters.lost, counters.lost_by_cause["ttl"]), (10, 10));
}

#[test]
fn a_short_suspicion_is_reversible_and_loses_nothing() {
    let mut pair = Pair::settled();
    pair.stream(1, 100);
    pair.network = [false; 2];
    pair.stream(101, 38);
    pair.network = [true; 2];
    pair.stream(139, 500);
    pair.run(20);
    assert_eq!(routes(&pair), [Route::Network; 2]);
    for side in 0..2 {
        assert_eq!(pair.arrived(side).0, all(1, 638));
        assert_eq!(pair.sides[side].peer(pair.now).counters.failovers, 0);
    }
}

#[test]
fn random_loss_is_repaired_in_order() {
    let mut pair = Pair::settled();
    pair.lose_every = 13;
    pair.stream(1, 2000);
    pair.lose_every = 0;
    pair.run(100);
    assert_eq!(pair.arrived(1).0, all(1, 2000));
}

#[test]
fn a_hole_for_large_packets_is_a_reason_to_move() {
    let mut pair = Pair::settled();
    pair.network_mtu = 800;
    for number in 1..=1000 {
        pair.send(0, number, 1200);
        pair.run(1);
    }
    pair.run(3000);
    assert_eq!(pair.arrived(1).0, all(1, 1000));
    assert_eq!(routes(&pair)[0], Route::Storage);
    pair.network_mtu = usize::MAX;
    pair.run(4000);
    assert_eq!(routes(&pair)[0], Route::Network);
}

#[test]
fn a_restarted_peer_is_met_again_and_its_losses_are_told() {
    for (side, cut) in [(0, false), (1, false), (0, true), (1, true)] {
        let mut pair = Pair::settled();
        pair.stream(1, 100);
        if cut {
            pair.network = [false; 2];
            pair.stream(101, 500);
        }
        let survivor = 1 - side;
        pair.restart(side);
        pair.run(3000);
        let expected = if cut { Route::Storage } else { Route::Network };
        assert_eq!(routes(&pair), [expected; 2], "side {side} cut {cut}");
        let told = |e: &Event| matches!(e, Event::PeerRestarted { .. });
        assert!(pair.sides[survivor].events.iter().any(told));
        for s in &mut pair.sides {
            s.delivered.clear();
        }
        pair.stream(1000, 100);
        pair.run(100);
        assert_eq!(pair.arrived(survivor).0, all(1000, 1099));
        assert_eq!(pair.arrived(side).0, all(1000, 1099));
    }
}

#[test]
fn death_is_told_from_silence() {
    let mut pair = Pair::settled();
    pair.sides[1].alive = false;
    pair.run(2000);
    assert_ne!(pair.sides[0].peer(pair.now).state, PeerState::Dead, "not proven yet");
    pair.run(8000);
    assert_eq!(pair.sides[0].peer(pair.now).state, PeerState::Dead);

    let mut pair = Pair::settled();
    pair.sides[1].alive = false;
    pair.storage = false;
    pair.run(10_000);
    assert_eq!(pair.sides[0].peer(pair.now).state, PeerState::Unknown);
}

#[test]
fn goodbye_is_death_at_once() {
    let mut pair = Pair::settled();
    pair.command(1, Command::Goodbye);
    pair.run(20);
    let peer = pair.sides[0].peer(pair.now);
    assert_eq!((peer.state, peer.network.state), (PeerState::Dead, Verdict::Down));
    assert_eq!(peer.network.reason.as_deref(), Some("peer said goodbye"));
}

#[test]
fn pings_name_their_paths() {
    let mut pair = Pair::settled();
    let peer = NodeId::new(2).unwrap();
    for (id, via) in [(1, Via::Network), (2, Via::Storage), (3, Via::Auto)] {
        pair.command(0, Command::Ping { peer, id, via });
        pair.run(20);
    }
    let replies: Vec<_> = pair.sides[0]
        .events
        .iter()
        .filter_map(|e| match e {
            Event::PingReply { id, out, back, .. } => Some((*id, *out, *back)),
            _ => None,
        })
        .collect();
    use failover::Path::{Network, Storage};
    assert_eq!(replies, [(1, Network, Network), (2, Storage, Storage), (3, Network, Network)]);
}

#[test]
fn a_drill_heals_itself_and_is_refused_without_a_net() {
    let mut pair = Pair::settled();
    let peer = NodeId::new(2).unwrap();
    let length = Duration::from_millis(500);
    pair.stream(1, 10);
    pair.command(0, Command::Drill { peer, cut: Cut::Network, length, force: false });
    pair.stream(11, 490);
    assert_eq!(routes(&pair), [Route::Storage; 2]);
    pair.stream(501, 2500);
    pair.run(20);
    assert_eq!(routes(&pair), [Route::Network; 2]);
    for side in 0..2 {
        assert_eq!(pair.arrived(side).0, all(1, 3000));
    }
    let ended = |e: &Event| matches!(e, Event::DrillEnded { .. });
    assert!(pair.sides[0].events.iter().any(ended));
    pair.storage = false;
    pair.run(3000);
    pair.command(0, Command::Drill { peer, cut: Cut::Network, length, force: false });
    pair.run(1);
    let refused = |e: &Event| matches!(e, Event::DrillRefused { .. });
    assert!(pair.sides[0].events.iter().any(refused));
}

/// Prevents: a path that stays down because the drill hid that what hung has returned.
#[test]
fn what_returns_during_a_drill_hangs_no_more() {
    let mut pair = Pair::settled();
    let peer = NodeId::new(2).unwrap();
    let length = Duration::from_millis(500);
    let hangs = |reading| VolumeFact::Hangs { reading, detail: String::new() };
    for reading in [true, false] {
        pair.volume(0, hangs(reading));
        pair.run(10);
        assert_eq!(pair.sides[0].peer(pair.now).storage.state, Verdict::Down);
        pair.command(0, Command::Drill { peer, cut: Cut::Storage, length, force: false });
        pair.run(10);
        pair.volume(0, VolumeFact::Returned { reading });
        pair.run(5000);
        assert_eq!(pair.sides[0].peer(pair.now).storage.state, Verdict::Up, "{reading}");
    }
}

#[test]
fn storage_trouble_does_not_touch_a_good_network() {
    let mut pair = Pair::settled();
    pair.stream(1, 100);
    pair.storage = false;
    pair.stream(101, 2000);
    let peer = pair.sides[0].peer(pair.now);
    assert_eq!((peer.route, peer.storage.state), (Route::Network, Verdict::Down));
    assert!(peer.storage.reason.is_some());
    pair.storage = true;
    pair.stream(2101, 2000);
    pair.run(20);
    assert_eq!(pair.arrived(1).0, all(1, 4100));
    assert_eq!(pair.sides[0].peer(pair.now).storage.state, Verdict::Up);
    assert!(pair.arrived(1).1 <= 3);
}

#[test]
fn a_drill_of_both_paths_isolates() {
    let mut pair = Pair::settled();
    let length = Duration::from_secs(4);
    for side in 0..2 {
        let peer = pair.sides[1 - side].id;
        pair.command(side, Command::Drill { peer, cut: Cut::Both, length, force: true });
    }
    pair.stream(1, 3500);
    assert_eq!(routes(&pair), [Route::Isolated; 2]);
    pair.run(500);
    pair.run(5000);
    assert_eq!(routes(&pair), [Route::Network; 2]);
    for side in 0..2 {
        assert_eq!(pair.arrived(side).0, all(1, 3500), "nothing outlived its time to live");
    }
}

#[test]
fn suspicion_is_never_lifted_by_old_news() {
    let mut pair = Pair::settled();
    pair.stream(1, 100);
    pair.network = [false; 2];
    pair.stream(101, 400);
    let back = |e: &Event| matches!(e, Event::RouteChanged { to: Route::Network, .. });
    for side in &pair.sides {
        let settled = side.events.iter().filter(|e| back(e)).count();
        assert_eq!(settled, 1, "{:?}", side.events);
    }
}

/// The plane tells what the pipe takes when that is news to it: it does not know that the core
/// forgot.
#[test]
fn a_peer_that_restarts_leaves_the_pipe_as_large_as_it_was() {
    let mut pair = Pair::settled();
    pair.pipe_takes(0, 1 << 20);
    pair.restart(1);
    pair.run(2000);
    pair.session(
        0,
        SessionOrder::Open {
            token: 1,
            service: "bulk".into(),
            preference: Preference::NetworkOnly,
        },
    );
    pair.run(10);
    let opening = pair.sides[0].sessions.iter().find_map(|event| match event {
        SessionEvent::Opening { id, .. } => Some(*id),
        _ => None,
    });
    let offered = pair.sides[1].sessions.iter().find_map(|event| match event {
        SessionEvent::Offered { id, .. } => Some(*id),
        _ => None,
    });
    pair.session(1, SessionOrder::Accept(offered.expect("an offer")));
    pair.run(10);
    let id = opening.expect("a session");
    let (mut sent, mut came) = (0, 0);
    for _ in 0..100 {
        let peer = pair.sides[1].id;
        let room = pair.sides[0].node.session_room(peer, id).min((400 << 10) - sent);
        if room > 0 {
            pair.session(0, SessionOrder::Write(id, vec![7; room].into()));
            sent += room;
        }
        pair.run(5);
        for event in std::mem::take(&mut pair.sides[1].sessions) {
            if let SessionEvent::Data(id, bytes) = event {
                came += bytes.len();
                pair.session(1, SessionOrder::Take(id, bytes.len() as u64));
            }
        }
    }
    assert_eq!((sent, came), (400 << 10, 400 << 10));
}
