//! What goes wrong: silence, lost links, wrong messages, flaps.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use bgp::message::{Capabilities, Dialect, Open};
use bgp::{Family, Message, Notification};
use serde_json::json;

use crate::bed::{BIRDS, Bed, bgp, eventually, eventually_with, ours, routes};

#[test]
fn the_hold_timer_ends_a_silent_session() {
    let Some(bed) = Bed::new("the_hold_timer_ends_a_silent_session") else { return };
    let bird = bed.bird(&(routes(["10.50.0.0/24"]) + &bgp(64512, 64512, "graceful restart off; hold time 3;")));
    let mut speaker = bed.speaker(&ours(64512, 64512, json!({"holdTime": 3})), false);
    speaker.established();
    eventually("BIRD's route comes", || speaker.hops("10.50.0.0/24") == json!([BIRDS]));
    bed.cut(true);
    eventually_with("the session ends", || {
        let peer = speaker.peer();
        (peer["lastError"] == "sent hold timer expired (4/0)", peer.to_string())
    });
    assert!(speaker.hops("10.50.0.0/24").is_null(), "without graceful restart its routes go");
    bed.cut(false);
    speaker.established();
    eventually("and come again", || speaker.hops("10.50.0.0/24") == json!([BIRDS]));
    drop(bird);
}

#[test]
fn bfd_is_quicker_than_the_hold_timer() {
    let Some(bed) = Bed::new("bfd_is_quicker_than_the_hold_timer") else { return };
    let _bird = bed.bird(&(routes(["10.50.0.0/24"]) + &bgp(65001, 64512, "bfd on; graceful restart off;")));
    let bfd = json!({"bfd": {"minTxInterval": "100ms", "minRxInterval": "100ms", "multiplier": 3}});
    let mut speaker = bed.speaker(&ours(64512, 65001, bfd), false);
    speaker.established();
    eventually_with("BFD is up", || (speaker.peer()["bfd"] == "Up", speaker.peer().to_string()));
    eventually("BIRD's route comes", || speaker.hops("10.50.0.0/24") == json!([BIRDS]));
    bed.cut(true);
    let begin = Instant::now();
    eventually("BFD sees it", || speaker.peer()["lastError"] == "BFD lost the peer");
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert!(speaker.hops("10.50.0.0/24").is_null());
    bed.cut(false);
    speaker.established();
    eventually("BFD is up again", || speaker.peer()["bfd"] == "Up");
}

#[test]
fn flaps_leave_the_table_right() {
    let Some(bed) = Bed::new("flaps_leave_the_table_right") else { return };
    let bird = bed.bird(&(routes(["10.50.0.0/24"]) + &bgp(64512, 64512, "graceful restart off;")));
    let mut speaker = bed.speaker(&ours(64512, 64512, json!({})), false);
    speaker.originate(&["10.244.1.0/24"]);
    for _ in 0..5 {
        speaker.established();
        bird.ask("disable ours");
        eventually("down", || speaker.peer()["state"] != "Established");
        assert!(speaker.hops("10.50.0.0/24").is_null());
        bird.ask("enable ours");
    }
    speaker.established();
    eventually("its route is there", || speaker.hops("10.50.0.0/24") == json!([BIRDS]));
    eventually("and ours", || bird.learned() == 1);
    for _ in 0..20 {
        bird.ask("disable four");
        bird.ask("enable four");
    }
    eventually("still", || speaker.hops("10.50.0.0/24") == json!([BIRDS]));
    let said = speaker.peer()["lastError"].to_string();
    assert!(said.contains("received cease: administrative shutdown (6/2)"), "{said}");
}

/// A peer of our own making, for what BIRD would never send.
fn wrong_peer(bed: &Bed, first: &[u8], then: &[u8]) -> (Vec<Message>, String) {
    let listener = bed.birds.run(|| TcpListener::bind((BIRDS, 179)).unwrap()).unwrap();
    let mut speaker = bed.speaker(&ours(64512, 65001, json!({})), false);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(first).unwrap();
    if !then.is_empty() {
        eventually("the session stands", || speaker.peer()["state"] == "Established");
        stream.write_all(then).unwrap();
    }
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let mut messages = Vec::new();
    let mut rest = &bytes[..];
    let dialect = Dialect { four_octet_as: true, ..Dialect::BEFORE };
    while let Some(length) = bgp::message::frame(rest, &dialect).unwrap() {
        messages.push(Message::decode(&rest[..length], &dialect).unwrap());
        rest = &rest[length..];
    }
    eventually("it is said", || !speaker.peer()["lastError"].is_null());
    (messages, speaker.peer()["lastError"].as_str().unwrap().to_owned())
}

fn hello(asn: u32) -> Vec<u8> {
    let capabilities = Capabilities { families: vec![Family::Ipv4], ..Capabilities::default() };
    let open = Open::new(asn, 90, BIRDS.parse().unwrap(), capabilities);
    [Message::Open(open).encode(&Dialect::BEFORE), Message::Keepalive.encode(&Dialect::BEFORE)].concat()
}

