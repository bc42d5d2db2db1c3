use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::notification::*;
use super::update::{Fault, Treatment, announce, end_of_rib, withdraw};
use super::*;
use crate::attributes::{AsPath, Attributes, NextHop, Opaque, Origin, Segment};
use crate::prefix::Prefix;

const PLAIN: Dialect = Dialect { four_octet_as: true, ..Dialect::BEFORE };
const INTERNAL: Dialect = Dialect { external: false, ..PLAIN };
const ALL: Dialect = Dialect { extended_next_hop: true, extended_message: true, ..INTERNAL };

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn hop(text: &str) -> NextHop {
    NextHop::of(text.parse().unwrap())
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    begin(kind, &mut out);
    out.extend_from_slice(body);
    finish(&mut out);
    out
}

/// An UPDATE of withdrawn prefixes, attributes and NLRI.
fn update(withdrawn: &[u8], attributes: &[&[u8]], nlri: &[u8]) -> Vec<u8> {
    let attributes = attributes.concat();
    let mut body = Vec::new();
    put16(&mut body, withdrawn.len() as u16);
    body.extend_from_slice(withdrawn);
    put16(&mut body, attributes.len() as u16);
    body.extend_from_slice(&attributes);
    body.extend_from_slice(nlri);
    message(UPDATE, &body)
}

fn read(bytes: &[u8], dialect: &Dialect) -> Result<Update, Notification> {
    assert_eq!(frame(bytes, dialect), Ok(Some(bytes.len())));
    match Message::decode(bytes, dialect) {
        Ok(Message::Update(update)) => Ok(update),
        Ok(other) => panic!("no UPDATE: {other:?}"),
        Err(error) => Err(error),
    }
}

const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
const PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9];
const HOP: &[u8] = &[0x40, 3, 4, 192, 0, 2, 1];
const NLRI: &[u8] = &[24, 203, 0, 113];

fn simple() -> Attributes {
    Attributes { as_path: AsPath::sequence(&[65001]), ..Attributes::new(hop("192.0.2.1")) }
}

#[test]
fn open_vector() {
    let bytes = message(
        OPEN,
        &[
            4, 0x5b, 0xa0, 0, 90, 192, 0, 2, 7, 40, 2, 38, // version, AS_TRANS, hold, identifier, one parameter
            1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, // IPv4 and IPv6 unicast
            2, 0, // route refresh
            5, 6, 0, 1, 0, 1, 0, 2, // extended next hop
            64, 6, 0xc0, 120, 0, 1, 1, 0x80, // restarted, N, 120 s, IPv4 forwarding kept
            65, 4, 0, 1, 0x11, 0x70, // AS 70000
            6, 0, // extended messages
        ],
    );
    let Message::Open(open) = Message::decode(&bytes, &Dialect::BEFORE).unwrap() else { panic!("no OPEN") };
    let capabilities = Capabilities {
        families: Family::ALL.to_vec(),
        route_refresh: true,
        extended_next_hop: true,
        extended_message: true,
        graceful_restart: Some(GracefulRestart {
            restarting: true,
            notifications: true,
            time: 120,
            families: vec![(Family::Ipv4, true)],
        }),
        four_octet_as: None,
    };
    let expected = Open::new(70000, 90, Ipv4Addr::new(192, 0, 2, 7), capabilities);
    assert_eq!((open.asn(), open.my_as), (70000, 23456));
    assert_eq!(open, expected);
    let again = Message::Open(open).encode(&Dialect::BEFORE);
    assert_eq!(Message::decode(&again, &Dialect::BEFORE), Ok(Message::Open(expected)));
}

