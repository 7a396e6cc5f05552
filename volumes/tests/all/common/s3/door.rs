//! A door before an S3 server that slows, refuses, throttles, drops, and speaks TLS.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What the door does to requests; all may be changed at any time.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// Connections are closed at once.
    pub(crate) closed: AtomicBool,
    /// Of a hundred requests so many are answered 503.
    pub(crate) throttled_percent: AtomicU64,
    /// Each request waits so long.
    pub(crate) delay_ms: AtomicU64,
    /// Of a hundred requests so many are done, and the connection is dropped instead of an answer.
    pub(crate) dropped_percent: AtomicU64,
    /// While set, requests are read and neither passed on nor answered.
    pub(crate) held: AtomicBool,
    /// Of a hundred requests so many are never answered, and neither passed on.
    pub(crate) lost_percent: AtomicU64,
    pub(crate) requests: AtomicU64,
}

/// A door before a store; one request a connection.
pub(crate) struct Door {
    pub(crate) port: u16,
    pub(crate) rules: Arc<Rules>,
    listener: Arc<TcpListener>,
}

impl Drop for Door {
    fn drop(&mut self) {
        // Whoever waits in `accept` is told.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
    }
}

impl Door {
    pub(crate) fn new(to: u16) -> Self {
        Self::open(to, None)
    }

    /// Under TLS, with `server-cert.pem` and `server-key.pem` of that folder.
    pub(crate) fn secure(to: u16, certificates: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(certificates.join("server-cert.pem")).unwrap();
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(certificates.join("server-key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Self::open(to, Some(Arc::new(config)))
    }

    fn open(to: u16, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::listening(listener, to, tls, Arc::default())
    }

    /// On a listener that may be in another network namespace than the store; several doors may
    /// have the same rules.
    pub(crate) fn listening(
        listener: TcpListener,
        to: u16,
        tls: Option<Arc<ServerConfig>>,
        rules: Arc<Rules>,
    ) -> Self {
        let port = listener.local_addr().unwrap().port();
        let listener = Arc::new(listener);
        let (r, l) = (rules.clone(), listener.clone());
        std::thread::spawn(move || {
            while let Ok((client, _)) = l.accept() {
                if r.closed.load(Ordering::Relaxed) {
                    continue;
                }
                let (rules, tls) = (r.clone(), tls.clone());
                std::thread::spawn(move || {
                    let _ = client.set_read_timeout(Some(Duration::from_secs(30)));
                    let _ = match tls {
                        None => serve(client, to, &rules),
                        Some(config) => {
                            let session = ServerConnection::new(config).unwrap();
                            serve(StreamOwned::new(session, client), to, &rules)
                        }
                    };
                });
            }
        });
        Self { port, rules, listener }
    }
}

fn serve(mut client: impl Read + Write, to: u16, rules: &Rules) -> std::io::Result<()> {
    let mut from = BufReader::new(&mut client);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
        if !name.eq_ignore_ascii_case("connection") {
            head += &line;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    let n = rules.requests.fetch_add(1, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(rules.delay_ms.load(Ordering::Relaxed)));
    while rules.held.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Spread by a number that shares no factor with 100.
    let lot = n.wrapping_mul(37) % 100;
    if lot < rules.throttled_percent.load(Ordering::Relaxed) {
        let text = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
        let length = text.len();
        write!(
            client,
            "HTTP/1.1 503 Slow Down\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
        )?;
        return client.flush();
    }
    if lot < rules.lost_percent.load(Ordering::Relaxed) {
        // Until the client has had enough, or the rule is lifted.
        while rules.lost_percent.load(Ordering::Relaxed) > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        return Ok(());
    }
    let mut server = TcpStream::connect(("127.0.0.1", to))?;
    server.set_read_timeout(Some(Duration::from_secs(30)))?;
    server.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let _ = server.shutdown(Shutdown::Both);
    if 99 - lot < rules.dropped_percent.load(Ordering::Relaxed) {
        return Ok(());
    }
    client.write_all(&answer)?;
    client.flush()
}
