//! PostgreSQL's text form of dates and timestamps (`DateStyle = ISO`) as ISO 8601. `None` for what is no such text
//! (`infinity`), which is printed as it is.

/// `timestamp` without a zone: says nothing of UTC, and so the result does not either.
pub fn iso(text: &str) -> Option<String> {
    let (text, bc) = era(text);
    let (date, time) = text.split_once(' ')?;
    let (year, month, day) = civil(date, bc)?;
    clock(time)?;
    Some(format!("{}-{month:02}-{day:02}T{time}", iso_year(year)))
}

/// `timestamptz`, whatever zone it was printed in, in UTC.
pub fn iso_utc(text: &str) -> Option<String> {
    let (text, bc) = era(text);
    let (date, time) = text.split_once(' ')?;
    let (year, month, day) = civil(date, bc)?;
    let (time, offset) = time.split_at(time.find(['+', '-'])?);
    let (seconds, fraction) = clock(time)?;
    let utc = seconds - zone(offset)?;
    let (year, month, day) = civil_of(days(year, month, day) + utc.div_euclid(86_400));
    let second = utc.rem_euclid(86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    Some(format!("{}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}+00:00", iso_year(year)))
}

/// `date`.
pub fn iso_date(text: &str) -> Option<String> {
    let (date, bc) = era(text);
    let (year, month, day) = civil(date, bc)?;
    Some(format!("{}-{month:02}-{day:02}", iso_year(year)))
}

fn era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |text| (text, true))
}

/// Year (astronomical: 1 BC is 0), month, day.
fn civil(date: &str, bc: bool) -> Option<(i64, i64, i64)> {
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<i32>().ok().map(i64::from));
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    Some((if bc { 1 - year } else { year }, month, day))
}

/// Seconds since midnight, and the fraction with its point as it stands.
fn clock(time: &str) -> Option<(i64, &str)> {
    let (whole, fraction) = time.split_at(time.find('.').unwrap_or(time.len()));
    Some((sexagesimal(whole)?, fraction))
}

/// Seconds east of UTC of `+05:30`, `-08`, `+00:19:32`.
fn zone(offset: &str) -> Option<i64> {
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    Some(sign * sexagesimal(&offset[1..])?)
}

/// Seconds of `HH`, `HH:MM` or `HH:MM:SS`.
fn sexagesimal(text: &str) -> Option<i64> {
    let mut seconds = 0;
    for (part, unit) in text.splitn(3, ':').zip([3600, 60, 1]) {
        seconds += part.parse::<u32>().ok().map(i64::from)? * unit;
    }
    Some(seconds)
}

fn iso_year(year: i64) -> String {
    if (0..=9999).contains(&year) { format!("{year:04}") } else { format!("{year:+05}") }
}

/// Days since 0000-03-01 in the proleptic Gregorian calendar. Years begin in March, so that a leap day is the last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year
}

/// The date that [`days`] counted.
fn civil_of(days: i64) -> (i64, i64, i64) {
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * of_era + of_era / 4 - of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let month = (march_month + 2) % 12 + 1;
    let year = era * 400 + of_era + i64::from(month <= 2);
    (year, month, of_year - (153 * march_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zones_carry_over_days_months_and_years() {
        let table = [
            ("2024-01-01 00:30:00+01", "2023-12-31T23:30:00+00:00"),
            ("2023-12-31 23:30:00.5-08", "2024-01-01T07:30:00.5+00:00"),
            ("2024-02-28 20:00:00-05:30", "2024-02-29T01:30:00+00:00"),
            ("1880-01-01 00:00:00+00:19:32", "1879-12-31T23:40:28+00:00"),
            ("0001-01-01 00:00:00+01", "0000-12-31T23:00:00+00:00"),
            ("0001-01-01 00:00:00+00 BC", "0000-01-01T00:00:00+00:00"),
            ("0002-06-01 00:00:00+00 BC", "-0001-06-01T00:00:00+00:00"),
            ("294276-12-31 23:59:59.999999+00", "+294276-12-31T23:59:59.999999+00:00"),
        ];
        for (text, expected) in table {
            assert_eq!(iso_utc(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["infinity", "-infinity", "", "2024-01-01", "2024-01-01 00:00:00", "a-b-c d+e"] {
            assert_eq!(iso_utc(text), None, "{text}");
        }
        assert_eq!(iso("-infinity"), None);
        assert_eq!(iso_date("infinity"), None);
    }

    proptest! {
        #[test]
        fn dates_come_back(day in -3_000_000_i64..120_000_000) {
            let (year, month, of_month) = civil_of(day);
            prop_assert_eq!(days(year, month, of_month), day);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&of_month));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}", more in "[0-9+: .BC-]{0,40}") {
            for text in [&text, &more] {
                let _ = (iso(text), iso_utc(text), iso_date(text));
            }
        }
    }
}
