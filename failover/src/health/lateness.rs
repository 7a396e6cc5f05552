//! How late beats usually are: the p99.9 of about the last thousand, kept as two numbers.
//!
//! Of a thousand samples the p99.9 is the greatest. Two halves of five hundred are kept, the older
//! one thrown away when the younger is full, so that one bad moment is forgotten in the end.

use std::time::Duration;

const HALF: u32 = 500;

/// The greatest lateness of the last 500 to 1000 beats.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    older: Duration,
    younger: Duration,
    count: u32,
}

impl Lateness {
    /// Learns from a beat that came in good times.
    pub(super) fn learn(&mut self, late: Duration) {
        self.younger = self.younger.max(late);
        self.count += 1;
        if self.count == HALF {
            self.older = std::mem::take(&mut self.younger);
            self.count = 0;
        }
    }

    /// The p99.9.
    pub(super) fn usual(&self) -> Duration {
        self.older.max(self.younger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_a_thousand_and_forgets() {
        let mut lateness = Lateness::default();
        lateness.learn(Duration::from_millis(30));
        for _ in 0..998 {
            lateness.learn(Duration::from_millis(1));
        }
        assert_eq!(lateness.usual(), Duration::from_millis(30));
        lateness.learn(Duration::from_millis(1));
        assert_eq!(lateness.usual(), Duration::from_millis(1));
    }
}
