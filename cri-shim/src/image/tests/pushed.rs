//! Against Debian's docker-registry: what it was pushed is what is pulled.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::bed::{Bed, TestImage};
use crate::image::digest::Digest;
use crate::image::manifest::OCI_MANIFEST;
use crate::image::{Auth, Images};

const PROGRAM: &str = "/usr/bin/docker-registry";

/// A docker-registry on this machine.
struct Registry {
    address: SocketAddr,
    child: Child,
    client: Client<HttpConnector, Full<Bytes>>,
    authorization: Option<String>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// With `users`, a file of htpasswd, it wants a password.
    async fn start(bed: &Bed, users: Option<&str>) -> Option<Self> {
        if !std::path::Path::new(PROGRAM).exists() {
            eprintln!("SKIPPED images from docker-registry: there is no {PROGRAM}");
            return None;
        }
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = bed.folder.path().join(format!("registry-{}", address.port()));
        std::fs::create_dir(&folder).unwrap();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder:?}}}}}\nhttp: {{addr: '{address}'}}\n"
        );
        if let Some(users) = users {
            std::fs::write(folder.join("users"), users).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {:?}}}}}\n", folder.join("users"));
        }
        std::fs::write(folder.join("config.yml"), config).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg(folder.join("config.yml"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let authorization = users.map(|_| "Basic dXNlcjpwYXNz".to_owned());
        let registry = Self { address, child, client, authorization };
        for _ in 0..200 {
            if registry.client.request(registry.request("GET", "/v2/", "", Bytes::new())).await.is_ok() {
                return Some(registry);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("docker-registry does not answer at {address}");
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: Bytes) -> Request<Full<Bytes>> {
        let path = path.strip_prefix(&format!("http://{}", self.address)).unwrap_or(path);
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        request.body(Full::new(body)).unwrap()
    }

    async fn send(&self, method: &str, path: &str, kind: &str, body: Bytes) -> Response<Incoming> {
        let answer = self.client.request(self.request(method, path, kind, body)).await.unwrap();
        assert!(answer.status().is_success(), "{method} {path}: {}", answer.status());
        answer
    }

    async fn push(&self, image: &TestImage, path: &str, tag: &str) {
        for (digest, blob) in &image.blobs {
            let upload = self.send("POST", &format!("/v2/{path}/blobs/uploads/"), "", Bytes::new()).await;
            let location = upload.headers()["location"].to_str().unwrap().to_owned();
            let separator = if location.contains('?') { '&' } else { '?' };
            let to = format!("{location}{separator}digest={digest}");
            self.send("PUT", &to, "application/octet-stream", blob.clone()).await;
        }
        self.send("PUT", &format!("/v2/{path}/manifests/{tag}"), OCI_MANIFEST, image.manifest.clone()).await;
    }
}

#[tokio::test]
async fn what_was_pushed_is_pulled() {
    let Some(bed) = Bed::start().await else { return };
    let Some(registry) = Registry::start(&bed, None).await else { return };
    let image = super::small();
    registry.push(&image, "some/thing", "1.0").await;
    let images = Images::new(bed.containerd.clone(), bed.settings(None));
    let name = format!("{}/some/thing", registry.address);
    // On this machine it is tried with TLS first.
    let pulled = images.pull(&format!("{name}:1.0"), None).await.unwrap();
    assert_eq!(pulled.digests, [format!("{name}@{}", image.digest())]);
    images.remove(&pulled.id).await.unwrap();
    images.pull(&format!("{name}:whatever@{}", image.digest()), None).await.unwrap();
    let missing = images.pull(&format!("{name}:2.0"), None).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound, "{missing}");
    assert!(missing.to_string().contains("check the name and the tag"), "{missing}");
    let none = images.pull(&format!("{name}@{}", Digest::of(b"none")), None).await.unwrap_err();
    assert_eq!(none.code(), tonic::Code::NotFound, "{none}");
}

#[tokio::test]
async fn a_password_opens_and_a_wrong_one_does_not() {
    let Some(bed) = Bed::start().await else { return };
    // user:pass
    let users = "user:$2b$05$gMG/f57QAWjUEwv/B2Q7HeXt4hrlzd909kixLmTY25URFbkId2c/u\n";
    let Some(registry) = Registry::start(&bed, Some(users)).await else { return };
    let image = super::small();
    registry.push(&image, "own", "1").await;
    let images = Images::new(bed.containerd.clone(), bed.settings(None));
    let name = format!("{}/own:1", registry.address);
    let auth =
        |password: &str| Some(Auth { username: "user".to_owned(), password: password.to_owned(), ..Auth::default() });
    for denied in [None, auth("wrong")] {
        let error = images.pull(&name, denied).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::PermissionDenied, "{error}");
        assert!(error.to_string().contains("pull secret") && !error.to_string().contains("wrong)"), "{error}");
    }
    images.pull(&name, auth("pass")).await.unwrap();
    // Being there already opens to nobody.
    assert!(images.pull(&name, None).await.is_err());
}
