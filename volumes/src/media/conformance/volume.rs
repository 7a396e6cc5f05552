//! What the machines need of any medium, whatever it makes of offsets: superblocks, entries,
//! mailboxes and records, written through one handle and read through another.

use super::noise;
use crate::buffer::Pool;
use crate::event::{RecordName, Ring};
use crate::format::mailbox;
use crate::format::record::{self, Address, Draft, Header, Kind};
use crate::format::superblock::{Copy, Superblock};
use crate::format::table::{Cell, Entry, Head, Table};
use crate::media::BlockDevice;
use bytes::Bytes;
use std::fmt::Display;

const EPOCH: u64 = 7 << 16;
/// Records that one thread writes while the other reads.
const CROSSING: u64 = 20;

/// `writer` and `reader` lead to the same medium, which was just formatted as `volume` and which nobody
/// else uses. What is on it is destroyed. `Err` says what the medium got wrong.
pub fn run_volume(
    writer: &dyn BlockDevice,
    reader: &dyn BlockDevice,
    volume: &Superblock,
) -> Result<(), String> {
    let t = Try { writer, reader, volume, pool: Pool::new() };
    t.superblocks()?;
    t.entries()?;
    t.mailboxes()?;
    t.records()?;
    t.a_place_is_used_again()?;
    t.what_is_written_is_seen_at_once()?;
    writer.flush().map_err(|e| format!("flush: {e}"))?;
    if writer.still_there() && reader.still_there() {
        Ok(())
    } else {
        Err("it says that it is not there".into())
    }
}

struct Try<'a> {
    writer: &'a dyn BlockDevice,
    reader: &'a dyn BlockDevice,
    volume: &'a Superblock,
    pool: Pool,
}

fn wrong(what: &str, e: impl Display) -> String {
    format!("{what}: {e}")
}

