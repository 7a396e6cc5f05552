//! A version being made: blocks go into packs, entries into what will be its catalogue.
//!
//! ```text
//!   block ──> pack ─────────────────────────────┐
//!   batch ── waits for its blocks ──> draft ────┴─ every 2 to 16 MiB or 5 s ──> disk, then journal
//!   finish: all on disk, catalogue, then the journal goes, then old versions
//! ```
//!
//! Awkward cases:
//! * The client may be hostile or out of its mind: whatever it sends is checked before it is kept.
//!   After any error the session is over; the journal is not, and another session goes on.
//! * A file that is known and unchanged is not in the journal: whoever goes on knows it anyway.

use std::{
    collections::{HashSet, VecDeque},
    time::Instant,
};

use super::{
    super::{
        block::Block,
        talk::{About, Batch, Known, Version},
    },
    Limits, Store,
    catalogue::{Catalogue, PROBLEMS_MAX},
    check,
    draft::Draft,
    error::StoreError,
    folder::{Folder, Lock},
    journal::{Interrupted, Journal},
    pack::Packer,
    sync::{Cut, Progress, Syncer},
};

/// Bytes of memory that batches may take which came before their blocks, about.
const WAITING_MAX: u64 = 64 << 20;

/// Whoever has it is the only one to write to this name.
#[derive(Debug)]
pub(crate) struct Writer {
    store: Store,
    folder: Folder,
    limits: Limits,
    about: About,
    number: u32,
    began_s: i64,
    resumed_bytes: u64,
    pub(super) draft: Draft,
    packer: Packer,
    waiting: VecDeque<Batch>,
    waiting_cost: u64,
    /// What the next cut will have; stored bytes of it, and since when.
    cut: Cut,
    cut_bytes: u64,
    cut_at: Instant,
    /// Blocks of the session that cuts have, bytes of all that came before compression.
    cut_blocks: u32,
    raw_bytes: u64,
    /// Blocks of the last version that the journal has, too.
    borrowed: HashSet<u32>,
    failed: bool,
    // The order of these two matters: the lock goes when nothing is written any more.
    syncer: Syncer,
    lock: Lock,
}

impl Writer {
    pub(super) fn begin(
        store: &Store,
        (folder, lock): (Folder, Lock),
        about: About,
        interrupted: Interrupted,
        last: Option<Catalogue>,
    ) -> Result<Self, StoreError> {
        let limits = store.limits;
        let journal = Journal::create(&folder, &interrupted)?;
        let syncer = Syncer::start(folder.clone(), journal)?;
        let (number, began_s) = (interrupted.number, interrupted.began_s);
        let last_pack = folder.list()?.last_pack(number);
        Ok(Self {
            store: store.clone(),
            limits,
            about,
            number,
            began_s,
            resumed_bytes: interrupted.bytes(),
            draft: Draft::new(&folder, interrupted, last)?,
            packer: Packer::new(folder.clone(), number, last_pack, limits.pack_max),
            folder,
            waiting: VecDeque::new(),
            waiting_cost: 0,
            cut: Cut::default(),
            cut_bytes: 0,
            cut_at: Instant::now(),
            cut_blocks: 0,
            raw_bytes: 0,
            borrowed: HashSet::new(),
            failed: false,
            syncer,
            lock,
        })
    }

    /// Of the version that is being made.
    #[cfg(test)]
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Files whose bytes need not be sent: of the last version, and of an interrupted attempt.
    pub(crate) fn known(&self) -> &[Known] {
        &self.draft.known
    }

    /// Bytes (uncompressed) that an interrupted attempt brought and that are known.
    pub(crate) fn resumed_bytes(&self) -> u64 {
        self.resumed_bytes
    }

    /// Blocks of this session that would outlive a crash, and the bytes in them, uncompressed.
    pub(crate) fn durable(&self) -> (u32, u64) {
        self.syncer.durable()
    }

    /// The next block of the session.
    pub(crate) fn block(&mut self, block: &Block) -> Result<(), StoreError> {
        self.step(|it| {
            if it.draft.table.len() >= u32::MAX as usize {
                return Err(StoreError::nonsense("more blocks than have numbers"));
            }
            let at = it.packer.append(block)?;
            it.draft.table.push(at);
            it.cut_bytes += u64::from(at.stored);
            it.raw_bytes += u64::from(at.raw);
            it.take_waiting()?;
            it.cut_if_due()
        })
    }

    /// Entries; they may come before their blocks, and are taken in the order in which they come.
    pub(crate) fn batch(&mut self, batch: Batch) -> Result<(), StoreError> {
        self.step(|it| {
            it.waiting_cost += cost(&batch);
            it.waiting.push_back(batch);
            it.take_waiting()?;
            if it.waiting_cost > WAITING_MAX {
                return Err(StoreError::nonsense("entries come long before their blocks"));
            }
            it.cut_if_due()
        })
    }

