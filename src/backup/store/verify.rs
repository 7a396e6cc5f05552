//! Reads everything a version has and compares it with what its catalogue says, without restoring.
//!
//! Awkward cases:
//! * A bad block harms every file that has bytes in it: all of them are named, the block is read once.
//! * Thousands of files may be harmed by one bad pack: so many findings are listed, the others counted.

use std::{collections::VecDeque, sync::Arc};

use super::{
    super::block::Opened,
    super::digest::Digest,
    super::entry::{Kind, Piece},
    Store,
    blocks::Blocks,
    catalogue::{BlockAt, Catalogue, Stored},
    error::StoreError,
};

/// Findings that are listed.
const FINDINGS_MAX: usize = 1000;
/// Blocks kept unpacked, a mebibyte each: small files share them, one after another.
const KEPT: usize = 16;

/// What is in a block, or what is wrong with it.
type Content = Result<Arc<Opened>, Arc<str>>;

impl Store {
    /// Reads and checks every block, and compares every file with its digest. Findings name the
    /// file and the reason; none means that all is well. Progress is in bytes of files, of all.
    pub(crate) fn verify(
        &self,
        name: &str,
        version: Option<u32>,
        progress: &mut dyn FnMut(u64, u64),
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<String>, StoreError> {
        let blocks = self.reader(name)?;
        let catalogue = match self.catalogue(name, version) {
            Err(e @ StoreError::Damaged { .. }) => return Ok(vec![e.to_string()]),
            catalogue => catalogue?,
        };
        let mut kept = Kept { blocks: &blocks, catalogue: &catalogue, kept: VecDeque::new() };
        let (mut findings, mut more) = (Vec::new(), 0_u64);
        let pieces = catalogue.entries.iter().flat_map(|stored| &stored.pieces);
        let all = pieces.map(|piece| u64::from(piece.length)).sum();
        let mut done = 0;
        for stored in &catalogue.entries {
            let mut passed = |piece: &Piece| {
                done += u64::from(piece.length);
                progress(done, all);
                !stop()
            };
            let Some(finding) = kept.check(stored, &mut passed)? else { continue };
            if findings.len() < FINDINGS_MAX {
                findings.push(format!("{}: {finding}", stored.entry.name));
            } else {
                more += 1;
            }
        }
        if more > 0 {
            findings.push(format!("and {more} more files"));
        }
        Ok(findings)
    }
}

struct Kept<'a> {
    blocks: &'a Blocks,
    catalogue: &'a Catalogue,
    kept: VecDeque<(u32, Content)>,
}

