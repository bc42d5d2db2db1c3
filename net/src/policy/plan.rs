//! From the model to the table: which pods of this node are isolated, by which chains, and who is in which set.
//!
//! Each change costs what it concerns. A pod's labels decide on its place in the groups that policies of this node's
//! pods speak of; a policy's text on its own chains and on those of the pods that it selects.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::decide::Way;
use super::groups::{GroupId, Groups, declaration, elements, holds};
use super::model::{Attachment, Labels, Model, Name, Pod, Policy, within};
use super::rules::{Chain, Family, Group, Scope, compile, short};
use super::table::{Edits, Element, Table, comment};

/// A change that a watch or a plugin told of.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Pod(Name, Option<Pod>),
    Namespace(Box<str>, Option<Labels>),
    Policy(Name, Option<Policy>),
    Attached(Attachment),
    /// The link that is gone.
    Detached(Box<str>),
}

pub struct Planner {
    node: Box<str>,
    model: Model,
    pub table: Table,
    groups: Groups,
    /// The groups that each pod is in.
    places: HashMap<Name, Box<[GroupId]>>,
    /// The chains of each policy that could be needed.
    compiled: HashMap<Name, Vec<Arc<Chain>>>,
    /// This node's pods.
    targets: BTreeMap<Name, Target>,
    /// Pods whose target is to be looked at.
    dirty: BTreeSet<Name>,
}

/// What the table holds for a pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Target {
    chains: Vec<PodChain>,
    /// Elements of the frame's sets, and where those of maps lead.
    elements: Vec<(Arc<str>, Element, Option<Arc<str>>)>,
}

/// One direction and family of an isolated pod: through the policies that select it, and dropped after the last.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PodChain {
    name: Arc<str>,
    counter: Arc<str>,
    /// What the counter counts.
    counted: String,
    comment: String,
    lines: Vec<String>,
    policies: Vec<Arc<Chain>>,
    dropped: Dropped,
}

/// Whose packets are dropped when no rule allows them, and by which policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    pub pod: Name,
    pub way: Way,
    /// Of the pod's namespace.
    pub policies: Vec<Box<str>>,
}

impl Target {
    /// The link takes only what the attached addresses send.
    fn guard(&mut self, attachment: &Attachment) {
        let link: Arc<str> = (*attachment.link).into();
        self.elements.push(("guarded".into(), Element::Link(link.clone()), None));
        for ip in &attachment.addresses {
            let set = format!("own{}", Family::of(*ip).digit());
            self.elements.push((set.into(), Element::LinkAddress(link.clone(), *ip), None));
        }
    }

    /// The addresses' packets go through the chain, but for those from a pod to itself.
    fn isolate(&mut self, chain: PodChain, (way, family): (Way, Family), addresses: Vec<IpAddr>) {
        let [map, itself] = [way.name(), "self"].map(|set| -> Arc<str> { format!("{set}{}", family.digit()).into() });
        for ip in addresses {
            self.elements.push((map.clone(), Element::Address(ip), Some(chain.name.clone())));
            self.elements.push((itself.clone(), Element::Itself(ip), None));
        }
        self.chains.push(chain);
    }
}

impl Planner {
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            model: Model::default(),
            table: Table::default(),
            groups: Groups::default(),
            places: HashMap::new(),
            compiled: HashMap::new(),
            targets: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The policies that an isolated pod's chain leads through.
    #[cfg(test)]
    pub fn chains_of(&self, name: &str) -> Vec<Arc<Chain>> {
        let mut all = self.targets.values().flat_map(|target| &target.chains);
        all.find(|chain| *chain.name == *name).map(|chain| chain.policies.clone()).unwrap_or_default()
    }

    /// What is dropped, by the words of its counter.
    pub fn dropped(&self) -> BTreeMap<&str, &Dropped> {
        let chains = self.targets.values().flat_map(|target| &target.chains);
        chains.map(|chain| (chain.counted.as_str(), &chain.dropped)).collect()
    }

    /// The addresses of this node's pods that are isolated.
    pub fn isolated(&self) -> HashSet<IpAddr> {
        let elements = self.targets.values().flat_map(|target| &target.elements);
        let own = elements.filter_map(|(_, element, _)| match element {
            Element::Itself(ip) => Some(*ip),
            _ => None,
        });
        own.collect()
    }

    /// Takes a change into the model. `false` where it changes nothing.
    pub fn note(&mut self, change: Change) -> bool {
        match change {
            Change::Pod(name, pod) => self.note_pod(name, pod),
            Change::Namespace(name, labels) => self.note_namespace(name, labels),
            Change::Policy(name, policy) => self.note_policy(name, policy),
            Change::Attached(attachment) => self.note_link(attachment.link.clone(), Some(attachment)),
            Change::Detached(link) => self.note_link(link, None),
        }
    }

