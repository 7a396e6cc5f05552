//! Reads beside writes on a second connection to an NBD server: when there is one, what each carries,
//! and that both are gone when one is.

use crate::common::loops::Scratch;
use crate::common::proxy::Proxy;
use crate::common::servers::{At, Server, have};
use crate::common::threads::{numbers, send, up, wait};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use volumes::IoFaultKind;
use volumes::media::nbd::{Connector, NbdDevice, NbdUrl, Options, open};
use volumes::media::{BlockDevice, Location, conformance};
use volumes::{AttachOptions, Fact, InitOptions, init};

const BYTES: &str = "3M";

fn url(text: &str) -> NbdUrl {
    NbdUrl::parse(text).unwrap()
}

fn options() -> Options {
    Options { request_deadline: Duration::from_secs(30), ..Options::new(true) }
}

fn connect(text: &str) -> NbdDevice {
    open(&url(text), &options()).unwrap()
}

fn serve(args: &[&str]) -> (Server, u16) {
    let at = At::free_port();
    let server = Server::nbdkit(&at, args);
    let At::Port(port) = at else { unreachable!() };
    (server, port)
}

fn read(device: &dyn BlockDevice, offset: u64, len: usize) -> Result<Vec<u8>, IoFaultKind> {
    let mut buf = vec![0; len];
    device.read_at(offset, &mut buf).map(|()| buf).map_err(|e| e.kind)
}

#[test]
fn reads_and_writes_have_a_connection_each_and_see_the_same() {
    if !have("nbdkit") {
        return;
    }
    let (_server, port) = serve(&["memory", BYTES]);
    let proxy = Proxy::to(port);
    let device = connect(&proxy.url());
    assert_eq!(device.connections(), 2);
    wait("the third is closed again", || proxy.open() == [0, 1]);
    conformance::run(&device).unwrap();
    let was = [proxy.passed(0), proxy.passed(1)];
    let other = device.clone();
    for round in 0..200u8 {
        // Whoever is told that it is written finds it, also in another thread.
        let at = u64::from(round) * 4096;
        device.write_at(at, &[round; 64 << 10]).unwrap();
        let seen = std::thread::scope(|s| s.spawn(|| read(&other, at, 64 << 10)).join().unwrap());
        assert!(seen.unwrap().iter().all(|&b| b == round), "{round}");
    }
    device.flush().unwrap();
    let is = [proxy.passed(0), proxy.passed(1)];
    let more = |wire: usize, way: usize| is[wire][way] - was[wire][way];
    let bytes = 200 * (64 << 10);
    assert!(more(0, 0) > bytes && more(1, 1) > bytes - (64 << 10), "{was:?} {is:?}");
    // The one at the start came back on the first; besides that there are only heads.
    assert!(more(0, 1) < 2 * (64 << 10) && more(1, 0) < 200 * 100, "{was:?} {is:?}");
}

#[test]
fn the_start_is_read_where_it_is_written() {
    if !have("nbdkit") {
        return;
    }
    let (_server, port) = serve(&["memory", BYTES]);
    let proxy = Proxy::to(port);
    let device = connect(&proxy.url());
    let was = [proxy.passed(0)[1], proxy.passed(1)[1]];
    for _ in 0..10 {
        read(&device, 0, 20 << 10).unwrap();
    }
    let is = [proxy.passed(0)[1], proxy.passed(1)[1]];
    assert!(is[0] - was[0] >= 10 * (20 << 10) && is[1] == was[1], "{was:?} {is:?}");
}

#[test]
fn one_that_is_cut_takes_the_other_with_it() {
    if !have("nbdkit") {
        return;
    }
    let (_server, port) = serve(&["--filter=delay", "memory", BYTES, "rdelay=20ms"]);
    let direct = connect(&format!("nbd://127.0.0.1:{port}/"));
    let proxy = Proxy::to(port);
    let connector = Connector::new(url(&proxy.url()), options());
    for cut in [0, 1] {
        let device = connector.open().unwrap();
        assert_eq!(device.connections(), 2);
        wait("the third is closed again", || proxy.open().len() == 2);
        let open = proxy.open();
        device.write_at(8192, &[7; 4096]).unwrap();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                while read(&device, 1 << 20, 4096).is_ok() {}
                read(&device, 1 << 20, 4096)
            });
            std::thread::sleep(Duration::from_millis(50));
            proxy.cut(open[cut]);
            // An idle connection is missed when it is used.
            if cut == 0 {
                assert_eq!(device.flush().unwrap_err().kind, IoFaultKind::Gone);
            }
            assert_eq!(reading.join().unwrap(), Err(IoFaultKind::Gone));
        });
        assert!(!device.still_there());
        assert_eq!(device.write_at(8192, &[8; 4096]).unwrap_err().kind, IoFaultKind::Gone);
        assert_eq!(device.flush().unwrap_err().kind, IoFaultKind::Gone);
        assert_eq!(read(&device, 0, 4096), Err(IoFaultKind::Gone));
        assert_eq!(read(&direct, 8192, 4096).unwrap(), [7; 4096], "nothing more was written");
        wait("both are closed", || proxy.open().is_empty());
    }
    let device = connector.open().unwrap();
    assert!(device.still_there() && device.connections() == 2 && read(&device, 0, 512).is_ok());
}

