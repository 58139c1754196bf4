//! One value of SQLite, exactly as it is stored.

use std::cmp::Ordering;
use std::fmt;

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeTuple, Serializer};

/// A value. Text is bytes: SQLite does not check that it is UTF-8, and what it holds is kept.
///
/// In MessagePack: nil, an integer, a float of 64 bits, `str`, `bin`; and text that is not UTF-8 as an
/// array of one `bin`. `Debug` says the type and nothing else.
#[derive(Clone)]
pub enum Value {
    /// Nothing.
    Null,
    /// An integer.
    Integer(i64),
    /// A float; never a NaN, which SQLite stores as nothing.
    Real(f64),
    /// Text.
    Text(Vec<u8>),
    /// Bytes.
    Blob(Vec<u8>),
}

impl Value {
    /// Text that is UTF-8.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::Text(text.as_bytes().to_vec())
    }

    /// Which of two writes under one stamp has its way: an order of all values, that of SQLite where
    /// it has one, and equal only for what is the same to the last bit.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Real(a), Self::Real(b)) => a.total_cmp(b),
            (Self::Text(a), Self::Text(b)) | (Self::Blob(a), Self::Blob(b)) => a.cmp(b),
            (Self::Null | Self::Integer(_) | Self::Real(_) | Self::Text(_) | Self::Blob(_), _) => {
                self.rank().cmp(&other.rank())
            }
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Integer(_) => 1,
            Self::Real(_) => 2,
            Self::Text(_) => 3,
            Self::Blob(_) => 4,
        }
    }

    /// About how many bytes it takes when it is encoded; never fewer.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Null => 1,
            Self::Integer(_) | Self::Real(_) => 9,
            Self::Text(bytes) | Self::Blob(bytes) => 6 + bytes.len(),
        }
    }
}

impl PartialEq for Value {
    /// The same to the last bit: an integer is no float, and 0.0 is not -0.0.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Real(a), Self::Real(b)) => a.to_bits() == b.to_bits(),
            (Self::Text(a), Self::Text(b)) | (Self::Blob(a), Self::Blob(b)) => a == b,
            (Self::Null | Self::Integer(_) | Self::Real(_) | Self::Text(_) | Self::Blob(_), _) => {
                false
            }
        }
    }
}

impl Eq for Value {}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Integer(_) => "integer",
            Self::Real(_) => "real",
            Self::Text(_) => "text",
            Self::Blob(_) => "blob",
        })
    }
}

impl From<ValueRef<'_>> for Value {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Integer(number),
            ValueRef::Real(number) => Self::Real(number),
            ValueRef::Text(bytes) => Self::Text(bytes.to_vec()),
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Real(number) => ValueRef::Real(*number),
            Self::Text(bytes) => ValueRef::Text(bytes),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Integer(number) => serializer.serialize_i64(*number),
            Self::Real(number) => serializer.serialize_f64(*number),
            Self::Blob(bytes) => serializer.serialize_bytes(bytes),
            Self::Text(bytes) => {
                if let Ok(text) = str::from_utf8(bytes) {
                    return serializer.serialize_str(text);
                }
                let mut tuple = serializer.serialize_tuple(1)?;
                tuple.serialize_element(serde_bytes::Bytes::new(bytes))?;
                tuple.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of SQLite")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        i64::try_from(number).map(Value::Integer).map_err(|_| E::custom("too large an integer"))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
        if number.is_nan() { Err(E::custom("not a number")) } else { Ok(Value::Real(number)) }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::text(text))
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(Value::Blob(bytes.to_vec()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let bytes: Option<serde_bytes::ByteBuf> = seq.next_element()?;
        let bytes = bytes.ok_or_else(|| de::Error::custom("no text"))?.into_vec();
        if seq.next_element::<de::IgnoredAny>()?.is_some() || str::from_utf8(&bytes).is_ok() {
            return Err(de::Error::custom("not text that is not UTF-8"));
        }
        Ok(Value::Text(bytes))
    }
}

/// Any value of SQLite, for tests of what is made of them.
#[cfg(test)]
pub(crate) fn any_value() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::Integer),
        any::<f64>().prop_filter("a number", |it| !it.is_nan()).prop_map(Value::Real),
        any::<String>().prop_map(|text| Value::text(&text)),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::Text),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::Blob),
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_survives_messagepack_and_sqlite_to_the_last_bit(value in any_value()) {
            let bytes = rmp_serde::to_vec(&value).expect("encoded");
            prop_assert!(bytes.len() <= value.bytes() + 3);
            prop_assert_eq!(&rmp_serde::from_slice::<Value>(&bytes).expect("decoded"), &value);
            let db = rusqlite::Connection::open_in_memory().expect("a database");
            let back = db.query_row("select ?1", [&value], |row| Ok(Value::from(row.get_ref(0)?)));
            prop_assert_eq!(back.expect("read"), value);
        }
    }

    proptest! {
        #[test]
        fn any_two_values_have_one_order(
            one in any_value(), two in any_value(), three in any_value(),
        ) {
            prop_assert_eq!(one.order(&two) == Ordering::Equal, one == two);
            prop_assert_eq!(one.order(&two), two.order(&one).reverse());
            if one.order(&two).is_le() && two.order(&three).is_le() {
                prop_assert!(one.order(&three).is_le());
            }
        }
    }

    #[test]
    fn what_a_value_holds_is_never_printed() {
        assert_eq!(format!("{:?}", Value::text("planted")), "text");
    }
}
