//! `sidepath status`: what an operator reads at three in the morning.
//!
//! The most important words come first on their lines: who, alive or not, by which route, since
//! when and why. Numbers come in two lines that balance, so that nothing can hide between them.

use std::time::{Duration, SystemTime};

use failover::{Cut, Route, health::Verdict, status::PeerState};

use super::{Out, Outcome, client::Target, out::Tone, stamp};
use crate::{
    admin::document::{Change, Document, Peer, Replica, Volume},
    config::quantity::{show_duration, show_size},
};

/// How a daemon is.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// The whole document as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let document = args.target.connect()?.document()?;
    if args.json {
        return out.json(&document, false);
    }
    show(&document, SystemTime::now(), out)
}

fn show(document: &Document, now: SystemTime, out: &mut Out) -> Outcome {
    let node = &document.node;
    let beats = if node.realtime { "real-time beats" } else { "beats without real-time priority" };
    let uptime = Duration::try_from_secs_f64(node.uptime_s).unwrap_or_default();
    let name = out.paint(Tone::Strong, &node.name);
    out.line(format!(
        "{name} (node {})  sidepath {}  up {}  {beats}",
        node.id,
        node.version,
        show_duration(Duration::from_secs(uptime.as_secs()))
    ))?;
    match &document.interface {
        Some(i) => out.line(format!("interface {}  {}  mtu {}", i.name, i.address, i.mtu))?,
        None => out.line("no interface")?,
    }
    for warning in &document.warnings {
        let word = out.paint(Tone::Warn, "warning");
        out.line(format!("{word}  {warning}"))?;
    }
    for peer in &document.peers {
        out.line("")?;
        show_peer(peer, now, out)?;
    }
    if document.peers.is_empty() {
        out.line("\nno peers")?;
    }
    if !document.volumes.is_empty() || !document.replicas.is_empty() {
        out.line("")?;
    }
    for volume in &document.volumes {
        show_volume(volume, &document.peers, out)?;
    }
    for replica in &document.replicas {
        show_replica(replica, out)?;
    }
    let refused: u64 = document.refused.values().sum();
    if refused > 0 || document.unroutable > 0 {
        out.line("")?;
    }
    if refused > 0 {
        out.line(format!(
            "refused before a peer was known: {refused} frames{}",
            causes(&document.refused)
        ))?;
    }
    if document.unroutable > 0 {
        out.line(format!("packets that belong to no peer: {}", document.unroutable))?;
    }
    Ok(())
}

fn show_peer(peer: &Peer, now: SystemTime, out: &mut Out) -> Outcome {
    let name = out.paint(Tone::Strong, format!("{} ({})", peer.name, peer.id));
    let state = state_word(peer.state, out);
    let route = route_word(peer.route, out);
    let mut line = format!("peer {name}  {state}  route {route}");
    if let Some(change) = &peer.last_change {
        line.push_str(&since(change, now));
    }
    out.line(line)?;
    if peer.peer_route != word(&peer.route) {
        out.line(format!("  its route to us: {}", peer.peer_route))?;
    }
    if !peer.keys {
        out.line("  no keys agreed yet: nothing can be sent until the handshake is done")?;
    }
    if let Some(cut) = peer.drill {
        let what = match cut {
            Cut::Network => "the network is",
            Cut::Storage => "storage is",
            Cut::Both => "both paths are",
        };
        let word = out.paint(Tone::Warn, "drill");
        out.line(format!("  {word}     {what} cut on purpose"))?;
    }
    let network = path_line(
        peer.network.state,
        peer.network.reason.as_deref(),
        peer.network.rtt_us.map(|us| format!("round trip {}", show_duration(micros(us)))),
        peer.network.last_heard_ms,
        out,
    );
    out.line(format!("  network   {network}"))?;
    let storage = path_line(
        peer.storage.state,
        peer.storage.reason.as_deref(),
        peer.storage.latency_us.map(|us| format!("latency {}", show_duration(micros(us)))),
        peer.storage.last_heard_ms,
        out,
    );
    out.line(format!("  storage   {storage}"))?;
    let c = &peer.counters;
    let lost = if c.lost > 0 {
        out.paint(Tone::Bad, format!("{} lost", c.lost))
    } else {
        "0 lost".to_string()
    };
    out.line(format!(
        "  sent      {} accepted = {} acknowledged + {} queued + {lost}{}",
        c.accepted,
        c.acknowledged,
        c.queued,
        causes(&c.lost_by_cause)
    ))?;
    out.line(format!(
        "  received  {} arrived = {} delivered + {} held + {} dropped{}",
        c.arrived,
        c.delivered,
        c.held,
        c.dropped,
        causes(&c.dropped_by_cause)
    ))?;
    out.line(format!(
        "  moved     {} by network, {} by storage; {} resent; failovers {}, failbacks {}",
        show_size(c.network_bytes),
        show_size(c.storage_bytes),
        c.resent,
        c.failovers,
        c.failbacks
    ))
}

