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
    let bytes: Vec<String> = json.to_string().bytes().map(|byte| byte.to_string()).collect();
    let printed = format!("([]uint8)[{}]", bytes.join(" "));
    let sum = printed.bytes().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{sum:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_the_kubelets() {
        let container = Container { name: "a".into(), image: Some("busybox:1".into()), ..Container::default() };
        // What kubelet 1.37.1 computes for it.
        assert_eq!(hash(&container), "383123a6");
    }
}
