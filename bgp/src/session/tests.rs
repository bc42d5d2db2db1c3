use super::*;
use crate::message::notification::{ADMINISTRATIVE_SHUTDOWN, BAD_TYPE, CONFIGURATION_CHANGE, MAXIMUM_PREFIXES};
use Side::{Incoming, Outgoing};

fn settings(local_as: u32, peer_as: u32, last: u8) -> Settings {
    Settings {
        local_as,
        identifier: Ipv4Addr::new(192, 0, 2, last),
        peer_as,
        hold_time: 90,
        keepalive: None,
        connect_retry: Duration::from_secs(5),
        passive: false,
        families: Family::ALL.to_vec(),
        extended_next_hop: true,
        restart_time: Some(120),
    }
}

fn session() -> Session {
    Session::new(settings(64512, 65001, 1), false)
}

/// The OPEN of a peer with graceful restart.
fn open(asn: u32, last: u8, notifications: bool) -> Open {
    let restart =
        GracefulRestart { notifications, time: 60, families: vec![(Family::Ipv4, true)], ..Default::default() };
    let families = vec![Family::Ipv4];
    let capabilities = Capabilities { families, graceful_restart: Some(restart), ..Capabilities::default() };
    Open::new(asn, 30, Ipv4Addr::new(192, 0, 2, last), capabilities)
}

fn says(message: Message) -> Result<Message, Notification> {
    Ok(message)
}

fn told(outputs: &[Output]) -> Vec<&Notification> {
    let notification = |output| match output {
        &Output::Send(_, Message::Notification(ref told)) | &Output::Refuse(ref told) => Some(told),
        _ => None,
    };
    outputs.iter().filter_map(notification).collect()
}

fn down(outputs: &[Output]) -> Option<&Down> {
    outputs.iter().find_map(|output| if let Output::Down(down) = output { Some(down) } else { None })
}

fn established_with(open: Open) -> Session {
    let mut session = session();
    session.handle(Input::Start);
    session.handle(Input::Connected(Outgoing));
    session.handle(Input::Received(Outgoing, says(Message::Open(open))));
    let outputs = session.handle(Input::Received(Outgoing, says(Message::Keepalive)));
    assert!(outputs.iter().any(|output| matches!(output, Output::Up(Outgoing, _))), "{outputs:?}");
    session
}

fn established() -> Session {
    established_with(open(65001, 9, true))
}

#[test]
fn the_way_to_established() {
    let mut session = session();
    let retry = Duration::from_secs(5);
    assert_eq!(
        session.handle(Input::Start),
        [Output::Cancel(Timer::IdleHold), Output::Connect, Output::Start(Timer::ConnectRetry, retry)]
    );
    assert_eq!(session.state(), State::Connect);
    session.handle(Input::ConnectFailed("cannot connect: refused".into()));
    assert_eq!(session.state(), State::Active);
    assert_eq!(session.take_error().unwrap().to_string(), "cannot connect: refused");
    assert!(session.handle(Input::Expired(Timer::ConnectRetry)).contains(&Output::Connect));
    let outputs = session.handle(Input::Connected(Outgoing));
    assert!(matches!(
        &outputs[..],
        [Output::Accept(Outgoing), Output::Send(Outgoing, Message::Open(_)), Output::Start(..)]
    ));
    assert_eq!(session.state(), State::OpenSent);
    let (hold, keepalive) = (Duration::from_secs(30), Duration::from_secs(10));
    assert_eq!(
        session.handle(Input::Received(Outgoing, says(Message::Open(open(65001, 9, true))))),
        [
            Output::Send(Outgoing, Message::Keepalive),
            Output::Start(Timer::Hold(Outgoing), hold),
            Output::Start(Timer::Keepalive(Outgoing), keepalive),
        ],
        "the lower of both hold times, and a third of it"
    );
    assert_eq!(session.state(), State::OpenConfirm);
    let outputs = session.handle(Input::Received(Outgoing, says(Message::Keepalive)));
    let Some(Output::Up(Outgoing, negotiated)) = outputs.last() else { panic!("{outputs:?}") };
    assert_eq!((negotiated.families.as_slice(), negotiated.dialect.external), (&[Family::Ipv4][..], true));
    assert_eq!(session.state(), State::Established);
    let outputs = session.handle(Input::Expired(Timer::Keepalive(Outgoing)));
    assert_eq!(outputs[0], Output::Send(Outgoing, Message::Keepalive));
}

