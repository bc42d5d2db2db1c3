//! What the proxy has to know before it writes its first rules.
//!
//! Rules from half a list would take Services away that an earlier proxy served, and without the Node's addresses it would be
//! the node ports. The Node is waited for no longer than kube-proxy does: without it cluster addresses work all the same.

use std::time::Duration;

use crate::watch::News;

/// So long the Node may have no address, or no pod range where that is asked for.
pub const NODE_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    services: bool,
    slices: bool,
    node: bool,
    /// Whether pods are told by the Node's pod ranges.
    by_pod_ranges: bool,
}

impl Missing {
    pub fn new(by_pod_ranges: bool) -> Self {
        Self { services: true, slices: true, node: true, by_pod_ranges }
    }

    /// Takes note of what came; `true` where nothing is missing from then on.
    pub fn note(&mut self, news: &News) -> bool {
        let before = *self;
        match news {
            News::ServicesListed => self.services = false,
            News::SlicesListed => self.slices = false,
            News::Node(node) => {
                let ranges = !self.by_pod_ranges || !node.pod_cidrs.is_empty();
                self.node &= node.ips.is_empty() || !ranges;
            }
            News::Change(..) => {}
        }
        before.any() && !self.any()
    }

    pub fn any(self) -> bool {
        self.services || self.slices || self.node
    }

    pub fn node(self) -> bool {
        self.node
    }

    /// Goes on without the Node; `true` where nothing else is missing.
    pub fn do_without_node(&mut self) -> bool {
        self.node = false;
        !self.any()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::NodeNews;

    fn node(ips: &[&str], ranges: &[&str]) -> News {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let pod_cidrs = ranges.iter().map(|range| range.parse().unwrap()).collect();
        News::Node(Box::new(NodeNews { ips, pod_cidrs, ..NodeNews::default() }))
    }

    #[test]
    fn the_last_that_was_missing_ends_the_wait_once() {
        let mut missing = Missing::new(false);
        let ends = [node(&[], &[]), News::SlicesListed, node(&["192.0.2.1"], &[]), News::ServicesListed]
            .map(|news| missing.note(&news));
        assert_eq!(ends, [false, false, false, true]);
        assert!(!missing.note(&node(&["192.0.2.2"], &[])));
        assert!(!missing.any());
    }

    #[test]
    fn pod_ranges_are_waited_for_where_they_tell_pods() {
        let mut missing = Missing::new(true);
        missing.note(&News::ServicesListed);
        missing.note(&News::SlicesListed);
        assert!(!missing.note(&node(&["192.0.2.1"], &[])));
        assert!(missing.note(&node(&["192.0.2.1"], &["10.244.0.0/24"])));
    }

    #[test]
    fn the_node_is_not_waited_for_for_ever() {
        let mut missing = Missing::new(false);
        assert!(missing.node());
        assert!(!missing.do_without_node(), "the lists are");
        missing.note(&News::ServicesListed);
        assert!(missing.note(&News::SlicesListed));
        let mut missing = Missing::new(false);
        missing.note(&News::ServicesListed);
        missing.note(&News::SlicesListed);
        assert!(missing.do_without_node());
    }
}
