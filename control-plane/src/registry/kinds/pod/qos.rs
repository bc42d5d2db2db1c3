//! The quality of service that a pod's requests and limits earn it.

use api::quantity::Quantity;
use serde_json::Value;

use super::super::object::list;

/// `Guaranteed` where every container limits both CPU and memory to what it requests, `BestEffort` where none says
/// anything, else `Burstable`. Resources of the pod as a whole stand above those of its containers.
pub fn qos_class(pod: &Value) -> &'static str {
    let whole = &pod["spec"]["resources"];
    let all: Vec<&Value> = if whole.is_object() {
        vec![whole]
    } else {
        let containers = list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers"));
        containers.map(|c| &c["resources"]).collect()
    };
    let amount = |resources: &Value, kind: &str, name: &str| {
        resources[kind][name].as_str().and_then(|text| text.parse::<Quantity>().ok()).filter(|q| !q.is_zero())
    };
    let mut said = false;
    let mut guaranteed = true;
    for resources in all {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(resources, "requests", name), amount(resources, "limits", name));
            said |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (said, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
