//! From threads that wait to a library that does not: one executor per attached volume.
//!
//! ```text
//!   keeper, flusher, reader --- call(future) ---> thread sp-s3: executor, connections
//!                          <--- one answer, or none within the deadline
//! ```
//!
//! The library's own retries are off: an outage must be seen at once, and whoever asked tries again by
//! its own rules. Awkward cases: a request that is given up may still take effect at the store, as on
//! every medium; a store that asks for fewer requests gets none for a while, from all threads.

use super::Options;
use super::client::{Meter, Service};
use super::credentials::Credentials;
use super::trouble::S3Error;
use super::url::{S3Url, Settings};
use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, RetryConfig};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// The first pause after an answer that asks for fewer requests; doubled up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// What may be asked twice is asked again after so long, and never a third time.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How much later than its deadline an answer is waited for: the executor may be late itself.
const GRACE: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Throttle {
    pause: Duration,
    until: Option<Instant>,
}

/// A store, and the thread that talks to it. Ends with its last holder.
pub(super) struct Link {
    at: String,
    pub(super) store: Arc<AmazonS3>,
    /// The same, for servers that do not know how to delete many objects in one request.
    one_by_one: Arc<AmazonS3>,
    knows_batches: AtomicBool,
    pub(super) handle: Handle,
    deadline: Duration,
    attempts: u32,
    throttle: Mutex<Throttle>,
    _alive: tokio::sync::oneshot::Sender<()>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is in `store` can sign requests.
        f.debug_struct("Link").field("at", &self.at).finish_non_exhaustive()
    }
}

fn store(
    url: &S3Url,
    settings: &Settings,
    credentials: &Credentials,
    service: Service,
    batches: bool,
) -> Result<AmazonS3, S3Error> {
    let retry =
        RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
    let path_style = settings.path_style.unwrap_or_else(|| settings.endpoint.is_some());
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&url.bucket)
        .with_region(settings.region.as_deref().unwrap_or("us-east-1"))
        .with_access_key_id(credentials.key.as_str())
        .with_secret_access_key(credentials.secret.as_str())
        .with_virtual_hosted_style_request(!path_style)
        .with_retry(retry)
        .with_disable_bulk_delete(!batches)
        .with_http_connector(service);
    if let Some(token) = &credentials.token {
        builder = builder.with_token(token.as_str());
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_allow_http(endpoint.starts_with("http://"));
        let endpoint = endpoint.trim_end_matches('/');
        // The library takes an endpoint of the bucket's own when the bucket is in the host's name.
        builder = builder.with_endpoint(match endpoint.split_once("://") {
            Some((scheme, host)) if !path_style => format!("{scheme}://{}.{host}", url.bucket),
            _ => endpoint.to_owned(),
        });
    }
    builder.build().map_err(|_| S3Error::Setup {
        detail: "these settings make no client; check endpoint, region and bucket".into(),
    })
}

impl Link {
    pub(super) fn new(
        url: &S3Url,
        settings: &Settings,
        credentials: &Credentials,
        o: &Options,
        meter: Arc<Meter>,
    ) -> Result<Self, S3Error> {
        let setup = |e: std::io::Error| S3Error::Setup { detail: e.to_string() };
        let service = Service::new(settings.ca_file.as_deref(), o.connect_deadline, meter)?;
        let one_by_one = store(url, settings, credentials, service.clone(), false)?;
        let store = store(url, settings, credentials, service, true)?;
        let executor = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            // Names are looked up there, and nothing else.
            .max_blocking_threads(2)
            .thread_name("sp-s3-names")
            .build()
            .map_err(setup)?;
        let handle = executor.handle().clone();
        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("sp-s3".into())
            .spawn(move || {
                let _ = executor.block_on(ended);
                // A look-up of a name that hangs must not hold the thread up.
                executor.shutdown_background();
            })
            .map_err(setup)?;
        Ok(Self {
            at: url.to_string(),
            store: Arc::new(store),
            one_by_one: Arc::new(one_by_one),
            knows_batches: AtomicBool::new(true),
            handle,
            deadline: o.request_deadline,
            attempts: o.attempts,
            throttle: Mutex::default(),
            _alive: alive,
        })
    }

    fn throttle(&self) -> std::sync::MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long nothing is to be asked.
    pub(super) fn pause(&self) -> Duration {
        let until = self.throttle().until;
        until.map_or(Duration::ZERO, |u| u.saturating_duration_since(Instant::now()))
    }