#[test]
fn an_open_that_is_refused_says_why() {
    let open = |body: &[u8]| Message::decode(&message(OPEN, body), &Dialect::BEFORE).unwrap_err();
    let head = [4, 0xfd, 0xe9, 0, 90, 192, 0, 2, 7];
    let with = |at: usize, value: u8| {
        let mut body = [&head[..], &[0]].concat();
        body[at] = value;
        body
    };
    assert_eq!(open(&with(0, 3)), Notification::with(UNSUPPORTED_VERSION, [0, 4]));
    assert_eq!(open(&with(4, 2)), Notification::with(UNACCEPTABLE_HOLD_TIME, [0, 2]));
    assert_eq!(open(&[4, 0, 0, 0, 90, 1, 1, 1, 1, 0]), Notification::new(BAD_PEER_AS));
    assert_eq!(open(&[4, 0, 1, 0, 90, 0, 0, 0, 0, 0]), Notification::with(BAD_IDENTIFIER, [0; 4]));
    assert_eq!(open(&[&head[..], &[3, 1, 1, 0]].concat()), Notification::with(UNSUPPORTED_PARAMETER, [1]));
    assert_eq!(open(&[&head[..], &[9, 2, 4, 0]].concat()).kind(), OPEN_MALFORMED);
    assert_eq!(open(&[&head[..], &[4, 2, 2, 65, 9]].concat()).kind(), OPEN_MALFORMED);
    assert_eq!(open(&head).kind(), OPEN_MALFORMED);
    // RFC 9072: lengths of two octets.
    let long = [&head[..], &[255, 255, 0, 7, 2, 0, 4, 70, 0, 2, 0]].concat();
    let Ok(Message::Open(open)) = Message::decode(&message(OPEN, &long), &Dialect::BEFORE) else { panic!("refused") };
    assert!(open.capabilities.route_refresh);
}

#[test]
fn headers_are_checked() {
    let good = Message::Keepalive.encode(&PLAIN);
    assert_eq!(frame(&good, &PLAIN), Ok(Some(19)));
    assert_eq!(frame(&good[..18], &PLAIN), Ok(None));
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        frame(&bytes, &PLAIN).unwrap_err()
    };
    assert_eq!(with(3, 0), Notification::new(NOT_SYNCHRONIZED));
    assert_eq!(with(17, 18), Notification::with(BAD_LENGTH, [0, 18]));
    assert_eq!(with(17, 20), Notification::with(BAD_LENGTH, [0, 20]));
    assert_eq!(with(18, 9), Notification::with(BAD_TYPE, [9]));
    assert_eq!(frame(b"GET / HTTP/1.1\r\n", &PLAIN).unwrap_err(), Notification::new(NOT_SYNCHRONIZED));
    let mut long = message(UPDATE, &[]);
    long[16..18].copy_from_slice(&5000_u16.to_be_bytes());
    assert_eq!(frame(&long, &PLAIN).unwrap_err(), Notification::with(BAD_LENGTH, 5000_u16.to_be_bytes()));
    assert_eq!(frame(&long, &ALL), Ok(Some(5000)));
}

#[test]
fn update_vector() {
    let bytes = update(&[8, 10], &[ORIGIN, PATH, HOP, &[0x80, 4, 4, 0, 0, 0, 7]], NLRI);
    let expected = Update {
        withdrawn: vec![prefix("10.0.0.0/8")],
        announced: vec![Announced {
            attributes: Attributes { med: Some(7), ..simple() },
            prefixes: vec![prefix("203.0.113.0/24")],
        }],
        ..Update::default()
    };
    assert_eq!(read(&bytes, &PLAIN), Ok(expected));
    let mut out = Vec::new();
    assert!(announce(&simple(), &[prefix("203.0.113.0/24")], &PLAIN, &mut out));
    assert_eq!(out, update(&[], &[ORIGIN, PATH, HOP], NLRI));
}

#[test]
fn ipv6_goes_by_multiprotocol_attributes() {
    let local = "fe80::1".parse().ok();
    let next_hop = NextHop { link_local: local, ..hop("2001:db8::1") };
    let attributes = Attributes { next_hop, ..simple() };
    let mut out = Vec::new();
    assert!(announce(&attributes, &[prefix("fd00:1::/32")], &PLAIN, &mut out));
    let hops = [attributes.next_hop.address, local.unwrap().into()].map(|ip: IpAddr| match ip {
        IpAddr::V6(six) => six.octets(),
        IpAddr::V4(_) => panic!("IPv4"),
    });
    let reach = [&[0x80, 14, 42, 0, 2, 1, 32][..], &hops.concat(), &[0, 32, 0xfd, 0, 0, 1]].concat();
    assert_eq!(out, update(&[], &[&reach, ORIGIN, PATH], &[]));
    let read_back = read(&out, &PLAIN).unwrap();
    assert_eq!(read_back.announced, [Announced { attributes, prefixes: vec![prefix("fd00:1::/32")] }]);
    let mut out = Vec::new();
    withdraw(Family::Ipv6, &[prefix("fd00:1::/32")], &PLAIN, &mut out);
    assert_eq!(out, update(&[], &[&[0x80, 15, 8, 0, 2, 1, 32, 0xfd, 0, 0, 1]], &[]));
    assert_eq!(read(&out, &PLAIN).unwrap().withdrawn, [prefix("fd00:1::/32")]);
}

