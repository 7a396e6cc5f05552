//! The NBD client against a server that means ill: every lie is an error, nothing hangs, and nothing
//! is reserved on the server's word.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use volumes::media::BlockDevice;
use volumes::media::nbd::{NbdDevice, NbdError, NbdUrl, Options, open};
use volumes::{IoFault, IoFaultKind};

const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const FLAGS: u16 = 1 | 4;

/// Serves one connection with `talk`; the listener is there before this returns.
fn serve(talk: impl FnOnce(TcpStream) + Send + 'static) -> NbdUrl {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            talk(stream);
        }
    });
    NbdUrl::parse(&format!("nbd://127.0.0.1:{port}/x")).unwrap()
}

fn quick() -> Options {
    Options {
        connect_deadline: Duration::from_millis(300),
        request_deadline: Duration::from_millis(300),
        silence_deadline: Duration::from_millis(600),
        ..Options::new(true)
    }
}

fn read(s: &mut TcpStream, n: usize) -> Option<Vec<u8>> {
    let mut b = vec![0; n];
    s.read_exact(&mut b).ok().map(|()| b)
}

fn greet(s: &mut TcpStream) {
    let _ = s.write_all(b"NBDMAGICIHAVEOPT\0\x03");
    let _ = read(s, 4);
}

/// The number of the next option.
fn option(s: &mut TcpStream) -> Option<u32> {
    let head = read(s, 16)?;
    let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
    read(s, number(12) as usize)?;
    Some(number(8))
}

fn reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut b = OPTION_REPLY.to_be_bytes().to_vec();
    for n in [option, kind, u32::try_from(payload.len()).unwrap()] {
        b.extend(n.to_be_bytes());
    }
    b.extend(payload);
    b
}

