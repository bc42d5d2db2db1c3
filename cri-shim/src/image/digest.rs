//! Digests of blobs. Source: OCI image specification 1.1, descriptor.md, "Digests".

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// `sha256:` or `sha512:` and lower-case hex: nothing else is a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// The text is no digest that is understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no digest: sha256: and 64 hex digits, or sha512: and 128")]
pub struct DigestError(String);

impl Digest {
    /// # Errors
    /// Where the text is no digest.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let length = match text.split_once(':') {
            Some(("sha256", hex)) if is_hex(hex) => hex.len() == 64,
            Some(("sha512", hex)) if is_hex(hex) => hex.len() == 128,
            _ => false,
        };
        if length { Ok(Self(text.to_owned())) } else { Err(DigestError(text.chars().take(200).collect())) }
    }

    /// The SHA-256 digest.
    pub fn of(bytes: &[u8]) -> Self {
        Self(format!("sha256:{}", hex(&Sha256::digest(bytes))))
    }

    /// Whether it is that of `bytes`.
    pub fn fits(&self, bytes: &[u8]) -> bool {
        if self.0.starts_with("sha512:") {
            self.hex() == hex(&Sha512::digest(bytes))
        } else {
            self.hex() == hex(&Sha256::digest(bytes))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands after the colon.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// Whether the text consists of lower-case hex digits.
pub fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_an_algorithm_and_its_hex() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        assert!(Digest::parse(empty).unwrap().fits(b""));
        assert!(!Digest::parse(empty).unwrap().fits(b"x"));
        let long = format!("sha512:{}", hex(&Sha512::digest(b"x")));
        assert!(Digest::parse(&long).unwrap().fits(b"x"));
        for wrong in ["", "sha256:", "sha256:abc", &empty.to_uppercase(), &empty[7..], &format!("md5:{}", &empty[7..])]
        {
            assert!(Digest::parse(wrong).is_err(), "{wrong}");
        }
    }
}
