//! `sidepath send`: a stream from stdin or a file to a program at a peer that receives it.
//!
//! Done means done: it ends well only when the other program took the last byte and ended its own
//! direction, which `recv --to-file` does once the file is safely on its disk.

use std::{path::PathBuf, task::Poll, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Failure, Out, Outcome,
    client::Target,
    session::{Progress, Summary, Via, block_on, failure, io_failure, sent},
};
use crate::sessions::{Endpoint, Stream};

/// How long the other side's last word is waited for.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Send a stream.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or id of the peer
    peer: String,
    /// Service the receiving program listens for
    service: String,
    /// Read from this file instead of stdin
    #[arg(long, value_name = "F")]
    from_file: Option<PathBuf>,
    /// Which path it takes
    #[arg(long, value_name = "PREFERENCE", default_value = "network-first")]
    via: Via,
    /// One object at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let socket = args.target.path()?;
    // Standard input is read by a thread of its own: it may be anything, and must not be waited
    // for before the destination accepted.
    let mut file = match &args.from_file {
        Some(path) => Some(
            std::fs::File::open(path)
                .map_err(|e| Failure::input(format!("cannot read {}: {}", path.display(), e)))?,
        ),
        None => None,
    };
    block_on(async {
        let endpoint = Endpoint::open(&socket);
        let stream = endpoint.connect(&args.peer, &args.service, args.via.into()).await;
        let mut stream = stream.map_err(|e| failure(&e))?;
        let mut progress = Progress::new();
        let mut chunks = read_chunks(file.take());
        let mut bytes = 0_u64;
        while let Some(chunk) = next_chunk(&mut chunks, &stream).await? {
            bytes += chunk.len() as u64;
            stream.write_all(&chunk).await.map_err(|e| io_failure("cannot send", &e))?;
            progress.show(out, bytes, stream.path());
        }
        stream.shutdown().await.map_err(|e| io_failure("cannot send", &e))?;
        stream.delivered().await.map_err(|e| failure(&e))?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.map_err(|e| io_failure("after the last byte", &e))?;
        if let Some(words) = std::str::from_utf8(&rest).ok().filter(|w| !w.is_empty()) {
            return Err(Failure::failed(format!("the receiving program says: {words}")));
        }
        // All is stored; this is for the other side's sake.
        let _ = tokio::time::timeout(CLOSE_WITHIN, stream.closed()).await;
        let stats = stream.stats();
        let (network_bytes, storage_bytes) = sent(&stats);
        Summary {
            peer: stream.peer(),
            service: &args.service,
            bytes,
            seconds: progress.seconds(),
            network_bytes,
            storage_bytes,
            file: None,
        }
        .tell(out, args.json, false)
    })
}

type Chunks = tokio::sync::mpsc::Receiver<std::io::Result<Vec<u8>>>;

/// The next piece, unless the session ends while it is waited for.
async fn next_chunk(chunks: &mut Chunks, stream: &Stream) -> Result<Option<Vec<u8>>, Failure> {
    let mut failed = std::pin::pin!(stream.failed());
    let chunk = std::future::poll_fn(|cx| {
        if let Poll::Ready(error) = failed.as_mut().poll(cx) {
            return Poll::Ready(Err(failure(&error)));
        }
        chunks.poll_recv(cx).map(Ok)
    })
    .await?;
    chunk.transpose().map_err(|e| Failure::failed(format!("cannot read: {e}")))
}

/// Reads ahead by a few pieces.
fn read_chunks(file: Option<std::fs::File>) -> Chunks {
    let (full, chunks) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        let mut input: Box<dyn std::io::Read> = match file {
            Some(file) => Box::new(file),
            None => Box::new(std::io::stdin()),
        };
        loop {
            let mut chunk = vec![0; 128 << 10];
            match input.read(&mut chunk) {
                Ok(0) => return,
                Ok(n) => {
                    chunk.truncate(n);
                    if full.blocking_send(Ok(chunk)).is_err() {
                        return;
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let _ = full.blocking_send(Err(e));
                    return;
                }
            }
        }
    });
    chunks
}
