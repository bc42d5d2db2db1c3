//! A line to the keeper of output is an order that is written as it was read, or is refused.
#![no_main]

use cri_shim::keeper::Order;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(order) = Order::parse(bytes) {
        assert_eq!(order.to_string().as_bytes(), bytes);
    }
});