fn told(messages: &[Message]) -> Notification {
    match messages.last() {
        Some(Message::Notification(notification)) => notification.clone(),
        other => panic!("no NOTIFICATION but {other:?}"),
    }
}

#[test]
fn a_wrong_message_is_answered_with_what_is_wrong() {
    let mut update = [0xff; 16].to_vec();
    update.extend_from_slice(&[0, 28, 2, 0, 0, 0, 0, 33, 1, 2, 3, 4]);
    let marker = [0_u8; 19].to_vec();
    let mut kind = [0xff; 16].to_vec();
    kind.extend_from_slice(&[0, 19, 77]);
    let cases = [
        (hello(65009), vec![], (2, 2), "sent OPEN message error: bad peer AS (2/2), data 00 00 fd f1"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            vec![],
            (1, 1),
            "sent message header error: connection not synchronized (1/1)",
        ),
        (hello(65001), marker, (1, 1), "sent message header error: connection not synchronized (1/1)"),
        (hello(65001), kind, (1, 3), "sent message header error: bad message type (1/3), data 4d"),
        (hello(65001), update, (3, 10), "sent UPDATE message error: invalid network field (3/10)"),
        (
            hello(65001),
            hello(65001),
            (5, 3),
            "sent state machine error: unexpected message in Established state (5/3), data 01",
        ),
    ];
    for (first, then, kind, words) in cases {
        let Some(bed) = Bed::new("a_wrong_message_is_answered_with_what_is_wrong") else { return };
        let (messages, said) = wrong_peer(&bed, &first, &then);
        assert_eq!(told(&messages).kind(), kind, "{words}");
        assert_eq!(said, words);
    }
}

#[test]
fn a_peer_that_bird_refuses_says_so() {
    let Some(bed) = Bed::new("a_peer_that_bird_refuses_says_so") else { return };
    let _bird = bed.bird(&bgp(65001, 64999, ""));
    let mut speaker = bed.speaker(&ours(64512, 65001, json!({})), false);
    eventually_with("BIRD's reason is told", || {
        let said = speaker.peer()["lastError"].to_string();
        (said.contains("received OPEN message error: bad peer AS (2/2)"), said)
    });
}

#[test]
fn a_peer_that_tells_too_much_is_told_so_and_waits() {
    let Some(bed) = Bed::new("a_peer_that_tells_too_much_is_told_so_and_waits") else { return };
    let bird = bed.bird(&(routes(["10.50.0.0/24", "10.51.0.0/24", "10.52.0.0/24"]) + &bgp(65001, 64512, "")));
    let mut speaker = bed.speaker(&ours(64512, 65001, json!({"maxPrefixes": 2})), false);
    eventually_with("it is said", || {
        let peer = speaker.peer();
        let told = "sent cease: maximum number of prefixes reached (6/1): more than 2 of IPv4";
        (peer["lastError"] == told && peer["state"] == "Idle", peer.to_string())
    });
    assert!(speaker.hops("10.50.0.0/24").is_null(), "none of its routes stays");
    eventually_with("BIRD knows why", || {
        let said = bird.ask("show protocols all ours");
        (said.contains("Maximum number of prefixes reached") || said.contains("Hard"), said)
    });
    speaker.ask(&json!({"configure": {"config": ours(64512, 65001, json!({"maxPrefixes": 3}))}}));
    eventually_with("under another limit it need not wait", || {
        let peer = speaker.peer();
        (peer["received"] == 3 && peer["state"] == "Established", peer.to_string())
    });
    assert!(speaker.peer()["lastErrorAgo"].is_u64(), "the error is not of now");
    speaker.ask(&json!({"configure": {"config": ours(64512, 65001, json!({"maxPrefixes": 1}))}}));
    eventually("a lower limit holds at once", || speaker.peer()["state"] == "Idle");
}

/// RFC 5882 section 3.2. BIRD takes the administrator's end of BFD for a failure all the same, which is one of a restart
/// where it was told `bfd graceful`.
#[test]
fn the_end_of_bfd_in_order_loses_no_route() {
    let Some(bed) = Bed::new("the_end_of_bfd_in_order_loses_no_route") else { return };
    let options = "bfd graceful; graceful restart on; graceful restart time 60;";
    let bird = bed.bird(&(routes(["10.50.0.0/24"]) + &bgp(65001, 64512, options)));
    let bfd = json!({"bfd": {"minTxInterval": "100ms", "minRxInterval": "100ms", "multiplier": 3}});
    let mut speaker = bed.speaker(&ours(64512, 65001, bfd), false);
    speaker.originate(&["10.244.1.0/24"]);
    speaker.established();
    eventually("BIRD has ours", || bird.learned() == 1);
    eventually_with("BFD is up", || (speaker.peer()["bfd"] == "Up", speaker.peer().to_string()));
    speaker.ask(&json!("endBfd"));
    eventually_with("BIRD hears it", || {
        let said = bird.ask("show bfd sessions");
        (!said.contains(" Up "), said)
    });
    speaker.kill();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(bird.learned(), 1, "{}", bird.ask("show protocols all ours"));
}
