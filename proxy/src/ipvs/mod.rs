//! The plan in IPVS: a virtual server for each front, its address on the link `kube-ipvs0`, and beside it a fixed number of
//! iptables rules over sets.
//!
//! An endpoint that leaves gets weight 0 and goes when its last connection has; one of UDP goes at once when it serves no
//! more, because its flows have no end that it could wait for.

mod parts;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use kernel::ipset::Ipset;
use kernel::iptables::Iptables;
use kernel::ipvs::{Ipvs, Manner, Server};
use kernel::netlink::{Address, LinkChange, Network};
use parts::{Parts, Set, Virtual, parts};

use crate::backend::{Backend, Change, Error, Family, Hairpin};
use crate::config::IpvsOptions;
use crate::iptables::{self, base};
use crate::model::{Facts, Name};
use crate::plan::{Guard, Plan};

/// The link that holds the Services' addresses, by upstream's name.
pub const LINK: &str = "kube-ipvs0";
/// Names of sets begin so.
const SETS: &str = "bosun-";
const UDP: u8 = 17;

/// The kernel's parts that this mode uses.
pub struct Ports {
    pub ipvs: Box<dyn Ipvs>,
    pub network: Box<dyn Network + Send>,
    pub sets: Box<dyn Ipset>,
    pub iptables: Box<dyn Iptables>,
}

/// The mode `ipvs`.
pub struct Servers {
    ports: Ports,
    options: IpvsOptions,
    /// How many Services use each.
    members: BTreeMap<(Family, Set, String), usize>,
    vips: BTreeMap<IpAddr, usize>,
    guards: BTreeMap<Name, Vec<Guard>>,
    hairpin: BTreeSet<IpAddr>,
    /// Destinations of weight 0 that have connections.
    leaving: BTreeSet<(Server, SocketAddr)>,
}

/// Adds one use; whether it is the first.
fn first<T: Ord>(counts: &mut BTreeMap<T, usize>, of: T) -> bool {
    let count = counts.entry(of).or_default();
    *count += 1;
    *count == 1
}

/// Takes one use; whether it was the last.
fn last<T: Ord>(counts: &mut BTreeMap<T, usize>, of: &T) -> bool {
    let Some(count) = counts.get_mut(of) else { return false };
    *count = count.saturating_sub(1);
    if *count > 0 {
        return false;
    }
    counts.remove(of);
    true
}

fn alone(ip: IpAddr) -> IpNetwork {
    IpNetwork::from(ip)
}

impl Servers {
    pub fn new(ports: Ports, options: IpvsOptions) -> Self {
        let (members, vips) = (BTreeMap::new(), BTreeMap::new());
        let (guards, hairpin, leaving) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { ports, options, members, vips, guards, hairpin, leaving }
    }

    /// Whether the server is somebody else's.
    fn is_excluded(&self, server: &Server) -> bool {
        self.options.exclude.iter().any(|range| range.contains(server.address.ip()))
    }

    fn manner(&self, server: &Virtual) -> Manner {
        Manner { scheduler: self.options.scheduler.clone(), persistence: server.persistence }
    }

    /// Makes the server's destinations what `content` says, where they were `before`.
    fn balance(&mut self, server: &Server, before: &[SocketAddr], content: &Virtual) -> Result<(), Error> {
        let endpoints = &content.endpoints;
        for to in endpoints.iter().filter(|to| !before.contains(to)) {
            self.ports.ipvs.set_destination(server, *to, 1)?;
            self.leaving.remove(&(*server, *to));
        }
        let goes_at_once = |to: &SocketAddr| server.protocol == UDP && !content.serving.contains(to);
        for to in before.iter().filter(|to| !endpoints.contains(to)) {
            if goes_at_once(to) {
                self.ports.ipvs.delete_destination(server, *to)?;
            } else {
                self.ports.ipvs.set_destination(server, *to, 0)?;
                self.leaving.insert((*server, *to));
            }
        }
        let left = self.leaving.iter().filter(|(of, to)| of == server && goes_at_once(to));
        for place in left.copied().collect::<Vec<_>>() {
            self.ports.ipvs.delete_destination(server, place.1)?;
            self.leaving.remove(&place);
        }
        Ok(())
    }

    fn end(&mut self, server: &Server) -> Result<(), Error> {
        self.leaving.retain(|(of, _)| of != server);
        self.ports.ipvs.delete_server(server)?;
        Ok(())
    }

    /// Ends the destinations that have no connection any more.
    fn see_off(&mut self) -> Result<(), Error> {
        let servers: BTreeSet<Server> = self.leaving.iter().map(|(server, _)| *server).collect();
        for server in servers {
            for found in self.ports.ipvs.destinations(&server)? {
                let place = (server, found.address);
                if found.connections == 0 && self.leaving.remove(&place) {
                    self.ports.ipvs.delete_destination(&server, found.address)?;
                }
            }
        }
        Ok(())
    }

