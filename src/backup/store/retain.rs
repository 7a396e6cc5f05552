//! A version becomes whole, and which ones go then.

use std::{
    io::{BufWriter, Write},
    time::Duration,
};

use super::{
    super::talk::Version,
    Keep, Store,
    catalogue::Catalogue,
    error::StoreError,
    folder::{Folder, remove, sync_folder, write_whole},
};

impl Store {
    /// Writes the catalogue of a version whose blocks are all on disk: with it the version is there.
    /// Then old ones go; should that fail, it is done after the next.
    pub(super) fn complete(
        &self,
        folder: &Folder,
        mut catalogue: Catalogue,
    ) -> Result<Version, StoreError> {
        let number = catalogue.version.number;
        let mut digest = [0; 32];
        write_whole(&folder.version(number), |file| {
            let mut out = BufWriter::with_capacity(1 << 16, file);
            digest = catalogue.write_to(&mut out)?;
            out.flush()
        })?;
        catalogue.version.digest = blake3::Hash::from(digest).to_hex().to_string();
        let cleaned = remove(&folder.journal(number)).and_then(|()| self.retire(folder));
        if let Err(e) = cleaned {
            tracing::warn!("backup {:?}: old versions stay for now: {e}", folder.name);
        }
        Ok(catalogue.version)
    }

    /// Removes the versions that are not to be kept any more.
    fn retire(&self, folder: &Folder) -> Result<(), StoreError> {
        let Some(_alone) = folder.without_readers()? else {
            tracing::info!("backup {:?} is being read: old versions stay for now", folder.name);
            return Ok(());
        };
        // Those that cannot be read are not counted and stay.
        let heads = folder.list()?.versions.into_iter().filter_map(|n| folder.head(n).ok());
        let versions: Vec<_> = heads.map(|h| (h.version.number, h.version.ended_s)).collect();
        for number in expired(&versions, self.keep, super::now_s()) {
            remove(&folder.version(number))?;
        }
        sync_folder(&folder.path)?;
        folder.collect()
    }
}

/// Which versions (number and second of their end, the oldest first) are to go.
fn expired(versions: &[(u32, i64)], keep: Keep, now_s: i64) -> Vec<u32> {
    let goes = |newer: usize, ended_s: i64| {
        let by_count =
            keep.count.map(|count| newer >= usize::try_from(count).unwrap_or(usize::MAX));
        let age = u64::try_from(now_s.saturating_sub(ended_s)).unwrap_or(0);
        let by_age = keep.within.map(|within| Duration::from_secs(age) > within);
        newer > 0
            && by_count.or(by_age).is_some()
            && by_count.unwrap_or(true)
            && by_age.unwrap_or(true)
    };
    let newest_first = versions.iter().rev().enumerate();
    newest_first.filter(|(newer, (_, end))| goes(*newer, *end)).map(|(_, (n, _))| *n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_goes_when_it_is_beyond_all_that_is_set() {
        let day = 86_400;
        let versions: Vec<(u32, i64)> = (1..=5).map(|n| (n, i64::from(n) * day)).collect();
        let now = 5 * day;
        let expired = |count: Option<u32>, days: Option<u64>| {
            let within = days.map(|d| Duration::from_secs(d * 86_400));
            let mut gone = super::expired(&versions, Keep { count, within }, now);
            gone.sort_unstable();
            gone
        };
        assert_eq!(expired(None, None), [0; 0]);
        assert_eq!(expired(Some(2), None), [1, 2, 3]);
        assert_eq!(expired(Some(0), None), [1, 2, 3, 4]);
        assert_eq!(expired(Some(5), None), [0; 0]);
        // Exactly as old as may be: it stays.
        assert_eq!(expired(None, Some(2)), [1, 2]);
        assert_eq!(expired(None, Some(0)), [1, 2, 3, 4]);
        assert_eq!(expired(Some(2), Some(3)), [1]);
        assert_eq!(expired(Some(4), Some(1)), [1]);
        // A clock that went back makes nothing old.
        let within = Some(Duration::ZERO);
        assert_eq!(super::expired(&versions, Keep { count: None, within }, 0), [0; 0]);
    }
}
