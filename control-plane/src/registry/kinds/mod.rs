//! The rows: every kind that the API serves, one file a kind.
//!
//! Columns, selectable fields, defaults and rules are those of Kubernetes 1.37 (`pkg/printers/internalversion`,
//! `pkg/apis/*/v1/defaults.go`, `pkg/apis/*/validation`); messages are the API's own.

mod cells;
mod check;
mod configmap;
mod controllerrevision;
mod deployment;
mod endpoints;
mod endpointslice;
mod event;
mod lease;
mod namespace;
mod networkpolicy;
mod node;
mod object;
pub mod pod;
mod replicaset;
mod review;
mod secret;
mod selectable;
mod service;
mod serviceaccount;
mod template;

use super::Resource;

pub use selectable::selected;
pub use service::ServiceRanges;

/// All rows, in the order in which discovery lists them. Both rows of events name the same stored objects.
pub static RESOURCES: &[&Resource] = &[
    &review::BINDINGS,
    &configmap::CONFIG_MAPS,
    &endpoints::ENDPOINTS,
    &event::EVENTS,
    &namespace::NAMESPACES,
    &node::NODES,
    &pod::PODS,
    &secret::SECRETS,
    &serviceaccount::SERVICE_ACCOUNTS,
    &service::SERVICES,
    &controllerrevision::CONTROLLER_REVISIONS,
    &deployment::DEPLOYMENTS,
    &replicaset::REPLICA_SETS,
    &event::NEW_EVENTS,
    &review::TOKEN_REVIEWS,
    &review::SELF_SUBJECT_REVIEWS,
    &review::LOCAL_SUBJECT_ACCESS_REVIEWS,
    &review::SELF_SUBJECT_ACCESS_REVIEWS,
    &review::SELF_SUBJECT_RULES_REVIEWS,
    &review::SUBJECT_ACCESS_REVIEWS,
    &networkpolicy::NETWORK_POLICIES,
    &lease::LEASES,
    &endpointslice::ENDPOINT_SLICES,
];

/// A row with nothing particular in it, for those below to start from.
const ROW: Resource = Resource {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    columns: &[],
    selectable: &[],
    expires_after: None,
    virtual_only: false,
    strategy: &super::Plain,
};
