//! The verbs over HTTP, in process: a server on a store of its own, with neighbours that allow everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use api::status::Status;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{full, serve};
use crate::identity::{Attributes, User};
use crate::ports::{
    Answerer, Authenticator, Authorizer, Body, ConnectRequest, Connector, Decision, Peer, Ports, Question,
};
use crate::registry::{Registry, kinds};
use crate::server::{Config, Server};
use crate::store::Embedded;

struct Anybody;

impl Authenticator for Anybody {
    fn authenticate<'a>(
        &'a self,
        _: &'a Server,
        _: &'a http::request::Parts,
        _: Option<&'a Peer>,
    ) -> BoxFuture<'a, Result<Option<User>, Status>> {
        Box::pin(async { Ok(Some(User { name: "test".into(), ..User::default() })) })
    }
}

impl Authorizer for Anybody {
    fn authorize<'a>(&'a self, _: &'a Server, _: &'a User, _: &'a Attributes) -> BoxFuture<'a, Decision> {
        Box::pin(async { Decision::Allow(String::new()) })
    }
}

impl Connector for Anybody {
    fn connect<'a>(
        &'a self,
        _: &'a Arc<Server>,
        _: ConnectRequest,
    ) -> BoxFuture<'a, Result<http::Response<Body>, Status>> {
        Box::pin(async { Err(Status::method_not_allowed()) })
    }
}

impl Answerer for Anybody {
    fn answer<'a>(&'a self, _: &'a Server, question: Question) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(async move { Ok(question.object) })
    }
}

struct Bed {
    server: Arc<Server>,
    clock: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

const NOW: u64 = 1_800_000_000;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

impl Bed {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(dir.path()).unwrap());
        let clock = Arc::new(AtomicU64::new(NOW));
        let told = clock.clone();
        let config = Config {
            advertise_address: [10, 0, 0, 1].into(),
            secure_port: 6443,
            service_cluster_ip_range: vec!["10.96.0.0/16".parse().unwrap()],
            service_node_port_range: (30000, 32767),
            service_account_issuer: "test".into(),
            api_audiences: Vec::new(),
            kubelet_preferred_address_types: Vec::new(),
        };
        let ports = Ports {
            authenticator: Box::new(Anybody),
            authorizer: Box::new(Anybody),
            admission: Vec::new(),
            connector: Box::new(Anybody),
            answerer: Box::new(Anybody),
        };
        let registry = Registry::new(kinds::RESOURCES.to_vec());
        let clock_fn = Arc::new(move || UNIX_EPOCH + Duration::from_secs(told.load(Ordering::Relaxed)));
        let server = Arc::new(Server::new(store, registry, clock_fn, config, ports));
        let bed = Self { server, clock, _dir: dir };
        let (code, _) = bed.ask(Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": "default"}})).await;
        assert_eq!(code, StatusCode::CREATED);
        bed
    }

    async fn send(&self, method: Method, path: &str, content_type: &str, body: Value) -> http::Response<Body> {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(path).header("content-type", content_type);
        serve(self.server.clone(), request.body(full(bytes)).unwrap()).await
    }

    async fn read(response: http::Response<Body>) -> (StatusCode, Value) {
        let code = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        Self::read(self.send(method, path, "application/json", body).await).await
    }

    async fn patch(&self, path: &str, kind: &str, body: Value) -> (StatusCode, Value) {
        let kind = format!("application/{kind}+json");
        Self::read(self.send(Method::PATCH, path, &kind, body).await).await
    }

    async fn watch(&self, path: &str) -> Frames {
        let response = self.send(Method::GET, path, "", Value::Null).await;
        assert_eq!(response.status(), 200);
        Frames(response.into_body())
    }
}

struct Frames(Body);

impl Frames {
    async fn next(&mut self) -> Value {
        let frame = tokio::time::timeout(Duration::from_secs(5), self.0.frame()).await.unwrap().unwrap().unwrap();
        serde_json::from_slice(&frame.into_data().unwrap()).unwrap()
    }