impl Kept<'_> {
    /// What is wrong with a file.
    fn check(
        &mut self,
        stored: &Stored,
        passed: &mut dyn FnMut(&Piece) -> bool,
    ) -> Result<Option<String>, StoreError> {
        let Kind::File { digest, .. } = stored.entry.kind else { return Ok(None) };
        let (mut came, mut finding) = (Digest::default(), None);
        for piece in &stored.pieces {
            match self.content(piece.block)? {
                Ok(bytes) => {
                    // The catalogue was checked: it is inside the block.
                    let from = usize::try_from(piece.within).unwrap_or(usize::MAX);
                    let length = usize::try_from(piece.length).unwrap_or(usize::MAX);
                    let run = bytes.get(from..from.saturating_add(length));
                    came.update(piece.offset, run.unwrap_or_default());
                }
                Err(reason) => finding = finding.or_else(|| Some(reason.to_string())),
            }
            if !passed(piece) {
                return Err(StoreError::Stopped);
            }
        }
        if finding.is_none() && came.finish() != digest {
            finding = Some("its bytes are not those it had: their digest does not match".into());
        }
        Ok(finding)
    }

    /// What only a look at the store by its operator can mend (rights, a failing disk's EIO) is a
    /// finding, too: the rest of the files may be well.
    fn content(&mut self, n: u32) -> Result<Content, StoreError> {
        if let Some((_, content)) = self.kept.iter().find(|(block, _)| *block == n) {
            return Ok(content.clone());
        }
        let place = usize::try_from(n).unwrap_or(usize::MAX);
        let at: &BlockAt = self
            .catalogue
            .blocks
            .get(place)
            .ok_or_else(|| StoreError::nonsense("a piece in a block that there is not"))?;
        let content: Content = match self.blocks.read(at) {
            Ok(block) => block.open().map(Arc::new).map_err(|e| {
                format!("version {} pack {} byte {}: {e}", at.version, at.pack, at.offset).into()
            }),
            Err(e) => Err(e.to_string().into()),
        };
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((n, content.clone()));
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs};

    use super::super::{
        Keep,
        testing::{Rig, tree},
    };

    /// Prevents: bad bytes restored as good ones.
    #[test]
    fn every_bit_of_a_pack_is_watched() {
        let rig = Rig::new(Keep::default());
        rig.backup(&tree(&[("a", b"some bytes"), ("b", b"others")]));
        let pack = &rig.files("pack")[0];
        let good = fs::read(pack).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(pack, bad).unwrap();
            let findings = rig.findings(None);
            assert_eq!(findings.len(), 2, "bit {bit}: {findings:?}");
            assert!(findings[0].starts_with("a: ") && findings[1].starts_with("b: "));
            assert!(findings[0].contains("00000001-0001.pack is damaged: the block at byte 0"));
        }
        for end in 0..good.len() {
            fs::write(pack, &good[..end]).unwrap();
            assert!(rig.findings(None)[0].contains("the pack ends before its end"), "{end}");
        }
        fs::write(pack, &good).unwrap();
        assert_eq!(rig.findings(None), [""; 0]);
    }

    #[test]
    fn a_block_in_the_place_of_another_is_found() {
        let rig = Rig::new(Keep::default());
        rig.backup(&tree(&[("a", &[1; 512]), ("b", &[2; 512])]));
        let pack = &rig.files("pack")[0];
        let mut bytes = fs::read(pack).unwrap();
        let half = bytes.len() / 2;
        bytes.copy_within(..half, half);
        fs::write(pack, bytes).unwrap();
        let findings = rig.findings(None);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].starts_with("b: its bytes are not those it had"), "{findings:?}");
    }

    #[test]
    fn it_says_how_far_it_is_and_stops_when_told() {
        let rig = Rig::new(Keep::default());
        rig.backup(&tree(&[("a", &[1; 3000]), ("b", &[2; 100])]));
        let said = Cell::new((0, 0));
        rig.store.verify("n", None, &mut |n, all| said.set((n, all)), &|| false).unwrap();
        assert_eq!(said.get(), (3100, 3100));
        let stopped = rig.store.verify("n", None, &mut |_, _| {}, &|| true).unwrap_err();
        assert!(matches!(stopped, super::StoreError::Stopped));
    }

    #[test]
    fn holes_are_part_of_a_digest() {
        let rig = Rig::new(Keep::default());
        let store = |digest: blake3::Hash| {
            let mut writer = rig.begin();
            let mut sealer = super::super::super::block::Sealer::new(Some(1)).unwrap();
            writer.block(&sealer.seal(&[7; 100])).unwrap();
            let piece = |offset, within| super::Piece { offset, length: 50, block: 0, within };
            let entry = super::super::testing::file("f", 9000, *digest.as_bytes());
            let pieces = vec![piece(4096, 0), piece(4146, 50)];
            let coming =
                super::super::super::talk::Coming { entry, known: None, pieces, more: false };
            let batch = super::super::super::talk::Batch { after: 1, entries: vec![coming] };
            writer.batch(batch).unwrap();
            writer.finish(1, 1, Vec::new()).unwrap();
        };
        let mut with_hole = blake3::Hasher::new();
        with_hole.update(&4096_u64.to_le_bytes()).update(&[7; 100]);
        store(with_hole.finalize());
        assert_eq!(rig.findings(None), [""; 0]);
        store(blake3::hash(&[7; 100]));
        assert_eq!(rig.findings(None).len(), 1);
    }
}
