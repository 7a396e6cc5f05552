//! The client of everything but backup and restore: lists, what is in a version, verification.

use std::io;

use super::{
    client::Client,
    pair::{Line, PairError, word},
    store::Catalogue,
    talk::{self, Frame, Say, Tell, Version, Want, kind},
};
use crate::sessions::Endpoint;

/// A catalogue as it is stored, bytes at most.
const CATALOGUE_MAX: usize = 2 << 30;

/// The versions of a name, or of all; and what is wrong with others.
pub(crate) async fn versions(
    endpoint: &Endpoint,
    line: &Line,
    name: Option<String>,
) -> Result<(Vec<Version>, Vec<String>), PairError> {
    let mut versions = Vec::new();
    let findings = ask(endpoint, line, Want::List { name }, &mut |say| {
        if let Say::Versions(some) = say {
            versions.extend(some);
        }
    })
    .await?;
    Ok((versions, findings))
}

/// Reads a whole version at its store; what is wrong with it. `progress` hears bytes done, and of
/// how many.
pub(crate) async fn verify(
    endpoint: &Endpoint,
    line: &Line,
    name: String,
    version: Option<u32>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<String>, PairError> {
    ask(endpoint, line, Want::Verify { name, version }, &mut |say| {
        if let Say::Verified { bytes, of } = say {
            progress(bytes, of);
        }
    })
    .await
}

/// Removes a version.
pub(crate) async fn forget(
    endpoint: &Endpoint,
    line: &Line,
    name: String,
    version: u32,
) -> Result<(), PairError> {
    ask(endpoint, line, Want::Forget { name, version }, &mut |_| {}).await.map(|_| ())
}

/// What is in a version.
pub(crate) async fn catalogue(
    endpoint: &Endpoint,
    line: &Line,
    name: String,
    version: Option<u32>,
) -> Result<Catalogue, PairError> {
    let mut client = Client::connect(endpoint, line).await?;
    let catalogue = receive(&mut client, name, version).await?;
    // No blocks are wanted.
    talk::put(&mut client.streams[0], kind::END, &[]).await?;
    talk::say(&mut client.out, &Tell::Thanks).await?;
    while !matches!(word(client.said.recv().await)?, Say::Done(_)) {}
    Ok(catalogue)
}

/// Asks for a version, and gets its catalogue, checked as what anybody may have made.
pub(super) async fn receive(
    client: &mut Client,
    name: String,
    version: Option<u32>,
) -> Result<Catalogue, PairError> {
    client.ask(Want::Restore { name, version }).await?;
    let Say::Go { .. } = word(client.said.recv().await)? else {
        return Err(PairError::Nonsense("something else than a beginning".into()));
    };
    let mut bytes = Vec::new();
    loop {
        match talk::get(&mut client.streams[0]).await? {
            Some(Frame { kind: kind::CATALOGUE, bytes: some, .. })
                if bytes.len() + some.len() <= CATALOGUE_MAX =>
            {
                bytes.extend_from_slice(&some);
            }
            Some(Frame { kind: kind::CATALOGUE, .. }) => {
                return Err(PairError::Nonsense("a catalogue without end".into()));
            }
            Some(Frame { kind: kind::END, .. }) => break,
            Some(_) => return Err(PairError::Nonsense("a frame that belongs nowhere".into())),
            None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }
    Catalogue::read_from(&mut &bytes[..])
        .map_err(|e| PairError::Nonsense(format!("the catalogue of the version: {e}")))
}

/// Asks something whose answer ends with findings.
async fn ask(
    endpoint: &Endpoint,
    line: &Line,
    want: Want,
    on: &mut dyn FnMut(Say),
) -> Result<Vec<String>, PairError> {
    let mut client = Client::connect(endpoint, line).await?;
    client.ask(want).await?;
    loop {
        match word(client.said.recv().await)? {
            Say::Findings(findings) => return Ok(findings),
            other => on(other),
        }
    }
}
