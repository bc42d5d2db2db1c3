//! Graceful restart, both ways: SIGKILL loses no route on either side.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::bed::{BIRDS, Bed, bgp, eventually, eventually_with, ours, routes};

const GRACEFUL: &str = "graceful restart on; graceful restart time 60;";

#[test]
fn we_are_killed_and_bird_helps() {
    let Some(bed) = Bed::new("we_are_killed_and_bird_helps") else { return };
    let bird = bed.bird(&(routes(["10.50.0.0/24"]) + &bgp(64512, 64512, GRACEFUL)));
    let config = ours(64512, 64512, json!({}));
    let mut speaker = bed.speaker(&config, false);
    speaker.originate(&["10.244.1.0/24", "10.244.2.0/24"]);
    speaker.established();
    eventually("BIRD has ours", || bird.learned() == 2);
    speaker.kill();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(bird.learned(), 2, "BIRD keeps them: {}", bird.ask("show protocols all ours"));
    let mut speaker = bed.speaker(&config, true);
    assert_eq!(speaker.table()["synchronised"], false);
    // One of them is not ours any more: it goes when we have told all, not before.
    speaker.originate(&["10.244.1.0/24"]);
    speaker.established();
    eventually_with("all is known", || (speaker.table()["synchronised"] == true, speaker.peer().to_string()));
    assert_eq!(speaker.hops("10.50.0.0/24"), json!([BIRDS]));
    eventually("what is not told again goes", || bird.learned() == 1);
    assert!(!bird.log().contains("Neighbor graceful restart timed out"));
}

#[test]
fn bird_is_killed_and_we_help() {
    let Some(bed) = Bed::new("bird_is_killed_and_we_help") else { return };
    let mut bird = bed.bird(&(routes(["10.50.0.0/24", "fd50::/64"]) + &bgp(64512, 64512, GRACEFUL)));
    let mut speaker = bed.speaker(&ours(64512, 64512, json!({})), false);
    speaker.originate(&["10.244.1.0/24"]);
    speaker.established();
    eventually("its routes come", || speaker.peer()["received"] == json!(2));
    bird.kill();
    eventually("we see it", || speaker.peer()["state"] != "Established");
    std::thread::sleep(Duration::from_secs(2));
    let peer = speaker.peer();
    assert_eq!(speaker.table()["lost"], 0, "its routes stay: {peer}");
    assert!(peer["staleFor"].as_u64().is_some_and(|left| left <= 60), "{peer}");
    bird.start(true);
    speaker.established();
    eventually("BIRD has ours again", || bird.learned() == 1);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(speaker.table()["lost"], 0);
    assert_eq!(speaker.hops("10.50.0.0/24"), json!([BIRDS]));
}

#[test]
fn a_peer_that_does_not_come_back_is_forgotten() {
    let Some(bed) = Bed::new("a_peer_that_does_not_come_back_is_forgotten") else { return };
    let short = "graceful restart on; graceful restart time 2;";
    let mut bird = bed.bird(&(routes(["10.50.0.0/24"]) + &bgp(64512, 64512, short)));
    let mut speaker = bed.speaker(&ours(64512, 64512, json!({})), false);
    eventually("its route comes", || speaker.hops("10.50.0.0/24") == json!([BIRDS]));
    bird.kill();
    eventually("its route goes", || speaker.hops("10.50.0.0/24").is_null());
    assert_eq!(speaker.table()["lost"], 1);
}

/// Who had no session before, or refuses one, keeps nobody waiting.
#[test]
fn only_peers_that_were_up_are_awaited() {
    let Some(bed) = Bed::new("only_peers_that_were_up_are_awaited") else { return };
    let bird = bed.bird(&(routes(["10.50.0.0/24"]) + &bgp(64512, 64512, GRACEFUL)));
    let mut config = ours(64512, 64512, json!({}));
    let absent = json!({"name": "absent", "peerIP": "10.99.0.77", "asNumber": 64512});
    config["peers"].as_array_mut().unwrap().push(absent);
    let begin = Instant::now();
    let mut speaker = bed.successor(&config, &[BIRDS]);
    eventually_with("all is known", || (speaker.table()["synchronised"] == true, speaker.peer().to_string()));
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert_eq!(speaker.hops("10.50.0.0/24"), json!([BIRDS]), "BIRD was waited for");
    drop((speaker, bird));

    let _refusing = bed.bird(&bgp(65001, 64999, ""));
    let begin = Instant::now();
    let mut speaker = bed.successor(&ours(64512, 65001, json!({})), &[BIRDS]);
    eventually_with("it is not waited for", || (speaker.table()["synchronised"] == true, speaker.peer().to_string()));
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    drop(speaker);
    let mut speaker = bed.successor(&ours(64512, 65001, json!({})), &[]);
    eventually_with("nobody is", || (speaker.table()["synchronised"] == true, String::new()));
}