    fn write_sets(&self, families: &[Family]) -> Result<(), Error> {
        let mut script = String::new();
        for family in families.iter().copied() {
            let inet = if family.is_v4() { "inet" } else { "inet6" };
            for set in Set::ALL {
                let (name, kind) = (set.name(family), set.kind());
                // Filled aside and swapped, so that rules never ask an empty one.
                for name in [&name, &format!("{name}-new")] {
                    let _ = writeln!(script, "create {name} {kind} family {inet} maxelem 1048576");
                }
                let _ = writeln!(script, "flush {name}-new");
                for (_, _, member) in self.members.keys().filter(|(f, s, _)| (*f, *s) == (family, set)) {
                    let _ = writeln!(script, "add {name}-new {member}");
                }
                let _ = writeln!(script, "swap {name}-new {name}\ndestroy {name}-new");
            }
        }
        Ok(self.ports.sets.restore(&script)?)
    }

    fn write_rules(&self, facts: &Facts, families: &[Family]) -> Result<(), Error> {
        for family in families.iter().copied() {
            let written = rules::rules(facts, family, &self.hairpin, &self.guards);
            iptables::write(self.ports.iptables.as_ref(), family, written)?;
        }
        Ok(())
    }

    fn write_servers(&mut self, wanted: &BTreeMap<Server, Virtual>) -> Result<(), Error> {
        let there: BTreeMap<Server, Manner> = self.ports.ipvs.servers()?.into_iter().collect();
        self.leaving.clear();
        for (server, content) in wanted {
            let manner = self.manner(content);
            let mut before = Vec::new();
            if there.contains_key(server) {
                let found = self.ports.ipvs.destinations(server)?;
                before.extend(found.iter().filter(|to| to.weight > 0).map(|to| to.address));
                let left = found.iter().filter(|to| to.weight == 0 && !content.endpoints.contains(&to.address));
                self.leaving.extend(left.map(|to| (*server, to.address)));
            }
            if there.get(server) != Some(&manner) {
                self.ports.ipvs.set_server(server, &manner)?;
            }
            self.balance(server, &before, content)?;
        }
        for server in there.keys().filter(|server| !wanted.contains_key(server)) {
            if !self.is_excluded(server) {
                self.end(server)?;
            }
        }
        Ok(())
    }

    fn link(&mut self) -> Result<u32, Error> {
        let network = &mut self.ports.network;
        if let Some(link) = network.link(LINK)? {
            return Ok(link.index);
        }
        network.add_dummy(LINK)?;
        let index = network.link(LINK)?.map(|link| link.index).unwrap_or_default();
        network.change_link(index, LinkChange { up: Some(true), ..LinkChange::default() })?;
        Ok(index)
    }

    fn write_vips(&mut self) -> Result<(), Error> {
        let link = self.link()?;
        let mut there = BTreeSet::new();
        for address in self.ports.network.addresses()?.into_iter().filter(|address| address.link == link) {
            let ip = address.net.ip();
            let ours = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            if self.vips.contains_key(&ip) || ours {
                there.insert(ip);
            } else {
                self.ports.network.delete_address(address)?;
            }
        }
        for ip in self.vips.keys().filter(|ip| !there.contains(*ip)) {
            self.ports.network.add_address(Address { link, net: alone(*ip) })?;
        }
        Ok(())
    }

    /// Counts the members that come and go, and writes what changes by it.
    fn change_members(&mut self, old: &[Parts], new: &[Parts]) -> Result<(Vec<IpAddr>, Vec<IpAddr>), Error> {
        let (mut come, mut gone) = (BTreeSet::new(), BTreeSet::new());
        let (mut vips_come, mut vips_gone) = (BTreeSet::new(), BTreeSet::new());
        for parts in new {
            come.extend(parts.members.iter().filter(|one| first(&mut self.members, (*one).clone())).cloned());
            vips_come.extend(parts.vips.iter().copied().filter(|ip| first(&mut self.vips, *ip)));
        }
        for parts in old {
            gone.extend(parts.members.iter().filter(|one| last(&mut self.members, one)).cloned());
            vips_gone.extend(parts.vips.iter().copied().filter(|ip| last(&mut self.vips, ip)));
        }
        let mut script = String::new();
        for (verb, members) in [("del", &gone), ("add", &come)] {
            for (family, set, member) in members.iter() {
                let _ = writeln!(script, "{verb} {} {member}", set.name(*family));
            }
        }
        if !script.is_empty() {
            self.ports.sets.restore(&script)?;
        }
        Ok((vips_come.into_iter().collect(), vips_gone.into_iter().collect()))
    }