#[test]
fn an_ipv4_prefix_has_an_ipv6_next_hop_where_both_agreed() {
    let attributes = Attributes { next_hop: hop("2001:db8::1"), ..simple() };
    let mut out = Vec::new();
    assert!(announce(&attributes, &[prefix("10.0.0.0/8")], &ALL, &mut out));
    assert_eq!(read(&out, &ALL).unwrap().announced[0].attributes, attributes);
    let refused = read(&out, &PLAIN).unwrap_err();
    assert_eq!(refused.kind(), OPTIONAL_ATTRIBUTE);
    assert_eq!(refused.data[..7], [0x80, 14, 23, 0, 1, 1, 16], "the attribute is shown to the peer");
}

#[test]
fn end_of_rib_of_both_families() {
    for family in Family::ALL {
        let mut out = Vec::new();
        end_of_rib(family, &mut out);
        assert_eq!(read(&out, &PLAIN), Ok(Update { end_of_rib: Some(family), ..Update::default() }));
    }
}

#[test]
fn two_octet_peers_see_the_true_path_beside() {
    let old = Dialect { four_octet_as: false, ..INTERNAL };
    let long = Attributes {
        as_path: AsPath::sequence(&[65001, 70000, 3]),
        aggregator: Some((70000, [1; 4].into())),
        ..simple()
    };
    let mut out = Vec::new();
    assert!(announce(&long, &[prefix("10.0.0.0/8")], &old, &mut out));
    assert_eq!(read(&out, &old).unwrap().announced[0].attributes, long);
    // A hop that did not know of AS4_PATH has put itself in front since.
    let path = [0x40, 2, 8, 2, 3, 0, 9, 0x5b, 0xa0, 0, 3];
    let as4 = [0xc0, 17, 10, 2, 2, 0, 1, 0x11, 0x70, 0, 0, 0, 3];
    let merged = read(&update(&[], &[ORIGIN, &path, HOP, &as4], NLRI), &old).unwrap();
    assert_eq!(merged.announced[0].attributes.as_path.to_string(), "9 70000 3");
}

/// RFC 7606 section 7, attribute by attribute: routes are withdrawn, the session stays.
#[test]
fn malformed_attributes_withdraw_the_routes() {
    let cases: &[(&str, &[&[u8]])] = &[
        ("ORIGIN: no such origin", &[&[0x40, 1, 1, 3], PATH, HOP]),
        ("ORIGIN: no such origin", &[&[0x40, 1, 2, 0, 0], PATH, HOP]),
        ("ORIGIN: wrong flags", &[&[0xc0, 1, 1, 0], PATH, HOP]),
        ("ORIGIN: missing", &[PATH, HOP]),
        ("AS_PATH: no such segment", &[ORIGIN, &[0x40, 2, 6, 9, 1, 0, 0, 0xfd, 0xe9], HOP]),
        ("AS_PATH: cut short", &[ORIGIN, &[0x40, 2, 6, 2, 2, 0, 0, 0xfd, 0xe9], HOP]),
        ("AS_PATH: an empty segment", &[ORIGIN, &[0x40, 2, 2, 2, 0], HOP]),
        ("AS_PATH: AS 0", &[ORIGIN, &[0x40, 2, 6, 2, 1, 0, 0, 0, 0], HOP]),
        ("AS_PATH: a confederation's segment from outside", &[ORIGIN, &[0x40, 2, 6, 3, 1, 0, 0, 0, 1], HOP]),
        ("AS_PATH: missing", &[ORIGIN, HOP]),
        ("NEXT_HOP: wrong length", &[ORIGIN, PATH, &[0x40, 3, 3, 192, 0, 2]]),
        ("NEXT_HOP: no address of a host", &[ORIGIN, PATH, &[0x40, 3, 4, 224, 0, 0, 1]]),
        ("NEXT_HOP: missing", &[ORIGIN, PATH]),
        ("MULTI_EXIT_DISC: wrong length", &[ORIGIN, PATH, HOP, &[0x80, 4, 3, 0, 0, 7]]),
        ("LOCAL_PREF: wrong length", &[ORIGIN, PATH, HOP, &[0x40, 5, 1, 7]]),
        ("COMMUNITIES: wrong length", &[ORIGIN, PATH, HOP, &[0xc0, 8, 5, 0, 0, 0, 0, 0]]),
        ("COMMUNITIES: wrong length", &[ORIGIN, PATH, HOP, &[0xc0, 8, 0]]),
        ("ORIGINATOR_ID: wrong length", &[ORIGIN, PATH, HOP, &[0x80, 9, 5, 0, 0, 0, 0, 0]]),
        ("CLUSTER_LIST: wrong length", &[ORIGIN, PATH, HOP, &[0x80, 10, 0]]),
        ("EXTENDED COMMUNITIES: wrong length", &[ORIGIN, PATH, HOP, &[0xc0, 16, 4, 0, 0, 0, 0]]),
        ("LARGE_COMMUNITY: wrong length", &[ORIGIN, PATH, HOP, &[0xc0, 32, 4, 0, 0, 0, 0]]),
        ("path attributes: an attribute is longer than the list", &[ORIGIN, PATH, HOP, &[0x80, 4, 9, 0]]),
    ];
    for (what, attributes) in cases {
        let update = read(&update(&[], attributes, NLRI), &INTERNAL).unwrap_or_else(|told| panic!("{what}: {told}"));
        assert!(update.announced.is_empty(), "{what}");
        assert_eq!(update.withdrawn, [prefix("203.0.113.0/24")], "{what}");
        let words: Vec<String> = update.faults.iter().map(Fault::to_string).collect();
        assert_eq!(words, [format!("{what}; routes treated as withdrawn")]);
        assert!(update.is_treated_as_withdraw());
    }
}

