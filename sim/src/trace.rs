//! What happened, for people (the last few things before a failure) and for the digest.
//!
//! Two short memories: one of everything, one of what is rare (faults, routes, verdicts), which
//! datagrams would wash away in a millisecond. The digest folds in everything that was ever noted;
//! two runs of one seed must agree in it.

use std::collections::VecDeque;

/// Things remembered of each sort.
const KEEP: usize = 40;

#[derive(Debug, Clone)]
struct Entry {
    order: u64,
    at: u64,
    host: u8,
    what: &'static str,
    numbers: (u64, u64),
    text: String,
}

/// The memory of a run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    all: VecDeque<Entry>,
    rare: VecDeque<Entry>,
    order: u64,
    digest: u64,
    aloud: bool,
}

impl Trace {
    /// `aloud`: everything is printed as it happens.
    #[must_use]
    pub(crate) fn new(aloud: bool) -> Self {
        Self { aloud, ..Self::default() }
    }

    /// Something frequent.
    pub(crate) fn note(&mut self, at: u64, host: u8, what: &'static str, numbers: (u64, u64)) {
        self.push(at, host, what, numbers, String::new());
    }

    /// Something rare.
    pub(crate) fn tell(&mut self, at: u64, host: u8, what: &'static str, text: String) {
        for byte in text.bytes() {
            self.fold(u64::from(byte));
        }
        self.push(at, host, what, (0, 0), text);
    }

    fn push(&mut self, at: u64, host: u8, what: &'static str, numbers: (u64, u64), text: String) {
        self.fold(at);
        self.fold(u64::from(host) << 32 | what.len() as u64);
        self.fold(numbers.0);
        self.fold(numbers.1);
        self.order += 1;
        let rare = !text.is_empty();
        let entry = Entry { order: self.order, at, host, what, numbers, text };
        if self.aloud {
            println!("{}", line(&entry));
        }
        let ring = if rare { &mut self.rare } else { &mut self.all };
        if ring.len() == KEEP {
            ring.pop_front();
        }
        ring.push_back(entry);
    }

    fn fold(&mut self, number: u64) {
        self.digest = (self.digest ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    /// The sum of everything so far.
    #[must_use]
    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }

    /// The last things that happened, in order.
    #[must_use]
    pub(crate) fn last(&self) -> Vec<String> {
        let mut entries: Vec<_> = self.all.iter().chain(&self.rare).collect();
        entries.sort_by_key(|e| e.order);
        entries.into_iter().map(line).collect()
    }
}

fn line(e: &Entry) -> String {
    let at = format!("{:>4}.{:06}", e.at / 1_000_000, e.at % 1_000_000);
    let host = if e.host == 0 { " ".to_owned() } else { e.host.to_string() };
    if e.text.is_empty() {
        format!("{at} {host} {} {} {}", e.what, e.numbers.0, e.numbers.1)
    } else {
        format!("{at} {host} {} {}", e.what, e.text)
    }
}
