//! `sidepath backup serve`: the receiving role, beside a daemon; and inside one.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tracing::{error, info, warn};

use crate::{
    backup::{
        serve::{Told, serve},
        store::{Keep, Store},
        talk,
    },
    cli::{
        Failure, Out, Outcome,
        client::Target,
        session::{block_on, failure},
        stamp,
    },
    config::{BackupStoreConfig, quantity::parse_duration},
    sessions::{Endpoint, SessionError},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder with the backups; a new or an empty one becomes a store
    #[arg(long, value_name = "FOLDER")]
    store: PathBuf,
    /// Keep so many versions of each name
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Keep versions for so long, as in 720h; one goes when it is beyond both, the last never
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    keep_within: Option<Duration>,
    /// The service to listen for
    #[arg(long, value_name = "NAME", default_value = talk::SERVICE)]
    service: String,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let keep = Keep { count: args.keep, within: args.keep_within };
    let store = open(&args.store, keep, "")?;
    let endpoint = Endpoint::open(&args.target.path()?);
    out.talk(format!("backups of peers go to {}", args.store.display()));
    let tell = Arc::new(|told: Told| {
        let word = if told.good { "" } else { "warning: " };
        eprintln!("{} {word}{}: {}", stamp::now(), told.peer, told.what);
    });
    block_on(async {
        serve(endpoint, &args.service, Arc::new(store), tell).await.map_err(|e| failure(&e))
    })
}

fn open(path: &Path, keep: Keep, whose: &str) -> Result<Store, Failure> {
    Store::open(path, keep).map_err(|e| Failure::input(format!("{whose}{e}")).maybe_hint(e.hint()))
}

/// The store of a daemon's configuration.
pub(in crate::cli) struct Serving {
    service: String,
    store: Store,
}

impl Serving {
    /// Before anything of the node is begun.
    pub(in crate::cli) fn open(config: &BackupStoreConfig) -> Result<Self, Failure> {
        let keep = Keep { count: config.keep, within: config.keep_within };
        let store = open(&config.path, keep, "[backup_store]: ")?;
        Ok(Self { service: config.service.clone(), store })
    }

    /// Serves in a thread of its own, until the node stops.
    pub(in crate::cli) fn start(self, endpoint: Endpoint) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tell = Arc::new(|told: Told| {
            if told.good {
                info!(peer = told.peer, "{}", told.what);
            } else {
                warn!(peer = told.peer, "{}", told.what);
            }
        });
        let Self { service, store } = self;
        std::thread::Builder::new().name("sidepath-backups".into()).spawn(move || {
            if let Err(error) = runtime.block_on(serve(endpoint, &service, Arc::new(store), tell))
                && error != SessionError::Stopped
            {
                error!(%error, "the store of backups serves nobody");
            }
        })?;
        Ok(())
    }
}
