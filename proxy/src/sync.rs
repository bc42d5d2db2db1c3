//! Keeps the kernel's table at what the model asks for: the work of one change is that change's.
//!
//! A step that fails leaves the state as unknown, and the next one writes the table whole.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use kernel::conntrack::Conntrack;

use crate::backend::{self, Backend, Error, Hairpin};
use crate::claims::{Claims, Delta};
use crate::model::{Facts, Name, Service, Slice};
use crate::plan::{HealthCheck, Plan, plan, settle};
use crate::stale;

/// A change that a watch told of.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Service(Name, Option<Service>),
    /// Service, name of the slice, content.
    Slice(Name, Name, Option<Slice>),
    Facts(Facts),
    /// From here on the table is to be looked at or written whole.
    Resync,
}

/// What a [`Proxier::sync`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Nothing,
    Partial { services: usize },
    Full { services: usize },
}

/// Services of the policy Local that lead nowhere from this node, though there are endpoints elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lacking {
    pub inside: usize,
    pub outside: usize,
}

impl Lacking {
    fn add(self, plan: &Plan) -> Self {
        let [inside, outside] = plan.lacks();
        Self { inside: self.inside + usize::from(inside), outside: self.outside + usize::from(outside) }
    }

    fn take(self, plan: &Plan) -> Self {
        let [inside, outside] = plan.lacks();
        Self { inside: self.inside - usize::from(inside), outside: self.outside - usize::from(outside) }
    }
}

/// One look through the tracked flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconciled {
    pub took: Duration,
    pub ended: u64,
}

/// What is known after a sync beside its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    pub lacking: Lacking,
    /// `None` where the sync did not concern UDP.
    pub reconciled: Option<Reconciled>,
}

pub struct Proxier {
    facts: Facts,
    services: HashMap<Name, Service>,
    /// By Service, and by their own names: most have one, for which a tree would be large.
    slices: HashMap<Name, Vec<(Name, Slice)>>,
    /// What the kernel holds.
    plans: BTreeMap<Name, Plan>,
    /// How many Services need a hairpin for that endpoint.
    hairpin: BTreeMap<IpAddr, usize>,
    claims: Claims,
    /// Of those that have one.
    health_checks: BTreeMap<Name, HealthCheck>,
    report: Report,
    dirty: HashSet<Name>,
    /// Whether the kernel holds what `plans` says.
    known: bool,
    backend: Box<dyn Backend>,
    conntrack: Option<Box<dyn Conntrack>>,
}

impl Proxier {
    pub fn new(facts: Facts, backend: Box<dyn Backend>, conntrack: Option<Box<dyn Conntrack>>) -> Self {
        Self {
            facts,
            services: HashMap::new(),
            slices: HashMap::new(),
            plans: BTreeMap::new(),
            hairpin: BTreeMap::new(),
            claims: Claims::default(),
            health_checks: BTreeMap::new(),
            report: Report::default(),
            dirty: HashSet::new(),
            known: false,
            backend,
            conntrack,
        }
    }

    /// Takes a change into the model. `false` where it changes nothing.
    pub fn note(&mut self, change: Change) -> bool {
        let (name, changed) = match change {
            Change::Service(name, service) => {
                let changed = self.services.get(&name) != service.as_ref();
                match service {
                    Some(service) => drop(self.services.insert(name.clone(), service)),
                    None => drop(self.services.remove(&name)),
                }
                (name, changed)
            }
            Change::Slice(name, slice, content) => {
                let slices = self.slices.entry(name.clone()).or_default();
                let changed = put(slices, slice, content);
                if slices.is_empty() {
                    self.slices.remove(&name);
                }
                (name, changed)
            }
            Change::Facts(facts) => {
                let changed = self.facts != facts;
                self.facts = facts;
                self.known &= !changed;
                return changed;
            }
            Change::Resync => {
                // A table that somebody flushed is written again; one that stands is left alone.
                self.known &= self.backend.stands(&self.facts);
                return !self.known;
            }
        };
        if changed {
            self.dirty.insert(name);
        }
        changed
    }

    /// Brings the kernel to the model.
    ///
    /// # Errors
    /// The kernel's; the next call then writes everything.
    pub fn sync(&mut self) -> Result<Step, Error> {
        let known = std::mem::replace(&mut self.known, false);
        let step = if known { self.partial()? } else { self.full()? };
        self.known = true;
        Ok(step)
    }

    fn plan_of(&self, name: &Name) -> Option<Plan> {
        let service = self.services.get(name)?;
        let slices = self.slices.get(name).into_iter().flatten().map(|(_, slice)| slice);
        let mut new = plan(name, service, slices, &self.facts);
        if let Some(old) = self.plans.get(name) {
            settle(old, &mut new);
        }
        Some(new)
    }

