//! Any bytes are a configuration to each CNI plugin, or are refused with one line of an error; STATUS reads all of it
//! and does nothing. What they find on a node is read or passed over.
#![no_main]

use cni_plugins::{PLUGINS, skel};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cni_plugins::read_any(bytes);
    let environment = |key: &str| match key {
        "CNI_COMMAND" => Some("STATUS".to_owned()),
        "CNI_PATH" => Some("/nonexistent".to_owned()),
        _ => None,
    };
    for (_, plugin) in PLUGINS {
        let mut answer = Vec::new();
        skel::run(plugin, &environment, &mut &bytes[..], &mut answer);
        if !answer.is_empty() {
            let error: api::cni::Error = serde_json::from_slice(&answer).expect("an error is JSON");
            assert!(error.code > 0 && !error.msg.contains('\n'));
        }
    }
});