#[test]
fn some_faults_cost_the_attribute_alone() {
    let cases: &[(&[u8], u8)] = &[
        (&[0x40, 6, 1, 0], 6),
        (&[0xc0, 7, 3, 0, 0, 0], 7),
        (&[0xc0, 17, 3, 2, 1, 0], 17),
        (&[0xc0, 18, 1, 0], 18),
        (&[0x40, 1, 1, 2], 1), // a second ORIGIN
    ];
    for (attribute, kind) in cases {
        let update = read(&update(&[], &[ORIGIN, PATH, HOP, attribute], NLRI), &INTERNAL).unwrap();
        assert_eq!(update.announced[0].attributes, simple(), "{kind}");
        let fault = &update.faults[0];
        assert_eq!((fault.attribute, fault.treatment), (*kind, Treatment::AttributeDiscarded));
    }
    // What only counts inside an AS is dropped from outside, however it looks.
    let outside = [ORIGIN, PATH, HOP, &[0x40, 5, 1, 7][..], &[0x80, 9, 4, 1, 1, 1, 1]];
    assert_eq!(read(&update(&[], &outside, NLRI), &PLAIN).unwrap().announced[0].attributes, simple());
}

#[test]
fn what_cannot_be_parsed_ends_the_session() {
    let told = |bytes: &[u8]| read(bytes, &PLAIN).unwrap_err().kind();
    assert_eq!(told(&update(&[], &[ORIGIN, PATH, HOP], &[33, 1, 2, 3, 4, 5])), INVALID_NETWORK);
    assert_eq!(told(&update(&[24, 1], &[], &[])), INVALID_NETWORK);
    assert_eq!(told(&message(UPDATE, &[0, 9, 0, 0])), MALFORMED_ATTRIBUTES);
    assert_eq!(told(&message(UPDATE, &[0, 0, 0, 9])), MALFORMED_ATTRIBUTES);
    let unreach: &[u8] = &[0x80, 15, 3, 0, 2, 1];
    assert_eq!(told(&update(&[], &[unreach, unreach], &[])), MALFORMED_ATTRIBUTES);
    assert_eq!(told(&update(&[], &[&[0x80, 15, 5, 0, 2, 1, 200, 1]], &[])), INVALID_NETWORK);
    assert_eq!(told(&update(&[], &[&[0x80, 14, 6, 0, 2, 1, 5, 0, 0]], &[])), OPTIONAL_ATTRIBUTE);
    // Routes are to be withdrawn, and the message does not say which: they stood in what could not be read.
    let cut: &[u8] = &[0x80, 14, 90, 0, 2, 1];
    assert_eq!(told(&update(&[], &[ORIGIN, PATH, cut], &[])), MALFORMED_ATTRIBUTES);
    assert_eq!(told(&update(&[], &[&[0x40, 1, 1, 9], PATH, HOP], &[])), MALFORMED_ATTRIBUTES);
    assert_eq!(told(&update(&[8, 10], &[cut], &[])), MALFORMED_ATTRIBUTES);
    let unknown = read(&update(&[], &[&[0x40, 99, 1, 5]], &[]), &PLAIN).unwrap_err();
    assert_eq!(unknown, Notification::with(UNRECOGNIZED_WELL_KNOWN, [0x40, 99, 1, 5]));
}