    pub(super) fn learn<T>(&self, result: &Result<T, S3Error>) {
        let mut t = self.throttle();
        match result {
            Err(S3Error::Throttled { .. }) => {
                t.pause = (t.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                t.until = Some(Instant::now() + t.pause);
            }
            Ok(_) if t.pause > PAUSE_MIN => t.pause /= 2,
            Ok(_) => *t = Throttle::default(),
            Err(_) => {}
        }
    }

    /// Waits for an answer, never longer than the deadline and a pause.
    pub(super) fn call<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, object_store::Error>> + Send + 'static,
    ) -> Result<T, S3Error> {
        let pause = self.pause();
        if !pause.is_zero() {
            std::thread::sleep(pause.min(PAUSE_MAX));
        }
        let (tell, told) = mpsc::sync_channel(1);
        let deadline = self.deadline;
        self.handle.spawn(async move {
            let _ = tell.send(tokio::time::timeout(deadline, work).await);
        });
        let silent = S3Error::Silent { waited_ms: deadline.as_millis() };
        let result = match told.recv_timeout(deadline + GRACE) {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(e))) => Err(S3Error::below(&e)),
            Ok(Err(_)) | Err(_) => Err(silent),
        };
        self.learn(&result);
        result
    }

    pub(super) fn put(&self, key: String, data: Bytes) -> Result<(), S3Error> {
        let store = self.store.clone();
        self.call(async move {
            store.put(&Key::from(key), PutPayload::from_bytes(data)).await.map(|_| ())
        })
    }

    /// For what is written once: it may be sent twice, and land late a second time.
    pub(super) fn put_once(&self, key: String, data: Bytes) -> Result<(), S3Error> {
        let store = self.store.clone();
        self.call(async move {
            let key = Key::from(key);
            let put = || store.put(&key, PutPayload::from_bytes(data.clone()));
            patiently(put).await.map(|_| ())
        })
    }

    /// `None`: it is not there.
    pub(super) fn get(&self, key: String) -> Result<Option<Bytes>, S3Error> {
        let (store, attempts) = (self.store.clone(), self.attempts);
        self.call(async move { get(&store, key, attempts).await })
    }

    /// All of them at the same time.
    pub(super) fn get_all(&self, keys: Vec<String>) -> Result<Vec<Option<Bytes>>, S3Error> {
        let (store, attempts) = (self.store.clone(), self.attempts);
        self.call(async move {
            let gets = keys.into_iter().map(|key| get(&store, key, attempts));
            futures_util::future::try_join_all(gets).await
        })
    }

    /// At most `most` keys below a prefix, in order.
    pub(super) fn list(&self, prefix: &str, most: usize) -> Result<Vec<String>, S3Error> {
        let store = self.store.clone();
        let prefix = Key::from(prefix);
        self.call(async move { list(&store, prefix, most).await })
    }

    /// Deletes what is there of these; at most 1000.
    pub(super) fn delete(self: &Arc<Self>, keys: Vec<String>) -> Result<(), S3Error> {
        let link = self.clone();
        self.call(async move { link.deletes(keys).await })
    }

    pub(super) async fn deletes(&self, keys: Vec<String>) -> Result<(), object_store::Error> {
        if self.knows_batches.load(Ordering::Relaxed) {
            match delete(&self.store, keys.clone()).await {
                Err(e) if matches!(S3Error::below(&e), S3Error::Status { .. }) => {
                    // No batch works here, or this one does not: one by one tells.
                    self.knows_batches.store(false, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        delete(&self.one_by_one, keys).await
    }
}

/// The first answer to a request that is sent again when none comes for very long: a store may lose
/// one, and everything behind it would wait for its deadline.
async fn patiently<T, F: Future<Output = Result<T, object_store::Error>>>(
    ask: impl Fn() -> F,
) -> Result<T, object_store::Error> {
    use futures_util::future::{Either, select};
    let first = std::pin::pin!(ask());
    let first = match select(first, std::pin::pin!(tokio::time::sleep(ASK_AGAIN_AFTER))).await {
        Either::Left((answer, _)) => return answer,
        Either::Right(((), first)) => first,
    };
    match select(first, std::pin::pin!(ask())).await {
        Either::Left((Ok(done), _)) | Either::Right((Ok(done), _)) => Ok(done),
        Either::Left((Err(_), other)) | Either::Right((Err(_), other)) => other.await,
    }
}

/// What is there.
async fn get(
    store: &AmazonS3,
    key: String,
    attempts: u32,
) -> Result<Option<Bytes>, object_store::Error> {
    let key = Key::from(key);
    let ask = || async {
        match store.get(&key).await {
            Ok(found) => found.bytes().await.map(Some),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    };
    let mut pause = PAUSE_MIN;
    for _ in 1..attempts {
        match patiently(ask).await {
            Err(e) if S3Error::below(&e).is_trouble() => tokio::time::sleep(pause).await,
            answer => return answer,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    patiently(ask).await
}

pub(super) async fn list(
    store: &AmazonS3,
    prefix: Key,
    most: usize,
) -> Result<Vec<String>, object_store::Error> {
    use futures_util::{StreamExt, TryStreamExt};
    let prefix = (!prefix.as_ref().is_empty()).then_some(prefix);
    let found = store.list(prefix.as_ref()).take(most);
    found.map_ok(|o| o.location.to_string()).try_collect().await
}

async fn delete(store: &AmazonS3, keys: Vec<String>) -> Result<(), object_store::Error> {
    use futures_util::{StreamExt, TryStreamExt, stream};
    let keys = stream::iter(keys.into_iter().map(|k| Ok(Key::from(k)))).boxed();
    let deleted = store.delete_stream(keys).filter(|r| {
        // What is gone already is no failure.
        std::future::ready(!matches!(r, Err(object_store::Error::NotFound { .. })))
    });
    deleted.try_for_each(|_| std::future::ready(Ok(()))).await
}
