//! Quantities: `500m`, `1Gi`, `1e3`.
//!
//! Source: k8s.io/apimachinery `api/resource`. Kept in billionths; what is smaller is rounded up, what is larger than
//! 2^63-1 is cut to it, as the API does.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
const MAX: i128 = i64::MAX as i128 * NANO;

/// How a quantity was written, and how it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// `12e6`
    Exponent,
    /// `12Mi`
    Binary,
    /// `12M`
    Decimal,
}

/// An amount of a resource. Compares by value, prints canonically.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    #[error("unable to parse numeric part of quantity")]
    Number,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::Decimal };

    /// A plain number, as `3`.
    pub fn of(value: i64) -> Self {
        Self { nanos: i128::from(value) * NANO, format: Format::Decimal }
    }

    /// Thousandths, as `250m`.
    pub fn of_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::Decimal }
    }

    /// Bytes, printed with binary suffixes.
    pub fn of_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANO, format: Format::Binary }
    }

    /// Rounded up to a whole number.
    pub fn value(self) -> i64 {
        clamp(ceiling(self.nanos, NANO))
    }

    /// Rounded up to thousandths.
    pub fn milli_value(self) -> i64 {
        clamp(ceiling(self.nanos, NANO / 1000))
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Rounds away from zero.
fn ceiling(value: i128, unit: i128) -> i128 {
    let whole = value / unit;
    match value % unit {
        0 => whole,
        rest => whole + rest.signum(),
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError::Form);
        }
        let (scale, format) = scale(suffix)?;
        let nanos = scaled(whole, fraction, scale).min(MAX);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// What a suffix multiplies with.
#[derive(Clone, Copy)]
enum Scale {
    /// A power of two.
    Two(u32),
    /// A power of ten.
    Ten(i32),
}

fn scale(suffix: &str) -> Result<(Scale, Format), ParseError> {
    let binary = |power| Ok((Scale::Two(power), Format::Binary));
    let decimal = |power| Ok((Scale::Ten(power), Format::Decimal));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let letters = suffix.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['+', '-']);
            if letters.chars().any(|c| !"eEinumkKMGTP".contains(c)) {
                return Err(ParseError::Form);
            }
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError::Suffix)?;
            let power = exponent.parse::<i32>().map_err(|_| ParseError::Suffix)?;
            Ok((Scale::Ten(power), Format::Exponent))
        }
    }
}

/// In billionths, rounded up. What does not fit is larger than any quantity may be.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let fraction = fraction.trim_end_matches('0');
    let digits: String = [whole, fraction].concat();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let places = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let (two, ten) = match scale {
        Scale::Two(power) => (power, 9_i32.saturating_sub(places)),
        Scale::Ten(power) => (0, power.saturating_add(9).saturating_sub(places)),
    };
    // Beyond 38 digits a number is either above the limit or has a tail below any precision.
    let kept = digits.len().min(30);
    let cut = i32::try_from(digits.len() - kept).unwrap_or(i32::MAX);
    let tail = i128::from(digits[kept..].bytes().any(|b| b != b'0'));
    let mantissa = digits[..kept].parse::<i128>().unwrap_or(i128::MAX);
    let ten = ten.saturating_add(cut);
    if ten >= 0 {
        let factor = 10_i128.checked_pow(ten.unsigned_abs());
        let shifted = mantissa.checked_mul(1 << two).zip(factor).and_then(|(m, f)| m.checked_mul(f));
        return shifted.unwrap_or(i128::MAX);
    }
    let Some(divisor) = 10_i128.checked_pow(ten.unsigned_abs()) else { return 1 };
    let (high, mut low, mut divisor) = (mantissa / divisor, mantissa % divisor, divisor);
    if low == 0 {
        low = tail;
    }
    let Some(high) = high.checked_mul(1 << two) else { return i128::MAX };
    while low.checked_mul(1 << two).is_none() {
        (low, divisor) = (ceiling(low, 10), divisor / 10);
    }
    high.saturating_add(ceiling(low << two, divisor))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::Binary && !small && self.nanos % NANO == 0 {
            let (mut value, mut power) = (self.nanos / NANO, 0);
            while value % 1024 == 0 && power < 6 {
                value /= 1024;
                power += 1;
            }
            return write!(f, "{value}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (mut value, mut thousands) = (self.nanos, 0);
        while value != 0 && value % 1000 == 0 && thousands < 9 {
            value /= 1000;
            thousands += 1;
        }
        if value == 0 {
            return f.write_str("0");
        }
        match self.format {
            Format::Exponent if thousands == 3 => write!(f, "{value}"),
            Format::Exponent => write!(f, "{value}e{}", thousands as i32 * 3 - 9),
            _ => write!(f, "{value}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][thousands]),
        }
    }
}

impl Quantity {
    /// A sum is printed as its first part was written, unless that was zero.
    fn with(self, nanos: i128, other: Self) -> Self {
        Self { nanos, format: if self.nanos == 0 { other.format } else { self.format } }
    }
}

impl Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.with(self.nanos.saturating_add(other.nanos), other)
    }
}

impl Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.with(self.nanos.saturating_sub(other.nanos), other)
    }
}

impl Neg for Quantity {
    type Output = Self;
    fn neg(self) -> Self {
        Self { nanos: -self.nanos, ..self }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().map_or_else(|e| e.to_string(), |q| q.to_string())
    }

    #[test]
    fn prints_canonically() {
        let cases = [
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1500", "1500"),
            ("1000", "1k"),
            ("1024Mi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("100Ki", "100Ki"),
            ("1023", "1023"),
            ("512Ki", "512Ki"),
            ("0Ki", "0"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("12e6", "12e6"),
            ("1e0", "1"),
            ("-1.5", "-1500m"),
            ("0.0000000001", "1n"),
            ("100n", "100n"),
            ("1e-3", "1e-3"),
            ("999999999999999999999", "9223372036854775807"),
            (".5", "500m"),
            ("5.", "5"),
            ("+2", "2"),
            ("0.1Ki", "102400m"),
            ("1Ei", "1Ei"),
            ("007", "7"),
        ];
        for (text, want) in cases {
            assert_eq!(canonical(text), want, "{text}");
        }
    }

    #[test]
    fn refuses_in_the_words_of_the_api() {
        let form = ParseError::Form.to_string();
        for text in ["", "abc", "1.2.3", "--1", "1 ", "1x"] {
            assert_eq!(canonical(text), form, "{text:?}");
        }
        assert_eq!(canonical("1mm"), "unable to parse quantity's suffix");
        assert_eq!(canonical("1GiB"), form);
    }

    #[test]
    fn rounds_up_and_compares_by_value() {
        let q = |text: &str| text.parse::<Quantity>().expect(text);
        assert_eq!((q("1500m").value(), q("1500m").milli_value(), q("1n").milli_value()), (2, 1500, 1));
        assert_eq!(q("1Ki"), q("1024"));
        assert!(q("1G") < q("1Gi"));
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((q("0") + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("1") - q("250m")).to_string(), "750m");
    }

    proptest! {
        #[test]
        fn printing_keeps_the_value(text in "-?[0-9]{1,12}(\\.[0-9]{1,6})?(n|u|m|k|M|G|Ki|Mi|Gi|e3|E2)?") {
            let first: Quantity = text.parse().expect("valid");
            let again: Quantity = first.to_string().parse().expect("canonical");
            prop_assert_eq!(first, again);
            prop_assert_eq!(first.to_string(), again.to_string());
        }

        #[test]
        fn nothing_panics(text in "[-+]?[0-9.]{0,60}[a-zA-Z]{0,3}[-+]?[0-9]{0,12}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