    async fn said(&mut self) -> (String, String, String) {
        let event = self.next().await;
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        (text("/type"), text("/object/metadata/name"), text("/object/metadata/resourceVersion"))
    }
}

fn map(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": label}}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn objects_are_made_read_changed_and_removed() {
    let bed = Bed::new().await;
    let (code, made) = bed.ask(Method::POST, MAPS, map("a", "x")).await;
    assert_eq!((code.as_u16(), &made["kind"]), (201, &json!("ConfigMap")));
    let (code, again) = bed.ask(Method::POST, MAPS, map("a", "x")).await;
    assert_eq!((code.as_u16(), &again["message"]), (409, &json!("configmaps \"a\" already exists")));
    let path = format!("{MAPS}/a");
    let (_, read) = bed.ask(Method::GET, &path, Value::Null).await;
    assert_eq!(read["metadata"], made["metadata"]);

    let mut next = read.clone();
    next["data"]["a"] = "2".into();
    let (code, changed) = bed.ask(Method::PUT, &path, next.clone()).await;
    assert_eq!((code.as_u16(), &changed["data"]["a"]), (200, &json!("2")));
    assert_ne!(version(&changed), version(&read));
    let (code, stale) = bed.ask(Method::PUT, &path, next).await;
    assert_eq!((code.as_u16(), &stale["reason"]), (409, &json!("Conflict")));
    assert!(stale["message"].as_str().unwrap().contains("the object has been modified"), "{stale}");

    let (_, same) = bed.ask(Method::PUT, &path, changed.clone()).await;
    assert_eq!(version(&same), version(&changed), "a write that changes nothing");
    let (_, merged) = bed.patch(&path, "merge-patch", json!({"data": {"a": null, "b": "3"}})).await;
    assert_eq!(merged["data"], json!({"b": "3"}));
    let (code, gone) = bed.ask(Method::DELETE, &path, Value::Null).await;
    assert_eq!((code.as_u16(), &gone["status"]), (200, &json!("Success")));
    let (code, _) = bed.ask(Method::GET, &path, Value::Null).await;
    assert_eq!(code.as_u16(), 404);
    let (code, refused) = bed.ask(Method::POST, "/api/v1/namespaces/none/configmaps", map("a", "x")).await;
    assert_eq!((code.as_u16(), &refused["message"]), (404, &json!("namespaces \"none\" not found")));
}

#[tokio::test]
async fn a_dry_run_stores_nothing_and_a_strict_one_says_what_is_unknown() {
    let bed = Bed::new().await;
    let (code, _) = bed.ask(Method::POST, &format!("{MAPS}?dryRun=All"), map("a", "x")).await;
    assert_eq!(code.as_u16(), 201);
    let (code, _) = bed.ask(Method::GET, &format!("{MAPS}/a"), Value::Null).await;
    assert_eq!(code.as_u16(), 404);
    let mut odd = map("a", "x");
    odd["dat"] = json!({});
    let (code, said) = bed.ask(Method::POST, &format!("{MAPS}?fieldValidation=Strict"), odd.clone()).await;
    assert_eq!(code.as_u16(), 400);
    assert!(said["message"].as_str().unwrap().contains("strict decoding error: unknown field \"dat\""), "{said}");
    let warned = bed.send(Method::POST, MAPS, "application/json", odd).await;
    assert_eq!(warned.headers()["warning"], "299 - \"unknown field \\\"dat\\\"\"");
    let (_, named) = bed.ask(Method::POST, MAPS, json!({"metadata": {"generateName": "g-"}})).await;
    assert_eq!(named["metadata"]["name"].as_str().map(str::len), Some(7));
}

