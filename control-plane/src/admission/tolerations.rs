//! DefaultTolerationSeconds: a pod stays for five minutes on a node that is not ready or not reachable.

use api::status::Status;
use serde_json::{Value, json};

use super::{Pure, is_resource, list};
use crate::ports::{AdmissionRequest, Operation};

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const SECONDS: i64 = 300;

pub struct DefaultTolerationSeconds;

impl Pure for DefaultTolerationSeconds {
    fn decide(&self, request: &mut AdmissionRequest) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if writes && is_resource(request, "", "pods") && request.subresource.is_none() {
            add(&mut request.object);
        }
        Ok(())
    }
}

fn add(pod: &mut Value) {
    let Some(tolerations) = list(&mut pod["spec"], "tolerations") else { return };
    for taint in TAINTS {
        if !tolerations.iter().any(|toleration| tolerates(toleration, taint)) {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
            }));
        }
    }
}

fn tolerates(toleration: &Value, taint: &str) -> bool {
    let is = |field: &str, wanted: &str| {
        matches!(toleration[field].as_str(), None | Some("")) || toleration[field] == wanted
    };
    is("key", taint) && is("effect", "NoExecute")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_in_what_the_pod_does_not_say() {
        let mut pod =
            json!({"spec": {"tolerations": [{"key": TAINTS[0], "operator": "Exists", "tolerationSeconds": 5}]}});
        add(&mut pod);
        let once = pod.clone();
        add(&mut pod);
        assert_eq!(pod, once);
        let keys: Vec<_> = pod["spec"]["tolerations"].as_array().unwrap().iter().map(|t| t["key"].clone()).collect();
        assert_eq!(keys, TAINTS);
        assert_eq!(pod["spec"]["tolerations"][0]["tolerationSeconds"], 5);

        let mut everywhere = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        add(&mut everywhere);
        assert_eq!(everywhere["spec"]["tolerations"].as_array().unwrap().len(), 1);
    }
}
