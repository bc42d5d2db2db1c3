//! An API server with its store in a folder that goes with the test, a node and two pods.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control_plane::ports::{Peer, Ports};
use control_plane::registry::{Registry, kinds};
use control_plane::server::{Config, Server};
use control_plane::store::Embedded;
use control_plane::stream::Streams;
use control_plane::token::{Keys, Tokens};
use control_plane::{admission, authn, authz, request, reviews};
use futures::{SinkExt, StreamExt};
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lifecycle::kubeconfig::Kubeconfig;
use lifecycle::pki::{ClusterPki, Identity, Subject, ensure_cluster_pki};
use lifecycle::tls::{ServerTrust, client_config, server_config};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Cluster {
    dir: tempfile::TempDir,
    address: SocketAddr,
    pki: ClusterPki,
    admin: Identity,
}

impl Cluster {
    pub async fn start() -> Self {
        lifecycle::install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let pki = ensure_cluster_pki(&dir.path().join("pki"), &[], &["127.0.0.1".parse().unwrap()]).unwrap();
        let kubelet = super::kubelet::start(&pki.ca).await;
        let server = server(dir.path(), &pki);
        fill(&server, kubelet).await;
        let address = listen(server, &pki).await;
        let admin = pki.ca.issue(&Subject::client("kubernetes-admin", Some("system:masters"))).unwrap();
        Self { dir, address, pki, admin }
    }

    /// None where there is no kubectl.
    pub fn kubectl(&self) -> Option<Kubectl> {
        self.kubectl_as("admin.conf", |_| {})
    }

    pub fn kubectl_with_token(&self, token: &str) -> Option<Kubectl> {
        self.kubectl_as("token.conf", |config| config["users"][0]["user"] = json!({"token": token}))
    }

    fn kubectl_as(&self, file: &str, change: impl FnOnce(&mut Value)) -> Option<Kubectl> {
        let server = format!("https://{}", self.address);
        let ca_pem = self.pki.ca.cert_pem();
        let config = Kubeconfig { name: "test", user: "user", server: &server, ca_pem, identity: &self.admin };
        let mut config = config.to_value();
        change(&mut config);
        let kubeconfig = self.dir.path().join(file);
        std::fs::write(&kubeconfig, lifecycle::kubeconfig::to_yaml(&config)).unwrap();
        let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/kubectl");
        let cache = self.dir.path().join("cache");
        binary.exists().then_some(Kubectl { binary, kubeconfig, cache, env: BTreeMap::new() })
    }

    /// Sends messages over WebSocket as the administrator, and collects what comes back until `last` came.
    pub async fn websocket(&self, path: &str, protocol: &str, send: &[&str], last: &str) -> Vec<String> {
        let tls = client_config(ServerTrust::Authority(self.pki.ca.cert_pem()), Some(&self.admin)).unwrap();
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap();
        let mut request = format!("wss://{}{path}", self.address).into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        for message in send {
            socket.send(Message::Text((*message).into())).await.unwrap();
        }
        let mut received = Vec::new();
        while received.last().is_none_or(|message| message != last) {
            let message = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
            received.push(message.to_text().unwrap().to_owned());
        }
        received
    }
}

fn server(dir: &Path, pki: &ClusterPki) -> Arc<Server> {
    let keys = Keys::load(&pki.file("sa.key"), &[pki.file("sa.pub")]).unwrap();
    let tokens = Arc::new(Tokens::new(keys, ISSUER.into(), Vec::new()));
    let (cert, key) = (pki.file("apiserver-kubelet-client.crt"), pki.file("apiserver-kubelet-client.key"));
    let to_kubelets = client_config(ServerTrust::Anybody, Some(&Identity::load(&cert, &key).unwrap())).unwrap();
    let ports = Ports {
        authenticator: Box::new(authn::Authn { tokens: tokens.clone() }),
        authorizer: Box::new(authz::Fixed),
        admission: admission::plugins(),
        connector: Box::new(Streams::new(to_kubelets)),
        answerer: Box::new(reviews::Answers { tokens }),
    };
    let config = Config {
        advertise_address: "127.0.0.1".parse().unwrap(),
        secure_port: 6443,
        service_cluster_ip_range: vec!["10.96.0.0/16".parse().unwrap()],
        service_node_port_range: (30000, 32767),
        service_account_issuer: ISSUER.into(),
        api_audiences: Vec::new(),
        kubelet_preferred_address_types: vec!["InternalIP".into()],
    };
    let store = Arc::new(Embedded::open(&dir.join("store")).unwrap());
    let registry = Registry::new(kinds::RESOURCES.to_vec());
    Arc::new(Server::new(store, registry, Arc::new(SystemTime::now), config, ports))
}

