//! Priority: a pod's class becomes its number. The two classes of the system are known; others come with their kind.

use api::status::Status;
use serde_json::Value;

use super::{Pure, creates_pod, forbid, is_resource};
use crate::ports::{AdmissionRequest, Operation};

const PREEMPTION: &str = "PreemptLowerPriority";

pub struct Priority;

impl Pure for Priority {
    fn decide(&self, request: &mut AdmissionRequest) -> Result<(), Status> {
        if creates_pod(request) {
            return establish(&mut request.object).map_err(|why| match why {
                Refusal::Forbidden(why) => forbid(request, &why),
                Refusal::NoClass(class) => forbid(request, &format!("no PriorityClass with name {class} was found")),
            });
        }
        let updates = request.operation == Operation::Update && request.subresource.is_none();
        if updates && is_resource(request, "", "pods") {
            keep(&mut request.object, &request.old);
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
enum Refusal {
    Forbidden(String),
    NoClass(String),
}

fn establish(pod: &mut Value) -> Result<(), Refusal> {
    let class = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let priority = match class.as_str() {
        "" => 0,
        "system-cluster-critical" => 2_000_000_000,
        "system-node-critical" => 2_000_001_000,
        _ => return Err(Refusal::NoClass(class)),
    };
    let Some(spec) = pod["spec"].as_object_mut() else { return Ok(()) };
    if let Some(given) = spec.get("priority").filter(|given| !given.is_null() && **given != priority) {
        return Err(Refusal::Forbidden(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        )));
    }
    if let Some(given) = spec.get("preemptionPolicy").and_then(Value::as_str).filter(|given| *given != PREEMPTION) {
        return Err(Refusal::Forbidden(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {PREEMPTION} from the given PriorityClass name"
        )));
    }
    spec.insert("priority".into(), priority.into());
    spec.insert("preemptionPolicy".into(), PREEMPTION.into());
    Ok(())
}

/// An update that leaves them out does not change them.
fn keep(new: &mut Value, old: &Value) {
    let Some(spec) = new["spec"].as_object_mut() else { return };
    for field in ["priority", "preemptionPolicy"] {
        let was = &old["spec"][field];
        if !was.is_null() && spec.get(field).is_none_or(Value::is_null) {
            spec.insert(field.into(), was.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_become_numbers() {
        let number = |spec: Value| {
            let mut pod = json!({"spec": spec});
            establish(&mut pod).map(|()| pod["spec"]["priority"].clone())
        };
        assert_eq!(number(json!({})), Ok(0.into()));
        assert_eq!(number(json!({"priorityClassName": "system-node-critical"})), Ok(2_000_001_000.into()));
        assert_eq!(number(json!({"priorityClassName": "x"})), Err(Refusal::NoClass("x".into())));
        assert!(matches!(number(json!({"priority": 7})), Err(Refusal::Forbidden(_))));
        assert_eq!(number(json!({"priority": 0})), Ok(0.into()));
    }

    #[test]
    fn an_update_keeps_the_number() {
        let mut new = json!({"spec": {}});
        keep(&mut new, &json!({"spec": {"priority": 5, "preemptionPolicy": "Never"}}));
        assert_eq!(new["spec"], json!({"priority": 5, "preemptionPolicy": "Never"}));
    }
}
