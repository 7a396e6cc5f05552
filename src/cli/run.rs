//! `sidepath run`: the daemon, in the foreground, until somebody says stop.
//!
//! The order of things matters: the control socket is taken before the daemon touches a volume
//! or a device, so that a second daemon is refused while the first is unharmed; and it is given
//! back last, so that whoever sees it gone knows that everything is.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tracing::{error, info, warn};

use super::{Failure, Out, Outcome, backup::Serving};
use crate::{
    admin::{
        Ask, log, metrics, orders,
        socket::{self, Reload, ReloadOutcome, ReloadRefused, SocketError},
    },
    config::{self, Config, report::Report},
    daemon::{self, Attachment, Daemon, StartError, request::Request},
    sessions::{Endpoint, gate::Gate},
};

/// A reload that takes longer is stuck.
const RELOAD_WITHIN: Duration = Duration::from_secs(10);
/// Between goodbye and the end.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// Run the daemon.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How much to tell: error, warn, info, debug, trace, or a filter like RUST_LOG's
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let (config, warnings) = config::load(&args.config).map_err(|r| Failure::report(&r))?;
    log::start(args.log.as_deref())
        .map_err(|e| Failure::input(e).hint("for example: --log debug, or --log sidepath=trace"))?;
    warn_all(&warnings);
    // Before the key is read.
    if let Err(e) = daemon::keep_secrets() {
        warn!(error = %e, "a core dump of this process would hold its keys");
    }
    raise_descriptors();
    // Watched from here on: a stop that comes during the start must not be lost.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|e| Failure::failed(format!("cannot watch for signals: {e}")))?;

    let reserved = socket::reserve(&config.node.control_socket).map_err(|e| match e {
        SocketError::Busy(_) => Failure::input(e.to_string())
            .hint(format!("sidepath status --config {} shows it", args.config.display())),
        SocketError::NotASocket(_) => {
            Failure::input(e.to_string()).hint("choose another `control_socket`")
        }
        SocketError::Io(..) => Failure::failed(e.to_string())
            .hint("choose a `control_socket` where this user may write, or run as root"),
    })?;
    let attachment = if config.interface.is_some() { Attachment::Tun } else { Attachment::None };
    let metrics_address = config.metrics;
    let name = config.node.name.clone();
    let socket_path = config.node.control_socket.clone();
    let forward_ports = config.sessions.forward_ports.clone();
    // A place that is no store is found before anything of the node is begun.
    let store = config.backup_store.as_ref().map(Serving::open).transpose()?;
    let daemon = Daemon::start(config.clone(), attachment).map_err(start_failure)?;
    let requests = daemon.requests();
    let ask: Ask = Arc::new(move |request| requests.send(request));
    let reloader = Reloader { file: args.config.clone(), running: Mutex::new(config) };
    let reload: Reload = {
        let ask = ask.clone();
        Arc::new(move || {
            let outcome = reloader.reload(&ask);
            match &outcome {
                Ok(changes) if changes.is_empty() => info!("reload: nothing changed"),
                Ok(changes) => {
                    for change in changes {
                        info!("reload: {change}");
                    }
                }
                Err(refused) => {
                    error!("reload refused, the old configuration stays\n{}", refused.message);
                }
            }
            outcome
        })
    };
    let control = reserved
        .serve(ask.clone(), reload.clone())
        .map_err(|e| Failure::failed(format!("control socket: {e}")))?;
    let endpoint = Endpoint::of(&daemon);
    let orders = orders::serve(endpoint.clone(), ask.clone());
    if let Some(store) = store {
        store
            .start(endpoint.clone())
            .map_err(|e| Failure::failed(format!("the store of backups: {e}")))?;
    }
    let gate = Gate::open(&socket_path, endpoint, forward_ports, orders)
        .map_err(|e| Failure::failed(format!("socket of sessions: {e}")))?;
    // Metrics are a convenience: a port that is taken must not keep packets from flowing.
    let metrics = metrics_address.and_then(|address| match metrics::serve(address, ask.clone()) {
        Ok(metrics) => Some(metrics),
        Err(e) => {
            error!(%address, error = %e, "no metrics");
            None
        }
    });
    info!(node = name, socket = %socket_path.display(), "ready");
    out.flush()?;

    let stopped = wait(&mut signals, &ask, &reload);
    if let Some(signal) = stopped {
        info!(signal, "stopping: saying goodbye to peers");
    }
    drop(metrics);
    drop(gate);
    daemon.stop(STOP_WITHIN);
    drop(control);
    match stopped {
        Some(_) => {
            info!("stopped");
            Ok(())
        }
        None => Err(Failure::failed("the daemon's loop ended by itself; its log says why")),
    }
}

