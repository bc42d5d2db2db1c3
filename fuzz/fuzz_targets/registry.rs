//! What a registry, an archive or hosts.toml may hold is read or refused, within bounds.
#![no_main]

use std::path::Path;
use std::time::Instant;

use cri_shim::image::archive::Archive;
use cri_shim::image::manifest;
use cri_shim::image::reference::Reference;
use cri_shim::image::registry::{auth, failure, hosts, proxy};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = manifest::decode(bytes);
    let _ = Archive::read(bytes.to_vec().into());
    let _ = auth::token_answer(bytes, Instant::now());
    let _ = failure::words(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = hosts::parse(text, Path::new("/certs/a/hosts.toml"), "a.b");
    let _ = proxy::Proxies::from(|_| Some(text.to_owned()));
    for challenge in auth::challenges(text) {
        let _ = auth::token_request(&challenge, None, "x", true);
    }
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()).expect("a full form is a reference"), reference);
    }
});
