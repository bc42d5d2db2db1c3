//! The few iptables rules beside the virtual servers: whom to masquerade, refuse and keep out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::parts::Set;
use crate::backend::Family;
use crate::iptables::base::{HAIRPIN, MASQUERADE, MASQUERADE_OUTSIDE, REFUSE, SERVICES, chains, pods};
use crate::iptables::{Chain, Table, guards};
use crate::model::{Facts, Name};
use crate::plan::Guard;

const FAR: &str = "BOSUN-FAR";

pub fn rules(
    facts: &Facts,
    family: Family,
    endpoints: &BTreeSet<IpAddr>,
    guarded: &BTreeMap<Name, Vec<Guard>>,
) -> BTreeMap<Chain, Vec<String>> {
    let mut written = chains(facts, family, endpoints);
    let is_in = |set: Set| {
        let way = if set == Set::Vips { "dst" } else { "dst,dst" };
        format!("-m set --match-set {} {way}", set.name(family))
    };
    let services = vec![
        format!("{} -j {MASQUERADE}", is_in(Set::Masquerade)),
        format!("{} -j {MASQUERADE_OUTSIDE}", is_in(Set::Outside)),
        format!("{} -m addrtype --src-type LOCAL -j {MASQUERADE}", is_in(Set::Near)),
    ];
    written.insert((Table::Nat, SERVICES.into()), services);
    written.insert((Table::Nat, HAIRPIN.into()), hairpin(family, endpoints));
    let refuse = vec![
        format!("{} -j REJECT", is_in(Set::Reject)),
        format!("{} -j DROP", is_in(Set::Drop)),
        format!("{} -j {FAR}", is_in(Set::Far)),
        format!("{} -j RETURN", is_in(Set::Fronts)),
        // The addresses are the host's, and whatever else listens on it must not answer there.
        format!("{} -j REJECT", is_in(Set::Vips)),
    ];
    written.insert((Table::Filter, REFUSE.into()), refuse);
    let mut far: Vec<String> = pods(facts, family).iter().map(|pods| format!("{pods} -j RETURN")).collect();
    far.extend(["-m addrtype --src-type LOCAL -j RETURN".into(), "-j DROP".into()]);
    written.insert((Table::Filter, FAR.into()), far);
    written.extend(guards(family, guarded));
    written
}

/// As in the other modes, but the kernel does not mark what IPVS translated as translated.
pub fn hairpin(family: Family, endpoints: &BTreeSet<IpAddr>) -> Vec<String> {
    let full = if family.is_v4() { 32 } else { 128 };
    let own = endpoints.iter().filter(|ip| family.has(**ip));
    own.map(|ip| format!("-s {ip}/{full} -d {ip}/{full} -j MASQUERADE --random-fully")).collect()
}
