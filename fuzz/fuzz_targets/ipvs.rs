//! Whatever a netlink answer about IPVS holds, it is read or refused.
#![no_main]

use kernel::ipvs::{read_destination, read_server};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = read_server(bytes);
    for v4 in [true, false] {
        let _ = read_destination(bytes, v4);
    }
});
