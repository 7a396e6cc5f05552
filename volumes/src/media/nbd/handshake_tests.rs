//! Greetings and options, right and wrong, as bytes.

use super::*;

fn greeting(flags: u16) -> Vec<u8> {
    [&MAGIC.to_be_bytes()[..], &NEW_STYLE.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn head(option: u32, kind: u32, len: u32) -> Vec<u8> {
    let mut b = OPTION_REPLY.to_be_bytes().to_vec();
    for n in [option, kind, len] {
        b.extend(n.to_be_bytes());
    }
    b
}

fn export(size: u64, flags: u16) -> Vec<u8> {
    [&0u16.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn blocks(min: u32, max: u32) -> Vec<u8> {
    let words = [min, 4096, max].map(u32::to_be_bytes).concat();
    [&3u16.to_be_bytes()[..], &words].concat()
}

/// Feeds a reply in the pieces that are asked for.
fn answer(
    h: &mut Handshake,
    option: u32,
    kind: u32,
    payload: &[u8],
) -> Result<Step, HandshakeError> {
    assert_eq!(h.wants(), 20);
    let step = h.take(&head(option, kind, u32::try_from(payload.len()).unwrap()))?;
    if payload.is_empty() {
        return Ok(step);
    }
    assert_eq!((step, h.wants()), (Step::More, payload.len()));
    h.take(payload)
}

fn at_go(name: &str) -> Handshake {
    let mut h = Handshake::new(name, false);
    h.take(&greeting(3)).unwrap();
    answer(&mut h, 8, 1, b"").unwrap();
    h
}

#[test]
fn the_way_to_an_export() {
    let mut h = Handshake::new("lun", false);
    assert_eq!(h.wants(), 18);
    let sent = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 8, 0, 0, 0, 0]].concat();
    assert_eq!(h.take(&greeting(0xff03)), Ok(Step::Send(sent)));
    let go = [&b"IHAVEOPT"[..], &[0, 0, 0, 7, 0, 0, 0, 11, 0, 0, 0, 3], b"lun", &[0, 1, 0, 3]];
    assert_eq!(answer(&mut h, 8, 1, b""), Ok(Step::Send(go.concat())));
    assert_eq!(answer(&mut h, 7, 3, &export(1 << 30, 0x105)), Ok(Step::More));
    assert_eq!(answer(&mut h, 7, 3, &blocks(512, 1 << 20)), Ok(Step::More));
    assert_eq!(answer(&mut h, 7, 3, b"\0\x01a name"), Ok(Step::More));
    let Ok(Step::Done(e)) = answer(&mut h, 7, 1, b"") else { panic!() };
    let want = Export {
        size: 1 << 30,
        flags: 0x105,
        block_min: 512,
        request_max: 1 << 20,
        structured: true,
    };
    assert_eq!(e, want);
    assert!(!e.read_only() && e.can_flush() && e.multi_conn());
}

#[test]
fn an_old_server_is_asked_the_old_way() {
    for (flags, wants) in [(0, 134), (2, 10)] {
        let mut h = Handshake::new("x", false);
        let sent =
            [&u32::from(flags).to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 1, 0, 0, 0, 1], b"x"];
        assert_eq!(h.take(&greeting(flags)), Ok(Step::Send(sent.concat())));
        assert_eq!(h.wants(), wants);
        assert!(matches!(h.closed(), HandshakeError::NoExport { .. }));
        let mut bytes = vec![0; wants];
        bytes[..10].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0x10, 0, 0, 7]);
        let Ok(Step::Done(e)) = h.take(&bytes) else { panic!() };
        assert_eq!((e.size, e.flags, e.structured, e.block_min), (4096, 7, false, 1));
        assert!(e.read_only());
    }
    // Fixed newstyle, but neither structured replies nor GO.
    let mut h = Handshake::new("x", false);
    h.take(&greeting(3)).unwrap();
    assert!(matches!(answer(&mut h, 8, ERR_UNSUPPORTED, b"no"), Ok(Step::Send(_))));
    let sent = [&b"IHAVEOPT"[..], &[0, 0, 0, 1, 0, 0, 0, 1], b"x"].concat();
    assert_eq!(answer(&mut h, 7, ERR_UNSUPPORTED, b""), Ok(Step::Send(sent)));
    assert_eq!(h.wants(), 10);
}

