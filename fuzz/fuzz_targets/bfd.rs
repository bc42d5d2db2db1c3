//! A BFD packet is dropped or moves a session, and what was read is written alike.
#![no_main]

use std::time::Duration;

use bgp::bfd::{Packet, Session, Settings};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let interval = Duration::from_millis(300);
    let mut session = Session::new(Settings { discriminator: 1, transmit: interval, receive: interval, multiplier: 3 });
    session.start();
    for bytes in bytes.chunks(24) {
        if let Ok(packet) = Packet::decode(bytes) {
            assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
            session.receive(&packet);
        }
        session.transmit();
    }
    session.detect();
});