    fn full(&mut self) -> Result<Step, Error> {
        let plans: BTreeMap<Name, Plan> =
            self.services.keys().filter_map(|name| Some((name.clone(), self.plan_of(name)?))).collect();
        let mut hairpin = BTreeMap::new();
        plans.values().flat_map(|plan| &plan.hairpin).for_each(|ip| *hairpin.entry(*ip).or_insert(0) += 1);
        self.backend.replace(&self.facts, &plans, &hairpin.keys().copied().collect())?;
        self.health_checks = plans.iter().filter_map(|(name, plan)| Some((name.clone(), plan.health?))).collect();
        self.claims = Claims::new(plans.values());
        // Also of what a step that failed should have taken away.
        let before = std::mem::replace(&mut self.plans, plans);
        self.hairpin = hairpin;
        self.dirty.clear();
        self.dirty.shrink_to_fit();
        let all: Vec<&Plan> = self.plans.values().collect();
        self.report = Report {
            lacking: all.iter().fold(Lacking::default(), |lacking, plan| lacking.add(plan)),
            reconciled: forget(&mut self.conntrack, &all, &before.values().collect::<Vec<_>>(), &self.facts),
        };
        Ok(Step::Full { services: self.plans.len() })
    }

    fn partial(&mut self) -> Result<Step, Error> {
        let new: Vec<(Name, Option<Plan>)> =
            std::mem::take(&mut self.dirty).into_iter().map(|name| (name.clone(), self.plan_of(&name))).collect();
        let changes: Vec<backend::Change<'_>> = new
            .iter()
            .map(|(name, after)| backend::Change { name, before: self.plans.get(name), after: after.as_ref() })
            .filter(|change| change.before != change.after)
            .collect();
        self.report.reconciled = None;
        if changes.is_empty() {
            return Ok(Step::Nothing);
        }
        let claimed = Delta::new(&changes);
        if self.claims.is_contested(&changes, &claimed, self.plans.values()) {
            // Whose it is after the step only all of them together say.
            return self.full();
        }
        let (counts, hairpin) = count_hairpin(&self.hairpin, &changes);
        self.backend.change(&self.facts, &changes, &hairpin)?;
        let before: Vec<&Plan> = changes.iter().filter_map(|change| change.before).collect();
        let after: Vec<&Plan> = changes.iter().filter_map(|change| change.after).collect();
        let lacking = after.iter().fold(self.report.lacking, |lacking, plan| lacking.add(plan));
        self.report = Report {
            lacking: before.iter().fold(lacking, |lacking, plan| lacking.take(plan)),
            reconciled: forget(&mut self.conntrack, &after, &before, &self.facts),
        };
        let services = changes.len();
        for (ip, count) in counts {
            match count {
                0 => drop(self.hairpin.remove(&ip)),
                count => drop(self.hairpin.insert(ip, count)),
            }
        }
        self.claims.apply(claimed);
        for (name, plan) in new {
            match plan.as_ref().and_then(|plan| plan.health) {
                Some(health) => drop(self.health_checks.insert(name.clone(), health)),
                None => drop(self.health_checks.remove(&name)),
            }
            match plan {
                Some(plan) => drop(self.plans.insert(name, plan)),
                None => drop(self.plans.remove(&name)),
            }
        }
        Ok(Step::Partial { services })
    }

    /// Whether the next sync is of the changes alone.
    pub fn is_known(&self) -> bool {
        self.known
    }

    pub fn report(&self) -> Report {
        self.report
    }

    /// What health check node ports are to tell, as of the last sync.
    pub fn health_checks(&self) -> &BTreeMap<Name, HealthCheck> {
        &self.health_checks
    }
}

/// Replaces one slice, or takes it out. `false` where that changes nothing.
fn put(slices: &mut Vec<(Name, Slice)>, name: Name, content: Option<Slice>) -> bool {
    let place = slices.binary_search_by(|(other, _)| other.cmp(&name));
    match (place, content) {
        (Ok(at), Some(content)) => {
            let changed = slices[at].1 != content;
            slices[at].1 = content;
            changed
        }
        (Ok(at), None) => {
            slices.remove(at);
            true
        }
        (Err(at), Some(content)) => {
            slices.reserve_exact(1);
            slices.insert(at, (name, content));
            true
        }
        (Err(_), None) => false,
    }
}

