//! The NBD client against real servers: nbdkit and qemu-nbd, as they are and as they fail.

use crate::common::loops::Scratch;
use crate::common::servers::{At, Server, have};
use crate::common::threads::wait;
use std::sync::Arc;
use std::time::{Duration, Instant};
use volumes::buffer::Pool;
use volumes::media::nbd::{Connector, HandshakeError, NbdDevice, NbdError, NbdUrl, Options, open};
use volumes::media::{BlockDevice, conformance};
use volumes::{IoFault, IoFaultKind};

const BYTES: &str = "3M";

fn connect(url: &str, write: bool) -> Result<NbdDevice, NbdError> {
    open(&NbdUrl::parse(url).unwrap(), &Options::new(write))
}

fn conforms(what: &str, url: &str) -> NbdDevice {
    let device = connect(url, true).unwrap();
    if let Err(e) = conformance::run(&device) {
        panic!("{what}: {e}");
    }
    device
}

fn read(device: &dyn BlockDevice, offset: u64, len: usize) -> Result<Vec<u8>, IoFault> {
    let mut buf = Pool::new().take_len(len);
    device.read_at(offset, buf.as_mut())?;
    Ok(buf.as_ref().to_vec())
}

#[test]
fn nbdkit_conforms_by_socket_and_by_tcp() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-conforms");
    for at in [At::Unix(dir.join("s")), At::free_port()] {
        let _server = Server::nbdkit(&at, &["memory", BYTES]);
        let device = conforms("nbdkit", &at.url(""));
        assert!(device.multi_conn() && device.structured() && !device.read_only());
        assert_eq!((device.size(), device.logical_block()), (3 << 20, 512));
    }
}

#[test]
fn servers_that_speak_less_conform_too() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-less");
    let at = At::Unix(dir.join("s"));
    for (what, args) in [
        ("no structured replies", &["--no-sr", "memory", BYTES][..]),
        ("no fixed newstyle", &["--mask-handshake=0", "memory", BYTES]),
        ("no NO_ZEROES", &["--mask-handshake=1", "memory", BYTES]),
        ("an odd length", &["memory", "3146239"]),
        ("slow", &["--filter=delay", "memory", BYTES, "rdelay=1ms", "wdelay=1ms"]),
        ("one at a time", &["--filter=noparallel", "memory", BYTES]),
    ] {
        let _server = Server::nbdkit(&at, args);
        let device = conforms(what, &at.url(""));
        assert_eq!(
            device.structured(),
            !what.starts_with("no structured") && what != "no fixed newstyle"
        );
    }
}

#[test]
fn a_server_with_large_blocks_and_small_requests_conforms() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-blocks");
    let at = At::Unix(dir.join("s"));
    let args = ["--filter=blocksize-policy", "memory", BYTES, "blocksize-error-policy=error"];
    let sizes = ["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=96K"];
    let _server = Server::nbdkit(&at, &[&args[..], &sizes].concat());
    let device = conforms("blocks of 4096", &at.url(""));
    assert_eq!(device.logical_block(), 4096);
    let mut buf = Pool::new().take_len(512);
    assert!(device.read_at(512, buf.as_mut()).unwrap_err().detail.contains("whole blocks"));
}

#[test]
fn qemu_nbd_conforms() {
    if !have("qemu-nbd") {
        return;
    }
    let dir = Scratch::new("nbd-qemu");
    let file = dir.join("raw");
    std::fs::write(&file, vec![0; 3 << 20]).unwrap();
    let file = file.to_str().unwrap();
    let at = At::Unix(dir.join("s"));
    for shared in ["1", "4"] {
        let _server = Server::qemu(&at, &["-x", "lun/7", "-e", shared, file]);
        let device = conforms("qemu-nbd", &at.url("lun/7"));
        assert!(device.structured());
        assert_eq!(device.multi_conn(), shared != "1", "as of QEMU 7.1");
    }
    let _server = Server::qemu(&at, &["-x", "lun/7", "-e", "4", file]);
    let e = connect(&at.url("lun"), true).unwrap_err();
    assert!(
        matches!(&e, NbdError::Handshake { source: HandshakeError::NoExport { .. }, .. }),
        "{e}"
    );
    assert!(e.to_string().contains("\"lun\""), "{e}");
}

