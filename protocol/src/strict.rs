//! MessagePack to values, with one reading for each byte.
//!
//! rmp-serde is made for data that its own side wrote, and is generous: it takes an array or a byte
//! string for a struct, a number or a byte string for a field's name, and a string for a byte string
//! when it happens not to be UTF-8; and it writes a hostile value into an error message that nobody
//! reads. Clients in other languages would come to rely on what it lets through. This decoder takes
//! a map for a struct, a string for a name, `bin` for bytes, an array of the exact length for a
//! tuple and an integer of any width for a number, and refuses everything else.
//!
//! It never allocates: what a value needs is allocated by the value's own type, which has seen the
//! length. It reads every byte at most once, so the cost of a frame is linear in its length.

use rmp::Marker;
use rmp::decode as read;
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use crate::codec::DecodeError;

/// Reads one value that must be all of `bytes`.
///
/// # Errors
/// [`DecodeError::TooLong`] if a list, string or byte string exceeds its bound, else
/// [`DecodeError::Malformed`].
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut reader = Reader { rest: bytes };
    let value = T::deserialize(&mut reader)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(DecodeError::Malformed) }
}

impl de::Error for DecodeError {
    /// The message is dropped unformatted: it may quote megabytes of a hostile frame.
    fn custom<T: std::fmt::Display>(_message: T) -> Self {
        Self::Malformed
    }

    /// Said by the bounded types, and by nobody else here: tuples are measured before they are
    /// visited, and a fixed width that does not fit is an invalid value.
    fn invalid_length(_len: usize, _expected: &dyn de::Expected) -> Self {
        Self::TooLong
    }
}

struct Reader<'de> {
    rest: &'de [u8],
}

impl<'de> Reader<'de> {
    fn take(&mut self, len: u32) -> Result<&'de [u8], DecodeError> {
        let (taken, rest) =
            self.rest.split_at_checked(len as usize).ok_or(DecodeError::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn text(&mut self) -> Result<&'de str, DecodeError> {
        let len = read::read_str_len(&mut self.rest).map_err(malformed)?;
        std::str::from_utf8(self.take(len)?).map_err(malformed)
    }

    fn unsigned<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_u64(read::read_int(&mut self.rest).map_err(malformed)?)
    }

    fn list<V: Visitor<'de>>(&mut self, len: u32, visitor: V) -> Result<V::Value, DecodeError> {
        let mut items = Items { reader: self, left: len };
        let value = visitor.visit_seq(&mut items)?;
        if items.left == 0 { Ok(value) } else { Err(DecodeError::Malformed) }
    }

    /// Passes over one value of any type, however deep: a count of what is still to come stands in
    /// for a stack. It cannot overflow, since each of at most 2^21 bytes adds less than 2^33.
    fn skip(&mut self) -> Result<(), DecodeError> {
        let mut left: u64 = 1;
        while left > 0 {
            left -= 1;
            let (bytes, values) = match read::read_marker(&mut self.rest).map_err(malformed)? {
                Marker::Null
                | Marker::True
                | Marker::False
                | Marker::FixPos(_)
                | Marker::FixNeg(_) => (0, 0),
                Marker::U8 | Marker::I8 => (1, 0),
                Marker::U16 | Marker::I16 => (2, 0),
                Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
                Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
                Marker::FixStr(len) => (u32::from(len), 0),
                Marker::Str8 | Marker::Bin8 => (self.big_endian(1)?, 0),
                Marker::Str16 | Marker::Bin16 => (self.big_endian(2)?, 0),
                Marker::Str32 | Marker::Bin32 => (self.big_endian(4)?, 0),
                // One more byte than the value has: the type of the extension.
                Marker::FixExt1 => (2, 0),
                Marker::FixExt2 => (3, 0),
                Marker::FixExt4 => (5, 0),
                Marker::FixExt8 => (9, 0),
                Marker::FixExt16 => (17, 0),
                Marker::Ext8 => (self.big_endian(1)?.saturating_add(1), 0),
                Marker::Ext16 => (self.big_endian(2)?.saturating_add(1), 0),
                Marker::Ext32 => (self.big_endian(4)?.saturating_add(1), 0),
                Marker::FixArray(len) => (0, u64::from(len)),
                Marker::Array16 => (0, u64::from(self.big_endian(2)?)),
                Marker::Array32 => (0, u64::from(self.big_endian(4)?)),
                Marker::FixMap(len) => (0, 2 * u64::from(len)),
                Marker::Map16 => (0, 2 * u64::from(self.big_endian(2)?)),
                Marker::Map32 => (0, 2 * u64::from(self.big_endian(4)?)),
                Marker::Reserved => return Err(DecodeError::Malformed),
            };
            self.take(bytes)?;
            left += values;
        }
        Ok(())
    }

    /// An unsigned integer of `width` bytes, at most 4.
    fn big_endian(&mut self, width: u32) -> Result<u32, DecodeError> {
        Ok(self.take(width)?.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }
}

fn malformed<E>(_: E) -> DecodeError {
    DecodeError::Malformed
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = DecodeError;

    fn is_human_readable(&self) -> bool {
        false
    }

    /// Every field says what it is; a type that asks the bytes has no place in a frame.
    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, DecodeError> {
        Err(DecodeError::Malformed)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 f32 f64 char string byte_buf unit unit_struct tuple_struct map
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_bool(read::read_bool(&mut self.rest).map_err(malformed)?)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.unsigned(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.unsigned(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.unsigned(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.unsigned(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let len = read::read_bin_len(&mut self.rest).map_err(malformed)?;
        visitor.visit_borrowed_bytes(self.take(len)?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.rest.first() == Some(&Marker::Null.to_u8()) {
            self.take(1)?;
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let len = read::read_array_len(&mut self.rest).map_err(malformed)?;
        self.list(len, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        width: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let len = read::read_array_len(&mut self.rest).map_err(malformed)?;
        if len as usize != width {
            return Err(DecodeError::Malformed);
        }
        self.list(len, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let left = read::read_map_len(&mut self.rest).map_err(malformed)?;
        visitor.visit_map(Items { reader: self, left })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_enum(StrDeserializer::new(self.text()?))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.skip()?;
        visitor.visit_unit()
    }
}

/// What is left of an array, or of a map's pairs.
struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: u32,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        usize::try_from(self.left).ok()
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        seed.deserialize(&mut *self.reader)
    }
}