    fn note_pod(&mut self, name: Name, pod: Option<Pod>) -> bool {
        let old = self.model.pods.get(&name);
        if old == pod.as_ref() {
            return false;
        }
        let here = |pod: Option<&Pod>| pod.is_some_and(|pod| pod.node == self.node);
        if here(old) || here(pod.as_ref()) {
            self.dirty.insert(name.clone());
        }
        self.move_pods(std::slice::from_ref(&name.clone()), |model| match pod {
            Some(pod) => drop(model.pods.insert(name, pod)),
            None => drop(model.pods.remove(&name)),
        });
        true
    }

    fn note_namespace(&mut self, name: Box<str>, labels: Option<Labels>) -> bool {
        if self.model.namespaces.get(&name) == labels.as_ref() {
            return false;
        }
        let pods: Vec<Name> = within(&self.model.pods, &name).map(|(name, _)| name.clone()).collect();
        self.move_pods(&pods, |model| match labels {
            Some(labels) => drop(model.namespaces.insert(name, labels)),
            None => drop(model.namespaces.remove(&name)),
        });
        true
    }

    fn note_policy(&mut self, name: Name, policy: Option<Policy>) -> bool {
        let old = self.model.policies.get(&name);
        if old == policy.as_ref() {
            return false;
        }
        let concerns = |pod: &Pod| [old, policy.as_ref()].into_iter().flatten().any(|p| pod.labels.match_by(&p.pods));
        let own = within(&self.model.pods, &name.namespace).filter(|(_, pod)| pod.node == self.node && concerns(pod));
        self.dirty.extend(own.map(|(name, _)| name.clone()));
        self.compiled.remove(&name);
        match policy {
            Some(policy) => drop(self.model.policies.insert(name, policy)),
            None => drop(self.model.policies.remove(&name)),
        }
        true
    }

    fn note_link(&mut self, link: Box<str>, attachment: Option<Attachment>) -> bool {
        let old = self.model.attached.get(&link);
        if old == attachment.as_ref() {
            return false;
        }
        // The pod itself, and whoever has or had one of the addresses by the API or by another link.
        let both = [old, attachment.as_ref()].into_iter().flatten();
        let ips: BTreeSet<IpAddr> = both.clone().flat_map(|a| a.addresses.iter().copied()).collect();
        let share = |own: &[IpAddr]| own.iter().any(|ip| ips.contains(ip));
        let claims = self.model.pods.iter().filter(|(_, pod)| share(&pod.ips));
        let mut pods: BTreeSet<Name> = claims.map(|(name, _)| name.clone()).collect();
        pods.extend(self.model.attached.iter().filter(|a| share(&a.addresses)).map(Attachment::name));
        pods.extend(both.map(Attachment::name));
        self.dirty.extend(pods.iter().cloned());
        let pods: Vec<Name> = pods.into_iter().collect();
        self.move_pods(&pods, |model| match attachment {
            Some(attachment) => model.attached.insert(attachment),
            None => model.attached.remove(&link),
        });
        true
    }

    /// What stands in the table's way to the present model.
    pub fn edits(&mut self) -> Edits {
        for name in std::mem::take(&mut self.dirty) {
            let new = self.target(&name);
            self.take(&new);
            let old = match new == Target::default() {
                true => self.targets.remove(&name),
                false => self.targets.insert(name, new),
            };
            old.into_iter().for_each(|old| self.give_up(&old));
        }
        self.table.edits()
    }

    /// Changes the model in what concerns the places of these pods.
    fn move_pods(&mut self, pods: &[Name], change: impl FnOnce(&mut Model)) {
        for name in pods {
            let Some(pod) = self.model.pods.get(name) else { continue };
            let addresses = self.model.addresses(name, pod);
            for id in self.places.get(name).into_iter().flatten() {
                let Some(used) = self.groups.get(*id) else { continue };
                for (set, element) in elements(used, pod, &addresses) {
                    self.table.release(&set, element, None);
                }
            }
        }
        change(&mut self.model);
        for name in pods {
            let Some(pod) = self.model.pods.get(name) else {
                self.places.remove(name);
                continue;
            };
            let ids: Box<[GroupId]> = self.groups.of(&self.model, name, pod).collect();
            let addresses = self.model.addresses(name, pod);
            for id in &ids {
                let Some(used) = self.groups.get(*id) else { continue };
                for (set, element) in elements(used, pod, &addresses) {
                    self.table.hold(&set, element, None);
                }
            }
            match ids.is_empty() {
                true => drop(self.places.remove(name)),
                false => drop(self.places.insert(name.clone(), ids)),
            }
        }
    }

