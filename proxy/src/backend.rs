//! What a proxy mode is to the loop: something that brings the kernel from plans to plans.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{Facts, Name};
use crate::plan::Plan;

/// Rules of the two families are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn is_v4(self) -> bool {
        self == Self::V4
    }

    pub fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_v4()
    }

    /// IPv4 always, IPv6 where the node or its pods have it.
    pub fn of(facts: &Facts) -> Vec<Self> {
        let ranges = facts.pods.iter().any(|pods| matches!(pods, crate::model::PodSource::Range(r) if r.is_ipv6()));
        let six = ranges || facts.node_ips.iter().chain(&facts.primary_ips).any(IpAddr::is_ipv6);
        if six { vec![Self::V4, Self::V6] } else { vec![Self::V4] }
    }
}

/// One Service's old plan and its new one; `None` stands for a Service that was or will be gone.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub name: &'a Name,
    pub before: Option<&'a Plan>,
    pub after: Option<&'a Plan>,
}

/// Endpoints that may get back what they sent to a Service, and so must see it come from the node.
#[derive(Debug, Default)]
pub struct Hairpin {
    pub gone: BTreeSet<IpAddr>,
    pub come: BTreeSet<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Nftables(#[from] kernel::nftables::Error),
    #[error(transparent)]
    Iptables(#[from] kernel::iptables::Error),
    #[error(transparent)]
    Ipset(#[from] kernel::ipset::Error),
    #[error(transparent)]
    Ipvs(#[from] kernel::ipvs::Error),
    #[error(transparent)]
    Network(#[from] kernel::netlink::Error),
}

pub trait Backend: Send {
    /// Makes the kernel hold these plans, whatever it held before. `hairpin` are all endpoints that need one.
    ///
    /// # Errors
    /// The kernel's; what it holds then is not known.
    fn replace(&mut self, facts: &Facts, plans: &BTreeMap<Name, Plan>, hairpin: &BTreeSet<IpAddr>)
    -> Result<(), Error>;

    /// Goes from the old plans to the new ones, at the cost of what changes.
    ///
    /// # Errors
    /// The kernel's; what it holds then is not known.
    fn change(&mut self, facts: &Facts, changes: &[Change<'_>], hairpin: &Hairpin) -> Result<(), Error>;

    /// Whether what was written is still there, as far as a glance tells. Asked now and then: the time for what can wait.
    fn stands(&mut self, facts: &Facts) -> bool;

    /// Removes all that a proxy of this mode may have left, also one that ran long ago.
    ///
    /// # Errors
    /// The kernel's.
    fn remove(&mut self) -> Result<(), Error>;
}
