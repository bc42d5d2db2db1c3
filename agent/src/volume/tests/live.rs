//! Mounted objects follow the API: against an API server that knows one ConfigMap and gives tokens.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::{mpsc, watch};

use super::*;

/// The ConfigMap's value of `key`, or none; and what the server saw.
struct Api {
    value: watch::Sender<Option<String>>,
    watches: AtomicUsize,
    ended: mpsc::UnboundedSender<()>,
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

impl Api {
    fn client(self: &Arc<Self>) -> kube::Client {
        let api = self.clone();
        kube::Client::new(
            tower::service_fn(move |request: Request<kube::client::Body>| {
                let api = api.clone();
                async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
            }),
            "default",
        )
    }

    async fn answer(self: &Arc<Self>, request: Request<kube::client::Body>) -> Response<Body> {
        let json = |value: Value| Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
        if request.method() == Method::POST {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/ns/serviceaccounts/robot/token");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let asked: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(asked["spec"]["boundObjectRef"]["uid"], "u1");
            let status = json!({"token": format!("for {}", asked["spec"]["audiences"][0]), "expirationTimestamp": "2099-01-01T00:00:00Z"});
            return json(json!({"metadata": {}, "spec": asked["spec"], "status": status}));
        }
        let query = request.uri().query().unwrap_or_default();
        assert_eq!(request.uri().path(), "/api/v1/namespaces/ns/configmaps");
        assert!(query.contains("fieldSelector=metadata.name%3Dsettings") && query.contains("watch="), "{query}");
        self.watches.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = mpsc::unbounded_channel();
        let api = self.clone();
        tokio::spawn(async move {
            let mut value = api.value.subscribe();
            if let Some(now) = &*value.borrow_and_update() {
                let _ = send.send(event("ADDED", now));
            }
            let end = json!({"k8s.io/initial-events-end": "true"});
            let metadata = json!({"resourceVersion": "1", "annotations": end});
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
            let _ = send.send(json!({"type": "BOOKMARK", "object": object}));
            loop {
                tokio::select! {
                    () = send.closed() => break,
                    changed = value.changed() => if changed.is_err() { break },
                }
                let next = value.borrow_and_update().clone();
                let _ = send.send(next.as_deref().map_or_else(|| event("DELETED", ""), |v| event("MODIFIED", v)));
            }
            let _ = api.ended.send(());
        });
        let lines = tokio_stream(receive).map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(StreamBody::new(lines).boxed_unsync())
    }
}

fn tokio_stream<T>(receive: mpsc::UnboundedReceiver<T>) -> impl futures::Stream<Item = T> {
    futures::stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) })
}

fn event(kind: &str, value: &str) -> Value {
    let metadata = json!({"name": "settings", "namespace": "ns", "resourceVersion": "2"});
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"key": value}});
    json!({"type": kind, "object": object})
}

#[test]
fn a_change_is_in_the_volume_within_a_second_and_the_watch_ends_with_the_pod() {
    in_own_namespace(async {
        let (ended, mut ends) = mpsc::unbounded_channel();
        let api = Arc::new(Api { value: watch::channel(None).0, watches: AtomicUsize::new(0), ended });
        let (volumes, root) = with_client("live", api.client());
        let stop = lifecycle::Stop::new();
        let (poke, mut poked) = mpsc::unbounded_channel();
        let (running, told) = (volumes.clone(), stop.clone());
        let loop_ended = tokio::spawn(async move {
            running.run(told, |uid| drop(poke.send(uid.to_owned()))).await;
        });
        let pod = pod(json!({
            "serviceAccountName": "robot",
            "securityContext": {"runAsUser": 1234, "fsGroup": 4000},
            "volumes": [
                {"name": "config", "configMap": {"name": "settings"}},
                {"name": "access", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "audience": "them"}},
                    {"configMap": {"name": "settings", "items": [{"key": "key", "path": "sub/key"}]}},
                ]}},
            ],
            "containers": [{"name": "c", "volumeMounts": [
                {"name": "config", "mountPath": "/c"}, {"name": "access", "mountPath": "/a"},
            ]}],
        }));
        let errors = volumes.setup(&pod).await.unwrap_err();
        let text = "MountVolume.SetUp failed for volume \"config\" : configmap \"settings\" not found";
        assert_eq!((errors.len(), errors[0].to_string().as_str()), (2, text));
        assert!(errors[0].cause.is_missing_object());

        // The object comes: the pod is told of, and its volumes are there.
        while poked.try_recv().is_ok() {}
        api.value.send_replace(Some("one".into()));
        assert_eq!(poked.recv().await.as_deref(), Some("u1"));
        volumes.setup(&pod).await.unwrap();
        let base = root.join("pods/u1/volumes");
        let config = base.join("kubernetes.io~configmap/config/key");
        let projected = base.join("kubernetes.io~projected/access");
        assert_eq!(fs::read_to_string(&config).unwrap(), "one");
        assert_eq!(fs::read_to_string(projected.join("token")).unwrap(), "for \"them\"");
        let meta = fs::metadata(projected.join("token")).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (1234, 4000, 0o640));

        let start = Instant::now();
        api.value.send_replace(Some("two".into()));
        let both = || [&config, &projected.join("sub/key")].map(|p| fs::read_to_string(p).unwrap());
        while both() != ["two", "two"] {
            assert!(start.elapsed() < Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // An object that is deleted leaves what is mounted as it is.
        api.value.send_replace(None);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(both(), ["two", "two"]);

        assert_eq!(api.watches.load(Ordering::Relaxed), 1);
        volumes.remove_pod_dir("u1").await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), ends.recv()).await.unwrap();
        assert!(!root.join("pods/u1").exists());
        stop.stop();
        loop_ended.await.unwrap();
        fs::remove_dir_all(root).unwrap();
    });
}
