//! `[[replicate]]`: which volume this daemon copies where, and what contradicts that.
//!
//! Awkward case: two paths may be two names of one medium ([`Location::is_same`]). What only the
//! media can tell (a replica as the source, foreign data at the destination) is refused by the copy
//! itself.

use std::{
    ops::{Range, RangeInclusive},
    time::Duration,
};

use volumes::media::Location;

use super::{
    ReplicaMode, ReplicateConfig, StorageConfig,
    file::{Section, Word},
    places::Places,
    report::{Report, closest},
};

const MODES: [&str; 3] = ["continuous", "interval", "on-command"];
/// From one round's beginning to the next.
pub(crate) const COPY_INTERVAL: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(86_400);
/// Bytes per second. One block a second: slower is no copy but a backlog.
pub(crate) const COPY_LIMIT_MIN: u64 = 4096;

/// What could be understood of one entry.
#[derive(Debug)]
pub(super) struct ReplicateWords {
    from: Option<Word<Location>>,
    to: Option<Word<Location>>,
    mode: Option<ReplicaMode>,
    limit: Option<u64>,
}

impl ReplicateWords {
    pub(super) fn config(self) -> Option<ReplicateConfig> {
        let (from, to) = (self.from?.value, self.to?.value);
        Some(ReplicateConfig { from, to, mode: self.mode?, limit: self.limit })
    }
}

pub(super) fn replicate(
    mut section: Section<'_, '_>,
    places: &Places<'_>,
    report: &mut Report,
) -> ReplicateWords {
    let from = section.required_text("from", "\"/dev/disk/by-id/our-lun\"", report);
    let to = section.required_text("to", "\"nbd://192.0.2.9/replica\"", report);
    let mode = section.text("mode", report);
    let interval = section.duration("interval", COPY_INTERVAL, report);
    let limit = section.size("limit", COPY_LIMIT_MIN..=u64::MAX, report);
    let [from, to] = [from, to].map(|word| {
        let word = word?;
        if word.value.is_empty() {
            report.error(word.span, "an empty path");
            return None;
        }
        places.location(&word, report).map(|at| word.with(at))
    });
    let mode = mode_of(mode.as_ref(), interval, &section, report);
    section.finish(report);
    ReplicateWords { from, to, mode, limit: limit.map(|word| word.value) }
}

/// `interval` is needed for its mode, and for that alone.
fn mode_of(
    mode: Option<&Word<String>>,
    interval: Option<Word<Duration>>,
    section: &Section<'_, '_>,
    report: &mut Report,
) -> Option<ReplicaMode> {
    let word = mode.map_or("continuous", |word| word.value.as_str());
    let parsed = match word {
        "interval" => {
            if !section.has("interval") {
                section.missing("interval", "\"30s\"", report);
            }
            return interval.map(|word| ReplicaMode::Interval(word.value));
        }
        "continuous" => ReplicaMode::Continuous,
        "on-command" => ReplicaMode::OnCommand,
        other => {
            let hint = match closest(other, MODES) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => "modes are \"continuous\", \"interval\" and \"on-command\"".into(),
            };
            let span = mode.map_or_else(|| section.span.clone(), |word| word.span.clone());
            report.error_hint(span, format!("`mode` is no `{other}`"), hint);
            return None;
        }
    };
    if section.has("interval") {
        report.error_hint(
            section.key_span("interval"),
            format!("`interval` in mode \"{word}\""),
            "write mode = \"interval\", or remove the line",
        );
    }
    Some(parsed)
}

pub(super) fn contradictions(
    entries: &[ReplicateWords],
    storage: Option<&StorageConfig>,
    report: &mut Report,
) {
    let line = |span: &Range<usize>, report: &Report| report.line_of(span);
    for (index, entry) in entries.iter().enumerate() {
        let Some(to) = &entry.to else { continue };
        if let Some(from) = entry.from.as_ref().filter(|from| from.value.is_same(&to.value)) {
            let at = line(&from.span, report);
            report.error_hint(
                to.span.clone(),
                "`to` is the same place as `from`",
                format!("a replica needs a medium of its own; `from` is on line {at}"),
            );
            continue;
        }
        if storage.is_some_and(|storage| storage.send.is_same(&to.value)) {
            report.error_hint(
                to.span.clone(),
                "`to` is the volume we send on: it would be overwritten",
                "copy from our send volume, to the one that peers read (their `receive`)",
            );
            continue;
        }
        let mut before = entries[..index].iter().filter_map(|e| e.to.as_ref());
        if let Some(first) = before.find(|first| first.value.is_same(&to.value)) {
            let at = line(&first.span, report);
            report.error_hint(
                to.span.clone(),
                "two [[replicate]] write to this place",
                format!("a replica has one original; the first is on line {at}"),
            );
            continue;
        }
        let mut sources = entries.iter().filter_map(|e| e.from.as_ref());
        if let Some(other) = sources.find(|from| from.value.is_same(&to.value)) {
            let at = line(&other.span, report);
            report.error_hint(
                to.span.clone(),
                format!("`to` is copied on from line {at}: a replica of a replica"),
                "copy from the original to both",
            );
        }
    }
}