#[test]
fn tls_comes_before_everything_or_not_at_all() {
    let mut h = Handshake::new("x", true);
    let sent = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 5, 0, 0, 0, 0]].concat();
    assert_eq!(h.take(&greeting(3)), Ok(Step::Send(sent)));
    assert_eq!(answer(&mut h, 5, 1, b""), Ok(Step::StartTls));
    assert!(matches!(h.secured(), Step::Send(b) if b[11] == 8));
    for code in [1, 2, 3, 77] {
        let mut h = Handshake::new("x", true);
        h.take(&greeting(3)).unwrap();
        let e = answer(&mut h, 5, REP_IS_ERROR + code, b"not here").unwrap_err();
        assert_eq!(e, HandshakeError::NoTls { message: "not here".into() });
    }
    let e = Handshake::new("x", true).take(&greeting(2)).unwrap_err();
    assert!(matches!(e, HandshakeError::NoTls { .. }));
    for (option, at) in [(8, 0), (7, 1)] {
        let mut h = if at == 0 { Handshake::new("x", false) } else { at_go("x") };
        if at == 0 {
            h.take(&greeting(3)).unwrap();
        }
        let e = answer(&mut h, option, ERR_TLS_REQUIRED, b"").unwrap_err();
        assert_eq!(e, HandshakeError::TlsRequired);
    }
}

#[test]
fn what_a_server_refuses_is_named() {
    let e = answer(&mut at_go("lun"), 7, ERR_UNKNOWN, b"export 'lun' not present").unwrap_err();
    assert!(e.to_string().starts_with("no export \"lun\" there: export 'lun' not"), "{e}");
    let e = answer(&mut at_go("x"), 7, REP_IS_ERROR + 2, b"go\x07 away").unwrap_err();
    assert!(e.to_string().contains("(error 2): go away"), "{e}");
}

#[test]
fn hostile_servers_are_left() {
    let mut h = Handshake::new("x", false);
    assert_eq!(h.take(b"SSH-2.0-OpenSSH_9."), Err(HandshakeError::NotNbd));
    let old = [&MAGIC.to_be_bytes()[..], &OLD_STYLE.to_be_bytes(), &[0, 0]].concat();
    assert_eq!(Handshake::new("x", false).take(&old), Err(HandshakeError::OldStyle));
    let broken = |r: Result<Step, HandshakeError>| {
        assert!(matches!(r, Err(HandshakeError::Broken { .. })), "{r:?}");
    };
    broken(at_go("x").take(&[0; 20]));
    broken(answer(&mut at_go("x"), 8, 1, b""));
    broken(at_go("x").take(&head(7, 3, u32::MAX)));
    broken(at_go("x").take(&head(7, 3, 8193)));
    broken(answer(&mut at_go("x"), 7, 2, b""));
    broken(answer(&mut at_go("x"), 7, 1, b""));
    broken(answer(&mut at_go("x"), 7, 3, b""));
    broken(answer(&mut at_go("x"), 7, 3, &export(1, 1)[..11]));
    broken(answer(&mut at_go("x"), 7, 3, &blocks(1, 1)[..13]));
    for (min, max) in [(0, 4096), (3, 4096), (1 << 17, 1 << 20), (4096, 512)] {
        let mut h = at_go("x");
        answer(&mut h, 7, 3, &export(4096, 1)).unwrap();
        answer(&mut h, 7, 3, &blocks(min, max)).unwrap();
        broken(answer(&mut h, 7, 1, b""));
    }
    let mut h = at_go("x");
    answer(&mut h, 7, 3, &export(u64::MAX, 1)).unwrap();
    broken(answer(&mut h, 7, 1, b""));
    // Informations without end.
    let mut h = at_go("x");
    let ends = (0..1000).find_map(|_| answer(&mut h, 7, 3, b"\0\x01").err());
    broken(ends.map_or(Ok(Step::More), Err));
}
