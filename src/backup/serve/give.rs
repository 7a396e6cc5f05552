//! A version goes out: its catalogue, then the blocks that are wanted, read ahead by a thread.

use std::{sync::Arc, time::Instant};

use tokio::{io::AsyncWriteExt, sync::mpsc::channel};

use super::{
    Block, Ends, Store, StoreError, UNPACKED_MAX, WORK_QUEUE, Wrong, apart, ended, farewell,
    nonsense,
    talk::{self, Frame, Say, Tell, kind},
};

/// Bytes of a catalogue in a frame.
const CATALOGUE_FRAME: usize = 1 << 20;
/// Runs of blocks a client may want; a version has fewer blocks.
const RUNS_MAX: usize = 16 << 20;

/// A block by its number, or why there is none; or why there will be no more.
type Read = Result<(u32, Result<Block, StoreError>), StoreError>;

pub(super) async fn restore(
    ends: &mut Ends,
    store: &Arc<Store>,
    name: String,
    version: Option<u32>,
) -> Result<Option<String>, Wrong> {
    let began = Instant::now();
    let (catalogue, blocks) = {
        let (store, name) = (Arc::clone(store), name.clone());
        // The reader first: nothing is removed while there is one.
        apart(move || {
            let blocks = store.reader(&name)?;
            Ok((store.catalogue(&name, version)?, blocks))
        })
        .await?
    };
    let number = catalogue.version.number;
    talk::say(&mut ends.out, &Say::Go { resumed_bytes: 0 }).await?;
    let mut bytes = Vec::new();
    catalogue.write_to(&mut bytes)?;
    for some in bytes.chunks(CATALOGUE_FRAME) {
        talk::put(&mut ends.streams[0], kind::CATALOGUE, &[some]).await?;
    }
    talk::put(&mut ends.streams[0], kind::END, &[]).await?;
    drop(bytes);

    let mut wanted = Vec::new();
    loop {
        match talk::get(&mut ends.streams[0]).await? {
            Some(Frame { kind: kind::WANTED, bytes, .. }) => {
                wanted.extend(talk::unpack::<Vec<(u32, u32)>>(&bytes, UNPACKED_MAX)?);
                if wanted.len() > RUNS_MAX {
                    return Err(nonsense("more is wanted than there can be"));
                }
            }
            Some(Frame { kind: kind::END, .. }) => break,
            Some(_) => return Err(nonsense("a frame that belongs nowhere")),
            None => return Err(ended()),
        }
    }
    // A thread reads ahead of the streams.
    let (tell, mut read) = channel::<Read>(WORK_QUEUE);
    let table = catalogue.blocks;
    std::thread::Builder::new().name("sidepath-store".into()).spawn(move || {
        for (first, count) in wanted {
            for index in first..first.saturating_add(count) {
                let Some(at) = table.get(index as usize) else {
                    let _ = tell.blocking_send(Err(StoreError::nonsense(
                        "no such block is in the catalogue",
                    )));
                    return;
                };
                if tell.blocking_send(Ok((index, blocks.read(at)))).is_err() {
                    return;
                }
            }
        }
    })?;
    let mut sent = 0_usize;
    let mut bytes = 0_u64;
    let mut missing = None;
    while let Some(block) = read.recv().await {
        let (index, block) = block?;
        let turn = sent % ends.streams.len();
        let turn = &mut ends.streams[turn];
        let head = &index.to_le_bytes()[..];
        match block {
            Ok(block) => {
                talk::put(turn, kind::BLOCK, &[head, block.bytes()]).await?;
                bytes += block.raw_len() as u64;
            }
            // Files that need no such block are restored all the same.
            Err(error) => {
                talk::put(turn, kind::MISSING, &[head, error.to_string().as_bytes()]).await?;
                missing.get_or_insert((0_u64, error)).0 += 1;
            }
        }
        sent += 1;
    }
    for stream in &mut ends.streams {
        stream.shutdown().await?;
    }
    match talk::hear::<Tell>(&mut ends.from).await? {
        Some(Tell::Thanks) => {}
        Some(_) => return Err(nonsense("something else than thanks")),
        None => return Err(ended()),
    }
    farewell(&mut ends.out, &Say::Done(Box::new(catalogue.version))).await;
    let without = match missing {
        None => String::new(),
        Some((n, first)) => format!("; {n} blocks could not be read, the first: {first}"),
    };
    Ok(Some(format!(
        "restore of {name}@{number}: {bytes} bytes sent in {:.1} s{without}",
        began.elapsed().as_secs_f64()
    )))
}