/// The new counts of what the changes touch, and which addresses are gone and new with them.
fn count_hairpin(
    counts: &BTreeMap<IpAddr, usize>,
    changes: &[backend::Change<'_>],
) -> (BTreeMap<IpAddr, usize>, Hairpin) {
    let mut touched: BTreeMap<IpAddr, isize> = BTreeMap::new();
    for backend::Change { before, after, .. } in changes {
        before.iter().flat_map(|plan| &plan.hairpin).for_each(|ip| *touched.entry(*ip).or_default() -= 1);
        after.iter().flat_map(|plan| &plan.hairpin).for_each(|ip| *touched.entry(*ip).or_default() += 1);
    }
    let mut hairpin = Hairpin::default();
    let count = |(ip, by): (IpAddr, isize)| {
        let before = counts.get(&ip).copied().unwrap_or(0);
        let after = before.saturating_add_signed(by);
        match (before, after) {
            (0, 1..) => drop(hairpin.come.insert(ip)),
            (1.., 0) => drop(hairpin.gone.insert(ip)),
            _ => {}
        }
        (ip, after)
    };
    (touched.into_iter().map(count).collect(), hairpin)
}

/// UDP has no end that the kernel sees: flows to what is no endpoint any more are ended here.
fn forget(
    conntrack: &mut Option<Box<dyn Conntrack>>,
    now: &[&Plan],
    before: &[&Plan],
    facts: &Facts,
) -> Option<Reconciled> {
    let table = conntrack.as_mut()?;
    let wanted = stale::targets(now, before, facts);
    if wanted.is_empty() {
        return None;
    }
    let begun = Instant::now();
    let flows = table.flows(17).unwrap_or_else(|error| {
        tracing::warn!("stale UDP flows stay until they time out: {error}");
        Vec::new()
    });
    let mut ended = 0;
    for flow in flows.iter().filter(|flow| stale::is_stale(flow, &wanted)) {
        match table.delete(flow) {
            Ok(_) => ended += 1,
            Err(error) => {
                tracing::warn!("a stale UDP flow to {} stays until it times out: {error}", flow.original.destination);
            }
        }
    }
    Some(Reconciled { took: begun.elapsed(), ended })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kernel::nftables::{self, Fake, Nftables};

    use super::*;
    use crate::examples::{service, slice};
    use crate::model::Protocol;
    use crate::nftables::Tables;

    /// A fake that the test keeps a hand on.
    struct Shared(Arc<Fake>);
    impl Nftables for Shared {
        fn apply(&self, script: &str) -> Result<(), nftables::Error> {
            self.0.apply(script)
        }
        fn list(&self, command: &str) -> Result<String, nftables::Error> {
            self.0.list(command)
        }
    }

    fn last(fake: &Fake) -> Vec<String> {
        fake.applied.lock().unwrap().last().unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_change_costs_that_change() {
        let fake = Arc::new(Fake::default());
        let mut proxier = Proxier::new(Facts::default(), Box::new(Tables::new(Box::new(Shared(fake.clone())))), None);
        for (name, ip) in [("a/one", "10.96.0.1"), ("a/two", "10.96.0.2")] {
            proxier.note(Change::Service(name.into(), Some(service(ip))));
        }
        proxier.note(Change::Slice("a/one".into(), "s".into(), Some(slice(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]))));
        assert_eq!(proxier.sync().unwrap(), Step::Full { services: 2 });

        assert!(!proxier.note(Change::Service("a/two".into(), Some(service("10.96.0.2")))));
        assert_eq!(proxier.sync().unwrap(), Step::Nothing);

        proxier.note(Change::Slice("a/one".into(), "s".into(), Some(slice(&["10.0.0.2", "10.0.0.3"]))));
        assert_eq!(proxier.sync().unwrap(), Step::Partial { services: 1 });
        assert_eq!(
            last(&fake),
            [
                "add chain ip bosun-proxy vip-plain-tcp-2",
                "flush chain ip bosun-proxy vip-plain-tcp-2",
                "add rule ip bosun-proxy vip-plain-tcp-2 dnat to ip daddr . tcp dport . numgen random mod 2 map @endpoints-tcp",
                "delete element ip bosun-proxy endpoints-tcp { 10.96.0.1 . 80 . 0, 10.96.0.1 . 80 . 2 }",
                "delete element ip bosun-proxy hairpin { 10.0.0.1 . 10.0.0.1 }",
                "delete element ip bosun-proxy services { 10.96.0.1 . tcp . 80 }",
                "add element ip bosun-proxy endpoints-tcp { 10.96.0.1 . 80 . 0 : 10.0.0.3 . 8080 }",
                "add element ip bosun-proxy services { 10.96.0.1 . tcp . 80 : goto vip-plain-tcp-2 }",
                "flush chain ip bosun-proxy vip-plain-tcp-3",
                "delete chain ip bosun-proxy vip-plain-tcp-3",
            ]
        );

        proxier.note(Change::Service("a/one".into(), None));
        proxier.sync().unwrap();
        assert!(last(&fake).contains(&"delete element ip bosun-proxy cluster-ips { 10.96.0.1 }".to_owned()));
    }

    /// Two Services may name one address, and one may name another's cluster IP. Who goes does not take it along.
    #[test]
    fn an_address_that_two_services_name_stays_with_the_other() {
        let fake = Arc::new(Fake::default());
        let mut proxier = Proxier::new(Facts::default(), Box::new(Tables::new(Box::new(Shared(fake.clone())))), None);
        let leads = |ip: &str| {
            let lead = format!("{ip} . tcp . 80 : goto vip-");
            last(&fake)
                .iter()
                .any(|line| line.contains("add element ip bosun-proxy services {") && line.contains(&lead))
        };
        let naming = |ip, external: &str| Service { external_ips: vec![external.parse().unwrap()], ..service(ip) };
        for (name, ip, external) in [
            ("a/one", "10.96.0.1", "203.0.113.7"),
            ("a/other", "10.96.0.2", "203.0.113.8"),
            ("a/two", "10.96.0.3", "203.0.113.7"),
            ("a/a", "10.96.0.4", "10.96.0.2"),
        ] {
            proxier.note(Change::Slice(name.into(), "s".into(), Some(slice(&["10.0.0.1"]))));
            proxier.note(Change::Service(name.into(), Some(naming(ip, external))));
            proxier.sync().unwrap();
        }
        proxier.note(Change::Service("a/one".into(), None));
        assert_eq!(proxier.sync().unwrap(), Step::Full { services: 3 });
        assert!(leads("203.0.113.7"), "{:?}", last(&fake));
        proxier.note(Change::Service("a/a".into(), None));
        assert_eq!(proxier.sync().unwrap(), Step::Full { services: 2 });
        assert!(leads("10.96.0.2"), "{:?}", last(&fake));
        // Alone they are changes like others.
        proxier.note(Change::Slice("a/other".into(), "s".into(), Some(slice(&["10.0.0.2"]))));
        assert_eq!(proxier.sync().unwrap(), Step::Partial { services: 1 });
        proxier.note(Change::Service("a/other".into(), None));
        proxier.note(Change::Service("a/next".into(), Some(naming("10.96.0.9", "203.0.113.8"))));
        proxier.note(Change::Slice("a/next".into(), "s".into(), Some(slice(&["10.0.0.2"]))));
        assert_eq!(proxier.sync().unwrap(), Step::Partial { services: 2 }, "from one to the other in one step");
        assert_eq!(proxier.claims.counts(), [1, 1]);
    }

    /// The step that took the Service away failed; the whole one after it ends its flows nonetheless.
    #[test]
    fn flows_of_a_service_end_after_a_refused_step_too() {
        let fake = Arc::new(Fake::default());
        let way = |source: &str, destination: &str, source_port, destination_port| kernel::conntrack::Direction {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port,
            destination_port,
        };
        let flow = kernel::conntrack::Flow {
            protocol: 17,
            original: way("10.0.0.9", "10.96.0.1", 5000, 80),
            reply: way("10.0.0.1", "10.0.0.9", 8080, 5000),
        };
        let conntrack = kernel::conntrack::Fake { flows: vec![flow].into(), broken: false };
        let tables = Box::new(Tables::new(Box::new(Shared(fake.clone()))));
        let mut proxier = Proxier::new(Facts::default(), tables, Some(Box::new(conntrack)));
        let mut dns = service("10.96.0.1");
        dns.ports[0].protocol = Protocol::Udp;
        let mut endpoints = slice(&["10.0.0.1"]);
        endpoints.ports[0].protocol = Protocol::Udp;
        proxier.note(Change::Service("a/dns".into(), Some(dns)));
        proxier.note(Change::Slice("a/dns".into(), "s".into(), Some(endpoints)));
        proxier.sync().unwrap();
        assert_eq!(proxier.report().reconciled.map(|done| done.ended), Some(0));
        proxier.note(Change::Service("a/dns".into(), None));
        fake.refuse.lock().unwrap().push("busy".into());
        assert!(proxier.sync().is_err());
        assert_eq!(proxier.sync().unwrap(), Step::Full { services: 0 });
        assert_eq!(proxier.report().reconciled.map(|done| done.ended), Some(1));
    }

    #[test]
    fn a_refused_step_is_followed_by_a_whole_one() {
        let fake = Arc::new(Fake::default());
        let mut proxier = Proxier::new(Facts::default(), Box::new(Tables::new(Box::new(Shared(fake.clone())))), None);
        proxier.sync().unwrap();
        proxier.note(Change::Service("a/one".into(), Some(service("10.96.0.1"))));
        fake.refuse.lock().unwrap().push("busy".into());
        assert!(proxier.sync().is_err());
        assert_eq!(proxier.sync().unwrap(), Step::Full { services: 1 });
        *fake.listing.lock().unwrap() = Some("there".into());
        assert!(!proxier.note(Change::Resync));
        *fake.listing.lock().unwrap() = None;
        assert!(proxier.note(Change::Resync), "a table that went is missed");
        assert_eq!(proxier.sync().unwrap(), Step::Full { services: 1 });
    }
}
