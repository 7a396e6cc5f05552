//! `sidepath replicate`: a round of a replica that a running daemon fills on command.
//!
//! Awkward case: an interruption ends the waiting, not the round; that is the daemon's.

use super::{
    Failure, Out, Outcome,
    client::{Target, unexpected},
};
use crate::{
    admin::protocol::{Answer, Verb},
    config::quantity::show_size,
};

/// Fill a replica now, and wait until it is done.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its place, as `sidepath status` shows it; may be left out when there is one alone
    #[arg(value_name = "TO")]
    to: Option<String>,
    #[command(flatten)]
    target: Target,
    /// One object instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let mut client = args.target.connect()?;
    let to = match &args.to {
        Some(to) => to.clone(),
        None => {
            let replicas = client.document()?.replicas;
            let mut waiting: Vec<String> =
                replicas.into_iter().filter(|r| r.mode == "on-command").map(|r| r.to).collect();
            match (waiting.pop(), waiting.is_empty()) {
                (Some(to), true) => to,
                (None, _) => {
                    return Err(Failure::input("no replica is filled on command")
                        .hint("write mode = \"on-command\" into a [[replicate]], and reload"));
                }
                (Some(last), false) => {
                    waiting.push(last);
                    return Err(Failure::input("several replicas are filled on command")
                        .hint(format!("say which: {}", waiting.join(", "))));
                }
            }
        }
    };
    client.say(Verb::Replicate { to })?;
    let answer = client.hear(None)?;
    let Answer::Replicated { replica } = answer else { return Err(unexpected(&answer)) };
    if args.json {
        return out.json(&replica, false);
    }
    out.line(format!(
        "{} -> {}: {} records, {}, {} missing since the daemon started",
        replica.from,
        replica.to,
        replica.records,
        show_size(replica.bytes),
        replica.missing
    ))
}
