//! Sessions on this kernel: the network goes dark under them, the storage stalls and vanishes,
//! unmodified programs talk through `forward`, and nobody on the way reads a word.

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::database::{self, Server};
use crate::flow::{Flow, MARKER};
use crate::fuse::Array;
use crate::intruder::{Ear, find};
use crate::node::binary;
use crate::process::{Running, wait_child};
use crate::rng::Rng;
use crate::talkers::Talkers;
use crate::{Lab, Medium, Needs, Node, Plan, Story, sys, wait_for};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, needs, tools, tell| Story {
        name,
        needs,
        tools,
        guard: Duration::from_secs(300),
        tell,
    };
    vec![
        story("black_hole_under_a_stream", Needs::Anyone, &[], black_hole_under_a_stream),
        story("bulk_leaves_the_network_alone", Needs::Anyone, &[], bulk_leaves_the_network_alone),
        story("storage_stalls_and_vanishes", Needs::Root, &["fsfreeze"], storage_fails),
        story(
            "programs_through_forward",
            Needs::Root,
            &["psql", "runuser", "nginx", "curl", "redis-server", "redis-cli"],
            programs_through_forward,
        ),
        Story {
            guard: Duration::from_secs(if crate::long() { 600 } else { 300 }),
            ..story("a_thousand_sessions", Needs::Root, &["fsfreeze"], a_thousand_sessions)
        },
        story("the_peer_dies", Needs::Anyone, &[], the_peer_dies),
        story("streams_are_seen_nowhere", Needs::Anyone, &[], streams_are_seen_nowhere),
    ]
}

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);

fn total() -> u64 {
    if crate::long() { 1024 * MIB } else { 128 * MIB }
}

fn black_hole_under_a_stream() {
    let lab = Lab::running(Plan::default());
    let flow = Flow::start(lab.node(1), lab.node(2), "network-first", total(), 0);
    let began = Instant::now();
    flow.await_bytes(total() * 3 / 10, LIMIT);
    let cut = Instant::now();
    lab.black_hole();
    let at_cut = flow.got();
    flow.await_bytes(total() * 6 / 10, LIMIT);
    assert!(at_cut < total() * 6 / 10, "the cut came too late to mean anything: {at_cut}");
    let heal = Instant::now();
    lab.black_hole_heal();
    flow.await_bytes(total(), LIMIT);
    let end = Instant::now();
    let within = |from: Instant| flow.longest_pause(from, from + Duration::from_secs(2));
    println!(
        "  {} MiB in {:.1} s; longest pause at the cut {:.0} ms, at the heal {:.0} ms",
        total() / MIB,
        (end - began).as_secs_f64(),
        within(cut),
        within(heal),
    );
    let ended = flow.finish(LIMIT);
    println!("  {} bytes by network, {} by storage", ended.network_bytes, ended.storage_bytes);
    assert_eq!(ended.bytes, total());
    assert!(ended.storage_bytes > total() / 10, "storage carried a part of it");
    lab.await_network(Duration::from_secs(30));
    is_clean(&lab);
}

fn bulk_leaves_the_network_alone() {
    let lab = Lab::running(Plan::default());
    let before = lab.wire_bytes();
    let flow = Flow::start(lab.node(1), lab.node(2), "storage-first", total(), 0);
    flow.await_bytes(total(), LIMIT);
    let ended = flow.finish(LIMIT);
    let wire = lab.wire_bytes() - before;
    let share = wire as f64 / total() as f64 * 100.0;
    println!("  {} MiB, {wire} bytes on the wire: {share:.2} %", total() / MIB);
    assert_eq!(ended.network_bytes, 0);
    assert!(share < 1.0, "{share} %");
    is_clean(&lab);
}

/// Bytes of sessions the first node put on each path so far.
fn carried(lab: &Lab) -> (u64, u64) {
    let status = lab.node(1).status();
    let sessions = &status.json()["peers"][0]["sessions"];
    let count = |name: &str| sessions[name].as_u64().expect("a counter");
    (count("network_bytes"), count("storage_bytes"))
}