    /// What the table shall hold for one pod; nothing for a pod that is not here.
    fn target(&mut self, name: &Name) -> Target {
        let mut target = Target::default();
        let links: Vec<Arc<str>> = self.model.attached.of(name).map(|attachment| (*attachment.link).into()).collect();
        for attachment in self.model.attached.of(name) {
            target.guard(attachment);
        }
        let Some(pod) = self.model.pods.get(name).filter(|pod| pod.node == self.node) else { return target };
        let addresses = self.model.addresses(name, pod);
        for way in [Way::Ingress, Way::Egress] {
            let selects = |policy: &Policy| way.of(policy).is_some() && pod.labels.match_by(&policy.pods);
            let own = within(&self.model.policies, &name.namespace).filter(|(_, policy)| selects(policy));
            let isolating: Vec<(&Name, &Policy)> = own.collect();
            if isolating.is_empty() {
                continue;
            }
            if way == Way::Ingress {
                target.elements.extend(links.iter().map(|link| ("isolated".into(), Element::Link(link.clone()), None)));
            }
            for family in Family::ALL {
                let own = addresses.iter().copied().filter(|ip| Family::of(*ip) == family);
                let own: Vec<IpAddr> = own.collect();
                if own.is_empty() {
                    continue;
                }
                let mut chains = Vec::new();
                for (policy_name, policy) in &isolating {
                    let compiled = self.compiled.entry((*policy_name).clone());
                    let compiled = compiled.or_insert_with(|| compile_all(policy_name, policy));
                    chains.extend(compiled.iter().filter(|chain| (chain.way, chain.family) == (way, family)).cloned());
                }
                let names: Vec<&Name> = isolating.iter().map(|(name, _)| *name).collect();
                target.isolate(pod_chain(name, (way, family), &names, chains), (way, family), own);
            }
        }
        target
    }

    fn take(&mut self, target: &Target) {
        for chain in &target.chains {
            self.table.hold_counter(&chain.counter, || chain.counted.clone());
            let fresh = self.table.hold_chain(&chain.name, || (chain.comment.clone(), chain.lines.clone()));
            if fresh {
                chain.policies.iter().for_each(|policy| self.take_policy(policy));
            }
        }
        for (set, element, value) in &target.elements {
            self.table.hold(set, element.clone(), value.clone());
        }
    }

    fn give_up(&mut self, target: &Target) {
        for (set, element, value) in &target.elements {
            self.table.release(set, element.clone(), value.as_ref());
        }
        for chain in &target.chains {
            if self.table.release_chain(&chain.name) {
                chain.policies.iter().for_each(|policy| self.give_up_policy(policy));
            }
            self.table.release_counter(&chain.counter);
        }
    }

    fn take_policy(&mut self, chain: &Chain) {
        if self.table.hold_chain(&chain.name, || (comment(&chain.comment), chain.lines())) {
            chain.groups().for_each(|group| self.take_group(group));
        }
    }

    fn give_up_policy(&mut self, chain: &Chain) {
        if self.table.release_chain(&chain.name) {
            chain.groups().for_each(|group| self.give_up_group(group));
        }
    }

    fn take_group(&mut self, group: &Group) {
        for family in Family::ALL {
            self.table.hold_set(&group.set(family), || declaration(group, family));
        }
        let Some(id) = self.groups.take(group) else { return };
        let Some(used) = self.groups.get(id) else { return };
        let all: Box<dyn Iterator<Item = (&Name, &Pod)>> = match &group.scope {
            Scope::One(namespace) => Box::new(within(&self.model.pods, namespace)),
            Scope::Everywhere | Scope::Matching(_) => Box::new(self.model.pods.iter()),
        };
        for (name, pod) in all {
            if !holds(group, &self.model, name, pod) {
                continue;
            }
            for (set, element) in elements(used, pod, &self.model.addresses(name, pod)) {
                self.table.hold(&set, element, None);
            }
            let place = self.places.entry(name.clone()).or_default();
            *place = place.iter().copied().chain([id]).collect();
        }
    }

    fn give_up_group(&mut self, group: &Group) {
        if let Some(id) = self.groups.give_up(group) {
            for place in self.places.values_mut().filter(|place| place.contains(&id)) {
                *place = place.iter().copied().filter(|own| *own != id).collect();
            }
            self.places.retain(|_, place| !place.is_empty());
        }
        for family in Family::ALL {
            self.table.release_set(&group.set(family));
        }
    }
}

fn compile_all(name: &Name, policy: &Policy) -> Vec<Arc<Chain>> {
    let each = [Way::Ingress, Way::Egress].into_iter().flat_map(|way| Family::ALL.map(|family| (way, family)));
    each.filter_map(|(way, family)| compile(name, policy, way, family).map(Arc::new)).collect()
}

fn pod_chain(name: &Name, (way, family): (Way, Family), isolating: &[&Name], policies: Vec<Arc<Chain>>) -> PodChain {
    let words = way.name();
    let counter: Arc<str> = format!("dropped-{words}-{}", short(&name.to_string())).into();
    let who: Vec<&str> = isolating.iter().map(|policy| &*policy.name).collect();
    let reason = comment(&format!("{words} not allowed by {}", who.join(", ")));
    let jumps = policies.iter().map(|policy| format!("jump {}", policy.name));
    let note = format!("jump note{}", family.digit());
    let drop = format!("counter name {counter} drop comment \"{reason}\"");
    let lines: Vec<String> = jumps.chain([note, drop]).collect();
    let chain = format!("{words}{}-{}", family.digit(), short(&format!("{name} {}", lines.join("\n"))));
    let counted = comment(&format!("{words} of {name}"));
    let dropped =
        Dropped { pod: name.clone(), way, policies: isolating.iter().map(|policy| policy.name.clone()).collect() };
    PodChain { name: chain.into(), counter, counted, comment: comment(&name.to_string()), lines, policies, dropped }
}
