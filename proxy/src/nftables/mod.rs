//! The plan in nftables: one table a family, `bosun-proxy`, with maps and no chain per Service.
//!
//! - `services` leads from (address, protocol, port) to a chain that stands for a number of endpoints,
//!   `vip-pods-tcp-3` for three; that chain draws an index, and `endpoints-tcp` leads from (address, port, index) to
//!   the target. `nodeports` and `node-endpoints-tcp` do the same without the address.
//! - `*-outside` are the same for externalTrafficPolicy Local, asked first for packets from outside; their indices
//!   begin at 65536, so that both pools of a port live in one map.
//! - `refused` and its kin hold what has no endpoints.
//! - A port with ClientIP affinity has a chain of its own and a set of clients for each endpoint.
//!
//! [`base`] writes what is always there; [`elements`] one Service's part; [`transaction`] the step between two plans.

mod base;
mod elements;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

pub use base::TABLE;
use base::{base, remove};
use elements::{Parts, parts};
use kernel::nftables::{Element, Elements, Family as Rules, Key, Nftables, Part, Value, Verb};

use crate::backend::{Backend, Change, Error, Family, Hairpin};
use crate::model::{Facts, Name};
use crate::plan::Plan;

/// Mark bit that means: masquerade when the packet leaves. The same as kube-proxy's.
pub(crate) const MARK: &str = "0x4000";

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    pub fn address(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }
}

/// The mode `nftables`.
pub struct Tables {
    nft: Box<dyn Nftables>,
    chains: Chains,
}

impl Tables {
    pub fn new(nft: Box<dyn Nftables>) -> Self {
        Self { nft, chains: Chains::new() }
    }

    fn has(&self, family: Family) -> bool {
        self.nft.has_chain(rules(family), TABLE, "balance").unwrap_or(false)
    }
}

impl Backend for Tables {
    fn replace(
        &mut self,
        facts: &Facts,
        plans: &BTreeMap<Name, Plan>,
        hairpin: &BTreeSet<IpAddr>,
    ) -> Result<(), Error> {
        let (script, chains) = whole(facts, &Family::of(facts), plans.values(), hairpin);
        self.nft.apply(&script)?;
        self.chains = chains;
        Ok(())
    }

    fn change(&mut self, facts: &Facts, changes: &[Change<'_>], hairpin: &Hairpin) -> Result<(), Error> {
        let Transaction { before, elements, after } =
            transaction(changes, hairpin, (facts, &Family::of(facts)), &mut self.chains);
        let text = || elements.iter().map(ToString::to_string).collect::<String>();
        match (before.is_empty() && after.is_empty(), elements.is_empty()) {
            (true, true) => {}
            (true, false) => self.nft.change(&elements)?,
            (false, _) => self.nft.apply(&(before + &text() + &after))?,
        }
        Ok(())
    }

    fn stands(&mut self, facts: &Facts) -> bool {
        Family::of(facts).into_iter().all(|family| self.has(family))
    }

    fn remove(&mut self) -> Result<(), Error> {
        // A kernel without nftables, or a machine without nft, has no table of ours.
        for family in [Family::V4, Family::V6].into_iter().filter(|family| self.has(*family)) {
            self.nft.apply(&remove(family))?;
        }
        Ok(())
    }
}

/// Chains that stand for pool sizes and are in the kernel, and how many Services use each: the last one takes it along.
type Chains = BTreeMap<(Family, String), usize>;

/// The whole table of each family from nothing, replacing what was there in the same transaction, and the chains
/// that are there then. Connections go on: their translation is in the tracking table.
fn whole<'a>(
    facts: &Facts,
    families: &[Family],
    plans: impl Iterator<Item = &'a Plan> + Clone,
    hairpin: &BTreeSet<IpAddr>,
) -> (String, Chains) {
    let mut script = String::new();
    let mut chains = Chains::new();
    for family in families.iter().copied() {
        script.push_str(&base(facts, family));
        let mut maps: BTreeMap<&'static str, BTreeMap<Key, Option<Value>>> = BTreeMap::new();
        let mut owned = String::new();
        for plan in plans.clone() {
            let parts = parts(plan, family, facts);
            for (name, body) in parts.chains {
                let users = chains.entry((family, name.clone())).or_default();
                if *users == 0 {
                    write_chain(&mut script, family, &name, &body);
                }
                *users += 1;
            }
            for (name, seconds) in &parts.sets {
                write_set(&mut owned, family, name, *seconds);
            }
            for (name, body) in &parts.owned {
                write_chain(&mut owned, family, name, body);
            }
            for ((map, key), value) in parts.elements {
                // Two Services that claim one address: the first has it.
                maps.entry(map).or_default().entry(key).or_insert(value);
            }
        }
        script.push_str(&owned);
        let own = hairpin.iter().filter(|ip| family.has(**ip)).map(|ip| (to_itself(*ip), None));
        maps.entry("hairpin").or_default().extend(own);
        for (set, elements) in maps.into_iter().filter(|(_, elements)| !elements.is_empty()) {
            let _ = write!(script, "{}", in_table(Verb::Add, family, set, elements.into_iter().collect()));
        }
    }
    (script, chains)
}

