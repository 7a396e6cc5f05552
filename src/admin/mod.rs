//! The daemon as seen from outside while it runs: control socket, orders of peers, metrics, logs.
//!
//! Everything here asks the turn loop by [`Request`] and waits on
//! threads of its own, so that a slow or hostile client delays nobody's packets.

pub mod document;
pub mod log;
pub mod metrics;
pub(crate) mod orders;
pub mod protocol;
pub mod socket;

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use crate::daemon::{replicas::RoundRefused, request::Request};
use document::{Document, Replica};
use protocol::Answer;

/// Hands a request to the turn loop; false when the loop has ended.
pub type Ask = Arc<dyn Fn(Request) -> bool + Send + Sync>;

/// What a round came to, as soon as that is known.
fn round_answer(end: &mpsc::Receiver<Result<Replica, RoundRefused>>) -> Option<Answer> {
    match end.try_recv() {
        Ok(Ok(replica)) => Some(Answer::Replicated { replica: Box::new(replica) }),
        Ok(Err(RoundRefused { message, hint, input })) => {
            Some(Answer::Refused { message, hint, input })
        }
        Err(mpsc::TryRecvError::Disconnected) => {
            Some(Answer::refused("the daemon stopped, and the round with it"))
        }
        Err(mpsc::TryRecvError::Empty) => None,
    }
}

/// A loop that does not answer within this is stuck, and its operator must be told so.
const LOOP_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Asks the loop for the whole document.
///
/// # Errors
/// When the loop has ended or does not answer.
pub fn document(ask: &Ask) -> Result<Box<Document>, String> {
    let (reply, answer) = mpsc::channel();
    if !ask(Request::Status { reply }) {
        return Err("the daemon is stopping".into());
    }
    answer.recv_timeout(LOOP_ANSWERS_WITHIN).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => {
            format!("the daemon's loop has not answered for {} s", LOOP_ANSWERS_WITHIN.as_secs())
        }
        mpsc::RecvTimeoutError::Disconnected => "the daemon is stopping".into(),
    })
}