#[test]
fn without_multi_conn_there_is_one() {
    if !have("nbdkit") {
        return;
    }
    let (_server, port) =
        serve(&["--filter=multi-conn", "memory", BYTES, "multi-conn-mode=disable"]);
    let proxy = Proxy::to(port);
    let device = connect(&proxy.url());
    assert_eq!((device.multi_conn(), device.connections(), proxy.count()), (false, 1, 1));
    conformance::run(&device).unwrap();
    // Whoever only reads has no writes to wait behind.
    let (_server, port) = serve(&["-r", "memory", BYTES]);
    let proxy = Proxy::to(port);
    let device = open(&url(&proxy.url()), &Options { write: false, ..options() }).unwrap();
    assert_eq!((device.multi_conn(), device.connections(), proxy.count()), (true, 1, 1));
}

#[test]
fn qemu_offers_it_to_all_but_a_single_client() {
    if !have("qemu-nbd") {
        return;
    }
    let dir = Scratch::new("nbd-pair-qemu");
    let raw = dir.join("raw");
    std::fs::write(&raw, vec![0; 3 << 20]).unwrap();
    for (shared, connections) in [("1", 1), ("2", 1), ("4", 2), ("0", 2)] {
        let at = At::free_port();
        let _server = Server::qemu(&at, &["-e", shared, raw.to_str().unwrap()]);
        let device = connect(&at.url(""));
        assert_eq!((device.multi_conn(), device.connections()), (shared != "1", connections));
        conformance::run(&device).unwrap();
    }
}

#[test]
fn a_server_that_takes_no_second_one_is_used_with_one() {
    if !have("nbdkit") {
        return;
    }
    for limit in [1, 2] {
        let word = format!("limit={limit}");
        let (_server, port) = serve(&["--filter=limit", "memory", BYTES, &word]);
        takes_no_second(port, limit);
    }
}

/// With room for two the second one would be the last.
fn takes_no_second(port: u16, limit: u32) {
    let proxy = Proxy::to(port);
    let connector = Connector::new(url(&proxy.url()), options());
    let mut device = None;
    wait("the harness is forgotten", || {
        device = connector.open().ok();
        device.is_some()
    });
    let device = device.unwrap();
    assert_eq!(device.connections(), 1);
    conformance::run(&device).unwrap();
    wait("the others are closed again", || proxy.open().len() == 1);
    // It is not asked again so soon.
    let asked = proxy.count();
    proxy.cut(proxy.open()[0]);
    assert_eq!(device.flush().unwrap_err().kind, IoFaultKind::Gone);
    let mut again = None;
    wait("back", || {
        again = connector.open().ok();
        again.is_some()
    });
    // Held, or it would be closed itself before the cut one was seen to be.
    let again = again.unwrap();
    assert_eq!(again.connections(), 1);
    if limit > 1 {
        assert_eq!(proxy.count(), asked + 1);
    }
    wait("the cut one is closed", || proxy.open().len() == 1);
}

/// Speaks the handshake once and then no more: others connect, and are never greeted.
#[test]
fn a_server_that_never_greets_the_second_one_is_used_with_one() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut s, _) = listener.accept().unwrap();
        let skip = |s: &mut std::net::TcpStream, n: usize| s.read_exact(&mut vec![0; n]);
        // No fixed newstyle: EXPORT_NAME is answered with size, flags (FLUSH, multi-conn), zeroes.
        let _ = s.write_all(b"NBDMAGICIHAVEOPT\0\0");
        let _ = skip(&mut s, 4 + 16);
        let export = [&(1u64 << 20).to_be_bytes()[..], &[1, 5], &[0; 124]].concat();
        let _ = s.write_all(&export);
        while skip(&mut s, 4).is_ok() {
            let mut head = [0; 24];
            if s.read_exact(&mut head).is_err() {
                return;
            }
            let _ = s.write_all(&[&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], &head[4..12]].concat());
        }
    });
    let device = connect(&format!("nbd://127.0.0.1:{port}/"));
    assert!(device.multi_conn() && device.connections() == 1);
    device.flush().unwrap();
}

