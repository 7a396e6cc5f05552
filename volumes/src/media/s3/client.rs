//! The HTTP client that `object_store` speaks through: connections, TLS, and a count of all requests.
//!
//! ```text
//!   object_store -> Service: count -> pool of connections -> Quick(TCP) [under TLS]
//!                      ^--- answers that are no success become an S3Error here
//! ```
//!
//! The pool is hyper's; its connections have TCP_NODELAY and answer at once (TCP_QUICKACK): two servers
//! out of three send the head of an answer and then its body in packets of their own, and wait with
//! the second for the acknowledgement of the first, which Linux holds back for 40 ms. Awkward cases:
//! error texts may be long and hold anything, so a bounded piece is read and only its code is kept;
//! proxies named in the environment are not used.

use super::super::Requests;
use super::trouble::S3Error;
use http_body_util::{BodyExt, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use object_store::client::{
    HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::{ClientOptions, client};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;

/// Enough for an error's code.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Idle connections are closed before most servers do it (Apache 5 s, nginx 75 s, AWS 20 s).
const IDLE_MAX: Duration = Duration::from_secs(4);
const IDLE_CONNECTIONS_MAX: usize = 16;

/// Counts of what was sent and received.
#[derive(Debug, Default)]
pub(super) struct Meter {
    put: AtomicU64,
    get: AtomicU64,
    head: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    throttled: AtomicU64,
}

impl Meter {
    pub(super) fn read(&self) -> Requests {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Requests {
            put: of(&self.put),
            get: of(&self.get),
            head: of(&self.head),
            list: of(&self.list),
            delete: of(&self.delete),
            sent_bytes: of(&self.sent_bytes),
            received_bytes: of(&self.received_bytes),
            throttled: of(&self.throttled),
        }
    }

    fn count(&self, request: &HttpRequest) {
        let query = request.uri().query().unwrap_or_default();
        let which = match *request.method() {
            http::Method::PUT => &self.put,
            http::Method::HEAD => &self.head,
            http::Method::DELETE => &self.delete,
            http::Method::POST if query.starts_with("delete") => &self.delete,
            http::Method::GET if query.contains("list-type") => &self.list,
            _ => &self.get,
        };
        which.fetch_add(1, Ordering::Relaxed);
        let bytes = request.body().content_length() as u64;
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Whom to trust: the authorities in `file`, or the system's.
fn roots(file: Option<&Path>) -> Result<RootCertStore, S3Error> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        // A system without any is one where every https endpoint is refused, with that reason.
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        return Ok(roots);
    };
    let fail = |detail: String| S3Error::Authorities { file: file.to_owned(), detail };
    let found = CertificateDer::pem_file_iter(file)
        .and_then(|found| found.collect::<Result<Vec<_>, _>>())
        .map_err(|e| match e {
            rustls::pki_types::pem::Error::Io(e) => fail(e.to_string()),
            _ => fail("it is no PEM file".into()),
        })?;
    if found.is_empty() {
        return Err(fail("it holds no certificate in PEM".into()));
    }
    for certificate in found {
        roots.add(certificate).map_err(|e| fail(e.to_string()))?;
    }
    Ok(roots)
}

/// What `object_store` calls. Clones share the pool.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pool: Client<HttpsConnector<Answering>, HttpRequestBody>,
    meter: Arc<Meter>,
}

impl Service {
    pub(super) fn new(
        ca_file: Option<&Path>,
        connect_deadline: Duration,
        meter: Arc<Meter>,
    ) -> Result<Self, S3Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| S3Error::Setup { detail: e.to_string() })?
            .with_root_certificates(roots(ca_file)?)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_deadline));
        tcp.set_keepalive(Some(Duration::from_secs(15)));
        let secure = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Answering(tcp));
        let pool = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(secure);
        Ok(Self { pool, meter })
    }
}

/// Gives `object_store` our client whatever options it thinks of.
impl client::HttpConnector for Service {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

fn failed(kind: HttpErrorKind, e: S3Error) -> HttpError {
    HttpError::new(kind, e)
}

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.meter.count(&request);
        let answer = self.pool.request(request).await.map_err(|e| {
            failed(HttpErrorKind::Unknown, S3Error::of_transport(&e, e.is_connect()))
        })?;
        let (head, body) = answer.into_parts();
        let status = head.status.as_u16();
        let meter = self.meter.clone();
        let body = body.map_frame(move |frame| {
            let bytes = frame.data_ref().map_or(0, bytes::Bytes::len) as u64;
            meter.received_bytes.fetch_add(bytes, Ordering::Relaxed);
            frame
        });
        let body =
            body.map_err(|e| failed(HttpErrorKind::Unknown, S3Error::of_transport(&e, false)));
        if status < 400 {
            return Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)));
        }
        let text = Limited::new(body, ERROR_BYTES_MAX).collect().await;
        let text = text.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let e = S3Error::of_answer(status, &text);
        if matches!(e, S3Error::Throttled { .. }) {
            self.meter.throttled.fetch_add(1, Ordering::Relaxed);
        }
        if status == 404 && e != S3Error::NoBucket {
            // What is not there is an answer like any other.
            return Ok(HttpResponse::from_parts(
                head,
                HttpResponseBody::new(HttpRequestBody::empty()),
            ));
        }
        Err(failed(HttpErrorKind::Unknown, e))
    }
}

/// Connects as hyper does, and hands out connections that acknowledge at once.
#[derive(Debug, Clone)]
pub(super) struct Answering(HttpConnector);

impl tower_service::Service<http::Uri> for Answering {
    type Response = Quick;
    type Error = <HttpConnector as tower_service::Service<http::Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Quick, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower_service::Service::<http::Uri>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, to: http::Uri) -> Self::Future {
        let connecting = self.0.call(to);
        Box::pin(async move { connecting.await.map(Quick) })
    }
}

/// A connection that acknowledges at once what it reads.
#[derive(Debug)]
pub(super) struct Quick(TokioIo<TcpStream>);

impl Connection for Quick {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

impl Read for Quick {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        // The kernel forgets it by itself, so it is said again before each wait.
        if read.is_pending() {
            let _ = rustix::net::sockopt::set_tcp_quickack(self.0.inner(), true);
        }
        read
    }
}

impl Write for Quick {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }
}
