//! `sidepath reload`: a running daemon reads its configuration again, whole or not at all.

use serde::Serialize;

use super::{
    Out, Outcome,
    client::{Target, unexpected},
};
use crate::admin::protocol::{Answer, Verb};

/// Read the configuration again.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// One object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Reloaded {
    changes: Vec<String>,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let answer = args.target.connect()?.ask(Verb::Reload)?;
    let Answer::Reloaded { changes } = answer else { return Err(unexpected(&answer)) };
    if args.json {
        return out.json(&Reloaded { changes }, false);
    }
    if changes.is_empty() {
        return out.line("nothing changed");
    }
    for change in changes {
        out.line(change)?;
    }
    Ok(())
}
