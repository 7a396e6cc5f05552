//! What a changed configuration changes: one line each, or why it cannot be applied.
//!
//! A reload is taken over whole or not at all: the first thing that needs a restart refuses it
//! before anything was touched.

use crate::config::{Config, PeerConfig, ReplicateConfig};

/// Lines for people; empty when nothing changed.
///
/// # Errors
/// Names the first thing that cannot change while the daemon runs.
pub(super) fn diff(old: &Config, new: &Config) -> Result<Vec<String>, String> {
    let fixed = [
        ("node.id", old.node.id != new.node.id),
        ("node.name", old.node.name != new.node.name),
        ("node.group", old.node.group != new.node.group),
        ("node.key_file", old.node.key_file != new.node.key_file),
        ("node.state_dir", old.node.state_dir != new.node.state_dir),
        ("node.control_socket", old.node.control_socket != new.node.control_socket),
        ("interface", old.interface != new.interface),
        ("storage", old.storage != new.storage),
        ("metrics.listen", old.metrics != new.metrics),
        ("security.plaintext", old.plaintext != new.plaintext),
        ("sessions.forward_ports", old.sessions != new.sessions),
        ("backup_store", old.backup_store != new.backup_store),
        ("network", old.network.is_some() != new.network.is_some()),
        (
            "network.listen",
            old.network.as_ref().map(|n| n.listen) != new.network.as_ref().map(|n| n.listen),
        ),
    ];
    if let Some((what, _)) = fixed.into_iter().find(|(_, changed)| *changed) {
        return Err(format!(
            "{what} cannot change while the daemon runs: nothing was changed; restart it"
        ));
    }
    let mut lines = Vec::new();
    if let (Some(before), Some(after)) = (&old.network, &new.network) {
        for (what, before, after) in [
            ("network.heartbeat", before.heartbeat, after.heartbeat),
            ("network.hold", before.hold, after.hold),
        ] {
            if before != after {
                lines.push(format!("{what}: {before:?} -> {after:?}"));
            }
        }
    }
    for peer in &new.peers {
        match old.peers.iter().find(|p| p.id == peer.id) {
            None => lines.push(format!("peer {} ({}): added", peer.name, peer.id)),
            Some(before) => peer_lines(before, peer, &mut lines),
        }
    }
    for peer in &old.peers {
        if !new.peers.iter().any(|p| p.id == peer.id) {
            lines.push(format!("peer {} ({}): removed", peer.name, peer.id));
        }
    }
    replica_lines(&old.replicate, &new.replicate, &mut lines);
    if old.hooks != new.hooks {
        lines.push("hooks.on_route_change: changed".into());
    }
    if old.classes != new.classes {
        lines.push("classes: changed".into());
    }
    Ok(lines)
}

fn replica_lines(old: &[ReplicateConfig], new: &[ReplicateConfig], lines: &mut Vec<String>) {
    for after in new {
        match old.iter().find(|before| before.to == after.to) {
            None => lines.push(format!("replica {}: added", after.to)),
            Some(before) if before != after => {
                lines.push(format!("replica {}: changed, begun anew", after.to));
            }
            Some(_) => {}
        }
    }
    for before in old {
        if !new.iter().any(|after| after.to == before.to) {
            lines.push(format!("replica {}: removed", before.to));
        }
    }
}

fn peer_lines(before: &PeerConfig, after: &PeerConfig, lines: &mut Vec<String>) {
    let who = format!("peer {} ({})", before.name, before.id);
    if before.name != after.name {
        lines.push(format!("{who}: name -> {}", after.name));
    }
    if before.public_key != after.public_key {
        lines.push(format!("{who}: public_key changed"));
    }
    if before.endpoints != after.endpoints {
        let list = |peer: &PeerConfig| {
            peer.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        lines.push(format!("{who}: endpoints {} -> {}", list(before), list(after)));
    }
    if before.address != after.address {
        let show =
            |peer: &PeerConfig| peer.address.map_or_else(|| "none".to_string(), |a| a.to_string());
        lines.push(format!("{who}: address {} -> {}", show(before), show(after)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::daemon::tests::config;

    #[test]
    fn changes_are_told_line_by_line() {
        let old = config(1, "127.0.0.1:7440");
        assert_eq!(diff(&old, &old), Ok(vec![]));
        let mut new = old.clone();
        new.network.as_mut().unwrap().hold = Duration::from_secs(9);
        new.peers[0].endpoints = vec!["127.0.0.1:9".parse().unwrap()];
        let mut ports = new.clone();
        ports.sessions.forward_ports = Some(vec![]);
        assert!(diff(&new, &ports).unwrap_err().contains("sessions.forward_ports"));
        let mut third = new.peers[0].clone();
        third.id = failover::NodeId::new(3).unwrap();
        third.name = "gamma".into();
        new.peers.push(third);
        assert_eq!(
            diff(&old, &new).unwrap(),
            [
                "network.hold: 1s -> 9s",
                "peer beta (2): endpoints 127.0.0.1:7441 -> 127.0.0.1:9",
                "peer gamma (3): added",
            ]
        );
        assert_eq!(diff(&new, &old).unwrap()[2], "peer gamma (3): removed");
    }

    #[test]
    fn replicas_come_change_and_go() {
        let entry = |to: &str, limit| ReplicateConfig {
            from: std::path::Path::new("/a").into(),
            to: std::path::Path::new(to).into(),
            mode: crate::config::ReplicaMode::Continuous,
            limit,
        };
        let mut old = config(1, "127.0.0.1:7440");
        old.replicate = vec![entry("/b", None), entry("/c", None), entry("/d", None)];
        let mut new = old.clone();
        new.replicate = vec![entry("/e", None), entry("/c", Some(1 << 20)), entry("/b", None)];
        assert_eq!(
            diff(&old, &new).unwrap(),
            ["replica /e: added", "replica /c: changed, begun anew", "replica /d: removed"]
        );
    }

    #[test]
    fn what_needs_a_restart_refuses_everything() {
        let old = config(1, "127.0.0.1:7440");
        let mut new = old.clone();
        new.hooks.on_route_change = vec!["/bin/true".into()];
        new.network.as_mut().unwrap().listen = "127.0.0.1:1".parse().unwrap();
        assert!(diff(&old, &new).unwrap_err().starts_with("network.listen cannot change"));
    }
}
