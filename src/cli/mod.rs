//! What an operator types, one file per command.
//!
//! ```text
//!   argv ──> clap ──> a command ──> admin socket ──> running daemon
//!                        │
//!                        ├──> stdout: data, for people or as JSON
//!                        └──> stderr: talk, errors with one next step
//! ```
//!
//! Exit codes are a contract: 0 done, 1 the operation failed, 2 bad usage, configuration or input.
//! A reader of our output that goes away (`| head -1`) ends a command quietly.

mod backup;
mod client;
mod config;
mod copy;
mod demo;
mod drill;
mod forward;
mod keygen;
mod out;
mod peers;
mod ping;
mod recv;
mod reload;
mod replicate;
mod restore;
mod run;
mod send;
mod session;
mod stamp;
mod status;
mod volume;

use std::{ffi::OsString, process::ExitCode};

use clap::{ColorChoice, Parser, Subcommand};

pub(crate) use out::Out;

/// Keeps machines talking when the network between them dies, through the storage they share.
#[derive(Debug, Parser)]
#[command(
    name = "sidepath",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "New here? `sidepath demo` shows it at work; no root, no configuration."
)]
struct Cli {
    /// When to use colour; it never carries meaning alone
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show it: two nodes on this machine, live traffic, a cut, failover and failback
    Demo(demo::Args),
    /// Make a key pair: private key to a file, public key to stdout
    Keygen(keygen::Args),
    /// Format and look at volumes
    #[command(subcommand, arg_required_else_help = true)]
    Volume(volume::Verb),
    /// Look at configurations
    #[command(subcommand, arg_required_else_help = true)]
    Config(config::Verb),
    /// Run the daemon, in the foreground
    Run(run::Args),
    /// How a running daemon and its peers are
    Status(status::Args),
    /// Make a running daemon read its configuration again, whole or not at all
    Reload(reload::Args),
    /// Fill a replica now, one whose configuration says mode = "on-command"
    Replicate(replicate::Args),
    /// A short table of peers
    Peers(peers::Args),
    /// Probe a peer and show the path of each leg and its time
    Ping(ping::Args),
    /// Test a failover on a live link: cut a path for a while, measure, heal
    Drill(drill::Args),
    /// Send a stream from stdin or a file to a program at a peer
    Send(send::Args),
    /// Receive a stream, to stdout or into a file
    Recv(recv::Args),
    /// Forward a TCP port to a port of a peer
    Forward(forward::Args),
    /// Store trees and command output at a peer, through storage; serve, list, show, verify
    Backup(backup::Args),
    /// Bring a stored version back
    Restore(restore::Args),
}

/// Runs the command the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    run_command(std::env::args_os())
}

fn run_command(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are data, the rest is talk; clap knows which. Nobody is left to
            // hear about an error of printing.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let mut out = Out::new(cli.color);
    let outcome = match cli.verb {
        Verb::Demo(args) => demo::run(&args, &mut out),
        Verb::Keygen(args) => keygen::run(&args, &mut out),
        Verb::Volume(verb) => volume::run(&verb, &mut out),
        Verb::Config(verb) => config::run(&verb, &mut out),
        Verb::Run(args) => run::run(&args, &mut out),
        Verb::Status(args) => status::run(&args, &mut out),
        Verb::Reload(args) => reload::run(&args, &mut out),
        Verb::Replicate(args) => replicate::run(&args, &mut out),
        Verb::Peers(args) => peers::run(&args, &mut out),
        Verb::Ping(args) => ping::run(&args, &mut out),
        Verb::Drill(args) => drill::run(&args, &mut out),
        Verb::Send(args) => send::run(&args, &mut out),
        Verb::Recv(args) => recv::run(&args, &mut out),
        Verb::Forward(args) => forward::run(&args, &mut out),
        Verb::Backup(args) => backup::run(&args, &mut out),
        Verb::Restore(args) => restore::run(&args, &mut out),
    };
    match outcome.and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // What was already said comes before the error.
            let _ = out.flush();
            out.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// Why a command did not do what it was asked, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    code: u8,
    /// Already complete, possibly many lines; empty when everything was said.
    message: String,
    /// The message brings its own `error:` and hints (a configuration report).
    whole: bool,
    hint: Option<String>,
}

impl Failure {
    /// The operation failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into(), whole: false, hint: None }
    }

    /// Usage, configuration or input is bad.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into(), whole: false, hint: None }
    }

    /// Bad input, or else a failed operation.
    pub(crate) fn of(input: bool, message: impl Into<String>) -> Self {
        if input { Self::input(message) } else { Self::failed(message) }
    }

    /// A report of a configuration.
    pub(crate) fn report(report: &crate::config::report::Report) -> Self {
        Self { code: 2, message: report.to_string(), whole: true, hint: None }
    }

    /// The output already tells why.
    pub(crate) const fn told(code: u8) -> Self {
        Self { code, message: String::new(), whole: false, hint: None }
    }

    /// One next step, if there is one.
    pub(crate) fn maybe_hint(self, hint: Option<impl Into<String>>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    /// One next step.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What a command comes to.
pub(crate) type Outcome = Result<(), Failure>;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
