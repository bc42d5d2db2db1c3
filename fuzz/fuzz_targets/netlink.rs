//! Any bytes are the kernel's answer to each question of netlink, or are refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kernel::netlink::decode(bytes);
    let _ = kernel::netlink::read_any(bytes);
    let _ = kernel::conntrack::read_flow(bytes);
    let _ = kernel::nftables::generation(bytes);
});
