//! The Container Network Interface: what a runtime and a plugin say to each other.
//!
//! One form in memory, the newest; [`Success::render`] and [`Success::parse`] speak the older ones.
//! Source: the CNI specification, 1.1.0 and before, and its CONVENTIONS.

mod config;
mod result;

pub use config::{
    Attachment, Bandwidth, CniArgs, DnsRequest, IpRange, NetworkConfig, NetworkConfigList, PortMapping, RuntimeConfig,
    is_identifier, negotiate,
};
pub use result::{Dns, Interface, Ip, Route, Success};

use serde::{Deserialize, Serialize};

/// The versions spoken, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The error codes that the specification reserves, and the first that plugins may define.
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const UNSUPPORTED_FIELD: u32 = 2;
    pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const IO_FAILURE: u32 = 5;
    pub const DECODING_FAILURE: u32 = 6;
    pub const INVALID_NETWORK_CONFIG: u32 = 7;
    pub const TRY_AGAIN_LATER: u32 = 11;
    pub const PLUGIN_NOT_AVAILABLE: u32 = 50;
    pub const PLUGIN_NOT_AVAILABLE_LIMITED: u32 = 51;
    /// What the reference plugins use where nothing more exact is known.
    pub const INTERNAL: u32 = 999;
}

/// A plugin's error as it goes to standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct Error {
    #[serde(rename = "cniVersion", default, skip_serializing_if = "String::is_empty")]
    pub cni_version: String,
    pub code: u32,
    pub msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    /// `code` is one of [`code`], or the plugin's own from 100 on.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { cni_version: String::new(), code, msg: msg.into(), details: String::new() }
    }

    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_NETWORK_CONFIG, msg)
    }

    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(code::INTERNAL, error.to_string())
    }
}

/// The answer to VERSION.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    #[serde(rename = "cniVersion")]
    pub cni_version: String,
    #[serde(rename = "supportedVersions")]
    pub supported_versions: Vec<String>,
}

impl VersionInfo {
    /// What a plugin answers that speaks all of [`VERSIONS`], in the version it was asked in.
    pub fn ours(asked: &str) -> Self {
        Self { cni_version: asked.to_owned(), supported_versions: VERSIONS.map(str::to_owned).to_vec() }
    }
}

/// Networks and addresses as strings.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| de::Error::custom(format!("{text:?}: {error}")))
    }
}
