use serde_json::json;

use super::*;

/// What is said of a pod with this spec, after defaulting.
fn said(spec: Value) -> Vec<String> {
    let mut pod = json!({"metadata": {"name": "a"}, "spec": spec});
    super::super::defaults::pod(&mut pod);
    super::spec(&pod["spec"], "spec").iter().map(ToString::to_string).collect()
}

/// What is said of a pod whose only container is this, beside its name and image.
fn said_of(mut container: Value) -> Vec<String> {
    for (field, value) in [("name", "c"), ("image", "i")] {
        container[field] = value.into();
    }
    said(json!({"containers": [container]}))
}

#[test]
fn a_full_pod_is_valid() {
    let spec = json!({
        "initContainers": [{"name": "i", "image": "x"},
            {"name": "s", "image": "x", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 80}}}],
        "containers": [{"name": "c", "image": "x", "command": ["a"],
            "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 53, "protocol": "UDP", "hostPort": 53}],
            "env": [{"name": "A", "value": ""}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}},
                {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
            "envFrom": [{"secretRef": {"name": "s"}}],
            "resources": {"limits": {"cpu": "1", "example.com/gpu": "1"}, "requests": {"cpu": "500m"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a/b"}, {"name": "p", "mountPath": "/p"}],
            "livenessProbe": {"exec": {"command": ["true"]}}, "readinessProbe": {"httpGet": {"port": "http"}},
            "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}],
        "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "p", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}],
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]}]}}},
    });
    assert_eq!(said(spec), [] as [&str; 0]);
}

#[test]
fn containers_need_names_and_images() {
    assert_eq!(said(json!({})), ["spec.containers: Required value"]);
    assert_eq!(
        said(json!({"containers": [{}]})),
        ["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"]
    );
    assert_eq!(
        said(json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]})),
        ["spec.containers[1].name: Duplicate value: \"a\""]
    );
    assert!(
        said(json!({"containers": [{"name": "A_", "image": "i"}]}))[0]
            .starts_with("spec.containers[0].name: Invalid value: \"A_\": a lowercase RFC 1123 label must consist of")
    );
}

#[test]
fn mounts_name_volumes() {
    assert_eq!(
        said_of(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "w", "subPath": "../x"}]})),
        [
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            "spec.containers[0].volumeMounts[1].name: Not found: \"w\"",
            "spec.containers[0].volumeMounts[1].mountPath: Required value",
            "spec.containers[0].volumeMounts.subPath: Invalid value: \"../x\": must not contain '..'",
        ]
    );
}

#[test]
fn resources_fit_their_limits() {
    assert_eq!(
        said_of(json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2", "memory": "-1", "foo": "1"}}})),
        [
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            "spec.containers[0].resources.requests[foo]: Invalid value: \"foo\": must be a standard resource for containers",
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
        ]
    );
}

#[test]
fn probes_need_a_handler_and_sane_numbers() {
    assert_eq!(
        said_of(
            json!({"livenessProbe": {"successThreshold": 2, "httpGet": {"port": 0}}, "readinessProbe": {"periodSeconds": -1}})
        ),
        [
            "spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            "spec.containers[0].readinessProbe: Required value: must specify a handler type",
            "spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
        ]
    );
    assert_eq!(
        said(json!({"containers": [{"name": "c", "image": "i"}],
            "initContainers": [{"name": "i", "image": "i", "livenessProbe": {"exec": {"command": ["x"]}}}]})),
        [
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always"
        ]
    );
}

#[test]
fn environment_has_one_source() {
    assert_eq!(
        said_of(
            json!({"env": [{"name": "", "value": "x"}, {"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "B", "valueFrom": {}}, {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "spec.nope"}}}], "envFrom": [{}]})
        ),
        [
            "spec.containers[0].env[0].name: Required value",
            "spec.containers[0].env[1].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            "spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            "spec.containers[0].env[3].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.nope\": error converting fieldPath: field label not supported: spec.nope",
            "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
        ]
    );
}

#[test]
fn the_rest_of_the_spec() {
    let base = |mut spec: Value| {
        spec["containers"] = json!([{"name": "c", "image": "i"}]);
        said(spec)
    };
    assert_eq!(
        base(json!({"restartPolicy": "Sometimes", "hostname": "a", "activeDeadlineSeconds": 0,
            "volumes": [{"name": "v", "secret": {}, "emptyDir": {}}], "tolerations": [{"effect": "NoSchedule", "tolerationSeconds": 1}]})),
        [
            "spec.volumes[0].secret.secretName: Required value",
            "spec.volumes[0].emptyDir: Forbidden: may not specify more than 1 volume type",
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            "spec.tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set",
        ]
    );
    assert_eq!(
        base(json!({"dnsPolicy": "None"})),
        ["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"]
    );
}
