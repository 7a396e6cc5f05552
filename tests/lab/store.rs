//! An object store: a real server on the loopback interface of whoever runs the lab, and on that of
//! each node a door to it, at the same port. So one URL is right for all, what is cut in the lab is
//! the network between nodes and not their way to the storage, and the door can be slow, refuse,
//! throttle and hang.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::s3::door::{Door, Rules};
use super::s3::{Kind, Store};

pub(crate) struct ObjectStore {
    store: std::sync::Mutex<Store>,
    url: String,
    rules: Arc<Rules>,
    _doors: Vec<Door>,
}

impl ObjectStore {
    /// Each request of a node takes so long at least, beside what the server takes.
    pub(crate) fn start(dir: &Path, kind: Kind, delay_ms: u64, namespaces: &[String]) -> Self {
        let store = Store::start(kind, dir).expect("the story names the server's program");
        let rules = Arc::new(Rules::default());
        rules.delay_ms.store(delay_ms, Ordering::Relaxed);
        let door = |ns: &String| {
            let listener = listen_in(ns, store.port);
            Door::listening(listener, store.port, None, rules.clone())
        };
        let doors = namespaces.iter().map(door).collect();
        let url = store.url("lab");
        Self { store: store.into(), url, rules, _doors: doors }
    }

    /// What nodes are configured with.
    pub(crate) fn url(&self) -> PathBuf {
        PathBuf::from(&self.url)
    }

    /// So many of a hundred requests are answered 503.
    pub(crate) fn throttle(&self, percent: u64) {
        self.rules.throttled_percent.store(percent, Ordering::Relaxed);
    }

    pub(crate) fn delay(&self, ms: u64) {
        self.rules.delay_ms.store(ms, Ordering::Relaxed);
    }

    /// So many of a hundred requests are done, and never answered.
    pub(crate) fn drop_answers(&self, percent: u64) {
        self.rules.dropped_percent.store(percent, Ordering::Relaxed);
    }

    /// It takes requests and says nothing.
    pub(crate) fn hang(&self) {
        set(&self.rules.held, true);
    }

    pub(crate) fn go_on(&self) {
        set(&self.rules.held, false);
    }

    pub(crate) fn kill(&self) {
        self.store().kill();
    }

    pub(crate) fn restart(&self) {
        self.store().run();
    }

    pub(crate) fn requests(&self) -> u64 {
        self.rules.requests.load(Ordering::Relaxed)
    }

    fn store(&self) -> std::sync::MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        self.go_on();
    }
}

fn set(flag: &AtomicBool, value: bool) {
    flag.store(value, Ordering::Relaxed);
}

/// A listener in a network namespace stays there, whoever accepts from it.
fn listen_in(namespace: &str, port: u16) -> TcpListener {
    let path = format!("/run/netns/{namespace}");
    let bind = move || {
        let there = File::open(&path)?;
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&there),
            Some(LinkNameSpaceType::Network),
        )?;
        TcpListener::bind(("127.0.0.1", port))
    };
    let done: std::io::Result<TcpListener> =
        std::thread::spawn(bind).join().expect("it does not panic");
    done.unwrap_or_else(|error| panic!("a door in {namespace}: {error}"))
}
