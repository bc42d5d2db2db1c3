//! Objects of the API as a node's daemons read them: what cannot be read of them counts as not said, or is told.
#![no_main]

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(node) = serde_json::from_slice::<Node>(bytes) {
        net::routes::Node::read(&node);
        proxy::model::read_node(&node);
    }
    if let Ok(pod) = serde_json::from_slice::<Pod>(bytes) {
        net::policy::model::Pod::read(&pod);
    }
    if let Ok(policy) = serde_json::from_slice::<NetworkPolicy>(bytes) {
        net::policy::model::Policy::read(&policy);
    }
    if let Ok(service) = serde_json::from_slice::<Service>(bytes) {
        proxy::model::Service::read(&service);
    }
    if let Ok(slice) = serde_json::from_slice::<EndpointSlice>(bytes) {
        proxy::model::Slice::read(&slice, "node");
    }
});
