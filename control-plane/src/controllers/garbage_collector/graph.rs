//! Who owns whom: a graph of all objects by UID, with what there is to be done after each change.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::controllers::resources::Kind;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// Something to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// The object with this UID may have to go: its owners are gone or going, or it waits for its dependents.
    Delete(String),
    /// The object with this UID is being deleted, and its dependents are to stay.
    Orphan(String),
}

/// An object.
#[derive(Debug, Clone)]
pub struct Node {
    pub kind: Arc<Kind>,
    pub namespace: String,
    pub name: String,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    /// Being deleted, and waiting for its dependents to go first.
    pub foreground: bool,
    pub orphaning: bool,
}

impl Node {
    fn new(kind: Arc<Kind>, meta: &ObjectMeta) -> Self {
        let deleting = meta.deletion_timestamp.is_some();
        let has = |finalizer: &str| deleting && meta.finalizers.iter().flatten().any(|f| f == finalizer);
        Self {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting,
            foreground: has(FOREGROUND),
            orphaning: has(ORPHAN),
        }
    }

    fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|o| o.uid == owner && o.block_owner_deletion == Some(true))
    }
}

/// The graph.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The dependents of an object, and of these only those that block its foreground deletion if `blocking`.
    pub fn dependents(&self, uid: &str, blocking: bool) -> Vec<(String, Node)> {
        let all = self.dependents.get(uid).into_iter().flatten();
        let known = all.filter_map(|dependent| Some((dependent.clone(), self.nodes.get(dependent)?.clone())));
        known.filter(|(_, node)| !blocking || node.blocks(uid)).collect()
    }

    /// Whether an owner is known where the reference of a dependent in `namespace` says, and stays.
    pub fn is_solid(&self, owner: &OwnerReference, namespace: &str) -> bool {
        self.nodes.get(&owner.uid).is_some_and(|node| {
            node.name == owner.name
                && node.kind.resource.kind == owner.kind
                && (node.namespace.is_empty() || node.namespace == namespace)
                && !node.deleting
        })
    }

    /// Takes in an object's new state.
    pub fn apply(&mut self, kind: &Arc<Kind>, meta: &ObjectMeta) -> Vec<Work> {
        let Some(uid) = meta.uid.clone() else { return vec![] };
        let new = Node::new(kind.clone(), meta);
        let old = self.nodes.insert(uid.clone(), new.clone());
        let before: HashSet<&str> =
            old.iter().flat_map(|old| old.owners.iter().map(|owner| owner.uid.as_str())).collect();
        let after: HashSet<&str> = new.owners.iter().map(|owner| owner.uid.as_str()).collect();
        let mut work = Vec::new();
        for owner in before.difference(&after) {
            self.unlink(owner, &uid);
        }
        for owner in &after {
            self.dependents.entry((*owner).to_owned()).or_default().insert(uid.clone());
        }
        // An owner that waits may not be blocked any more.
        for owner in before.iter().filter(|owner| self.is_waiting(owner) && !new.blocks(owner)) {
            work.push(Work::Delete((*owner).to_owned()));
        }
        let unsure = new.owners.iter().any(|owner| !self.is_solid(owner, &new.namespace));
        if unsure && before != after {
            work.push(Work::Delete(uid.clone()));
        }
        let begins = |now: bool, was: fn(&Node) -> bool| now && !old.as_ref().is_some_and(was);
        if begins(new.foreground, |old| old.foreground) {
            work.extend(self.dependents(&uid, false).into_iter().map(|(dependent, _)| Work::Delete(dependent)));
            work.push(Work::Delete(uid.clone()));
        }
        if begins(new.orphaning, |old| old.orphaning) {
            work.push(Work::Orphan(uid));
        }
        work
    }

    /// Takes in that an object is gone.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        let mut work: Vec<Work> = Vec::new();
        if let Some(node) = self.nodes.remove(uid) {
            for owner in &node.owners {
                self.unlink(&owner.uid, uid);
                if self.is_waiting(&owner.uid) {
                    work.push(Work::Delete(owner.uid.clone()));
                }
            }
        }
        let dependents = self.dependents.get(uid).into_iter().flatten();
        work.extend(dependents.map(|dependent| Work::Delete(dependent.clone())));
        work
    }

    /// The UIDs of all objects of a kind.
    pub fn of_kind(&self, kind: &Kind) -> Vec<String> {
        let same = |node: &Node| node.kind.resource == kind.resource;
        self.nodes.iter().filter(|(_, node)| same(node)).map(|(uid, _)| uid.clone()).collect()
    }

    fn is_waiting(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|node| node.foreground)
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use kube::core::{ApiResource, GroupVersionKind};

    pub fn kind(name: &str, namespaced: bool) -> Arc<Kind> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", name));
        Arc::new(Kind { resource, namespaced, verbs: vec![] })
    }

    fn owner(uid: &str, block: bool) -> OwnerReference {
        OwnerReference {
            uid: uid.into(),
            name: uid.into(),
            kind: "Owner".into(),
            block_owner_deletion: Some(block),
            ..OwnerReference::default()
        }
    }

    fn meta(uid: &str, owners: &[OwnerReference], deletion: &[&str]) -> ObjectMeta {
        ObjectMeta {
            uid: Some(uid.into()),
            name: Some(uid.into()),
            namespace: Some("ns".into()),
            owner_references: Some(owners.to_vec()),
            deletion_timestamp: (!deletion.is_empty()).then(crate::client::now),
            finalizers: Some(deletion.iter().map(|f| (*f).to_owned()).collect()),
            ..ObjectMeta::default()
        }
    }

    fn delete(uid: &str) -> Work {
        Work::Delete(uid.into())
    }

    #[test]
    fn dependents_of_what_is_gone_are_looked_at() {
        let (kind, mut graph) = (kind("Owner", true), Graph::default());
        assert_eq!(graph.apply(&kind, &meta("a", &[], &[])), []);
        assert_eq!(graph.apply(&kind, &meta("b", &[owner("a", true)], &[])), []);
        assert_eq!(graph.apply(&kind, &meta("c", &[owner("nobody", true)], &[])), [delete("c")]);
        assert_eq!(graph.remove("a"), [delete("b")]);
        assert_eq!(graph.remove("b"), []);
    }

    #[test]
    fn an_owner_in_another_namespace_is_none() {
        let (kind, mut graph) = (kind("Owner", true), Graph::default());
        graph.apply(&kind, &ObjectMeta { namespace: Some("other".into()), ..meta("a", &[], &[]) });
        assert_eq!(graph.apply(&kind, &meta("b", &[owner("a", true)], &[])), [delete("b")]);
        let cluster = super::tests::kind("Owner", false);
        graph.apply(&cluster, &ObjectMeta { namespace: None, ..meta("n", &[], &[]) });
        assert_eq!(graph.apply(&kind, &meta("c", &[owner("n", true)], &[])), []);
    }

    #[test]
    fn foreground_deletion_looks_at_dependents_and_then_at_the_owner() {
        let (kind, mut graph) = (kind("Owner", true), Graph::default());
        graph.apply(&kind, &meta("a", &[], &[]));
        graph.apply(&kind, &meta("b", &[owner("a", true)], &[]));
        graph.apply(&kind, &meta("c", &[owner("a", false)], &[]));
        let begun = graph.apply(&kind, &meta("a", &[], &[FOREGROUND]));
        assert_eq!(begun, [delete("b"), delete("c"), delete("a")]);
        let blocking: Vec<_> = graph.dependents("a", true).into_iter().map(|(uid, _)| uid).collect();
        assert_eq!(blocking, ["b"]);
        assert_eq!(graph.apply(&kind, &meta("a", &[], &[FOREGROUND])), []);
        assert_eq!(graph.remove("b"), [delete("a")]);
    }

    #[test]
    fn orphaning_is_work_once() {
        let (kind, mut graph) = (kind("Owner", true), Graph::default());
        assert_eq!(graph.apply(&kind, &meta("a", &[], &[ORPHAN])), [Work::Orphan("a".into())]);
        assert_eq!(graph.apply(&kind, &meta("a", &[], &[ORPHAN])), []);
    }
}
