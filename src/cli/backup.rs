//! `sidepath backup`: a tree, or the output of a command, into a store at a peer; and everything
//! that is done with such a store except restoring.

mod make;
mod serve;
mod shown;
mod stored;
mod target;

pub(super) use make::Carrying;
pub(super) use serve::Serving;
pub(super) use shown::Shown;
pub(super) use target::{Place, failure};

use super::{Out, Outcome};

/// Store trees and command output at a peer, through storage.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = "The peer runs `sidepath backup serve`, or its daemon has a [backup_store]. Started \
                  again after an interruption, a backup sends only what is missing."
)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    make: make::Make,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Receive backups of peers into a folder of this machine, until interrupted
    Serve(serve::Args),
    /// The versions in a peer's store
    List(stored::ListArgs),
    /// What is in a version
    Show(stored::ShowArgs),
    /// Read every byte of a version in its store and compare
    Verify(stored::VerifyArgs),
    /// Remove a version
    Forget(stored::ForgetArgs),
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    match &args.verb {
        None => make::run(&args.make, out),
        Some(Verb::Serve(args)) => serve::run(args, out),
        Some(Verb::List(args)) => stored::list(args, out),
        Some(Verb::Show(args)) => stored::show(args, out),
        Some(Verb::Verify(args)) => stored::verify(args, out),
        Some(Verb::Forget(args)) => stored::forget(args, out),
    }
}