    /// The rules that single Services have a part in.
    fn change_rules(&mut self, facts: &Facts, changes: &[Change<'_>], hairpin: &Hairpin) -> Result<(), Error> {
        let mut guards = false;
        for Change { name, before, after } in changes {
            let of = |plan: &Option<&Plan>| plan.map(|plan| plan.guards.clone()).unwrap_or_default();
            guards |= of(before) != of(after);
            match of(after) {
                none if none.is_empty() => drop(self.guards.remove(*name)),
                some => drop(self.guards.insert((*name).clone(), some)),
            }
        }
        self.hairpin.retain(|ip| !hairpin.gone.contains(ip));
        self.hairpin.extend(&hairpin.come);
        if guards {
            return self.write_rules(facts, &Family::of(facts));
        }
        for family in Family::of(facts) {
            let script = iptables::singles(&[
                (base::HAIRPIN, "-D", rules::hairpin(family, &hairpin.gone)),
                (base::HAIRPIN, "-A", rules::hairpin(family, &hairpin.come)),
            ]);
            if !script.is_empty() {
                self.ports.iptables.restore(iptables::of_kernel(family), &script)?;
            }
        }
        Ok(())
    }
}

impl Backend for Servers {
    fn replace(
        &mut self,
        facts: &Facts,
        plans: &BTreeMap<Name, Plan>,
        hairpin: &BTreeSet<IpAddr>,
    ) -> Result<(), Error> {
        (self.members, self.vips) = (BTreeMap::new(), BTreeMap::new());
        let mut wanted = BTreeMap::new();
        for plan in plans.values() {
            let parts = parts(plan, facts);
            for member in parts.members {
                first(&mut self.members, member);
            }
            for ip in parts.vips {
                first(&mut self.vips, ip);
            }
            wanted.extend(parts.servers);
        }
        let guarded = plans.iter().filter(|(_, plan)| !plan.guards.is_empty());
        self.guards = guarded.map(|(name, plan)| (name.clone(), plan.guards.clone())).collect();
        self.hairpin = hairpin.clone();
        let families = Family::of(facts);
        self.write_sets(&families)?;
        self.write_rules(facts, &families)?;
        self.write_servers(&wanted)?;
        self.write_vips()
    }

    fn change(&mut self, facts: &Facts, changes: &[Change<'_>], hairpin: &Hairpin) -> Result<(), Error> {
        let old: Vec<Parts> = changes.iter().filter_map(|change| Some(parts(change.before?, facts))).collect();
        let new: Vec<Parts> = changes.iter().filter_map(|change| Some(parts(change.after?, facts))).collect();
        let (come, gone) = self.change_members(&old, &new)?;
        self.change_rules(facts, changes, hairpin)?;
        let merged = |list: Vec<Parts>| {
            list.into_iter().fold(Parts::default(), |mut all, parts| {
                all.merge(parts);
                all
            })
        };
        let (old, new) = (merged(old), merged(new));
        for server in old.servers.keys().filter(|server| !new.servers.contains_key(server)) {
            self.end(server)?;
        }
        for (server, content) in &new.servers {
            let before = old.servers.get(server);
            if before.map(|old| old.persistence) != Some(content.persistence) {
                let manner = self.manner(content);
                self.ports.ipvs.set_server(server, &manner)?;
            }
            self.balance(server, before.map_or(&[], |old| &*old.endpoints), content)?;
        }
        if !come.is_empty() || !gone.is_empty() {
            let link = self.link()?;
            for ip in gone {
                self.ports.network.delete_address(Address { link, net: alone(ip) })?;
            }
            for ip in come {
                self.ports.network.add_address(Address { link, net: alone(ip) })?;
            }
        }
        self.see_off()
    }

    fn stands(&mut self, facts: &Facts) -> bool {
        let link = self.ports.network.link(LINK).is_ok_and(|link| link.is_some());
        link && iptables::stands(self.ports.iptables.as_ref(), facts) && self.see_off().is_ok()
    }

    fn remove(&mut self) -> Result<(), Error> {
        if let Some(link) = self.ports.network.link(LINK)? {
            for (server, _) in self.ports.ipvs.servers()? {
                if !self.is_excluded(&server) {
                    self.end(&server)?;
                }
            }
            self.ports.network.delete_link(link.index)?;
        }
        iptables::remove(self.ports.iptables.as_ref())?;
        let names = self.ports.sets.names()?;
        let ours = names.iter().filter(|name| name.starts_with(SETS));
        let script: String = ours.map(|name| format!("destroy {name}\n")).collect();
        if !script.is_empty() {
            self.ports.sets.restore(&script)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
