//! Specs as containerd carries them: JSON in a protobuf Any, told apart by a type URL. Source: containerd's typeurl.

use prost_types::Any;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
pub const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
pub const LINUX_RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// # Errors
/// Never for the types of oci-spec whose paths are UTF-8.
pub fn encode<T: Serialize>(type_url: &str, value: &T) -> serde_json::Result<Any> {
    Ok(Any { type_url: type_url.into(), value: serde_json::to_vec(value)? })
}

/// # Errors
/// Where the bytes are not such a value.
pub fn decode<T: DeserializeOwned>(any: &Any) -> serde_json::Result<T> {
    serde_json::from_slice(&any.value)
}
