//! Blocks of a volume: records, superblocks, the node table, mailboxes.

use std::cell::RefCell;

use bytes::Bytes;
use volumes::{
    Entry, Geometry, Ring, Superblock, Table, Uuid,
    buffer::Pool,
    format::{
        BLOCK_MIN, HEADER_BYTES, mailbox,
        record::{self, Address, Draft, Header},
        superblock::Copy,
    },
};

use super::meter::bounded;

pub(crate) const UUID: Uuid = Uuid(*b"0123456789abcdef");
pub(crate) const ADDRESS: Address = Address { uuid: UUID, from: 1, to: 2, ring: Ring::Data };
/// Place the record is read at.
const PLACE: u32 = 3;

/// How long and where the checksum of a metadata block is.
const BLOCK_CRC_AT: usize = 4092;

/// CRC-32 as zlib has it, apart from the product's.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let (mut at, mut first) = (0, 0_u32);
        while at < 256 {
            let (mut crc, mut bit) = (first, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
                bit += 1;
            }
            table[at] = crc;
            (at, first) = (at + 1, first + 1);
        }
        table
    };
    let step = |crc: u32, byte: &u8| crc >> 8 ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)];
    !bytes.iter().fold(!0, step)
}

/// Writes the checksum of everything before it.
fn complete(block: &mut [u8], at: usize) {
    if block.len() >= at + 4 {
        let crc = crc32(&block[..at]);
        block[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A record, its checksums completed unless the first byte is odd.
pub(crate) fn record(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if mode & 1 == 0 && bytes.len() >= HEADER_BYTES {
        let length = u32::from_le_bytes([bytes[48], bytes[49], bytes[50], bytes[51]]) as usize;
        if let Some(body) =
            HEADER_BYTES.checked_add(length).and_then(|e| bytes.get(HEADER_BYTES..e))
        {
            let crc = crc32(body);
            bytes[56..60].copy_from_slice(&crc.to_le_bytes());
        }
        complete(&mut bytes[..HEADER_BYTES], 60);
    }
    let Some(header) = Header::decode(&bytes, &ADDRESS, PLACE) else { return };
    let mut again = [0; HEADER_BYTES];
    header.encode(&ADDRESS, &mut again);
    assert_eq!(again, bytes[..HEADER_BYTES], "a header is written as it was read");
    for (ring, block) in [(64, 4096), (0, 4096), (u32::MAX, 65_536)] {
        if header.fits(ring, block) {
            assert!(u64::from(header.place) + u64::from(header.blocks) <= u64::from(ring));
        }
    }
    let bytes = Bytes::from(bytes);
    let Some(frames) = bounded(&bytes, 1024, 16, || record::open(&bytes, &header)) else { return };
    assert_eq!(frames.len(), header.frames as usize);
    let length: usize = frames.iter().map(|f| f.len() + 4).sum();
    assert_eq!(length, header.body_len as usize, "nothing is left over");
    let mut draft = Draft::new(Pool::new().take(BLOCK_MIN));
    frames.iter().for_each(|frame| draft.push(frame));
    let (sealed, again) = draft.seal(&ADDRESS, header.epoch, header.number, PLACE, BLOCK_MIN);
    assert_eq!(sealed.body_crc, header.body_crc);
    assert_eq!(record::open(&again, &sealed), Some(frames));
}

/// A superblock, its checksum completed unless the first byte is odd.
pub(crate) fn superblock(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let block = block(*mode, data);
    let copy = if mode & 2 == 0 { Copy::First } else { Copy::Last };
    let Ok(read) = bounded(&block, 1024, 1, || Superblock::decode(&block, copy)) else { return };
    let other = if mode & 2 == 0 { Copy::Last } else { Copy::First };
    assert!(Superblock::decode(&block, other).is_err(), "taken at the other end, too");
    assert_eq!(Superblock::decode(&read.encode(copy), copy).as_ref(), Ok(&read));
    let g = &read.geometry;
    assert!(g.blocks_needed() <= g.blocks);
    let nodes = &g.nodes;
    let mut last = g.table_region_bytes() as u64;
    assert!(last <= g.last_offset());
    let lanes = || {
        nodes
            .iter()
            .flat_map(|from| nodes.iter().map(move |to| (*from, *to)))
            .filter(|(f, t)| f != t)
    };
    // Lanes lie one behind the other and end before the second superblock.
    let mut next = |at: Option<u64>, blocks: u32| {
        assert_eq!(at, Some(last));
        last += u64::from(blocks) * u64::from(g.block_bytes);
        assert!(last <= g.last_offset());
    };
    lanes().for_each(|(from, to)| next(g.mailbox_offset(from, to), 1));
    for ring in Ring::BOTH {
        lanes().for_each(|(from, to)| next(g.ring_offset(from, to, ring), g.ring_blocks(ring)));
        assert!(g.frame_bytes_max(ring) >= 65_536 + 64 + 56, "a super-packet fits");
        assert!(g.record_bytes_max(ring) <= volumes::format::RECORD_BYTES_MAX);
    }
}

/// Blocks of the node table (and thereby the heads of lanes), their checksums completed unless
/// the first byte is odd. The input is one block, read at each of its possible places.
pub(crate) fn table(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let block = block(*mode, data);
    let superblock = sample();
    let g = &superblock.geometry;
    let mut taken = 0;
    for slot in 0..g.nodes.len() {
        for copy in 0..2 {
            let read = bounded(&block, 1024, 4, || Entry::decode(&block, UUID, g, slot, copy));
            let Some(entry) = read else { continue };
            taken += 1;
            assert_eq!((entry.node, entry.copy()), (g.nodes[slot], copy));
            for (ring, slot) in Ring::BOTH.into_iter().flat_map(|r| (0..3).map(move |s| (r, s))) {
                assert!(entry.head(slot, ring).place < g.ring_blocks(ring));
            }
            let mut again = vec![0; BLOCK_MIN];
            entry.encode(UUID, &mut again);
            assert_eq!(Entry::decode(&again, UUID, g, slot, copy), Some(entry));
        }
    }
    assert!(taken <= 1, "a block is one node's and has one place");
    let mut region = vec![0; g.table_region_bytes()];
    let at = usize::from(mode >> 2) % (2 * g.nodes.len());
    region[(1 + at) * BLOCK_MIN..(2 + at) * BLOCK_MIN].copy_from_slice(&block[..BLOCK_MIN]);
    let read = Table::decode(&region, &superblock);
    assert_eq!(read.valid + read.blank + read.damaged, 2 * g.nodes.len());
    assert_eq!(read.entries.iter().flatten().count(), read.valid);
    let _ = Table::decode(&data[..data.len().min(BLOCK_MIN)], &superblock);
}

/// A mailbox, its checksums completed unless the first byte is odd.
pub(crate) fn mailbox(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if mode & 1 == 0 && bytes.len() >= HEADER_BYTES {
        let length = u32::from_le_bytes([bytes[48], bytes[49], bytes[50], bytes[51]]) as usize;
        let body = HEADER_BYTES.checked_add(length).and_then(|e| bytes.get(HEADER_BYTES..e));
        if let Some(crc) = body.map(crc32) {
            bytes[56..60].copy_from_slice(&crc.to_le_bytes());
        }
        complete(&mut bytes[..HEADER_BYTES], 60);
    }
    let bytes = Bytes::from(bytes);
    let lane = (UUID, 1, 2);
    let Some(message) = bounded(&bytes, 256, 0, || mailbox::decode(&bytes, lane)) else { return };
    assert!(message.body.len() <= bytes.len() - HEADER_BYTES);
    assert_eq!(mailbox::decode(&bytes, (UUID, 2, 1)), None, "another lane's");
    let room = (HEADER_BYTES + message.body.len()).next_multiple_of(BLOCK_MIN);
    let stamp = (message.epoch, message.counter);
    let again = mailbox::encode(Pool::new().take_len(room), lane, stamp, &message.body);
    assert_eq!(mailbox::decode(&again, lane), Some(message));
}

/// A metadata block made of the input: as long as a block, with or without a right checksum.
fn block(mode: u8, data: &[u8]) -> Vec<u8> {
    let mut block = data.to_vec();
    block.resize(BLOCK_MIN, 0);
    if mode & 1 == 0 {
        complete(&mut block, BLOCK_CRC_AT);
    }
    block
}

pub(crate) fn sample() -> Superblock {
    thread_local! {
        static SAMPLE: RefCell<Option<Superblock>> = const { RefCell::new(None) };
    }
    let make = || {
        let mut geometry = Geometry {
            block_bytes: 4096,
            blocks: 0,
            nodes: vec![1, 2, 9],
            express_blocks: 48,
            data_blocks: 64,
        };
        geometry.blocks = geometry.blocks_needed();
        Superblock {
            uuid: UUID,
            name: "lun7".into(),
            generation: 3,
            created_unix_us: 5,
            replica: false,
            geometry,
        }
    };
    SAMPLE.with_borrow_mut(|sample| sample.get_or_insert_with(make).clone())
}
