//! What is asked for, in which order, and what is made of blocks that are not what they should be.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use tempfile::TempDir;
use tokio::sync::mpsc::channel;

use super::*;
use crate::backup::{
    block::Sealer,
    entry::Stamp,
    store::{BlockAt, Catalogue},
    talk::Version,
    tree::Existing,
};

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn stored(named: &str, kind: Kind, pieces: &[Piece]) -> Stored {
    let entry = Entry {
        name: name(named),
        kind,
        mode: 0o750,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Stamp { s: 1_000_000_000, ns: 0 },
        ctime: Stamp::default(),
        inode: 0,
        xattrs: Vec::new(),
    };
    Stored { entry, pieces: pieces.to_vec() }
}

fn folder(named: &str) -> Stored {
    stored(named, Kind::Folder, &[])
}

fn link(named: &str, first: &str) -> Stored {
    stored(named, Kind::HardLink(name(first)), &[])
}

fn piece(block: u32, within: u32, offset: u64, length: u32) -> Piece {
    Piece { offset, length, block, within }
}

/// A file of these pieces of these raw blocks.
fn file(named: &str, raw: &[Vec<u8>], pieces: &[Piece]) -> Stored {
    let bytes: Vec<u8> = pieces
        .iter()
        .flat_map(|p| &raw[p.block as usize][p.within as usize..][..p.length as usize])
        .copied()
        .collect();
    let digest = *blake3::hash(&bytes).as_bytes();
    stored(named, Kind::File { size: bytes.len() as u64, digest, changed: false }, pieces)
}

fn sealed(raw: &[u8]) -> Block {
    Sealer::new(Some(1)).unwrap().seal(raw)
}

/// The blocks come as they are asked for; the rest of the way is as in a restore.
fn source(wanted: &[u32], blocks: &Arc<Vec<Option<Block>>>) -> Source {
    let (to, from) = channel(4);
    let (wanted, all) = (wanted.to_vec(), Arc::clone(blocks));
    std::thread::spawn(move || {
        for index in wanted {
            let Some(block) = all[index as usize].clone() else { return };
            if to.blocking_send((index, Ok(block))).is_err() {
                return;
            }
        }
    });
    Source { blocks: from, shelf: Shelf::default() }
}

fn lay(dest: &Path, entries: &[Stored], blocks: Vec<Option<Block>>) -> Result<Placed, PairError> {
    let mut place = Place::new(dest, Existing::Overwrite, "n@1 digest", true).unwrap();
    let there = there(&mut place, entries);
    let wanted = wanted(lacking(entries, &there));
    let source = source(&wanted, &Arc::new(blocks));
    put_all(place, Placed::default(), entries, &there, source)
}

fn names(entries: &[Stored]) -> Vec<String> {
    entries.iter().map(|s| s.entry.name.to_string()).collect()
}

