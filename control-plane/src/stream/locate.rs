//! Which container of which kubelet a request is for.

use api::meta;
use api::status::Status;
use serde_json::Value;

use super::kubelet::Target;

const KUBELET_PORT: u16 = 10250;

/// The container that was named, or the only one.
///
/// # Errors
/// 400 where none was named and there are several, or it is not the pod's.
pub fn container<'a>(pod: &'a Value, named: &str) -> Result<&'a str, Status> {
    let kinds = ["initContainers", "containers", "ephemeralContainers"];
    let all = || kinds.into_iter().filter_map(|kind| pod["spec"][kind].as_array()).flatten();
    let names = || all().filter_map(|container| container["name"].as_str());
    let name = meta::name(pod);
    if !named.is_empty() {
        let why = || Status::bad_request(format!("container {named} is not valid for pod {name}"));
        return names().find(|known| *known == named).ok_or_else(why);
    }
    match pod["spec"]["containers"].as_array().map_or(&[][..], Vec::as_slice) {
        [only] => Ok(only["name"].as_str().unwrap_or_default()),
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {name}"))),
        _ => {
            let listed: Vec<&str> = names().collect();
            let listed = listed.join(" ");
            let why = format!("a container name must be specified for pod {name}, choose one of: [{listed}]");
            Err(Status::bad_request(why))
        }
    }
}

/// The node that a pod was bound to.
pub fn node(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())
}

/// Where a node's kubelet listens: its address of the first type in `preferred` that it has, and the port it reports.
///
/// # Errors
/// Where it has no such address.
pub fn kubelet(node: &Value, preferred: &[String]) -> Result<Target, Status> {
    let addresses = || node["status"]["addresses"].as_array().into_iter().flatten();
    let of_type = |kind: &String| addresses().find(|address| address["type"] == **kind)?["address"].as_str();
    let host = preferred.iter().find_map(of_type).ok_or_else(|| {
        let known: Vec<String> = addresses().map(Value::to_string).collect();
        Status::internal(format!("no preferred addresses found; known addresses: [{}]", known.join(" ")))
    })?;
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).unwrap_or(KUBELET_PORT);
    Ok(Target { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_are_chosen_in_upstreams_words() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}});
        assert_eq!(container(&one, ""), Ok("a"));
        assert_eq!(container(&one, "i"), Ok("i"));
        assert_eq!(container(&one, "x").unwrap_err().message, "container x is not valid for pod p");
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(
            container(&two, "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b]"
        );
    }

    #[test]
    fn kubelets_are_found_where_the_node_says() {
        let node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10255}},
        }});
        let preferred = ["InternalIP".to_owned(), "Hostname".to_owned()];
        assert_eq!(kubelet(&node, &preferred), Ok(Target { host: "10.0.0.1".into(), port: 10255 }));
        assert_eq!(kubelet(&json!({}), &preferred).unwrap_err().code, 500);
    }
}
