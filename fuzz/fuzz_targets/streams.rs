//! A message of exec, attach or port-forward over WebSocket is what a protocol says or breaks it, and what is read is
//! written alike; so are the sizes of a terminal and how a command ended. The first byte chooses the protocol.
#![no_main]

use cri_shim::stream::Sizes;
use streams::channel::{Protocol, Received};
use streams::forward::tunneled;
use streams::remote::Outcome;

const NAMES: [&str; 4] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "base64.channel.k8s.io"];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, message)) = bytes.split_first() else { return };
    let name = NAMES[usize::from(*first) % NAMES.len()];
    let protocol = Protocol::negotiate([name]).expect("the protocol is known");
    if let Ok(Received::Data { channel, data }) = protocol.decode(message.to_vec().into())
        && channel < 10
    {
        assert_eq!(protocol.encode(channel, &data), message);
    }
    let outcome = Outcome::of_error_stream(message);
    let _ = (outcome.to_status(), outcome.message());
    let mut sizes = Sizes::default();
    for piece in message.chunks(7) {
        if sizes.feed(piece).is_err() {
            break;
        }
    }
    if let Ok(text) = std::str::from_utf8(message) {
        Protocol::negotiate([text]);
        tunneled([text]);
    }
});