#[test]
fn a_second_one_that_leads_elsewhere_is_not_used() {
    if !have("nbdkit") {
        return;
    }
    for (what, args) in [
        ("the same bytes", ["data", "@60000 1 2 3", "size=3M"]),
        ("other bytes", ["data", "@60000 1 2 4", "size=3M"]),
        ("another size", ["data", "@60000 1 2 3", "size=4M"]),
    ] {
        let (_ours, ours) = serve(&["data", "@60000 1 2 3", "size=3M"]);
        let (other, port) = serve(&args);
        let proxy = Proxy::new(Arc::new(move |n| if n == 0 { ours } else { port }));
        if what == "the same bytes" {
            // All that can be told: this much is alike.
            assert_eq!(connect(&proxy.url()).connections(), 2, "{what}");
            continue;
        }
        let device = connect(&proxy.url());
        assert_eq!(device.connections(), 1, "{what}");
        conformance::run(&device).unwrap();
        drop(other);
        assert!(device.still_there() && read(&device, 4096, 4096).is_ok(), "{what}");
    }
}

fn beating(at: &Location, node: u8, beat: Duration) -> AttachOptions {
    AttachOptions { beat_interval: beat, ..AttachOptions::new(at, node) }
}

fn volume(file: &Path, name: &str) -> (Server, u16) {
    std::fs::write(file, vec![0; 4 << 20]).unwrap();
    let (server, port) = serve(&["file", file.to_str().unwrap()]);
    let o = InitOptions { name: name.into(), nodes: vec![1, 2], ..InitOptions::default() };
    let place = Location::parse(&format!("nbd://127.0.0.1:{port}/")).unwrap();
    init(&place, &o, |_, _| {}).unwrap();
    (server, port)
}

#[test]
fn records_flow_whichever_connection_is_cut() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-pair-flow");
    let (_server, port) = volume(&dir.join("raw"), "lun");
    let proxy = Proxy::to(port);
    let place = Location::parse(&proxy.url()).unwrap();
    let (a, _) = up(beating(&place, 1, Duration::from_millis(20)));
    let (b, b_facts) = up(beating(&place, 2, Duration::from_millis(20)));
    let mut sent = 0;
    for round in 0..10 {
        wait("two of them", || proxy.open().len() == 2);
        send(&a, 2, sent..sent + 200);
        // In the middle of it.
        proxy.cut(proxy.open()[round % 2]);
        send(&a, 2, sent + 200..sent + 300);
        sent += 300;
        wait("all so far", || numbers(&b_facts).len() >= sent as usize);
    }
    assert!(numbers(&b_facts).into_iter().eq(0..sent), "in order, none twice, none lost");
    assert!(a.shutdown(Duration::from_secs(5)) && b.shutdown(Duration::from_secs(5)));
}

#[test]
fn nothing_is_written_elsewhere_when_one_is_cut_and_the_address_moves() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-pair-moves");
    let (_ours, ours) = volume(&dir.join("ours"), "ours");
    let (_other, other) = volume(&dir.join("other"), "other");
    let before = std::fs::read(dir.join("other")).unwrap();
    let leads = Arc::new(AtomicU16::new(ours));
    let l = leads.clone();
    let proxy = Proxy::new(Arc::new(move |_| l.load(Ordering::Acquire)));
    let place = Location::parse(&proxy.url()).unwrap();
    // A permit that outlives the change.
    let (a, a_facts) = up(beating(&place, 1, Duration::from_secs(2)));
    let (_b, b_facts) = up(beating(&place, 2, Duration::from_millis(20)));
    let fenced = || {
        let is = |f: &&Fact| matches!(f, Fact::Fenced { .. });
        a_facts.lock().unwrap().iter().filter(is).count()
    };
    let mut sent = 0;
    for round in 0..6 {
        send(&a, 2, sent..sent + 100);
        sent += 100;
        wait("all so far", || numbers(&b_facts).len() == sent as usize);
        wait("two of them", || proxy.open().len() == 2);
        let seen = fenced();
        leads.store(other, Ordering::Release);
        proxy.cut(proxy.open()[round % 2]);
        send(&a, 2, sent..sent + 100);
        sent += 100;
        wait("it is seen", || fenced() > seen);
        // What would be written by mistake is written by now.
        std::thread::sleep(Duration::from_millis(200));
        assert!(std::fs::read(dir.join("other")).unwrap() == before, "not a byte, in {round}");
        leads.store(ours, Ordering::Release);
        proxy.open().into_iter().for_each(|n| proxy.cut(n));
    }
    wait("all", || numbers(&b_facts).len() == sent as usize);
    assert!(numbers(&b_facts).into_iter().eq(0..sent));
}
