mod live;

use http::Method;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::authorize::{Needed, forbidden, needed};
use super::route::{Route, Target, route};
use super::streams::{Wanted, wanted};
use super::*;
use crate::log::LogOptions;

#[test]
fn what_a_request_needs_is_the_kubelets_mapping() {
    let table = [
        (Method::GET, "/stats/summary", "get", vec!["stats"]),
        (Method::GET, "/metrics/cadvisor", "get", vec!["metrics"]),
        (Method::GET, "/metricsx", "get", vec!["proxy"]),
        (Method::GET, "/logs/kern.log", "get", vec!["log"]),
        (Method::GET, "/pods", "get", vec!["pods", "proxy"]),
        (Method::GET, "/runningpods/", "get", vec!["pods", "proxy"]),
        (Method::GET, "/healthz/ping", "get", vec!["healthz", "proxy"]),
        (Method::GET, "/configz", "get", vec!["configz", "proxy"]),
        (Method::GET, "/containerLogs/ns/p/c", "get", vec!["proxy"]),
        (Method::POST, "/exec/ns/p/c", "create", vec!["proxy"]),
        (Method::GET, "/exec/ns/p/c", "get", vec!["proxy"]),
        (Method::POST, "/checkpoint/ns/p/c", "create", vec!["checkpoint"]),
        (Method::DELETE, "/anything", "delete", vec!["proxy"]),
    ];
    for (method, path, verb, subresources) in table {
        assert_eq!(needed(&method, path), Needed { verb, subresources }, "{method} {path}");
    }
    assert_eq!(
        forbidden("eve", &needed(&Method::GET, "/pods")),
        "Forbidden (user=eve, verb=get, resource=nodes, subresource(s)=[pods proxy])\n"
    );
}

#[test]
fn paths_name_pods_and_containers() {
    let target = |uid: Option<&str>, container: &str| Target {
        namespace: "ns".into(),
        pod: "p".into(),
        uid: uid.map(String::from),
        container: container.into(),
    };
    let read = |method, path| route(&method, path).map_err(|refusal| refusal.status.as_u16());
    assert_eq!(read(Method::POST, "/exec/ns/p/c"), Ok(Route::Exec(target(None, "c"))));
    assert_eq!(read(Method::GET, "/exec/ns/p/u/c"), Ok(Route::Exec(target(Some("u"), "c"))));
    assert_eq!(read(Method::POST, "/portForward/ns/p/u"), Ok(Route::PortForward(target(Some("u"), ""))));
    assert_eq!(read(Method::GET, "/containerLogs/ns/p/c"), Ok(Route::ContainerLogs(target(None, "c"))));
    assert_eq!(read(Method::GET, "/run/ns/p/c"), Err(405));
    assert_eq!(read(Method::GET, "/exec/ns/p"), Err(404));
    assert_eq!(read(Method::GET, "/"), Err(404));
    assert_eq!(read(Method::POST, "/checkpoint/ns/p/c"), Err(501));
}

#[test]
fn streams_and_commands_of_a_query() {
    let all = wanted("command=sh&command=-c&command=echo+a%20b%26&input=1&output=1&error=1&tty=1");
    let command = vec!["sh".into(), "-c".into(), "echo a b&".into()];
    assert_eq!(all, Wanted { stdin: true, stdout: true, stderr: false, tty: true, command, ports: vec![] });
    assert_eq!(wanted("port=80&port=81,82").ports, [80, 81, 82]);
}

#[test]
fn log_options_of_a_query() {
    let now: Timestamp = "2026-11-21T09:00:00Z".parse().unwrap();
    let (options, previous) =
        logs::options("follow=true&tailLines=5&sinceSeconds=60&timestamps=1&previous=false&limitBytes=9", now).unwrap();
    let expected = LogOptions {
        follow: true,
        tail_lines: Some(5),
        since: Some("2026-11-21T08:59:00Z".parse().unwrap()),
        timestamps: true,
        limit_bytes: Some(9),
        output: None,
    };
    assert_eq!((options, previous), (expected, false));
    assert!(logs::options("tailLines=-1", now).is_err());
    assert!(logs::options("sinceSeconds=1&sinceTime=2026-11-21T08:59:00Z", now).is_err());
}

#[test]
fn a_container_without_a_log_says_why() {
    let pod = |state: serde_json::Value| -> Pod {
        let statuses =
            json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]);
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"containerStatuses": statuses}})).unwrap()
    };
    let waits = |reason: &str| logs::unavailable(&pod(json!({"waiting": {"reason": reason}})), "c", false);
    let start = "container \"c\" in pod \"p\" is waiting to start: ";
    assert_eq!(waits("ContainerCreating"), format!("{start}ContainerCreating\n"));
    assert_eq!(waits("ErrImagePull"), format!("{start}image can't be pulled\n"));
    assert_eq!(
        logs::unavailable(&pod(json!({})), "c", true),
        "previous terminated container \"c\" in pod \"p\" not found\n"
    );
}
