//! The least writes that bring a service's endpoint slices from what there is to what is wanted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Endpoints that share their ports and their kind of address: what one slice can hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// `IPv4` or `IPv6`.
    pub address_type: String,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// What all slices of one owner have in common.
#[derive(Debug, Clone)]
pub struct Common {
    pub namespace: String,
    /// The service's name.
    pub service: String,
    pub owner: OwnerReference,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// How many endpoints a slice has at most.
    pub limit: usize,
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Create(Box<EndpointSlice>),
    Update(Box<EndpointSlice>),
    Delete(String),
}

/// Compares `wanted` with the slices there are. Endpoints stay in the slice they are in; new ones go to slices that
/// are written anyway, then to those with room, then to new slices. A slice that becomes empty goes, unless an empty
/// group is wanted. `trigger` is the time to be noted on what is written.
pub fn diff(common: &Common, wanted: Vec<Group>, slices: &[Arc<EndpointSlice>], trigger: Option<&str>) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut left: Vec<&EndpointSlice> = slices.iter().map(|slice| &**slice).collect();
    for group in wanted {
        let mine = |slice: &EndpointSlice| {
            slice.address_type == group.address_type
                && same_ports(slice.ports.as_deref().unwrap_or_default(), &group.ports)
        };
        let (own, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|slice| mine(slice));
        left = others;
        actions.extend(diff_group(common, group, &own, trigger));
    }
    actions.extend(left.iter().map(|slice| Action::Delete(name(slice))));
    reuse(actions, slices)
}

/// A slice that would be deleted becomes one that would be created: one write instead of two, and its readers never
/// see the service without.
fn reuse(mut actions: Vec<Action>, slices: &[Arc<EndpointSlice>]) -> Vec<Action> {
    for slice in slices {
        let doomed = actions.iter().position(|action| *action == Action::Delete(name(slice)));
        let created = actions
            .iter()
            .position(|action| matches!(action, Action::Create(new) if new.address_type == slice.address_type));
        if let (Some(doomed), Some(created)) = (doomed, created)
            && let Action::Create(new) = actions[created].clone()
        {
            let mut changed = *new;
            let annotations = changed.metadata.annotations.take();
            let labels = changed.metadata.labels.take();
            changed.metadata = ObjectMeta { annotations, labels, ..slice.metadata.clone() };
            actions[created] = Action::Update(Box::new(changed));
            actions.remove(doomed);
        }
    }
    actions
}

fn diff_group(common: &Common, group: Group, own: &[&EndpointSlice], trigger: Option<&str>) -> Vec<Action> {
    let keep_one = group.endpoints.is_empty();
    let mut order: Vec<String> = Vec::new();
    let mut missing: HashMap<String, Endpoint> = HashMap::new();
    for endpoint in group.endpoints {
        let identity = identity(&endpoint);
        if missing.insert(identity.clone(), endpoint).is_none() {
            order.push(identity);
        }
    }
    let mut drafts: Vec<(EndpointSlice, bool)> = own.iter().map(|slice| kept(common, slice, &mut missing)).collect();
    let mut added: Vec<Endpoint> = order.iter().filter_map(|identity| missing.remove(identity)).collect();
    // Into what is written anyway first.
    drafts.sort_by_key(|(_, changed)| !changed);
    for (slice, changed) in &mut drafts {
        let endpoints = slice.endpoints.get_or_insert_default();
        let empty = endpoints.is_empty() && !*changed;
        let room = common.limit.saturating_sub(endpoints.len()).min(added.len());
        if room > 0 && (*changed || room == added.len() || empty) {
            endpoints.extend(added.drain(..room));
            *changed = true;
        }
    }
    let mut actions: Vec<Action> = Vec::new();
    let mut stays = false;
    for (mut slice, changed) in drafts {
        let empty = slice.endpoints.as_ref().is_none_or(Vec::is_empty);
        if empty && (!keep_one || stays) {
            actions.push(Action::Delete(name(&slice)));
            continue;
        }
        stays = true;
        if changed {
            note(&mut slice.metadata, trigger);
            actions.push(Action::Update(Box::new(slice)));
        }
    }
    let mut rest = added.as_slice();
    while !rest.is_empty() || (keep_one && !stays) {
        let (chunk, later) = rest.split_at(rest.len().min(common.limit));
        let mut slice = fresh(common, &group.address_type, &group.ports, chunk);
        note(&mut slice.metadata, trigger);
        actions.push(Action::Create(Box::new(slice)));
        (rest, stays) = (later, true);
    }
    actions
}

