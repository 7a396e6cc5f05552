//! Sites with a storage of their own: each node sends on a volume of its own, which is copied to
//! another place, where its peers read it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::bench::{Lab, Plan};
use super::disk::Medium;
use super::node::{Node, binary};
use super::process::{run, sh, wait_for};
use super::runner;

/// Original and replica of each node's volume, and the copies that fill the replicas.
pub(crate) struct Sites {
    volumes: Vec<(PathBuf, PathBuf)>,
    copies: Vec<Copy>,
}

impl Sites {
    /// What to set up: for root, the replicas lie on another file system than the originals.
    pub(crate) fn plan(nodes: usize) -> Plan {
        let medium = if runner::unprivileged() { Medium::File } else { Medium::FileOnArray };
        Plan { nodes, medium, ..Plan::default() }
    }

    /// Formats the volumes, starts the copies, and tells the configurations, before daemons run.
    pub(crate) fn build(lab: &Lab) -> Self {
        let shared = &lab.disk().path;
        let far = shared.parent().expect("a volume in a folder");
        // Nobody uses it here, and its place is needed.
        fs::remove_file(shared).expect("our own file");
        let ids: Vec<String> = lab.nodes.iter().map(|node| node.id.to_string()).collect();
        let mut sites = Self { volumes: Vec::new(), copies: Vec::new() };
        for node in &lab.nodes {
            let send = lab.dir.join(format!("{}.send", node.name));
            let replica = far.join(format!("{}.replica", node.name));
            sh(&format!(
                "{} volume init {} --name {} --nodes {} --size 48MiB",
                binary().display(),
                send.display(),
                node.name,
                ids.join(",")
            ));
            sites.copies.push(Copy::start(&send, &replica));
            sites.volumes.push((send, replica));
        }
        for node in &lab.nodes {
            sites.configure(lab, node);
        }
        sites
    }

    fn configure(&self, lab: &Lab, node: &Node) {
        let text = fs::read_to_string(&node.config).expect("a configuration");
        let shared = format!("volume = \"{}\"", lab.disk().path.display());
        assert!(text.contains(&shared));
        let all = lab.nodes.iter().zip(&self.volumes);
        let peers = all.filter(|(peer, _)| peer.id != node.id);
        let receive: Vec<String> = peers
            .map(|(peer, (_, replica))| format!("{} = \"{}\"", peer.name, replica.display()))
            .collect();
        let own = &self.volumes[node.id - 1].0;
        let separate =
            format!("send = \"{}\"\nreceive = {{ {} }}", own.display(), receive.join(", "));
        fs::write(&node.config, text.replace(&shared, &separate)).expect("a configuration");
    }

    /// All copies die, and others take their place.
    pub(crate) fn kill_and_restart(&mut self) {
        for (copy, (send, replica)) in self.copies.iter_mut().zip(&self.volumes) {
            copy.kill();
            *copy = Copy::start(send, replica);
        }
    }
}

/// `sidepath volume copy --follow`, killed at the end.
struct Copy(Child);

impl Copy {
    fn start(from: &Path, to: &Path) -> Self {
        let child = Command::new(binary())
            .args(["volume", "copy", "--follow"])
            .args([from, to])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let copy = Self(child.expect("the program under test"));
        wait_for("the replica", Duration::from_secs(30), || {
            run(Command::new(binary()).args(["volume", "inspect"]).arg(to), Duration::from_secs(10))
                .and_then(|done| if done.ok() { Ok(()) } else { Err(done.stderr) })
        });
        copy
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.kill();
    }
}
