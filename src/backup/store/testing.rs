//! What the tests of a store share: a small client, and a look at what a store has.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use tempfile::TempDir;

use super::{
    super::{
        block::{Block, Sealer},
        entry::{Entry, Kind, Name, Piece, Stamp},
        talk::{About, Batch, Coming, Version},
    },
    Keep, Limits, Store, StoreError, Writer,
};

/// Numbers that are the same in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        let (a, c) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);
        self.0 = self.0.wrapping_mul(a).wrapping_add(c);
        (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 16
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(super) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.byte()).collect()
    }
}

pub(super) fn entry(name: &str, kind: Kind) -> Entry {
    Entry {
        name: Name::new(name).unwrap(),
        kind,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        mtime: Stamp { s: 1_700_000_000, ns: 5 },
        ctime: Stamp::default(),
        inode: 7,
        xattrs: Vec::new(),
    }
}

pub(super) fn folder(name: &str) -> Entry {
    entry(name, Kind::Folder)
}

pub(super) fn file(name: &str, size: u64, digest: [u8; 32]) -> Entry {
    entry(name, Kind::File { size, digest, changed: false })
}

/// Files by their names; folders are those that the names have.
pub(super) type Tree = BTreeMap<String, Vec<u8>>;

pub(super) fn tree(files: &[(&str, &[u8])]) -> Tree {
    files.iter().map(|(name, bytes)| ((*name).into(), bytes.to_vec())).collect()
}

/// Some small files and some that take several blocks.
pub(super) fn random_tree(random: &mut Random) -> Tree {
    let long = |random: &mut Random| match random.below(4) {
        0 => 0,
        1 => random.index(5 * RAW),
        _ => random.index(200),
    };
    let files = 3 + random.below(15);
    (0..files)
        .map(|n| {
            let length = long(random);
            (format!("d{}/f{n:02}", random.below(3)), random.bytes(length))
        })
        .collect()
}

/// Bytes that the client packs into one block.
pub(super) const RAW: usize = 512;

pub(super) struct Rig {
    pub(super) folder: TempDir,
    pub(super) store: Store,
}

impl Rig {
    /// A store with small packs, and a journal that is written to often.
    pub(super) fn new(keep: Keep) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), keep).unwrap();
        let cut_bytes = 3 * RAW as u64;
        store.limits = Limits {
            pack_max: 6 * RAW as u64,
            cut_bytes,
            cut_bytes_idle: cut_bytes,
            cut_every: Duration::from_secs(3600),
        };
        Self { folder, store }
    }

    pub(super) fn begin(&self) -> Writer {
        self.store.begin("n", About::default(), false).unwrap()
    }

    pub(super) fn backup(&self, tree: &Tree) -> Version {
        let mut client = Client::new(self.begin(), usize::MAX);
        client.send(tree).unwrap();
        client.finish().unwrap()
    }

    pub(super) fn numbers(&self) -> Vec<u32> {
        let (versions, findings) = self.store.versions(Some("n")).unwrap();
        assert_eq!(findings, [""; 0]);
        versions.iter().map(|v| v.number).collect()
    }

    pub(super) fn findings(&self, version: Option<u32>) -> Vec<String> {
        self.store.verify("n", version, &mut |_, _| {}, &|| false).unwrap()
    }

    pub(super) fn files(&self, kind: &str) -> Vec<PathBuf> {
        let in_it = fs::read_dir(self.folder.path().join("n")).unwrap();
        let paths = in_it.map(|e| e.unwrap().path());
        let mut paths: Vec<_> =
            paths.filter(|p| p.extension().is_some_and(|e| e == kind)).collect();
        paths.sort();
        paths
    }

    /// What a version would restore.
    pub(super) fn restored(&self, version: u32) -> Tree {
        let blocks = self.store.reader("n").unwrap();
        let catalogue = self.store.catalogue("n", Some(version)).unwrap();
        let mut tree = Tree::new();
        for stored in &catalogue.entries {
            let Kind::File { size, .. } = stored.entry.kind else { continue };
            let mut bytes = vec![0; usize::try_from(size).unwrap()];
            for piece in &stored.pieces {
                let block = blocks.read(&catalogue.blocks[piece.block as usize]).unwrap();
                put(&mut bytes, piece, &block);
            }
            tree.insert(stored.entry.name.to_string(), bytes);
        }
        tree
    }

    /// Whatever a writer takes for known is there, and is what the tree has.
    pub(super) fn check_known(&self, writer: &Writer, tree: &Tree) -> u64 {
        let blocks = self.store.reader("n").unwrap();
        let mut all = 0;
        for (known, pieces) in writer.known().iter().zip(&writer.draft.pieces) {
            let now = &tree[&known.entry.name.to_string()];
            let mut bytes = vec![0; now.len()];
            for piece in pieces {
                let at = writer.draft.block(piece.block).unwrap();
                put(&mut bytes, piece, &blocks.read(at).unwrap());
                all += u64::from(piece.length);
            }
            let end = pieces.last().map_or(0, |p| p.offset + u64::from(p.length));
            assert_eq!(known.until.unwrap_or(now.len() as u64), end);
            let end = usize::try_from(end).unwrap();
            assert_eq!(bytes[..end], now[..end]);
        }
        all
    }
}

