//! The journal of a version that is being made: what of it would outlive a crash.
//!
//! ```text
//!   | Begin | Blocks | Entries | Blocks | Entries | ...        frames, see frames.rs
//! ```
//!
//! A record is written when the packs it names are on disk. Blocks have numbers that pieces name
//! them by; they are those of one attempt, so who goes on begins a journal anew, with what was good.
//!
//! Awkward cases:
//! * The tail may be torn, or be from before a crash while the pack it names is not all there: what
//!   cannot be read is dropped, and the files it belongs to end before it.
//! * A large file comes in parts. One whose last part is missing is known up to a certain offset.
//! * A file may have been begun again, by another attempt: the last one counts.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, BufReader, BufWriter, ErrorKind, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    super::{
        block::Block,
        entry::{Entry, Kind, Name, Piece},
        talk::invalid,
    },
    catalogue::BlockAt,
    check,
    error::StoreError,
    folder::{Folder, remove, write_whole},
    frames::{self, EntryWriter, Record},
};

/// So many of the last blocks are read when a journal is: disks that lie about what is on them lie
/// about the newest.
const PARSED: usize = 64;

/// What an interrupted attempt left.
#[derive(Debug, Default)]
pub(super) struct Interrupted {
    pub(super) number: u32,
    pub(super) began_s: i64,
    pub(super) blocks: Vec<BlockAt>,
    pub(super) files: Vec<Partial>,
}

/// A file, and the pieces of it that are there.
#[derive(Debug, Clone)]
pub(super) struct Partial {
    pub(super) entry: Entry,
    pub(super) pieces: Vec<Piece>,
    /// Else it ends before its end.
    pub(super) whole: bool,
}

impl Partial {
    /// Where its pieces end.
    pub(super) fn end(&self) -> u64 {
        self.pieces.last().map_or(0, Piece::end)
    }
}

/// Reads a journal, as far as it is good and what it names is there.
pub(super) fn load(folder: &Folder, number: u32) -> Result<Interrupted, StoreError> {
    let path = folder.journal(number);
    let mut it = Interrupted { number, ..Interrupted::default() };
    let mut blocks: HashMap<u32, BlockAt> = HashMap::new();
    let mut last_blocks = Vec::new();
    let (mut at, mut open): (HashMap<Name, usize>, Option<usize>) = (HashMap::new(), None);
    read(&path, |record| {
        match record {
            Record::Begin { began_s, .. } => it.began_s = began_s,
            Record::Blocks { first, blocks: run } => {
                for (n, block) in (first..=u32::MAX).zip(run) {
                    blocks.insert(n, block);
                    last_blocks.push(n);
                }
                let surplus = last_blocks.len().saturating_sub(PARSED);
                last_blocks.drain(..surplus);
            }
            Record::Entries(parts) => {
                for mut part in parts {
                    check::is_well_formed(&part.entry).map_err(|e| invalid(&e))?;
                    let place = match open.filter(|_| !part.first) {
                        Some(n) => n,
                        None if part.first => {
                            *at.entry(part.entry.name.clone()).or_insert(it.files.len())
                        }
                        None => return Err(invalid("a part without its beginning")),
                    };
                    open = (!part.last).then_some(place);
                    match it.files.get_mut(place) {
                        Some(file) if !part.first => {
                            file.entry = part.entry;
                            file.pieces.append(&mut part.pieces);
                            file.whole = part.last;
                        }
                        there => {
                            let (entry, pieces) = (part.entry, part.pieces);
                            let file = Partial { entry, pieces, whole: part.last };
                            match there {
                                Some(there) => *there = file,
                                None => it.files.push(file),
                            }
                        }
                    }
                }
            }
            _ => return Err(invalid("a record that belongs to no journal")),
        }
        Ok(())
    })?;
    drop_unreadable(folder, &mut blocks, &last_blocks);
    it.keep_good(&blocks);
    Ok(it)
}

