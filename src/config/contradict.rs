//! What contradicts what, between sections: keys, names and addresses that must be unique, peers
//! outside of the interface's network, addresses that cannot reach each other.
//!
//! Works over whatever could be understood, so that one mistake does not hide the next.

use std::{collections::BTreeMap, net::IpAddr, ops::Range};

use super::{
    InterfaceConfig, NetworkConfig, StorageConfig,
    check::{NodeWords, PeerWords, ReceiveWords, mask_v4},
    file::Word,
    key,
    report::{Report, closest},
};

pub(super) fn against_node(peers: &[PeerWords], node: Option<&NodeWords>, report: &mut Report) {
    let Some(node) = node else { return };
    let line = |report: &Report, span: &Range<usize>| report.line_of(span);
    for peer in peers {
        if let Some(id) = peer.id.as_ref().filter(|id| id.value == node.config.id) {
            let at = line(report, &node.id_span);
            report.error_hint(
                id.span.clone(),
                format!("{} has our own id {}", peer.shown(), id.value),
                format!("ids are unique in the group; ours is on line {at}"),
            );
        }
        if let Some(name) = peer.name.as_ref().filter(|name| name.value == node.config.name) {
            let at = line(report, &node.name_span);
            report.error_hint(
                name.span.clone(),
                format!("a peer has our own name `{}`", name.value),
                format!("names are unique in the group; ours is on line {at}"),
            );
        }
        if let Some(key) = &peer.public_key
            && Some(key.value) == node.public_key
        {
            report.error_hint(
                key.span.clone(),
                format!("{} has our own public key", peer.shown()),
                format!(
                    "put the key that `sidepath keygen` printed on its machine here; ours is in {}",
                    node.config.key_file.display()
                ),
            );
        }
    }
}

/// No two peers share what must be unique.
pub(super) fn against_each_other(peers: &[PeerWords], report: &mut Report) {
    let mut seen: BTreeMap<(&str, String), Range<usize>> = BTreeMap::new();
    let mut once = |what: &'static str, value: String, span: &Range<usize>, report: &mut Report| {
        if let Some(first) = seen.get(&(what, value.clone())) {
            let line = report.line_of(first);
            report.error_hint(
                span.clone(),
                if what == "public key" {
                    "two peers have this public key".to_string()
                } else {
                    format!("two peers have the {what} `{value}`")
                },
                format!("the first is on line {line}"),
            );
        } else {
            seen.insert((what, value), span.clone());
        }
    };
    for peer in peers {
        if let Some(id) = &peer.id {
            once("id", id.value.to_string(), &id.span, report);
        }
        if let Some(name) = &peer.name {
            once("name", name.value.clone(), &name.span, report);
        }
        if let Some(key) = &peer.public_key {
            once("public key", key::encode(&key.value), &key.span, report);
        }
        if let Some(address) = &peer.address {
            once("address", address.value.to_string(), &address.span, report);
        }
        for endpoint in &peer.endpoints {
            once("endpoint", endpoint.value.to_string(), &endpoint.span, report);
        }
    }
}

pub(super) fn inside_interface(
    peers: &[PeerWords],
    interface: &Word<InterfaceConfig>,
    span: Range<usize>,
    report: &mut Report,
) {
    let own = &interface.value;
    for peer in peers {
        let Some(address) = &peer.address else {
            if !peer.has_address {
                report.warning(
                    peer.span.clone(),
                    format!("{} has no `address`: no packet can reach it", peer.shown()),
                    "write its address on the interface, for example: address = \"10.98.0.2\"",
                );
            }
            continue;
        };
        if address.value == own.address {
            report.error_hint(
                address.span.clone(),
                format!("{} has our own address {}", peer.shown(), own.address),
                format!("ours is on line {}", report.line_of(&interface.span)),
            );
        } else if !same_network(address.value, own.address, own.prefix) {
            report.error_hint(
                address.span.clone(),
                format!(
                    "{} lies outside of the interface's network {}/{}",
                    address.value, own.address, own.prefix
                ),
                format!(
                    "no route would lead to it; see [interface] on line {}",
                    report.line_of(&span)
                ),
            );
        }
    }
}

pub(super) fn against_network(
    peers: &[PeerWords],
    network: Option<&Option<Word<NetworkConfig>>>,
    storage: bool,
    report: &mut Report,
) {
    for peer in peers {
        match network {
            Some(Some(network)) => {
                for endpoint in &peer.endpoints {
                    if endpoint.value.is_ipv4() != network.value.listen.is_ipv4()
                        && !network.value.listen.ip().is_unspecified()
                    {
                        report.error_hint(
                            endpoint.span.clone(),
                            format!(
                                "{} cannot be reached from {}: one is IPv4, the other IPv6",
                                endpoint.value, network.value.listen
                            ),
                            "use the same family in `listen` and `endpoints`",
                        );
                    }
                }
                if !peer.has_endpoints {
                    let rest =
                        if storage { "it is reached by storage alone" } else { "unreachable" };
                    report.warning(
                        peer.span.clone(),
                        format!("{} has no `endpoints`: {rest} until it calls us", peer.shown()),
                        "for example: endpoints = [\"192.0.2.2:7440\"]",
                    );
                }
            }
            Some(None) => {}
            None if peer.has_endpoints => report.warning(
                peer.span.clone(),
                format!("{} has `endpoints`, but there is no [network]", peer.shown()),
                "add [network] listen = \"...\", or remove the endpoints",
            ),
            None => {}
        }
    }
}

pub(super) fn receive_names(
    peers: &[PeerWords],
    storage: &StorageConfig,
    receive: &ReceiveWords,
    report: &mut Report,
) {
    let names: Vec<&str> = peers
        .iter()
        .filter_map(|peer| peer.name.as_ref())
        .map(|name| name.value.as_str())
        .collect();
    for (word, (_, location)) in receive.iter().zip(&storage.receive) {
        if !names.contains(&word.value.as_str()) {
            let hint = match closest(&word.value, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => "there is no [[peer]] at all".into(),
                None => format!("peers are: {}", names.join(", ")),
            };
            report.error_hint(
                word.span.clone(),
                format!("no peer is named `{}`", word.value),
                hint,
            );
        }
        if location.is_same(&storage.send) {
            report.error_hint(
                word.span.clone(),
                format!("`{}` is read from the volume we send on", word.value),
                "leave it out when the volume is shared, or name the replica of its send volume",
            );
        }
    }
}

fn same_network(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()) & mask_v4(prefix, false) == 0,
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let host_bits = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            (a.to_bits() ^ b.to_bits()) & !host_bits == 0
        }
        _ => false,
    }
}
