//! `sidepath forward`: a TCP port here that is a TCP port of a peer, for unmodified programs,
//! without a virtual interface.
//!
//! The peer's daemon connects to the port on its own loopback address, so that its programs see a
//! local client; which ports it does that for is set by `forward_ports` in its configuration.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::{
    Failure, Out, Outcome,
    client::Target,
    session::{Via, block_on, failure},
};
use crate::sessions::{Endpoint, gate::carry};

/// Forward a TCP port.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address or port to listen on; a port alone means 127.0.0.1
    listen: String,
    /// Name or id of the peer, and the port there
    #[arg(value_name = "PEER:PORT")]
    to: String,
    /// Which path connections take
    #[arg(long, value_name = "PREFERENCE", default_value = "network-first")]
    via: Via,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let listen = address(&args.listen)?;
    let (peer, port) = args
        .to
        .rsplit_once(':')
        .and_then(|(peer, port)| Some((peer, port.parse::<u16>().ok().filter(|p| *p > 0)?)))
        .ok_or_else(|| {
            Failure::input(format!("`{}` is no PEER:PORT", args.to)).hint("for example beta:5432")
        })?;
    let socket = args.target.path()?;
    // A name that is wrong shows now, not at the first connection.
    args.target.connect()?.peer(peer)?;
    block_on(async {
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|e| Failure::failed(format!("cannot listen on {listen}: {e}")))?;
        let listen = listener.local_addr().unwrap_or(listen);
        out.talk(format!("{listen} is {peer}:{port}"));
        let endpoint = Endpoint::open(&socket);
        let service = format!("tcp:{port}");
        loop {
            let (local, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => return Err(Failure::failed(format!("cannot accept: {e}"))),
            };
            let (endpoint, service, peer) = (endpoint.clone(), service.clone(), peer.to_owned());
            let preference = args.via.into();
            tokio::spawn(async move {
                match endpoint.connect(&peer, &service, preference).await {
                    Ok(stream) => carry(local, stream).await,
                    Err(error) => {
                        let said = failure(&error);
                        eprintln!("{from}: {}", said.message);
                        let _ = local.set_zero_linger();
                    }
                }
            });
        }
    })
}

fn address(word: &str) -> Result<SocketAddr, Failure> {
    if let Ok(port) = word.parse::<u16>() {
        return Ok(([127, 0, 0, 1], port).into());
    }
    word.parse().map_err(|_| {
        Failure::input(format!("`{word}` is no address"))
            .hint("for example 127.0.0.1:5433, or 5433")
    })
}