/// Each program that holds a session has a descriptor here. The usual soft limit, 1024, is kept low
/// for programs that wait with `select`, which we do not.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        let limit = limit.current.unwrap_or(u64::MAX);
        warn!(
            %error, limit,
            "cannot raise the limit of open descriptors; as many programs can hold sessions at \
             once, less some: raise it before the start (systemd: LimitNOFILE=) if that is too few"
        );
    }
}

/// Serves signals until one says stop (its name), or the loop is gone (`None`).
fn wait(signals: &mut Signals, ask: &Ask, reload: &Reload) -> Option<&'static str> {
    let (heard, next) = mpsc::channel();
    let handle = signals.handle();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for signal in signals.forever() {
                if heard.send(signal).is_err() {
                    return;
                }
            }
        });
        let stopped = loop {
            match next.recv_timeout(Duration::from_secs(1)) {
                Ok(SIGTERM) => break Some("SIGTERM"),
                Ok(SIGINT) => break Some("SIGINT"),
                Ok(_) => {
                    info!("SIGHUP: reading the configuration again");
                    let _ = reload();
                }
                Err(_) => {
                    let (reply, _unread) = mpsc::channel();
                    if !ask(Request::Status { reply }) {
                        break None;
                    }
                }
            }
        };
        handle.close();
        stopped
    })
}

/// Reads the configuration again, one reload at a time.
struct Reloader {
    file: PathBuf,
    running: Mutex<Config>,
}

impl Reloader {
    fn reload(&self, ask: &Ask) -> ReloadOutcome {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let (config, warnings) = config::load(&self.file)
            .map_err(|report| ReloadRefused { message: report.to_string(), input: true })?;
        warn_all(&warnings);
        if let Some(what) = fixed(&running, &config) {
            let message = format!("{what} cannot change while the daemon runs; restart it");
            return Err(ReloadRefused { message, input: false });
        }
        let refused = |message: &str| ReloadRefused { message: message.into(), input: false };
        let (reply, answer) = mpsc::channel();
        if !ask(Request::Reload { config: Box::new(config.clone()), reply }) {
            return Err(refused("the daemon is stopping"));
        }
        match answer.recv_timeout(RELOAD_WITHIN) {
            Ok(Ok(changes)) => {
                *running = config;
                Ok(changes)
            }
            Ok(Err(why)) => Err(refused(&why)),
            Err(_) => Err(refused("the daemon's loop does not answer")),
        }
    }
}

/// What the hands outside of the loop hold open and cannot exchange.
fn fixed(old: &Config, new: &Config) -> Option<&'static str> {
    if old.node.control_socket != new.node.control_socket {
        return Some("`control_socket`");
    }
    if old.backup_store != new.backup_store {
        return Some("[backup_store]");
    }
    (old.metrics != new.metrics).then_some("`listen` of [metrics]")
}

fn warn_all(report: &Report) {
    for problem in report.problems() {
        let line = report.position(problem).map_or(0, |(line, _)| line);
        let hint = problem.hint.as_deref().unwrap_or_default();
        warn!("{}:{line}: {} ({hint})", report.file.display(), problem.message);
    }
}

fn start_failure(error: StartError) -> Failure {
    let words = format!("cannot start: {error}");
    Failure::of(error.is_input_error(), words).hint(error.hint())
}
