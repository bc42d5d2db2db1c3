//! Any bytes are the kernel's answer to each question of netlink, or are refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = kernel::netlink::read_any(bytes);
});