/// A slice with those of its endpoints that are still wanted, in their new state, and whether that changes it.
fn kept(common: &Common, slice: &EndpointSlice, missing: &mut HashMap<String, Endpoint>) -> (EndpointSlice, bool) {
    let mut draft = slice.clone();
    let before = slice.endpoints.as_deref().unwrap_or_default();
    let after: Vec<Endpoint> = before.iter().filter_map(|endpoint| missing.remove(&identity(endpoint))).collect();
    let annotations = |meta: &ObjectMeta| {
        let mut annotations = meta.annotations.clone().unwrap_or_default();
        annotations.remove(TRIGGER_TIME);
        annotations
    };
    let changed = before != after
        || slice.metadata.labels.as_ref() != Some(&common.labels)
        || annotations(&slice.metadata) != common.annotations;
    draft.endpoints = Some(after);
    if changed {
        draft.metadata.labels = Some(common.labels.clone());
        draft.metadata.annotations = Some(common.annotations.clone());
    }
    (draft, changed)
}

fn fresh(common: &Common, address_type: &str, ports: &[EndpointPort], endpoints: &[Endpoint]) -> EndpointSlice {
    EndpointSlice {
        address_type: address_type.to_owned(),
        endpoints: Some(endpoints.to_vec()),
        ports: Some(ports.to_vec()),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", common.service)),
            namespace: Some(common.namespace.clone()),
            labels: Some(common.labels.clone()),
            annotations: Some(common.annotations.clone()),
            owner_references: Some(vec![common.owner.clone()]),
            ..ObjectMeta::default()
        },
    }
}

fn note(meta: &mut ObjectMeta, trigger: Option<&str>) {
    let annotations = meta.annotations.get_or_insert_default();
    match trigger {
        Some(time) => drop(annotations.insert(TRIGGER_TIME.into(), time.to_owned())),
        None => drop(annotations.remove(TRIGGER_TIME)),
    }
}

/// What makes an endpoint the same one in another state: its pod, or its address.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{uid} {}", endpoint.addresses.join(","))
}

/// Whether two lists of ports are the same but for their order, where nothing and an empty name are the same.
fn same_ports(a: &[EndpointPort], b: &[EndpointPort]) -> bool {
    let key = |port: &EndpointPort| {
        let name = port.name.clone().unwrap_or_default();
        (name, port.port, port.protocol.clone().unwrap_or_else(|| "TCP".into()), port.app_protocol.clone())
    };
    let sorted = |ports: &[EndpointPort]| {
        let mut keys: Vec<_> = ports.iter().map(key).collect();
        keys.sort();
        keys
    };
    sorted(a) == sorted(b)
}

