//! `sidepath replicate`: a round of a replica that a running daemon fills on command.
//!
//! Awkward case: an interruption ends the waiting, not the round; that is the daemon's.

use super::{
    Out, Outcome,
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
    client.say(Verb::Replicate { to: args.to.clone() })?;
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
