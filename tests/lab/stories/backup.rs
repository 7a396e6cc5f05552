//! Trees and databases backed up through the volume and back: what the wires carry of it, what is
//! sent twice when everything on the way is cut, detached and killed, and what comes back.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::backups::{Act, Store, Victim, grow};
use crate::database::{self, Server};
use crate::process::Running;
use crate::rng::Rng;
use crate::{Lab, Medium, Needs, Plan, Story, run, sys, tree};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, tools, tell| Story {
        name,
        needs: Needs::Root,
        tools,
        guard: Duration::from_secs(if crate::long() { 1200 } else { 300 }),
        tell,
    };
    vec![
        story("the_wires_carry_next_to_nothing", &["rsync"], the_wires_carry_next_to_nothing),
        story("all_is_cut_and_killed", &["rsync"], all_is_cut_and_killed),
        story("databases_come_back", &["psql", "runuser", "sqlite3"], databases_come_back),
    ]
}

const MIB: u64 = 1 << 20;
/// What may be sent twice: as promised for ten kills, and less than there is.
fn twice_max() -> u64 {
    if crate::long() { 64 * MIB } else { 40 * MIB }
}

/// Files and bytes of a tree.
fn size() -> (u64, u64) {
    if crate::long() { (30_000, 1024 * MIB) } else { (2000, 64 * MIB) }
}

fn number(json: &serde_json::Value, what: &str) -> u64 {
    json[what].as_u64().unwrap_or_else(|| panic!("no {what} in {json}"))
}

fn the_wires_carry_next_to_nothing() {
    let lab = Lab::running(Plan::default());
    let mut store = Store::serve(&lab);
    let (files, bytes) = size();
    grow(&lab.dir.join("tree"), files, bytes);
    let before = lab.wire_bytes();
    let stored = store.run(&["backup", "tree", "beta:tree"]);
    let between = lab.wire_bytes();
    let restored = store.run(&["restore", "beta:tree", "restored"]);
    let after = lab.wire_bytes();
    for (what, wire, result) in
        [("backup", between - before, &stored), ("restore", after - between, &restored)]
    {
        let share = wire as f64 * 100.0 / bytes as f64;
        println!(
            "  {what}: {} entries, {} MiB in {:.1} s; {} MiB by storage, {} bytes by network; \
             {wire} bytes on the wires, {share:.2} %",
            number(result, "entries"),
            number(result, "bytes") / MIB,
            result["seconds"].as_f64().unwrap_or_default(),
            number(result, "storage_bytes") / MIB,
            number(result, "network_bytes"),
        );
        assert!(share < 1.0, "{share} %");
    }
    assert_eq!(stored["digest"], restored["digest"]);
    are_same(&lab.dir);
}

/// Two witnesses: rsync, and a walk of our own.
fn are_same(dir: &Path) {
    let mut rsync = Command::new("rsync");
    rsync.args(["-aHAXn", "--checksum", "--delete", "--itemize-changes", "tree/", "restored/"]);
    let done = run(rsync.current_dir(dir), Duration::from_secs(300)).expect("rsync");
    assert!(done.ok() && done.stdout.is_empty(), "rsync: {done:?}");
    tree::assert_same(&dir.join("tree"), &dir.join("restored"));
    println!("  rsync finds no difference");
}

/// The network goes at 30 % and is back at 45 %, the volume at 50 % and 70 %, and at points that
/// nobody chose each program is killed.
fn acts(rng: &mut Rng, kills: u64) -> Vec<(u64, Act)> {
    let mut acts = vec![(300, Act::Cut), (450, Act::Heal), (500, Act::Detach), (700, Act::Attach)];
    for n in 0..kills {
        let at = rng.between(50, 900);
        // A daemon does not start without its volume.
        let victims = [Victim::Client, Victim::Serve, Victim::Daemon(1), Victim::Daemon(2)];
        let among = if (480..720).contains(&at) { 2 } else { 4 };
        acts.push((at, Act::Kill(victims[n as usize % among])));
    }
    acts.sort_by_key(|(at, _)| *at);
    acts
}

