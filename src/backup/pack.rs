//! From bytes and entries to what is sent: blocks, and batches of entries that follow them.
//!
//! ```text
//!   reading thread: Packer ── raw blocks, batches ──> sealing thread ── Made ──> whoever sends
//!        ^                                                 │
//!        └────────────────── used buffers ─────────────────┘
//! ```
//!
//! Both queues are bounded: who sends slowly makes the reader wait.
//!
//! Awkward cases:
//! * A small file is not cut at the end of a block: the block ends before it, so that restoring the
//!   file is one write.
//! * A large file's pieces are announced while it is being read: it goes on in its middle after an
//!   interruption.

use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use tokio::sync::mpsc::Sender;

use super::{
    block::{BLOCK_MAX, Block, Sealer},
    entry::{Entry, Piece},
    talk::{Batch, Coming, pack},
    tree::Problem,
};

/// A file up to this size lies in one block, bytes.
const WHOLE_BELOW: u64 = 256 << 10;
/// A block with less room than this is full, bytes.
const FULL_WITHIN: usize = 4 << 10;
/// A batch ends after so many entries, or so many blocks.
const BATCH_ENTRIES: usize = 256;
const BATCH_BLOCKS: u32 = 4;
/// Pieces of one file are announced before its end when they are so many, or in so many blocks: an
/// interruption loses what was not.
const PIECES_MAX: usize = 16;
const PART_BLOCKS: u32 = 4;
/// Raw blocks between reader and sealer.
const RAW_QUEUE: usize = 2;

/// What is to be sent, in this order.
#[derive(Debug)]
pub(crate) enum Made {
    /// The next block, by its number.
    Block(u32, Block),
    /// A packed [`Batch`]: entries that are whole, and bytes of their files that the store knows.
    Entries { bytes: Vec<u8>, entries: u64, known_bytes: u64 },
    /// Something that is not stored, or not as it should be.
    Problem(Problem),
    /// That was all: blocks, entries.
    End(u32, u64),
    /// Nothing more comes.
    Failed(String),
}

/// Whoever sends is gone.
#[derive(Debug)]
pub(crate) struct Gone;

enum Raw {
    Block(u32, Vec<u8>, usize),
    Batch(Batch, u64),
    Made(Made),
}

/// Fills blocks.
pub(crate) struct Packer {
    to: SyncSender<Raw>,
    used: Receiver<Vec<u8>>,
    raw: Vec<u8>,
    filled: usize,
    number: u32,
    entries: Vec<Coming>,
    batched_at: u32,
    count: u64,
    known_bytes: u64,
}

impl Packer {
    /// Starts the sealing thread.
    pub(crate) fn start(level: Option<i32>, made: Sender<Made>) -> io::Result<Self> {
        let mut sealer = Sealer::new(level)?;
        let (to, from) = sync_channel::<Raw>(RAW_QUEUE);
        let (give_back, used) = sync_channel(RAW_QUEUE + 2);
        std::thread::Builder::new().name("sidepath-seal".into()).spawn(move || {
            for raw in from {
                let made_of = match raw {
                    Raw::Block(number, bytes, n) => {
                        let block = sealer.seal(&bytes[..n]);
                        let _ = give_back.try_send(bytes);
                        Made::Block(number, block)
                    }
                    Raw::Batch(batch, known_bytes) => match pack(&batch) {
                        Ok(bytes) => {
                            let entries = batch.entries.iter().filter(|e| !e.more).count() as u64;
                            Made::Entries { bytes, entries, known_bytes }
                        }
                        Err(error) => Made::Failed(format!("cannot pack entries: {error}")),
                    },
                    Raw::Made(made) => made,
                };
                if made.blocking_send(made_of).is_err() {
                    return;
                }
            }
        })?;
        let raw = vec![0; BLOCK_MAX];
        Ok(Self {
            to,
            used,
            raw,
            filled: 0,
            number: 0,
            entries: Vec::new(),
            batched_at: 0,
            count: 0,
            known_bytes: 0,
        })
    }

