//! How values stand in the vector files: bytes as lower-case hex, integers of 64 bits as decimal
//! strings, narrower ones as JSON numbers. An absent option is an absent name.

use serde::Serialize;
use serde::ser::{Impossible, SerializeSeq, SerializeStruct, SerializeTuple, Serializer};
use serde_json::{Map, Value};

/// What a vector file says of `value`.
pub(crate) fn describe<T: Serialize + ?Sized>(value: &T) -> Value {
    value.serialize(Describe).expect("frames are made of what this describes")
}

/// Bytes as a vector file has them.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> Value {
    Value::String(hex::encode(bytes))
}

/// A 64-bit integer as a vector file has it.
pub(crate) fn int(value: u64) -> Value {
    Value::String(value.to_string())
}

/// The text of a file: names on lines of their own, lists without names in them on one line.
pub(crate) fn text(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, "\n");
    out
}

fn write(out: &mut String, value: &Value, line: &str) {
    let deeper = format!("{line}  ");
    match value {
        Value::Object(names) if !names.is_empty() => {
            for (n, (name, value)) in names.iter().enumerate() {
                let begin = if n == 0 { "{" } else { "," };
                out.push_str(&format!("{begin}{deeper}{}: ", Value::from(name.as_str())));
                write(out, value, &deeper);
            }
            out.push_str(&format!("{line}}}"));
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (n, item) in items.iter().enumerate() {
                out.push_str(if n == 0 { "[" } else { "," });
                out.push_str(&deeper);
                write(out, item, &deeper);
            }
            out.push_str(&format!("{line}]"));
        }
        Value::Object(_)
        | Value::Array(_)
        | Value::String(_)
        | Value::Number(_)
        | Value::Bool(_)
        | Value::Null => out.push_str(&value.to_string()),
    }
}

type Error = serde_json::Error;
type No = Impossible<Value, Error>;

struct Describe;

struct Names(Map<String, Value>);

struct List(Vec<Value>);

fn unexpected<T>() -> Result<T, Error> {
    Err(serde::ser::Error::custom("a type that no frame has"))
}

impl Serializer for Describe {
    type Ok = Value;
    type Error = Error;
    type SerializeSeq = List;
    type SerializeTuple = List;
    type SerializeStruct = Names;
    type SerializeTupleStruct = No;
    type SerializeTupleVariant = No;
    type SerializeMap = No;
    type SerializeStructVariant = No;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, value: bool) -> Result<Value, Error> {
        Ok(Value::Bool(value))
    }
    fn serialize_u8(self, value: u8) -> Result<Value, Error> {
        Ok(value.into())
    }
    fn serialize_u16(self, value: u16) -> Result<Value, Error> {
        Ok(value.into())
    }
    fn serialize_u32(self, value: u32) -> Result<Value, Error> {
        Ok(value.into())
    }
    fn serialize_u64(self, value: u64) -> Result<Value, Error> {
        Ok(int(value))
    }
    fn serialize_str(self, value: &str) -> Result<Value, Error> {
        Ok(value.into())
    }
    fn serialize_bytes(self, value: &[u8]) -> Result<Value, Error> {
        Ok(hex(value))
    }
    fn serialize_none(self) -> Result<Value, Error> {
        Ok(Value::Null)
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, Error> {
        value.serialize(self)
    }
    fn serialize_unit_variant(self, _: &str, _: u32, variant: &str) -> Result<Value, Error> {
        Ok(variant.into())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &str,
        value: &T,
    ) -> Result<Value, Error> {
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<List, Error> {
        Ok(List(Vec::new()))
    }
    fn serialize_tuple(self, _: usize) -> Result<List, Error> {
        Ok(List(Vec::new()))
    }
    fn serialize_struct(self, _: &str, _: usize) -> Result<Names, Error> {
        Ok(Names(Map::new()))
    }

    fn serialize_i8(self, _: i8) -> Result<Value, Error> {
        unexpected()
    }
    fn serialize_i16(self, _: i16) -> Result<Value, Error> {
        unexpected()
    }
    fn serialize_i32(self, _: i32) -> Result<Value, Error> {
        unexpected()
    }
    fn serialize_i64(self, _: i64) -> Result<Value, Error> {
        unexpected()
    }
    fn serialize_f32(self, _: f32) -> Result<Value, Error> {
        unexpected()
    }
    fn serialize_f64(self, _: f64) -> Result<Value, Error> {
        unexpected()
    }
    fn serialize_char(self, _: char) -> Result<Value, Error> {
        unexpected()
    }
    fn serialize_unit(self) -> Result<Value, Error> {
        unexpected()
    }
    fn serialize_unit_struct(self, _: &str) -> Result<Value, Error> {
        unexpected()
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &str,
        _: u32,
        _: &str,
        _: &T,
    ) -> Result<Value, Error> {
        unexpected()
    }
    fn serialize_tuple_struct(self, _: &str, _: usize) -> Result<No, Error> {
        unexpected()
    }
    fn serialize_tuple_variant(self, _: &str, _: u32, _: &str, _: usize) -> Result<No, Error> {
        unexpected()
    }
    fn serialize_map(self, _: Option<usize>) -> Result<No, Error> {
        unexpected()
    }
    fn serialize_struct_variant(self, _: &str, _: u32, _: &str, _: usize) -> Result<No, Error> {
        unexpected()
    }
}

impl SerializeSeq for List {
    type Ok = Value;
    type Error = Error;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.0.push(value.serialize(Describe)?);
        Ok(())
    }
    fn end(self) -> Result<Value, Error> {
        Ok(Value::Array(self.0))
    }
}

impl SerializeTuple for List {
    type Ok = Value;
    type Error = Error;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        SerializeSeq::serialize_element(self, value)
    }
    fn end(self) -> Result<Value, Error> {
        SerializeSeq::end(self)
    }
}

impl SerializeStruct for Names {
    type Ok = Value;
    type Error = Error;
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.0.insert(name.to_owned(), value.serialize(Describe)?);
        Ok(())
    }
    fn end(self) -> Result<Value, Error> {
        Ok(Value::Object(self.0))
    }
}
