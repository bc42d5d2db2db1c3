use std::net::Ipv4Addr;

use super::*;
use crate::attributes::{NO_ADVERTISE, NO_EXPORT};
use crate::filter::Filter;
use crate::message::update::Announced;
use crate::message::{Dialect, GracefulRestart, Message, frame};

const ME: [u8; 4] = [192, 0, 2, 254];

fn rib() -> Rib {
    rib_of(false)
}

fn rib_of(restarting: bool) -> Rib {
    let identity = Identity {
        asn: 64512,
        identifier: ME.into(),
        cluster_id: Some([9, 9, 9, 9].into()),
        maximum_paths: 4,
        addresses: vec![],
        links: Arc::default(),
    };
    Rib::new(identity, restarting)
}

fn live(asn: u32, last: u8, restarting: Option<bool>) -> Live {
    let families = Family::ALL.to_vec();
    let kept = Family::ALL.map(|family| (family, true)).to_vec();
    let restart =
        restarting.map(|restarting| GracefulRestart { restarting, notifications: true, time: 60, families: kept });
    let dialect =
        Dialect { four_octet_as: true, extended_next_hop: false, extended_message: false, external: asn != 64512 };
    let identifier = Ipv4Addr::new(192, 0, 2, last);
    let negotiated =
        Negotiated { peer_as: asn, identifier, hold_time: 90, families, dialect, route_refresh: true, restart };
    Live { negotiated, peer_address: identifier.into(), local_address: Ipv4Addr::from(ME).into() }
}

