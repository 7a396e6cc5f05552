//! `sidepath replicate`: a round of a replica that a running daemon fills on command, this node's
//! or (`--at`) a peer's.
//!
//! Awkward cases: an interruption ends the waiting, not the round; that is the daemon's. What a
//! peer says is another machine's text: it is shown as one, and cannot steer the terminal.

use std::time::Duration;

use failover::session::{Ending, Preference, Refusal};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    Failure, Out, Outcome,
    client::{Target, question, unexpected},
    session::{block_on, failure, io_failure},
};
use crate::{
    admin::{
        document::Replica,
        orders::{ANSWER_BYTES_MAX, REPLICATE, ROUND_WITHIN},
        protocol::{Answer, QUESTION_BYTES_MAX, Reply, Verb},
    },
    config::quantity::show_size,
    sessions::{Endpoint, SessionError},
};

/// Longer than the peer's daemon waits for its round, so that its words arrive and not ours.
const ANSWER_WITHIN: Duration = Duration::from_secs(ROUND_WITHIN.as_secs() + 60);
/// How long the peer is waited for after its answer.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Fill a replica now, and wait until it is done.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its place, as `sidepath status` shows it; may be left out when there is one alone
    #[arg(value_name = "TO")]
    to: Option<String>,
    /// Order it of this peer (name or id), whose configuration has the replica
    #[arg(long, value_name = "PEER")]
    at: Option<String>,
    #[command(flatten)]
    target: Target,
    /// One object instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let mut client = args.target.connect()?;
    let verb = Verb::Replicate { to: args.to.clone() };
    let (replica, whose) = match &args.at {
        None => {
            client.say(verb)?;
            let answer = client.hear(None)?;
            let Answer::Replicated { replica } = answer else { return Err(unexpected(&answer)) };
            (replica, String::new())
        }
        Some(word) => {
            let peer = client.peer(word)?.name;
            drop(client);
            let line = question(verb)?;
            if line.len() > QUESTION_BYTES_MAX {
                return Err(Failure::input("no place of a replica has so long a name"));
            }
            let endpoint = Endpoint::open(&args.target.path()?);
            let line = block_on(order(&endpoint, &peer, &line))?;
            (answered(&peer, &line)?, format!("at {peer}: "))
        }
    };
    if args.json {
        return out.json(&replica, false);
    }
    out.line(printable(&format!(
        "{whose}{} -> {}: {} records, {}, {} missing since the daemon started",
        replica.from,
        replica.to,
        replica.records,
        show_size(replica.bytes),
        replica.missing
    )))
}

/// The line with which a peer's daemon answers ours.
async fn order(endpoint: &Endpoint, peer: &str, line: &[u8]) -> Result<String, Failure> {
    let stream = endpoint.connect(peer, REPLICATE, Preference::NetworkFirst).await;
    let mut stream = stream.map_err(|error| not_taken(peer, &error))?;
    let ended = |error: &std::io::Error| {
        let why = error.get_ref().and_then(|e| e.downcast_ref::<SessionError>());
        match why {
            Some(SessionError::Ended(
                Ending::PeerRestarted | Ending::PeerStopped | Ending::Closed,
            )) => Failure::failed(format!("{peer} did not answer: {error}"))
                .hint("its copy may not be whole: order it again"),
            _ => io_failure("cannot order it", error),
        }
    };
    stream.write_all(line).await.map_err(|e| ended(&e))?;
    stream.shutdown().await.map_err(|e| ended(&e))?;
    let mut answer = Vec::new();
    let read = (&mut stream).take(ANSWER_BYTES_MAX);
    let mut read = std::pin::pin!(read);
    match timeout(ANSWER_WITHIN, read.read_to_end(&mut answer)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(ended(&error)),
        Err(_) => {
            return Err(Failure::failed(format!(
                "{peer} has not answered for {} s",
                ANSWER_WITHIN.as_secs()
            ))
            .hint("`sidepath status` on that node shows how far its copy is"));
        }
    }
    // All is said; this is for the other side's sake.
    let _ = timeout(CLOSE_WITHIN, stream.closed()).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Why a peer took no order at all.
fn not_taken(peer: &str, error: &SessionError) -> Failure {
    match error {
        SessionError::Refused { reason: Refusal::NoSuchService, .. } => {
            Failure::failed(format!("{peer} does not offer that; is its sidepath older?"))
                .hint("run `sidepath replicate` on that node")
        }
        SessionError::Refused { .. } => {
            Failure::failed(printable(&format!("{peer} takes no order now: {error}")))
                .hint("try again when one of them is done")
        }
        _ => failure(error),
    }
}

/// What a peer's answer means.
fn answered(peer: &str, line: &str) -> Result<Box<Replica>, Failure> {
    if line.is_empty() {
        return Err(Failure::failed(format!("{peer} ended the order without an answer"))
            .hint("it stopped; its log says why"));
    }
    let reply: Reply = serde_json::from_str(line).map_err(|e| {
        Failure::failed(format!("cannot understand what {peer} answered: {e}"))
            .hint("are both daemons of one release?")
    })?;
    match reply.answer {
        Answer::Replicated { replica } => Ok(replica),
        Answer::Refused { message, hint, input } => {
            let words = printable(&format!("{peer} says: {message}"));
            let failure = if input { Failure::input(words) } else { Failure::failed(words) };
            Err(match hint {
                Some(hint) => failure.hint(printable(&format!("at {peer}: {hint}"))),
                None => failure,
            })
        }
        other => Err(unexpected(&other)),
    }
}

/// Without what steers a terminal.
fn printable(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_answers_keeps_its_exit_code_and_steers_nothing() {
        let refused = |input, hint: Option<&str>| {
            let answer = Answer::Refused {
                message: "no\u{1b}[2J\nroom".into(),
                hint: hint.map(Into::into),
                input,
            };
            let reply = serde_json::to_string(&Reply { version: 1, answer }).unwrap();
            answered("beta", &reply).unwrap_err()
        };
        let said = refused(true, Some("make\rsome"));
        assert_eq!(said.message, "beta says: no\u{fffd}[2J\u{fffd}room");
        assert_eq!((said.code, said.hint.as_deref()), (2, Some("at beta: make\u{fffd}some")));
        let said = refused(false, None);
        assert_eq!((said.code, said.hint), (1, None));
    }

    #[test]
    fn an_answer_that_is_none_is_a_failure() {
        for (line, words) in [
            ("", "without an answer"),
            ("{}", "cannot understand"),
            ("{\"version\":1,\"answer\":\"lost\"}", "something else"),
        ] {
            let failure = answered("beta", line).unwrap_err();
            assert!(failure.code == 1 && failure.message.contains(words), "{failure:?}");
        }
    }

    #[test]
    fn a_peer_that_does_not_know_orders_is_told_from_one_that_is_busy() {
        let refused =
            |reason| not_taken("beta", &SessionError::Refused { reason, detail: "x".into() });
        let old = refused(Refusal::NoSuchService);
        assert_eq!(old.message, "beta does not offer that; is its sidepath older?");
        assert!(refused(Refusal::Rejected).message.contains("no order now"));
        assert_eq!((old.code, refused(Refusal::Busy).code), (1, 1));
    }
}
