//! `sidepath recv`: receives one stream, to stdout or into a file.
//!
//! A file appears under its name only when it is whole and on the disk; until then it is called
//! `NAME.partial`. The sending program ends well only after that.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::io::AsyncReadExt;

use super::{
    Failure, Out, Outcome,
    client::Target,
    session::{Progress, Summary, block_on, came, failure, io_failure},
};
use crate::sessions::{Endpoint, Stream};

/// How long the sender is waited for after the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);

/// Receive a stream.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Service to listen for
    service: String,
    /// Write to this file instead of stdout
    #[arg(long, value_name = "F")]
    to_file: Option<PathBuf>,
    /// One object at the end (on stderr while stdout carries the stream)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let socket = args.target.path()?;
    let mut sink = Sink::open(args.to_file.as_deref())?;
    block_on(async {
        let endpoint = Endpoint::open(&socket);
        let listener = endpoint.listen(&args.service).await.map_err(|e| failure(&e))?;
        let mut stream = listener.accept().await.map_err(|e| failure(&e))?;
        drop(listener);
        let mut progress = Progress::new();
        let bytes = match receive(&mut stream, &mut sink, &mut progress, out).await {
            Ok(bytes) => bytes,
            Err(failure) => {
                // The sender hears of it as an error, not as an end.
                stream.reset();
                return Err(failure);
            }
        };
        // The file is safe; whether the sender hears of it decides only what the sender says.
        let _ = tokio::time::timeout(CLOSE_WITHIN, stream.closed()).await;
        let (network_bytes, storage_bytes) = came(&stream.stats());
        Summary {
            peer: stream.peer(),
            service: &args.service,
            bytes,
            seconds: progress.seconds(),
            network_bytes,
            storage_bytes,
            file: args.to_file.as_ref().map(|f| f.display().to_string()),
        }
        .tell(out, args.json, args.to_file.is_none())
    })
}

async fn receive(
    stream: &mut Stream,
    sink: &mut Sink,
    progress: &mut Progress,
    out: &Out,
) -> Result<u64, Failure> {
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        let n = stream.read(&mut buffer).await.map_err(|e| io_failure("cannot receive", &e))?;
        if n == 0 {
            break;
        }
        sink.write(&buffer[..n])?;
        bytes += n as u64;
        progress.show(out, bytes, stream.path());
    }
    sink.finish()?;
    Ok(bytes)
}

/// Where it goes.
enum Sink {
    Stdout,
    File { file: std::fs::File, partial: PathBuf, path: PathBuf },
}

impl Sink {
    fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::Stdout) };
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = std::fs::File::create(&partial)
            .map_err(|e| Failure::input(format!("cannot write {}: {e}", partial.display())))?;
        Ok(Self::File { file, partial, path: path.to_owned() })
    }

    fn write(&mut self, bytes: &[u8]) -> Outcome {
        match self {
            Self::Stdout => std::io::stdout()
                .write_all(bytes)
                .map_err(|e| Failure::failed(format!("cannot write to stdout: {e}"))),
            Self::File { file, partial, .. } => file
                .write_all(bytes)
                .map_err(|e| Failure::failed(format!("cannot write {}: {e}", partial.display()))),
        }
    }

    fn finish(&mut self) -> Outcome {
        match self {
            Self::Stdout => std::io::stdout()
                .flush()
                .map_err(|e| Failure::failed(format!("cannot write to stdout: {e}"))),
            Self::File { file, partial, path } => {
                let put = || {
                    file.sync_all()?;
                    std::fs::rename(&*partial, &*path)?;
                    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
                    std::fs::File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
                };
                put().map_err(|e: std::io::Error| {
                    Failure::failed(format!("cannot put {} in its place: {e}", path.display()))
                        .hint(format!("what came lies in {}", partial.display()))
                })
            }
        }
    }
}
