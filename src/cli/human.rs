//! Numbers as people read them, and durations as people write them.

use std::time::Duration;

/// Longest duration taken: ten years, in seconds.
const MAX_DURATION_S: u64 = 10 * 365 * 86_400;

/// `42 s`, `3 min 20 s`, `5 h 1 min`, `12 d 4 h`.
pub(super) fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    for (index, (size, unit)) in UNITS.iter().enumerate() {
        if seconds < *size {
            continue;
        }
        let rest = seconds % size;
        return match UNITS.get(index + 1) {
            Some((smaller, name)) if rest >= *smaller => format!("{} {unit} {} {name}", seconds / size, rest / smaller),
            _ => format!("{} {unit}", seconds / size),
        };
    }
    "0 s".to_owned()
}

/// The same for a measured span; under ten seconds with a tenth.
pub(super) fn span(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".to_owned();
    }
    if seconds < 10.0 { format!("{seconds:.1} s") } else { duration(seconds as u64) }
}

/// `-` when there is none.
pub(super) fn optional<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

/// `512 B`, `1.5 KiB`, `3.2 GiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for larger in UNITS {
        // Not 1024: what would be shown as 1024.0 belongs to the next unit.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// A round trip: `0.42 ms`, `12.3 ms`, `340 ms`, `2.1 s`.
pub(super) fn round_trip(milliseconds: f64) -> String {
    match milliseconds {
        ms if !ms.is_finite() || ms < 0.0 => "-".to_owned(),
        ms if ms < 9.995 => format!("{ms:.2} ms"),
        ms if ms < 99.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// Reads `45s`, `30m`, `12h`, `7d`, `2w` and sums like `1d12h`; seconds.
///
/// # Errors
/// What is wrong with the text, for a usage error.
pub(super) fn parse_duration(text: &str) -> Result<u64, String> {
    const FORM: &str = "durations look like 45s, 30m, 12h, 7d, 2w or 1d12h";
    let mut total: u64 = 0;
    let mut number = String::new();
    for c in text.trim().chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 7 * 86_400,
            _ => return Err(FORM.to_owned()),
        };
        let count: u64 = number.parse().map_err(|_| FORM.to_owned())?;
        number.clear();
        total = count
            .checked_mul(unit)
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= MAX_DURATION_S)
            .ok_or("at most ten years are possible")?;
    }
    match (number.is_empty(), total) {
        (false, _) => Err(format!("a unit is missing; {FORM}")),
        (true, 0) => Err(format!("it must be longer than nothing; {FORM}")),
        (true, total) => Ok(total),
    }
}

/// Reads seconds, with or without a fraction, from 0.01 to 3600.
///
/// # Errors
/// What is wrong with the text, for a usage error.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("seconds are a number from 0.01 to 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        let shown: Vec<_> = [0, 1, 59, 60, 61, 3599, 3600, 3660, 86_400, 90_000, 1_000_000].map(duration).into();
        assert_eq!(
            shown,
            [
                "0 s",
                "1 s",
                "59 s",
                "1 min",
                "1 min 1 s",
                "59 min 59 s",
                "1 h",
                "1 h 1 min",
                "1 d",
                "1 d 1 h",
                "11 d 13 h"
            ]
        );
        assert_eq!(span(0.04), "0.0 s");
        assert_eq!(span(9.94), "9.9 s");
        assert_eq!(span(75.9), "1 min 15 s");
        assert_eq!(span(f64::NAN), "-");
    }

    #[test]
    fn bytes_carry_into_the_next_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn round_trips_keep_three_digits() {
        let shown: Vec<_> = [0.0, 0.42, 9.99, 9.999, 12.34, 99.99, 340.4, 999.9, 2100.0].map(round_trip).into();
        assert_eq!(
            shown,
            ["0.00 ms", "0.42 ms", "9.99 ms", "10.0 ms", "12.3 ms", "100 ms", "340 ms", "1.0 s", "2.1 s"]
        );
        assert_eq!(round_trip(-1.0), "-");
    }

    #[test]
    fn durations_are_read_with_units_only() {
        assert_eq!(parse_duration("30m"), Ok(1800));
        assert_eq!(parse_duration("12h"), Ok(43_200));
        assert_eq!(parse_duration("7d"), Ok(604_800));
        assert_eq!(parse_duration("1d12h"), Ok(129_600));
        assert!(parse_duration("30").unwrap_err().starts_with("a unit is missing"));
        for bad in ["", "m", "0s", "1.5h", "-1h", "1 h", "5y", "99999999999999999999s", "600w"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(parse_seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["0", "-1", "3601", "nan", "inf", "1s", ""] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