fn show_volume(volume: &Volume, peers: &[Peer], out: &mut Out) -> Outcome {
    let state = match volume.state.as_str() {
        "up" => out.paint(Tone::Good, "up"),
        "suspect" => out.paint(Tone::Warn, "suspect"),
        other => out.paint(Tone::Bad, other),
    };
    let mut parts = vec![state];
    if let Some(reason) = &volume.reason {
        parts.push(reason.clone());
    }
    if let Some(us) = volume.write_latency_us {
        parts.push(format!("write {}", show_duration(micros(us))));
    }
    out.line(format!("volume {} ({})  {}", volume.path, volume.role, parts.join(", ")))?;
    if let Some(requests) = &volume.requests {
        let asked = requests.by_kind().into_iter().filter(|&(_, count)| count > 0);
        let asked = asked.map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>();
        let throttled = match requests.throttled {
            0 => String::new(),
            count => format!("; {count} throttled"),
        };
        out.line(format!(
            "  requests  {}; {} sent, {} received{throttled}",
            asked.join(", "),
            show_size(requests.sent_bytes),
            show_size(requests.received_bytes)
        ))?;
    }
    for lane in &volume.lanes {
        let name = peers.iter().find(|peer| peer.id == lane.to).map_or_else(
            || format!("node {}", lane.to),
            |peer| format!("{} ({})", peer.name, peer.id),
        );
        out.line(format!(
            "  lane to {name}: {} of {} unread",
            show_size(lane.used_bytes),
            show_size(lane.size_bytes)
        ))?;
    }
    Ok(())
}

fn show_replica(replica: &Replica, out: &mut Out) -> Outcome {
    let shown = replica.state.replace('_', " ");
    let state = match (replica.state.as_str(), &replica.reason) {
        ("stalled" | "failed" | "refused", _) => out.paint(Tone::Bad, shown),
        (_, Some(_)) => out.paint(Tone::Warn, shown),
        _ => out.paint(Tone::Good, shown),
    };
    let mut parts = vec![state];
    parts.extend(replica.reason.clone());
    if let Some((done, all)) = replica.making {
        parts.push(format!("{} of {} written", show_size(done), show_size(all)));
    }
    if replica.lag_records > 0 {
        let lag = Duration::try_from_secs_f64(replica.lag_ms / 1e3).unwrap_or_default();
        let lag = Duration::from_micros(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX));
        parts.push(format!(
            "behind by {} records, {}, {}",
            replica.lag_records,
            show_size(replica.lag_bytes),
            show_duration(lag)
        ));
    }
    parts.push(format!("{} records, {} copied", replica.records, show_size(replica.bytes)));
    if replica.missing > 0 {
        parts.push(out.paint(Tone::Warn, format!("{} missing", replica.missing)));
    }
    out.line(format!(
        "replica {} of {} ({})  {}",
        replica.to,
        replica.from,
        replica.mode,
        parts.join(", ")
    ))
}

fn path_line(
    state: Verdict,
    reason: Option<&str>,
    time: Option<String>,
    last_heard_ms: Option<u64>,
    out: &Out,
) -> String {
    let tone = match state {
        Verdict::Up => Tone::Good,
        Verdict::Suspect => Tone::Warn,
        Verdict::Down => Tone::Bad,
        Verdict::Disabled => Tone::Dim,
    };
    let mut parts = vec![out.paint(tone, word(&state))];
    parts.extend(reason.map(str::to_string));
    if state != Verdict::Disabled {
        parts.extend(time);
        parts.push(heard(last_heard_ms));
    }
    parts.join(", ")
}

/// `heard 80ms ago`.
pub(super) fn heard(ms: Option<u64>) -> String {
    ms.map_or_else(
        || "never heard".into(),
        |ms| format!("heard {} ago", show_duration(Duration::from_millis(ms))),
    )
}

/// ` since 14s (was both: network down)`.
fn since(change: &Change, now: SystemTime) -> String {
    let ago = stamp::parse(&change.at).and_then(|at| now.duration_since(at).ok());
    let when = ago.map_or_else(
        || format!("since {}", change.at),
        |ago| {
            let ago = if ago.as_secs() >= 10 { Duration::from_secs(ago.as_secs()) } else { ago };
            let ago = Duration::from_millis(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
            format!("for {}", show_duration(ago))
        },
    );
    format!(" {when} (was {}: {})", word(&change.from), change.reason)
}

pub(super) fn state_word(state: PeerState, out: &Out) -> String {
    let tone = match state {
        PeerState::Alive => Tone::Good,
        PeerState::Dead => Tone::Bad,
        PeerState::Unknown => Tone::Warn,
    };
    out.paint(tone, word(&state))
}

pub(super) fn route_word(route: Route, out: &Out) -> String {
    let tone = match route {
        Route::Network => Tone::Good,
        Route::Both | Route::Storage => Tone::Warn,
        Route::Isolated => Tone::Bad,
    };
    out.paint(tone, word(&route))
}

/// The word the JSON document uses for it.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn causes(by_cause: &std::collections::BTreeMap<String, u64>) -> String {
    let parts: Vec<_> = by_cause
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(cause, count)| format!("{cause} {count}"))
        .collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

const fn micros(us: u64) -> Duration {
    Duration::from_micros(us)
}
