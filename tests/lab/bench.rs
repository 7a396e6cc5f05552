//! The room: one switch, some machines, a cable from each to the switch, and the ways to cut.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::disk::{Disk, Medium};
use super::node::Node;
use super::process::{run, sh, try_sh, wait_for};
use super::runner;
use super::status::Status;
use super::sys;

/// What to set up. The defaults are those of the acceptance list: two nodes, a block device.
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) medium: Medium,
    /// Lines added to the `[network]` table of every node.
    pub(crate) network: &'static str,
    /// Machines on the switch that nobody knows.
    pub(crate) strangers: usize,
}

impl Default for Plan {
    fn default() -> Self {
        let medium = if runner::unprivileged() { Medium::File } else { Medium::Block };
        Self { nodes: 2, medium, network: "", strangers: 0 }
    }
}

pub(crate) struct Lab {
    pub(crate) nodes: Vec<Node>,
    pub(crate) strangers: Vec<Node>,
    pub(crate) dir: PathBuf,
    disk: Option<Disk>,
    prefix: String,
    switch: String,
}

impl Lab {
    /// Machines and cables only, for control runs without sidepath.
    pub(crate) fn bare(nodes: usize) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}-{number}", runner::prefix());
        let dir = runner::folder().join(number.to_string());
        fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        sh(&format!("chmod 755 {}", dir.display()));
        let switch = format!("{prefix}-switch");
        let nodes: Vec<Node> = (1..=nodes).map(|id| Node::new(id, &prefix, &dir)).collect();
        let lab = Self { nodes, strangers: Vec::new(), dir, disk: None, prefix, switch };
        lab.wire();
        lab
    }

    /// Machines, cables, keys, a volume and a configuration each; no daemon runs yet.
    pub(crate) fn new(plan: Plan) -> Self {
        let mut lab = Self::bare(plan.nodes + plan.strangers);
        lab.strangers = lab.nodes.split_off(plan.nodes);
        let namespaces: Vec<String> = lab.nodes.iter().map(|node| node.ns.clone()).collect();
        let disk = Disk::new(plan.medium, &lab.dir, &namespaces);
        let ids: Vec<String> = lab.nodes.iter().map(|node| node.id.to_string()).collect();
        disk.init(&ids.join(","));
        for node in &mut lab.nodes {
            node.make_key();
        }
        for node in &lab.nodes {
            let peers: Vec<&Node> = lab.nodes.iter().filter(|peer| peer.id != node.id).collect();
            node.write_config(&disk.path_of(node.id), &peers, plan.network);
        }
        lab.disk = Some(disk);
        lab
    }

    /// A lab whose daemons run and see each other on the network.
    pub(crate) fn running(plan: Plan) -> Self {
        let lab = Self::new(plan);
        for node in &lab.nodes {
            node.start();
        }
        lab.await_network(Duration::from_secs(20));
        lab
    }

    pub(crate) fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("a lab with a volume")
    }

    /// Waits until every node reaches every peer by network, storage standing by.
    pub(crate) fn await_network(&self, limit: Duration) -> Duration {
        self.await_status("every peer alive, route network, storage up", limit, |status, peer| {
            status.state(peer) == "alive"
                && status.route(peer) == "network"
                && status.storage(peer) == "up"
        })
    }

    /// Waits until all routes are `route`; returns how long it took.
    pub(crate) fn await_route(&self, route: &str, limit: Duration) -> Duration {
        self.await_status(&format!("every route {route}"), limit, |status, peer| {
            status.route(peer) == route
        })
    }

    pub(crate) fn await_status(
        &self,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Status, usize) -> bool,
    ) -> Duration {
        let ask = || {
            for node in &self.nodes {
                let status = node.try_status()?;
                for peer in self.nodes.iter().filter(|peer| peer.id != node.id) {
                    if !fits(&status, peer.id) {
                        return Err(format!("{}: {}", node.name, status.brief()));
                    }
                }
            }
            Ok(())
        };
        wait_for(what, limit, ask).1
    }

    /// Reads every status once more; both balances are checked on the way, and nobody may have
    /// anything queued or held for long once traffic has ended.
    pub(crate) fn await_settled(&self, limit: Duration) {
        self.await_status("nothing queued and nothing held", limit, |status, peer| {
            status.counter(peer, "queued") == 0 && status.counter(peer, "held") == 0
        });
    }

    /// The network is gone between one packet and the next, and nobody is told.
    pub(crate) fn black_hole(&self) {
        sh(&format!("ip -n {} link set br0 down", self.switch));
    }

    pub(crate) fn black_hole_heal(&self) {
        sh(&format!("ip -n {} link set br0 up", self.switch));
    }

    /// Pulls the cable of one node: it sees its link go down, the others see silence.
    pub(crate) fn pull_cable(&self, node: usize) {
        sh(&format!("ip -n {} link set p{node} down", self.switch));
    }

    pub(crate) fn plug_cable(&self, node: usize) {
        sh(&format!("ip -n {} link set p{node} up", self.switch));
    }

    /// Nothing from the network reaches this node any more; what it sends still arrives.
    pub(crate) fn deafen(&self, node: usize) {
        let ns = &self.node(node).ns;
        sh(&format!("ip netns exec {ns} nft add rule inet lab input iifname eth0 drop"));
    }

    pub(crate) fn undeafen(&self, node: usize) {
        let ns = &self.node(node).ns;
        sh(&format!("ip netns exec {ns} nft flush chain inet lab input"));
    }

    /// Bytes that left the wires of all machines so far.
    pub(crate) fn wire_bytes(&self) -> u64 {
        let of = |node: &Node| {
            let shown = node.sh("ip -s -j link show eth0");
            let json: serde_json::Value = serde_json::from_str(&shown).expect("JSON of ip");
            json[0]["stats64"]["tx"]["bytes"].as_u64().expect("a counter")
        };
        self.nodes.iter().map(of).sum()
    }

    /// A node by its id, counted from 1 as in the configuration.
    pub(crate) fn node(&self, id: usize) -> &Node {
        &self.nodes[id - 1]
    }

    fn wire(&self) {
        let switch = &self.switch;
        let mut lines = vec![
            "set -e".to_owned(),
            format!("ip netns add {switch}"),
            format!(
                "ip -n {switch} link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            ),
            format!("ip -n {switch} link set br0 up"),
        ];
        for node in &self.nodes {
            let (ns, id) = (&node.ns, node.id);
            lines.extend([
                format!("ip netns add {ns}"),
                format!("ip netns exec {ns} sh -c 'echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6'"),
                format!("ip -n {ns} link set lo up"),
                format!("ip -n {switch} link add p{id} type veth peer name eth0 netns {ns}"),
                format!("ip -n {switch} link set p{id} master br0 up"),
                format!("ip -n {ns} addr add {}/24 dev eth0", node.underlay),
                format!("ip -n {ns} link set eth0 up"),
                format!("ip netns exec {ns} nft 'add table inet lab; add chain inet lab input {{ type filter hook input priority 0; }}'"),
            ]);
        }
        sh(&lines.join("\n"));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(disk) = &self.disk {
            disk.release();
        }
        if std::thread::panicking() {
            println!("---- the lab when the story failed ({})", self.dir.display());
            for node in &self.nodes {
                node.describe();
            }
            println!("----");
        }
        for node in &self.nodes {
            node.kill();
        }
        if std::env::var_os("SIDEPATH_LAB_KEEP").is_some() {
            let kept = std::env::temp_dir().join(format!("sidepath-kept-{}", self.prefix));
            try_sh(&format!("cp -a {} {}", self.dir.display(), kept.display()));
            println!("kept the files of this lab in {}", kept.display());
        }
        clear(&self.prefix, &self.dir);
    }
}

