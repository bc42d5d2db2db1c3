//! Whatever a peer sends, a session answers, refuses or waits; it never panics, and holds no more than it was sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streams::spdy::{Event, Session, Side};

fuzz_target!(|bytes: &[u8]| {
    let mut session = Session::new(Side::Server);
    for piece in bytes.chunks(97) {
        let Ok(events) = session.receive(piece) else { return };
        for event in events {
            match event {
                Event::Opened { id, .. } => drop(session.reply(id)),
                Event::Data { id, data } => session.consumed(id, data.len()),
                Event::Finished(id) => session.finish(id),
                _ => {}
            }
        }
        session.take_output();
    }
    assert_eq!(session.backlog(), 0);
});
