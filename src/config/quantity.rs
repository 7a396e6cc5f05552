//! Durations and sizes as people write them: `500us`, `2s`, `64KiB`.
//!
//! A bare `500` is the classic way to wait 500 seconds instead of 500 milliseconds, so a duration
//! without a unit is refused; only `0` needs none. Sizes are powers of 1024 and say so: `KB` is
//! refused because half of its readers mean 1000.

use std::time::Duration;

/// Microseconds per unit, longest name first so that `ms` is not read as `m`.
const DURATIONS: [(&str, u64); 9] = [
    ("us", 1),
    ("µs", 1),
    ("ms", 1_000),
    ("min", 60_000_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
    ("ns", 0),
];

/// Bytes per unit.
const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
];

/// Reads `500us`, `10ms`, `1.5s`, `2m`, `1h`.
///
/// # Errors
/// Says what is wrong and what a right one looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        if number.whole == 0 && number.fraction.is_empty() {
            return Ok(Duration::ZERO);
        }
        return Err(format!(
            "a duration needs a unit: us, ms, s, m or h, as in `{text}ms` or `{text}s`"
        ));
    }
    let Some(&(_, scale)) = DURATIONS.iter().find(|(name, scale)| *name == unit && *scale > 0)
    else {
        return Err(format!("unknown unit `{unit}`: durations are in us, ms, s, m or h"));
    };
    number
        .times(scale)
        .map(Duration::from_micros)
        .ok_or_else(|| format!("`{text}` is too long or finer than a microsecond"))
}

/// Reads `4096`, `64KiB`, `16MiB`, `1.5GiB`.
///
/// # Errors
/// Says what is wrong and what a right one looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let scale = if unit.is_empty() {
        1
    } else if let Some(&(_, scale)) = SIZES.iter().find(|(name, _)| *name == unit) {
        scale
    } else {
        let right = match unit.to_ascii_lowercase().as_str() {
            "kb" | "kib" | "k" => " (did you mean `KiB`, 1024 bytes?)",
            "mb" | "mib" | "m" => " (did you mean `MiB`, 1024 KiB?)",
            "gb" | "gib" | "g" => " (did you mean `GiB`, 1024 MiB?)",
            "tb" | "tib" | "t" => " (did you mean `TiB`, 1024 GiB?)",
            _ => "",
        };
        return Err(format!("unknown unit `{unit}`: sizes are in B, KiB, MiB, GiB or TiB{right}"));
    };
    number.times(scale).ok_or_else(|| format!("`{text}` is not a whole number of bytes"))
}

/// Writes a duration the way it is read, with about three digits.
#[must_use]
pub fn show_duration(span: Duration) -> String {
    let us = span.as_micros();
    match us {
        0 => "0s".into(),
        1..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{}ms", digits(us, 1_000)),
        1_000_000..120_000_000 => format!("{}s", digits(us, 1_000_000)),
        120_000_000..7_200_000_000 => {
            format!("{}m {}s", us / 60_000_000, us % 60_000_000 / 1_000_000)
        }
        7_200_000_000..172_800_000_000 => {
            format!("{}h {}m", us / 3_600_000_000, us % 3_600_000_000 / 60_000_000)
        }
        _ => format!("{}d {}h", us / 86_400_000_000, us % 86_400_000_000 / 3_600_000_000),
    }
}

/// Writes a size the way it is read, with about three digits.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let bytes = u128::from(bytes);
    match bytes {
        0..0x400 => format!("{bytes}B"),
        0x400..0x10_0000 => format!("{}KiB", digits(bytes, 1 << 10)),
        0x10_0000..0x4000_0000 => format!("{}MiB", digits(bytes, 1 << 20)),
        0x4000_0000..0x100_0000_0000 => format!("{}GiB", digits(bytes, 1 << 30)),
        _ => format!("{}TiB", digits(bytes, 1 << 40)),
    }
}

/// `value / unit` with at most two digits behind the point and none that are zero.
fn digits(value: u128, unit: u128) -> String {
    let places = match value / unit {
        0..10 => 100,
        10..100 => 10,
        _ => 1,
    };
    let scaled = (value * places + unit / 2) / unit;
    let (whole, rest) = (scaled / places, scaled % places);
    if rest == 0 {
        return whole.to_string();
    }
    let width = if places == 100 { 2 } else { 1 };
    format!("{whole}.{rest:0width$}").trim_end_matches('0').to_string()
}

/// A decimal number, kept exact.
struct Number {
    whole: u64,
    fraction: String,
}

impl Number {
    /// The number times `scale`, if that is whole and fits.
    fn times(&self, scale: u64) -> Option<u64> {
        let mut result = u128::from(self.whole) * u128::from(scale);
        let places = u32::try_from(self.fraction.len()).ok().filter(|places| *places <= 18)?;
        if places > 0 {
            let part = self.fraction.parse::<u128>().ok()? * u128::from(scale);
            let unit = 10_u128.pow(places);
            if !part.is_multiple_of(unit) {
                return None;
            }
            result += part / unit;
        }
        u64::try_from(result).ok()
    }
}

/// Splits `1.5s` into the number and the unit.
fn split(text: &str) -> Result<(Number, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let bad = || format!("`{text}` does not start with a number");
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(bad());
    }
    let whole = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| format!("`{number}` is too large"))?
    };
    Ok((Number { whole, fraction: fraction.trim_end_matches('0').to_string() }, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        for (text, us) in [
            ("500us", 500),
            ("500µs", 500),
            ("10ms", 10_000),
            ("2s", 2_000_000),
            ("1.5s", 1_500_000),
            ("0.25ms", 250),
            ("2m", 120_000_000),
            ("1h", 3_600_000_000),
            ("0", 0),
            ("0s", 0),
            ("3 s", 3_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(us)), "{text}");
        }
    }

    #[test]
    fn a_bad_duration_says_what_a_good_one_is() {
        for (text, part) in [
            ("500", "needs a unit"),
            ("5 parsecs", "unknown unit `parsecs`"),
            ("100ns", "unknown unit `ns`"),
            ("", "does not start with a number"),
            ("-1s", "does not start with a number"),
            ("1..5s", "does not start with a number"),
            ("0.5us", "finer than a microsecond"),
            ("99999999999999999999s", "too large"),
            ("18446744073709551615h", "too long"),
        ] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_read_as_written() {
        for (text, bytes) in [
            ("4096", 4096),
            ("512B", 512),
            ("64KiB", 65_536),
            ("64K", 65_536),
            ("16MiB", 16 << 20),
            ("1.5GiB", 3 << 29),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        let error = parse_size("64KB").unwrap_err();
        assert!(error.contains("did you mean `KiB`"), "{error}");
        assert!(parse_size("0.3B").is_err());
        assert!(parse_size("x").is_err());
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for us in [1, 999, 1_000, 1_250, 15_300, 999_000, 1_000_000, 61_500_000] {
            let span = Duration::from_micros(us);
            assert_eq!(parse_duration(&show_duration(span)), Ok(span));
        }
        for bytes in [1, 1023, 1024, 1536, 65_536, 1 << 20, 3 << 29, 1 << 40] {
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }
    }
}
