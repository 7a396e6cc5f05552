//! A PostgreSQL primary and its synchronous standby, pgbench running, the network goes dark.
//! Over the virtual interface no transaction may wait and the standby's receiver must live on;
//! the control run over the bare network shows the standstill and the reconnect.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::database::{self, Server};
use crate::process::wait_child;
use crate::{Lab, Needs, Node, Plan, Story, wait_for};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, tell| Story {
        name,
        needs: Needs::Root,
        tools: &["psql", "runuser"],
        guard: Duration::from_secs(300),
        tell,
    };
    vec![
        story("over_sidepath_nobody_waits", over_sidepath_nobody_waits),
        story("without_sidepath_it_stands_still", without_sidepath_it_stands_still),
    ]
}

fn dark_for() -> Duration {
    Duration::from_secs(if crate::long() { 30 } else { 8 })
}

fn over_sidepath_nobody_waits() {
    let lab = Lab::running(Plan::default());
    let pair = Pair::start(&lab, |node| node.overlay.clone());
    let receiver = pair.receiver();
    let bench = pair.bench(&lab.dir, 3 + dark_for().as_secs() + 6);
    sleep(Duration::from_secs(3));
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    let until = Instant::now() + dark_for();
    while Instant::now() < until {
        lab.nodes.iter().for_each(|node| drop(node.status()));
        assert_eq!(pair.receiver(), receiver, "the receiver's process while the network is dark");
        sleep(Duration::from_millis(500));
    }
    lab.black_hole_heal();
    lab.await_network(Duration::from_secs(30));
    let result = bench.result();
    println!("  {result}");
    pair.await_equal();
    assert_eq!(pair.receiver(), receiver, "the receiver's process at the end");
    lab.await_settled(Duration::from_secs(10));
    assert!(result.longest <= Duration::from_secs(1), "a transaction waited: {result}");
}

fn without_sidepath_it_stands_still() {
    let lab = Lab::bare(2);
    let pair = Pair::start(&lab, |node| node.underlay.clone());
    let receiver = pair.receiver();
    let bench = pair.bench(&lab.dir, 3 + dark_for().as_secs() + 10);
    sleep(Duration::from_secs(3));
    lab.black_hole();
    sleep(dark_for());
    lab.black_hole_heal();
    let (_, took) = wait_for("another receiver process", Duration::from_secs(40), || {
        match pair.try_receiver() {
            Some(pid) if pid != receiver => Ok(()),
            other => Err(format!("{other:?}, it was {receiver}")),
        }
    });
    let result = bench.result();
    println!("  reconnected {:.1} s after the heal; {result}", took.as_secs_f64());
    pair.await_equal();
    assert!(result.longest >= dark_for() / 2, "the control run must stand still: {result}");
}

struct Pair<'lab> {
    // Ends first.
    standby: Server<'lab>,
    primary: Server<'lab>,
}

impl<'lab> Pair<'lab> {
    fn start(lab: &'lab Lab, address: fn(&Node) -> String) -> Self {
        let home = database::home(lab);
        let server =
            |id: usize, port| Server::new(lab.node(id), home.join(lab.node(id).name), port);
        let pair = Self { primary: server(1, 5441), standby: server(2, 5442) };
        let (primary, standby) = (&pair.primary, &pair.standby);

        primary.init("");
        primary.add(
            "postgresql.conf",
            "listen_addresses = '*'\nfsync = off\nwal_sender_timeout = 5s\n\
             wal_receiver_timeout = 5s\nsynchronous_commit = remote_apply\n",
        );
        primary.add(
            "pg_hba.conf",
            "host all all 192.0.2.0/24 trust\nhost replication all 192.0.2.0/24 trust\n\
             host all all 10.98.0.0/24 trust\nhost replication all 10.98.0.0/24 trust\n",
        );
        primary.up();
        primary.pg("pgbench", &format!("{} -q -i -s 1 postgres", primary.local()));
        standby.pg(
            "pg_basebackup",
            &format!(
                "-h {} -p {} -U postgres -D {} -R -X stream -c fast -C -S standby",
                address(primary.node),
                primary.port,
                standby.data.display()
            ),
        );
        standby.up();
        primary.sql("alter system set synchronous_standby_names = '*'");
        primary.sql("select pg_reload_conf()");
        wait_for("a synchronous standby", Duration::from_secs(20), || {
            let state = primary.sql("select sync_state from pg_stat_replication");
            if state == "sync" { Ok(()) } else { Err(state) }
        });
        pair
    }

