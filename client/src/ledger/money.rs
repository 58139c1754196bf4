//! Amounts: whole minor units inside, the app's JSON numbers at the edge.
//!
//! The app counts in floating-point units of a currency. Sums of those drift; whole minor units do
//! not. Any amount up to [`MINOR_MAX`] goes to a JSON number and back without a change: the number
//! is the nearest one to the decimal fraction, as the app's own is.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Largest amount, in minor units: below 2^50, so that rounding a JSON number cannot miss.
pub const MINOR_MAX: i64 = 1_000_000_000_000_000;

/// Longest name of a currency, in bytes. Real ones have three.
const CURRENCY_BYTES_MAX: usize = 16;

/// Currencies whose minor unit is the unit itself (ISO 4217).
const WITHOUT_DIGITS: &[&str] = &[
    "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND",
    "VUV", "XAF", "XOF", "XPF",
];

/// Currencies with a thousandth part.
const WITH_THREE_DIGITS: &[&str] = &["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"];

/// Currencies of account with a ten-thousandth part.
const WITH_FOUR_DIGITS: &[&str] = &["CLF", "UYW"];

/// Why an amount is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MoneyError {
    /// Not a number with a point.
    #[error("an amount is a number like 12 or 12.50")]
    Number,
    /// More digits behind the point than the currency has.
    #[error("the currency has no such small part")]
    Digits,
    /// Larger than [`MINOR_MAX`].
    #[error("the amount is too large")]
    TooLarge,
    /// Not the name of a currency.
    #[error("a currency is three letters, like ETB")]
    Currency,
}

/// A currency, by its name. What it is called decides how many digits it has: this never changes,
/// because amounts that are stored depend on it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Currency(String);

impl Currency {
    /// Reads a name; capitals are made of small letters.
    ///
    /// # Errors
    /// [`MoneyError::Currency`] if it is empty, too long, or has anything but letters and digits.
    pub fn parse(name: &str) -> Result<Self, MoneyError> {
        let good = !name.is_empty()
            && name.len() <= CURRENCY_BYTES_MAX
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if good { Ok(Self(name.to_ascii_uppercase())) } else { Err(MoneyError::Currency) }
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How many digits it has behind the point; 2 if it is not known.
    #[must_use]
    pub fn digits(&self) -> u32 {
        let named = |list: &[&str]| list.contains(&self.as_str());
        if named(WITHOUT_DIGITS) {
            0
        } else if named(WITH_THREE_DIGITS) {
            3
        } else if named(WITH_FOUR_DIGITS) {
            4
        } else {
            2
        }
    }

    /// Minor units in one unit.
    pub(super) fn scale(&self) -> i64 {
        10_i64.pow(self.digits())
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An amount of money.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    /// In minor units; at most [`MINOR_MAX`] either way where it was read from somewhere.
    pub minor: i64,
    /// Of which currency.
    pub currency: Currency,
}

impl Money {
    /// Reads what a person has typed: `12`, `12.5` or `12.50`, without a sign.
    ///
    /// # Errors
    /// [`MoneyError`].
    pub fn parse(text: &str, currency: &Currency) -> Result<Self, MoneyError> {
        let (whole, part) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(part) {
            return Err(MoneyError::Number);
        }
        let width = currency.digits() as usize;
        if part.len() > width {
            return Err(MoneyError::Digits);
        }
        let minor: i64 =
            format!("{whole}{part:0<width$}").parse().map_err(|_| MoneyError::TooLarge)?;
        Self::bounded(minor, currency)
    }

    /// Reads the app's number of units; what is smaller than a minor unit is rounded, half away from
    /// zero.
    ///
    /// # Errors
    /// [`MoneyError::TooLarge`].
    pub fn from_units(units: f64, currency: &Currency) -> Result<Self, MoneyError> {
        #[expect(clippy::cast_precision_loss, reason = "a power of ten below 2^53")]
        let minor = (units * currency.scale() as f64).round();
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        if minor.is_nan() || minor.abs() > MINOR_MAX as f64 {
            return Err(MoneyError::TooLarge);
        }
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
        Self::bounded(minor as i64, currency)
    }

    /// The app's number of units.
    #[must_use]
    pub fn to_units(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "both are below 2^53")]
        let units = self.minor as f64 / self.currency.scale() as f64;
        units
    }

