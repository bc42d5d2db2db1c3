//! A request at the net daemon's socket is read or refused, and what was read reads the same again; so is a question of a
//! trace, and what nft lists.
#![no_main]

use net::control::Request;
use net::policy::listing::{Listing, read_counters, read_met};
use net::trace::Question;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let text = serde_json::to_vec(&request).expect("a request can be written");
        assert_eq!(serde_json::from_slice::<Request>(&text).expect("what was written parses"), request);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        Listing::read(text);
        read_counters(text);
        read_met(text);
        net::routes::is_listing(text);
        let (from, to) = text.split_once(' ').unwrap_or((text, "a/b:80"));
        let _ = Question::parse(from, to);
    }
});
