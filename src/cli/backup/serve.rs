//! `sidepath backup serve`: the receiving role, beside a daemon.

use std::{path::PathBuf, sync::Arc, time::Duration};

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
    config::quantity::parse_duration,
    sessions::Endpoint,
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
    let store = Store::open(&args.store, keep).map_err(|error| {
        let failure = Failure::input(error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
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
