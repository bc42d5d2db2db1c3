//! Messages to JSON objects.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::wire::{Raw, Reader};
use super::{DEPTH, Error, MAGIC};
use crate::schema::{Definition, Field, SchemaOr, Type, hidden};
use crate::{quantity::Quantity, time};

/// A bare message as an object, without `apiVersion` and `kind` at its root.
///
/// # Errors
/// Where the bytes are cut or garbage.
pub fn decode_message(definition: &'static Definition, bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    object(definition, bytes, DEPTH)
}

fn object(definition: &'static Definition, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, Error> {
    let mut object = Map::new();
    fields(definition, bytes, &mut object, depth)?;
    object.retain(|name, value| definition.field(name).is_none_or(|field| !hidden(field, value)));
    Ok(object)
}

fn fields(
    definition: &'static Definition,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Error> {
    let depth = depth.checked_sub(1).ok_or(Error::TooDeep)?;
    let mut reader = Reader::new(bytes, definition.short_name());
    while let Some((tag, raw)) = reader.next()? {
        if let Some(inline) = definition.inlines.iter().find(|i| i.tag == tag) {
            fields(inline.definition(), reader.bytes(tag, raw)?, object, depth)?;
        } else if let Some(field) = definition.tagged(tag) {
            let place = Place { definition, tag, depth };
            place.put(field, raw, object)?;
        }
    }
    Ok(())
}

/// Where in the messages the decoder stands.
#[derive(Clone, Copy)]
struct Place {
    definition: &'static Definition,
    tag: u32,
    depth: usize,
}

impl Place {
    fn put(self, field: &'static Field, raw: Raw<'_>, object: &mut Map<String, Value>) -> Result<(), Error> {
        match field.ty {
            Type::Array(inner) => {
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Some(list) = list.as_array_mut() {
                    self.elements(*inner, raw, list)?;
                }
            }
            Type::Map(inner) => {
                let (key, value) = self.entry(*inner, raw)?;
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
            ty => {
                let value = self.value(ty, raw)?;
                object.insert(field.name.to_owned(), value);
            }
        }
        Ok(())
    }

    /// One element, or several numbers in one packed field.
    fn elements(self, inner: Type, raw: Raw<'_>, list: &mut Vec<Value>) -> Result<(), Error> {
        match (inner, raw) {
            (Type::Int32 | Type::Int64 | Type::Boolean, Raw::Bytes(packed)) => {
                let mut numbers = Reader::new(packed, self.owner());
                while !numbers.at_end() {
                    list.push(self.value(inner, Raw::Varint(numbers.varint()?))?);
                }
            }
            _ => list.push(self.value(inner, raw)?),
        }
        Ok(())
    }

    fn entry(self, inner: Type, raw: Raw<'_>) -> Result<(String, Value), Error> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = self.message(raw)?;
        while let Some((tag, raw)) = reader.next()? {
            match tag {
                1 => key = reader.text(tag, raw)?.to_owned(),
                2 => value = Some(self.value(inner, raw)?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            None => self.value(inner, Raw::Bytes(&[]))?,
        };
        Ok((key, value))
    }

    fn value(self, ty: Type, raw: Raw<'_>) -> Result<Value, Error> {
        let reader = Reader::new(&[], self.owner());
        Ok(match ty {
            Type::String => Value::String(reader.text(self.tag, raw)?.to_owned()),
            Type::Int32 => Value::from(reader.number(self.tag, raw)? as i32),
            Type::Int64 => Value::from(reader.number(self.tag, raw)?),
            Type::Boolean => Value::Bool(reader.number(self.tag, raw)? != 0),
            Type::Double => match raw {
                Raw::Fixed64(bits) => Value::from(f64::from_bits(bits)),
                _ => return Err(reader.fault(self.tag, "wrong wire type, want 64 bits")),
            },
            Type::Bytes => Value::String(STANDARD.encode(reader.bytes(self.tag, raw)?)),
            Type::Time => match self.time(raw)? {
                (0, _) => Value::Null,
                (seconds, _) => time::format(seconds).into(),
            },
            Type::MicroTime => match self.time(raw)? {
                (0, ..1000) => Value::Null,
                (seconds, nanos) => time::format_micro(seconds, nanos / 1000).into(),
            },
            Type::Quantity => self.quantity(raw)?,
            Type::IntOrString => self.int_or_string(raw)?,
            Type::RawExtension | Type::FieldsV1 | Type::Json => self.embedded(raw)?,
            Type::StringList => Value::Array(self.strings(1, raw)?),
            Type::Object(_) => match ty.definition() {
                Some(definition) => Value::Object(object(definition, reader.bytes(self.tag, raw)?, self.depth)?),
                None => Value::Null,
            },
            Type::SchemaOr(or, _) => self.schema_or(or, ty, raw)?,
            Type::Array(_) | Type::Map(_) => return Err(reader.fault(self.tag, "list in a list")),
        })
    }

    fn owner(self) -> &'static str {
        self.definition.short_name()
    }

    fn message<'a>(self, raw: Raw<'a>) -> Result<Reader<'a>, Error> {
        match raw {
            Raw::Bytes(bytes) => Ok(Reader::new(bytes, self.owner())),
            _ => Err(Reader::new(&[], self.owner()).fault(self.tag, "wrong wire type, want bytes")),
        }
    }

