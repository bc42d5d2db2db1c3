//! The server as clients meet it: over TLS, with an API server that answers reviews, and a runtime that knows one container.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cri::v1::{ExecRequest, ExecResponse};
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use lifecycle::pki::Ca;
use lifecycle::tls::{ServerTrust, client_config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};

use super::*;
use crate::cgroup::{PodCgroups, Rules};
use crate::pod::{ContainerPhase, ContainerRef};
use crate::stats::Places;

/// One pod with one running container, whose log lies in a scratch folder.
struct OnePod {
    pod: Arc<Pod>,
    log: PathBuf,
}

impl Pods for OnePod {
    fn list(&self) -> Vec<Arc<Pod>> {
        vec![self.pod.clone()]
    }

    fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Arc<Pod>> {
        let is_it = namespace == "ns" && name == "p" && uid.is_none_or(|uid| uid == "u1");
        is_it.then(|| self.pod.clone())
    }

    fn by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        (uid == "u1").then(|| self.pod.clone())
    }

    fn address(&self, _: &str) -> Option<IpAddr> {
        None
    }

    fn sandbox(&self, _: &str) -> Option<String> {
        Some("s1".into())
    }

    fn container(&self, _: &str, name: &str, previous: bool) -> Option<ContainerRef> {
        (name == "c" && !previous).then(|| ContainerRef {
            id: "c1".into(),
            name: name.into(),
            attempt: 0,
            phase: ContainerPhase::Running,
            log_path: self.log.clone(),
        })
    }
}

/// Knows the token `good` of `metrics-server`, who may get nodes/metrics; `admin` may do anything.
async fn review(request: Request<kube::client::Body>, asked: Arc<AtomicUsize>) -> Response<Full<Bytes>> {
    asked.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut body: Value = serde_json::from_slice(&body).unwrap();
    body["status"] = if path.ends_with("tokenreviews") {
        let good = body["spec"]["token"] == "good";
        json!({"authenticated": good, "user": {"username": "metrics-server", "groups": []}})
    } else {
        let attributes = &body["spec"]["resourceAttributes"];
        assert_eq!((&attributes["resource"], &attributes["name"]), (&json!("nodes"), &json!("n1")));
        let metrics = attributes["subresource"] == "metrics" && attributes["verb"] == "get";
        let allowed = body["spec"]["user"] == "admin" || (metrics && body["spec"]["user"] == "metrics-server");
        json!({"allowed": allowed})
    };
    Response::builder().status(201).body(Full::new(body.to_string().into())).unwrap()
}

struct FakeRuntime {
    url: String,
}

#[tonic::async_trait]
impl cri::RuntimeService for FakeRuntime {
    async fn exec(&self, request: tonic::Request<ExecRequest>) -> Result<tonic::Response<ExecResponse>, tonic::Status> {
        let request = request.into_inner();
        assert_eq!(
            (request.container_id.as_str(), request.cmd),
            ("c1", vec!["sh".to_owned(), "-c".into(), "x y".into()])
        );
        assert!(request.stdin && request.stdout && request.stderr && !request.tty);
        Ok(tonic::Response::new(ExecResponse { url: self.url.clone() }))
    }
}

/// Upgrades to SPDY/3.1 and sends back what it gets; refuses everything else.
async fn streaming_server(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let head = head(&mut stream).await;
            assert!(head.starts_with("POST /exec/abc HTTP/1.1\r\n") || head.starts_with("GET /exec/abc "), "{head}");
            assert!(!head.to_lowercase().contains("authorization"));
            if head.to_lowercase().contains("upgrade: spdy/3.1") {
                let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            } else {
                let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
    }
}

