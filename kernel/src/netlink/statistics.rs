//! What went through the links of a namespace: `IFLA_STATS64` of rtnetlink(7).

use netlink_packet_core::Parseable;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, Stats64};

use super::real::{GETLINK, failed, malformed};
use super::{Kernel, Result};

/// Counters of one link since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkStatistics {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

impl Kernel {
    /// The counters of every link of the namespace, the loopback among them.
    ///
    /// # Errors
    /// Where the kernel's table cannot be read.
    pub fn statistics(&mut self) -> Result<Vec<LinkStatistics>> {
        let read = self.0.dump(GETLINK, &LinkMessage::default()).and_then(|parts| {
            parts.iter().map(|part| LinkMessage::parse(part).map(|m| read(&m)).map_err(malformed)).collect()
        });
        read.map_err(failed("read the statistics of", || "links".into()))
    }
}

pub(super) fn read(message: &LinkMessage) -> LinkStatistics {
    let mut link = LinkStatistics::default();
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Stats64(counters) => count(&mut link, counters),
            _ => {}
        }
    }
    link
}

fn count(link: &mut LinkStatistics, counters: &Stats64) {
    link.rx_bytes = counters.rx_bytes;
    link.rx_packets = counters.rx_packets;
    link.rx_errors = counters.rx_errors;
    link.rx_dropped = counters.rx_dropped;
    link.tx_bytes = counters.tx_bytes;
    link.tx_packets = counters.tx_packets;
    link.tx_errors = counters.tx_errors;
    link.tx_dropped = counters.tx_dropped;
}

#[cfg(test)]
mod tests {
    use crate::netlink::{Kernel, LinkChange, Network};
    use crate::netns::Netns;

    #[test]
    fn a_datagram_to_itself_is_counted_on_the_loopback() {
        if !crate::test::root("link statistics") {
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let counted = netns.run(|| {
            let mut network = Kernel::open().unwrap();
            let lo = network.link("lo").unwrap().unwrap().index;
            network.change_link(lo, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
            network.statistics().unwrap()
        });
        let counted = counted.unwrap();
        let lo = counted.iter().find(|link| link.name == "lo").unwrap();
        assert!(lo.rx_bytes >= 1000 && lo.tx_bytes >= 1000 && lo.rx_packets > 0 && lo.tx_packets > 0, "{lo:?}");
        assert_eq!((lo.rx_errors, lo.rx_dropped, lo.tx_errors, lo.tx_dropped), (0, 0, 0, 0));
    }
}
