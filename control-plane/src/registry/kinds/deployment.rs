//! Deployments.

use api::status::FieldError;
use serde_json::{Value, json};

use super::object::{child, fill, fill_absent, keep_status, number, put, text};
use super::{ROW, cells, check, pod, template};
use crate::registry::{Resource, Strategy, Subresource};

pub(super) static DEPLOYMENTS: Resource = Resource {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    columns: &[
        cells::column("Ready", "string", "Number of the pod with ready state", |o, _| {
            format!("{}/{}", number(o, "/status/readyReplicas"), number(o, "/spec/replicas")).into()
        }),
        cells::column("Up-to-date", "string", "Number of pods that have the desired template.", |o, _| {
            number(o, "/status/updatedReplicas").into()
        }),
        cells::column("Available", "string", "Number of pods that are ready for minReadySeconds.", |o, _| {
            number(o, "/status/availableReplicas").into()
        }),
        cells::AGE,
        cells::wide("Containers", "Names of each container in the template.", |o, _| cells::containers(o, "name")),
        cells::wide("Images", "Images referenced by each container in the template.", |o, _| {
            cells::containers(o, "image")
        }),
        cells::wide("Selector", "The labels of the pods that are managed.", |o, _| cells::selector(o)),
    ],
    strategy: &Deployments,
    ..ROW
};

struct Deployments;

impl Strategy for Deployments {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else { return };
        fill_absent(spec, "replicas", 1);
        if let Some(strategy) = child(spec, "strategy") {
            fill(strategy, "type", "RollingUpdate");
            let rolls = text(strategy, "/type") == "RollingUpdate";
            if rolls && let Some(rolling) = child(strategy, "rollingUpdate") {
                fill_absent(rolling, "maxUnavailable", "25%");
                fill_absent(rolling, "maxSurge", "25%");
            }
        }
        fill_absent(spec, "revisionHistoryLimit", 10);
        fill_absent(spec, "progressDeadlineSeconds", 600);
        if let Some(template) = child(spec, "template") {
            pod::defaults::template(template);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        put(object, "status", json!({}));
        api::meta::set(object, "generation", 1);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
        // The revision and the history are in the annotations: they count as a change too.
        if new.get("spec") != old.get("spec") || new["metadata"]["annotations"] != old["metadata"]["annotations"] {
            api::meta::set(new, "generation", api::meta::generation(old) + 1);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let spec = &object["spec"];
        let mut errors = check::name(object, api::names::dns_subdomain);
        errors.extend(check::not_negative("spec.replicas", spec["replicas"].as_i64()));
        errors.extend(template::check(object, "deployment"));
        errors.extend(strategy(&spec["strategy"]));
        errors.extend(check::not_negative("spec.minReadySeconds", spec["minReadySeconds"].as_i64()));
        errors.extend(check::not_negative("spec.revisionHistoryLimit", spec["revisionHistoryLimit"].as_i64()));
        if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64() {
            errors.extend(check::not_negative("spec.progressDeadlineSeconds", Some(deadline)));
            if deadline <= number(spec, "/minReadySeconds") {
                let why = "must be greater than minReadySeconds";
                errors.push(FieldError::invalid("spec.progressDeadlineSeconds", deadline, why));
            }
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        template::same_selector(new, old).into_iter().collect()
    }
}

fn strategy(strategy: &Value) -> Vec<FieldError> {
    let path = "spec.strategy.rollingUpdate";
    match text(strategy, "/type") {
        "Recreate" if !strategy["rollingUpdate"].is_null() => {
            vec![FieldError::forbidden(path, "may not be specified when strategy `type` is 'Recreate'")]
        }
        "Recreate" => Vec::new(),
        "RollingUpdate" => {
            let (unavailable, surge) =
                (&strategy["rollingUpdate"]["maxUnavailable"], &strategy["rollingUpdate"]["maxSurge"]);
            let mut errors = int_or_percent(&format!("{path}.maxUnavailable"), unavailable);
            errors.extend(int_or_percent(&format!("{path}.maxSurge"), surge));
            let zero = |value: &Value| *value == 0 || *value == "0%";
            if zero(unavailable) && zero(surge) {
                let why = "may not be 0 when `maxSurge` is 0";
                errors.push(FieldError::invalid(format!("{path}.maxUnavailable"), unavailable.clone(), why));
            }
            if percent(unavailable).is_some_and(|percent| percent > 100) {
                let why = "must not be greater than 100%";
                errors.push(FieldError::invalid(format!("{path}.maxUnavailable"), unavailable.clone(), why));
            }
            errors
        }
        other => vec![FieldError::not_supported("spec.strategy.type", other, &["Recreate", "RollingUpdate"])],
    }
}

fn percent(value: &Value) -> Option<u64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

fn int_or_percent(field: &str, value: &Value) -> Vec<FieldError> {
    if value.is_string() && percent(value).is_none() {
        let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                   regex used for validation is '[0-9]+%')";
        return vec![FieldError::invalid(field, value.clone(), why)];
    }
    check::not_negative(field, value.as_i64()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(spec: Value) -> Value {
        let mut deployment = json!({"metadata": {"name": "web"}, "spec": spec});
        Deployments.default(&mut deployment);
        Deployments.prepare_create(&mut deployment);
        deployment
    }

    fn spec() -> Value {
        json!({"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "nginx:1"}]}}})
    }

    fn said(spec: Value) -> Vec<String> {
        Deployments.validate(&made(spec)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_deployment_gets_its_defaults() {
        let made = made(spec());
        assert_eq!(
            made["spec"],
            json!({"selector": {"matchLabels": {"app": "web"}}, "replicas": 1,
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                    "containers": [{"name": "c", "image": "nginx:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                    "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                    "securityContext": {}, "schedulerName": "default-scheduler"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
                "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600})
        );
        assert_eq!(made["metadata"]["generation"], 1);
        let mut again = made.clone();
        Deployments.default(&mut again);
        assert_eq!(again, made);
        assert!(Deployments.validate(&made).is_empty());
    }

    #[test]
    fn faults_are_told_in_the_words_of_the_api() {
        let mut wrong = spec();
        wrong["template"]["metadata"]["labels"] = json!({"app": "other"});
        wrong["template"]["spec"]["restartPolicy"] = "Never".into();
        wrong["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}});
        assert_eq!(
            said(wrong),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"other\"}: `selector` does not match template `labels`",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ]
        );
        let mut without = spec();
        without["selector"] = Value::Null;
        assert_eq!(said(without), ["spec.selector: Required value"]);
        let mut deadline = spec();
        deadline["minReadySeconds"] = json!(600);
        assert_eq!(
            said(deadline),
            ["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"]
        );
    }

    #[test]
    fn the_selector_never_changes_and_the_generation_counts() {
        let old = made(spec());
        let mut new = old.clone();
        new["spec"]["selector"] = json!({"matchLabels": {"app": "x"}});
        Deployments.prepare_update(&mut new, &old);
        assert_eq!(new["metadata"]["generation"], 2);
        let errors: Vec<String> = Deployments.validate_update(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable"]);
    }
}
