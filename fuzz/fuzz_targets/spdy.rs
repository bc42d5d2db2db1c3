//! Whatever a peer sends, a session of either side answers, refuses or waits; it never panics, and holds no more than it
//! was sent. The first byte chooses the side.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streams::spdy::{Event, Session, Side};

fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let mut session = Session::new(if first % 2 == 1 { Side::Client } else { Side::Server });
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
