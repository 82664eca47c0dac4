//! [`Bytes`]: every size inside Carina, and Kubernetes quantities at the doors.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A size or an offset in bytes.
///
/// Arithmetic is checked: there is no wrapping and no silent truncation, so a figure that makes no
/// sense (more used than there is) surfaces as `None` where it is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);
    /// The largest size that can be written down.
    pub const MAX: Self = Self(u64::MAX);
    /// One kibibyte, 2^10 bytes.
    pub const KIB: Self = Self(1 << 10);
    /// One mebibyte, 2^20 bytes.
    pub const MIB: Self = Self(1 << 20);
    /// One gibibyte, 2^30 bytes.
    pub const GIB: Self = Self(1 << 30);
    /// One tebibyte, 2^40 bytes.
    pub const TIB: Self = Self(1 << 40);

    /// `n` mebibytes; saturates at [`Bytes::MAX`].
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// `n` gibibytes; saturates at [`Bytes::MAX`].
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether this is no bytes at all.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` if it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The difference, or `None` if `other` is larger.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The product, or `None` if it does not fit.
    #[must_use]
    pub const fn checked_mul(self, factor: u64) -> Option<Self> {
        match self.0.checked_mul(factor) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The difference, or zero if `other` is larger: for figures where "nothing left" is the answer.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, or [`Bytes::MAX`] if it does not fit.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The smallest multiple of `unit` at or above this size; `None` if that does not fit.
    ///
    /// A `unit` of zero rounds to nothing else: the size itself is returned.
    #[must_use]
    pub const fn checked_round_up(self, unit: Self) -> Option<Self> {
        if unit.0 == 0 {
            return Some(self);
        }
        match self.0.checked_next_multiple_of(unit.0) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The largest multiple of `unit` at or below this size (the size itself if `unit` is zero).
    #[must_use]
    pub const fn round_down(self, unit: Self) -> Self {
        if unit.0 == 0 { self } else { Self(self.0 - self.0 % unit.0) }
    }

    /// Whole gibibytes, rounded up: how capacity is printed at the doors that promise GiB.
    #[must_use]
    pub const fn ceil_gib(self) -> u64 {
        self.0.div_ceil(1 << 30)
    }

    /// Whole gibibytes, rounded down: how free space is printed at the doors that promise GiB.
    #[must_use]
    pub const fn floor_gib(self) -> u64 {
        self.0 >> 30
    }

    /// This size as a Kubernetes quantity in its canonical form: the largest binary suffix that
    /// divides it (`10Gi`, `1536Mi`, `1000`).
    #[must_use]
    pub fn to_quantity(self) -> String {
        const SUFFIXES: [(u32, &str); 6] = [(60, "Ei"), (50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
        for (shift, suffix) in SUFFIXES {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return format!("{}{suffix}", self.0 >> shift);
            }
        }
        self.0.to_string()
    }
}

impl std::iter::Sum for Bytes {
    /// Saturates at [`Bytes::MAX`], so that a sum of promises never wraps into a small one.
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::saturating_add)
    }
}

impl fmt::Display for Bytes {
    /// For people: `10 GiB`, `1.5 GiB`, `512 B`; exact where two decimals are, else marked `~`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 6] = [(60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let text = UNITS.iter().find(|(shift, _)| self.0 >= 1 << shift).map_or_else(
            || format!("{} B", self.0),
            |(shift, unit)| {
                let whole = self.0 >> shift;
                let rest = self.0 & ((1 << shift) - 1);
                let hundredths = (u128::from(rest) * 100) >> shift;
                let exact = (hundredths << shift) == u128::from(rest) * 100;
                let approx = if exact { "" } else { "~" };
                match hundredths {
                    0 => format!("{approx}{whole} {unit}"),
                    h if h % 10 == 0 => format!("{approx}{whole}.{} {unit}", h / 10),
                    h => format!("{approx}{whole}.{h:02} {unit}"),
                }
            },
        );
        f.pad(&text)
    }
}

/// Why a text is not a Kubernetes quantity of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not a size: {reason}; write a whole number of bytes or a Kubernetes quantity such as 10Gi, 500Mi or 1.5G"
)]
pub struct ParseBytesError {
    text: String,
    reason: &'static str,
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// Parses a Kubernetes quantity (`10Gi`, `1.5G`, `2e9`, `1500m`), a fraction of a byte rounding
    /// up as Kubernetes does. Negative sizes are refused.
    ///
    /// Grammar: `apimachinery/pkg/api/resource`, `<signedNumber><suffix>`, with the suffixes
    /// `Ki Mi Gi Ti Pi Ei`, `n u m k M G T P E` and `e`/`E` exponents.
    fn from_str(text: &str) -> Result<Self, ParseBytesError> {
        let err = |reason| ParseBytesError { text: text.chars().take(64).collect(), reason };
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        if unsigned.starts_with('-') {
            return Err(err("it is negative"));
        }
        let number_len = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, suffix) = unsigned.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(err("it has no number"));
        }
        if fraction.contains('.') {
            return Err(err("it has two decimal points"));
        }
        let (numerator, decimals) = scale(suffix).ok_or_else(|| err("its unit is unknown"))?;
        // value = digits * numerator / 10^(fraction digits + decimals), rounded up.
        let fraction = fraction.trim_end_matches('0');
        let too_large = || err("it is too large");
        let mut digits: u128 = 0;
        for b in whole.bytes().chain(fraction.bytes()) {
            digits = digits.checked_mul(10).and_then(|d| d.checked_add(u128::from(b - b'0'))).ok_or_else(too_large)?;
        }
        let places = u32::try_from(fraction.len()).map_err(|_| too_large())?.saturating_add(decimals);
        let scaled = digits.checked_mul(numerator).ok_or_else(too_large)?;
        let value = 10u128.checked_pow(places).map_or(u128::from(scaled != 0), |d| scaled.div_ceil(d));
        u64::try_from(value).map(Self).map_err(|_| too_large())
    }
}

/// The factor of a quantity's suffix: a multiplier, and how many decimal places it divides by.
fn scale(suffix: &str) -> Option<(u128, u32)> {
    Some(match suffix {
        "" => (1, 0),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        "n" => (1, 9),
        "u" => (1, 6),
        "m" => (1, 3),
        "k" => (1_000, 0),
        "M" => (1_000_000, 0),
        "G" => (1_000_000_000, 0),
        "T" => (1_000_000_000_000, 0),
        "P" => (1_000_000_000_000_000, 0),
        "E" => (1_000_000_000_000_000_000, 0),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let places = exponent.unsigned_abs();
            if exponent >= 0 { (10u128.checked_pow(places)?, 0) } else { (1, places) }
        }
    })
}

impl Serialize for Bytes {
    /// As a plain number of bytes.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    /// From a number of bytes or a quantity in a string.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes or a quantity such as \"10Gi\"")
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Bytes, E> {
                Ok(Bytes(n))
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Bytes, E> {
                u64::try_from(n).map(Bytes).map_err(|_| E::custom(format!("{n} is negative; a size is not")))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_parse_as_kubernetes_parses_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("+5", 5),
            ("10Gi", 10 << 30),
            ("1.5Gi", 3 << 29),
            (".5Ki", 512),
            ("1.", 1),
            ("1k", 1_000),
            ("1.5G", 1_500_000_000),
            ("1e3", 1_000),
            ("1E3", 1_000),
            ("12E", 12_000_000_000_000_000_000),
            ("1500m", 2),
            ("1m", 1),
            ("100n", 1),
            ("5e-1", 1),
            ("0e-99", 0),
            ("1e-99", 1),
            ("15Ei", 15 << 60),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "-1",
            "-1Gi",
            "Gi",
            "1.2.3",
            "10gb",
            "10 Gi",
            "1e",
            "16Ei",
            "99999999999999999999999",
            "1e40",
            "é",
            "1e99999999999",
        ] {
            let error = text.parse::<Bytes>().unwrap_err();
            assert!(error.to_string().contains("10Gi"), "{error}");
        }
    }

    #[test]
    fn sizes_print_for_people() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes::gib(10).to_string(), "10 GiB");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Bytes((1 << 30) + 1).to_string(), "~1 GiB");
        assert_eq!(Bytes::MAX.to_string(), "~15.99 EiB");
    }

    #[test]
    fn gib_doors_round_capacity_up_and_free_space_down() {
        let two_disks = Bytes(2 * (80 << 30) - (8 << 20));
        assert_eq!(two_disks.ceil_gib(), 160);
        assert_eq!(two_disks.floor_gib(), 159);
    }

    proptest! {
        #[test]
        fn a_quantity_printed_parses_to_itself(n: u64) {
            prop_assert_eq!(Bytes(n).to_quantity().parse::<Bytes>(), Ok(Bytes(n)));
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Bytes>();
        }

        #[test]
        fn rounding_up_is_the_next_multiple(n: u64, unit in 1u64..1 << 40) {
            if let Some(up) = Bytes(n).checked_round_up(Bytes(unit)) {
                prop_assert!(up.get() >= n && up.get() - n < unit && up.get() % unit == 0);
            }
        }
    }
}
