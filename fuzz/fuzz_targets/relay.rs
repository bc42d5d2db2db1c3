//! The head of a request to the registry relay is refused, or what is sent on of it reads the same and keeps the secret.
#![no_main]

#[path = "../../bosun/src/relay/request.rs"]
mod request;

use request::{Head, Route};

// What the module takes from the one around it.
const LOOPBACK: &str = "loopback.bosun.internal";
const SECRET_HEADER: &str = "x-bosun-relay";
struct Secret;

impl Secret {
    fn as_str(&self) -> &'static str {
        "known-to-containerd-alone"
    }
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Some(head) = Head::parse(text)
        && !text.contains(Secret.as_str())
    {
        assert!(matches!(head.route(&Secret), Route::Refuse("407 Proxy Authentication Required")));
    }
    let (first, rest) = text.split_once("\r\n").unwrap_or((text, "\r\n"));
    let Some(head) = Head::parse(&format!("{first}\r\n{SECRET_HEADER}: {}\r\n{rest}", Secret.as_str())) else { return };
    if let Route::Forward { head: sent, .. } = head.route(&Secret) {
        let sent = Head::parse(&sent).expect("what is sent on is a head");
        assert_eq!(sent.method, head.method);
        let secret = |(name, _): &(String, String)| {
            ["proxy-authorization", SECRET_HEADER].contains(&&*name.to_ascii_lowercase())
        };
        assert!(!sent.headers.iter().any(secret));
    }
});