#[test]
fn unknown_attributes_travel_on_marked_partial_or_stop_here() {
    let bytes = update(&[], &[ORIGIN, PATH, HOP, &[0xc0, 99, 2, 1, 2], &[0x80, 98, 1, 0]], NLRI);
    let attributes = &read(&bytes, &PLAIN).unwrap().announced[0].attributes;
    assert_eq!(*attributes.opaque, [Opaque { flags: 0xe0, kind: 99, value: [1, 2].into() }]);
}

#[test]
fn families_that_are_not_spoken_are_passed_over() {
    let vpn = [0x80, 14, 9, 0, 1, 128, 1, 0, 0, 1, 2, 3];
    let update = read(&update(&[], &[&vpn, ORIGIN, PATH], &[]), &PLAIN).unwrap();
    assert_eq!((update.announced, update.withdrawn), (vec![], vec![]));
    assert!(read(&self::update(&[], &[&vpn, &[0x40, 1, 1, 9], PATH], &[]), &PLAIN).is_ok(), "and their faults");
}

/// RFC 7606 section 3 c, for the attributes that carry prefixes too.
#[test]
fn prefixes_in_attributes_of_wrong_flags_are_withdrawn() {
    let prefix = prefix("fd00::/16");
    let next_hop = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for flags in [0x80, 0xc0] {
        let reach = [&[flags, 14, 24, 0, 2, 1, 16][..], &next_hop, &[0, 16, 0xfd, 0]].concat();
        let told = read(&update(&[], &[&reach, ORIGIN, PATH], &[]), &PLAIN).unwrap();
        assert_eq!((told.announced.is_empty(), told.withdrawn.contains(&prefix)), (flags == 0xc0, flags == 0xc0));
        let unreach = [flags, 15, 6, 0, 2, 1, 16, 0xfd, 0];
        assert_eq!(read(&update(&[], &[&unreach], &[]), &PLAIN).unwrap().withdrawn, [prefix]);
    }
}

#[test]
fn refresh_and_notification() {
    let refresh = Message::RouteRefresh(Family::Ipv6);
    assert_eq!(refresh.encode(&PLAIN)[19..], [0, 2, 0, 1]);
    assert_eq!(Message::decode(&refresh.encode(&PLAIN), &PLAIN), Ok(refresh));
    assert_eq!(Message::decode(&message(REFRESH, &[0, 1, 1, 1]), &PLAIN), Ok(Message::OtherRefresh));
    assert_eq!(Message::decode(&message(REFRESH, &[0, 1]), &PLAIN).unwrap_err().kind(), REFRESH_LENGTH);
    let told = Message::Notification(Notification::with(BAD_PEER_AS, [1, 2]));
    assert_eq!(Message::decode(&told.encode(&PLAIN), &PLAIN), Ok(told));
}

#[test]
fn a_million_prefixes_are_cut_into_full_messages() {
    let prefixes: Vec<Prefix> =
        (0..5000_u32).map(|n| Prefix::new(Ipv4Addr::from(0x0a00_0000 + (n << 8)).into(), 24).unwrap()).collect();
    for dialect in [PLAIN, ALL] {
        let mut out = Vec::new();
        assert!(announce(&simple(), &prefixes, &dialect, &mut out));
        let (mut met, mut messages, mut rest) = (Vec::new(), 0, &out[..]);
        while let Some(length) = frame(rest, &dialect).unwrap() {
            met.extend(read(&rest[..length], &dialect).unwrap().announced.remove(0).prefixes);
            (messages, rest) = (messages + 1, &rest[length..]);
        }
        assert_eq!(met, prefixes);
        assert_eq!(messages, if dialect.extended_message { 1 } else { 5 });
    }
    let huge = Attributes { communities: vec![7; 2000].into(), ..simple() };
    assert!(!announce(&huge, &prefixes, &PLAIN, &mut Vec::new()), "attributes that fit into no message");
}