/// The packs a journal names.
pub(super) fn packs(path: &Path) -> Result<BTreeSet<(u32, u32)>, StoreError> {
    let mut packs = BTreeSet::new();
    read(path, |record| {
        if let Record::Blocks { blocks, .. } = record {
            packs.extend(blocks.iter().map(|b| (b.version, b.pack)));
        }
        Ok(())
    })?;
    Ok(packs)
}

/// Gives the records of a journal out, until one is no good.
fn read(path: &Path, mut each: impl FnMut(Record) -> io::Result<()>) -> Result<(), StoreError> {
    let mut file = BufReader::new(File::open(path).map_err(StoreError::io("open", path))?);
    loop {
        match frames::read(&mut file).and_then(&mut each) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) => {
                return Ok(());
            }
            Err(e) => return Err(StoreError::io("read", path)(e)),
        }
    }
}

/// Blocks beyond the end of their packs go, and of the last ones those that are none.
fn drop_unreadable(folder: &Folder, blocks: &mut HashMap<u32, BlockAt>, last: &[u32]) {
    let mut lengths = PackLengths::new(folder);
    blocks.retain(|_, block| lengths.has(block));
    for n in last {
        if blocks.get(n).is_some_and(|at| !reads(folder, at)) {
            blocks.remove(n);
        }
    }
}

fn reads(folder: &Folder, at: &BlockAt) -> bool {
    let mut bytes = vec![0; usize::try_from(at.stored).unwrap_or(0)];
    File::open(folder.pack((at.version, at.pack)))
        .and_then(|pack| pack.read_exact_at(&mut bytes, at.offset))
        .is_ok_and(|()| {
            Block::parse(bytes)
                .is_ok_and(|block| u32::try_from(block.raw_len()).is_ok_and(|n| n == at.raw))
        })
}

/// How long packs are, asked once for each.
pub(super) struct PackLengths<'a> {
    folder: &'a Folder,
    known: HashMap<(u32, u32), u64>,
}

impl<'a> PackLengths<'a> {
    pub(super) fn new(folder: &'a Folder) -> Self {
        Self { folder, known: HashMap::new() }
    }

    /// Whether there are bytes where a block should be.
    pub(super) fn has(&mut self, at: &BlockAt) -> bool {
        let pack = (at.version, at.pack);
        let length = *self
            .known
            .entry(pack)
            .or_insert_with(|| std::fs::metadata(self.folder.pack(pack)).map_or(0, |m| m.len()));
        at.is_possible() && at.end() <= length
    }
}

impl Interrupted {
    /// Bytes that the attempt brought, before compression.
    pub(super) fn bytes(&self) -> u64 {
        let block = |n: u32| usize::try_from(n).ok().and_then(|n| self.blocks.get(n));
        let pieces = self.files.iter().flat_map(|file| &file.pieces);
        let its = pieces.filter(|p| block(p.block).is_some_and(|b| b.version == self.number));
        its.map(|piece| u64::from(piece.length)).sum()
    }

    /// Cuts off its packs what no file has, so that only what is used takes space.
    pub(super) fn trim(&self, folder: &Folder) -> Result<(), StoreError> {
        for pack in folder.list()?.packs.range((self.number, 0)..=(self.number, u32::MAX)) {
            let its = self.blocks.iter().filter(|b| (b.version, b.pack) == *pack);
            let path = folder.pack(*pack);
            match its.map(BlockAt::end).max() {
                None => remove(&path)?,
                Some(end) => File::options()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.set_len(end))
                    .map_err(StoreError::io("shorten", &path))?,
            }
        }
        Ok(())
    }

    /// Leaves of each file what lies in these blocks, and numbers those it needs from zero.
    fn keep_good(&mut self, blocks: &HashMap<u32, BlockAt>) {
        let mut numbers: HashMap<u32, u32> = HashMap::new();
        let kept = &mut self.blocks;
        self.files.retain_mut(|file| {
            let raw = |n: u32| blocks.get(&n).map(|block| block.raw);
            let (mut end, mut good) = (0, 0);
            while let Some(piece) = file.pieces.get(good) {
                let Ok(next) = check::run(std::slice::from_ref(piece), end, raw) else { break };
                (end, good) = (next, good + 1);
            }
            file.whole &= good == file.pieces.len();
            file.pieces.truncate(good);
            let fits = matches!(file.entry.kind, Kind::File { size, .. } if end <= size);
            if file.whole && !fits || !file.whole && file.pieces.is_empty() {
                return false;
            }
            for piece in &mut file.pieces {
                piece.block = *numbers.entry(piece.block).or_insert_with(|| {
                    kept.extend(blocks.get(&piece.block));
                    u32::try_from(kept.len() - 1).unwrap_or(u32::MAX)
                });
            }
            true
        });
    }
}

