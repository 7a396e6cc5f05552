//! The bytes of requests and replies, right and wrong.

use super::*;

fn chunk_bytes(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut b = 0x668e_33efu32.to_be_bytes().to_vec();
    b.extend(flags.to_be_bytes());
    b.extend(kind.to_be_bytes());
    b.extend(cookie.to_be_bytes());
    b.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    b.extend(payload);
    b
}

fn error_payload(error: u32, text: &[u8], behind: &[u8]) -> Vec<u8> {
    let mut b = error.to_be_bytes().to_vec();
    b.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    b.extend(text);
    b.extend(behind);
    b
}

#[test]
fn a_request_is_these_bytes() {
    let b = request(Command::Write, 0x0102, 0x1000, 0x200);
    let want = [
        0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0x10, 0, 0,
        0, 2, 0,
    ];
    assert_eq!(b, want);
}

#[test]
fn replies_are_understood_at_their_last_byte_and_not_before() {
    let mut simple = 0x6744_6698u32.to_be_bytes().to_vec();
    simple.extend(5u32.to_be_bytes());
    simple.extend(9u64.to_be_bytes());
    let data = [&7u64.to_be_bytes()[..], b"x"].concat();
    let hole = [&7u64.to_be_bytes()[..], &512u32.to_be_bytes()].concat();
    let error = error_payload(28, b"disk\x1b[1m full", b"");
    let error_at = error_payload(5, b"bad", &4096u64.to_be_bytes());
    let unknown = error_payload(22, b"", b"whatever");
    let said = |error, m: &str| What::Error { error, message: m.into() };
    for (bytes, head_bytes, last, what) in [
        (simple, 16, true, What::Simple { error: 5 }),
        (chunk_bytes(1, 0, 9, b""), 20, true, What::Nothing),
        (chunk_bytes(0, 1, 9, &data), 28, false, What::Data { offset: 7, len: 1 }),
        (chunk_bytes(1, 2, 9, &hole), 32, true, What::Hole { offset: 7, len: 512 }),
        (chunk_bytes(1, 0x8001, 9, &error), 20 + error.len(), true, said(28, "disk[1m full")),
        (chunk_bytes(0, 0x8002, 9, &error_at), 20 + error_at.len(), false, said(5, "bad")),
        (chunk_bytes(1, 0x8777, 9, &unknown), 20 + unknown.len(), true, said(22, "")),
    ] {
        assert!((0..head_bytes).all(|n| decode(&bytes[..n], true) == Ok(None)), "{what:?}");
        let (head, len) = decode(&bytes, true).unwrap().unwrap();
        assert_eq!((head, len), (Head { cookie: 9, last, what }, head_bytes));
    }
}

#[test]
fn hostile_lengths_and_types_are_refused_before_anything_is_reserved() {
    let long = |kind: u16, len: u32| {
        let mut b = chunk_bytes(1, kind, 9, b"");
        b[16..20].copy_from_slice(&len.to_be_bytes());
        decode(&b, true)
    };
    for (kind, len) in [
        (0, 1),
        (0, u32::MAX),
        (1, 0),
        (1, 8),
        (2, 11),
        (2, 13),
        (0x8001, 5),
        (0x8001, 4111),
        (0x8002, u32::MAX),
        (0xffff, u32::MAX),
    ] {
        assert_eq!(long(kind, len), Err(WireError::Length { kind, len }));
    }
    assert_eq!(long(5, 4), Err(WireError::Kind { kind: 5 }));
    assert_eq!(decode(&[1; 4], true), Err(WireError::Magic { found: 0x0101_0101 }));
    assert_eq!(decode(&chunk_bytes(1, 0, 9, b""), false), Err(WireError::NotAgreed));
    let e = decode(&chunk_bytes(1, 0x8001, 9, &error_payload(0, b"", b"")), true);
    assert_eq!(e, Err(WireError::NoError));
    // The words must end where the chunk does.
    for (kind, behind) in [(0x8001, &b"x"[..]), (0x8002, b"1234567"), (0x8002, b"123456789")] {
        let e = decode(&chunk_bytes(1, kind, 9, &error_payload(5, b"ab", behind)), true);
        assert!(matches!(e, Err(WireError::Length { .. })), "{kind:x} {e:?}");
    }
}

#[test]
fn every_byte_comes_once() {
    let mut c = Coverage::default();
    assert_eq!(c.add(1000, 100, 1050, 50), Ok(50));
    assert_eq!(c.whole(100), Err(WireError::Missing { missing: 50 }));
    assert_eq!(c.add(1000, 100, 1000, 20), Ok(0));
    for (offset, len) in [(1000, 1), (1019, 2), (1049, 2), (1099, 1), (1010, 60)] {
        assert_eq!(c.add(1000, 100, offset, len), Err(WireError::Twice), "{offset}");
    }
    for (offset, len) in [(999, 1), (1099, 2), (1100, 1), (u64::MAX, 1), (1020, 0), (0, u32::MAX)] {
        let e = c.add(1000, 100, offset, len);
        assert!(matches!(e, Err(WireError::OutOfRange { .. })), "{offset} {len}");
    }
    assert_eq!(c.add(1000, 100, 1020, 30), Ok(20));
    assert_eq!(c.whole(100), Ok(()));
    let mut c = Coverage::default();
    let one = |i: usize| i as u64 * 2;
    assert!((0..PIECES_MAX).all(|i| c.add(0, 1 << 20, one(i), 1).is_ok()));
    assert_eq!(c.add(0, 1 << 20, one(PIECES_MAX), 1), Err(WireError::Pieces));
}

#[test]
fn errors_of_the_protocol_have_names() {
    for (error, kind) in [
        (1, IoFaultKind::ReadOnly),
        (5, IoFaultKind::Eio),
        (12, IoFaultKind::Other),
        (22, IoFaultKind::Other),
        (28, IoFaultKind::NoSpace),
        (75, IoFaultKind::Other),
        (95, IoFaultKind::Other),
        (108, IoFaultKind::Gone),
        (77, IoFaultKind::Other),
    ] {
        assert_eq!(fault(Command::Write, 0, error, "").kind, kind, "{error}");
    }
    let f = fault(Command::Read, 4096, 5, "disk 3");
    assert_eq!(f.detail, "read at 4096: input/output error (NBD error 5): disk 3");
}
