//! From a container in a pod's spec to what the CRI is asked to create.

pub mod config;
pub mod env;
pub mod expand;
pub mod resources;
pub mod security;
pub mod service_links;

use k8s_openapi::api::core::v1::Container;

/// The kubelet's fingerprint of what, when changed, makes a container be replaced: its name and image. It is equal to
/// the kubelet's own (FNV-1a over how Go prints the JSON's bytes), so that the two can take over from one another.
pub fn hash(container: &Container) -> String {
    let json = serde_json::json!({"image": container.image.as_deref().unwrap_or_default(), "name": container.name});
    let bytes: Vec<String> = json.to_string().bytes().map(|byte| format!("{byte:#x}")).collect();
    let printed = format!("([]uint8){{{}}}", bytes.join(", "));
    let sum = printed.bytes().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{sum:x}")
}