    /// Sees that what came is not unsaved for long; for a caller to whom nothing comes.
    pub(crate) fn tick(&mut self) -> Result<(), StoreError> {
        self.step(Self::cut_if_due)
    }

    /// Ends the session before its end: all that came is made durable, and a later one goes on.
    pub(crate) fn suspend(mut self) -> Result<(), StoreError> {
        self.save_all()
    }

    /// Makes the version appear. Says no when something is missing: `blocks` and `entries` are those
    /// that were sent in this session, a file that came in parts being one entry.
    pub(crate) fn finish(
        mut self,
        blocks: u32,
        entries: u64,
        problems: Vec<String>,
    ) -> Result<Version, StoreError> {
        let came = (self.draft.blocks(), self.draft.count());
        let missing = if !self.waiting.is_empty() {
            "blocks are missing that entries need".into()
        } else if self.draft.is_open() {
            "the end of the last file is missing".into()
        } else if came != (blocks, entries) {
            let (b, e) = came;
            format!("{blocks} blocks and {entries} entries were sent, {b} and {e} came")
        } else if problems.iter().map(String::len).sum::<usize>() > PROBLEMS_MAX {
            "its problems have no end".into()
        } else {
            String::new()
        };
        self.save_all()?;
        if !missing.is_empty() {
            return Err(StoreError::nonsense(missing));
        }
        let version = Version {
            name: self.folder.name.clone(),
            number: self.number,
            about: self.about,
            began_s: self.began_s,
            ended_s: super::now_s(),
            ..Version::default()
        };
        let catalogue = self.draft.into_catalogue(version, problems);
        debug_assert_eq!(catalogue.check(), Ok(()));
        let version = self.store.complete(&self.folder, catalogue)?;
        self.lock.note(version.number);
        Ok(version)
    }

    /// Does something, unless something before it failed.
    fn step(
        &mut self,
        what: impl FnOnce(&mut Self) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::nonsense("an earlier step of this session failed"));
        }
        let result = self.syncer.trouble().and_then(|()| what(self));
        self.failed = result.is_err();
        result
    }

    /// Takes the batches whose blocks are all there.
    fn take_waiting(&mut self) -> Result<(), StoreError> {
        while self.waiting.front().is_some_and(|batch| batch.after <= self.draft.blocks()) {
            let Some(batch) = self.waiting.pop_front() else { break };
            self.waiting_cost -= cost(&batch);
            for coming in batch.entries {
                let progress =
                    self.draft.take(coming, batch.after).map_err(StoreError::nonsense)?;
                self.cut_with(progress);
            }
        }
        Ok(())
    }

    /// Has a part of a file in the next cut, and blocks of the last version if it needs them.
    fn cut_with(&mut self, progress: Option<Progress>) {
        let Some(progress) = progress else { return };
        for place in progress.part.pieces.iter().map(|piece| piece.block) {
            let is_last_versions = (self.draft.journaled..self.draft.session).contains(&place);
            if is_last_versions && self.borrowed.insert(place) {
                self.cut.blocks.extend(self.draft.block(place).map(|block| (place, vec![*block])));
            }
        }
        self.cut.files.push(progress);
    }

    fn cut_if_due(&mut self) -> Result<(), StoreError> {
        let dirty = self.cut_bytes > 0 || !self.cut.files.is_empty();
        let due = self.cut_bytes >= self.limits.cut_bytes
            || self.cut_bytes >= self.limits.cut_bytes_idle && self.syncer.is_idle()
            || self.cut_at.elapsed() >= self.limits.cut_every;
        if dirty && due { self.cut() } else { Ok(()) }
    }

    /// Gives all that came since the last cut to be made durable.
    fn cut(&mut self) -> Result<(), StoreError> {
        let mut cut = std::mem::take(&mut self.cut);
        (cut.packs, cut.new_pack) = self.packer.take_dirty();
        let first = self.draft.session + self.cut_blocks;
        let from = usize::try_from(first).unwrap_or(usize::MAX);
        if let Some(new) = self.draft.table.get(from..).filter(|new| !new.is_empty()) {
            cut.blocks.push((first, new.to_vec()));
        }
        self.cut_blocks = self.draft.blocks();
        cut.reached = (self.cut_blocks, self.raw_bytes);
        (self.cut_bytes, self.cut_at) = (0, Instant::now());
        self.syncer.put(cut)
    }

    fn save_all(&mut self) -> Result<(), StoreError> {
        self.step(|it| {
            it.cut()?;
            it.syncer.end()
        })
    }
}

