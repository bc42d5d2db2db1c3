//! The plan in iptables, by `iptables-restore --noflush`: a change writes the chains that it concerns.
//!
//! - `BOSUN-SERVICES` leads by destination to `BOSUN-NET-*`, one chain for each 256 addresses, and those to the pool of a
//!   service port, `BOSUN-SVC-*` for all endpoints and `BOSUN-SVL-*` for those of this node; `BOSUN-NODEPORTS` does the
//!   same for the node's own addresses.
//! - Pools draw by chance; with ClientIP affinity each endpoint has a list of clients (xt_recent).
//! - `BOSUN-REFUSE` (filter) holds what has no endpoints, `BOSUN-GUARD` (mangle, before translation) source ranges.
//!
//! [`base`] writes what is always there, [`parts`] one Service's part.

pub(crate) mod base;
mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use base::{HAIRPIN, PREFIX, SERVICES};
use kernel::iptables::{self, Iptables};
use parts::{Parts, Shared, add_guard, parts};

use crate::backend::{Backend, Change, Error, Family, Hairpin};
use crate::model::{Facts, Name};
use crate::plan::{Guard, Plan};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    Filter,
    Mangle,
    Nat,
}

impl Table {
    const ALL: [Self; 3] = [Self::Filter, Self::Mangle, Self::Nat];

    fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }
}

pub(crate) type Chain = (Table, String);

/// The mode `iptables`.
pub struct Chains {
    programs: Box<dyn Iptables>,
    held: BTreeMap<Family, Held>,
}

/// What stands in the chains that Services share, by key.
#[derive(Debug, Clone, Default)]
struct Held(BTreeMap<Shared, BTreeMap<String, Vec<String>>>);

impl Held {
    fn put(&mut self, parts: &Parts) {
        for ((place, key), rules) in &parts.shared {
            self.0.entry(*place).or_default().insert(key.clone(), rules.clone());
        }
    }

    fn take(&mut self, parts: &Parts) {
        for (place, key) in parts.shared.keys() {
            let Some(rules) = self.0.get_mut(place) else { continue };
            rules.remove(key);
            if rules.is_empty() {
                self.0.remove(place);
            }
        }
    }

    fn rules(&self, place: Shared) -> Vec<String> {
        self.0.get(&place).into_iter().flat_map(BTreeMap::values).flatten().cloned().collect()
    }

    /// The chain that all packets to Services begin in.
    fn services(&self, facts: &Facts, family: Family) -> Vec<String> {
        let near = self.0.keys().filter_map(|place| match place {
            Shared::Near(near) => Some(format!("-d {} -j {}", near.range(), near.chain())),
            _ => None,
        });
        near.chain(base::node_ports(facts, family)).collect()
    }
}

impl Chains {
    pub fn new(programs: Box<dyn Iptables>) -> Self {
        Self { programs, held: BTreeMap::new() }
    }
}

/// Chains that a script writes anew and ends, and single rules that come or go.
#[derive(Debug, Default)]
struct Script {
    written: BTreeMap<Chain, Vec<String>>,
    ended: BTreeSet<Chain>,
    singles: Vec<(Table, String)>,
}

impl Script {
    fn text(&self) -> String {
        let mut text = String::new();
        for table in Table::ALL {
            let own = |chain: &&Chain| chain.0 == table;
            let singles = self.singles.iter().filter(|(of, _)| *of == table).map(|(_, line)| line);
            let mut body = String::new();
            for (_, name) in self.written.keys().chain(&self.ended).filter(own) {
                let _ = writeln!(body, ":{name} - [0:0]");
            }
            for ((_, name), rules) in self.written.iter().filter(|(chain, _)| own(chain)) {
                for rule in rules {
                    let _ = writeln!(body, "-A {name} {rule}");
                }
            }
            for line in singles {
                let _ = writeln!(body, "{line}");
            }
            for (_, name) in self.ended.iter().filter(own) {
                let _ = writeln!(body, "-X {name}");
            }
            if !body.is_empty() {
                let _ = write!(text, "*{}\n{body}COMMIT\n", table.name());
            }
        }
        text
    }
}

