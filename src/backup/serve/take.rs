//! A backup comes in: blocks in their order, entries behind them, to a thread that writes.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{
    Block, Ends, Store, StoreError, TELL_EVERY, UNPACKED_MAX, WORK_QUEUE, Wrong, apart, ended,
    farewell, nonsense, send_all,
    talk::{self, About, Batch, Frame, Say, Tell, kind},
};
use crate::{
    backup::store::Writer,
    sessions::{OwnedReadHalf, Stream},
};

/// While nothing comes, what came is still saved in time.
const TICK: Duration = Duration::from_secs(1);
/// For the writing thread.
enum Work {
    Block(Vec<u8>),
    Batch(Vec<u8>),
    Tick,
    Finish { blocks: u32, entries: u64, problems: Vec<String> },
}

/// From the writing thread.
enum News {
    Durable(u32, u64),
    Done(Box<talk::Version>),
    Failed(StoreError),
}

pub(super) async fn backup(
    ends: &mut Ends,
    store: &Arc<Store>,
    name: String,
    about: About,
    fresh: bool,
) -> Result<Option<String>, Wrong> {
    let began = Instant::now();
    let writer = {
        let (store, name) = (Arc::clone(store), name.clone());
        apart(move || store.begin(&name, about, fresh)).await?
    };
    let go = Say::Go { resumed_bytes: writer.resumed_bytes() };
    talk::say(&mut ends.out, &go).await?;
    send_all(&mut ends.streams[0], writer.known()).await?;

    let (work, to_write) = channel(WORK_QUEUE);
    let (tell, mut news) = channel(WORK_QUEUE);
    let thread = std::thread::Builder::new().name("sidepath-store".into());
    thread.spawn(move || write(writer, to_write, &tell))?;
    let version = {
        let Ends { from, out, streams } = ends;
        let feeding = pin!(feed(from, streams, work));
        let telling = pin!(async {
            loop {
                match news.recv().await {
                    Some(News::Durable(blocks, bytes)) => {
                        talk::say(out, &Say::Stored { blocks, bytes }).await?;
                    }
                    Some(News::Done(version)) => return Ok(version),
                    Some(News::Failed(error)) => return Err(Wrong::Store(error)),
                    None => return Err(ended()),
                }
            }
        });
        match select(feeding, telling).await {
            Either::Left((Ok(()), telling)) => telling.await?,
            // What the store says explains more than that nobody took our bytes.
            Either::Left((Err(fed), telling)) => match telling.await {
                Err(Wrong::Store(error)) => return Err(error.into()),
                _ => return Err(fed),
            },
            Either::Right((told, _)) => told?,
        }
    };
    let words = format!(
        "backup of {name}@{}: {} entries, {} bytes, {} of them new, in {:.1} s",
        version.number,
        version.entries,
        version.bytes,
        version.new_bytes,
        began.elapsed().as_secs_f64()
    );
    farewell(&mut ends.out, &Say::Done(version)).await;
    Ok(Some(words))
}

/// From the streams to the writing thread, blocks in their order.
async fn feed(
    from: &mut OwnedReadHalf,
    streams: &mut [Stream],
    work: Sender<Work>,
) -> Result<(), Wrong> {
    let give = async |what| work.send(what).await.map_err(|_| ended());
    let mut next: u32 = 0;
    let mut rest = false;
    loop {
        let turn = if rest { 0 } else { next as usize % streams.len() };
        let frame = {
            let mut getting = pin!(talk::get(&mut streams[turn]));
            loop {
                match select(getting.as_mut(), pin!(tokio::time::sleep(TICK))).await {
                    Either::Left((frame, _)) => break frame?,
                    Either::Right(_) => give(Work::Tick).await?,
                }
            }
        };
        match frame {
            Some(Frame { kind: kind::BLOCK, number, bytes }) if !rest => {
                if number != next {
                    return Err(nonsense("a block out of turn"));
                }
                give(Work::Block(bytes)).await?;
                next = next.checked_add(1).ok_or_else(|| nonsense("too many blocks"))?;
            }
            Some(Frame { kind: kind::ENTRIES, bytes, .. }) if turn == 0 => {
                give(Work::Batch(bytes)).await?;
            }
            Some(Frame { kind: kind::END, .. }) if turn == 0 => break,
            // There are no more blocks; what is left comes over the first stream.
            None if turn != 0 => rest = true,
            None => return Err(ended()),
            Some(_) => return Err(nonsense("a frame that belongs nowhere")),
        }
    }
    match talk::hear::<Tell>(from).await? {
        Some(Tell::Finish { blocks, entries, problems }) if blocks == next => {
            give(Work::Finish { blocks, entries, problems }).await
        }
        Some(_) => Err(nonsense("an end that does not fit what came")),
        None => Err(ended()),
    }
}

/// The writing thread.
fn write(mut writer: Writer, mut work: Receiver<Work>, news: &Sender<News>) {
    let bad = |what: String| StoreError::nonsense(what);
    let (mut told, mut durable) = (Instant::now(), (0, 0));
    let end = loop {
        let done = match work.blocking_recv() {
            None => {
                // The client is gone; what came is kept for its next attempt.
                if let Err(error) = writer.suspend() {
                    tracing::warn!("an interrupted backup: {error}");
                }
                return;
            }
            Some(Work::Block(bytes)) => {
                Block::parse(bytes).map_err(|e| bad(e.to_string())).and_then(|b| writer.block(&b))
            }
            Some(Work::Batch(bytes)) => talk::unpack::<Batch>(&bytes, UNPACKED_MAX)
                .map_err(|e| bad(e.to_string()))
                .and_then(|batch| writer.batch(batch)),
            Some(Work::Tick) => writer.tick(),
            Some(Work::Finish { blocks, entries, problems }) => {
                break writer.finish(blocks, entries, problems);
            }
        };
        if let Err(error) = done {
            break Err(error);
        }
        if told.elapsed() >= TELL_EVERY && writer.durable() != durable {
            (told, durable) = (Instant::now(), writer.durable());
            // A client that does not listen holds up nobody.
            let _ = news.try_send(News::Durable(durable.0, durable.1));
        }
    };
    let last = match end {
        Ok(version) => News::Done(Box::new(version)),
        Err(error) => News::Failed(error),
    };
    let _ = news.blocking_send(last);
}
