//! A pair as a client holds it, from the first word to the counting of its bytes.

use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use super::{
    pair::{Carried, Line, PairError, listen},
    talk::{self, Ask, Say, Want},
    tries::Tries,
};
use crate::sessions::{DataSocket, Endpoint, OwnedWriteHalf, Stream};

/// How long the store's goodbye is waited for.
pub(super) const BYE_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Client {
    pub(super) out: OwnedWriteHalf,
    pub(super) said: Receiver<Result<Say, PairError>>,
    pub(super) streams: Vec<Stream>,
}

impl Client {
    /// Connects.
    pub(super) async fn connect(endpoint: &Endpoint, line: &Line) -> Result<Self, PairError> {
        Ok(Self::of(line.connect(endpoint).await?))
    }

    /// Connects for bulk: waits for the path the policy wants.
    pub(super) async fn meet(
        endpoint: &Endpoint,
        line: &Line,
        tries: &mut Tries,
    ) -> Result<Self, PairError> {
        let pair = line.connect(endpoint).await?;
        tries.met();
        line.settle(&pair).await?;
        Ok(Self::of(pair))
    }

    fn of(DataSocket { control, streams }: DataSocket) -> Self {
        let (from, out) = control.into_split();
        Self { out, said: listen(from), streams }
    }

    pub(super) async fn ask(&mut self, want: Want) -> Result<(), PairError> {
        let ask = Ask { version: talk::VERSION, want };
        Ok(talk::say(&mut self.out, &ask).await?)
    }

    /// All is done; whether the other side hears of it decides only what the counters say.
    pub(super) async fn bye(&mut self) {
        let _ = tokio::time::timeout(BYE_WITHIN, self.out.stream().closed()).await;
    }

    /// It is over: its bytes are counted, and a pair that failed is given up.
    pub(super) fn end<T>(
        self,
        line: &Line,
        carried: &mut Carried,
        done: Result<T, PairError>,
    ) -> Result<T, PairError> {
        carried.add(&self.out.stream().stats());
        for stream in &self.streams {
            carried.add(&stream.stats());
        }
        done.map_err(|error| {
            for stream in self.streams {
                stream.reset();
            }
            line.judged(error)
        })
    }
}
