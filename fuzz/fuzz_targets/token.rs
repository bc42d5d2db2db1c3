//! A bearer's token is one that a key signed, or none; claims that were signed come back as they are, are judged, and name
//! a user.
#![no_main]

use std::sync::LazyLock;

use control_plane::token::{Claims, Keys, check};

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("bosun-fuzz-token-{}", std::process::id()));
    lifecycle::pki::ensure_cluster_pki(&folder, &[], &[]).expect("new keys");
    let keys = Keys::load(&folder.join("sa.key"), &[folder.join("sa.pub")]).expect("the keys");
    std::fs::remove_dir_all(folder).expect("the folder goes");
    keys
});

libfuzzer_sys::fuzz_target!(|text: &str| {
    assert_eq!(KEYS.decode(text), None, "nobody signed it");
    let Ok(claims) = serde_json::from_str::<Claims>(text) else { return };
    let token = KEYS.encode(&claims).expect("claims are signed");
    let read = KEYS.decode(&token).expect("a token of ours");
    assert_eq!(read, claims);
    let _ = check(&read, &claims.iss, &claims.aud, 1_800_000_000);
    read.user();
});