fn export(size: u64, flags: u16) -> Vec<u8> {
    let info = [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
    [reply(7, 3, &info), reply(7, 1, b"")].concat()
}

/// Up to the transmission phase, with an export of 1 MiB.
fn agree(s: &mut TcpStream, structured: bool) {
    greet(s);
    let _ = option(s);
    let _ = s.write_all(&reply(8, if structured { 1 } else { 0x8000_0001 }, b""));
    let _ = option(s);
    let _ = s.write_all(&export(1 << 20, FLAGS));
}

/// Command, cookie and length of the next request; its data is swallowed.
fn request(s: &mut TcpStream) -> Option<(u8, [u8; 8], u32)> {
    let b = read(s, 28)?;
    let len = u32::from_be_bytes(b[24..28].try_into().unwrap());
    if b[7] == 1 {
        read(s, len as usize)?;
    }
    Some((b[7], b[8..16].try_into().unwrap(), len))
}

fn simple(error: u32, cookie: [u8; 8]) -> Vec<u8> {
    [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie].concat()
}

fn chunk(flags: u16, kind: u16, cookie: [u8; 8], payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let (flags, kind, len) = (flags.to_be_bytes(), kind.to_be_bytes(), len.to_be_bytes());
    [&0x668e_33efu32.to_be_bytes()[..], &flags, &kind, &cookie, &len, payload].concat()
}

fn data(flags: u16, cookie: [u8; 8], offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(flags, 1, cookie, &[&offset.to_be_bytes()[..], bytes].concat())
}

/// What becomes of one read of 8 KiB at 4096 that is answered with these bytes, and of the device.
fn answered(
    structured: bool,
    answer: impl FnOnce([u8; 8]) -> Vec<u8> + Send + 'static,
) -> (Result<Vec<u8>, IoFault>, NbdDevice) {
    let url = serve(move |mut s| {
        agree(&mut s, structured);
        let Some((_, cookie, _)) = request(&mut s) else { return };
        let _ = s.write_all(&answer(cookie));
        // Until the client goes.
        let _ = s.read(&mut [0; 1]);
    });
    let device = open(&url, &quick()).unwrap();
    let mut buf = vec![0xee; 8192];
    (device.read_at(4096, &mut buf).map(|()| buf), device)
}

fn breaks(structured: bool, word: &str, answer: impl FnOnce([u8; 8]) -> Vec<u8> + Send + 'static) {
    let (result, device) = answered(structured, answer);
    let e = result.unwrap_err();
    assert!(e.kind == IoFaultKind::Gone && e.detail.contains(word), "{word}: {e}");
    assert!(!device.still_there());
    assert_eq!(device.flush().unwrap_err().kind, IoFaultKind::Gone);
}

#[test]
fn lies_in_the_handshake_are_named() {
    type Talk = Box<dyn FnOnce(&mut TcpStream) + Send>;
    let cases: Vec<(&str, Talk)> = vec![
        ("no NBD server", Box::new(|s| drop(s.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")))),
        ("within 300 ms", Box::new(|s| drop(s.read(&mut [0; 1])))),
        ("before it said anything", Box::new(|_| ())),
        (
            "within 300 ms",
            Box::new(|s| drop(s.write_all(b"NBDMAGIC").map(|()| s.read(&mut [0; 1])))),
        ),
        (
            "an answer of 4294967295 bytes",
            Box::new(|s| {
                greet(s);
                let _ = option(s);
                let mut b = reply(8, 1, b"");
                b[16..20].fill(0xff);
                drop(s.write_all(&b).map(|()| s.read(&mut [0; 1])));
            }),
        ),
        (
            "no answer",
            Box::new(|s| {
                greet(s);
                drop(s.write_all(&[7; 64]).map(|()| s.read(&mut [0; 400])));
            }),
        ),
        (
            "instead of",
            Box::new(|s| {
                greet(s);
                let _ = option(s);
                drop(s.write_all(&reply(7, 1, b"")).map(|()| s.read(&mut [0; 1])));
            }),
        ),
        (
            "more than 64 answers",
            Box::new(|s| {
                greet(s);
                let _ = option(s);
                let _ = s.write_all(&reply(8, 1, b""));
                while s.write_all(&reply(7, 3, b"\0\x07endless")).is_ok() {}
            }),
        ),
        (
            "asked for the export",
            Box::new(|s| {
                greet(s);
                let _ = option(s);
                let _ = s.write_all(&reply(8, 1, b""));
                let _ = option(s);
            }),
        ),
        (
            "an export of",
            Box::new(|s| {
                greet(s);
                let _ = option(s);
                let _ = s.write_all(&reply(8, 1, b""));
                let _ = option(s);
                drop(s.write_all(&export(u64::MAX, FLAGS)).map(|()| s.read(&mut [0; 1])));
            }),
        ),
        (
            "no FLUSH",
            Box::new(|s| {
                greet(s);
                let _ = option(s);
                let _ = s.write_all(&reply(8, 1, b""));
                let _ = option(s);
                drop(s.write_all(&export(1 << 20, 1)).map(|()| s.read(&mut [0; 1])));
            }),
        ),
    ];
    for (word, talk) in cases {
        let url = serve(move |mut s| talk(&mut s));
        let began = Instant::now();
        let e = open(&url, &quick()).unwrap_err();
        assert!(e.to_string().contains(word), "{word}: {e}");
        assert!(began.elapsed() < Duration::from_secs(10), "{word}");
    }
}

#[test]
fn a_handshake_drop_by_drop_ends_at_the_deadline() {
    let url = serve(|mut s| {
        for byte in b"NBDMAGICIHAVEOPT\0\x03".iter().chain(&[0; 1000]) {
            if s.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let e = open(&url, &quick()).unwrap_err();
    assert!(matches!(e, NbdError::Silent { .. }), "{e}");
}

#[test]
fn simple_replies_that_lie_end_the_connection() {
    breaks(false, "which is no reply", |_| vec![0x11; 16]);
    breaks(false, "which is not open", |_| simple(0, [0x5a; 8]));
    breaks(false, "not agreed", |cookie| data(1, cookie, 4096, &[1; 8192]));
    // Twice: the second is for a request that is over, and is noticed by the next one.
    let (result, device) =
        answered(false, |cookie| [simple(5, cookie), simple(5, cookie)].concat());
    assert_eq!(result.unwrap_err().kind, IoFaultKind::Eio);
    assert_eq!(device.flush().unwrap_err().kind, IoFaultKind::Gone);
}

#[test]
fn chunks_that_lie_end_the_connection() {
    breaks(true, "bytes 0 to", |c| data(1, c, 0, &[1; 4096]));
    breaks(true, "of a request for 8192", |c| data(1, c, 4096, &[1; 8193]));
    breaks(true, "of a request for 8192", |c| data(1, c, u64::MAX - 3, &[1; 8]));
    breaks(true, "twice", |c| [data(0, c, 4096, &[1; 4096]), data(1, c, 8191, &[1; 9])].concat());
    breaks(true, "4096 bytes of a read not at all", |c| data(1, c, 8192, &[1; 4096]));
    breaks(true, "8192 bytes of a read not at all", |c| chunk(1, 0, c, b""));
    breaks(true, "without structure", |c| [simple(0, c), vec![1; 8192]].concat());
    breaks(true, "with 4294967295 bytes", |c| {
        let mut b = chunk(1, 0x8001, c, b"");
        b[16..20].fill(0xff);
        b
    });
    breaks(true, "of a request for 8192", |c| {
        let mut b = data(1, c, 4096, b"x");
        b[16..20].fill(0xff);
        b
    });
    breaks(true, "unknown type", |c| chunk(1, 77, c, b""));
    breaks(true, "pieces", |c| chunk(0, 0x8001, c, &[0, 0, 0, 5, 0, 0]).repeat(1000));
    breaks(true, "type 0x0000", |c| chunk(0, 0, c, b"").repeat(100_000));
    breaks(true, "of a request for 8192", |c| {
        chunk(1, 2, c, &[&4096u64.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat())
    });
}

#[test]
fn pieces_in_any_order_holes_and_late_errors_are_understood() {
    let hole = |offset: u64, len: u32| [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    let (result, device) = answered(true, move |c| {
        [
            data(0, c, 12_000, &[3; 288]),
            chunk(0, 2, c, &hole(8192, 3808)),
            data(0, c, 4096, &[1; 1]),
            data(0, c, 4097, &[2; 4095]),
            chunk(1, 0, c, b""),
        ]
        .concat()
    });
    let want = [&[1][..], &[2; 4095], &[0; 3808], &[3; 288]].concat();
    assert!(result.unwrap() == want && device.still_there());
    let (result, device) = answered(true, |c| {
        let words = [&[0, 0, 0, 5, 0, 8][..], b"bad disk"].concat();
        [data(0, c, 4096, &[1; 4096]), chunk(1, 0x8001, c, &words)].concat()
    });
    let e = result.unwrap_err();
    assert!(e.kind == IoFaultKind::Eio && e.detail.ends_with("bad disk"), "{e}");
    assert!(device.still_there(), "an error of the medium is none of the connection");
}

#[test]
fn a_server_that_is_shutting_down_is_left() {
    let (result, device) = answered(false, |c| simple(108, c));
    assert_eq!(result.unwrap_err().kind, IoFaultKind::Gone);
    assert!(!device.still_there());
}

#[test]
fn closed_in_the_middle_of_a_reply() {
    for cut in [1, 15, 16, 17, 4000, 8207] {
        let url = serve(move |mut s| {
            agree(&mut s, false);
            let Some((_, cookie, _)) = request(&mut s) else { return };
            let _ = s.write_all(&[simple(0, cookie), vec![1; 8192]].concat()[..cut]);
        });
        let device = open(&url, &quick()).unwrap();
        let e = device.read_at(4096, &mut vec![0; 8192]).unwrap_err();
        assert!(e.kind == IoFaultKind::Gone && e.detail.contains("connection lost"), "{cut}: {e}");
    }
}

#[test]
fn a_server_that_never_answers_is_left_after_its_silence() {
    let url = serve(|mut s| {
        agree(&mut s, true);
        while request(&mut s).is_some() {}
    });
    let device = Arc::new(open(&url, &quick()).unwrap());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let device = device.clone();
            std::thread::spawn(move || {
                let mut kinds = Vec::new();
                while device.still_there() {
                    kinds.push(device.read_at(0, &mut [0; 4096]).unwrap_err().kind);
                }
                kinds
            })
        })
        .collect();
    for t in threads {
        let kinds = t.join().unwrap();
        assert_eq!(kinds[0], IoFaultKind::TimedOut, "{kinds:?}");
        assert!(kinds.len() < 20, "{kinds:?}");
    }
}

#[test]
fn a_server_that_answers_only_some_is_left_when_too_many_are_open() {
    let url = serve(|mut s| {
        agree(&mut s, false);
        while let Some((command, cookie, _)) = request(&mut s) {
            if command == 3 {
                let _ = s.write_all(&simple(0, cookie));
            }
        }
    });
    let o = Options { request_deadline: Duration::from_millis(2), ..quick() };
    let device = open(&url, &o).unwrap();
    let mut calls = 0;
    while device.still_there() {
        let _ = device.read_at(0, &mut [0; 4096]);
        let _ = device.flush();
        calls += 1;
        assert!(calls < 1000, "unanswered requests have no bound");
    }
    assert!(calls > 60, "{calls}");
}

#[test]
fn a_reply_drop_by_drop_costs_its_own_request_only() {
    let url = serve(|mut s| {
        agree(&mut s, false);
        let Some((_, cookie, _)) = request(&mut s) else { return };
        let _ = s.write_all(&simple(0, cookie));
        // The data comes in three parts, each later than the deadline.
        for _ in 0..2 {
            let _ = s.write_all(&[1; 4000]);
            std::thread::sleep(Duration::from_millis(250));
        }
        let _ = s.write_all(&[1; 192]);
        while let Some((_, cookie, len)) = request(&mut s) {
            let data = vec![9; len as usize];
            let _ = s.write_all(&[simple(0, cookie), data].concat());
        }
    });
    let device = open(&url, &quick()).unwrap();
    let e = device.read_at(4096, &mut [0; 8192]).unwrap_err();
    assert_eq!(e.kind, IoFaultKind::TimedOut);
    let mut buf = [0; 4096];
    let until = Instant::now() + Duration::from_secs(10);
    while let Err(e) = device.read_at(0, &mut buf) {
        assert!(e.kind == IoFaultKind::TimedOut && Instant::now() < until, "{e}");
    }
    assert!(buf == [9; 4096], "nothing of the late reply");
}

#[test]
fn a_server_that_reads_nothing_until_it_is_read_from_hangs_nobody() {
    // It answers each read with 256 KiB and takes no request while an answer is under way, so
    // requests and answers fill both directions.
    let url = serve(|mut s| {
        agree(&mut s, false);
        while let Some((command, cookie, len)) = request(&mut s) {
            let data = if command == 0 { vec![command; len as usize] } else { Vec::new() };
            if s.write_all(&[simple(0, cookie), data].concat()).is_err() {
                return;
            }
        }
    });
    let o = Options { request_deadline: Duration::from_secs(20), ..quick() };
    let device = Arc::new(open(&url, &o).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let device = device.clone();
            scope.spawn(move || {
                let mut buf = vec![1; 256 << 10];
                for round in 0..60 {
                    if (round + thread) % 2 == 0 {
                        device.read_at(0, &mut buf).unwrap();
                        assert!(buf.iter().all(|&b| b == 0));
                    } else {
                        device.write_at(0, &vec![1; 1 << 20]).unwrap();
                    }
                }
            });
        }
    });
}
