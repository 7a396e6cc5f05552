//! Sessions beside their alternatives, in one run: plain TCP, TCP + rustls, and yamux over both.
//!
//! ```sh
//! cargo bench -p sidepath-bench --bench sessions [-- stream messages fair storage] [--rounds N]
//!     [--only tcp|tls|yamux|sidepath]
//! ```
//!
//! Both ends live in this process, each in a runtime of one thread, on the loopback interface;
//! nodes of sidepath add threads. Each end has half of the processors for itself. Contenders take turns, so that a machine that changes its
//! speed does so for all; figures are the best round of each, and ratios are of these. CPU seconds are
//! those of the whole process, both ends and the kernel's work for them.

mod beats;
mod common;
mod fair;
mod messages;
mod storage;
mod stream;

use std::process::ExitCode;

use common::{Kind, Plan};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() -> ExitCode {
    let mut wanted = Vec::new();
    let mut rounds = 3;
    let mut only = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            "--rounds" => match arguments.next().and_then(|n| n.parse().ok()) {
                Some(n) => rounds = n,
                None => return usage("--rounds wants a number"),
            },
            "--only" => match arguments.next().as_deref().and_then(Kind::of) {
                Some(kind) => only = Some(kind),
                None => return usage("--only wants tcp, tls, yamux or sidepath"),
            },
            "stream" | "messages" | "fair" | "storage" => wanted.push(argument),
            other => return usage(&format!("no benchmark is called {other}")),
        }
    }
    // A thousand connections have two ends each.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let plan = Plan { rounds, only };
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    if wants("stream") {
        stream::run(&plan);
    }
    if wants("messages") {
        messages::run(&plan);
    }
    if wants("fair") {
        fair::run(&plan);
    }
    if wants("storage") {
        storage::run(&plan);
    }
    ExitCode::SUCCESS
}

fn usage(what: &str) -> ExitCode {
    eprintln!(
        "{what}; usage: sessions [stream] [messages] [fair] [storage] [--rounds N] [--only KIND]"
    );
    ExitCode::from(2)
}
