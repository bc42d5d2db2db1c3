//! A vendor's description of devices is read or refused.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = cri_shim::container::spec::cdi::is_valid(bytes);
});
