//! Groups of pods that rules speak of: which there are, who is in them, and the elements that a member adds.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::model::{Model, Name, Pod};
use super::rules::{Family, Group, Scope};
use super::table::{Element, comment};

pub type GroupId = u32;

/// The groups that chains of the table speak of.
#[derive(Default)]
pub struct Groups {
    next: GroupId,
    by_identity: HashMap<String, GroupId>,
    groups: HashMap<GroupId, Used>,
    /// Those of one namespace alone, and those that namespaces are selected for.
    of_namespace: HashMap<Box<str>, BTreeSet<GroupId>>,
    of_many: BTreeSet<GroupId>,
}

/// A group with the names of its sets and the number of chains that speak of it.
pub struct Used {
    pub group: Group,
    sets: [Arc<str>; 2],
    by: u32,
}

impl Groups {
    pub fn get(&self, id: GroupId) -> Option<&Used> {
        self.groups.get(&id)
    }

    /// Its number where it is new.
    pub fn take(&mut self, group: &Group) -> Option<GroupId> {
        let identity = group.identity();
        if let Some(id) = self.by_identity.get(&identity) {
            if let Some(used) = self.groups.get_mut(id) {
                used.by += 1;
            }
            return None;
        }
        let id = self.next;
        self.next += 1;
        self.by_identity.insert(identity, id);
        let place = match &group.scope {
            Scope::One(namespace) => self.of_namespace.entry(namespace.clone()).or_default(),
            Scope::Everywhere | Scope::Matching(_) => &mut self.of_many,
        };
        place.insert(id);
        let sets = Family::ALL.map(|family| group.set(family));
        self.groups.insert(id, Used { group: group.clone(), sets, by: 1 });
        Some(id)
    }

    /// Its number where nobody uses it any more.
    pub fn give_up(&mut self, group: &Group) -> Option<GroupId> {
        let identity = group.identity();
        let id = *self.by_identity.get(&identity)?;
        let used = self.groups.get_mut(&id)?;
        used.by -= 1;
        if used.by > 0 {
            return None;
        }
        self.groups.remove(&id);
        self.by_identity.remove(&identity);
        self.of_many.remove(&id);
        if let Scope::One(namespace) = &group.scope
            && let Some(own) = self.of_namespace.get_mut(namespace)
        {
            own.remove(&id);
            if own.is_empty() {
                self.of_namespace.remove(namespace);
            }
        }
        Some(id)
    }

    pub fn of<'a>(&'a self, model: &'a Model, name: &'a Name, pod: &'a Pod) -> impl Iterator<Item = GroupId> + 'a {
        let own = self.of_namespace.get(&name.namespace).into_iter().flatten();
        let candidates = own.chain(&self.of_many).copied();
        candidates.filter(move |id| self.groups.get(id).is_some_and(|used| holds(&used.group, model, name, pod)))
    }
}

pub fn holds(group: &Group, model: &Model, name: &Name, pod: &Pod) -> bool {
    let inside = match &group.scope {
        Scope::One(namespace) => name.namespace == *namespace,
        Scope::Everywhere => true,
        Scope::Matching(selector) => {
            model.namespaces.get(&name.namespace).is_some_and(|labels| labels.match_by(selector))
        }
    };
    let has = |(port, protocol): &(Box<str>, _)| pod.port(port, *protocol).is_some();
    inside && pod.labels.match_by(&group.pods) && group.port.as_ref().is_none_or(has)
}

/// What a member adds to a group's sets.
pub fn elements(used: &Used, pod: &Pod, addresses: &[IpAddr]) -> Vec<(Arc<str>, Element)> {
    let element = |ip: &IpAddr| match &used.group.port {
        None => Some(Element::Address(*ip)),
        Some((name, protocol)) => Some(Element::Port(*ip, *protocol, pod.port(name, *protocol)?)),
    };
    addresses.iter().filter_map(|ip| Some((used.sets[Family::of(*ip) as usize].clone(), element(ip)?))).collect()
}

pub fn declaration(group: &Group, family: Family) -> String {
    let key = match group.port {
        None => family.address().to_owned(),
        Some(_) => format!("{} . inet_proto . inet_service", family.address()),
    };
    format!("type {key}; comment \"{}\";", comment(&group.identity()))
}
