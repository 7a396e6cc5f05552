//! A wrapper with a volatile write cache, and a plug that can be pulled.
//!
//! ```text
//!   write -> cache: sector -> versions, oldest first --flush, destage--> inner
//!                      `-- cut(seed): each sector keeps one of its versions, or what was below
//! ```
//!
//! A cut drops, reorders and tears at sector granularity: any subset of the sectors of any subset
//! of the unflushed writes may be found afterwards, an older version over a newer one included.
//! A seed draws one of several styles (everything lost, one write torn, whole writes in another
//! order, ...), because evenly drawn sectors alone would hardly ever leave a whole record. What was
//! flushed is never lost. The same seed over the same cache gives the same bytes.

use super::BlockDevice;
use crate::buffer::Pool;
use crate::event::{IoFault, IoFaultKind};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Cached sectors above which the cache writes some back by itself (1 MiB of 512).
const SECTORS_MAX: usize = 2048;

#[derive(Debug)]
struct Version {
    write: u64,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Cache {
    /// By sector number; oldest version first.
    sectors: BTreeMap<u64, Vec<Version>>,
    writes: u64,
    /// Operations until the power goes.
    left: Option<u64>,
    destage_percent: u64,
}

#[derive(Debug)]
pub struct PowerCutDevice<D> {
    inner: D,
    sector: usize,
    cache: Mutex<Cache>,
    pool: Pool,
}

/// A number for these three; evenly spread.
fn draw(seed: u64, a: u64, b: u64) -> u64 {
    let mut x =
        seed ^ a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd6e8_feb8_6659_fd93);
    for _ in 0..2 {
        x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
    x ^ (x >> 32)
}

/// Which version a sector keeps; 0: what was below, n: the n-th in the cache.
fn keeps(seed: u64, writes: u64, sector: u64, versions: &[Version]) -> usize {
    let n = versions.len();
    let at = |k: u64| usize::try_from(k).unwrap_or(0);
    let here = draw(seed, 1, sector);
    match draw(seed, 0, 0) % 6 {
        // Any version of any sector.
        0 => at(here % (n as u64 + 1)),
        // Nothing survives, or nearly nothing.
        1 => at(u64::from(here.is_multiple_of(64)) * n as u64),
        // Nearly everything survives.
        2 => n - usize::from(here.is_multiple_of(32)),
        // Whole writes survive or not, the survivors in another order.
        3 => {
            let kept = (1..=n).filter(|&k| draw(seed, 2, versions[k - 1].write) & 1 == 1);
            kept.max_by_key(|&k| draw(seed, 3, versions[k - 1].write)).unwrap_or(0)
        }
        // All up to a moment survive; the write of that moment is torn.
        style => {
            let last = writes - draw(seed, 4, 0) % writes.clamp(1, if style == 4 { 4 } else { 64 });
            let torn = |v: &Version| v.write == last && here & 1 == 1;
            let kept = versions.iter().rposition(|v| v.write <= last && !torn(v));
            kept.map_or(0, |k| k + 1)
        }
    }
}

impl<D: BlockDevice> PowerCutDevice<D> {
    pub fn new(inner: D) -> Self {
        let sector = inner.logical_block() as usize;
        Self { inner, sector, cache: Mutex::default(), pool: Pool::new() }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What survives whatever happens.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// After this share of the writes the cache writes part of itself back, as real ones do.
    pub fn destage(&self, percent: u64) {
        self.cache().destage_percent = percent;
    }

    /// The power goes after `operations` more calls: from then on each call fails as gone.
    pub fn cut_after(&self, operations: u64) {
        self.cache().left = Some(operations);
    }

    /// What a cut now would add to the inner medium: offset and bytes by sector.
    pub fn survivors(&self, seed: u64) -> Vec<(u64, Vec<u8>)> {
        let cache = self.cache();
        let kept = cache.sectors.iter().filter_map(|(&sector, versions)| {
            let keep = keeps(seed, cache.writes, sector, versions).checked_sub(1)?;
            Some((sector * self.sector as u64, versions.get(keep)?.bytes.clone()))
        });
        kept.collect()
    }

    /// Pulls the plug and puts it back in.
    pub fn cut(&self, seed: u64) -> Result<(), IoFault> {
        for (offset, bytes) in self.survivors(seed) {
            self.write_inner(offset, &bytes)?;
        }
        let mut cache = self.cache();
        cache.sectors.clear();
        cache.left = None;
        Ok(())
    }

    fn begin(&self) -> Result<MutexGuard<'_, Cache>, IoFault> {
        let mut cache = self.cache();
        match &mut cache.left {
            Some(0) => return Err(IoFault::new(IoFaultKind::Gone, "the power is off")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(cache)
    }

    fn write_inner(&self, offset: u64, bytes: &[u8]) -> Result<(), IoFault> {
        // Direct I/O wants aligned memory.
        let mut buf = self.pool.take_len(bytes.len());
        buf.as_mut().copy_from_slice(bytes);
        self.inner.write_at(offset, buf.as_ref())
    }

    /// Writes the newest version of up to `sectors` sectors from `first` on back.
    fn write_back(&self, cache: &mut Cache, first: u64, sectors: usize) -> Result<(), IoFault> {
        let some: Vec<u64> = cache.sectors.range(first..).take(sectors).map(|(&s, _)| s).collect();
        for sector in some {
            if let Some(newest) = cache.sectors.remove(&sector).and_then(|mut v| v.pop()) {
                self.write_inner(sector * self.sector as u64, &newest.bytes)?;
            }
        }
        Ok(())
    }
}

impl<D: BlockDevice> BlockDevice for PowerCutDevice<D> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn logical_block(&self) -> u32 {
        self.inner.logical_block()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault> {
        let cache = self.begin()?;
        self.inner.read_at(offset, buf)?;
        let first = offset / self.sector as u64;
        let last = (offset + buf.len() as u64).div_ceil(self.sector as u64);
        for (&sector, versions) in cache.sectors.range(first..last) {
            let at = usize::try_from((sector - first) * self.sector as u64).unwrap_or(usize::MAX);
            if let (Some(to), Some(v)) = (buf.get_mut(at..at + self.sector), versions.last()) {
                to.copy_from_slice(&v.bytes);
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault> {
        let mut cache = self.begin()?;
        if offset + data.len() as u64 > self.size() {
            // Whatever the medium below says to this.
            return self.inner.write_at(offset, data);
        }
        cache.writes += 1;
        let write = cache.writes;
        for (sector, bytes) in (offset / self.sector as u64..).zip(data.chunks(self.sector)) {
            let version = Version { write, bytes: bytes.to_vec() };
            cache.sectors.entry(sector).or_default().push(version);
        }
        let sectors = self.size() / self.sector as u64;
        if draw(write, 5, 0) % 100 < cache.destage_percent {
            self.write_back(&mut cache, draw(write, 6, 0) % sectors, 64)?;
        }
        while cache.sectors.len() > SECTORS_MAX {
            self.write_back(&mut cache, 0, 256)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), IoFault> {
        let mut cache = self.begin()?;
        self.write_back(&mut cache, 0, usize::MAX)?;
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryDevice;
    use super::*;

    fn sector(d: &impl BlockDevice, at: u64) -> u8 {
        let mut buf = [0; 512];
        d.read_at(at * 512, &mut buf).unwrap();
        assert!(buf.iter().all(|&b| b == buf[0]), "a sector is never torn");
        buf[0]
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_ends_in_every_way() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..2000 {
            let d = PowerCutDevice::new(MemoryDevice::new(8192));
            d.write_at(0, &[1; 1024]).unwrap();
            d.flush().unwrap();
            d.write_at(0, &[2; 1024]).unwrap();
            d.write_at(512, &[3; 1024]).unwrap();
            assert_eq!([0, 1, 2].map(|s| sector(&d, s)), [2, 3, 3], "its own writes are read");
            assert_eq!(sector(d.inner(), 0), 1, "nothing has reached the medium");
            d.cut(seed).unwrap();
            let after = [0, 1, 2].map(|s| sector(&d, s));
            assert_eq!(after, [0, 1, 2].map(|s| sector(d.inner(), s)));
            seen.insert(after);
        }
        let all: usize = 2 * 3 * 2;
        assert_eq!(seen.len(), all, "{seen:?}");
    }

    #[test]
    fn after_the_power_went_nothing_answers_until_it_is_back() {
        let d = PowerCutDevice::new(MemoryDevice::new(8192));
        d.cut_after(2);
        d.write_at(0, &[2; 512]).unwrap();
        d.flush().unwrap();
        assert_eq!(d.flush().unwrap_err().kind, IoFaultKind::Gone);
        assert_eq!(d.write_at(0, &[3; 512]).unwrap_err().kind, IoFaultKind::Gone);
        d.cut(1).unwrap();
        assert_eq!(sector(&d, 0), 2);
    }

    #[test]
    fn a_cache_that_is_full_or_destages_writes_back_the_newest() {
        let d = PowerCutDevice::new(MemoryDevice::new(2 << 20));
        for fill in [1, 2] {
            d.write_at(0, &vec![fill; 2 << 20]).unwrap();
        }
        assert!(d.cache().sectors.len() <= SECTORS_MAX);
        assert_eq!(sector(d.inner(), 0), 2);
        let d = PowerCutDevice::new(MemoryDevice::new(64 << 10));
        d.destage(100);
        d.write_at(0, &vec![4; 64 << 10]).unwrap();
        let below = (0..128).filter(|&s| sector(d.inner(), s) == 4).count();
        assert!((1..=64).contains(&below), "{below}");
    }
}
