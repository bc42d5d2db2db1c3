use super::*;
use crate::registry::Column;

fn made(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": spec});
    Pods.default(&mut pod);
    Pods.prepare_create(&mut pod);
    pod
}

#[test]
fn a_plain_pod_gets_its_defaults() {
    let pod = made(json!({
        "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}},
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "readinessProbe": {"httpGet": {"port": 80}}}],
        "serviceAccountName": "sa", "hostNetwork": true,
        "volumes": [{"name": "v"}, {"name": "m", "configMap": {"name": "m"}},
            {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}, {"name": "h", "hostPath": {"path": "/"}}],
    }));
    assert_eq!(
        pod,
        json!({
            "metadata": {"name": "a", "namespace": "default", "generation": 1},
            "spec": {
                "containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Always",
                    "ports": [{"containerPort": 80, "protocol": "TCP", "hostPort": 80}],
                    "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                    "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
                    "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "serviceAccountName": "sa", "serviceAccount": "sa", "hostNetwork": true,
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "m", "configMap": {"name": "m", "defaultMode": 420}},
                    {"name": "p", "projected": {"defaultMode": 420,
                        "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}},
                    {"name": "h", "hostPath": {"path": "/", "type": ""}}],
                "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true,
            },
            "status": {"phase": "Pending", "qosClass": "Burstable"},
        })
    );
    let mut again = pod.clone();
    Pods.default(&mut again);
    assert_eq!(again, pod);
}

#[test]
fn quality_of_service() {
    let class = |containers: Value| qos_class(&json!({"spec": {"containers": containers}}));
    assert_eq!(class(json!([{"name": "a"}])), "BestEffort");
    let both = json!({"cpu": "1", "memory": "1Gi"});
    assert_eq!(
        class(json!([{"resources": {"limits": both, "requests": {"cpu": "1000m", "memory": "1024Mi"}}}])),
        "Guaranteed"
    );
    assert_eq!(class(json!([{"resources": {"limits": both, "requests": both}}, {}])), "Burstable");
    assert_eq!(class(json!([{"resources": {"requests": {"cpu": "1"}}}])), "Burstable");
}

#[test]
fn deletion_waits_for_the_kubelet_only_where_there_is_one() {
    let mut pod = made(json!({"containers": []}));
    assert_eq!(Pods.deletion(&pod, None), Deletion::Now);
    pod["spec"]["nodeName"] = "n".into();
    assert_eq!(Pods.deletion(&pod, None), Deletion::Graceful { seconds: 30 });
    assert_eq!(Pods.deletion(&pod, Some(5)), Deletion::Graceful { seconds: 5 });
    assert_eq!(Pods.deletion(&pod, Some(0)), Deletion::Now);
    assert_eq!(Pods.deletion(&pod, Some(-1)), Deletion::Graceful { seconds: 1 });
    pod["status"]["phase"] = "Succeeded".into();
    assert_eq!(Pods.deletion(&pod, Some(5)), Deletion::Now);
}

fn cells(pod: &Value) -> Vec<String> {
    let show = |column: &Column| (column.cell)(pod, 1000).as_str().unwrap_or_default().to_owned();
    PODS.columns.iter().take(3).map(show).collect()
}

#[test]
fn columns_say_what_kubectl_shows() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
    let pod = |status: Value| json!({"spec": two, "status": status});
    let running = json!({"name": "a", "ready": true, "restartCount": 3, "state": {"running": {}},
        "lastState": {"terminated": {"finishedAt": "1970-01-01T00:10:00Z"}}});
    let crash = json!({"name": "b", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
    let done = json!({"name": "b", "restartCount": 0, "state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
    let failed =
        json!({"name": "a", "restartCount": 0, "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}});
    for (status, want) in [
        (json!({"phase": "Pending"}), ["0/2", "Pending", "0"]),
        (
            json!({"phase": "Running", "containerStatuses": [running, crash]}),
            ["1/2", "CrashLoopBackOff", "4 (6m40s ago)"],
        ),
        (
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [running, done]}),
            ["1/2", "Running", "3 (6m40s ago)"],
        ),
        (json!({"phase": "Running", "containerStatuses": [running, done]}), ["1/2", "NotReady", "3 (6m40s ago)"]),
        (json!({"phase": "Failed", "containerStatuses": [failed, done]}), ["0/2", "OOMKilled", "0"]),
        (json!({"phase": "Failed", "reason": "Evicted"}), ["0/2", "Evicted", "0"]),
        (
            json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 0}}},
                {"name": "j", "restartCount": 2, "state": {"waiting": {"reason": "PodInitializing"}}}]}),
            ["0/2", "Init:1/2", "2"],
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
            ["0/2", "Init:Error", "0"],
        ),
    ] {
        assert_eq!(cells(&pod(status)), want);
    }
    let mut dying = pod(json!({"phase": "Running"}));
    dying["metadata"] = json!({"deletionTimestamp": "1970-01-01T00:00:00Z"});
    assert_eq!(cells(&dying)[1], "Terminating");
}

#[test]
fn addresses_are_twins() {
    let old = made(json!({"containers": []}));
    let mut new = json!({"metadata": {"resourceVersion": "7"}, "status": {"phase": "Running", "podIP": "10.0.0.1", "hostIP": "1.1.1.1"}});
    Pods.prepare_status(&mut new, &old);
    assert_eq!(new["status"]["podIPs"], json!([{"ip": "10.0.0.1"}]));
    assert_eq!((&new["status"]["qosClass"], &new["spec"]), (&json!("BestEffort"), &old["spec"]));
}

#[test]
fn a_pod_may_change_its_image_and_little_else() {
    let old = made(json!({"containers": [{"name": "c", "image": "a:1"}]}));
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "a:2".into();
    new["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    new["spec"]["activeDeadlineSeconds"] = json!(5);
    assert_eq!(update::check(&new, &old), []);
    new["spec"]["containers"][0]["args"] = json!(["x"]);
    let said = update::check(&new, &old)[0].to_string();
    assert!(
        said.starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"),
        "{said}"
    );
    assert!(said.contains("\n  containers: "), "{said}");
    new["spec"]["containers"] = json!([]);
    assert_eq!(
        update::check(&new, &old)[0].to_string(),
        "spec.containers: Forbidden: pod updates may not add or remove containers"
    );
}
