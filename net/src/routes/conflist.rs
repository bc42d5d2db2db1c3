//! The CNI configuration list that a runtime reads: pods by plugin `routed`, with addresses from the node's ranges.

use std::io;
use std::path::Path;

use ipnetwork::IpNetwork;
use serde_json::json;

/// The file's name in the runtime's folder.
pub const FILE: &str = "10-bosun.conflist";

/// The list's text.
pub fn render(pod_cidrs: &[IpNetwork], mtu: u32) -> String {
    let ranges: Vec<_> = pod_cidrs.iter().map(|cidr| json!([{"subnet": cidr.to_string()}])).collect();
    let list = json!({
        // containerd 1.6 knows no later version; a newer runtime may choose one, and collects garbage then.
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "bosun",
        "plugins": [
            {"type": "routed", "mtu": mtu, "ipam": {"type": "host-local", "ranges": ranges}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            // Last, so that all of a pod's network stands when its policies come into force.
            {"type": "policy"},
        ],
    });
    format!("{list:#}\n")
}

/// Writes it where it differs. Returns whether it did.
///
/// # Errors
/// Where the folder cannot be made or written.
pub fn write(folder: &Path, text: &str) -> io::Result<bool> {
    let path = folder.join(FILE);
    if std::fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return Ok(false);
    }
    std::fs::create_dir_all(folder)?;
    lifecycle::file::write_atomic(&path, text.as_bytes(), 0o644)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_one_that_a_runtime_takes_and_is_written_once() {
        let text = render(&["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()], 1450);
        let list = api::cni::NetworkConfigList::parse(text.as_bytes()).unwrap();
        assert_eq!((list.name.as_str(), list.version()), ("bosun", Some("1.1.0")));
        assert_eq!(list.plugins[0]["ipam"]["ranges"][1][0]["subnet"], "fd00:1::/64");
        assert_eq!(list.plugins[0]["mtu"], 1450);
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("net.d");
        assert!(write(&folder, &text).unwrap());
        assert!(!write(&folder, &text).unwrap());
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
    }
}
