//! Every reader of this module over the same bytes, for whoever throws bytes at them.

use netlink_packet_core::Parseable;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;

use super::{detection, kinds, ports, queueing, real, rules, socket, statistics};

/// Takes the bytes for a datagram of the kernel's, and each of its messages for the answer to each question. Returns
/// how many messages there were.
///
/// # Errors
/// Where the bytes are no sequence of messages.
pub fn read_any(datagram: &[u8]) -> std::io::Result<usize> {
    let mut rest = datagram;
    let mut count = 0;
    while rest.len() >= socket::HEADER {
        let (header, payload, next) = socket::split(rest)?;
        rest = next;
        count += 1;
        let _ = socket::answer(&header, payload);
        if let Ok(message) = LinkMessage::parse(payload) {
            real::read_link(&message);
            statistics::read(&message);
            ports::read_vlans(&message);
        }
        let _ = kinds::read_details(payload);
        let _ = AddressMessage::parse(payload).map(|message| {
            real::read_address(&message);
            detection::judge([message].iter())
        });
        let _ = RouteMessage::parse(payload).map(|message| real::read_route(&message));
        let _ = NeighbourMessage::parse(payload).map(|message| real::read_neighbour(&message));
        let _ = RuleMessage::parse(payload).map(|message| rules::read_rule(&message));
        let link = payload.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
        queueing::read_bucket(payload, link);
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of a namespace, each byte changed in turn and cut off anywhere.
    #[test]
    fn spoilt_answers_are_read_or_refused() {
        if !crate::test::root("spoilt answers") {
            return;
        }
        use super::super::{Kernel, Network, VethEnd};
        let netns = crate::netns::Netns::anonymous().unwrap();
        let mut network = netns.run(|| Kernel::open().unwrap()).unwrap();
        network.add_bridge("br0", None).unwrap();
        let master = network.link("br0").unwrap().map(|link| link.index);
        let near = VethEnd { name: "port0", master, ..VethEnd::default() };
        network.add_veth(near, VethEnd { name: "eth0", ..VethEnd::default() }, None, None).unwrap();
        let mut answers = Vec::new();
        for (question, kind) in [(18, 16), (22, 20), (26, 24), (34, 32), (38, 36)] {
            for part in network.0.dump(question, &LinkMessage::default()).unwrap_or_default() {
                let head = [u32::try_from(16 + part.len()).unwrap(), kind, 1, 0];
                let head: Vec<u8> = head.iter().flat_map(|word| word.to_ne_bytes()).collect();
                answers.push([head, part].concat());
            }
        }
        assert!(answers.len() > 5, "{} answers", answers.len());
        for answer in &answers {
            assert_eq!(read_any(answer).unwrap(), 1);
            for at in 0..answer.len() {
                let mut spoilt = answer.clone();
                for value in [0, 1, 0x7f, 0xff] {
                    spoilt[at] = value;
                    let _ = read_any(&spoilt);
                }
                let _ = read_any(&answer[..at]);
            }
        }
    }

    #[test]
    fn messages_are_counted_and_a_wrong_length_is_refused() {
        let message = |length: u32| [&length.to_ne_bytes()[..], &[0; 28]].concat();
        assert_eq!(read_any(&[message(32), message(32)].concat()).unwrap(), 2);
        assert_eq!(read_any(&[]).unwrap(), 0);
        assert!(read_any(&message(7)).is_err() && read_any(&message(99)).is_err());
    }

    #[test]
    fn an_error_without_a_positive_number_is_one_nevertheless() {
        let error = [&20_u32.to_ne_bytes()[..], &2_u16.to_ne_bytes(), &[0; 10], &i32::MIN.to_ne_bytes()].concat();
        let (header, payload, _) = socket::split(&error).unwrap();
        assert!(socket::answer(&header, payload).is_err());
        assert_eq!(read_any(&error).unwrap(), 1);
    }
}