#[test]
fn a_link_without_its_first_name_becomes_the_file() {
    let raw = [b"content".to_vec()];
    let all = vec![
        folder(""),
        folder("a"),
        file("a/f", &raw, &[piece(0, 0, 0, 7)]),
        folder("b"),
        folder("b/c"),
        link("b/c/g", "a/f"),
        link("b/h", "a/f"),
        folder("bc"),
        link("i", "a/f"),
    ];
    let chosen = |only: &[&str]| {
        let mut entries = all.clone();
        choose(&mut entries, &only.iter().map(|n| name(n)).collect::<Vec<_>>());
        entries
    };
    assert_eq!(chosen(&[]), all);
    let b = chosen(&["b"]);
    assert_eq!(names(&b), ["b", "b/c", "b/c/g", "b/h"]);
    assert_eq!((&b[2].entry.kind, &b[2].pieces), (&all[2].entry.kind, &all[2].pieces));
    assert_eq!(b[3].entry.kind, Kind::HardLink(name("b/c/g")));
    let h = chosen(&["b/h", "i"]);
    assert_eq!(names(&h), ["b", "b/h", "i"]);
    assert_eq!(h[1].pieces.len(), 1);
    assert_eq!(h[2].entry.kind, Kind::HardLink(name("b/h")));
    let both = chosen(&["a", "b/h"]);
    assert_eq!(names(&both), ["a", "a/f", "b", "b/h"]);
    assert_eq!(both[3].entry.kind, Kind::HardLink(name("a/f")));
    assert_eq!(chosen(&["nothing", "a/f/x"]), []);
    assert_eq!(missing(&all, &[name("b/c"), name("x"), name("a/f")]), ["x"]);
    // What is no file is as well.
    let mut all =
        [folder(""), folder("a"), stored("a/s", Kind::Symlink(b"x".into()), &[]), link("b", "a/s")]
            .to_vec();
    choose(&mut all, &[name("b")]);
    assert_eq!((names(&all), &all[0].entry.kind), (vec!["b".into()], &Kind::Symlink(b"x".into())));
    // And it can be placed.
    let dir = TempDir::new().unwrap();
    let placed = lay(dir.path(), &b, vec![Some(sealed(&raw[0]))]).unwrap();
    assert_eq!((placed.missing, placed.problems), (0, Vec::new()));
    let meta = dir.path().join("b/h").metadata().unwrap();
    assert_eq!((meta.nlink(), meta.len()), (2, 7));
}

/// Numbers that are the same in every run.
fn random(seed: &mut u64, below: u64) -> u32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    u32::try_from((*seed >> 33) % below).unwrap()
}

/// Pieces all over: far apart and close together, of blocks that are needed again when they are
/// forgotten. What is planned is what is taken, to the last block.
#[test]
fn what_is_asked_for_is_what_is_taken() {
    let mut seed = 1;
    for round in 0..20 {
        let many = 1 + u64::from(random(&mut seed, 100));
        let raw: Vec<Vec<u8>> = (0..many).map(|i| vec![i.to_le_bytes()[0]; 100]).collect();
        let mut entries = Vec::new();
        for n in 0..random(&mut seed, 200) {
            let pieces: Vec<Piece> = (0..random(&mut seed, 6))
                .map(|i| {
                    piece(random(&mut seed, many), random(&mut seed, 90), u64::from(i) * 10, 10)
                })
                .collect();
            entries.push(file(&format!("{n}"), &raw, &pieces));
        }
        let wanted = wanted(entries.iter().flat_map(|s| &s.pieces));
        let total: usize = runs(&wanted).iter().map(|(_, n)| *n as usize).sum();
        assert_eq!(total, wanted.len());
        let dir = TempDir::new().unwrap();
        let blocks = raw.iter().map(|raw| Some(sealed(raw))).collect();
        let placed = lay(dir.path(), &entries, blocks).unwrap();
        assert_eq!((placed.missing, placed.problems), (0, Vec::new()), "round {round}");
        assert_eq!(placed.entries, entries.len() as u64);
        let mut taken = source(&wanted, &Arc::new(raw.iter().map(|r| Some(sealed(r))).collect()));
        for piece in entries.iter().flat_map(|s| &s.pieces) {
            let Ok(Ok(block)) = taken.block(piece.block) else { panic!("{piece:?}") };
            let bytes = part(&block, piece).unwrap();
            let from = piece.within as usize;
            assert_eq!(bytes, &raw[piece.block as usize][from..from + piece.length as usize]);
        }
        assert!(taken.blocks.blocking_recv().is_none(), "a block nobody takes");
    }
}

#[test]
fn runs_have_ends() {
    assert_eq!(runs(&[]), []);
    assert_eq!(runs(&[3, 4, 5, 7, 6, 6]), [(3, 3), (7, 1), (6, 1), (6, 1)]);
    assert_eq!(runs(&[u32::MAX - 1, u32::MAX, 0]), [(u32::MAX - 1, 2), (0, 1)]);
}

