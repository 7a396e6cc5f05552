//! `[backup_store]`: where this daemon puts the backups of its peers.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use super::{BackupStoreConfig, file::Section, report::Report};
use crate::backup::talk::SERVICE;

/// How long versions may be kept by age.
const KEEP_WITHIN: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(100 * 366 * 86_400);

pub(super) fn backup_store(
    mut section: Section<'_, '_>,
    base: &Path,
    report: &mut Report,
) -> Option<BackupStoreConfig> {
    let path = section.required_text("path", "\"/var/lib/sidepath/backups\"", report);
    let service = section.text("service", report);
    let keep = section.number("keep", report);
    let keep_within = section.duration("keep_within", KEEP_WITHIN, report);
    section.finish(report);
    let keep = keep.and_then(|word| {
        let count = u32::try_from(word.value).ok().filter(|n| *n > 0);
        if count.is_none() {
            report.error(word.span, "`keep` is how many versions of each name stay: at least 1");
        }
        count
    });
    let service = match service {
        None => SERVICE.to_owned(),
        Some(word)
            if (1..=100).contains(&word.value.len()) && !word.value.starts_with("sidepath.") =>
        {
            word.value
        }
        Some(word) => {
            report.error(
                word.span,
                "a service has a name of 1 to 100 bytes that does not begin with `sidepath.`",
            );
            return None;
        }
    };
    let path = path?;
    if path.value.is_empty() {
        report.error(path.span, "an empty path");
        return None;
    }
    let keep_within = keep_within.map(|word| word.value);
    Some(BackupStoreConfig { path: base.join(path.value), service, keep, keep_within })
}