fn cost(batch: &Batch) -> u64 {
    let each = batch.entries.iter();
    each.map(|c| check::cost(&c.entry) + size_of_val(&c.pieces[..]) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            super::{
                block::Sealer,
                entry::{Entry, Piece},
                talk::Coming,
            },
            Keep,
            frames::{self, Record},
            testing::{Client, Random, Rig, file, folder, random_tree},
        },
        *,
    };

    fn block(length: usize) -> Block {
        Sealer::new(None).unwrap().seal(&vec![1; length])
    }

    fn piece(offset: u64, length: u32, block: u32) -> Piece {
        Piece { offset, length, block, within: 0 }
    }

    fn coming(entry: Entry, pieces: &[Piece]) -> Coming {
        Coming { entry, known: None, pieces: pieces.to_vec(), more: false }
    }

    fn batch(after: u32, entries: &[Coming]) -> Batch {
        Batch { after, entries: entries.to_vec() }
    }

    fn f(size: u64) -> Entry {
        file("f", size, [0; 32])
    }

    #[test]
    fn a_client_out_of_its_mind_harms_nothing() {
        let rig = Rig::new(Keep::default());
        let part = |entry, pieces: &[_]| Coming { more: true, ..coming(entry, pieces) };
        let known = |n, it| Coming { known: Some(n), ..it };
        for (entries, why) in [
            (vec![coming(f(9), &[piece(0, 9, 1)])], "has not come"),
            (vec![coming(f(9), &[piece(0, 9, u32::MAX)])], "has not come"),
            (vec![coming(f(9), &[piece(0, 101, 0)])], "does not lie in its block"),
            (vec![coming(f(9), &[piece(0, 10, 0)])], "beyond its end"),
            (vec![coming(f(9), &[piece(u64::MAX, 9, 0)])], "beyond any file"),
            (vec![coming(f(9), &[piece(4, 4, 0), piece(0, 4, 0)])], "overlap"),
            (vec![coming(folder("d"), &[piece(0, 1, 0)])], "no file"),
            (vec![part(folder("d"), &[])], "no file"),
            (vec![known(0, coming(folder("d"), &[]))], "no file"),
            (vec![known(0, coming(f(9), &[]))], "not known"),
            (vec![coming(f(0), &[]), coming(f(0), &[])], "comes twice"),
            (vec![coming(file("d/f", 0, [0; 32]), &[])], "no folder before it"),
            (vec![part(f(9), &[]), coming(file("g", 0, [0; 32]), &[])], "not come to its end"),
            (vec![part(f(9), &[]), coming(folder("f"), &[])], "not come to its end"),
            (vec![part(f(9), &[piece(0, 9, 0)]), coming(f(9), &[piece(8, 1, 0)])], "overlap"),
            (vec![part(f(9), &[piece(0, 9, 0)]), coming(f(8), &[])], "beyond its end"),
        ] {
            let mut writer = rig.begin();
            writer.block(&block(100)).unwrap();
            let error = writer.batch(batch(1, &entries)).unwrap_err();
            assert!(matches!(error, StoreError::Nonsense { .. }));
            assert!(error.to_string().contains(why), "{error} does not say {why:?}");
            // There is no way on from it.
            assert!(writer.block(&block(100)).is_err() && writer.tick().is_err());
            assert!(writer.finish(1, 1, Vec::new()).is_err());
            assert!(rig.numbers().is_empty());
        }
        let tree = random_tree(&mut Random(1));
        rig.backup(&tree);
        assert_eq!(rig.restored(1), tree);
    }

    #[test]
    fn a_version_of_which_something_is_missing_does_not_appear() {
        let rig = Rig::new(Keep::default());
        let whole = [coming(f(9), &[piece(0, 9, 0)])];
        let part = [Coming { more: true, ..whole[0].clone() }];
        let finish = |entries: &[Coming], after, came: u32, blocks, count| {
            let mut writer = rig.begin();
            writer.batch(batch(after, entries)).unwrap();
            (0..came).try_for_each(|_| writer.block(&block(9))).unwrap();
            writer.finish(blocks, count, Vec::new()).unwrap_err().to_string()
        };
        assert!(finish(&whole, 2, 1, 1, 1).contains("blocks are missing"));
        assert!(finish(&part, 1, 1, 1, 1).contains("the end of the last file is missing"));
        let counts = finish(&whole, 1, 1, 2, 1);
        assert!(counts.contains("2 blocks and 1 entries were sent, 1 and 1 came"), "{counts}");
        assert!(finish(&whole, 1, 1, 1, 2).contains("1 blocks and 2 entries were sent"));
        assert!(rig.numbers().is_empty());
        // All of it was saved, whatever was missing.
        let writer = rig.begin();
        assert_eq!(writer.resumed_bytes(), 9);
        assert_eq!(writer.finish(0, 0, vec!["p".into()]).unwrap().problems, 1);
    }

    #[test]
    fn entries_wait_for_their_blocks_but_not_without_end() {
        let rig = Rig::new(Keep::default());
        let mut writer = rig.begin();
        writer.batch(batch(2, &[coming(f(9), &[piece(0, 9, 1)])])).unwrap();
        writer.batch(batch(0, &[coming(file("g", 0, [0; 32]), &[])])).unwrap();
        writer.block(&block(9)).unwrap();
        assert_eq!(writer.draft.count(), 0);
        writer.block(&block(9)).unwrap();
        assert_eq!(writer.draft.count(), 2);
        let mut long = f(0);
        long.xattrs = vec![(b"user.a".to_vec(), vec![0; 1 << 20])];
        let error =
            (0..100).find_map(|_| writer.batch(batch(9, &[coming(long.clone(), &[])])).err());
        assert!(error.unwrap().to_string().contains("long before their blocks"));
    }

    /// Of a file that begins with a hole, the first part may have no bytes.
    #[test]
    fn a_part_without_bytes_is_a_part() {
        let rig = Rig::new(Keep::default());
        let part = |pieces: &[Piece]| Coming { more: true, ..coming(f(5000), pieces) };
        let mut writer = rig.begin();
        writer.block(&block(9)).unwrap();
        writer.batch(batch(0, &[part(&[])])).unwrap();
        writer.batch(batch(1, &[part(&[piece(4000, 9, 0)]), part(&[])])).unwrap();
        writer.suspend().unwrap();
        let mut writer = rig.begin();
        assert_eq!((writer.known()[0].until, writer.resumed_bytes()), (Some(4009), 9));
        let rest = Coming { known: Some(0), ..coming(f(5000), &[piece(4500, 9, 0)]) };
        writer.block(&block(9)).unwrap();
        writer.batch(batch(1, &[rest])).unwrap();
        writer.finish(1, 1, Vec::new()).unwrap();
        let pieces = &rig.store.catalogue("n", None).unwrap().entries[0].pieces;
        assert_eq!(pieces.iter().map(|p| p.offset).collect::<Vec<_>>(), [4000, 4500]);
    }

    /// What is said to be durable is in the journal, whatever becomes of the process.
    #[test]
    fn durable_is_what_a_journal_has() {
        let mut tree = random_tree(&mut Random(8));
        tree.insert("long".into(), Random(9).bytes(10_000));
        let mut grew = 0;
        for steps in 0..40 {
            let rig = Rig::new(Keep::default());
            let mut client = Client::new(rig.begin(), steps);
            client.send(&tree).unwrap();
            let (blocks, bytes) = client.writer.durable();
            let journal = std::fs::read(&rig.files("journal")[0]).unwrap();
            let mut journal = &journal[..];
            let mut in_it = 0;
            while let Ok(record) = frames::read(&mut journal) {
                if let Record::Blocks { blocks, .. } = record {
                    in_it += blocks.len();
                }
            }
            assert!(in_it >= blocks as usize, "{in_it} of {blocks}");
            grew += u64::from(blocks > 0);
            assert!(bytes >= u64::from(blocks) && blocks <= client.blocks + 1);
            drop(client);
            rig.check_known(&rig.begin(), &tree);
        }
        assert!(grew > 10);
    }

    #[test]
    fn time_alone_makes_what_came_durable() {
        let mut rig = Rig::new(Keep::default());
        rig.store.limits.cut_every = std::time::Duration::ZERO;
        let mut writer = rig.begin();
        writer.batch(batch(1, &[coming(f(9), &[piece(0, 9, 0)])])).unwrap();
        writer.block(&block(9)).unwrap();
        while writer.durable() != (1, 9) {
            std::thread::yield_now();
            writer.tick().unwrap();
        }
        drop(writer);
        assert_eq!(rig.begin().resumed_bytes(), 9);
    }

    /// A disk that fails: here, a folder that went. The next step says so, and none after it works.
    #[test]
    fn trouble_with_the_disk_ends_the_session() {
        let rig = Rig::new(Keep::default());
        let mut writer = rig.begin();
        std::fs::remove_dir_all(rig.folder.path().join("n")).unwrap();
        let error = writer.block(&block(100)).unwrap_err();
        assert!(matches!(error, StoreError::Io { what: "make", .. }), "{error}");
        assert!(matches!(writer.tick(), Err(StoreError::Nonsense { .. })));
    }
}