/// A block of other bytes, a shorter one, and one that cannot be opened: their files are missing by
/// name, with all their other names; nothing else is, and what was there before stays.
#[test]
fn a_damaged_block_is_told_of_every_file_in_it() {
    let raw = [vec![1; 100], vec![2; 100], vec![3; 100]];
    let entries = [
        file("good", &raw, &[piece(0, 0, 0, 50)]),
        file("bad", &raw, &[piece(1, 0, 0, 50)]),
        file("too", &raw, &[piece(0, 0, 0, 10), piece(1, 50, 10, 50), piece(2, 0, 60, 40)]),
        link("other", "bad"),
        link("fine", "good"),
        file("last", &raw, &[piece(2, 0, 0, 100)]),
    ];
    let mut codec = sealed(&[2; 100]).bytes().to_vec();
    codec[4] = 9;
    let sum = {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&codec[..16]);
        sum.update(&codec[20..]);
        sum.finalize()
    };
    codec[16..20].copy_from_slice(&sum.to_le_bytes());
    let unknown = Block::parse(codec).unwrap();
    for bad in [sealed(&[9; 100]), sealed(&[2; 40]), unknown] {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("bad"), "older").unwrap();
        let blocks = vec![Some(sealed(&raw[0])), Some(bad), Some(sealed(&raw[2]))];
        let placed = lay(dir.path(), &entries, blocks).unwrap();
        assert_eq!((placed.entries, placed.missing), (3, 3), "{:?}", placed.problems);
        for named in ["bad", "too", "other"] {
            let begin = format!("{named} is not restored: ");
            let told = placed.problems.iter().any(|problem| problem.starts_with(&begin));
            assert!(told, "{named}: {:?}", placed.problems);
        }
        let is = |named: &str| fs::read(dir.path().join(named)).ok();
        assert_eq!((is("good"), is("fine")), (Some(vec![1; 50]), Some(vec![1; 50])));
        assert_eq!((is("bad"), is("too"), is("other")), (Some(b"older".to_vec()), None, None));
        assert_eq!(is("last"), Some(vec![3; 100]));
    }
}