/// What leads from some plans to others, in this order. Most of the time it is elements alone.
#[derive(Debug, Default)]
struct Transaction {
    /// Chains and sets that come.
    before: String,
    elements: Vec<Elements<'static>>,
    /// Chains and sets that go.
    after: String,
}

/// What leads from the old plans of some Services to their new ones. `chains` is brought up to date.
fn transaction(
    changes: &[Change<'_>],
    hairpin: &Hairpin,
    (facts, families): (&Facts, &[Family]),
    chains: &mut Chains,
) -> Transaction {
    let mut transaction = Transaction::default();
    for family in families.iter().copied() {
        let (mut old, mut new) = (Parts::default(), Parts::default());
        let mut used: BTreeMap<String, isize> = BTreeMap::new();
        for Change { before, after, .. } in changes {
            for (set, plan, by) in [(&mut old, before, -1), (&mut new, after, 1)] {
                let Some(parts) = plan.map(|plan| parts(plan, family, facts)) else { continue };
                parts.chains.keys().for_each(|name| *used.entry(name.clone()).or_default() += by);
                set.merge(parts);
            }
        }
        for (set, ips) in [(&mut old, &hairpin.gone), (&mut new, &hairpin.come)] {
            let own = ips.iter().filter(|ip| family.has(**ip));
            set.elements.extend(own.map(|ip| (("hairpin", to_itself(*ip)), None)));
        }
        for (name, body) in &new.chains {
            if !chains.contains_key(&(family, name.clone())) {
                write_chain(&mut transaction.before, family, name, body);
            }
        }
        difference(&mut transaction, family, &old, &new);
        for (name, by) in used {
            let users = chains.entry((family, name.clone())).or_default();
            *users = users.saturating_add_signed(by);
            if *users == 0 {
                delete_chain(&mut transaction.after, family, &name);
                chains.remove(&(family, name));
            }
        }
    }
    transaction
}

fn difference(transaction: &mut Transaction, family: Family, old: &Parts, new: &Parts) {
    for (name, seconds) in &new.sets {
        if old.sets.get(name) != Some(seconds) {
            write_set(&mut transaction.before, family, name, *seconds);
        }
    }
    for (name, body) in &new.owned {
        if old.owned.get(name) != Some(body) {
            write_chain(&mut transaction.before, family, name, body);
        }
    }
    // Deleted before added, so that a key can change its value in one transaction.
    for (verb, from, to) in [(Verb::Delete, old, new), (Verb::Add, new, old)] {
        let mut differing: BTreeMap<&'static str, Vec<Element>> = BTreeMap::new();
        for ((set, key), value) in from.elements.iter().filter(|(place, value)| to.elements.get(*place) != Some(*value))
        {
            differing.entry(set).or_default().push((key.clone(), value.clone()));
        }
        let changes = differing.into_iter().map(|(set, elements)| in_table(verb, family, set, elements));
        transaction.elements.extend(changes);
    }
    let after = &mut transaction.after;
    for name in old.owned.keys().filter(|name| !new.owned.contains_key(*name)) {
        delete_chain(after, family, name);
    }
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
        let _ = writeln!(after, "delete set {} {TABLE} {name}", family.name());
    }
}

/// The key of packets from an endpoint to itself.
fn to_itself(ip: IpAddr) -> Key {
    [Part::Address(ip), Part::Address(ip)].into()
}

fn in_table(verb: Verb, family: Family, set: &'static str, elements: Vec<Element>) -> Elements<'static> {
    Elements { verb, family: rules(family), table: TABLE, set, elements }
}

fn rules(family: Family) -> Rules {
    match family {
        Family::V4 => Rules::Ip,
        Family::V6 => Rules::Ip6,
    }
}

fn write_chain(script: &mut String, family: Family, name: &str, body: &[String]) {
    let f = family.name();
    let _ = writeln!(script, "add chain {f} {TABLE} {name}\nflush chain {f} {TABLE} {name}");
    for rule in body {
        let _ = writeln!(script, "add rule {f} {TABLE} {name} {rule}");
    }
}

fn delete_chain(script: &mut String, family: Family, name: &str) {
    let f = family.name();
    let _ = writeln!(script, "flush chain {f} {TABLE} {name}\ndelete chain {f} {TABLE} {name}");
}

/// Without a size: the kernel limits it to 65535 clients all the same, and would make room for so many at once, 1 MiB a set.
fn write_set(script: &mut String, family: Family, name: &str, seconds: u32) {
    let (f, address) = (family.name(), family.address());
    let _ =
        writeln!(script, "add set {f} {TABLE} {name} {{ type {address}; flags dynamic,timeout; timeout {seconds}s; }}");
}
