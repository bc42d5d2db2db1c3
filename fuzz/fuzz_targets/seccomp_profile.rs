//! A seccomp profile is read or refused, and what was read becomes a filter.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(profile) = cri_shim::seccomp::Profile::parse(bytes) {
        let _ = profile.resolve(&Default::default());
    }
});