/// A journal that is being written.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Begins one, in place of what was there, with what an interrupted attempt left.
    pub(super) fn create(folder: &Folder, from: &Interrupted) -> Result<Self, StoreError> {
        let path = folder.journal(from.number);
        let file = write_whole(&path, |file| {
            let mut out = BufWriter::new(file);
            let begin = Record::Begin { number: from.number, began_s: from.began_s };
            out.write_all(&frames::frame(&begin)?)?;
            frames::write_blocks(&mut out, 0, &from.blocks)?;
            let mut entries = EntryWriter::new(&mut out);
            for file in &from.files {
                entries.put(&file.entry, &file.pieces, true, file.whole)?;
            }
            entries.finish()?;
            out.flush()
        })?;
        Ok(Self { path, file })
    }

    /// Writes what is on disk now, and sees that this is, too.
    pub(super) fn append(&mut self, frames: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all(frames).and_then(|()| self.file.sync_data());
        written.map_err(StoreError::io("write", &self.path))
    }

    #[cfg(test)]
    pub(super) fn on(path: &Path, file: File) -> Self {
        Self { path: path.into(), file }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::{
            Keep,
            testing::{Client, Random, Rig, Tree, random_tree, tree},
        },
        *,
    };

    /// Prevents: a version listed although it is not whole; what was durable sent again; anything
    /// known that is not there.
    #[test]
    fn interrupted_at_every_step_it_goes_on() {
        let mut random = Random(11);
        let mut tree = random_tree(&mut random);
        tree.insert("long".into(), random.bytes(10_000));
        for steps in 0.. {
            let rig = Rig::new(Keep::default());
            let mut client = Client::new(rig.begin(), steps);
            let whole = client.send(&tree).unwrap();
            let saved = if random.below(2) == 0 {
                drop(client);
                None
            } else {
                let all = client.writer.draft.blocks();
                client.writer.suspend().unwrap();
                Some(all)
            };
            assert!(rig.files("version").is_empty() && rig.numbers().is_empty());
            let writer = rig.begin();
            assert_eq!(writer.number(), 1);
            assert_eq!(rig.check_known(&writer, &tree), writer.resumed_bytes());
            if let (Some(1..), true) = (saved, whole) {
                let length: usize = tree.values().map(Vec::len).sum();
                assert_eq!(writer.resumed_bytes(), length as u64);
            }
            let mut client = Client::new(writer, usize::MAX);
            let (length, resumed): (usize, _) =
                (tree.values().map(Vec::len).sum(), client.writer.resumed_bytes());
            client.send(&tree).unwrap();
            assert_eq!(client.sent, length as u64 - resumed);
            client.finish().unwrap();
            assert_eq!((rig.numbers(), rig.restored(1)), (vec![1], tree.clone()));
            assert_eq!(rig.findings(None), [""; 0]);
            assert!(rig.files("journal").is_empty());
            if whole {
                assert!(steps > 30);
                break;
            }
        }
    }

    /// Prevents: a journal that is believed after a crash of the machine tore it, or the packs.
    #[test]
    fn torn_journals_and_packs_lose_only_what_is_torn() {
        let mut random = Random(3);
        let (mut most, mut lost) = (0, 0);
        for round in 0..150 {
            let rig = Rig::new(Keep::default());
            let tree = random_tree(&mut random);
            if round % 3 == 0 {
                rig.backup(&tree.iter().take(4).map(|(n, b)| (n.clone(), b.clone())).collect());
            }
            for _ in 0..random.below(3) + 1 {
                let mut client = Client::new(rig.begin(), random.index(30));
                client.send(&tree).unwrap();
                let number = client.writer.number();
                client.writer.suspend().unwrap();
                most += 1;
                lost += u64::from(tear(&rig, number, &mut random));
                let writer = rig.begin();
                rig.check_known(&writer, &tree);
            }
            rig.backup(&tree);
            let last = *rig.numbers().last().unwrap();
            assert_eq!(rig.restored(last), tree, "round {round}");
            assert_eq!(rig.findings(None), [""; 0]);
        }
        assert!(lost > most / 2, "{lost} of {most}");
    }

    /// Does to the newest files what a crash may.
    fn tear(rig: &Rig, number: u32, random: &mut Random) -> bool {
        let own = format!("{number:08}");
        let mut files = rig.files("journal");
        let packs = rig.files("pack").into_iter().rev();
        let is_own = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().starts_with(&own);
        files.extend(packs.filter(is_own).take(2));
        let path = &files[random.index(files.len())];
        let mut bytes = fs::read(path).unwrap();
        if bytes.is_empty() {
            return false;
        }
        let at = random.index(bytes.len());
        match random.below(4) {
            0 => bytes.truncate(at),
            // Its length is on disk, its bytes are not.
            1 => bytes[at..].fill(0),
            2 => bytes[at] ^= 1 << random.below(8),
            _ => fs::remove_file(path).unwrap(),
        }
        if path.exists() {
            fs::write(path, bytes).unwrap();
        }
        true
    }

    #[test]
    fn a_file_begun_again_counts_as_it_was_last() {
        let rig = Rig::new(Keep::default());
        let (old, new) = (vec![1; 4000], vec![2; 4000]);
        for (content, steps) in [(&old, 9), (&new, 5)] {
            let mut client = Client::new(rig.begin(), steps);
            assert!(!client.send(&tree(&[("f", content)])).unwrap());
            client.writer.suspend().unwrap();
        }
        let writer = rig.begin();
        assert_eq!(writer.known().len(), 1);
        assert!(writer.resumed_bytes() > 0);
        rig.check_known(&writer, &tree(&[("f", &new)]));
    }

    #[test]
    fn fresh_forgets_what_was_interrupted() {
        let rig = Rig::new(Keep::default());
        rig.backup(&tree(&[("a", b"1")]));
        let mut client = Client::new(rig.begin(), usize::MAX);
        client.send(&tree(&[("f", &[7; 4000])])).unwrap();
        client.writer.suspend().unwrap();
        assert!(rig.files("pack").len() > 1);
        let writer = rig.store.begin("n", super::super::About::default(), true).unwrap();
        assert_eq!((writer.known().len(), writer.resumed_bytes(), writer.number()), (0, 0, 2));
        assert_eq!(rig.files("pack").len(), 1);
    }

    #[test]
    fn noise_behind_a_good_journal_is_cut_off() {
        let rig = Rig::new(Keep::default());
        let tree: Tree = tree(&[("f", &[7; 4000])]);
        let mut client = Client::new(rig.begin(), usize::MAX);
        client.send(&tree).unwrap();
        client.writer.suspend().unwrap();
        let path = &rig.files("journal")[0];
        let mut bytes = fs::read(path).unwrap();
        bytes.extend(Random(5).bytes(1000));
        fs::write(path, bytes).unwrap();
        assert_eq!(rig.check_known(&rig.begin(), &tree), 4000);
        fs::write(path, b"").unwrap();
        assert_eq!(rig.begin().resumed_bytes(), 0);
    }
}