    /// The process on the standby that receives the log.
    #[track_caller]
    fn receiver(&self) -> u32 {
        self.try_receiver().expect("a receiver process on the standby")
    }

    fn try_receiver(&self) -> Option<u32> {
        self.standby.sql("select pid from pg_stat_wal_receiver").parse().ok()
    }

    /// Starts a steady load on the primary for some seconds.
    fn bench(&self, dir: &Path, seconds: u64) -> Bench {
        let log = dir.join("postgres/transactions");
        let line = format!(
            "{}/pgbench {} -n -c 4 -j 1 -R 100 -T {seconds} --log --log-prefix={} postgres",
            self.primary.programs.display(),
            self.primary.local(),
            log.display()
        );
        let child = self
            .primary
            .node
            .command("runuser")
            .args(["-u", "postgres", "--", "sh", "-c", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("pgbench: {error}"));
        Bench { child, log, limit: Duration::from_secs(seconds + 60) }
    }

    /// Waits until the standby has applied everything, and compares the contents.
    fn await_equal(&self) {
        let end = self.primary.sql("select pg_current_wal_lsn()");
        let applied = format!("select pg_last_wal_replay_lsn() >= '{end}'");
        wait_for("the standby to apply everything", Duration::from_secs(30), || {
            let answer = self.standby.sql(&applied);
            if answer == "t" { Ok(()) } else { Err(answer) }
        });
        for table in ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"]
        {
            let query = format!(
                "select count(*), md5(string_agg(t::text, ',' order by t::text)) from {table} t"
            );
            let (here, there) = (self.primary.sql(&query), self.standby.sql(&query));
            assert!(here.len() > 32, "{table}: {here}");
            assert_eq!(here, there, "contents of {table}");
        }
    }
}

struct Bench {
    child: Child,
    log: PathBuf,
    limit: Duration,
}

struct Outcome {
    transactions: usize,
    longest: Duration,
    median: Duration,
}

impl Bench {
    /// Waits for the end and reads the time of every transaction.
    fn result(mut self) -> Outcome {
        let ended = wait_child(&mut self.child, self.limit);
        assert!(ended.is_some_and(|status| status.success()), "pgbench ends well: {ended:?}");
        let name = self.log.file_name().expect("a name").to_string_lossy().into_owned();
        let mut times: Vec<Duration> = Vec::new();
        for entry in fs::read_dir(self.log.parent().expect("a folder")).expect("it").flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("{name}.")) {
                // client, number, microseconds since it was due, script, two words of when, and
                // microseconds it began late because all clients were busy.
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let time = |line: &str| {
                    let words: Vec<u64> =
                        line.split(' ').filter_map(|word| word.parse().ok()).collect();
                    Some(words.get(2)?.saturating_sub(*words.get(6)?))
                };
                times.extend(text.lines().filter_map(time).map(Duration::from_micros));
            }
        }
        assert!(!times.is_empty(), "pgbench logged no transaction");
        times.sort();
        Outcome {
            transactions: times.len(),
            longest: times[times.len() - 1],
            median: times[times.len() / 2],
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let (median, longest) = (ms(self.median), ms(self.longest));
        write!(
            out,
            "{} transactions, median {median:.1} ms, longest {longest:.0} ms",
            self.transactions
        )
    }
}
