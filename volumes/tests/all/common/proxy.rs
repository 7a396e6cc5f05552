//! Between a client and its server: leads each connection where the test says, counts what passes, and
//! cuts one alone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The server's port for the connection of that number, counted from 0.
pub type Lead = Arc<dyn Fn(usize) -> u16 + Send + Sync>;

struct Wire {
    client: TcpStream,
    server: TcpStream,
    /// Bytes from client to server, and back.
    passed: [Arc<AtomicU64>; 2],
    closed: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    wires: Mutex<Vec<Wire>>,
    stop: AtomicBool,
}

pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
}

impl Proxy {
    pub fn new(lead: Lead) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let s = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if s.stop.load(Ordering::Acquire) {
                    return;
                }
                let mut wires = s.wires.lock().unwrap();
                let Ok(client) = client else { continue };
                // Nobody there: closed, as by the server itself.
                let Ok(server) = TcpStream::connect(("127.0.0.1", lead(wires.len()))) else {
                    continue;
                };
                wires.push(join(client, server));
            }
        });
        Self { port, state }
    }

    pub fn to(port: u16) -> Self {
        Self::new(Arc::new(move |_| port))
    }

    pub fn url(&self) -> String {
        format!("nbd://127.0.0.1:{}/", self.port)
    }

    /// Connections so far.
    pub fn count(&self) -> usize {
        self.state.wires.lock().unwrap().len()
    }

    /// Bytes to the server and back.
    pub fn passed(&self, wire: usize) -> [u64; 2] {
        let wires = self.state.wires.lock().unwrap();
        [0, 1].map(|way| wires[wire].passed[way].load(Ordering::Relaxed))
    }

    /// The numbers of those that are open.
    pub fn open(&self) -> Vec<usize> {
        let wires = self.state.wires.lock().unwrap();
        let is_open = |&n: &usize| !wires[n].closed.load(Ordering::Acquire);
        (0..wires.len()).filter(is_open).collect()
    }

    pub fn cut(&self, wire: usize) {
        end(&self.state.wires.lock().unwrap()[wire]);
    }
}

fn end(wire: &Wire) {
    wire.closed.store(true, Ordering::Release);
    for side in [&wire.client, &wire.server] {
        let _ = side.shutdown(Shutdown::Both);
    }
}

fn join(client: TcpStream, server: TcpStream) -> Wire {
    let wire = Wire { client, server, passed: Default::default(), closed: Arc::default() };
    for (from, to, way) in [(&wire.client, &wire.server, 0), (&wire.server, &wire.client, 1)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let (passed, closed) = (wire.passed[way].clone(), wire.closed.clone());
        to.set_nodelay(true).unwrap();
        std::thread::spawn(move || {
            let mut buf = vec![0; 64 << 10];
            while let Ok(n @ 1..) = from.read(&mut buf) {
                // Before whoever gets them may look here.
                passed.fetch_add(n as u64, Ordering::Relaxed);
                if to.write_all(&buf[..n]).is_err() {
                    break;
                }
            }
            closed.store(true, Ordering::Release);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    wire
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        if let Ok(wires) = self.state.wires.lock() {
            wires.iter().for_each(end);
        }
        // So that it stops listening.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}
