use super::*;
use proptest::prelude::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn session(discriminator: u32) -> Session {
    Session::new(Settings { discriminator, transmit: MS(100), receive: MS(150), multiplier: 3 })
}

fn sent(outputs: &[Output]) -> Vec<Packet> {
    outputs.iter().filter_map(|output| if let Output::Send(packet) = output { Some(*packet) } else { None }).collect()
}

/// Hands packets to and fro until both are silent; all that came out of each.
fn talk(a: &mut Session, b: &mut Session, first: Vec<Packet>) -> [Vec<Output>; 2] {
    let mut all = [Vec::new(), Vec::new()];
    let (mut packets, mut to_b) = (first, true);
    for _ in 0..20 {
        let (receiver, heard) = if to_b { (&mut *b, &mut all[1]) } else { (&mut *a, &mut all[0]) };
        let outputs: Vec<Output> = packets.iter().flat_map(|packet| receiver.receive(packet)).collect();
        packets = sent(&outputs);
        heard.extend(outputs);
        to_b = !to_b;
    }
    all
}

fn pair() -> (Session, Session) {
    let (mut a, mut b) = (session(7), session(9));
    let first = sent(&a.start());
    let [of_a, of_b] = talk(&mut a, &mut b, first);
    assert!(of_a.contains(&Output::Up) && of_b.contains(&Output::Up));
    (a, b)
}

#[test]
fn two_sides_come_up_and_confirm_the_quick_interval() {
    let (mut a, b) = pair();
    assert_eq!((a.state(), b.state()), (State::Up, State::Up));
    let outputs = a.transmit();
    // The peer takes one each 150 ms, and this side sends no more.
    assert_eq!(outputs[1], Output::Transmit(MS(150)));
    let packet = sent(&outputs)[0];
    assert!(!packet.poll && !packet.independent, "the poll was answered");
    assert_eq!((packet.my_discriminator, packet.your_discriminator, packet.desired_transmit), (7, 9, MS(100)));
}

#[test]
fn before_it_is_up_a_packet_goes_each_second() {
    let mut fresh = session(7);
    assert_eq!(fresh.start()[1], Output::Transmit(MS(1000)));
    assert_eq!(sent(&fresh.transmit())[0].desired_transmit, MS(1000));
}

#[test]
fn silence_takes_it_down_after_the_peers_multiplier() {
    let (mut a, b) = pair();
    let mut packet = b.packet(false);
    packet.multiplier = 5;
    packet.desired_transmit = MS(400);
    assert_eq!(a.receive(&packet), [Output::Detect(MS(2000))]);
    let outputs = a.detect();
    let diagnostic = Diagnostic::DetectionTimeExpired;
    assert_eq!(outputs[0], Output::Down { diagnostic, independent: false });
    let told = sent(&outputs)[0];
    assert_eq!((told.state, told.diagnostic, told.your_discriminator), (State::Down, diagnostic, 0));
    assert_eq!(a.detect(), [], "down only once");
}

#[test]
fn the_peer_says_down() {
    let (mut a, b) = pair();
    let packet = Packet { state: State::Down, independent: true, ..b.packet(false) };
    let outputs = a.receive(&packet);
    let diagnostic = Diagnostic::NeighbourSignaled;
    assert_eq!(outputs, [Output::Down { diagnostic, independent: true }]);
}

#[test]
fn a_stopped_session_says_so_and_hears_nothing() {
    let (mut a, mut b) = pair();
    let told = sent(&a.stop())[0];
    assert_eq!((told.state, told.diagnostic), (State::AdminDown, Diagnostic::AdministrativelyDown));
    assert!(b.receive(&told).is_empty(), "no failure");
    assert_eq!(b.state(), State::Down);
    assert_eq!(b.detect(), [], "and none later");
    assert_eq!(a.receive(&b.packet(false)), []);
    assert_eq!(a.transmit(), [Output::Pause]);
}

#[test]
fn a_poll_is_answered_at_once_and_what_names_another_session_is_dropped() {
    let (mut a, b) = pair();
    let poll = Packet { poll: true, ..b.packet(false) };
    let answer = sent(&a.receive(&poll))[0];
    assert!(answer.last && !answer.poll);
    assert_eq!(a.receive(&Packet { your_discriminator: 1, ..poll }), []);
    assert_eq!(a.receive(&Packet { your_discriminator: 0, ..poll }), [], "an unnamed packet cannot say Up");
}

#[test]
fn a_peer_that_wants_none_gets_none_until_it_does() {
    let (mut a, b) = pair();
    a.receive(&Packet { required_receive: Duration::ZERO, ..b.packet(false) });
    assert_eq!(a.transmit(), [Output::Pause]);
    assert_eq!(sent(&a.receive(&b.packet(false))).len(), 1);
}

/// RFC 5880 section 4.1, by hand.
#[test]
fn vector() {
    let bytes = [0x21, 0xe8, 3, 24, 0, 0, 0, 7, 0, 0, 0, 9, 0, 1, 0x86, 0xa0, 0, 2, 0x49, 0xf0, 0, 0, 0, 0];
    let packet = Packet {
        diagnostic: Diagnostic::DetectionTimeExpired,
        state: State::Up,
        poll: true,
        last: false,
        independent: true,
        multiplier: 3,
        my_discriminator: 7,
        your_discriminator: 9,
        desired_transmit: MS(100),
        required_receive: MS(150),
    };
    assert_eq!(Packet::decode(&bytes), Ok(packet));
    assert_eq!(packet.encode(), bytes);
}

#[test]
fn what_must_be_dropped() {
    let good = session(7).packet(false).encode();
    let with = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        Packet::decode(&bytes)
    };
    assert_eq!(with(0, 0x40), Err(Malformed::Version(2)));
    assert_eq!(with(3, 23), Err(Malformed::Short));
    assert_eq!(with(3, 25), Err(Malformed::Short));
    assert_eq!(with(2, 0), Err(Malformed::Impossible));
    assert_eq!(with(1, good[1] | 1), Err(Malformed::Impossible));
    assert_eq!(with(7, 0), Err(Malformed::Impossible));
    assert_eq!(with(1, good[1] | 4), Err(Malformed::Authenticated));
    assert_eq!(Packet::decode(&good[..23]), Err(Malformed::Short));
    assert!(Packet::decode(&[&good[..], &[1, 2]].concat()).is_ok(), "what follows the packet is ignored");
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(packet) = Packet::decode(&bytes) {
            prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
            let mut session = session(7);
            session.start();
            session.receive(&packet);
        }
    }
}