#[test]
fn a_read_only_export_is_read_and_never_opened_for_writing() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-readonly");
    let at = At::Unix(dir.join("s"));
    let _server = Server::nbdkit(&at, &["-r", "pattern", BYTES]);
    let e = connect(&at.url(""), true).unwrap_err();
    assert!(
        matches!(e, NbdError::ReadOnly { .. }) && e.to_string().contains("reading only"),
        "{e}"
    );
    let device = connect(&at.url(""), false).unwrap();
    let bytes = read(&device, 4096, 4096).unwrap();
    assert_eq!(bytes[8..16], (4096u64 + 8).to_be_bytes(), "nbdkit's pattern");
    assert_eq!(device.write_at(0, &bytes).unwrap_err().kind, IoFaultKind::ReadOnly);
    device.flush().unwrap();
}

#[test]
fn faults_of_the_medium_arrive_as_what_they_are() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-faults");
    let at = At::Unix(dir.join("s"));
    for (word, kind) in [
        ("EIO", IoFaultKind::Eio),
        ("ENOSPC", IoFaultKind::NoSpace),
        ("EPERM", IoFaultKind::ReadOnly),
        ("EINVAL", IoFaultKind::Other),
    ] {
        let error = format!("error={word}");
        let args = ["--filter=error", "memory", BYTES, &error];
        let rates = ["error-pwrite-rate=10%", "error-pread-rate=2%"];
        let _server = Server::nbdkit(&at, &[&args[..], &rates].concat());
        let device = connect(&at.url(""), true).unwrap();
        let (mut failed, mut read_failed) = (0, 0);
        for i in 0..1000u64 {
            let byte = u8::try_from(i % 251).unwrap();
            let at = i % 700 * 4096;
            match device.write_at(at, &[byte; 4096]) {
                Ok(()) => match read(&device, at, 4096) {
                    Ok(bytes) => assert_eq!(bytes, [byte; 4096]),
                    Err(e) => {
                        assert_eq!(e.kind, kind, "{e}");
                        read_failed += 1;
                    }
                },
                Err(e) => {
                    assert!(e.kind == kind && e.detail.contains("write at"), "{e}");
                    failed += 1;
                }
            }
        }
        assert!((20..300).contains(&failed) && read_failed > 0, "{failed} {read_failed}");
        assert!(device.still_there());
    }
}

#[test]
fn a_late_reply_is_dropped_and_the_connection_goes_on() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-late");
    let at = At::Unix(dir.join("s"));
    let _server = Server::nbdkit(&at, &["--filter=delay", "memory", BYTES, "rdelay=400ms"]);
    let o = Options { request_deadline: Duration::from_millis(100), ..Options::new(true) };
    let device = Arc::new(open(&NbdUrl::parse(&at.url("")).unwrap(), &o).unwrap());
    device.write_at(0, &[7; 4096]).unwrap();
    for round in 0..2 {
        let threads: Vec<_> = (0..4)
            .map(|i| {
                let device = device.clone();
                std::thread::spawn(move || read(&*device, i * 4096, 256 << 10).unwrap_err().kind)
            })
            .collect();
        // Writes are not delayed, and their replies come between the late ones.
        let until = Instant::now() + Duration::from_millis(700);
        while Instant::now() < until {
            device.write_at(1 << 20, &[round; 4096]).unwrap();
        }
        for t in threads {
            assert_eq!(t.join().unwrap(), IoFaultKind::TimedOut);
        }
    }
    assert!(device.still_there());
}

#[test]
fn a_server_that_stops_is_left_after_its_silence_and_found_again() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-stopped");
    let at = At::Unix(dir.join("s"));
    let server = Server::nbdkit(&at, &["memory", BYTES]);
    let ms = Duration::from_millis;
    let o = Options {
        request_deadline: ms(50),
        silence_deadline: ms(200),
        connect_deadline: ms(300),
        ..Options::new(true)
    };
    let connector = Connector::new(NbdUrl::parse(&at.url("")).unwrap(), o);
    let device = connector.open().unwrap();
    device.write_at(0, &[1; 4096]).unwrap();
    server.signal("-STOP");
    let mut kinds = Vec::new();
    wait("the end of it", || {
        // More than its socket takes.
        kinds.push(device.write_at(0, &[2; 1 << 20]).unwrap_err().kind);
        !device.still_there()
    });
    assert!(kinds.contains(&IoFaultKind::TimedOut) || kinds.contains(&IoFaultKind::Gone));
    assert_eq!(read(&device, 0, 4096).unwrap_err().kind, IoFaultKind::Gone);
    let e = connector.open().unwrap_err();
    assert!(matches!(e, NbdError::Silent { .. }) && e.may_pass(), "{e}");
    server.signal("-CONT");
    let mut again = None;
    wait("back", || {
        again = connector.open().ok();
        again.is_some()
    });
    assert!(read(again.as_ref().unwrap(), 0, 4096).is_ok());
    assert_eq!(read(&device, 0, 4096).unwrap_err().kind, IoFaultKind::Gone, "for good");
}

