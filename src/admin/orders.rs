//! Orders of peers: the daemon's own services, which another node's operator reaches by a session.
//!
//! ```text
//!   sidepath replicate --at us ──> its daemon = = session = = our daemon ──> turn loop
//!                                             <─ one line ──
//! ```
//!
//! One session is one order: one line with a question of the control protocol, one line with its
//! answer. A peer may order what is named here and nothing else, and it names places only to choose
//! among those of our own configuration. That it is one of our peers, the session has proved.
//!
//! Awkward cases: a peer that says nothing, or does not end its line, is sent away; one peer's
//! orders never take the place of another's; whoever leaves ends the waiting, not the round.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    time::timeout,
};
use tracing::{debug, info, warn};

use super::{
    Ask,
    protocol::{Answer, QUESTION_BYTES_MAX, Question, Reply, Verb},
};
use crate::{
    daemon::request::Request,
    sessions::{Endpoint, Stream},
};

/// The service that fills a replica.
pub(crate) const REPLICATE: &str = "sidepath.replicate";
/// How long the end of a round is waited for; the round itself goes on.
pub(crate) const ROUND_WITHIN: Duration = Duration::from_secs(60 * 60);
/// An answer is far shorter, bytes.
pub(crate) const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Orders of one peer that are waited for at the same time.
const ORDERS_MAX: usize = 4;
const ORDER_WITHIN: Duration = Duration::from_secs(10);
/// How long the answer may take to be read.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Takes orders until the node stops.
pub(crate) async fn serve(endpoint: Endpoint, ask: Ask) {
    let listener = match endpoint.listen_as_daemon(REPLICATE).await {
        Ok(listener) => listener,
        Err(error) => return warn!(%error, "peers cannot order copies"),
    };
    let mut places: BTreeMap<String, Arc<Semaphore>> = BTreeMap::new();
    while let Ok(incoming) = listener.incoming().await {
        // Only of peers that wait, so it is no longer than the list of peers.
        places.retain(|_, place| place.available_permits() < ORDERS_MAX);
        let place = places.entry(incoming.peer().to_owned());
        let place = place.or_insert_with(|| Arc::new(Semaphore::new(ORDERS_MAX)));
        let Ok(place) = Arc::clone(place).try_acquire_owned() else {
            incoming.refuse(&format!("{ORDERS_MAX} orders of this node are waited for already"));
            continue;
        };
        let ask = Arc::clone(&ask);
        tokio::spawn(async move {
            order(incoming.accept(), ask).await;
            drop(place);
        });
    }
}

async fn order(mut stream: Stream, ask: Ask) {
    let peer = stream.peer().to_owned();
    let line = match timeout(ORDER_WITHIN, line(&mut stream)).await {
        Ok(Ok(line)) => line,
        Ok(Err(error)) => {
            debug!(peer, %error, "an order that was none");
            return stream.reset();
        }
        Err(_) => return stream.reset(),
    };
    let answer = match Question::read(&line) {
        Ok(Verb::Replicate { to }) => {
            info!(peer, to, "orders a copy");
            match round(to, ask, &stream).await {
                Some(answer) => answer,
                None => return debug!(peer, "did not wait for the end of the copy"),
            }
        }
        Ok(_) => Answer::Refused {
            message: "peers may order copies and nothing else".into(),
            hint: None,
            input: true,
        },
        Err(refused) => refused,
    };
    let said = async {
        stream.write_all(&Reply::line(answer)?).await?;
        stream.shutdown().await
    };
    match said.await {
        // Only for the log: whether it is read is the peer's affair.
        Ok(()) => drop(timeout(CLOSE_WITHIN, stream.closed()).await),
        Err(error) => debug!(peer, %error, "the answer to an order was not wanted"),
    }
}

/// One line, without its end.
async fn line(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 512];
    loop {
        let n = from.read(&mut piece).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&piece[..n]);
        if let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            bytes.truncate(end);
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        if bytes.len() > QUESTION_BYTES_MAX {
            return Err(std::io::Error::other("a line without end"));
        }
    }
}

/// Waits for the end of a round for as long as its peer stays.
async fn round(to: Option<String>, ask: Ask, stream: &Stream) -> Option<Answer> {
    let (reply, end) = mpsc::channel();
    // It may wait for room, and this thread serves all programs.
    let asked = tokio::task::spawn_blocking(move || ask(Request::Replicate { to, reply }));
    if !asked.await.unwrap_or(false) {
        return Some(Answer::refused("the daemon is stopping"));
    }
    let mut gone = pin!(stream.failed());
    let started = Instant::now();
    loop {
        if let Some(answer) = super::round_answer(&end) {
            return Some(answer);
        }
        if started.elapsed() >= ROUND_WITHIN {
            return Some(Answer::Refused {
                message: format!("the copy takes longer than {} s", ROUND_WITHIN.as_secs()),
                hint: Some("it goes on; `sidepath status` on that node shows how far it is".into()),
                input: false,
            });
        }
        if timeout(LOOK_EVERY, gone.as_mut()).await.is_ok() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &[u8]) -> std::io::Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { line(&mut &*text).await })
    }

    #[test]
    fn an_order_is_one_line_that_ends() {
        assert_eq!(heard(b"a line\nand more").unwrap(), "a line");
        let longest = [vec![b'x'; QUESTION_BYTES_MAX], b"\n".to_vec()].concat();
        assert_eq!(heard(&longest).unwrap().len(), QUESTION_BYTES_MAX);
        assert!(heard(b"cut off").is_err());
        assert!(heard(&vec![b'x'; 2 * QUESTION_BYTES_MAX]).is_err());
    }
}