pub(crate) fn of_kernel(family: Family) -> iptables::Family {
    match family {
        Family::V4 => iptables::Family::V4,
        Family::V6 => iptables::Family::V6,
    }
}

/// Chains of ours in a saved table, and the rules elsewhere that lead to them.
fn ours(saved: &str) -> (BTreeSet<String>, Vec<&str>) {
    let declared = saved.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    let chains = declared.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect();
    let leads = |line: &&str| {
        line.strip_prefix("-A ").is_some_and(|rest| !rest.starts_with(PREFIX)) && line.contains(" -j BOSUN-")
    };
    (chains, saved.lines().filter(leads).collect())
}

/// All of a family from nothing.
fn whole(
    (facts, family): (&Facts, Family),
    plans: &BTreeMap<Name, Plan>,
    hairpin: &BTreeSet<IpAddr>,
    held: &mut Held,
) -> BTreeMap<Chain, Vec<String>> {
    let mut written = base::chains(facts, family, hairpin);
    for (name, plan) in plans {
        let parts = parts(name, plan, family, facts);
        held.put(&parts);
        written.extend(parts.owned);
    }
    let always = [Shared::NodePorts, Shared::Refuse, Shared::RefusePorts, Shared::Guard];
    for place in held.0.keys().copied().chain(always) {
        written.insert(place.chain(), held.rules(place));
    }
    written.insert((Table::Nat, SERVICES.into()), held.services(facts, family));
    written
}