#[test]
fn an_open_that_does_not_fit_is_refused_with_the_reason() {
    let refused = |settings: Settings, open: Open| {
        let mut session = Session::new(settings, false);
        session.handle(Input::Start);
        session.handle(Input::Connected(Outgoing));
        let outputs = session.handle(Input::Received(Outgoing, says(Message::Open(open))));
        assert_eq!(session.state(), State::Idle);
        assert!(outputs.contains(&Output::Close(Outgoing)) && down(&outputs).is_none());
        told(&outputs)[0].clone()
    };
    let external = settings(64512, 65001, 1);
    let wrong = refused(external.clone(), open(65009, 9, true));
    assert_eq!(wrong, Notification::with(BAD_PEER_AS, 65009_u32.to_be_bytes()));
    assert_eq!(refused(settings(64512, 64512, 1), open(64512, 1, true)).kind(), BAD_IDENTIFIER);
    let six = Settings { families: vec![Family::Ipv6], ..external };
    assert_eq!(refused(six, open(65001, 9, true)), Notification::with(UNSUPPORTED_CAPABILITY, [1, 4, 0, 2, 0, 1]));
}

#[test]
fn a_message_out_of_place_names_the_state_and_itself() {
    let mut fresh = session();
    fresh.handle(Input::Start);
    fresh.handle(Input::Connected(Outgoing));
    let outputs = fresh.handle(Input::Received(Outgoing, says(Message::Keepalive)));
    assert_eq!(told(&outputs), [&Notification::with(UNEXPECTED_IN_OPEN_SENT, [4])]);
    fresh.handle(Input::Expired(Timer::IdleHold));
    fresh.handle(Input::Connected(Outgoing));
    fresh.handle(Input::Received(Outgoing, says(Message::Open(open(65001, 9, true)))));
    let outputs = fresh.handle(Input::Received(Outgoing, says(Message::Update(Update::default()))));
    assert_eq!(told(&outputs), [&Notification::with(UNEXPECTED_IN_OPEN_CONFIRM, [2])]);
    let outputs = established().handle(Input::Received(Outgoing, says(Message::Open(open(65001, 9, true)))));
    assert_eq!(told(&outputs), [&Notification::with(UNEXPECTED_IN_ESTABLISHED, [1])]);
    assert_eq!(
        down(&outputs).unwrap().reason.to_string(),
        "sent state machine error: unexpected message in Established state (5/3), data 01"
    );
}

#[test]
fn errors_wait_longer_each_time_and_a_session_begins_anew() {
    let mut session = session();
    session.handle(Input::Start);
    let mut waits = Vec::new();
    for _ in 0..7 {
        session.handle(Input::Connected(Incoming));
        let outputs = session.handle(Input::Received(Incoming, Err(Notification::with(BAD_TYPE, [9]))));
        waits.extend(outputs.iter().filter_map(|output| match output {
            Output::Start(Timer::IdleHold, wait) => Some(wait.as_secs()),
            _ => None,
        }));
        assert_eq!(told(&session.handle(Input::Connected(Incoming)))[0].kind(), REJECTED);
        session.handle(Input::Expired(Timer::IdleHold));
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 32]);
}