fn any_path() -> impl Strategy<Value = AsPath> {
    let segment = (any::<bool>(), prop::collection::vec(1_u32.., 1..5));
    prop::collection::vec(segment, 0..4).prop_map(|segments| {
        AsPath(segments.into_iter().map(|(set, numbers)| Segment { set, numbers: numbers.into() }).collect())
    })
}

prop_compose! {
    fn any_attributes()(
        as_path in any_path(),
        origin in prop::sample::select(vec![Origin::Igp, Origin::Egp, Origin::Incomplete]),
        (med, local_pref, atomic_aggregate) in (any::<Option<u32>>(), any::<Option<u32>>(), any::<bool>()),
        aggregator in prop::option::of((1_u32.., any::<Ipv4Addr>())),
        communities in prop::collection::vec(any::<u32>(), 0..80),
        (large, extended) in (prop::collection::vec(any::<[u32; 3]>(), 0..5), prop::collection::vec(any::<u64>(), 0..5)),
        (originator_id, clusters) in (any::<Option<Ipv4Addr>>(), prop::collection::vec(any::<Ipv4Addr>(), 0..4)),
        six in any::<bool>(),
    ) -> Attributes {
        Attributes {
            as_path, origin, med, local_pref, atomic_aggregate, aggregator, originator_id,
            communities: communities.into(),
            large_communities: large.into(),
            extended_communities: extended.into(),
            cluster_list: clusters.into(),
            ..Attributes::new(hop(if six { "2001:db8::9" } else { "192.0.2.9" }))
        }
    }
}

fn any_prefix(six: bool) -> BoxedStrategy<Prefix> {
    if six {
        (any::<[u8; 16]>(), 0..=128_u8).prop_map(|(octets, length)| Prefix::new(octets.into(), length).unwrap()).boxed()
    } else {
        (any::<[u8; 4]>(), 0..=32_u8).prop_map(|(octets, length)| Prefix::new(octets.into(), length).unwrap()).boxed()
    }
}

proptest! {
    #[test]
    fn routes_come_back_as_they_were_told(
        attributes in any_attributes(),
        prefixes in any::<bool>().prop_flat_map(|six| prop::collection::vec(any_prefix(six), 1..50)),
        extended_message in any::<bool>(),
    ) {
        let dialect = Dialect { extended_message, ..ALL };
        let attributes = match (prefixes[0].family(), attributes.next_hop.address.is_ipv4()) {
            (Family::Ipv6, true) => Attributes { next_hop: hop("2001:db8::7"), ..attributes },
            _ => attributes,
        };
        let mut out = Vec::new();
        prop_assert!(announce(&attributes, &prefixes, &dialect, &mut out));
        let mut met = Vec::new();
        let mut rest = &out[..];
        while let Some(length) = frame(rest, &dialect).unwrap() {
            let update = read(&rest[..length], &dialect).unwrap();
            prop_assert_eq!(&update.announced[0].attributes, &attributes);
            met.extend(update.announced.into_iter().flat_map(|announced| announced.prefixes));
            rest = &rest[length..];
        }
        prop_assert_eq!(met, prefixes);
    }

    #[test]
    fn any_bytes_are_read_or_refused(kind in 1..6_u8, body in prop::collection::vec(any::<u8>(), 0..200)) {
        for dialect in [Dialect::BEFORE, PLAIN, ALL] {
            let bytes = message(kind, &body);
            if frame(&bytes, &dialect) == Ok(Some(bytes.len())) {
                let _read_or_refused = Message::decode(&bytes, &dialect);
            }
        }
    }

    #[test]
    fn any_damage_to_an_update_is_dealt_with(
        attributes in any_attributes(),
        damage in prop::collection::vec((0..200_usize, any::<u8>()), 1..4),
    ) {
        let mut out = Vec::new();
        prop_assert!(announce(&attributes, &[prefix("10.0.0.0/8"), prefix("10.1.0.0/16")], &ALL, &mut out));
        for (at, value) in damage {
            let at = HEADER + at % (out.len() - HEADER);
            out[at] = value;
        }
        match Message::decode(&out, &ALL) {
            Ok(Message::Update(update)) => prop_assert!(update.announced.len() <= 2),
            Ok(other) => prop_assert!(false, "read as {:?}", other),
            Err(told) => prop_assert_eq!(told.code, 3),
        }
    }
}
