//! Moments as status writes them (RFC 3339, UTC), read back to say how long ago they were.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads `2026-01-01T00:00:00.123Z`.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':');
    let hours: u64 = time.next()?.parse().ok()?;
    let minutes: u64 = time.next()?.parse().ok()?;
    let (seconds, fraction) = {
        let rest = time.next()?;
        rest.split_once('.').unwrap_or((rest, ""))
    };
    let seconds: u64 = seconds.parse().ok()?;
    let millis: u64 = match fraction.len() {
        0 => 0,
        _ => format!("{fraction:0<3}").get(..3)?.parse().ok()?,
    };
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    // Days since 1970-03-01 of a year that begins in March, so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    let seconds = days * 86_400 + hours * 3600 + minutes * 60 + seconds;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + Duration::from_millis(millis))
}

/// A moment as status writes it, from seconds since 1970.
pub(super) fn of_seconds(s: i64) -> String {
    jiff::Timestamp::from_second(s).map_or_else(|_| "?".to_owned(), |at| at.to_string())
}

/// Now, as status writes it.
pub(super) fn now() -> String {
    let s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    of_seconds(i64::try_from(s).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_written() {
        let at = |text: &str| parse(text).unwrap().duration_since(UNIX_EPOCH).unwrap().as_millis();
        assert_eq!(at("1970-01-01T00:00:00Z"), 0);
        assert_eq!(at("2000-02-29T12:00:00.5Z"), 951_825_600_500);
        assert_eq!(at("2026-01-01T00:00:00.123Z"), 1_767_225_600_123);
        assert_eq!(of_seconds(951_825_600), "2000-02-29T12:00:00Z");
        assert_eq!(of_seconds(i64::MAX), "?");
        assert!(parse("yesterday").is_none());
        assert!(parse("2026-13-01T00:00:00Z").is_none());
    }
}