/// Both have lost a session by an error, and each connects while the other still waits.
#[test]
fn two_that_wait_after_errors_meet() {
    let mut session = session();
    session.handle(Input::Start);
    session.handle(Input::Connected(Outgoing));
    let refused = Message::Notification(Notification::new(REJECTED));
    let outputs = session.handle(Input::Received(Outgoing, says(refused)));
    assert!(outputs.contains(&Output::Start(Timer::ConnectRetry, Duration::from_secs(5))), "{outputs:?}");
    assert_eq!(session.state(), State::Active);
    assert!(
        session.handle(Input::Connected(Incoming)).contains(&Output::Accept(Incoming)),
        "the peer has done waiting"
    );
}

#[test]
fn the_hold_timer() {
    let mut session = established();
    let outputs = session.handle(Input::Received(Outgoing, says(Message::Keepalive)));
    assert_eq!(outputs, [Output::Start(Timer::Hold(Outgoing), Duration::from_secs(30))]);
    let outputs = session.handle(Input::Expired(Timer::Hold(Outgoing)));
    assert_eq!(told(&outputs), [&Notification::new(HOLD_TIMER_EXPIRED)]);
    assert!(down(&outputs).unwrap().graceful, "RFC 8538: the peer keeps our routes too");
    let outputs = established_with(open(65001, 9, false)).handle(Input::Expired(Timer::Hold(Outgoing)));
    assert!(!down(&outputs).unwrap().graceful);
    assert_eq!(session.take_error().unwrap().to_string(), "sent hold timer expired (4/0)");
}

/// RFC 4724 and 8538: which ends keep the peer's routes.
#[test]
fn how_a_session_ends_says_whether_routes_stay() {
    let hard = Notification::new(CONFIGURATION_CHANGE).hard();
    let soft = Notification::new(CONFIGURATION_CHANGE);
    let received = |told: &Notification| Input::Received(Outgoing, says(Message::Notification(told.clone())));
    let mut without = open(65001, 9, true);
    without.capabilities.graceful_restart = None;
    for (input, open, graceful) in [
        (Input::Closed(Outgoing), open(65001, 9, false), true),
        (Input::Closed(Outgoing), without.clone(), false),
        (received(&soft), open(65001, 9, true), true),
        (received(&soft), open(65001, 9, false), false),
        (received(&hard), open(65001, 9, true), false),
        (Input::Stop(soft.clone()), open(65001, 9, true), false),
        (Input::BfdDown { independent: false }, open(65001, 9, true), true),
        (Input::BfdDown { independent: false }, open(65001, 9, false), true),
        (Input::BfdDown { independent: true }, open(65001, 9, true), false),
        (Input::BfdDown { independent: false }, without, false),
    ] {
        let outputs = established_with(open).handle(input.clone());
        assert_eq!(down(&outputs).unwrap().graceful, graceful, "{input:?}");
    }
}

#[test]
fn what_the_peer_is_told_fits_what_it_keeps() {
    let shutdown = Notification::saying(ADMINISTRATIVE_SHUTDOWN, "going");
    let outputs = established().handle(Input::Stop(shutdown.clone()));
    assert_eq!(told(&outputs), [&shutdown.clone().hard()], "else it would keep our routes");
    let outputs = established_with(open(65001, 9, false)).handle(Input::Stop(shutdown.clone()));
    assert_eq!(told(&outputs), [&shutdown]);
    // A NOTIFICATION without RFC 8538 would make the peer drop the routes that this side keeps.
    let outputs = established_with(open(65001, 9, false)).handle(Input::BfdDown { independent: false });
    assert!(told(&outputs).is_empty() && outputs.contains(&Output::Close(Outgoing)));
    let outputs = established().handle(Input::BfdDown { independent: true });
    assert_eq!(told(&outputs), [&Notification::new(BFD_DOWN).hard()]);
}

#[test]
fn after_a_lost_connection_it_connects_at_once() {
    let outputs = established().handle(Input::Closed(Outgoing));
    assert!(outputs.contains(&Output::Connect), "{outputs:?}");
}