    /// Before a file of that size is read.
    pub(crate) fn make_room(&mut self, size: u64) -> Result<(), Gone> {
        let room = (BLOCK_MAX - self.filled) as u64;
        if size > room && (size <= WHOLE_BELOW || room <= FULL_WITHIN as u64) {
            self.cut()?;
        }
        Ok(())
    }

    /// Where the next bytes go: read there, then say how many by [`Packer::filled`].
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.raw[self.filled..]
    }

    /// So many bytes were put into the room; they belong to this offset of a file.
    pub(crate) fn filled(&mut self, offset: u64, length: usize) -> Result<Piece, Gone> {
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let piece =
            Piece { offset, length: word(length), block: self.number, within: word(self.filled) };
        self.filled += length;
        if BLOCK_MAX - self.filled <= FULL_WITHIN {
            self.cut()?;
        }
        Ok(piece)
    }

    /// An entry, its pieces filled before.
    pub(crate) fn entry(&mut self, coming: Coming) -> Result<(), Gone> {
        self.count += u64::from(!coming.more);
        self.entries.push(coming);
        // While the block is empty, all that entries refer to was cut.
        if self.filled == 0 { self.maybe_batch() } else { Ok(()) }
    }

    /// Pieces of a file whose end was not read yet are announced when they are many. `entry` is as
    /// it was when the file was opened; `known` is told once.
    pub(crate) fn so_far(
        &mut self,
        entry: &Entry,
        known: &mut Option<u32>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Gone> {
        let first = pieces.first().map_or(self.number, |piece| piece.block);
        if pieces.len() < PIECES_MAX && self.number - first < PART_BLOCKS {
            return Ok(());
        }
        let pieces = std::mem::take(pieces);
        self.entry(Coming { entry: entry.clone(), known: known.take(), pieces, more: true })
    }

    /// So many bytes of a file need not be sent.
    pub(crate) fn knows(&mut self, bytes: u64) {
        self.known_bytes += bytes;
    }

    pub(crate) fn problem(&self, problem: Problem) -> Result<(), Gone> {
        self.to.send(Raw::Made(Made::Problem(problem))).map_err(|_| Gone)
    }

    pub(crate) fn failed(self, why: String) {
        let _ = self.to.send(Raw::Made(Made::Failed(why)));
    }

    /// Sends what is left.
    pub(crate) fn end(mut self) -> Result<(), Gone> {
        self.cut()?;
        self.batch()?;
        self.to.send(Raw::Made(Made::End(self.number, self.count))).map_err(|_| Gone)
    }

    fn cut(&mut self) -> Result<(), Gone> {
        if self.filled > 0 {
            let next = self.used.try_recv().unwrap_or_else(|_| vec![0; BLOCK_MAX]);
            let raw = std::mem::replace(&mut self.raw, next);
            let block = Raw::Block(self.number, raw, std::mem::take(&mut self.filled));
            self.to.send(block).map_err(|_| Gone)?;
            self.number += 1;
        }
        self.maybe_batch()
    }

    fn maybe_batch(&mut self) -> Result<(), Gone> {
        let many = self.entries.len() >= BATCH_ENTRIES
            || self.number - self.batched_at >= BATCH_BLOCKS && !self.entries.is_empty();
        if many { self.batch() } else { Ok(()) }
    }

    /// All blocks that the entries refer to were cut.
    fn batch(&mut self) -> Result<(), Gone> {
        self.batched_at = self.number;
        if self.entries.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.entries);
        let batch = Batch { after: self.number, entries };
        let known = std::mem::take(&mut self.known_bytes);
        self.to.send(Raw::Batch(batch, known)).map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{
        entry::{Kind, Name, Stamp},
        talk::{FRAME_MAX, unpack},
    };

    fn entry(name: &str, size: u64) -> Entry {
        Entry {
            name: Name::new(name).unwrap(),
            kind: Kind::File { size, digest: [0; 32], changed: false },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Stamp::default(),
            ctime: Stamp::default(),
            inode: 1,
            xattrs: Vec::new(),
        }
    }

    /// Packs files of these sizes, whose bytes tell their file and offset; gives what was made.
    fn packed(sizes: &[usize]) -> (Vec<Block>, Vec<Batch>) {
        let (tell, mut made) = tokio::sync::mpsc::channel(4);
        let sizes = sizes.to_vec();
        std::thread::spawn(move || {
            let mut packer = Packer::start(Some(1), tell).unwrap();
            for (i, size) in sizes.iter().enumerate() {
                let (mut pieces, mut done) = (Vec::new(), 0);
                let entry = entry(&i.to_string(), *size as u64);
                packer.make_room(*size as u64).unwrap();
                while done < *size {
                    let room = packer.room();
                    let n = room.len().min(size - done);
                    for (at, byte) in room[..n].iter_mut().enumerate() {
                        *byte = byte_of(i, done + at);
                    }
                    pieces.push(packer.filled(done as u64, n).unwrap());
                    done += n;
                    packer.so_far(&entry, &mut None, &mut pieces).unwrap();
                }
                packer.entry(Coming { entry, known: None, pieces, more: false }).unwrap();
            }
            packer.end().unwrap();
        });
        let (mut blocks, mut batches) = (Vec::new(), Vec::<Batch>::new());
        while let Some(made) = made.blocking_recv() {
            match made {
                Made::Block(number, block) => {
                    assert_eq!(number as usize, blocks.len());
                    blocks.push(block);
                }
                Made::Entries { bytes, .. } => {
                    let batch: Batch = unpack(&bytes, FRAME_MAX).unwrap();
                    assert!(batch.after as usize <= blocks.len(), "blocks come first");
                    batches.push(batch);
                }
                Made::End(n, entries) => {
                    assert_eq!(n as usize, blocks.len());
                    let whole = batches.iter().flat_map(|b| &b.entries).filter(|e| !e.more);
                    assert_eq!(entries, whole.count() as u64);
                }
                other => panic!("{other:?}"),
            }
        }
        (blocks, batches)
    }

    fn byte_of(file: usize, offset: usize) -> u8 {
        u8::try_from((file * 31 + offset / 7 + offset / 5000) % 251).unwrap()
    }

    #[test]
    fn every_byte_is_found_again_where_its_piece_says() {
        let sizes = [0, 1, 5000, 255 << 10, 3 << 20, 200 << 10, 40 << 20, 17, (1 << 20) - 100, 90];
        let (blocks, batches) = packed(&sizes);
        let raw: Vec<Vec<u8>> = blocks.iter().map(|b| b.clone().open().unwrap().to_vec()).collect();
        let mut got = vec![Vec::new(); sizes.len()];
        let mut pieces_of = vec![0; sizes.len()];
        for batch in &batches {
            for coming in &batch.entries {
                let i: usize = coming.entry.name.to_string().parse().unwrap();
                assert!(coming.pieces.len() <= PIECES_MAX);
                for piece in &coming.pieces {
                    assert!(piece.block < batch.after);
                    let from = piece.within as usize;
                    assert_eq!(piece.offset, got[i].len() as u64);
                    let bytes = &raw[piece.block as usize][from..from + piece.length as usize];
                    got[i].extend_from_slice(bytes);
                    pieces_of[i] += 1;
                }
            }
        }
        for (i, size) in sizes.iter().enumerate() {
            let wanted: Vec<u8> = (0..*size).map(|at| byte_of(i, at)).collect();
            assert!(got[i] == wanted, "file {i} of {size} bytes");
            assert!(*size as u64 > WHOLE_BELOW || pieces_of[i] <= 1, "file {i} is cut");
        }
    }

    #[test]
    fn many_small_files_share_blocks_and_batches() {
        let (blocks, batches) = packed(&[1000; 5000]);
        assert!((4..8).contains(&blocks.len()), "{} blocks", blocks.len());
        assert!(batches.len() <= 8, "{} batches", batches.len());
    }
}
