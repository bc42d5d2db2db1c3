//! JSON objects to messages.

use serde_json::Value;

use super::wire::{put_bytes, put_double, put_number};
use super::{DEPTH, Error};
use crate::schema::{Definition, Field, SchemaOr, Type};
use crate::time;

/// An object as a bare message. `apiVersion` and `kind` at its root are left out, unknown fields and nulls too.
///
/// # Errors
/// Where a value has the wrong type.
pub fn encode_message(definition: &'static Definition, object: &Value) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    message(definition, object, &mut out, DEPTH)?;
    Ok(out)
}

fn message(definition: &'static Definition, object: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), Error> {
    let depth = depth.checked_sub(1).ok_or(Error::TooDeep)?;
    let Some(entries) = object.as_object() else { return Ok(()) };
    for field in definition.fields.iter().filter(|f| f.tag != 0) {
        if let Some(value) = entries.get(field.name).filter(|v| !v.is_null()) {
            Place { definition, field, depth }.put(value, out)?;
        }
    }
    for inline in definition.inlines {
        let mut inner = Vec::new();
        message(inline.definition(), object, &mut inner, depth)?;
        if !inner.is_empty() {
            put_bytes(out, inline.tag, &inner);
        }
    }
    Ok(())
}

/// Where in the object the encoder stands.
#[derive(Clone, Copy)]
struct Place {
    definition: &'static Definition,
    field: &'static Field,
    depth: usize,
}

impl Place {
    fn put(self, value: &Value, out: &mut Vec<u8>) -> Result<(), Error> {
        match self.field.ty {
            Type::Array(inner) => {
                let items = value.as_array().ok_or_else(|| self.mismatch("a list", value))?;
                items.iter().try_for_each(|item| self.value(*inner, self.field.tag, item, out))
            }
            Type::Map(inner) => {
                let entries = value.as_object().ok_or_else(|| self.mismatch("an object", value))?;
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort_by_key(|(key, _)| *key);
                for (key, item) in sorted {
                    let mut entry = Vec::new();
                    put_bytes(&mut entry, 1, key.as_bytes());
                    self.value(*inner, 2, item, &mut entry)?;
                    put_bytes(out, self.field.tag, &entry);
                }
                Ok(())
            }
            ty => self.value(ty, self.field.tag, value, out),
        }
    }

    fn value(self, ty: Type, tag: u32, value: &Value, out: &mut Vec<u8>) -> Result<(), Error> {
        match ty {
            Type::String => put_bytes(out, tag, self.text(value)?.as_bytes()),
            Type::Int32 | Type::Int64 => put_number(out, tag, self.number(value)?),
            Type::Boolean => {
                let truth = value.as_bool().ok_or_else(|| self.mismatch("a boolean", value))?;
                put_number(out, tag, i64::from(truth));
            }
            Type::Double => put_double(out, tag, value.as_f64().ok_or_else(|| self.mismatch("a number", value))?),
            Type::Bytes => {
                let fault = |at| self.fault(format!("illegal base64 data at input byte {at}"));
                put_bytes(out, tag, &super::base64(self.text(value)?).map_err(fault)?);
            }
            _ => {
                let mut inner = Vec::new();
                self.inner(ty, value, &mut inner)?;
                put_bytes(out, tag, &inner);
            }
        }
        Ok(())
    }

    /// The content of what is a message on the wire.
    fn inner(self, ty: Type, value: &Value, out: &mut Vec<u8>) -> Result<(), Error> {
        match ty {
            Type::Object(_) if value.is_object() || value.is_null() => match ty.definition() {
                Some(definition) => message(definition, value, out, self.depth)?,
                None => return Err(self.mismatch("a known object", value)),
            },
            Type::Time | Type::MicroTime => self.time(value, out)?,
            Type::Quantity => match value {
                Value::Number(number) => put_bytes(out, 1, number.to_string().as_bytes()),
                other => put_bytes(out, 1, self.text(other)?.as_bytes()),
            },
            Type::IntOrString => match value {
                Value::String(text) => {
                    put_number(out, 1, 1);
                    put_number(out, 2, 0);
                    put_bytes(out, 3, text.as_bytes());
                }
                other => {
                    put_number(out, 1, 0);
                    put_number(out, 2, self.number(other)?);
                    put_bytes(out, 3, b"");
                }
            },
            Type::RawExtension | Type::FieldsV1 | Type::Json => put_bytes(out, 1, value.to_string().as_bytes()),
            Type::StringList => {
                for item in value.as_array().ok_or_else(|| self.mismatch("a list", value))? {
                    put_bytes(out, 1, self.text(item)?.as_bytes());
                }
            }
            Type::SchemaOr(or, _) => self.schema_or(or, ty, value, out)?,
            _ => return Err(self.mismatch("an object", value)),
        }
        Ok(())
    }

    fn time(self, value: &Value, out: &mut Vec<u8>) -> Result<(), Error> {
        let text = self.text(value)?;
        if text.is_empty() {
            return Ok(());
        }
        let (seconds, nanos) = time::parse(text).ok_or_else(|| self.mismatch("a time", value))?;
        put_number(out, 1, seconds);
        put_number(out, 2, i64::from(nanos));
        Ok(())
    }

    fn schema_or(self, or: SchemaOr, ty: Type, value: &Value, out: &mut Vec<u8>) -> Result<(), Error> {
        let Some(definition) = ty.definition() else { return Ok(()) };
        let schema = |value: &Value| {
            let mut inner = Vec::new();
            message(definition, value, &mut inner, self.depth).map(|()| inner)
        };
        match (or, value) {
            (SchemaOr::Bool, Value::Bool(allows)) => put_number(out, 1, i64::from(*allows)),
            (SchemaOr::Bool, Value::Object(_)) => {
                put_number(out, 1, 1);
                put_bytes(out, 2, &schema(value)?);
            }
            (_, Value::Object(_)) => put_bytes(out, 1, &schema(value)?),
            (SchemaOr::Array, Value::Array(list)) => {
                for item in list {
                    put_bytes(out, 2, &schema(item)?);
                }
            }
            (SchemaOr::StringArray, Value::Array(list)) => {
                for item in list {
                    put_bytes(out, 2, self.text(item)?.as_bytes());
                }
            }
            _ => return Err(self.mismatch("a schema", value)),
        }
        Ok(())
    }

    fn text(self, value: &Value) -> Result<&str, Error> {
        value.as_str().ok_or_else(|| self.mismatch("a string", value))
    }

    fn number(self, value: &Value) -> Result<i64, Error> {
        value.as_i64().ok_or_else(|| self.mismatch("an integer", value))
    }

    fn mismatch(self, wanted: &str, value: &Value) -> Error {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.fault(format!("want {wanted}, found {found}"))
    }

    fn fault(self, why: String) -> Error {
        Error::Value { owner: self.definition.short_name(), field: self.field.name, why }
    }
}
