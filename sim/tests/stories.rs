//! Every named story with a few seeds: the invariants hold and each story keeps its promise.

use sim::{run, scenario};

fn tell(name: &str, seeds: std::ops::RangeInclusive<u64>) {
    let story = scenario::named(name).expect("a story of that name");
    for seed in seeds {
        let outcome = run(story(seed), seed, 16, false);
        if let Some(v) = outcome.violation {
            let last = outcome.last.join("\n");
            panic!("{last}\n{name}, seed {seed}: {} at {} us: {}", v.invariant, v.at, v.detail);
        }
    }
}

macro_rules! stories {
    ($($test:ident $name:literal $seeds:expr;)*) => {$(
        #[test]
        fn $test() {
            tell($name, $seeds);
        }
    )*};
}

stories! {
    clean_cut "clean-cut" 1..=2;
    one_way_cut "one-way-cut" 1..=2;
    flapping "flapping" 1..=2;
    loss_and_reorder "loss-and-reorder" 1..=2;
    storage_stall "storage-stall" 1..=2;
    eio "eio" 1..=2;
    torn_and_stale "torn-and-stale" 1..=2;
    // 7: a node that rebooted was echoed the stamps of its former clock and stayed on storage.
    restart "restart" 7..=8;
    cold_start "cold-start" 1..=2;
    isolated "isolated" 1..=2;
    pause "pause" 1..=2;
    mtu_hole "mtu-hole" 1..=2;
    bad_storage "bad-storage" 1..=2;
    blind_return "blind-return" 1..=6;
    blind_hold "blind-hold" 1..=6;
    congestion "congestion" 1..=1;
    slow_network "slow-network" 1..=4;
    stranger "stranger" 1..=1;
    pieces "pieces" 1..=1;
    lost_writes "lost-writes" 1..=1;
    misdirected "misdirected" 1..=1;
    bit_rot "bit-rot" 1..=1;
    shrinking_disk "shrinking-disk" 1..=1;
    mirror_lag "mirror-lag" 1..=1;
    mirror_split "mirror-split" 1..=1;
    rollback "rollback" 1..=1;
    frozen_machine "frozen-machine" 1..=1;
    two_daemons "two-daemons" 1..=1;
    old_writer "old-writer" 1..=1;
    slow_reader "slow-reader" 1..=1;
    reinit "reinit" 1..=1;
    foreign_data "foreign-data" 1..=1;
    wrong_volume "wrong-volume" 1..=1;
    wrong_key "wrong-key" 1..=2;
    rekey "rekey" 1..=1;
    wrap_around "wrap-around" 1..=1;
    mixed_versions "mixed-versions" 1..=1;
    reload "reload" 1..=1;
    drills "drills" 1..=1;
    five_hosts "five-hosts" 1..=1;
}
