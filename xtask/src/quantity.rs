//! Sizes and durations as a person types them: `20G`, `10m`.

use std::time::Duration;

use crate::error::{Context, Error, Result};

/// Splits `text` into its number and its unit.
fn split(text: &str) -> Result<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse().context(format_args!("`{text}` does not start with a whole number"))?;
    Ok((number, unit))
}

/// Bytes from `512`, `64K`, `100M`, `20G`, `2T`; the units are binary and may
/// be written `Gi` or `GiB` too.
pub fn parse_size(text: &str) -> Result<u64> {
    let (number, unit) = split(text)?;
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KI" | "KIB" => 10,
        "M" | "MI" | "MIB" => 20,
        "G" | "GI" | "GIB" => 30,
        "T" | "TI" | "TIB" => 40,
        _ => {
            return Err(Error::new(format!("`{text}`: the units are K, M, G and T")));
        }
    };
    number.checked_mul(1 << shift).context(format_args!("`{text}` is too large"))
}

/// A duration from `500ms`, `30s`, `10m`, `1h`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let (number, unit) = split(text)?;
    let per_unit = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => {
            return Err(Error::new(format!("`{text}`: the units are ms, s, m and h")));
        }
    };
    let seconds = number.checked_mul(per_unit).context(format_args!("`{text}` is too long"))?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in
            [("512", 512), ("64k", 65_536), ("20G", 20 << 30), ("20Gi", 20 << 30), ("20GiB", 20 << 30), ("2T", 2 << 40)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "20X", "-1G", "1.5G", "99999999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_units() {
        for (text, milliseconds) in
            [("500ms", 500), ("90", 90_000), ("30s", 30_000), ("10m", 600_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        assert!(parse_duration("10 minutes").is_err());
        assert!(parse_duration("").is_err());
    }
}