fn name(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::discovery::v1::EndpointConditions;

    fn common(limit: usize) -> Common {
        Common {
            namespace: "ns".into(),
            service: "web".into(),
            owner: OwnerReference::default(),
            labels: [(SERVICE_NAME.to_owned(), "web".to_owned())].into(),
            annotations: BTreeMap::new(),
            limit,
        }
    }

    fn endpoint(number: u8, ready: bool) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.0.{number}")],
            conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
            ..Endpoint::default()
        }
    }

    fn group(endpoints: &[(u8, bool)]) -> Vec<Group> {
        let ports = vec![EndpointPort { port: Some(80), ..EndpointPort::default() }];
        let endpoints = endpoints.iter().map(|(number, ready)| endpoint(*number, *ready)).collect();
        vec![Group { address_type: "IPv4".into(), ports, endpoints }]
    }

    fn slice(name: &str, endpoints: &[u8]) -> Arc<EndpointSlice> {
        let endpoints: Vec<_> = endpoints.iter().map(|number| endpoint(*number, true)).collect();
        let ports = group(&[])[0].ports.clone();
        let mut slice = fresh(&common(100), "IPv4", &ports, &endpoints);
        slice.metadata.name = Some(name.into());
        Arc::new(slice)
    }

    /// Each action as its verb, the slice and the last bytes of its addresses.
    fn summary(actions: &[Action]) -> Vec<String> {
        let addresses = |slice: &EndpointSlice| {
            let all = slice.endpoints.iter().flatten().map(|e| e.addresses[0].replace("10.0.0.", ""));
            all.collect::<Vec<_>>().join(" ")
        };
        let summarize = |action: &Action| match action {
            Action::Create(slice) => format!("create {}", addresses(slice)),
            Action::Update(slice) => format!("update {} {}", name(slice), addresses(slice)),
            Action::Delete(name) => format!("delete {name}"),
        };
        actions.iter().map(summarize).collect()
    }

    #[test]
    fn nothing_changes_nothing_and_one_change_writes_one_slice() {
        let slices = [slice("a", &[1, 2]), slice("b", &[3])];
        let wanted = |third| group(&[(3, third), (2, true), (1, true)]);
        assert_eq!(diff(&common(2), wanted(true), &slices, None), []);
        assert_eq!(summary(&diff(&common(2), wanted(false), &slices, None)), ["update b 3"]);
    }

    #[test]
    fn new_endpoints_fill_what_is_written_anyway_then_room_then_new_slices() {
        let slices = [slice("a", &[1, 2]), slice("b", &[3])];
        let wanted = |numbers: &[u8]| group(&numbers.iter().map(|n| (*n, true)).collect::<Vec<_>>());
        assert_eq!(summary(&diff(&common(2), wanted(&[1, 3, 4]), &slices, None)), ["update a 1 4"]);
        assert_eq!(summary(&diff(&common(2), wanted(&[1, 2, 3, 4]), &slices, None)), ["update b 3 4"]);
        let five = diff(&common(2), wanted(&[1, 2, 3, 4, 5, 6]), &slices, None);
        assert_eq!(summary(&five), ["create 4 5", "create 6"]);
    }

    #[test]
    fn the_last_slice_of_an_empty_service_stays_and_other_ports_take_over_a_slice() {
        let slices = [slice("a", &[1]), slice("b", &[2])];
        assert_eq!(summary(&diff(&common(2), group(&[]), &slices, None)), ["update a ", "delete b"]);
        assert_eq!(summary(&diff(&common(2), group(&[]), &[], None)), ["create "]);
        let mut other = group(&[(1, true)]);
        other[0].ports[0].port = Some(81);
        assert_eq!(summary(&diff(&common(2), other.clone(), &slices, None)), ["update a 1", "delete b"]);
        other[0].address_type = "IPv6".into();
        assert_eq!(summary(&diff(&common(2), other, &slices[..1], None)), ["create 1", "delete a"]);
    }

    #[test]
    fn the_trigger_time_is_on_what_is_written() {
        let actions = diff(&common(2), group(&[(1, true)]), &[], Some("then"));
        let Action::Create(slice) = &actions[0] else { panic!("{actions:?}") };
        assert_eq!(slice.metadata.annotations.as_ref().unwrap()[TRIGGER_TIME], "then");
        let mut there = EndpointSlice::clone(slice);
        there.metadata.name = Some("a".into());
        assert_eq!(diff(&common(2), group(&[(1, true)]), &[Arc::new(there)], None), []);
    }
}