impl Try<'_> {
    fn node(&self, slot: usize) -> u8 {
        self.volume.geometry.nodes[slot]
    }

    fn address(&self, from: usize, to: usize, ring: Ring) -> Address {
        Address { uuid: self.volume.uuid, from: self.node(from), to: self.node(to), ring }
    }

    fn superblocks(&self) -> Result<(), String> {
        let g = &self.volume.geometry;
        for device in [self.writer, self.reader] {
            for (offset, copy) in [(0, Copy::First), (g.last_offset(), Copy::Last)] {
                let mut buf = self.pool.take_len(g.block());
                device.read_at(offset, buf.as_mut()).map_err(|e| wrong("superblock", e))?;
                let found = Superblock::decode(buf.as_ref(), copy);
                if found.as_ref() != Ok(self.volume) {
                    return Err(format!("the {copy:?} superblock reads as {found:?}"));
                }
            }
            if device.size() < g.bytes() || device.logical_block() > g.block_bytes {
                return Err("size or sector do not suit what was formatted".into());
            }
        }
        Ok(())
    }

    fn table(&self) -> Result<Table, String> {
        let mut buf = self.pool.take_len(self.volume.geometry.table_region_bytes());
        buf.as_mut().fill(0x77);
        self.reader.read_at(0, buf.as_mut()).map_err(|e| wrong("table", e))?;
        if Superblock::decode(buf.as_ref(), Copy::First).as_ref() != Ok(self.volume) {
            return Err("one read does not show the superblock before the table".into());
        }
        let table = Table::decode(buf.as_ref(), self.volume);
        if table.damaged > 0 {
            return Err(format!("{} entries are damaged", table.damaged));
        }
        Ok(table)
    }

    fn entries(&self) -> Result<(), String> {
        let g = &self.volume.geometry;
        if self.table()?.valid > 0 {
            return Err("there are entries that nobody wrote".into());
        }
        let slots = g.nodes.len();
        for beat in 1..=5 {
            // The last one comes from a greater epoch.
            let epoch = if beat == 5 { EPOCH + 1 } else { EPOCH };
            let mut cells = vec![Cell::default(); slots];
            cells[1].heads[1] = Head { number: beat, place: 0 };
            let entry = Entry {
                node: self.node(0),
                goodbye: beat == 4,
                generation: self.volume.generation,
                epoch,
                nonce: 5,
                beat,
                interval_us: 1000 * beat,
                wall_unix_us: 0,
                cells,
            };
            let mut buf = self.pool.take_len(g.block());
            entry.encode(self.volume.uuid, buf.as_mut());
            let offset = g.entry_offset(0, entry.copy());
            self.writer.write_at(offset, &buf.freeze()).map_err(|e| wrong("entry", e))?;
            let table = self.table()?;
            if table.get(0) != Some(&entry) {
                return Err(format!("beat {beat} reads as {:?}", table.get(0)));
            }
            if (1..slots).any(|s| table.get(s).is_some()) {
                return Err("an entry appeared that nobody wrote".into());
            }
        }
        Ok(())
    }

    fn letter(&self, from: usize, to: usize) -> Result<Option<mailbox::Message>, String> {
        let g = &self.volume.geometry;
        let (from, to) = (self.node(from), self.node(to));
        let offset = g.mailbox_offset(from, to).ok_or("no mailbox")?;
        let mut buf = self.pool.take_len(g.block());
        self.reader.read_at(offset, buf.as_mut()).map_err(|e| wrong("mailbox", e))?;
        Ok(mailbox::decode(&buf.freeze(), (self.volume.uuid, from, to)))
    }

    fn mailboxes(&self) -> Result<(), String> {
        let g = &self.volume.geometry;
        let (from, to) = (self.node(0), self.node(1));
        let offset = g.mailbox_offset(from, to).ok_or("no mailbox")?;
        for (counter, len) in [(1, 5), (2, g.mailbox_bytes_max()), (3, 0)] {
            let mut body = vec![0; len];
            noise(counter, &mut body);
            let lane = (self.volume.uuid, from, to);
            let data =
                mailbox::encode(self.pool.take_len(g.block()), lane, (EPOCH, counter), &body);
            self.writer.write_at(offset, &data).map_err(|e| wrong("message", e))?;
            let read = self.letter(0, 1)?.ok_or("a message is not there")?;
            if (read.counter, &read.body[..]) != (counter, &body[..]) {
                return Err(format!("message {counter} of {len} bytes reads as another"));
            }
            if self.letter(1, 0)?.is_some() {
                return Err("a message appeared in the mailbox of the other way".into());
            }
        }
        Ok(())
    }

    fn offset(&self, a: &Address, place: u32) -> Result<u64, String> {
        let g = &self.volume.geometry;
        let base = g.ring_offset(a.from, a.to, a.ring).ok_or("no ring")?;
        Ok(base + u64::from(place) * u64::from(g.block_bytes))
    }

    /// Returns what was written and how many blocks it takes.
    fn write(&self, a: &Address, at: (u64, Head), body: usize) -> Result<(Bytes, u32), String> {
        let (epoch, head) = at;
        let block = self.volume.geometry.block();
        let (header, data) = if body == 0 {
            let ring_blocks = self.volume.geometry.ring_blocks(a.ring);
            let buf = self.pool.take_len(block);
            record::wrap(buf, a, epoch, head.number, head.place, ring_blocks - head.place)
        } else {
            let mut frame = vec![0; body];
            noise(head.number ^ epoch, &mut frame);
            let mut draft = Draft::new(self.pool.take(body + 100));
            draft.push(&frame);
            draft.seal(a, epoch, head.number, head.place, block)
        };
        let offset = self.offset(a, head.place)?;
        self.writer.write_at(offset, &data).map_err(|e| wrong("record", e))?;
        Ok((data, header.blocks))
    }

    /// The header of what is found under that name, and its bytes.
    fn read(&self, a: &Address, at: (u64, Head), len: usize) -> Result<Option<Bytes>, String> {
        let (epoch, head) = at;
        let offset = self.offset(a, head.place)?;
        let (from, to, ring, number) = (a.from, a.to, a.ring, head.number);
        let name = RecordName { from, to, ring, epoch, number };
        let bytes = self.reader.read_record(&self.pool, offset, len, &name);
        let bytes = bytes.map_err(|e| wrong("read of a record", e))?;
        let header = Header::decode(&bytes, a, head.place);
        let header = header.filter(|h| (h.epoch, h.number) == (epoch, number));
        let Some(h) = header else { return Ok(None) };
        let whole = match h.kind {
            Kind::Wrap => true,
            Kind::Data => record::open(&bytes, &h).is_some(),
        };
        if whole { Ok(Some(bytes.slice(..h.bytes()))) } else { Err("a record is torn".into()) }
    }

    fn expect(&self, a: &Address, at: (u64, Head), written: &Bytes) -> Result<(), String> {
        let read = self.read(a, at, written.len())?;
        let read = read.ok_or_else(|| format!("record {} is not there", at.1.number))?;
        if written.starts_with(&read) { Ok(()) } else { Err("a record reads as another".into()) }
    }

    fn records(&self) -> Result<(), String> {
        for ring in Ring::BOTH {
            let a = self.address(0, 1, ring);
            let max = self.volume.geometry.frame_bytes_max(ring);
            let mut head = Head::START;
            let mut kept = Vec::new();
            for body in [1, 5000, max] {
                let at = (EPOCH, head);
                if self.read(&a, at, 4096)?.is_some() {
                    return Err(format!("record {} is there before it was written", head.number));
                }
                let (data, blocks) = self.write(&a, at, body)?;
                // A write that failed is repeated with the same bytes.
                let offset = self.offset(&a, head.place)?;
                self.writer.write_at(offset, &data).map_err(|e| wrong("again", e))?;
                kept.push((at, data));
                head = Head { number: head.number + 1, place: head.place + blocks };
            }
            for (at, data) in &kept {
                self.expect(&a, *at, data)?;
            }
            let (epoch, head) = kept[0].0;
            if self.read(&a, (epoch + 1, head), 4096)?.is_some() {
                return Err("a record of another epoch is there".into());
            }
            let other = self.address(1, 0, ring);
            if self.read(&other, (epoch, head), 4096)?.is_some() {
                return Err("a record of the other way is there".into());
            }
        }
        Ok(())
    }

    /// One lap later another record stands at the place of the first.
    fn a_place_is_used_again(&self) -> Result<(), String> {
        let a = self.address(1, 0, Ring::Express);
        let place = self.volume.geometry.ring_blocks(Ring::Express) - 2;
        let (first, wrap) = (Head::START, Head { number: 2, place });
        self.write(&a, (EPOCH, first), 100)?;
        let (data, _) = self.write(&a, (EPOCH, wrap), 0)?;
        self.expect(&a, (EPOCH, wrap), &data)?;
        let next = Head { number: 3, place: 0 };
        let (data, _) = self.write(&a, (EPOCH, next), 200)?;
        self.expect(&a, (EPOCH, next), &data)
    }

    fn what_is_written_is_seen_at_once(&self) -> Result<(), String> {
        let a = self.address(1, 0, Ring::Data);
        let (tell, told) = std::sync::mpsc::channel();
        let head = |number: u64| {
            let place = u32::try_from(number - 1).unwrap_or(0);
            Head { number, place }
        };
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || {
                for number in 1..=CROSSING {
                    let (data, _) = self.write(&a, (EPOCH, head(number)), 64)?;
                    let _ = tell.send((number, data));
                }
                Ok::<_, String>(())
            });
            for (number, data) in told {
                self.expect(&a, (EPOCH, head(number)), &data)?;
                // The next one may be there or not, but never in part.
                self.read(&a, (EPOCH, head(number + 1)), 4096)?;
            }
            writing.join().map_err(|_| "a thread panicked".to_owned())?
        })
    }
}
