//! What the kernel tells of links, addresses, routes and neighbours is read or lost.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kernel::netlink::decode(bytes);
});
