//! A hundred thousand routes, each way.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bed::{Bed, bgp, eventually_with, ours, routes};

const COUNT: u32 = 100_000;

#[test]
fn a_hundred_thousand_routes_each_way() {
    let Some(bed) = Bed::new("a_hundred_thousand_routes_each_way") else { return };
    let prefixes: Vec<String> =
        (0..COUNT).map(|index| format!("{}/24", Ipv4Addr::from(0x1400_0000 + (index << 8)))).collect();
    let bird = bed.bird(&(routes(prefixes.iter().map(String::as_str)) + &bgp(64512, 64512, "")));
    let mut speaker = bed.speaker(&ours(64512, 64512, json!({})), false);
    let begin = Instant::now();
    speaker.established();
    eprintln!("established: {:?}", begin.elapsed());
    let begin = Instant::now();
    eventually_with("BIRD's routes come", || {
        let count = speaker.ask(&json!("count"));
        (count == json!(COUNT), count.to_string())
    });
    eprintln!("from BIRD: {:?}", begin.elapsed());
    let begin = Instant::now();
    speaker.ask(&json!({"originateMany": {"first": "60.0.0.0", "count": COUNT}}));
    eventually_with("BIRD has ours", || (bird.learned() == COUNT as usize, bird.learned().to_string()));
    eprintln!("to BIRD: {:?}", begin.elapsed());
    assert_eq!(speaker.peer()["sent"], json!(COUNT));
    let begin = Instant::now();
    speaker.ask(&json!({"originate": {"prefixes": []}}));
    eprintln!("asked: {:?}", begin.elapsed());
    eventually_with("all are withdrawn", || (bird.learned() == 0, bird.learned().to_string()));
    eprintln!("withdrawn from BIRD: {:?}", begin.elapsed());
    // A sender that stalls goes on with its next keepalive.
    assert!(begin.elapsed() < Duration::from_secs(15));
    let begin = Instant::now();
    bird.ask("disable four");
    eventually_with("BIRD's too", || {
        let count = speaker.ask(&json!("count"));
        (count == json!(0), count.to_string())
    });
    eprintln!("withdrawn by BIRD: {:?}", begin.elapsed());
}