fn join(rib: &mut Rib, id: PeerId, asn: u32) {
    rib.add_peer(id, Policy::default());
    rib.up(id, live(asn, id as u8, Some(false)));
    drain(rib, id);
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn route(id: PeerId, path: &[u32]) -> Attributes {
    let next_hop = NextHop::of(Ipv4Addr::new(192, 0, 2, id as u8).into());
    Attributes { as_path: AsPath::sequence(path), ..Attributes::new(next_hop) }
}

fn announce(rib: &mut Rib, id: PeerId, attributes: Attributes, prefixes: &[&str]) {
    let prefixes = prefixes.iter().map(|text| prefix(text)).collect();
    rib.update(id, Update { announced: vec![Announced { attributes, prefixes }], ..Update::default() });
}

fn withdraw(rib: &mut Rib, id: PeerId, text: &str) {
    rib.update(id, Update { withdrawn: vec![prefix(text)], ..Update::default() });
}

/// What a peer is told now, as it reads it.
fn drain(rib: &mut Rib, id: PeerId) -> Vec<Update> {
    let mut updates = Vec::new();
    while rib.has_updates(id) {
        let bytes = rib.take_updates(id, 3);
        let dialect = live(64512, 1, None).negotiated.dialect;
        let mut rest = &bytes[..];
        while let Some(length) = frame(rest, &dialect).unwrap() {
            match Message::decode(&rest[..length], &dialect).unwrap() {
                Message::Update(update) => updates.push(update),
                other => panic!("{other:?}"),
            }
            rest = &rest[length..];
        }
    }
    updates
}

fn told(rib: &mut Rib, id: PeerId) -> Vec<(Prefix, Attributes)> {
    let announced = drain(rib, id).into_iter().flat_map(|update| update.announced);
    announced.flat_map(|one| one.prefixes.into_iter().map(move |prefix| (prefix, one.attributes.clone()))).collect()
}

fn hops(rib: &mut Rib) -> Vec<(String, Vec<u8>)> {
    let last = |hop: &NextHop| match hop.address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    let changes = rib.take_changes(100);
    changes.iter().map(|change| (change.prefix.to_string(), change.next_hops.iter().map(last).collect())).collect()
}

/// RFC 4271 section 9.1.2.2: each step decides where all before it are equal.
#[test]
fn the_best_path_step_by_step() {
    let base = || route(1, &[65001, 7]);
    let other = || route(2, &[65002, 7]);
    let cases: Vec<(&str, Attributes, Attributes)> = vec![
        ("local preference", Attributes { local_pref: Some(200), ..route(1, &[65001, 7, 8]) }, other()),
        ("path length", base(), route(2, &[65002, 7, 8])),
        ("origin", base(), Attributes { origin: crate::attributes::Origin::Egp, ..other() }),
        (
            "MED of one AS",
            Attributes { med: Some(1), ..route(1, &[7, 8]) },
            Attributes { med: Some(2), ..route(2, &[7, 9]) },
        ),
    ];
    for (what, better, worse) in cases {
        for first in [1, 2] {
            let mut rib = rib();
            join(&mut rib, 1, 64512);
            join(&mut rib, 2, 64512);
            let routes = [(1, better.clone()), (2, worse.clone())];
            let (a, b) = if first == 1 { (0, 1) } else { (1, 0) };
            for (id, attributes) in [&routes[a], &routes[b]] {
                announce(&mut rib, *id, attributes.clone(), &["10.0.0.0/8"]);
            }
            assert_eq!(hops(&mut rib), [("10.0.0.0/8".to_owned(), vec![1])], "{what}");
        }
    }
    let mut rib = rib();
    join(&mut rib, 1, 65001);
    join(&mut rib, 2, 64512);
    announce(&mut rib, 2, route(2, &[65002]), &["10.0.0.0/8"]);
    announce(&mut rib, 1, route(1, &[65001]), &["10.0.0.0/8"]);
    assert_eq!(hops(&mut rib)[0].1, [1], "external before internal");
}

#[test]
fn equal_paths_are_used_together_and_the_lowest_identifier_is_told_on() {
    let mut rib = rib();
    for id in [3, 1, 2] {
        join(&mut rib, id, 65000);
        announce(&mut rib, id, route(id, &[65000, 7]), &["10.0.0.0/8"]);
    }
    join(&mut rib, 4, 64512);
    assert_eq!(hops(&mut rib), [("10.0.0.0/8".to_owned(), vec![1, 2, 3])]);
    withdraw(&mut rib, 1, "10.0.0.0/8");
    assert_eq!(hops(&mut rib), [("10.0.0.0/8".to_owned(), vec![2, 3])]);
    withdraw(&mut rib, 3, "10.0.0.0/8");
    withdraw(&mut rib, 2, "10.0.0.0/8");
    assert_eq!(hops(&mut rib), [("10.0.0.0/8".to_owned(), vec![])], "told once, as it is now");
    assert_eq!(hops(&mut rib), []);
}

#[test]
fn med_compares_within_one_as_only() {
    let mut rib = rib();
    for (id, asn, med) in [(1, 7, 20), (2, 8, 0), (3, 7, 10)] {
        join(&mut rib, id, asn);
        announce(&mut rib, id, Attributes { med: Some(med), ..route(id, &[asn, 5]) }, &["10.0.0.0/8"]);
    }
    assert_eq!(hops(&mut rib)[0].1, [2, 3]);
}

#[test]
fn external_peers_get_our_as_in_front_and_ourselves_as_next_hop() {
    let mut rib = rib();
    join(&mut rib, 1, 65001);
    join(&mut rib, 2, 65002);
    join(&mut rib, 3, 64512);
    let learned = Attributes { med: Some(5), ..route(1, &[65001]) };
    announce(&mut rib, 1, learned, &["10.0.0.0/8"]);
    let (_, external) = told(&mut rib, 2).remove(0);
    assert_eq!(
        (external.as_path.to_string(), external.med, external.local_pref),
        ("64512 65001".to_owned(), None, None)
    );
    assert_eq!(external.next_hop.address, IpAddr::from(ME));
    let (_, internal) = told(&mut rib, 3).remove(0);
    assert_eq!((internal.as_path.to_string(), internal.local_pref), ("65001".to_owned(), Some(100)));
    assert_eq!(internal.next_hop.address, IpAddr::from(ME));
    assert_eq!(told(&mut rib, 1), [], "not back to whom it is from");
    let kept = Policy { next_hop_mode: NextHopMode::Keep, local_as: Some(64999), ..Policy::default() };
    rib.set_policy(2, kept);
    let (_, external) = told(&mut rib, 2).remove(0);
    assert_eq!(
        (external.as_path.to_string(), external.next_hop.address),
        ("64999 65001".to_owned(), [192, 0, 2, 1].into())
    );
    assert_eq!(rib.counts(2).sent, 1);
}

/// RFC 4456: from clients to all, from others to clients, with who began it and the way through clusters.
#[test]
fn a_reflector_hands_on_between_clients() {
    let mut rib = rib();
    for (id, client) in [(1, true), (2, true), (3, false), (4, false)] {
        rib.add_peer(id, Policy { reflector_client: client, ..Policy::default() });
        rib.up(id, live(64512, id as u8, None));
        drain(&mut rib, id);
    }
    announce(&mut rib, 1, route(1, &[]), &["10.1.0.0/16"]);
    announce(&mut rib, 3, route(3, &[]), &["10.3.0.0/16"]);
    let (_, reflected) = told(&mut rib, 3).remove(0);
    assert_eq!(reflected.originator_id, Some([192, 0, 2, 1].into()));
    assert_eq!(*reflected.cluster_list, [Ipv4Addr::new(9, 9, 9, 9)]);
    assert_eq!(reflected.next_hop.address, IpAddr::from([192, 0, 2, 1]), "reflected as it is");
    let prefixes =
        |told: Vec<(Prefix, Attributes)>| told.into_iter().map(|(prefix, _)| prefix.to_string()).collect::<Vec<_>>();
    assert_eq!(prefixes(told(&mut rib, 1)), ["10.3.0.0/16"]);
    assert_eq!(prefixes(told(&mut rib, 2)).len(), 2);
    assert_eq!(prefixes(told(&mut rib, 4)), ["10.1.0.0/16"], "between peers that are no clients nothing is reflected");
    let looped = [
        Attributes { cluster_list: [[9, 9, 9, 9].into()].into(), ..route(1, &[]) },
        Attributes { originator_id: Some(ME.into()), ..route(1, &[]) },
        route(1, &[65001, 64512]),
        Attributes { next_hop: NextHop::of(ME.into()), ..route(1, &[]) },
    ];
    for attributes in looped {
        announce(&mut rib, 1, attributes, &["10.9.0.0/16"]);
        assert_eq!(rib.counts(1), Counts { received: 2, accepted: 1, sent: 1 });
        assert_eq!(told(&mut rib, 2), []);
    }
}

#[test]
fn a_peer_may_tell_so_many_of_a_family() {
    let mut rib = rib();
    rib.add_peer(1, Policy { max_prefixes: Some(2), ..Policy::default() });
    rib.up(1, live(65001, 1, None));
    announce(&mut rib, 1, route(1, &[65001]), &["10.1.0.0/16", "10.2.0.0/16"]);
    announce(&mut rib, 1, route(1, &[65001]), &["10.1.0.0/16", "fd00::/64"]);
    assert_eq!((rib.excess(1), rib.counts(1).received), (None, 3), "each once, and each family by itself");
    announce(&mut rib, 1, route(1, &[65001]), &["10.3.0.0/16"]);
    assert_eq!(rib.excess(1), Some((Family::Ipv4, 2)));
    withdraw(&mut rib, 1, "10.1.0.0/16");
    assert_eq!(rib.excess(1), None);
}

/// A peer that asks again and again, and reads nothing.
#[test]
fn what_is_asked_for_again_is_told_once() {
    let mut rib = rib();
    join(&mut rib, 1, 65001);
    join(&mut rib, 2, 65002);
    for n in 0..100_u8 {
        let prefixes: Vec<String> = (0..100).map(|m| format!("10.{n}.{m}.0/24")).collect();
        announce(&mut rib, 1, route(1, &[65001]), &prefixes.iter().map(String::as_str).collect::<Vec<_>>());
    }
    for _ in 0..50 {
        rib.refresh(2, Family::Ipv4);
    }
    let mut told = 0;
    while rib.has_updates(2) {
        told += rib.take_updates(2, 1000).len();
    }
    assert!(told < 3 * 10_000 * 5, "{told} bytes");
    assert_eq!(rib.counts(2).sent, 10_000);
}

/// A route that came, went and came again while a peer was slow, and goes once it has heard of it.
#[test]
fn a_slow_peer_hears_of_every_withdrawal() {
    let mut rib = rib();
    join(&mut rib, 1, 65001);
    join(&mut rib, 2, 65002);
    let come = |rib: &mut Rib| announce(rib, 1, route(1, &[65001]), &["10.1.0.0/16"]);
    come(&mut rib);
    withdraw(&mut rib, 1, "10.1.0.0/16");
    come(&mut rib);
    assert!(!rib.take_updates(2, 2).is_empty(), "it is told");
    withdraw(&mut rib, 1, "10.1.0.0/16");
    let gone: Vec<Prefix> = drain(&mut rib, 2).into_iter().flat_map(|update| update.withdrawn).collect();
    assert_eq!(gone, [prefix("10.1.0.0/16")]);
}

#[test]
fn a_peer_that_becomes_a_client_is_reflected_to_others_that_stand() {
    let mut rib = rib();
    join(&mut rib, 1, 64512);
    join(&mut rib, 2, 64512);
    announce(&mut rib, 1, route(1, &[]), &["10.1.0.0/16"]);
    assert_eq!(told(&mut rib, 2), []);
    rib.set_policy(1, Policy { reflector_client: true, ..Policy::default() });
    assert_eq!(told(&mut rib, 2).len(), 1);
    rib.set_policy(1, Policy::default());
    let gone: Vec<Prefix> = drain(&mut rib, 2).into_iter().flat_map(|update| update.withdrawn).collect();
    assert_eq!(gone, [prefix("10.1.0.0/16")]);
}

/// An AS that a neighbour knows by another number loops by that one, too.
#[test]
fn a_path_with_the_name_that_a_peer_knows_is_a_loop() {
    let mut rib = rib();
    rib.add_peer(1, Policy { local_as: Some(64999), ..Policy::default() });
    rib.up(1, live(65001, 1, None));
    announce(&mut rib, 1, route(1, &[65001, 64999]), &["10.1.0.0/16"]);
    assert_eq!(rib.counts(1), Counts { received: 1, accepted: 0, sent: 0 });
}

/// RFC 4360 section 6.
#[test]
fn an_extended_community_of_one_as_stays_in_it() {
    let mut rib = rib();
    join(&mut rib, 1, 64512);
    join(&mut rib, 2, 65002);
    let (here, anywhere) = (0x4004_0000_0000_0001, 0x0002_fc00_0000_0001);
    let attributes = Attributes { extended_communities: [here, anywhere].into(), ..route(1, &[]) };
    announce(&mut rib, 1, attributes, &["10.1.0.0/16"]);
    assert_eq!(*told(&mut rib, 2)[0].1.extended_communities, [anywhere]);
}

#[test]
fn communities_that_keep_routes_in() {
    let mut rib = rib();
    join(&mut rib, 1, 65001);
    join(&mut rib, 2, 65002);
    join(&mut rib, 3, 64512);
    announce(&mut rib, 1, Attributes { communities: [NO_EXPORT].into(), ..route(1, &[65001]) }, &["10.1.0.0/16"]);
    announce(&mut rib, 1, Attributes { communities: [NO_ADVERTISE].into(), ..route(1, &[65001]) }, &["10.2.0.0/16"]);
    assert_eq!(told(&mut rib, 2), []);
    assert_eq!(told(&mut rib, 3).len(), 1);
}

#[test]
fn rules_decide_what_comes_in_and_goes_out() {
    let filter = |json: &str| vec![serde_json::from_str::<Filter>(json).unwrap()];
    let policy = |json| Policy { rules: Arc::new(Rules::new(&filter(json))), ..Policy::default() };
    let mut rib = rib();
    let import = policy(
        r#"{"importV4": [{"cidr": "10.1.0.0/16", "matchOperator": "Equal", "action": "Accept",
            "operations": [{"addCommunity": {"value": "1:1"}}, {"setPriority": {"value": 512}}]},
            {"cidr": "10.2.0.0/16", "matchOperator": "In", "action": "Reject"}]}"#,
    );
    rib.add_peer(1, import);
    rib.up(1, live(65001, 1, None));
    join(&mut rib, 2, 65002);
    announce(&mut rib, 1, route(1, &[65001]), &["10.1.0.0/16", "10.2.3.0/24", "10.3.0.0/16"]);
    assert_eq!(rib.counts(1), Counts { received: 3, accepted: 2, sent: 0 });
    let changes = rib.take_changes(10);
    let marked: Vec<_> =
        changes.iter().filter_map(|change| change.priority.map(|value| (change.prefix, value))).collect();
    assert_eq!((changes.len(), marked), (2, vec![(prefix("10.1.0.0/16"), 512)]));
    assert_eq!(told(&mut rib, 2).len(), 2);
    // Less goes out from now on: what does not any more is withdrawn, the rest is told again.
    let export = policy(
        r#"{"exportV4": [{"communities": {"values": ["1:1"]}, "action": "Accept",
            "operations": [{"prependASPath": {"prefix": [5, 5]}}]}, {"action": "Reject"}]}"#,
    );
    rib.set_policy(2, export);
    let updates = drain(&mut rib, 2);
    let gone: Vec<Prefix> = updates.iter().flat_map(|update| update.withdrawn.clone()).collect();
    assert_eq!(gone, [prefix("10.3.0.0/16")]);
    let path = updates.iter().flat_map(|update| &update.announced).next().unwrap().attributes.as_path.to_string();
    assert_eq!((path, rib.counts(2).sent), ("5 5 64512 65001".to_owned(), 1));
}

