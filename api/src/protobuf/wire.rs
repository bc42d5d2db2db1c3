//! The protobuf wire format: varints, lengths, tags.

use super::Error;

/// A field's value as the wire has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Walks over the fields of one message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// The message's name, for errors.
    owner: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], owner: &'static str) -> Self {
        Self { rest: bytes, owner }
    }

    /// The next field's number and value, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Raw<'a>)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).unwrap_or(0);
        if tag == 0 {
            return Err(self.fault(tag, "illegal field number"));
        }
        let value = match key & 7 {
            0 => Raw::Varint(self.varint()?),
            1 => Raw::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Raw::Bytes(self.take(length)?)
            }
            5 => Raw::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(self.fault(tag, "illegal wire type")),
        };
        Ok(Some((tag, value)))
    }

    pub(super) fn bytes(&self, tag: u32, value: Raw<'a>) -> Result<&'a [u8], Error> {
        match value {
            Raw::Bytes(bytes) => Ok(bytes),
            _ => Err(self.fault(tag, "wrong wire type, want bytes")),
        }
    }

    pub(super) fn text(&self, tag: u32, value: Raw<'a>) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes(tag, value)?).map_err(|_| self.fault(tag, "text is not UTF-8"))
    }

    pub(super) fn number(&self, tag: u32, value: Raw<'a>) -> Result<i64, Error> {
        match value {
            Raw::Varint(number) => Ok(number.cast_signed()),
            _ => Err(self.fault(tag, "wrong wire type, want varint")),
        }
    }

    pub(super) fn fault(&self, tag: u32, why: &'static str) -> Error {
        Error::Field { owner: self.owner, tag, why }
    }

    pub(super) fn at_end(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.fault(0, "varint is longer than 64 bits"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Error::Truncated(self.owner))?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Error::Truncated(self.owner))?;
        self.rest = rest;
        Ok(head)
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A number or boolean with its field's number.
pub fn put_number(out: &mut Vec<u8>, tag: u32, value: i64) {
    put_varint(out, u64::from(tag) << 3);
    put_varint(out, value.cast_unsigned());
}

pub(super) fn put_double(out: &mut Vec<u8>, tag: u32, value: f64) {
    put_varint(out, u64::from(tag) << 3 | 1);
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

/// A string, bytes, or a message with its field's number.
pub fn put_bytes(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    put_varint(out, u64::from(tag) << 3 | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}