#[tokio::test]
async fn lists_are_paged_at_one_revision() {
    let bed = Bed::new().await;
    for name in ["a", "b", "c", "d"] {
        bed.ask(Method::POST, MAPS, map(name, if name < "c" { "x" } else { "y" })).await;
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let (_, first) = bed.ask(Method::GET, &format!("{MAPS}?limit=3"), Value::Null).await;
    assert_eq!((names(&first).len(), &first["metadata"]["remainingItemCount"]), (3, &json!(1)));
    bed.ask(Method::DELETE, &format!("{MAPS}/d"), Value::Null).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = bed.ask(Method::GET, &format!("{MAPS}?limit=3&continue={token}"), Value::Null).await;
    assert_eq!((names(&second), version(&second)), (vec!["d".to_owned()], version(&first)));

    let (_, labelled) = bed.ask(Method::GET, &format!("{MAPS}?labelSelector=app%3Dy"), Value::Null).await;
    assert_eq!(names(&labelled), ["c"]);
    let (_, named) = bed.ask(Method::GET, "/api/v1/configmaps?fieldSelector=metadata.name%3Db", Value::Null).await;
    assert_eq!(names(&named), ["b"]);

    bed.server.store.compact(bed.server.store.revision()).await.unwrap();
    let (code, gone) = bed.ask(Method::GET, &format!("{MAPS}?limit=3&continue={token}"), Value::Null).await;
    assert_eq!(code.as_u16(), 410);
    let token = gone["metadata"]["continue"].as_str().unwrap();
    let (code, rest) = bed.ask(Method::GET, &format!("{MAPS}?limit=3&continue={token}"), Value::Null).await;
    assert_eq!((code.as_u16(), names(&rest).len()), (200, 0));
    let (code, early) = bed.ask(Method::GET, &format!("{MAPS}?resourceVersion=999999"), Value::Null).await;
    assert_eq!(code.as_u16(), 504);
    assert!(early["message"].as_str().unwrap().starts_with("Too large resource version"), "{early}");
}

#[tokio::test]
async fn a_long_list_streams_whole() {
    let bed = Bed::new().await;
    let maps = bed.server.resource("", "configmaps").unwrap();
    let range =
        |from: usize| (from..from + 250).map(|i| bed.server.create(maps, "default", map(&format!("m{i:05}"), "x")));
    for from in (0..2250).step_by(250) {
        futures::future::try_join_all(range(from)).await.unwrap();
    }
    let (code, list) = bed.ask(Method::GET, MAPS, Value::Null).await;
    let items = list["items"].as_array().unwrap();
    assert_eq!((code.as_u16(), items.len(), &items[2249]["metadata"]["name"]), (200, 2250, &json!("m02249")));
    assert_eq!(list["metadata"], json!({"resourceVersion": bed.server.store.revision().to_string()}));
    let request = Request::builder().uri(MAPS).header("accept-encoding", "gzip").body(full(Vec::new())).unwrap();
    let packed = serve(bed.server.clone(), request).await;
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    let bytes = packed.into_body().collect().await.unwrap().to_bytes();
    let unpacked: Value = serde_json::from_reader(flate2::read::GzDecoder::new(&bytes[..])).unwrap();
    assert_eq!(unpacked, list);
}

#[tokio::test]
async fn a_watch_follows_its_selector() {
    let bed = Bed::new().await;
    let (_, a) = bed.ask(Method::POST, MAPS, map("a", "x")).await;
    let query = "watch=1&labelSelector=app%3Dx";
    let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut all = bed.watch(&format!("{MAPS}?{query}&{initial}")).await;
    assert_eq!(all.said().await, ("ADDED".into(), "a".into(), version(&a)));
    let bookmark = all.next().await;
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");

    let mut later = bed.watch(&format!("{MAPS}?{query}&resourceVersion={}", version(&a))).await;
    let (_, b) = bed.ask(Method::POST, MAPS, map("b", "y")).await;
    let path = format!("{MAPS}/b");
    let (_, enters) = bed.patch(&path, "merge-patch", json!({"metadata": {"labels": {"app": "x"}}})).await;
    let (_, leaves) = bed.patch(&path, "merge-patch", json!({"metadata": {"labels": {"app": "z"}}})).await;
    for watch in [&mut all, &mut later] {
        assert_eq!(watch.said().await, ("ADDED".into(), "b".into(), version(&enters)));
        let left = watch.next().await;
        assert_eq!((&left["type"], version(&left["object"])), (&json!("DELETED"), version(&leaves)));
        assert_eq!(left["object"]["metadata"]["labels"]["app"], "x");
    }
    bed.server.store.compact(bed.server.store.revision()).await.unwrap();
    let mut old = bed.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&b))).await;
    let told = old.next().await;
    assert_eq!((&told["type"], &told["object"]["code"]), (&json!("ERROR"), &json!(410)));
}