/// The chains that lead from the old plans of some Services to their new ones.
fn step((facts, family): (&Facts, Family), changes: &[Change<'_>], held: &mut Held) -> Script {
    let (mut old, mut new) = (Parts::default(), Parts::default());
    for Change { name, before, after } in changes {
        for (all, plan) in [(&mut old, before), (&mut new, after)] {
            let parts = plan.map(|plan| parts(name, plan, family, facts)).unwrap_or_default();
            all.shared.extend(parts.shared);
            all.owned.extend(parts.owned);
        }
    }
    let services = held.services(facts, family);
    held.take(&old);
    held.put(&new);
    let mut script = Script::default();
    let gone = old.shared.iter().filter(|(key, rules)| new.shared.get(*key) != Some(*rules));
    let come = new.shared.iter().filter(|(key, rules)| old.shared.get(*key) != Some(*rules));
    let touched: BTreeSet<Shared> = gone.chain(come).map(|((place, _), _)| *place).collect();
    for place in touched {
        let rules = held.rules(place);
        match rules.is_empty() && matches!(place, Shared::Near(_)) {
            true => drop(script.ended.insert(place.chain())),
            false => drop(script.written.insert(place.chain(), rules)),
        }
    }
    let now = held.services(facts, family);
    if now != services {
        script.written.insert((Table::Nat, SERVICES.into()), now);
    }
    let other = |(chain, rules): &(&Chain, &Vec<String>)| old.owned.get(*chain) != Some(*rules);
    script.written.extend(new.owned.iter().filter(other).map(|(chain, rules)| (chain.clone(), rules.clone())));
    script.ended.extend(old.owned.into_keys().filter(|chain| !new.owned.contains_key(chain)));
    script
}

impl Backend for Chains {
    fn replace(
        &mut self,
        facts: &Facts,
        plans: &BTreeMap<Name, Plan>,
        hairpin: &BTreeSet<IpAddr>,
    ) -> Result<(), Error> {
        self.held.clear();
        for family in Family::of(facts) {
            let held = self.held.entry(family).or_default();
            let written = whole((facts, family), plans, hairpin, held);
            write(self.programs.as_ref(), family, written)?;
        }
        Ok(())
    }

    fn change(&mut self, facts: &Facts, changes: &[Change<'_>], hairpin: &Hairpin) -> Result<(), Error> {
        for family in Family::of(facts) {
            let mut script = step((facts, family), changes, self.held.entry(family).or_default());
            let lines = |ips: &BTreeSet<IpAddr>, verb: &str| -> Vec<(Table, String)> {
                let rules = base::hairpin(family, ips).into_iter();
                rules.map(|rule| (Table::Nat, format!("{verb} {HAIRPIN} {rule}"))).collect()
            };
            script.singles.extend(lines(&hairpin.gone, "-D"));
            script.singles.extend(lines(&hairpin.come, "-A"));
            let text = script.text();
            if !text.is_empty() {
                self.programs.restore(of_kernel(family), &text)?;
            }
        }
        Ok(())
    }

    fn stands(&mut self, facts: &Facts) -> bool {
        stands(self.programs.as_ref(), facts)
    }

    fn remove(&mut self) -> Result<(), Error> {
        self.held.clear();
        Ok(remove(self.programs.as_ref())?)
    }
}

/// Makes a family's tables hold these chains, the jumps to them, and no other chain of ours.
pub(crate) fn write(
    programs: &dyn Iptables,
    family: Family,
    written: BTreeMap<Chain, Vec<String>>,
) -> Result<(), iptables::Error> {
    let mut script = Script { written, ..Script::default() };
    for table in Table::ALL {
        let saved = programs.save(of_kernel(family), table.name())?;
        let (chains, leads) = ours(&saved);
        let old = chains.into_iter().map(|name| (table, name));
        script.ended.extend(old.filter(|chain| !script.written.contains_key(chain)).collect::<Vec<_>>());
        // Inserted in turn, so that the last one stands first.
        let missing = base::jumps()
            .into_iter()
            .filter(|(of, from, rule)| *of == table && !leads.iter().any(|line| *line == format!("-A {from} {rule}")));
        script.singles.extend(missing.map(|(table, from, rule)| (table, format!("-I {from} {rule}"))));
    }
    programs.restore(of_kernel(family), &script.text())
}

/// A script that appends (`-A`) or deletes (`-D`) rules of chains in `nat`.
pub(crate) fn singles(changes: &[(&str, &str, Vec<String>)]) -> String {
    let lines = changes
        .iter()
        .flat_map(|(chain, verb, rules)| rules.iter().map(move |rule| (Table::Nat, format!("{verb} {chain} {rule}"))));
    Script { singles: lines.collect(), ..Script::default() }.text()
}

/// Chains that keep load balancers' ports to some sources.
pub(crate) fn guards(family: Family, guarded: &BTreeMap<Name, Vec<Guard>>) -> BTreeMap<Chain, Vec<String>> {
    let (mut all, mut held) = (Parts::default(), Held::default());
    for (name, guards) in guarded {
        guards.iter().filter(|guard| family.has(guard.ip)).for_each(|guard| add_guard(&mut all, name, guard));
    }
    held.put(&all);
    let mut written = all.owned;
    written.insert(Shared::Guard.chain(), held.rules(Shared::Guard));
    written
}

/// Whether all jumps are there.
pub(crate) fn stands(programs: &dyn Iptables, facts: &Facts) -> bool {
    let stands = |family: Family| {
        base::jumps().iter().all(|(table, from, rule)| {
            let rules = programs.chain(of_kernel(family), table.name(), from).unwrap_or_default();
            rules.lines().any(|line| line == format!("-A {from} {rule}"))
        })
    };
    Family::of(facts).into_iter().all(stands)
}

/// Removes the chains of ours in both families and the jumps to them.
pub(crate) fn remove(programs: &dyn Iptables) -> Result<(), iptables::Error> {
    for family in [Family::V4, Family::V6] {
        for table in Table::ALL {
            let saved = match programs.save(of_kernel(family), table.name()) {
                Ok(saved) => saved,
                Err(error) if error.is_absent() => return Ok(()),
                // A kernel without the table or the family has nothing of ours in it.
                Err(_) => continue,
            };
            let (chains, leads) = ours(&saved);
            let singles = leads.iter().map(|line| (table, line.replacen("-A", "-D", 1))).collect();
            let ended = chains.into_iter().map(|name| (table, name)).collect();
            let script = Script { singles, ended, ..Script::default() }.text();
            if !script.is_empty() {
                programs.restore(of_kernel(family), &script)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