async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap() == 0 {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

struct Bed {
    address: std::net::SocketAddr,
    ca: Ca,
    reviews: Arc<AtomicUsize>,
    stop: Stop,
    dir: PathBuf,
}

impl Bed {
    async fn new() -> Self {
        lifecycle::install_crypto();
        let dir = std::env::temp_dir().join(format!("volumes-server-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let log = dir.join("0.log");
        std::fs::write(&log, "2026-11-21T08:30:00.000000001Z stdout F hello\n").unwrap();
        let ca = Ca::create("test").unwrap();
        let authority = dir.join("ca.crt");
        std::fs::write(&authority, ca.cert_pem()).unwrap();
        let mut config = Config::default();
        config.authentication.x509.client_ca_file = Some(authority);

        let streaming = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/exec/abc", streaming.local_addr().unwrap());
        tokio::spawn(streaming_server(streaming));
        let socket = dir.join("cri.sock");
        let cri = UnixListener::bind(&socket).unwrap();
        let service = TowerToHyperService::new(cri::RuntimeServiceServer::new(FakeRuntime { url }));
        tokio::spawn(async move {
            while let Ok((stream, _)) = cri.accept().await {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service.clone()));
            }
        });

        let reviews = Arc::new(AtomicUsize::new(0));
        let asked = reviews.clone();
        let answer = tower::service_fn(move |request| {
            let asked = asked.clone();
            async move { Ok::<_, Infallible>(review(request, asked).await) }
        });
        let pod =
            json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u1"}, "spec": {"containers": [{"name": "c"}]}});
        let pods: Arc<dyn Pods> = Arc::new(OnePod { pod: Arc::new(serde_json::from_value(pod).unwrap()), log });
        let runtime = Runtime::new(socket.to_str().unwrap(), Duration::from_secs(5)).unwrap();
        let layout = kernel::cgroup::Layout::v1(&dir, &["cpu"]);
        let cgroups = PodCgroups::new(kernel::cgroup::Cgroups::new(layout), "/", Rules::default());
        let places = Places { node_name: "n1".into(), root: dir.clone() };
        let parts = Parts {
            config: Arc::new(config),
            node_name: "n1".into(),
            pods: pods.clone(),
            runtime: runtime.clone(),
            client: kube::Client::new(answer, "default"),
            stats: Arc::new(Stats::new(pods, cgroups, runtime, places)),
            health: Arc::new(|| Ok(())),
        };
        let own = serving_files(&parts.config, &dir, "n1", &[]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), Stop::new());
        let told = stop.clone();
        tokio::spawn(async move { serve(parts, listener, &own, told).await.unwrap() });
        Self { address, ca, reviews, stop, dir }
    }

    async fn connect(&self, user: Option<&str>) -> tokio_rustls::client::TlsStream<TcpStream> {
        let identity = user.map(|name| self.ca.issue(&Subject::client(name, None)).unwrap());
        let config = client_config(ServerTrust::Anybody, identity.as_ref()).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("n1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// Status and body of a GET.
    async fn get(&self, user: Option<&str>, path: &str, token: &str) -> (u16, String) {
        let mut stream = self.connect(user).await;
        let bearer = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let request = format!("GET {path} HTTP/1.1\r\nHost: n1\r\n{bearer}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

#[tokio::test]
async fn nobody_is_served_unknown_or_unauthorized_and_upgrades_pass_as_they_are() {
    let bed = Bed::new().await;
    // Who is not known, and who may not.
    assert_eq!(bed.get(None, "/metrics", "").await, (401, "Unauthorized".into()));
    assert_eq!(bed.get(None, "/metrics", "bad").await.0, 401);
    let (status, metrics) = bed.get(None, "/metrics", "good").await;
    assert!(status == 200 && metrics.contains("kubelet_running_pods 0 "), "{metrics}");
    let before = bed.reviews.load(Ordering::Relaxed);
    assert_eq!(bed.get(None, "/metrics", "good").await.0, 200);
    assert_eq!(bed.reviews.load(Ordering::Relaxed), before);
    let refused = "Forbidden (user=metrics-server, verb=get, resource=nodes, subresource(s)=[pods proxy])\n";
    assert_eq!(bed.get(None, "/pods", "good").await, (403, refused.into()));
    // A certificate of the authority alone opens nothing.
    assert_eq!(bed.get(Some("eve"), "/metrics", "").await.0, 403);
    assert_eq!(bed.get(Some("admin"), "/healthz", "").await, (200, "ok".into()));

    // Logs.
    let (status, log) = bed.get(Some("admin"), "/containerLogs/ns/p/c?timestamps=true", "").await;
    assert_eq!((status, log.contains("2026-11-21T08:30:00.000000001Z hello\n")), (200, true), "{log}");
    let missing = (404, "container \"x\" not found in pod \"p\"\n".to_owned());
    assert_eq!(bed.get(Some("admin"), "/containerLogs/ns/p/x", "").await, missing);
    let (status, summary) = bed.get(Some("admin"), "/stats/summary", "").await;
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((status, &summary["pods"][0]["podRef"]["uid"]), (200, &json!("u1")));
    assert!(summary["node"]["memory"]["workingSetBytes"].as_u64().unwrap() > 0);
    assert!(summary["node"]["fs"]["capacityBytes"].as_u64().unwrap() > 0);

    // An upgrade passes both ways as raw bytes.
    let mut stream = bed.connect(Some("admin")).await;
    let query = "command=sh&command=-c&command=x%20y&input=1&output=1&error=1";
    let request = format!(
        "POST /exec/ns/p/c?{query} HTTP/1.1\r\nHost: n1\r\nAuthorization: Bearer secret\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = head(&mut stream).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 101 ") && answer.contains("x-stream-protocol-version: v4"), "{answer}");
    stream.write_all(b"\x80\x03raw").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"\x80\x03raw");

    // What the runtime does not speak is refused in words.
    let mut stream = bed.connect(Some("admin")).await;
    let request = format!(
        "GET /exec/ns/p/c?{query} HTTP/1.1\r\nHost: n1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(bed.get(Some("admin"), "/exec/ns/p/c?output=1", "").await.0, 400);
    bed.stop.stop();
    assert!(Path::new(&bed.dir).join("kubelet.crt").exists());
    std::fs::remove_dir_all(&bed.dir).unwrap();
}
