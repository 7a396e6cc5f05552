//! How one host sees the disk: its cable, its adapter, the cache in between.

use volumes::IoFaultKind;

/// One host's view of the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Usual time of an operation, microseconds; up to twice as much, rarely ten times.
    pub latency: u64,
    /// Multiplies it.
    pub slow: u64,
    /// Multiplies it for reads alone: a reader that cannot keep up.
    pub slow_reads: u64,
    /// Nothing ends before this moment.
    pub stalled_until: u64,
    /// Chances in parts per million: a single operation sticks for seconds,
    pub stuck: u32,
    /// a read fails,
    pub read_error: u32,
    /// a write fails (and may have landed in part),
    pub write_error: u32,
    /// a write is visible in part before its end,
    pub torn: u32,
    /// a write is confirmed and never lands,
    pub lost: u32,
    /// a write is confirmed and lands elsewhere,
    pub misdirected: u32,
    /// a bit of what was just written rots,
    pub rot: u32,
    /// a read begins a spell of stale reads, of up to `stale_for` microseconds,
    pub stale: u32,
    /// a bit is turned in what is read.
    pub flip: u32,
    /// See `stale`.
    pub stale_for: u64,
    /// Writes are refused so.
    pub refuses: Option<IoFaultKind>,
    /// It is not there.
    pub gone: bool,
    /// It ends in the middle: what lies beyond cannot be read or written.
    pub shrunk: bool,
    /// Another volume answers in its place: same size, another name.
    pub wrong: bool,
}

impl View {
    /// A healthy one.
    #[must_use]
    pub const fn good(latency: u64) -> Self {
        Self {
            latency,
            slow: 1,
            slow_reads: 1,
            stalled_until: 0,
            stuck: 0,
            read_error: 0,
            write_error: 0,
            torn: 0,
            lost: 0,
            misdirected: 0,
            rot: 0,
            stale: 0,
            stale_for: 100_000,
            flip: 0,
            refuses: None,
            gone: false,
            shrunk: false,
            wrong: false,
        }
    }

    /// Within what storage may do without being called broken.
    #[must_use]
    pub const fn works(&self, now: u64) -> bool {
        self.stalled_until <= now
            && self.stuck == 0
            && self.read_error == 0
            && self.write_error == 0
            && self.lost + self.misdirected + self.rot == 0
            && self.refuses.is_none()
            && !self.gone
            && !self.shrunk
            && !self.wrong
            && (self.stale == 0 || self.stale_for <= 100_000)
            && self.latency * self.slow * self.slow_reads <= 5_000
    }
}

/// Only what is wrong with it.
impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("View");
        let multipliers = [("slow", self.slow), ("slow_reads", self.slow_reads)];
        for (name, value) in multipliers.into_iter().filter(|(_, v)| *v != 1) {
            out.field(name, &value);
        }
        let chances = [
            ("stuck", self.stuck),
            ("read_error", self.read_error),
            ("write_error", self.write_error),
            ("torn", self.torn),
            ("lost", self.lost),
            ("misdirected", self.misdirected),
            ("rot", self.rot),
            ("stale", self.stale),
            ("flip", self.flip),
        ];
        for (name, value) in chances.into_iter().filter(|(_, v)| *v != 0) {
            out.field(name, &value);
        }
        if self.stale != 0 {
            out.field("stale_for", &self.stale_for);
        }
        if let Some(kind) = self.refuses {
            out.field("refuses", &kind);
        }
        let flags = [("gone", self.gone), ("shrunk", self.shrunk), ("wrong", self.wrong)];
        for (name, _) in flags.into_iter().filter(|(_, v)| *v) {
            out.field(name, &true);
        }
        out.finish()
    }
}