#[test]
fn this_nodes_routes_win_and_are_told_to_all() {
    let mut rib = rib();
    join(&mut rib, 1, 64512);
    join(&mut rib, 2, 65002);
    announce(&mut rib, 1, Attributes { local_pref: Some(500), ..route(1, &[]) }, &["10.0.0.0/24"]);
    let own = |text: &str, next_hop| Origination {
        prefix: prefix(text),
        next_hop,
        communities: vec!["64512:7".parse().unwrap()],
    };
    rib.originate(&[own("10.0.0.0/24", None), own("10.9.0.0/24", Some([192, 0, 2, 77].into()))]);
    let mut mine = told(&mut rib, 1);
    mine.sort_by_key(|(prefix, _)| *prefix);
    assert_eq!(mine[0].1.next_hop.address, IpAddr::from(ME));
    assert_eq!(mine[1].1.next_hop.address, IpAddr::from([192, 0, 2, 77]));
    assert!(mine[0].1.has("64512:7".parse().unwrap()));
    assert_eq!(told(&mut rib, 2).len(), 2);
    let changes: BTreeMap<String, Vec<u8>> = hops(&mut rib).into_iter().collect();
    assert_eq!(changes["10.0.0.0/24"], [0_u8; 0], "a route of this node is not the speaker's to put into the kernel");
    rib.originate(&[own("10.0.0.0/24", None)]);
    let gone: Vec<Prefix> = drain(&mut rib, 2).into_iter().flat_map(|update| update.withdrawn).collect();
    assert_eq!(gone, [prefix("10.9.0.0/24")]);
    rib.originate(&[own("10.0.0.0/24", None)]);
    assert!(!rib.has_updates(2), "the same again is no change");
}