async fn fill(server: &Server, kubelet: SocketAddr) {
    let pod = |name: &str, node: Option<&str>| {
        let mut spec = json!({"containers": [{"name": "a", "image": "i", "stdin": true}]});
        if let Some(node) = node {
            spec["nodeName"] = node.into();
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    };
    let account = |name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
    let objects = [
        ("namespaces", "", namespace),
        ("nodes", "", node),
        ("serviceaccounts", "default", account("default")),
        ("serviceaccounts", "default", account("robot")),
        ("pods", "default", pod("p", Some("n1"))),
        ("pods", "default", pod("unbound", None)),
    ];
    for (plural, namespace, object) in objects {
        server.create(server.resource("", plural).unwrap(), namespace, object).await.unwrap();
    }
    let status = |plural: &str, namespace: &'static str, name: &'static str, status: Value| {
        let resource = server.resource("", plural).unwrap();
        let target = control_plane::server::Target { resource, namespace, name };
        server.patch(target, Some(control_plane::registry::Subresource::Status), move |object| {
            let mut object = object.clone();
            object["status"] = status.clone();
            Ok(object)
        })
    };
    let addresses = json!({
        "addresses": [{"type": "InternalIP", "address": kubelet.ip().to_string()}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port()}},
    });
    status("nodes", "", "n1", addresses).await.unwrap();
    status("pods", "default", "p", json!({"phase": "Running"})).await.unwrap();
}

async fn listen(server: Arc<Server>, pki: &ClusterPki) -> SocketAddr {
    let identity = Identity::load(&pki.file("apiserver.crt"), &pki.file("apiserver.key")).unwrap();
    let tls = TlsAcceptor::from(Arc::new(server_config(&identity, Some(pki.ca.cert_pem())).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, address)) = listener.accept().await {
            let (tls, server) = (tls.clone(), server.clone());
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec().into();
                let peer = Peer { address, certificates };
                let service = service_fn(|mut request: Request<Incoming>| {
                    request.extensions_mut().insert(peer.clone());
                    let request = request.map(control_plane::request::boxed);
                    let answer = request::serve(server.clone(), request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let executor = hyper_util::rt::TokioExecutor::new();
                let builder = hyper_util::server::conn::auto::Builder::new(executor);
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// Says a word to a port and hears the answer.
pub async fn ask(address: SocketAddr, word: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(word.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[derive(Clone)]
pub struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
    env: BTreeMap<String, String>,
}

impl Kubectl {
    pub fn env(&self, name: &str, value: &str) -> Self {
        let mut with = self.clone();
        with.env.insert(name.into(), value.into());
        with
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(&self.cache).args(args);
        command.envs(&self.env).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub async fn run(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(args).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let write = tokio::spawn(async move {
            // A command that reads nothing ends first.
            let _ = stdin.write_all(&input).await;
        });
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let _ = write.await;
        output.unwrap_or_else(|_| panic!("kubectl {args:?} takes too long")).unwrap()
    }

    /// Forwards a free local port while `during` runs.
    pub async fn forward(&self, pod: &str, port: u16, during: impl AsyncFn(SocketAddr)) {
        let mut child = self.command(&["port-forward", pod, &format!(":{port}")]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        let Some(line) = line else {
            let mut why = String::new();
            child.stderr.take().unwrap().read_to_string(&mut why).await.unwrap();
            panic!("kubectl port-forward ended: {why}");
        };
        let address = line.strip_prefix("Forwarding from ").unwrap().split(' ').next().unwrap().parse().unwrap();
        during(address).await;
        child.kill().await.unwrap();
    }
}
