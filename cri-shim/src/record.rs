//! What the shim writes down: ids, times, and CRI messages inside JSON.
//!
//! A record is JSON, so that a person can read it; a CRI message within it is protobuf in Base64, so that a field that
//! this version does not know survives being read and written by it.

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Any;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a record could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the {kind} record of {id}: {source}")]
    Read { kind: &'static str, id: String, source: serde_json::Error },
    #[error("cannot write a {kind} record: {source}")]
    Write { kind: &'static str, source: serde_json::Error },
}

/// `record` as an extension of a containerd container.
///
/// # Errors
/// Where the value cannot be written as JSON.
pub fn to_extension<T: Serialize>(kind: &'static str, record: &T) -> Result<Any, Error> {
    let value = serde_json::to_vec(record).map_err(|source| Error::Write { kind, source })?;
    Ok(Any { type_url: kind.to_owned(), value })
}

/// The record in an extension of the container `id`.
///
/// # Errors
/// Where it is no such record.
pub fn from_extension<T: DeserializeOwned>(kind: &'static str, id: &str, extension: &Any) -> Result<T, Error> {
    serde_json::from_slice(&extension.value).map_err(|source| Error::Read { kind, id: id.to_owned(), source })
}

/// A new id: 64 hexadecimal digits, as everyone who reads CRI ids expects them.
pub fn new_id() -> String {
    let mut bytes = [0_u8; 32];
    // Fails only where the kernel has no entropy at all; then two halves of the clock are as good as it gets.
    if rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes).is_err() {
        bytes[..8].copy_from_slice(&now().to_be_bytes());
        bytes[8..12].copy_from_slice(&std::process::id().to_be_bytes());
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Nanoseconds since 1970, as the CRI counts time.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// For `#[serde(with)]`: a protobuf message as Base64.
pub mod message {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use prost::Message;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<M: Message, S: Serializer>(message: &M, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(message.encode_to_vec()))
    }

    pub fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(deserializer: D) -> Result<M, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        M::decode(bytes.as_slice()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_hex_digits_and_differ() {
        let (a, b) = (new_id(), new_id());
        assert_ne!(a, b);
        assert!(a.len() == 64 && a.bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase()), "{a}");
    }
}