/// RFC 4271 section 6.8, both ways round.
#[test]
fn of_two_connections_the_higher_identifiers_stays() {
    for (peer, stays) in [(9, Incoming), (0, Outgoing)] {
        for first in [Outgoing, Incoming] {
            let mut session = session();
            session.handle(Input::Start);
            session.handle(Input::Connected(Outgoing));
            session.handle(Input::Connected(Incoming));
            let open = |last| Message::Open(open(65001, last, true));
            assert_eq!(told(&session.handle(Input::Received(first, says(open(peer))))), Vec::<&Notification>::new());
            let outputs = session.handle(Input::Received(first.other(), says(open(peer))));
            assert_eq!(told(&outputs), [&Notification::new(COLLISION)]);
            assert!(outputs.contains(&Output::Close(stays.other())), "{stays:?} stays: {outputs:?}");
            let outputs = session.handle(Input::Received(stays, says(Message::Keepalive)));
            assert!(matches!(outputs.last(), Some(Output::Up(side, _)) if *side == stays));
        }
    }
}

#[test]
fn a_second_connection_in_session_is_refused_unless_the_peer_restarts() {
    let mut without = open(65001, 9, true);
    without.capabilities.graceful_restart = None;
    let outputs = established_with(without).handle(Input::Connected(Incoming));
    assert_eq!(outputs, [Output::Refuse(Notification::new(COLLISION))]);
    let mut session = established();
    let outputs = session.handle(Input::Connected(Incoming));
    assert!(down(&outputs).unwrap().graceful && told(&outputs).is_empty());
    assert!(outputs.contains(&Output::Accept(Incoming)));
    assert_eq!(session.state(), State::OpenSent);
}

#[test]
fn a_restarted_speaker_says_so_until_it_has_its_routes() {
    let mut session = Session::new(settings(64512, 65001, 1), true);
    let flags = |session: &Session| {
        let restart = session.open().capabilities.graceful_restart.unwrap();
        (restart.restarting, restart.families[0].1, restart.notifications, restart.time)
    };
    assert_eq!(flags(&session), (true, true, true, 120));
    session.restarted();
    assert_eq!(flags(&session), (false, true, true, 120));
    assert_eq!(flags(&self::session()), (false, false, true, 120), "a fresh one has kept no forwarding");
}

#[test]
fn stopped_is_idle_and_takes_nobody() {
    let mut session = established();
    session.handle(Input::Stop(Notification::new(ADMINISTRATIVE_SHUTDOWN)));
    assert_eq!(session.state(), State::Idle);
    assert_eq!(session.handle(Input::Connected(Incoming)), [Output::Refuse(Notification::new(REJECTED))]);
    assert!(session.handle(Input::Start).contains(&Output::Connect));
}

#[test]
fn who_tells_too_much_waits_long() {
    for (gracefully, kind) in [(true, HARD_RESET), (false, MAXIMUM_PREFIXES)] {
        let mut session = established_with(open(65001, 9, gracefully));
        let outputs = session.handle(Input::TooManyPrefixes(Family::Ipv4, 10));
        assert_eq!(told(&outputs)[0].kind(), kind);
        assert_eq!(told(&outputs)[0].inner(), Notification::maximum_prefixes(Family::Ipv4, 10));
        assert!(!down(&outputs).unwrap().graceful, "its routes go");
        assert_eq!(outputs.last(), Some(&Output::Start(Timer::IdleHold, LIMIT_HOLD)));
        assert_eq!(told(&session.handle(Input::Connected(Incoming)))[0].kind(), REJECTED);
        assert_eq!(
            session.take_error().unwrap().to_string(),
            "sent cease: maximum number of prefixes reached (6/1): more than 10 of IPv4"
        );
        assert!(session.handle(Input::Expired(Timer::IdleHold)).contains(&Output::Connect));
    }
}
