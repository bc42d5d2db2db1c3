//! BIRD as member of the mesh, as top-of-rack router and as reflector; what guards a session.

use serde_json::json;

use crate::bed::{
    BIRDS, BIRDS6, Bed, OTHER, OTHER_PORT, OURS, OURS6, bgp, eventually, eventually_with, other, ours, routes,
};

#[test]
fn a_member_of_the_mesh() {
    let Some(bed) = Bed::new("a_member_of_the_mesh") else { return };
    let bird = bed.bird(&(routes(["10.50.0.0/24", "fd50::/64"]) + &bgp(64512, 64512, "")));
    let mut speaker = bed.speaker(&ours(64512, 64512, json!({})), false);
    speaker.originate(&["10.244.1.0/24", "fd44:1::/64"]);
    speaker.established();
    eventually("routes of both families come", || {
        speaker.hops("10.50.0.0/24") == json!([BIRDS]) && speaker.hops("fd50::/64") == json!([BIRDS6])
    });
    eventually("BIRD has ours", || bird.learned() == 2);
    let four = bird.ask("show route all 10.244.1.0/24");
    assert!(four.contains(&format!("via {OURS} on eth0")) && four.contains("BGP.local_pref: 100"), "{four}");
    assert!(bird.ask("show route all fd44:1::/64").contains(&format!("via {OURS6} on eth0")));
    let peer = speaker.peer();
    assert_eq!((&peer["received"], &peer["accepted"], &peer["sent"]), (&json!(2), &json!(2), &json!(2)), "{peer}");
    speaker.originate(&["10.244.1.0/24"]);
    eventually("BIRD loses what we withdraw", || bird.learned() == 1);
    bird.ask("disable four");
    eventually("and we what it withdraws", || speaker.hops("10.50.0.0/24").is_null());
    speaker.ask(&json!({"shutDown": {"why": "node is drained"}}));
    eventually("BIRD was told why", || bird.log().contains("node is drained"));
    assert_eq!(bird.learned(), 0);
}

#[test]
fn a_top_of_rack_router() {
    let Some(bed) = Bed::new("a_top_of_rack_router") else { return };
    let filters = json!([{
        "exportV4": [{"cidr": "10.244.0.0/16", "matchOperator": "In", "action": "Accept",
            "operations": [{"addCommunity": {"value": "64512:20"}}, {"addCommunity": {"value": "64512:1:2"}}]},
            {"action": "Reject"}],
        "importV4": [{"cidr": "10.51.0.0/16", "matchOperator": "In", "action": "Reject"}]
    }]);
    let bird = bed.bird(&(routes(["10.50.0.0/24", "10.51.0.0/24"]) + &bgp(4_200_000_001, 64512, "")));
    let mut speaker = bed.speaker(&ours(64512, 4_200_000_001, json!({"filters": filters})), false);
    speaker.originate(&["10.244.1.0/24", "10.96.0.0/16"]);
    speaker.established();
    eventually("BIRD has what the filter lets out", || bird.learned() == 1);
    let route = bird.ask("show route all 10.244.1.0/24");
    for part in ["BGP.as_path: 64512", "BGP.community: (64512,20)", "BGP.large_community: (64512, 1, 2)"] {
        assert!(route.contains(part), "{part}: {route}");
    }
    eventually_with("we have what the filter lets in", || {
        let peer = speaker.peer();
        ((&peer["received"], &peer["accepted"]) == (&json!(2), &json!(1)), peer.to_string())
    });
    // The filter goes: the session stays, and BIRD is asked for its routes anew.
    let since = speaker.peer()["lastError"].clone();
    speaker.ask(&json!({"configure": {"config": ours(64512, 4_200_000_001, json!({}))}}));
    eventually("all come", || speaker.peer()["accepted"] == json!(2));
    eventually("all go", || bird.learned() == 2);
    assert_eq!(speaker.peer()["lastError"], since, "the session was not touched");
}

#[test]
fn bird_reflects() {
    let Some(bed) = Bed::new("bird_reflects") else { return };
    let client = |name: &str, address: &str, passive: &str| {
        format!(
            "protocol bgp {name} {{
                local {BIRDS} as 64512; neighbor {address} as 64512; direct; {passive}
                rr client; rr cluster id 9.9.9.9; connect retry time 1; connect delay time 1;
                ipv4 {{ import all; export all; }};
            }}\n"
        )
    };
    let bird = bed.bird(&(client("ours", OURS, "") + &client("second", OTHER, "passive;")));
    let mut speaker = bed.speaker(&ours(64512, 64512, json!({})), false);
    let mut other = bed.speaker(&other(64512, BIRDS), false);
    speaker.originate(&["10.244.1.0/24"]);
    other.originate(&["10.244.2.0/24"]);
    eventually("the one has the other's", || speaker.hops("10.244.2.0/24") == json!([OTHER]));
    eventually("and the other the one's", || other.hops("10.244.1.0/24") == json!([OURS]));
    drop(bird);
}

