//! The API's two forms of time. Both are RFC 3339 in UTC: with seconds (`Time`), with microseconds (`MicroTime`).

use ::time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Seconds since 1970 and the nanoseconds after them.
pub fn parse(text: &str) -> Option<(i64, u32)> {
    // As it stands, in its own offset: in UTC it may lie beyond the years that there are.
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some((moment.unix_timestamp(), moment.nanosecond()))
}

/// As `2026-01-02T03:04:05Z`. Years outside 0 to 9999 are cut to them.
pub fn format(seconds: i64) -> String {
    format!("{}Z", to_second(seconds))
}

/// As `2026-01-02T03:04:05.000006Z`.
pub fn format_micro(seconds: i64, micros: u32) -> String {
    format!("{}.{:06}Z", to_second(seconds), micros.min(999_999))
}

fn to_second(seconds: i64) -> String {
    const FIRST: i64 = -62_167_219_200; // 0000-01-01T00:00:00Z
    const LAST: i64 = 253_402_300_799; // 9999-12-31T23:59:59Z
    let moment = OffsetDateTime::from_unix_timestamp(seconds.clamp(FIRST, LAST)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (moment.date(), moment.time());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", clock.hour(), clock.minute(), clock.second())
}

/// A duration as kubectl's ages print it: at most two units, as `3m20s`, `5d`, `2y30d`. Below zero: `<invalid>`.
pub fn human_duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |big: i64, unit: &str, rest: i64, small: &str| match rest {
        0 => format!("{big}{unit}"),
        rest => format!("{big}{unit}{rest}{small}"),
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_both_ways() {
        assert_eq!(parse("2026-01-02T03:04:05.000006+01:00"), Some((1_767_319_445, 6000)));
        assert_eq!(format(1_767_319_445), "2026-01-02T02:04:05Z");
        assert_eq!(format_micro(1_767_319_445, 6), "2026-01-02T02:04:05.000006Z");
        assert_eq!(parse("yesterday"), None);
    }

    #[test]
    fn a_time_that_is_of_no_year_in_utc_is_read() {
        assert_eq!(parse("9999-12-31T23:59:59-23:59"), Some((253_402_300_799 + 86_340, 0)));
        assert_eq!(parse("0000-01-01T00:00:00+23:59"), Some((-62_167_219_200 - 86_340, 0)));
    }

    #[test]
    fn durations_read_as_kubectl_prints_them() {
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (86_400, "24h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (432_000, "5d"),
            (86_400 * 400, "400d"),
            (86_400 * 765, "2y35d"),
            (86_400 * 365 * 9, "9y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }
}