/// A store's blocks that end early leave something that goes on.
#[test]
fn an_early_end_is_an_error_and_goes_on_later() {
    let raw = [vec![1; 100], vec![2; 100]];
    let entries = [file("a", &raw, &[piece(0, 0, 0, 9)]), file("b", &raw, &[piece(1, 0, 0, 9)])];
    let dir = TempDir::new().unwrap();
    let early = lay(dir.path(), &entries, vec![Some(sealed(&raw[0])), None]).unwrap_err();
    assert!(early.to_string().contains("ended early"), "{early}");
    let placed = lay(dir.path(), &entries, vec![None, Some(sealed(&raw[1]))]).unwrap();
    assert_eq!((placed.missing, placed.entries), (0, 2), "the first was kept");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_stream_is_fed_whole_or_told() {
    let raw = [vec![b'x'; 100_000], vec![b'y'; 5]];
    let pieces = [piece(0, 0, 0, 100_000), piece(1, 0, 100_000, 5), piece(0, 7, 100_005, 1)];
    let good = file("stream", &raw, &pieces);
    let blocks = |second: Option<Block>| Arc::new(vec![Some(sealed(&raw[0])), second]);
    let run = |command: &str, stored: &Stored, second: Option<Block>| {
        let child = Command::new("sh").args(["-c", command]).stdin(Stdio::piped()).spawn().unwrap();
        let source = source(&wanted(stored.pieces.iter()), &blocks(second));
        feed(child, command, &stored.entry, &stored.pieces, source)
            .map(|placed| placed.bytes)
            .map_err(|e| e.to_string())
    };
    let second = || Some(sealed(&raw[1]));
    assert_eq!(run("test $(wc -c) = 100006", &good, second()), Ok(100_006));
    let said = |command: &str, stored: &Stored, second| run(command, stored, second).unwrap_err();
    assert!(said("cat >/dev/null; exit 3", &good, second()).contains("failed"));
    assert!(said("exit 0", &good, second()).contains("ended before it had read"));
    assert!(said("cat >/dev/null", &good, None).contains("ended early"));
    assert!(said("cat >/dev/null", &good, Some(sealed(b"yyyyz"))).contains("digest"));
    assert!(said("cat >/dev/null", &good, Some(sealed(b"y"))).contains("shorter"));
    let mut gap = good.clone();
    gap.pieces[1].offset += 1;
    assert!(said("cat >/dev/null", &gap, second()).contains("gaps"));
    let mut long = good.clone();
    if let Kind::File { size, .. } = &mut long.entry.kind {
        *size += 1;
    }
    assert!(said("cat >/dev/null", &long, second()).contains("digest"));
}

/// Bits flipped in a catalogue and in a block, at every place: each is found before anything is
/// put anywhere.
#[test]
fn flipped_bits_are_found_before_anything_is_placed() {
    let raw = [vec![1; 100]];
    let entries = vec![folder("d"), file("d/f", &raw, &[piece(0, 0, 0, 100)])];
    let block = sealed(&raw[0]);
    let length = u32::try_from(block.bytes().len()).unwrap();
    let catalogue = Catalogue {
        version: Version { number: 1, entries: 2, ..Version::default() },
        blocks: vec![BlockAt { version: 1, pack: 1, offset: 0, stored: length, raw: 100 }],
        entries,
        problems: Vec::new(),
    };
    let mut bytes = Vec::new();
    catalogue.write_to(&mut bytes).unwrap();
    assert!(Catalogue::read_from(&mut &bytes[..]).is_ok());
    for at in 0..bytes.len() {
        bytes[at] ^= 1 << (at % 8);
        assert!(Catalogue::read_from(&mut &bytes[..]).is_err(), "byte {at}");
        bytes[at] ^= 1 << (at % 8);
    }
    for at in 0..block.bytes().len() {
        let mut bad = block.bytes().to_vec();
        bad[at] ^= 1 << (at % 8);
        assert!(Block::parse(bad).and_then(|b| b.open()).is_err(), "byte {at}");
    }
}

/// Two threads put files there: what lies in the way, and links, are as with one.
#[test]
fn small_files_have_another_hand() {
    let raw: Vec<Vec<u8>> = (0..200_u8).map(|n| vec![n; usize::from(n)]).collect();
    let mut entries = vec![folder("")];
    for (n, bytes) in (0..).zip(&raw) {
        let pieces = if bytes.is_empty() { vec![] } else { vec![piece(n, 0, 0, n)] };
        entries.push(file(&format!("f{n:03}"), &raw, &pieces));
    }
    // In between, some that are written in parts.
    for n in [40, 120] {
        let pieces = [piece(n, 0, 0, 7), piece(n, 9, 7, 11)];
        let at = entries.len() - n as usize;
        entries.insert(at, file(&format!("parts{n}"), &raw, &pieces));
    }
    // All files first: a link waits for those.
    for n in 0..raw.len() {
        entries.push(link(&format!("f{n:03} too"), &format!("f{n:03}")));
    }
    let dir = TempDir::new().unwrap();
    for n in (0..200).step_by(3) {
        std::fs::write(dir.path().join(format!("f{n:03}")), "older").unwrap();
    }
    std::fs::create_dir(dir.path().join("f100")).unwrap();
    let blocks = raw.iter().map(|raw| (!raw.is_empty()).then(|| sealed(raw))).collect();
    let placed = lay(dir.path(), &entries, blocks).unwrap();
    assert_eq!(placed.missing, 2, "{:?}", placed.problems);
    let said = placed.problems.join("\n");
    assert!(
        said.contains("f100 is not restored: a folder")
            && said.contains("f100 too is not restored"),
        "{said}"
    );
    assert_eq!((placed.entries, placed.bytes), (401, (0..200).sum::<u64>() - 100 + 2 * 18));
    for (n, bytes) in raw.iter().enumerate().filter(|(n, _)| *n != 100) {
        let path = dir.path().join(format!("f{n:03} too"));
        assert_eq!(&std::fs::read(&path).unwrap(), bytes, "f{n}");
        assert_eq!(path.metadata().unwrap().nlink(), 2, "f{n}");
    }
}

/// A large file goes on where it was, if what is there is what was put there.
#[test]
fn a_large_file_is_gone_on_with() {
    let raw: Vec<Vec<u8>> = (1..=4).map(|n| vec![n; 1000]).collect();
    // A hole before the third.
    let pieces: Vec<_> = [0, 1000, 5000, 6000]
        .into_iter()
        .zip(0..)
        .map(|(offset, block)| piece(block, 0, offset, 1000))
        .collect();
    let mut whole = file("large", &raw, &pieces);
    let mut digest = Digest::default();
    pieces.iter().zip(&raw).for_each(|(piece, raw)| digest.update(piece.offset, raw));
    whole.entry.kind = Kind::File { size: 7000, digest: digest.finish(), changed: false };
    let entries = [whole];
    let blocks = |have: &[usize]| -> Vec<Option<Block>> {
        (0..4).map(|n| have.contains(&n).then(|| sealed(&raw[n]))).collect()
    };
    let early = |dir: &TempDir| {
        let place = Place::new(dir.path(), Existing::Refuse, "n@1 digest", true).unwrap();
        let source = source(&[0, 1, 2, 3], &Arc::new(blocks(&[0, 1, 2])));
        let there = [There::Pieces(0)];
        put_all(place, Placed::default(), &entries, &there, source).unwrap_err();
        let mut names = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
        names.find(|path| path.to_string_lossy().contains(".partial.")).unwrap()
    };
    let again = |dir: &TempDir, have: &[usize]| {
        let mut place = Place::new(dir.path(), Existing::Refuse, "n@1 digest", true).unwrap();
        let there = there(&mut place, &entries);
        let wanted = wanted(lacking(&entries, &there));
        let source = source(&wanted, &Arc::new(blocks(have)));
        put_all(place, Placed::default(), &entries, &there, source)
    };
    let is_whole = |dir: &TempDir| {
        let is = fs::read(dir.path().join("large")).unwrap();
        assert_eq!((is.len(), &is[..1000], &is[6000..]), (7000, &raw[0][..], &raw[3][..]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    };
    // The rest is enough, also when the last piece was torn.
    for torn in [7000 - 1000, 7000 - 1500] {
        let dir = TempDir::new().unwrap();
        let partial = early(&dir);
        File::options().write(true).open(&partial).unwrap().set_len(torn).unwrap();
        let have: &[usize] = if torn < 6000 { &[2, 3] } else { &[3] };
        assert_eq!(again(&dir, have).unwrap().missing, 0);
        is_whole(&dir);
    }
    // Bytes that changed are found out, and asked for the next time.
    let dir = TempDir::new().unwrap();
    fs::write(early(&dir), vec![9; 6000]).unwrap();
    let placed = again(&dir, &[3]).unwrap();
    assert!(placed.missing == 1 && placed.problems[0].contains("digest"), "{placed:?}");
    // Somebody else's file is not written to, whatever it is called.
    for kind in 0..2 {
        let (dir, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (partial, other) = (early(&dir), outside.path().join("other"));
        fs::rename(&partial, &other).unwrap();
        if kind == 0 {
            fs::hard_link(&other, &partial).unwrap();
        } else {
            std::os::unix::fs::symlink(&other, &partial).unwrap();
        }
        let before = fs::read(&other).unwrap();
        assert_eq!(again(&dir, &[0, 1, 2, 3]).unwrap().missing, 0);
        is_whole(&dir);
        assert_eq!(fs::read(&other).unwrap(), before);
    }
}
