//! A request's line and its Accept header, apart by a newline, are understood or refused.
#![no_main]

use std::sync::LazyLock;

use control_plane::registry::{Registry, kinds::RESOURCES};

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry::new(RESOURCES.to_vec()));

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (target, accepts) = text.split_once('\n').unwrap_or((text, ""));
    control_plane::request::read_any(&REGISTRY, target, accepts);
});