    /// Seconds and nanoseconds. Both zero is no time, as far as the field's form shows them.
    fn time(self, raw: Raw<'_>) -> Result<(i64, u32), Error> {
        let (mut seconds, mut nanos) = (0, 0);
        let mut reader = self.message(raw)?;
        while let Some((tag, raw)) = reader.next()? {
            match tag {
                1 => seconds = reader.number(tag, raw)?,
                2 => nanos = reader.number(tag, raw)?,
                _ => {}
            }
        }
        Ok((seconds, u32::try_from(nanos).unwrap_or(0)))
    }

    fn quantity(self, raw: Raw<'_>) -> Result<Value, Error> {
        let mut reader = self.message(raw)?;
        let mut text = "";
        while let Some((tag, raw)) = reader.next()? {
            if tag == 1 {
                text = reader.text(tag, raw)?;
            }
        }
        if text.is_empty() {
            return Ok("0".into());
        }
        let quantity: Quantity = text.parse().map_err(|_| reader.fault(self.tag, "text is no quantity"))?;
        Ok(Value::String(quantity.to_string()))
    }

    fn int_or_string(self, raw: Raw<'_>) -> Result<Value, Error> {
        let (mut is_text, mut number, mut text) = (false, 0, "");
        let mut reader = self.message(raw)?;
        while let Some((tag, raw)) = reader.next()? {
            match tag {
                1 => is_text = reader.number(tag, raw)? == 1,
                2 => number = reader.number(tag, raw)? as i32,
                3 => text = reader.text(tag, raw)?,
                _ => {}
            }
        }
        Ok(if is_text { text.into() } else { number.into() })
    }

    /// Bytes that are JSON, or an enveloped body.
    fn embedded(self, raw: Raw<'_>) -> Result<Value, Error> {
        let mut reader = self.message(raw)?;
        let mut bytes: &[u8] = &[];
        while let Some((tag, raw)) = reader.next()? {
            if tag == 1 {
                bytes = reader.bytes(tag, raw)?;
            }
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        if bytes.starts_with(MAGIC) {
            let envelope = super::open(bytes)?;
            let definition = super::definition_of(&envelope.api_version, &envelope.kind)?;
            let mut inner = Map::new();
            inner.insert("apiVersion".into(), envelope.api_version.into());
            inner.insert("kind".into(), envelope.kind.into());
            inner.extend(object(definition, envelope.raw, self.depth)?);
            return Ok(Value::Object(inner));
        }
        let fault =
            |e: serde_json::Error| Error::EmbeddedJson { owner: self.owner(), tag: self.tag, why: e.to_string() };
        serde_json::from_slice(bytes).map_err(fault)
    }

    fn strings(self, wanted: u32, raw: Raw<'_>) -> Result<Vec<Value>, Error> {
        let mut list = Vec::new();
        let mut reader = self.message(raw)?;
        while let Some((tag, raw)) = reader.next()? {
            if tag == wanted {
                list.push(reader.text(tag, raw)?.into());
            }
        }
        Ok(list)
    }

    /// A schema in field 1 (in 2 beside a bool), or what stands for it.
    fn schema_or(self, or: SchemaOr, ty: Type, raw: Raw<'_>) -> Result<Value, Error> {
        let Some(definition) = ty.definition() else { return Ok(Value::Null) };
        let (mut schema, mut allows, mut list) = (None, false, Vec::new());
        let mut reader = self.message(raw)?;
        while let Some((tag, raw)) = reader.next()? {
            match (or, tag) {
                (SchemaOr::Bool, 1) => allows = reader.number(tag, raw)? != 0,
                (SchemaOr::Bool, 2) | (_, 1) => {
                    schema = Some(object(definition, reader.bytes(tag, raw)?, self.depth)?);
                }
                (SchemaOr::Array, 2) => {
                    list.push(Value::Object(object(definition, reader.bytes(tag, raw)?, self.depth)?));
                }
                (SchemaOr::StringArray, 2) => list.push(reader.text(tag, raw)?.into()),
                _ => {}
            }
        }
        Ok(match (schema, or) {
            (Some(schema), _) => Value::Object(schema),
            (None, SchemaOr::Bool) => Value::Bool(allows),
            (None, _) => Value::Array(list),
        })
    }
}
