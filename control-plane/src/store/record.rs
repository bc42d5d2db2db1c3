//! How a change lies in the log: `created` u64, `expires` u64, length of the key u32, the key, the value; big endian.

use super::Revision;

const HEAD: usize = 20;

/// One change, borrowed from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// 0 marks a deletion.
    pub created: Revision,
    /// Seconds since 1970; 0 for never.
    pub expires: u64,
    pub key: &'a str,
    pub value: &'a [u8],
}

impl<'a> Record<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.key.len() + self.value.len());
        bytes.extend(self.created.to_be_bytes());
        bytes.extend(self.expires.to_be_bytes());
        bytes.extend((self.key.len() as u32).to_be_bytes());
        bytes.extend(self.key.as_bytes());
        bytes.extend(self.value);
        bytes
    }

    /// None where the bytes are no record.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (created, rest) = bytes.split_first_chunk::<8>()?;
        let (expires, rest) = rest.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (key, value) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        Some(Self {
            created: u64::from_be_bytes(*created),
            expires: u64::from_be_bytes(*expires),
            key: std::str::from_utf8(key).ok()?,
            value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn comes_back_as_it_went(created: u64, expires: u64, key: String, value: Vec<u8>) {
            let record = Record { created, expires, key: &key, value: &value };
            let encoded = record.encode();
            prop_assert_eq!(Record::decode(&encoded), Some(record));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&bytes);
        }
    }
}