    fn bounded(minor: i64, currency: &Currency) -> Result<Self, MoneyError> {
        if minor.abs() > MINOR_MAX {
            return Err(MoneyError::TooLarge);
        }
        Ok(Self { minor, currency: currency.clone() })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = self.currency.scale().unsigned_abs();
        let (units, rest) = (self.minor.unsigned_abs() / scale, self.minor.unsigned_abs() % scale);
        let sign = if self.minor < 0 { "-" } else { "" };
        let width = self.currency.digits() as usize;
        if width == 0 {
            write!(f, "{sign}{units} {}", self.currency)
        } else {
            write!(f, "{sign}{units}.{rest:0width$} {}", self.currency)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn currency(name: &str) -> Currency {
        Currency::parse(name).expect("a currency")
    }

    #[test]
    fn amounts_are_typed_and_shown_with_the_digits_of_their_currency() {
        let shown = |text, name| Money::parse(text, &currency(name)).map(|money| money.to_string());
        assert_eq!(shown("12", "etb"), Ok("12.00 ETB".into()));
        assert_eq!(shown("12.5", "ETB"), Ok("12.50 ETB".into()));
        assert_eq!(shown("0.07", "ETB"), Ok("0.07 ETB".into()));
        assert_eq!(shown("1500", "JPY"), Ok("1500 JPY".into()));
        assert_eq!(shown("1.234", "KWD"), Ok("1.234 KWD".into()));
        assert_eq!(shown("1.234", "ETB"), Err(MoneyError::Digits));
        assert_eq!(shown("1.5", "JPY"), Err(MoneyError::Digits));
        for bad in ["", ".5", "-1", "1,000", "1e3", "NaN", "twelve", "1.-5"] {
            assert_eq!(shown(bad, "ETB"), Err(MoneyError::Number), "{bad}");
        }
        assert_eq!(shown("10000000000000.01", "ETB"), Err(MoneyError::TooLarge));
        assert_eq!(shown(&"9".repeat(40), "ETB"), Err(MoneyError::TooLarge));
        assert_eq!(Currency::parse("E T"), Err(MoneyError::Currency));
    }

    #[test]
    fn a_number_of_the_app_is_rounded_to_minor_units() {
        let minor = |units| Money::from_units(units, &currency("ETB")).map(|money| money.minor);
        assert_eq!(minor(3000.0), Ok(300_000));
        assert_eq!(minor(0.1 + 0.2), Ok(30));
        assert_eq!(minor(100.0 / 3.0), Ok(3333));
        assert_eq!(minor(-0.005), Ok(-1));
        assert_eq!(minor(1e13), Ok(MINOR_MAX));
        for bad in [f64::NAN, f64::INFINITY, -f64::INFINITY, 1.1e13, -1.1e13] {
            assert_eq!(minor(bad), Err(MoneyError::TooLarge), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_amount_survives_the_journey_through_a_json_number(
            minor in -MINOR_MAX..=MINOR_MAX,
            name in proptest::sample::select(vec!["ETB", "JPY", "KWD", "CLF"]),
        ) {
            let money = Money { minor, currency: currency(name) };
            let json = serde_json::to_string(&money.to_units()).expect("JSON");
            prop_assert!(!json.contains('e'), "the app writes no exponent: {}", json);
            let units: f64 = serde_json::from_str(&json).expect("a number");
            prop_assert_eq!(Money::from_units(units, &money.currency), Ok(money));
        }

        #[test]
        fn what_is_shown_can_be_typed_again(minor in 0..=MINOR_MAX) {
            let money = Money { minor, currency: currency("ETB") };
            let shown = money.to_string();
            let typed = shown.strip_suffix(" ETB").expect("its currency");
            prop_assert_eq!(Money::parse(typed, &money.currency), Ok(money));
        }
    }
}
