//! The small rules; lives of the whole machine are in `tests/replicate.rs`.

use super::lanes::{Node, Stop, Tail, chain};
use crate::buffer::Pool;
use crate::event::Ring;
use crate::format::record::{self, Address, Draft};
use crate::format::superblock::tests::sample;
use crate::format::table::Head;
use crate::log::recognise::Expected;

fn expected(number: u64, place: u32) -> Expected {
    let address = Address { uuid: sample(&[1, 2]).uuid, from: 1, to: 2, ring: Ring::Data };
    let at = Head { number, place };
    Expected { address, epoch: 7, at, ring_blocks: 64, block: 4096 }
}

fn record(number: u64, place: u32, len: usize) -> Vec<u8> {
    let mut draft = Draft::new(Pool::new().take(4096));
    draft.push(&vec![5; len]);
    draft.seal(&expected(1, 0).address, 7, number, place, 4096).1.to_vec()
}

#[test]
fn a_chain_is_whole_records_that_follow_one_another() {
    let two = [record(5, 3, 100), record(6, 4, 5000)].concat();
    let c = chain(expected(5, 3), &two);
    assert_eq!((c.records, c.bytes, c.last, c.stop), (2, 12288, 2, Stop::Bytes));
    assert_eq!(c.next, Head { number: 7, place: 6 });
    // The rest of the second one is not in these bytes.
    let c = chain(expected(5, 3), &two[..8192]);
    assert_eq!((c.records, c.bytes, c.stop), (1, 4096, Stop::Part { blocks: 2 }));
    // Torn in its body, an older one, nothing.
    let mut torn = two.clone();
    torn[9000] ^= 1;
    let c = chain(expected(5, 3), &torn);
    assert_eq!((c.records, c.stop), (1, Stop::Torn { blocks: Some(2) }));
    let older = [record(5, 3, 100), record(4, 4, 100)].concat();
    let c = chain(expected(5, 3), &older);
    assert!(matches!(c.stop, Stop::Other { header: Some(h) } if h.number == 4));
    let c = chain(expected(5, 3), &[0; 4096]);
    assert_eq!((c.records, c.stop), (0, Stop::Other { header: None }));
}

#[test]
fn a_chain_ends_with_the_ring() {
    let c = chain(expected(5, 63), &record(5, 63, 100));
    assert_eq!((c.stop, c.next), (Stop::Wrapped, Head { number: 6, place: 0 }));
    // A wrap record claims the rest, but only its first block is written.
    let address = expected(1, 0).address;
    let wrap = record::wrap(Pool::new().take_len(4096), &address, 7, 5, 60, 4).1;
    let bytes = [&wrap[..], &[9; 3 * 4096]].concat();
    let c = chain(expected(5, 60), &bytes);
    assert_eq!((c.records, c.bytes, c.stop), (1, 4096, Stop::Wrapped));
    assert_eq!(c.next, Head { number: 6, place: 0 });
}

#[test]
fn lag_is_as_old_as_the_oldest_head_that_was_not_reached() {
    let head = |number| Head { number, place: 0 };
    let mut t = Tail::new(Ring::Data, Head::START);
    assert_eq!((t.behind(), t.behind_since()), (false, None));
    t.announce(10, head(5));
    t.announce(20, head(9));
    assert_eq!((t.behind_since(), t.known()), (Some(10), head(9)));
    t.go_to(head(5));
    assert_eq!(t.behind_since(), Some(20));
    t.go_to(head(12));
    assert_eq!((t.behind(), t.behind_since(), t.known()), (false, None, head(12)));
    t.announce(30, head(11));
    assert_eq!(t.behind_since(), None, "old news");
}

#[test]
fn after_a_jump_its_place_is_told_for_a_while() {
    let head = |number| Head { number, place: 0 };
    let mut t = Tail::new(Ring::Data, head(50));
    t.hold = Some((head(40), 100));
    assert_eq!((t.tells(99), t.tells(100)), (head(40), head(50)));
}

#[test]
fn a_beat_goes_into_the_other_block_and_forward() {
    let mut n = Node::new(1);
    n.epoch = 7;
    let mut next = |written, most| {
        n.written = written;
        n.beat_at_most(most)
    };
    assert_eq!(next(None, 9), Some(9), "nothing is there");
    assert_eq!(next(Some((7, 8)), 9), Some(9));
    assert_eq!(next(Some((7, 7)), 9), Some(8), "9 stands where 7 does");
    assert_eq!(next(Some((7, 8)), 8), None);
    assert_eq!(next(Some((7, 8)), 7), None);
    assert_eq!(next(Some((6, 100)), 9), Some(9), "a new epoch may count from anywhere");
    assert_eq!(next(Some((6, 101)), 9), Some(8));
    assert_eq!(next(Some((6, 100)), 0), None);
}