#[test]
fn we_reflect() {
    let Some(bed) = Bed::new("we_reflect") else { return };
    let bird = bed.bird(&(routes(["10.50.0.0/24"]) + &bgp(64512, 64512, "")));
    let mut config = ours(64512, 64512, json!({"routeReflectorClient": true}));
    config["routeReflectorClusterID"] = json!("9.9.9.9");
    let client = json!({"name": "other", "peerIP": OTHER, "asNumber": 64512, "port": OTHER_PORT, "passive": true,
        "routeReflectorClient": true});
    config["peers"].as_array_mut().unwrap().push(client);
    let _reflector = bed.speaker(&config, false);
    let mut other = bed.speaker(&other(64512, OURS), false);
    other.originate(&["10.244.2.0/24"]);
    eventually("BIRD's route is reflected", || other.hops("10.50.0.0/24") == json!([BIRDS]));
    eventually("and the other's", || bird.learned() == 1);
    let route = bird.ask("show route all 10.244.2.0/24");
    for part in
        [format!("via {OTHER} on eth0"), format!("BGP.originator_id: {OTHER}"), "BGP.cluster_list: 9.9.9.9".into()]
    {
        assert!(route.contains(&part), "{part}: {route}");
    }
}

#[test]
fn extended_next_hop_and_ipv6_alone() {
    let Some(bed) = Bed::new("extended_next_hop_and_ipv6_alone") else { return };
    let config = format!(
        "{}protocol bgp ours {{
            local {BIRDS6} as 65001; neighbor {OURS6} as 64512; connect retry time 1; connect delay time 1;
            ipv4 {{ import all; export all; extended next hop; next hop self; }};
            ipv6 {{ import all; export all; next hop self; }};
        }}\n",
        routes(["10.50.0.0/24", "fd50::/64"])
    );
    let bird = bed.bird(&config);
    let mut config = ours(64512, 65001, json!({"peerIP": BIRDS6}));
    config["addresses"] = json!([OURS6]);
    let mut speaker = bed.speaker(&config, false);
    speaker.originate(&["10.244.1.0/24", "fd44:1::/64"]);
    speaker.established();
    eventually("an IPv4 prefix with an IPv6 next hop", || speaker.hops("10.50.0.0/24") == json!([BIRDS6]));
    eventually("and the other way", || bird.ask("show route all 10.244.1.0/24").contains(&format!("via {OURS6}")));
}

#[test]
fn signatures_and_hop_limit() {
    let Some(bed) = Bed::new("signatures_and_hop_limit") else { return };
    let guarded = |key: &str| bgp(65001, 64512, &format!("password \"{key}\"; ttl security on;"));
    let good = json!({"password": "correct horse", "ttlSecurity": 1});
    {
        let _bird = bed.bird(&guarded("correct horse"));
        let mut speaker = bed.speaker(&ours(64512, 65001, good.clone()), false);
        speaker.established();
    }
    {
        // BIRD alone connects: the hop limit of the listening socket's answer counts.
        let _bird = bed.bird(&guarded("correct horse"));
        let waits = json!({"password": "correct horse", "ttlSecurity": 1, "passive": true});
        let mut speaker = bed.speaker(&ours(64512, 65001, waits), false);
        speaker.established();
    }
    let _bird = bed.bird(&guarded("another"));
    let mut speaker = bed.speaker(&ours(64512, 65001, good), false);
    std::thread::sleep(std::time::Duration::from_secs(4));
    let peer = speaker.peer();
    assert_ne!(peer["state"], "Established", "{peer}");
}

#[test]
fn both_may_connect_at_once() {
    let Some(bed) = Bed::new("both_may_connect_at_once") else { return };
    for _ in 0..3 {
        let bird = bed.bird(&bgp(64512, 64512, ""));
        let mut speaker = bed.speaker(&ours(64512, 64512, json!({})), false);
        speaker.established();
        eventually("BIRD says so too", || bird.ask("show protocols ours").contains("Established"));
    }
}
