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

    #[test]
    fn messages_are_counted_and_a_wrong_length_is_refused() {
        let message = |length: u32| [&length.to_ne_bytes()[..], &[0; 28]].concat();
        assert_eq!(read_any(&[message(32), message(32)].concat()).unwrap(), 2);
        assert_eq!(read_any(&[]).unwrap(), 0);
        assert!(read_any(&message(7)).is_err() && read_any(&message(99)).is_err());
    }
}