/// Removes every process, namespace, loop device and mount of the labs whose namespaces begin
/// with `prefix`, and their folder. Goes on over whatever is already gone.
pub(crate) fn clear(prefix: &str, dir: &Path) {
    let shown = dir.display().to_string();
    let below = |path: &str| path.starts_with(&format!("{shown}/"));
    // First of all undo faults, so that nothing below hangs in the kernel.
    let loops: Vec<(String, String)> = try_sh("losetup -l -n -O NAME,BACK-FILE 2>/dev/null")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().split_once(char::is_whitespace))
        .map(|(name, file)| (name.to_owned(), file.trim().to_owned()))
        .filter(|(_, file)| below(file))
        .collect();
    for (name, _) in &loops {
        let _ = sys::limit_loop(Path::new(name), 0);
    }
    let mounts: Vec<String> = fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(str::to_owned))
        .filter(|target| below(target))
        .collect();
    for target in &mounts {
        try_sh(&format!("fsfreeze -u {target} 2>/dev/null"));
    }

    let namespaces: Vec<String> = try_sh("ip netns list")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|name| name == prefix || name.starts_with(&format!("{prefix}-")))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut left = Vec::new();
        for ns in &namespaces {
            let pids = try_sh(&format!("ip netns pids {ns}")).unwrap_or_default();
            left.extend(pids.lines().filter_map(|pid| pid.trim().parse::<u32>().ok()));
        }
        for pid in &left {
            sys::signal(*pid, libc::SIGKILL);
        }
        if left.is_empty() || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for ns in &namespaces {
        try_sh(&format!("ip netns del {ns}"));
    }

    let under_mount = |file: &str| mounts.iter().any(|mount| file.starts_with(mount.as_str()));
    for (name, _) in loops.iter().filter(|(_, file)| under_mount(file)) {
        try_sh(&format!("losetup -d {name}"));
    }
    for target in mounts.iter().rev() {
        if try_sh(&format!("umount {target} 2>/dev/null")).is_none() {
            try_sh(&format!("umount -l {target}"));
        }
    }
    for (name, _) in loops.iter().filter(|(_, file)| !under_mount(file)) {
        try_sh(&format!("losetup -d {name}"));
    }
    let _ = run(Command::new("rm").arg("-rf").arg(dir), Duration::from_secs(30));
}