fn all_is_cut_and_killed() {
    let seed = std::env::var("SIDEPATH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(sys::monotonic_ns);
    println!("  SIDEPATH_SEED={seed}");
    let mut rng = Rng::new(seed);
    let lab = Lab::running(Plan { medium: Medium::Array, ..Plan::default() });
    let mut store = Store::serve(&lab);
    let (files, bytes) = size();
    grow(&lab.dir.join("tree"), files, bytes);
    let kills = if crate::long() { 10 } else { 4 };
    let backup = ["backup", "tree", "beta:tree"];
    // Slow enough for all that happens to happen meanwhile.
    let slowly = ["--limit-rate", if crate::long() { "48MiB" } else { "12MiB" }];
    let acts = acts(&mut rng, kills);
    let grows = (&*store.path.clone(), bytes);
    let (stored, sent) = store.run_through(&[&backup[..], &slowly].concat(), grows, 1, &acts);
    let twice = sent.saturating_sub(number(&stored, "stored_bytes"));
    println!(
        "  {} MiB stored, {} MiB sent, {:.1} MiB of them twice",
        number(&stored, "stored_bytes") / MIB,
        sent / MIB,
        twice as f64 / MIB as f64
    );
    let verified = store.run(&["backup", "verify", "beta:tree"]);
    assert_eq!(verified["findings"], serde_json::json!([]));

    // Once more, on the way back, which is not slowed down: first in the middle of the large file.
    let kill = Act::Kill(Victim::Client);
    let acts = [(120, kill), (300, Act::Cut), (600, kill), (700, Act::Heal)];
    let grows = (&*lab.dir.join("restored"), bytes);
    let (restored, sent) =
        store.run_through(&["restore", "beta:tree", "restored"], grows, 2, &acts);
    println!("  restored, {} MiB sent", sent / MIB);
    assert!(sent <= number(&stored, "stored_bytes") + twice_max(), "{sent} bytes were sent");
    assert_eq!(stored["digest"], restored["digest"]);
    are_same(&lab.dir);
    assert!(twice <= twice_max(), "{twice} bytes were sent twice");
}

fn databases_come_back() {
    let lab = Lab::running(Plan::default());
    let mut store = Store::serve(&lab);
    let home = database::home(&lab);
    let server = |name: &str, port| Server::new(lab.node(1), home.join(name), port);
    let (shop, copy) = (server("shop", 5441), server("copy", 5442));
    shop.init("-k");
    shop.add("postgresql.conf", "listen_addresses = ''\nfsync = off\nfull_page_writes = on\n");
    shop.up();
    let scale = if crate::long() { 30 } else { 4 };
    shop.pg("pgbench", &format!("{} -q -i -s {scale} postgres", shop.local()));

    // The whole cluster, while it is written to and the network goes away.
    let program = |name: &str| shop.programs.join(name).display().to_string();
    let load = format!("{} {} -n -c 2 -R 200 -T 600 postgres", program("pgbench"), shop.local());
    let mut bench = lab.node(1).command("runuser");
    bench.args(["-u", "postgres", "--", "sh", "-c", &load]).current_dir("/").stderr(Stdio::null());
    let bench = Running::start(&mut bench);
    let dump = format!(
        "cd / && runuser -u postgres -- {} {} -D - -Ft -X fetch -c fast",
        program("pg_basebackup"),
        shop.local()
    );
    let backup = [
        "backup",
        "--from-command",
        &dump,
        "beta:shop",
        "--compress",
        "off",
        "--limit-rate",
        "24MiB",
    ];
    let stored = std::thread::scope(|scope| {
        scope.spawn(|| {
            sleep(Duration::from_millis(1500));
            lab.black_hole();
            lab.await_route("storage", Duration::from_secs(5));
            sleep(Duration::from_secs(2));
            lab.black_hole_heal();
        });
        store.run(&backup)
    });
    lab.await_network(Duration::from_secs(30));
    drop(bench);
    // Its clients outlive `runuser`.
    let _ = crate::process::try_sh(&format!("pkill -f '[p]gbench {} -n'", shop.local()));
    println!(
        "  cluster: {} MiB in {:.1} s, {} MiB by storage, {} bytes by network",
        number(&stored, "bytes") / MIB,
        stored["seconds"].as_f64().unwrap_or_default(),
        number(&stored, "storage_bytes") / MIB,
        number(&stored, "network_bytes")
    );
    let data = copy.data.display();
    let unpack = format!("mkdir -m 700 {data} && tar -x -C {data} && chown -R postgres: {data}");
    let restored = store.run(&["restore", "beta:shop", "--to-command", &unpack]);
    assert_eq!(stored["digest"], restored["digest"]);
    let verified = copy.pg("pg_verifybackup", &data.to_string());
    copy.up();
    copy.sql("create extension amcheck");
    copy.pg("pg_amcheck", &format!("{} -U postgres --heapallindexed -d postgres", copy.local()));
    let sums = copy.sql(
        "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from \
         pgbench_tellers), (select sum(bbalance) from pgbench_branches), (select \
         coalesce(sum(delta), 0) from pgbench_history), (select count(*) from pgbench_history)",
    );
    println!("  {}; sums and transactions: {sums}", verified.trim());
    let sums: Vec<&str> = sums.split('|').collect();
    assert!(sums[1..4].iter().all(|sum| *sum == sums[0]) && sums[4] != "0", "{sums:?}");

    // One database of it, as a dump.
    let dump = format!("{} {} -U postgres -Fc postgres", program("pg_dump"), shop.local());
    store.run(&["backup", "--from-command", &dump, "beta:dump"]);
    shop.sql("create database again");
    let load = format!("{} {} -U postgres -d again", program("pg_restore"), shop.local());
    store.run(&["restore", "beta:dump", "--to-command", &load]);
    let content = |database: &str| {
        let query = "select md5(string_agg(t::text, ',' order by t::text)) from pgbench_accounts t";
        shop.pg("psql", &format!("{} -XAt -d {database} -c \"{query}\"", shop.local()))
    };
    let (was, is) = (content("postgres"), content("again"));
    assert!(was.trim().len() == 32 && was == is, "{was} {is}");

    // And one in a file.
    let sqlite = |file: &str, line: &str| {
        crate::sh(&format!("sqlite3 {} \"{line}\"", lab.dir.join(file).display()))
    };
    sqlite(
        "app.db",
        "create table t (n integer primary key, s text unique);
        with recursive c(n) as (select 1 union all select n + 1 from c where n < 50000)
        insert into t select n, hex(randomblob(16)) from c",
    );
    store.run(&["backup", "--from-command", "sqlite3 app.db .dump", "beta:app"]);
    store.run(&["restore", "beta:app", "--to-command", "sqlite3 again.db"]);
    assert_eq!(sqlite("again.db", "pragma integrity_check").trim(), "ok");
    let content = |file: &str| sqlite(file, "select group_concat(n || s) from t");
    let (was, is) = (content("app.db"), content("again.db"));
    assert!(was.len() > 50_000 && was == is, "{} and {} bytes", was.len(), is.len());
    fs::remove_file(lab.dir.join("again.db")).expect("it is there");
}
