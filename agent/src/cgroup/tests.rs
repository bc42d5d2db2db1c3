use kernel::cgroup::{CpuQuota, Layout};
use serde_json::{Value, json};

use super::*;

fn pod(containers: Value, init: Value) -> Pod {
    let spec = json!({"containers": containers, "initContainers": init});
    serde_json::from_value(json!({"metadata": {"uid": "u1", "name": "p"}, "spec": spec})).unwrap()
}

fn container(requests: Value, limits: Value) -> Value {
    json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
}

#[test]
fn classes_follow_requests_and_limits() {
    let full = json!({"cpu": "500m", "memory": "64Mi"});
    let guaranteed = pod(json!([container(full.clone(), full.clone())]), json!([]));
    let burstable = pod(json!([container(json!({"cpu": "100m"}), full)]), json!([]));
    let best_effort = pod(json!([{"name": "c"}]), json!([]));
    assert_eq!(
        [qos(&guaranteed), qos(&burstable), qos(&best_effort)],
        [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort]
    );
}

#[test]
fn a_pods_total_is_its_sum_or_its_largest_init_container() {
    let cpu = |milli: &str| json!({"cpu": milli});
    let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": cpu("50m")}});
    let init = json!([sidecar, container(cpu("700m"), json!({}))]);
    let pod = pod(json!([container(cpu("100m"), json!({})), container(cpu("200m"), json!({}))]), init);
    assert_eq!(pod_resources(&pod).cpu_request, 750);
    assert_eq!(pod_resources(&pod).memory_limit, None);
}

#[test]
fn limits_of_a_group() {
    let both = pod(json!([container(json!({"cpu": "250m"}), json!({"cpu": "1", "memory": "64Mi"}))]), json!([]));
    let rules = Rules { pids: 100, ..Rules::default() };
    let expected = Limits {
        cpu_shares: Some(256),
        cpu_quota: Some(CpuQuota { quota: 100_000, period: 100_000 }),
        memory: Some(64 << 20),
        pids: Some(100),
        ..Limits::default()
    };
    assert_eq!(pod_limits(&both, &rules), expected);
    let one_without = pod(json!([container(json!({"cpu": "1"}), json!({"cpu": "1"})), {"name": "d"}]), json!([]));
    let limits = pod_limits(&one_without, &Rules::default());
    assert_eq!((limits.cpu_shares, limits.cpu_quota, limits.memory), (Some(1024), None, None));
}

#[test]
fn pods_groups_stand_below_their_class_and_go() {
    let root = std::env::temp_dir().join(format!("volumes-pods-{}", std::process::id()));
    let tree = PodCgroups::new(Cgroups::new(Layout::v1(&root, &["cpu", "memory"])), "/bosun/dev/n1/", Rules::default());
    std::fs::create_dir_all(root.join("cpu")).unwrap();
    std::fs::create_dir_all(root.join("memory")).unwrap();
    let pod = pod(json!([{"name": "c"}]), json!([]));
    assert_eq!(tree.pod_path(&pod), "/bosun/dev/n1/kubepods/besteffort/podu1");
    std::fs::create_dir_all(root.join("cpu/bosun/dev/n1/kubepods/besteffort/podu1/container")).unwrap();
    assert_eq!(tree.pods(), ["u1"]);
    tree.remove_pod("u1").unwrap();
    assert!(tree.pods().is_empty());
    std::fs::remove_dir_all(root).unwrap();
}
