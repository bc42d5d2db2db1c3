//! A network configuration, a plugin's result or an entry of the cache parses or is refused; what parses can be written
//! and reads the same.
#![no_main]

use api::cni::{NetworkConfigList, Success, VERSIONS};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(list) = NetworkConfigList::parse(bytes) {
        let text = serde_json::to_vec(&list).expect("a list can be written");
        assert_eq!(NetworkConfigList::parse(&text).expect("what was written parses"), list);
    }
    cri_shim::cni::is_entry(bytes);
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    let Ok(result) = Success::parse(&value) else { return };
    for version in VERSIONS {
        let written = result.render(version).expect("a known version");
        Success::parse(&written).expect("what was written parses");
    }
});