/// Waits until all that is sent goes by storage.
fn await_storage(lab: &Lab) -> Duration {
    let mut last = carried(lab);
    let (_, took) = wait_for("the stream to be back on storage", Duration::from_secs(30), || {
        sleep(Duration::from_millis(300));
        let (before, now) = (last, carried(lab));
        last = now;
        let back = now.0 == before.0 && now.1 > before.1;
        if back { Ok(()) } else { Err(format!("{before:?} to {now:?}")) }
    });
    took
}

fn storage_fails() {
    let lab = Lab::running(Plan { medium: Medium::Array, ..Plan::default() });
    let flow = Flow::start(lab.node(1), lab.node(2), "storage-first", u64::MAX, 8 * MIB);
    sleep(Duration::from_secs(2));
    let (by_network, _) = carried(&lab);
    assert_eq!(by_network, 0, "storage carries it");
    let fault = |name: &str, length: Duration, break_it: &dyn Fn(), heal_it: &dyn Fn()| {
        let began = Instant::now();
        let before = carried(&lab).0;
        break_it();
        sleep(length);
        let during = carried(&lab).0 - before;
        heal_it();
        let back = await_storage(&lab);
        let pause = flow.longest_pause(began, began + length);
        println!(
            "  {name}: {during} bytes took the network meanwhile, longest pause {pause:.0} ms, \
             back on storage {:.1} s after",
            back.as_secs_f64()
        );
        assert!(during > 4 * MIB, "the stream went on by the network: {during}");
    };
    let disk = lab.disk();
    fault("stalled for 5 s", Duration::from_secs(5), &|| disk.freeze(), &|| disk.thaw());
    fault("gone for 3 s", Duration::from_secs(3), &|| disk.vanish(), &|| disk.reappear());
    let ended = flow.finish(LIMIT);
    println!("  {} bytes by network, {} by storage", ended.network_bytes, ended.storage_bytes);
    is_clean(&lab);
}

/// Killed with a stream under way, and started again: both ends hear why it ended.
fn the_peer_dies() {
    let lab = Lab::running(Plan::default());
    let flow = Flow::start(lab.node(1), lab.node(2), "network-first", u64::MAX, 4 * MIB);
    flow.await_bytes(2 * MIB, LIMIT);
    lab.node(2).kill();
    sleep(Duration::from_secs(1));
    lab.node(2).start();
    let [send, recv] = flow.broken(Duration::from_secs(20));
    println!("  send: {}\n  recv: {}", send.trim(), recv.trim());
    assert!(send.contains("another one than before"), "{send}");
    assert!(recv.contains("stopped"), "{recv}");
    lab.await_network(Duration::from_secs(30));
    is_clean(&lab);
}

/// Nothing is left of any session.
fn is_clean(lab: &Lab) {
    for node in &lab.nodes {
        node.await_status("no session", Duration::from_secs(20), |status| {
            let sessions = &status.json()["peers"][0]["sessions"];
            ["open", "buffered_bytes", "granted_bytes", "violations"]
                .iter()
                .all(|name| sessions[*name] == 0)
        });
    }
}