#[tokio::test]
async fn pods_die_gracefully() {
    let bed = Bed::new().await;
    let (code, made) = bed.ask(Method::POST, PODS, pod("p")).await;
    assert_eq!(code.as_u16(), 201, "{made}");
    let (code, _) = bed.ask(Method::DELETE, &format!("{PODS}/p"), Value::Null).await;
    assert_eq!(code.as_u16(), 200);
    let (code, _) = bed.ask(Method::GET, &format!("{PODS}/p"), Value::Null).await;
    assert_eq!(code.as_u16(), 404, "an unscheduled pod goes at once");

    let mut kept = pod("q");
    kept["metadata"]["finalizers"] = json!(["example.com/x"]);
    bed.ask(Method::POST, PODS, kept).await;
    let binding = json!({"metadata": {"name": "q"}, "target": {"kind": "Node", "name": "n"}});
    let (code, said) = bed.ask(Method::POST, &format!("{PODS}/q/binding"), binding.clone()).await;
    assert_eq!(code.as_u16(), 201, "{said}");
    let (code, _) = bed.ask(Method::POST, &format!("{PODS}/q/binding"), binding).await;
    assert_eq!(code.as_u16(), 409);

    let (_, dying) = bed.ask(Method::DELETE, &format!("{PODS}/q"), Value::Null).await;
    assert_eq!(dying["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(dying["metadata"]["deletionTimestamp"], api::time::format(NOW as i64 + 30));
    bed.clock.fetch_add(10, Ordering::Relaxed);
    let (_, forced) = bed.ask(Method::DELETE, &format!("{PODS}/q?gracePeriodSeconds=0"), Value::Null).await;
    assert_eq!(forced["metadata"]["deletionGracePeriodSeconds"], 0, "{forced}");
    let mut watch = bed.watch(&format!("{PODS}?watch=1&resourceVersion={}", version(&forced))).await;
    let (code, _) = bed.patch(&format!("{PODS}/q"), "merge-patch", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code.as_u16(), 200);
    assert_eq!(watch.said().await.0, "DELETED");
    let (code, _) = bed.ask(Method::GET, &format!("{PODS}/q"), Value::Null).await;
    assert_eq!(code.as_u16(), 404);
}

#[tokio::test]
async fn a_namespace_waits_for_its_content() {
    let bed = Bed::new().await;
    bed.ask(Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let (_, dying) = bed.ask(Method::DELETE, "/api/v1/namespaces/n", Value::Null).await;
    assert_eq!((&dying["kind"], &dying["status"]["phase"]), (&json!("Namespace"), &json!("Terminating")));
    let (code, said) = bed.ask(Method::POST, "/api/v1/namespaces/n/configmaps", map("a", "x")).await;
    assert_eq!((code.as_u16(), &said["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    let mut empty = dying.clone();
    empty["spec"] = json!({});
    let (code, _) = bed.ask(Method::PUT, "/api/v1/namespaces/n/finalize", empty).await;
    assert_eq!(code.as_u16(), 200);
    let (code, _) = bed.ask(Method::GET, "/api/v1/namespaces/n", Value::Null).await;
    assert_eq!(code.as_u16(), 404);
    let (code, _) = bed.ask(Method::DELETE, "/api/v1/namespaces/default", Value::Null).await;
    assert_eq!(code.as_u16(), 403);
}

#[tokio::test]
async fn an_address_belongs_to_one_service() {
    let bed = Bed::new().await;
    let service = |name: &str, ip: Option<&str>| {
        let mut spec = json!({"ports": [{"port": 80}]});
        if let Some(ip) = ip {
            spec["clusterIP"] = ip.into();
        }
        json!({"metadata": {"name": name}, "spec": spec})
    };
    let path = "/api/v1/namespaces/default/services";
    let (code, one) = bed.ask(Method::POST, path, service("one", None)).await;
    assert_eq!(code.as_u16(), 201, "{one}");
    let ip = one["spec"]["clusterIP"].as_str().unwrap();
    let (code, said) = bed.ask(Method::POST, path, service("two", Some(ip))).await;
    assert_eq!(code.as_u16(), 422);
    assert!(said["message"].as_str().unwrap().contains("already allocated"), "{said}");
    bed.ask(Method::DELETE, &format!("{path}/one"), Value::Null).await;
    let (code, _) = bed.ask(Method::POST, path, service("two", Some(ip))).await;
    assert_eq!(code.as_u16(), 201);
}

#[tokio::test]
async fn one_stored_event_has_two_forms() {
    let bed = Bed::new().await;
    let event = json!({
        "metadata": {"name": "e", "namespace": "default"}, "reason": "R", "message": "m", "type": "Normal",
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "source": {"component": "c"},
    });
    let (code, said) = bed.ask(Method::POST, "/api/v1/namespaces/default/events", event).await;
    assert_eq!(code.as_u16(), 201, "{said}");
    let newer = "/apis/events.k8s.io/v1/namespaces/default/events";
    let (_, list) = bed.ask(Method::GET, &format!("{newer}?fieldSelector=involvedObject.name%3Dp"), Value::Null).await;
    assert_eq!((&list["items"][0]["note"], &list["items"][0]["regarding"]["name"]), (&json!("m"), &json!("p")));
    bed.server.store.expire(NOW + 3601).await.unwrap();
    let (_, list) = bed.ask(Method::GET, newer, Value::Null).await;
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn tables_and_metadata_alone() {
    let bed = Bed::new().await;
    bed.ask(Method::POST, PODS, pod("p")).await;
    let ask = |accept: &'static str, path: String| {
        let request = Request::builder().uri(path).header("accept", accept).body(full(Vec::new())).unwrap();
        let server = bed.server.clone();
        async move { Bed::read(serve(server, request).await).await.1 }
    };
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let shown = ask(table, PODS.into()).await;
    assert_eq!((&shown["kind"], &shown["columnDefinitions"][1]["name"]), (&json!("Table"), &json!("Ready")));
    assert_eq!(shown["rows"][0]["cells"][0], "p");
    assert_eq!(shown["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    let shown = ask(partial, format!("{PODS}/p")).await;
    assert_eq!((&shown["kind"], shown.get("spec")), (&json!("PartialObjectMetadata"), None));
}

#[tokio::test]
async fn the_server_says_what_it_serves() {
    let bed = Bed::new().await;
    let get = async |path: &str| bed.ask(Method::GET, path, Value::Null).await;
    let (_, core) = get("/api/v1").await;
    let names: Vec<&str> = core["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"pods") && names.contains(&"pods/log"), "{names:?}");
    let (_, groups) = get("/apis").await;
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "apps"));
    let (_, index) = get("/openapi/v3").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let (code, document) = get(url).await;
    assert_eq!(code.as_u16(), 200);
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
    assert!(document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"].is_object());
    let (_, version) = get("/version").await;
    assert_eq!(version["gitVersion"], "v1.37.1");
}