#[test]
fn a_killed_server_ends_all_requests_and_a_restarted_one_is_opened_anew() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-killed");
    let file = dir.join("raw");
    std::fs::write(&file, vec![0; 3 << 20]).unwrap();
    for at in [At::Unix(dir.join("s")), At::free_port()] {
        let args = ["--filter=delay", "file", file.to_str().unwrap(), "rdelay=20"];
        let server = Server::nbdkit(&at, &args);
        let o = Options { request_deadline: Duration::from_secs(30), ..Options::new(true) };
        let connector = Connector::new(NbdUrl::parse(&at.url("")).unwrap(), o);
        let device = connector.open().unwrap();
        device.write_at(0, &[5; 4096]).unwrap();
        device.flush().unwrap();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let device = device.clone();
                std::thread::spawn(move || read(&device, 0, 4096).unwrap_err())
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        drop(server);
        for t in waiting {
            let e = t.join().unwrap();
            assert!(e.kind == IoFaultKind::Gone && e.detail.contains("connection lost"), "{e}");
        }
        assert!(!device.still_there());
        let e = connector.open().unwrap_err();
        assert!(matches!(e, NbdError::Connect { .. }), "{e}");
        let _server = Server::nbdkit(&at, &["file", file.to_str().unwrap()]);
        let mut again = None;
        wait("reconnected", || {
            again = connector.open().ok();
            again.is_some()
        });
        assert_eq!(read(&again.unwrap(), 0, 4096).unwrap(), [5; 4096]);
        assert_eq!(device.flush().unwrap_err().kind, IoFaultKind::Gone);
    }
}

#[test]
fn another_size_after_a_reconnect_is_refused() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-changed");
    let at = At::Unix(dir.join("s"));
    let server = Server::nbdkit(&at, &["memory", BYTES]);
    let connector = Connector::new(NbdUrl::parse(&at.url("")).unwrap(), Options::new(true));
    let device = connector.open().unwrap();
    drop(server);
    assert_eq!(read(&device, 0, 4096).unwrap_err().kind, IoFaultKind::Gone);
    let _server = Server::nbdkit(&at, &["memory", "4M"]);
    let e = connector.open().unwrap_err();
    assert!(e.to_string().contains("it had 3145728 bytes and has 4194304"), "{e}");
}

#[test]
fn one_connection_serves_all_who_open_the_same_url() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-shared");
    let at = At::Unix(dir.join("s"));
    // It takes one client and ends with it.
    let _server = Server::nbdkit(&at, &["--filter=limit", "memory", BYTES, "limit=1"]);
    let url = NbdUrl::parse(&at.url("")).unwrap();
    wait("the harness to be forgotten", || open(&url, &Options::new(true)).is_ok());
    let mut first = Err(String::new());
    wait("and the last connection", || {
        first = Connector::new(url.clone(), Options::new(true)).open().map_err(|e| e.to_string());
        first.is_ok()
    });
    let devices: Vec<_> = std::thread::scope(|scope| {
        let open = || Connector::new(url.clone(), Options::new(true)).open().unwrap();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    drop(first);
    conformance::run(&devices[3]).unwrap();
    assert!(open(&url, &Options::new(true)).is_err(), "a second one is refused");
}

#[test]
fn where_nobody_listens_is_said_at_once() {
    let dir = Scratch::new("nbd-nobody");
    for at in [At::Unix(dir.join("none")), At::free_port()] {
        let e = connect(&at.url("x"), true).unwrap_err();
        assert!(matches!(e, NbdError::Connect { .. }) && e.to_string().contains("running"), "{e}");
        assert!(e.may_pass());
    }
}