/// RFC 4724 section 4.2, the helper.
#[test]
fn routes_of_a_peer_that_restarts_stay_until_it_has_told_all() {
    let mut rib = rib();
    join(&mut rib, 1, 64512);
    announce(&mut rib, 1, route(1, &[]), &["10.1.0.0/16", "10.2.0.0/16"]);
    hops(&mut rib);
    rib.down(1, &Family::ALL);
    assert_eq!(hops(&mut rib), [], "nothing changes");
    rib.up(1, live(64512, 1, Some(true)));
    announce(&mut rib, 1, route(1, &[]), &["10.1.0.0/16"]);
    assert_eq!(hops(&mut rib), []);
    rib.update(1, Update { end_of_rib: Some(Family::Ipv4), ..Update::default() });
    assert_eq!(hops(&mut rib), [("10.2.0.0/16".to_owned(), vec![])]);
    // It does not come back in time.
    rib.down(1, &Family::ALL);
    rib.expire(1);
    assert_eq!(hops(&mut rib), [("10.1.0.0/16".to_owned(), vec![])]);
    assert_eq!(rib.counts(1), Counts::default());
}

#[test]
fn what_a_restarted_peer_did_not_keep_is_gone_at_once() {
    let mut rib = rib();
    join(&mut rib, 1, 64512);
    announce(&mut rib, 1, route(1, &[]), &["10.1.0.0/16"]);
    hops(&mut rib);
    rib.down(1, &Family::ALL);
    let mut forgot = live(64512, 1, Some(true));
    forgot.negotiated.restart.as_mut().unwrap().families = vec![(Family::Ipv4, false)];
    rib.up(1, forgot);
    assert_eq!(hops(&mut rib), [("10.1.0.0/16".to_owned(), vec![])]);
    // Two restarts in a row: what was never told again does not outlive the second.
    announce(&mut rib, 1, route(1, &[]), &["10.1.0.0/16", "10.2.0.0/16"]);
    rib.down(1, &Family::ALL);
    rib.up(1, live(64512, 1, Some(true)));
    announce(&mut rib, 1, route(1, &[]), &["10.1.0.0/16"]);
    hops(&mut rib);
    rib.down(1, &Family::ALL);
    assert_eq!(hops(&mut rib), [("10.2.0.0/16".to_owned(), vec![])]);
}

