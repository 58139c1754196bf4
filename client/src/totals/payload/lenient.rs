//! Reading fields as the app reads them: what has another type counts as missing.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{Party, usual_currency, usual_kind};

pub(super) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(text_opt(from)?.unwrap_or_default())
}

pub(super) fn text_opt<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(text) => Some(text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            None
        }
    })
}

pub(super) fn party<'de, D: Deserializer<'de>>(from: D) -> Result<Party, D::Error> {
    Ok(Party(text(from)?))
}

pub(super) fn currency<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(text_opt(from)?.unwrap_or_else(usual_currency))
}

pub(super) fn kind<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(text_opt(from)?.unwrap_or_else(usual_kind))
}

pub(super) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    Ok(number_opt(from)?.unwrap_or_default())
}

pub(super) fn number_opt<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    Ok(whole(&Value::deserialize(from)?))
}

pub(super) fn amount<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Value::deserialize(from)?.as_f64().unwrap_or_default())
}

pub(super) fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(flag_opt(from)?.unwrap_or_default())
}

pub(super) fn flag_opt<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    Ok(Value::deserialize(from)?.as_bool())
}

pub(super) fn value_opt<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(from)?;
    Ok(if value.is_object() { T::deserialize(value).ok() } else { None })
}

pub(super) fn list<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    let Value::Array(values) = Value::deserialize(from)? else { return Ok(Vec::new()) };
    Ok(values.into_iter().filter_map(|value| T::deserialize(value).ok()).collect())
}

pub(super) fn map<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<BTreeMap<Party, T>, D::Error> {
    collect(from, |value| T::deserialize(value).ok())
}

pub(super) fn numbers<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<Party, i64>, D::Error> {
    collect(from, |value| whole(&value))
}

pub(super) fn amounts<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<Party, f64>, D::Error> {
    collect(from, |value| value.as_f64())
}

pub(super) fn object<'de, D: Deserializer<'de>>(from: D) -> Result<Map<String, Value>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Object(object) => object,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    })
}

fn collect<'de, D: Deserializer<'de>, T>(
    from: D,
    read: impl Fn(Value) -> Option<T>,
) -> Result<BTreeMap<Party, T>, D::Error> {
    let entries = object(from)?.into_iter();
    Ok(entries.filter_map(|(key, value)| Some((Party(key), read(value)?))).collect())
}

/// A number without its fraction. What is out of range becomes the nearest that is not.
fn whole(value: &Value) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "it saturates, and is meant to")]
    let cut = |number: f64| number as i64;
    value.as_i64().or_else(|| value.as_f64().map(cut))
}
