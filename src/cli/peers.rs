//! `sidepath peers`: one line per peer.

use super::{
    Out, Outcome,
    client::Target,
    out::Tone,
    status::{heard, route_word, state_word, word},
};
use crate::admin::document::Peer;

/// A short table of peers.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// The `peers` of the status document as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let document = args.target.connect()?.document()?;
    if args.json {
        return out.json(&document.peers, false);
    }
    if document.peers.is_empty() {
        out.talk("no peers configured");
        return Ok(());
    }
    let width = document.peers.iter().map(|peer| peer.name.len()).max().unwrap_or(4).max(4);
    let head = format!(
        "{:>2}  {:width$}  {:7}  {:8}  {:8}  {:8}  {:>8}  LAST HEARD",
        "ID", "NAME", "STATE", "ROUTE", "NETWORK", "STORAGE", "LOST"
    );
    out.line(out.paint(Tone::Dim, head))?;
    for peer in &document.peers {
        // Padded before painting: the codes of a colour have a length, too.
        let state = pad(state_word(peer.state, out), &word(&peer.state), 7);
        let route = pad(route_word(peer.route, out), &word(&peer.route), 8);
        out.line(format!(
            "{:>2}  {:width$}  {state}  {route}  {:8}  {:8}  {:>8}  {}",
            peer.id,
            peer.name,
            word(&peer.network.state),
            word(&peer.storage.state),
            peer.counters.lost,
            last_heard(peer)
        ))?;
    }
    Ok(())
}

fn pad(painted: String, plain: &str, width: usize) -> String {
    let missing = width.saturating_sub(plain.len());
    format!("{painted}{:missing$}", "")
}

fn last_heard(peer: &Peer) -> String {
    let both = [peer.network.last_heard_ms, peer.storage.last_heard_ms];
    heard(both.into_iter().flatten().min())
}
