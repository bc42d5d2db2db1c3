//! What a BGP peer sends is read or refused, by a session and a table that go on, and what is handed on can be read again.
#![no_main]

use std::net::Ipv4Addr;

use bgp::message::{Capabilities, Dialect, Open, frame};
use bgp::rib::{Identity, Live, Policy, Rib};
use bgp::session::{Input, Output, Session, Settings, Side};
use bgp::{Family, Message};

const DIALECT: Dialect =
    Dialect { four_octet_as: true, extended_next_hop: true, extended_message: true, external: true };

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let settings = Settings {
        local_as: 64512,
        identifier: Ipv4Addr::new(192, 0, 2, 1),
        peer_as: 65001,
        hold_time: 90,
        keepalive: None,
        connect_retry: std::time::Duration::from_secs(5),
        passive: false,
        families: Family::ALL.to_vec(),
        extended_next_hop: true,
        restart_time: Some(120),
    };
    let mut session = Session::new(settings, false);
    session.handle(Input::Start);
    session.handle(Input::Connected(Side::Outgoing));
    // Half of the inputs meet a session that stands.
    if bytes.first().is_some_and(|byte| byte % 2 == 0) {
        let capabilities =
            Capabilities { families: Family::ALL.to_vec(), extended_message: true, ..Capabilities::default() };
        let open = Open::new(65001, 90, Ipv4Addr::new(192, 0, 2, 2), capabilities);
        session.handle(Input::Received(Side::Outgoing, Ok(Message::Open(open))));
    }
    let mut rib = table();
    let mut rest = bytes.get(1..).unwrap_or_default();
    while let Ok(Some(length)) = frame(rest, &DIALECT) {
        let Some((message, after)) = rest.split_at_checked(length) else { break };
        rest = after;
        for output in session.handle(Input::Received(Side::Outgoing, Message::decode(message, &DIALECT))) {
            if let Output::Update(update) = output {
                rib.update(1, update);
            }
        }
    }
    while rib.has_updates(2) {
        let told = rib.take_updates(2, 1000);
        let mut rest = &told[..];
        while let Some(length) = frame(rest, &DIALECT).expect("our own messages are framed") {
            let Ok(Message::Update(update)) = Message::decode(&rest[..length], &DIALECT) else {
                panic!("our own UPDATE is refused");
            };
            assert!(!update.is_treated_as_withdraw(), "our own UPDATE is faulty: {:?}", update.faults);
            rest = &rest[length..];
        }
    }
});

/// A table with the peer that sends and one that is told.
fn table() -> Rib {
    let identity = Identity {
        asn: 64512,
        identifier: Ipv4Addr::new(192, 0, 2, 1),
        cluster_id: None,
        maximum_paths: 16,
        links: Default::default(),
        addresses: vec!["2001:db8::1".parse().expect("an address")],
    };
    let mut rib = Rib::new(identity, false);
    for (id, peer_as) in [(1, 65001), (2, 65002)] {
        rib.add_peer(id, Policy::default());
        let address = Ipv4Addr::new(192, 0, 2, 1 + id as u8);
        let negotiated = bgp::session::Negotiated {
            peer_as,
            identifier: address,
            hold_time: 90,
            families: Family::ALL.to_vec(),
            dialect: DIALECT,
            route_refresh: true,
            restart: None,
        };
        let local_address = Ipv4Addr::new(192, 0, 2, 1).into();
        rib.up(id, Live { negotiated, peer_address: address.into(), local_address });
    }
    rib
}