fn put(bytes: &mut [u8], piece: &Piece, block: &Block) {
    let raw = block.clone().open().unwrap();
    let (from, at) = (piece.within as usize, usize::try_from(piece.offset).unwrap());
    let length = piece.length as usize;
    bytes[at..at + length].copy_from_slice(&raw[from..from + length]);
}

/// Sends a tree; is interrupted after so many steps.
pub(super) struct Client {
    pub(super) writer: Writer,
    sealer: Sealer,
    steps: usize,
    /// Bytes for the next block, and the entries that need it.
    raw: Vec<u8>,
    ready: Vec<Coming>,
    pub(super) blocks: u32,
    pub(super) entries: u64,
    /// Bytes of files that were sent.
    pub(super) sent: u64,
}

impl Client {
    pub(super) fn new(writer: Writer, steps: usize) -> Self {
        let sealer = Sealer::new(None).unwrap();
        let (raw, ready) = (Vec::new(), Vec::new());
        Self { writer, sealer, steps, raw, ready, blocks: 0, entries: 0, sent: 0 }
    }

    /// Whether it came to the end of the tree.
    pub(super) fn send(&mut self, tree: &Tree) -> Result<bool, StoreError> {
        let mut last_folder = None;
        for (name, bytes) in tree {
            if let Some((folder_name, _)) = name.rsplit_once('/') {
                if last_folder != Some(folder_name) {
                    self.entry(Coming {
                        entry: folder(folder_name),
                        known: None,
                        pieces: Vec::new(),
                        more: false,
                    });
                }
                last_folder = Some(folder_name);
            }
            if !self.file(name, bytes)? {
                return Ok(false);
            }
        }
        self.flush()
    }

    pub(super) fn finish(self) -> Result<Version, StoreError> {
        self.writer.finish(self.blocks, self.entries, Vec::new())
    }

    fn entry(&mut self, coming: Coming) {
        self.entries += u64::from(!coming.more);
        self.ready.push(coming);
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<bool, StoreError> {
        let digest = *blake3::hash(bytes).as_bytes();
        let entry = file(name, bytes.len() as u64, digest);
        let known = self.writer.known().iter().position(|k| k.entry == entry);
        let until = known.map_or(Some(0), |n| self.writer.known()[n].until);
        let mut at = until.map_or(bytes.len(), |n| usize::try_from(n).unwrap());
        let mut known = known.map(|n| u32::try_from(n).unwrap());
        self.sent += (bytes.len() - at) as u64;
        let mut pieces = Vec::new();
        while at < bytes.len() {
            let length = (bytes.len() - at).min(RAW - self.raw.len());
            pieces.push(Piece {
                offset: at as u64,
                length: u32::try_from(length).unwrap(),
                block: self.blocks,
                within: u32::try_from(self.raw.len()).unwrap(),
            });
            self.raw.extend_from_slice(&bytes[at..at + length]);
            at += length;
            if self.raw.len() == RAW {
                if at < bytes.len() && self.blocks % 2 == 1 {
                    let (entry, pieces) = (entry.clone(), std::mem::take(&mut pieces));
                    self.entry(Coming { entry, known: known.take(), pieces, more: true });
                }
                if !self.flush()? {
                    return Ok(false);
                }
            }
        }
        self.entry(Coming { entry, known, pieces, more: false });
        Ok(true)
    }

    /// The entries go before their block, or behind it.
    fn flush(&mut self) -> Result<bool, StoreError> {
        let after = self.blocks + u32::from(!self.raw.is_empty());
        let batch = Batch { after, entries: std::mem::take(&mut self.ready) };
        let raw = std::mem::take(&mut self.raw);
        let mut steps: Vec<Result<Batch, Vec<u8>>> = vec![Ok(batch)];
        steps.extend((!raw.is_empty()).then_some(Err(raw)));
        if self.blocks.is_multiple_of(3) {
            steps.reverse();
        }
        for step in steps {
            if self.steps == 0 {
                return Ok(false);
            }
            self.steps -= 1;
            match step {
                Ok(batch) => self.writer.batch(batch)?,
                Err(raw) => self.writer.block(&self.sealer.seal(&raw))?,
            }
        }
        self.blocks = after;
        Ok(true)
    }
}
