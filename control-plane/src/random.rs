//! Identities: UIDs, generated names, seeds.

use std::sync::OnceLock;

use rustls::crypto::SecureRandom;

fn bytes<const N: usize>() -> [u8; N] {
    static SOURCE: OnceLock<&'static dyn SecureRandom> = OnceLock::new();
    let source = SOURCE.get_or_init(|| rustls::crypto::aws_lc_rs::default_provider().secure_random);
    let mut bytes = [0; N];
    if source.fill(&mut bytes).is_err() {
        // The kernel's generator cannot fail once it is seeded; without it no identity would be safe.
        panic!("the system gives no random numbers");
    }
    bytes
}

/// A seed for a choice.
pub(crate) fn seed() -> u64 {
    u64::from_ne_bytes(bytes())
}

/// A version 4 UUID (RFC 9562).
pub(crate) fn uid() -> String {
    let mut b: [u8; 16] = bytes();
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A name from `generateName`.
pub(crate) fn name(base: &str) -> String {
    api::meta::generated_name(base, seed())
}