/// RFC 4724 section 4.1, the restarting speaker.
#[test]
fn after_a_restart_nothing_is_told_before_all_peers_have_spoken() {
    let mut rib = rib_of(true);
    for id in 1..=4 {
        rib.add_peer(id, Policy::default());
        rib.await_peer(id);
    }
    // Nobody waits for who had no session before, or says that it will have none.
    rib.add_peer(5, Policy::default());
    rib.stop_waiting_for(4);
    rib.originate(&[Origination { prefix: prefix("10.0.0.0/24"), next_hop: None, communities: vec![] }]);
    rib.up(1, live(64512, 1, Some(false)));
    announce(&mut rib, 1, route(1, &[]), &["10.1.0.0/16"]);
    assert!(!rib.has_updates(1) && hops(&mut rib).is_empty());
    rib.up(2, live(64512, 2, None));
    rib.up(3, live(64512, 3, Some(true)));
    for family in Family::ALL {
        assert!(rib.is_waiting(), "peer 1 has not told all");
        rib.update(1, Update { end_of_rib: Some(family), ..Update::default() });
    }
    assert!(!rib.is_waiting());
    assert_eq!(hops(&mut rib).len(), 2);
    let ends: Vec<Family> = drain(&mut rib, 1).iter().filter_map(|update| update.end_of_rib).collect();
    assert_eq!(ends, Family::ALL);
}