/// A database, a web server and a key-value store on the second machine; their clients on the
/// first, each with one connection through a cut and a heal.
fn programs_through_forward() {
    let lab = Lab::running(Plan::default());
    let (alpha, beta) = (lab.node(1), lab.node(2));
    let home = lab.dir.join("servers");
    fs::create_dir(&home).expect("a folder");
    let _servers = start_servers(beta, &home);
    let database = Server::new(beta, database::home(&lab).join("db"), 5432);
    database.init("");
    database.up();
    let forward = |listen: &str, port: u16| {
        let mut command = alpha.command(binary());
        command.args(["forward", listen, &format!("beta:{port}"), "--config"]);
        Running::start(command.arg(&alpha.config))
    };
    let _forwards =
        [forward("127.0.0.1:6001", 5432), forward("127.0.0.1:6002", 8080), forward("6003", 6379)];
    let client = |line: &str| {
        let mut command = alpha.command("sh");
        command.args(["-c", line]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"))
    };
    wait_for("three servers behind their ports", Duration::from_secs(30), || {
        let line = "psql -h 127.0.0.1 -p 6001 -U postgres -XAtc 'select 1' &&
            curl -sf http://127.0.0.1:6002/file -o /dev/null && redis-cli -p 6003 ping";
        let done = crate::run(alpha.command("sh").args(["-c", line]), Duration::from_secs(10));
        match done {
            Ok(done) if done.ok() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // Eight seconds each: a temporary table lives as long as its connection, a download at a
    // bounded rate is one, and so is a pipe of commands.
    let sql = "psql -h 127.0.0.1 -p 6001 -U postgres -XAtq -v ON_ERROR_STOP=1 <<'END'
        create temporary table t (n int);
        do $$ begin for n in 1..80 loop insert into t values (n); perform pg_sleep(0.1);
        raise notice 'row %', n; end loop; end $$;
        select count(*), sum(n) from t;
        END";
    let sql = sql.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
    let web = "curl -sf --limit-rate 4M http://127.0.0.1:6002/file | sha256sum";
    let store = "(echo CLIENT ID; for n in $(seq 1 80); do echo INCR counter; sleep 0.1; done;
        echo CLIENT ID) | redis-cli -p 6003 | sed -n '1p;81p;82p' | xargs";
    let clients = [("psql", client(&sql)), ("curl", client(web)), ("redis-cli", client(store))];
    sleep(Duration::from_secs(2));
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    sleep(Duration::from_secs(3));
    lab.black_hole_heal();
    let digest = crate::sh(&format!("sha256sum < {}/file", home.display()));
    let wanted = ["80|3240", digest.trim(), " 80 "];
    for ((name, mut client), wanted) in clients.into_iter().zip(wanted) {
        let ended = wait_child(&mut client, Duration::from_secs(60));
        let done = client.wait_with_output().expect("what it said");
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(ended.is_some_and(|s| s.success()) && said.contains(wanted), "{name}: {done:?}");
        println!("  {name}: {}", said.trim());
        if let [first, "80", last] = said.split_whitespace().collect::<Vec<_>>()[..] {
            assert_eq!(first, last, "{name} made another connection");
        }
    }
    lab.await_network(Duration::from_secs(30));
}

/// Eight processes hold a thousand sessions, while both paths are cut and healed at random, also
/// at the same time.
fn a_thousand_sessions() {
    let length = Duration::from_secs(if crate::long() { 300 } else { 15 });
    let lab = Lab::running(Plan { medium: Medium::Array, ..Plan::default() });
    let (alpha, beta) = (lab.node(1), lab.node(2));
    let _listener = Talkers::listen(&beta.socket);
    let before: Vec<u64> = lab.nodes.iter().map(Node::resident_kib).collect();
    let talkers: Vec<Talkers> =
        (1..=8).map(|seed| Talkers::talk(&alpha.socket, "beta", 125, seed, length)).collect();
    let (mut rng, mut cuts) = (Rng::new(sys::monotonic_ns()), [0; 3]);
    let mut most = before.clone();
    let until = Instant::now() + length;
    while Instant::now() < until {
        let hole = rng.below(3) > 0;
        let freeze = rng.below(3) == 0 || !hole;
        cuts[0] += u32::from(hole);
        cuts[1] += u32::from(freeze);
        cuts[2] += u32::from(hole && freeze);
        if hole {
            lab.black_hole();
        }
        if freeze {
            lab.disk().freeze();
        }
        sleep(Duration::from_millis(rng.between(100, 2500)));
        if freeze {
            lab.disk().thaw();
        }
        sleep(Duration::from_millis(rng.between(0, 500)));
        if hole {
            lab.black_hole_heal();
        }
        for (node, most) in lab.nodes.iter().zip(&mut most) {
            *most = node.resident_kib().max(*most);
        }
        sleep(Duration::from_millis(rng.between(100, 2500)));
    }
    let results = talkers.into_iter().map(|talker| talker.result(Duration::from_secs(90)));
    let (sessions, bytes) =
        results.fold((0, 0), |(sessions, bytes), (s, b)| (sessions + s, bytes + b));
    let mib = |kib: &[u64]| kib.iter().map(|k| k / 1024).collect::<Vec<_>>();
    println!(
        "  {sessions} sessions, {bytes} bytes, each once; {} cuts of the network, {} of the \
         storage, {} of both; memory {:?} MiB before, {:?} at most",
        cuts[0],
        cuts[1],
        cuts[2],
        mib(&before),
        mib(&most)
    );
    assert!(sessions >= 1000, "{sessions}");
    // Windows and buffers of one peer together, and as much again for what a process is.
    assert!(most.iter().all(|kib| *kib < 2 * (128 + 64) * 1024), "memory: {most:?} KiB");
    is_clean(&lab);
    // Each cut doubles the hold time, to 60 s at most.
    lab.await_network(Duration::from_secs(90));
}

fn start_servers(node: &Node, home: &std::path::Path) -> [Running; 2] {
    let folder = home.display();
    crate::sh(&format!("head -c {} /dev/urandom > {folder}/file", 32 * MIB));
    let config = format!(
        "daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log;
         events {{ }} http {{ access_log off; client_body_temp_path {folder}/a;
         proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d;
         scgi_temp_path {folder}/e; server {{ listen 127.0.0.1:8080; root {folder}; }} }}"
    );
    fs::write(home.join("nginx.conf"), config).expect("a file of our own");
    crate::sh(&format!("chmod 755 {folder}"));
    let mut web = node.command("nginx");
    web.args(["-e", &format!("{folder}/log"), "-c", &format!("{folder}/nginx.conf")]);
    let mut store = node.command("redis-server");
    store.args(["--bind", "127.0.0.1", "--save", "", "--dir", &folder.to_string()]);
    [web, store].map(|mut command| Running::start(&mut command))
}

/// What a stream says must not be found on the wire or on the volume, by either path.
fn streams_are_seen_nowhere() {
    if !Array::possible() {
        println!("  SKIPPED the volume: needs /dev/fuse");
        return;
    }
    let lab = Lab::running(Plan { medium: Medium::Fuse, ..Plan::default() });
    let ears = [1, 2].map(|id| {
        let node = lab.node(id);
        Ear::listen(node, "eth0", &lab.dir.join(format!("{}.frames", node.name)))
    });
    let flow = Flow::start(lab.node(1), lab.node(2), "network-first", u64::MAX, 2 * MIB);
    sleep(Duration::from_secs(1));
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    let mut images = Vec::new();
    for _ in 0..4 {
        sleep(Duration::from_millis(300));
        images.push(lab.disk().array().snapshot());
    }
    lab.black_hole_heal();
    lab.await_network(Duration::from_secs(30));
    let ended = flow.finish(LIMIT);
    assert!(ended.network_bytes > MIB && ended.storage_bytes > MIB, "both paths carried it");
    for ear in ears {
        let frames = ear.frames();
        let bytes: usize = frames.iter().map(|(_, frame)| frame.len()).sum();
        assert!(bytes as u64 > ended.network_bytes / 2, "the wire was heard: {bytes}");
        assert!(frames.iter().all(|(_, f)| find(f, MARKER.as_bytes()).is_none()), "on the wire");
    }
    for image in &images {
        assert!(find(image, b"SPR1").is_some(), "no record on the volume");
        assert!(find(image, MARKER.as_bytes()).is_none(), "plain text on the volume");
    }
    println!(
        "  {} bytes by network, {} by storage: nothing to read in captures and {} images",
        ended.network_bytes,
        ended.storage_bytes,
        images.len()
    );
}
