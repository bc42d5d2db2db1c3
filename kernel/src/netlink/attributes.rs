//! Messages that the packet library has no types for: a fixed header and attributes, as netlink(7) lays them out.

use netlink_packet_core::Emitable;

/// A message body under construction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Body(Vec<u8>);

impl Body {
    /// `header` is the family's own structure, a multiple of four bytes.
    pub fn new(header: &[u8]) -> Self {
        Self(header.to_vec())
    }

    /// Appends one attribute and its padding.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    pub fn put_text(&mut self, kind: u16, text: &str) {
        self.put(kind, &[text.as_bytes(), &[0]].concat());
    }

    /// Appends an attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.put(kind, &inner.0);
    }
}

impl Emitable for Body {
    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[..self.0.len()].copy_from_slice(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut body = Body::new(&[1, 2, 3, 4]);
        body.nest(2, |inner| inner.put_text(1, "tbf"));
        let mut bytes = vec![0; body.buffer_len()];
        body.emit(&mut bytes);
        let number = |value: u16| value.to_ne_bytes();
        let expected = [&[1, 2, 3, 4][..], &number(12), &number(2), &number(8), &number(1), b"tbf\0"].concat();
        assert_eq!(bytes, expected);
    }
}