/// RFC 4724 section 3: a peer without families of its own in the capability only helps, and its End-of-RIB is worth the
/// wait, as its routes are.
#[test]
fn after_a_restart_a_peer_that_only_helps_is_waited_for() {
    let mut rib = rib_of(true);
    rib.add_peer(1, Policy::default());
    rib.await_peer(1);
    let mut helper = live(64512, 1, Some(false));
    helper.negotiated.restart.as_mut().unwrap().families.clear();
    rib.up(1, helper);
    announce(&mut rib, 1, route(1, &[]), &["10.1.0.0/16"]);
    for family in Family::ALL {
        assert!(rib.is_waiting(), "{family}");
        rib.update(1, Update { end_of_rib: Some(family), ..Update::default() });
    }
    assert!(!rib.is_waiting());
}

#[test]
fn equal_attributes_are_kept_once_and_given_back() {
    let mut rib = rib();
    join(&mut rib, 1, 65001);
    for third in 0..200_u8 {
        for second in 0..10 {
            let prefix = format!("10.{second}.{third}.0/24");
            announce(&mut rib, 1, route(1, &[65001, third.into()]), &[&prefix]);
        }
    }
    assert_eq!((rib.len(Family::Ipv4), rib.attribute_sets()), (2000, 200));
    rib.remove_peer(1);
    assert_eq!((rib.len(Family::Ipv4), rib.attribute_sets()), (0, 0));
}
