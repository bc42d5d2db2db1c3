//! A registry client against registries that behave, and that do not.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use lifecycle::pki::{Identity, Subject};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::fake::{Ending, Fake, Reply, Seen};
use super::*;

const STALL: Duration = Duration::from_millis(300);

/// A folder with a hosts.toml for `a.test`.
fn hosts_toml(text: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("a.test")).unwrap();
    std::fs::write(root.path().join("a.test/hosts.toml"), text).unwrap();
    root
}

/// These hosts and no others: the registry itself is the last of them.
fn only(fakes: &[&Fake]) -> tempfile::TempDir {
    let (server, mirrors) = fakes.split_last().unwrap();
    let mirrors: String = mirrors.iter().map(|fake| format!("[host.\"http://{}\"]\n", fake.address)).collect();
    hosts_toml(&format!("server = \"http://{}\"\n{mirrors}", server.address))
}

async fn registry(certs: &Path, reference: &str, auth: Option<&Auth>) -> Registry {
    lifecycle::install_crypto();
    let settings = RegistrySettings { certs_dir: Some(certs.to_owned()), stall: STALL };
    let reference = Reference::parse(reference).unwrap();
    Registry::open_through(reference, &settings, auth, Proxies::default()).await.unwrap()
}

fn kinds(error: ImageError) -> Vec<FailureKind> {
    match error {
        ImageError::Pull { failures, .. } => failures.into_iter().map(|failure| failure.kind).collect(),
        other => panic!("{other}"),
    }
}

fn manifest() -> Bytes {
    let config = json!({ "mediaType": "c", "digest": Digest::of(b"c"), "size": 1 });
    json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [] }).to_string().into()
}

/// As registries answer for a manifest.
fn good(seen: &Seen) -> Reply {
    let bytes = manifest();
    let body = if seen.method == "HEAD" { Bytes::new() } else { bytes.clone() };
    Reply::new(200, body)
        .with("content-type", OCI_MANIFEST)
        .with("content-length", bytes.len().to_string())
        .with("docker-content-digest", Digest::of(&bytes).to_string())
}

fn user(password: &str) -> Auth {
    Auth { username: "u".to_owned(), password: password.to_owned(), ..Auth::default() }
}

#[tokio::test]
async fn a_tag_is_resolved_without_fetching_the_manifest() {
    let fake = Fake::start(good).await;
    let certs = only(&[&fake]);
    let resolved = registry(certs.path(), "a.test/x/y:1", None).await.resolve().await.unwrap();
    assert_eq!(resolved, Resolved { descriptor: Descriptor::new(OCI_MANIFEST, &manifest()), bytes: None });
    assert_eq!(fake.lines(), ["HEAD /v2/x/y/manifests/1"]);
}

#[tokio::test]
async fn a_host_that_does_not_know_head_is_asked_for_the_manifest() {
    for status in [404, 405, 200] {
        let fake = Fake::start(move |seen| match seen.method.as_str() {
            "HEAD" => Reply::new(status, ""),
            _ => Reply::new(200, manifest()),
        })
        .await;
        let certs = only(&[&fake]);
        let resolved = registry(certs.path(), "a.test/x:1", None).await.resolve().await.unwrap();
        assert_eq!(resolved.bytes, Some(manifest()));
        assert_eq!(resolved.descriptor, Descriptor::new(OCI_MANIFEST, &manifest()));
    }
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_told_for_whom_it_stands() {
    let mirror = Fake::start(|_| Reply::new(404, r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#)).await;
    let origin = Fake::start(good).await;
    let toml = format!("[host.\"http://{}\"]\n[host.\"http://{}\"]\n", mirror.address, origin.address);
    let certs = hosts_toml(&toml);
    registry(certs.path(), "a.test/x:1", None).await.resolve().await.unwrap();
    assert_eq!(mirror.seen()[0].query, "ns=a.test");
    assert_eq!(origin.lines(), ["HEAD /v2/x/manifests/1"]);
    // The registry itself is not told its own name.
    std::fs::rename(certs.path().join("a.test"), certs.path().join(origin.address.to_string().replace(':', "_") + "_"))
        .unwrap();
    let own = registry(certs.path(), &format!("{}/x:1", origin.address), None).await;
    own.resolve().await.unwrap();
    assert_eq!(origin.seen().last().unwrap().query, "");
}

#[tokio::test]
async fn a_dead_mirror_is_asked_last_from_then_on() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let origin = Fake::start(good).await;
    let certs = hosts_toml(&format!("server = \"http://{}\"\n[host.\"http://{dead}\"]\n", origin.address));
    let registry = registry(certs.path(), "a.test/x:1", None).await;
    let first = |registry: &Registry| registry.pull_hosts()[0].name().to_owned();
    assert_eq!(first(&registry), dead.to_string());
    registry.resolve().await.unwrap();
    assert_eq!(first(&registry), origin.address.to_string());
}

#[tokio::test]
async fn every_hosts_failure_is_told() {
    let mirror = Fake::start(|_| Reply::new(500, "")).await;
    let origin = Fake::start(|_| Reply::new(403, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#)).await;
    let certs = hosts_toml(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"resolve\"]\n",
        origin.address, mirror.address
    ));
    let registry = registry(certs.path(), "a.test/x:1", None).await;
    let error = registry.resolve().await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.code(), tonic::Code::PermissionDenied);
    assert!(text.contains("status 500") && text.contains("denies access"), "{text}");
    // A mirror that only resolves is not asked for content.
    assert_eq!(registry.pull_hosts().len(), 1);
}

/// A registry that wants a token, and its issuer.
async fn with_tokens(realm: &Fake, life: &'static AtomicUsize) -> Fake {
    let realm = realm.address;
    Fake::start(move |seen| {
        if seen.authorization == format!("Bearer t{}", life.load(Ordering::Relaxed)) {
            return good(seen);
        }
        let challenge = format!("Bearer realm=\"http://{realm}/token\",service=\"reg\",scope=\"repository:x:pull\"");
        Reply::new(401, "").with("www-authenticate", challenge)
    })
    .await
}

#[tokio::test]
async fn a_token_is_fetched_with_the_password_and_again_when_it_ended() {
    static TOKEN: AtomicUsize = AtomicUsize::new(1);
    let issuer = Fake::start(|seen| match seen.authorization.as_str() {
        "Basic dTpw" => Reply::new(200, json!({ "token": format!("t{}", TOKEN.load(Ordering::Relaxed)) }).to_string()),
        _ => Reply::new(401, ""),
    })
    .await;
    let fake = with_tokens(&issuer, &TOKEN).await;
    let certs = only(&[&fake]);
    let registry = registry(certs.path(), "a.test/x:1", Some(&user("p"))).await;
    registry.resolve().await.unwrap();
    registry.resolve().await.unwrap();
    assert_eq!(issuer.seen().len(), 1, "a token is kept");
    assert_eq!(issuer.seen()[0].query, "service=reg&scope=repository%3Ax%3Apull&account=u");
    TOKEN.store(2, Ordering::Relaxed);
    registry.resolve().await.unwrap();
    assert_eq!(issuer.seen().len(), 2, "a token that is refused is replaced");
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    static TOKEN: AtomicUsize = AtomicUsize::new(7);
    let issuer = Fake::start(|_| Reply::new(200, r#"{"access_token":"t7"}"#)).await;
    let fake = with_tokens(&issuer, &TOKEN).await;
    let certs = only(&[&fake]);
    let auth = Auth { identity_token: "id".to_owned(), ..Auth::default() };
    registry(certs.path(), "a.test/x:1", Some(&auth)).await.resolve().await.unwrap();
    let seen = &issuer.seen()[0];
    assert_eq!((seen.method.as_str(), seen.authorization.as_str()), ("POST", ""));
    assert!(seen.body.ends_with("grant_type=refresh_token&refresh_token=id"), "{}", seen.body);
}

#[tokio::test]
async fn wrong_credentials_are_told_and_not_shown() {
    let fake = Fake::start(|seen| {
        let echo = format!(r#"{{"errors":[{{"message":"hunter2 is wrong ({})"}}]}}"#, seen.authorization);
        Reply::new(401, echo).with("www-authenticate", "Basic realm=x")
    })
    .await;
    let certs = only(&[&fake]);
    let wrong = registry(certs.path(), "a.test/x:1", Some(&user("hunter2"))).await.resolve().await.unwrap_err();
    assert!(!wrong.to_string().contains("hunter2"), "{wrong}");
    assert_eq!(kinds(wrong), [FailureKind::Denied(String::new())]);
    assert_eq!(fake.seen().len(), 2);
    let none = registry(certs.path(), "a.test/x:1", None).await.resolve().await.unwrap_err();
    assert!(none.to_string().contains("wants a user and a password"), "{none}");
}

#[tokio::test]
async fn a_registry_token_is_sent_at_once() {
    let fake =
        Fake::start(|seen| if seen.authorization == "Bearer raw" { good(seen) } else { Reply::new(403, "") }).await;
    let certs = only(&[&fake]);
    let auth = Auth { registry_token: "raw".to_owned(), ..Auth::default() };
    registry(certs.path(), "a.test/x:1", Some(&auth)).await.resolve().await.unwrap();
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let store = Fake::start(|_| Reply::new(200, "blob")).await;
    let to = store.address;
    let fake = Fake::start(move |seen| match seen.authorization.as_str() {
        "" => Reply::new(401, "").with("www-authenticate", "Basic realm=x"),
        _ => Reply::new(307, "").with("location", format!("http://{to}/signed?key=1")),
    })
    .await;
    let certs = only(&[&fake]);
    let registry = registry(certs.path(), "a.test/x:1", Some(&user("p"))).await;
    assert_eq!(registry.small(Kind::Blobs, &Descriptor::new("", b"blob")).await.unwrap(), "blob");
    assert_eq!(store.seen()[0].authorization, "");
    assert_eq!(fake.seen()[1].authorization, "Basic dTpw");
}

#[tokio::test]
async fn a_host_that_lies_about_a_digest_is_passed_over() {
    let liar = Fake::start(|_| Reply::new(200, "something else")).await;
    let honest = Fake::start(|_| Reply::new(200, "blob")).await;
    let certs = only(&[&liar, &honest]);
    let registry = registry(certs.path(), "a.test/x:1", None).await;
    assert_eq!(registry.small(Kind::Blobs, &Descriptor::new("", b"blob")).await.unwrap(), "blob");
    let alone = only(&[&liar]);
    let registry = self::registry(alone.path(), "a.test/x:1", None).await;
    let error = registry.small(Kind::Blobs, &Descriptor::new("", b"blob")).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DataLoss);
}

#[tokio::test]
async fn a_digest_is_proven_also_where_the_headers_say_nothing() {
    let fake = Fake::start(|_| Reply::new(200, manifest())).await;
    let certs = only(&[&fake]);
    let right = format!("a.test/x@{}", Digest::of(&manifest()));
    registry(certs.path(), &right, None).await.resolve().await.unwrap();
    let wrong = format!("a.test/x@{}", Digest::of(b"other"));
    let error = registry(certs.path(), &wrong, None).await.resolve().await.unwrap_err();
    assert!(matches!(kinds(error)[..], [FailureKind::Wrong(_)]));
}

#[tokio::test]
async fn garbage_is_refused() {
    let endless = Bytes::from(vec![b' '; manifest::LIMIT + 1]);
    for body in [Bytes::from_static(b"<html>login</html>"), Bytes::from_static(b"{}"), endless] {
        let fake = Fake::start(move |_| Reply::new(200, body.clone())).await;
        let certs = only(&[&fake]);
        let error = registry(certs.path(), "a.test/x:1", None).await.resolve().await.unwrap_err();
        assert!(matches!(kinds(error)[..], [FailureKind::Wrong(_)]));
    }
}

#[tokio::test]
async fn an_overloaded_host_is_asked_again() {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let fake = Fake::start(|seen| match COUNT.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::new(503, ""),
        1 => Reply::new(429, "").with("retry-after", "0"),
        _ => good(seen),
    })
    .await;
    let certs = only(&[&fake]);
    registry(certs.path(), "a.test/x:1", None).await.resolve().await.unwrap();
    assert_eq!(fake.seen().len(), 3);
}

#[tokio::test]
async fn a_connection_that_closes_without_an_answer_is_made_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let certs = hosts_toml(&format!("server = \"http://{}\"\n", listener.local_addr().unwrap()));
    let bytes = manifest();
    tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        tokio::io::AsyncReadExt::read(&mut first, &mut [0; 1000]).await.unwrap();
        drop(first);
        let (mut second, _) = listener.accept().await.unwrap();
        tokio::io::AsyncReadExt::read(&mut second, &mut [0; 1000]).await.unwrap();
        let (length, digest) = (bytes.len(), Digest::of(&bytes));
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {OCI_MANIFEST}\r\ncontent-length: {length}\r\ndocker-content-digest: {digest}\r\n\r\n"
        );
        second.write_all(head.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    });
    registry(certs.path(), "a.test/x:1", None).await.resolve().await.unwrap();
}

async fn read(blob: &mut Blob) -> (Vec<u8>, Option<FailureKind>) {
    let mut bytes = Vec::new();
    loop {
        match blob.next().await {
            Ok(Some(part)) => bytes.extend(part),
            Ok(None) => return (bytes, None),
            Err(failure) => return (bytes, Some(failure.kind)),
        }
    }
}

async fn blob(reply: Reply, from: u64, size: u64) -> (Vec<u8>, Option<FailureKind>, Seen) {
    let fake = Fake::start(move |_| reply.clone()).await;
    let certs = only(&[&fake]);
    let registry = registry(certs.path(), "a.test/x:1", None).await;
    let mut blob = registry.pull_hosts()[0].blob("/x/blobs/d".to_owned(), from, size).await.unwrap();
    let (bytes, failure) = read(&mut blob).await;
    (bytes, failure, fake.seen().remove(0))
}

#[tokio::test]
async fn a_blob_is_gone_on_with_by_range_or_by_dropping() {
    let partial = Reply::new(206, "56789").with("content-range", "bytes 5-9/10");
    let (bytes, failure, seen) = blob(partial, 5, 10).await;
    assert_eq!((bytes, failure, seen.range.as_str()), (b"56789".to_vec(), None, "bytes=5-"));
    let (bytes, failure, _) = blob(Reply::new(200, "0123456789"), 5, 10).await;
    assert_eq!((bytes, failure), (b"56789".to_vec(), None));
}

#[tokio::test]
async fn a_blob_that_breaks_stalls_or_grows_says_so() {
    let cut = |ending| Reply::new(200, "01234").with("content-length", "10").ending(ending);
    let (bytes, failure, _) = blob(cut(Ending::Break), 0, 10).await;
    assert_eq!(bytes, b"01234");
    assert!(matches!(failure, Some(FailureKind::Broken(_))), "{failure:?}");
    let (_, failure, _) = blob(cut(Ending::Stall), 0, 10).await;
    assert_eq!(failure, Some(FailureKind::Stalled(STALL)));
    let (_, failure, _) = blob(Reply::new(200, "01234"), 0, 10).await;
    assert!(matches!(failure, Some(FailureKind::Broken(_))), "{failure:?}");
    let (bytes, failure, _) = blob(Reply::new(200, "0123456789"), 0, 5).await;
    assert_eq!(bytes, b"");
    assert!(matches!(failure, Some(FailureKind::Wrong(_))), "{failure:?}");
}

#[tokio::test]
async fn a_host_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let certs = hosts_toml(&format!("server = \"http://{}\"\n", listener.local_addr().unwrap()));
    let error = registry(certs.path(), "a.test/x:1", None).await.resolve().await.unwrap_err();
    assert_eq!(kinds(error), [FailureKind::Stalled(STALL)]);
}

/// A server that signed its certificate itself; the name is `localhost`.
fn identity(name: &str) -> Identity {
    lifecycle::install_crypto();
    Identity::self_signed(&Subject::server(name, &[name.to_owned()], &[])).unwrap()
}

async fn resolve_tls(fake: &Fake, fields: &str, files: &[(&str, &str)]) -> Result<Resolved, ImageError> {
    let certs = hosts_toml(&format!("server = \"https://localhost:{}\"\n{fields}\n", fake.address.port()));
    for (name, text) in files {
        std::fs::write(certs.path().join("a.test").join(name), text).unwrap();
    }
    registry(certs.path(), "a.test/x:1", None).await.resolve().await
}

#[tokio::test]
async fn a_certificate_is_trusted_where_its_authority_or_itself_is_named() {
    let own = identity("localhost");
    let fake = Fake::start_tls(lifecycle::tls::server_config(&own, None).unwrap(), good).await;
    let unknown = resolve_tls(&fake, "", &[]).await.unwrap_err();
    assert!(matches!(kinds(unknown)[..], [FailureKind::Certificate(_)]));
    resolve_tls(&fake, "ca = \"own.pem\"", &[("own.pem", &own.cert_pem)]).await.unwrap();
    resolve_tls(&fake, "skip_verify = true", &[]).await.unwrap();
    let elsewhere = identity("elsewhere");
    let fake = Fake::start_tls(lifecycle::tls::server_config(&elsewhere, None).unwrap(), good).await;
    let wrong = resolve_tls(&fake, "ca = \"own.pem\"", &[("own.pem", &elsewhere.cert_pem)]).await.unwrap_err();
    assert!(matches!(kinds(wrong)[..], [FailureKind::Certificate(_)]));
}

#[tokio::test]
async fn a_certificate_that_calls_itself_an_authority_is_trusted_where_it_is_named() {
    lifecycle::install_crypto();
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    let own = Identity { cert_pem: certificate.pem(), key_pem: key.serialize_pem() };
    let fake = Fake::start_tls(lifecycle::tls::server_config(&own, None).unwrap(), good).await;
    resolve_tls(&fake, "ca = [\"own.pem\"]", &[("own.pem", &own.cert_pem)]).await.unwrap();
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_who_asks() {
    lifecycle::install_crypto();
    let ca = lifecycle::pki::Ca::create("clients").unwrap();
    let client = ca.issue(&Subject::client("node", None)).unwrap();
    let mut server = lifecycle::tls::server_config(&identity("localhost"), None).unwrap();
    let strict = lifecycle::tls::server_config(&identity("localhost"), Some(ca.cert_pem())).unwrap();
    assert_eq!(server.alpn_protocols, strict.alpn_protocols);
    server = strict;
    let fake = Fake::start_tls(server, good).await;
    let files = [("c.cert", client.cert_pem.as_str()), ("c.key", client.key_pem.as_str())];
    let fields = "skip_verify = true\nclient = [[\"c.cert\", \"c.key\"]]";
    resolve_tls(&fake, fields, &files).await.unwrap();
    let missing = registry_error("client = \"none.pem\"").await;
    assert!(missing.contains("none.pem"), "{missing}");
}

async fn registry_error(fields: &str) -> String {
    let certs = hosts_toml(&format!("server = \"https://localhost\"\n{fields}\n"));
    let settings = RegistrySettings { certs_dir: Some(certs.path().to_owned()), stall: STALL };
    let reference = Reference::parse("a.test/x:1").unwrap();
    let opened = Registry::open_through(reference, &settings, None, Proxies::default()).await;
    opened.err().map(|error| error.to_string()).unwrap_or_default()
}

#[tokio::test]
async fn a_host_on_this_machine_may_speak_without_tls() {
    let plain = Fake::start(good).await;
    let certs = tempfile::tempdir().unwrap();
    let registry = registry(certs.path(), &format!("{}/x:1", plain.address), None).await;
    registry.resolve().await.unwrap();
    let secret = Fake::start_tls(lifecycle::tls::server_config(&identity("whoever"), None).unwrap(), good).await;
    let registry = self::registry(certs.path(), &format!("{}/x:1", secret.address), None).await;
    registry.resolve().await.unwrap();
}

/// A proxy that connects through; the heads of the requests that it got.
async fn connecting_proxy(to: std::net::SocketAddr) -> (std::net::SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, received) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                stream.read_line(&mut head).await.unwrap();
            }
            let allowed = head.to_ascii_lowercase().contains("proxy-authorization: basic dtpw");
            heads.send(head).await.unwrap();
            if !allowed {
                stream.write_all(b"HTTP/1.1 407 No\r\n\r\n").await.unwrap();
                continue;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut onward = TcpStream::connect(to).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut onward).await });
        }
    });
    (address, received)
}

#[tokio::test]
async fn a_proxy_connects_through_for_tls_and_reads_what_is_without() {
    let secret = Fake::start_tls(lifecycle::tls::server_config(&identity("r.test"), None).unwrap(), good).await;
    let (proxy, mut heads) = connecting_proxy(secret.address).await;
    let reading = Fake::start(good).await;
    let resolve = async |server: &str, user: &str| {
        let certs = hosts_toml(&format!("server = \"{server}\"\nskip_verify = true\n"));
        let settings = RegistrySettings { certs_dir: Some(certs.path().to_owned()), stall: STALL };
        let (https, http) = (format!("http://{user}@{proxy}"), format!("http://{}", reading.address));
        let proxies = Proxies::from(|name| match name {
            "HTTPS_PROXY" => Some(https.clone()),
            "HTTP_PROXY" => Some(http.clone()),
            _ => None,
        });
        let reference = Reference::parse("a.test/x:1").unwrap();
        let registry = Registry::open_through(reference, &settings, None, proxies.unwrap()).await.unwrap();
        registry.resolve().await
    };
    resolve("https://r.test:5443", "u:p").await.unwrap();
    assert!(heads.recv().await.unwrap().starts_with("CONNECT r.test:5443 HTTP/1.1\r\n"));
    let refused = resolve("https://r.test", "u:wrong").await.unwrap_err().to_string();
    assert!(refused.contains("HTTPS_PROXY") && !refused.contains("wrong"), "{refused}");
    resolve("http://r.test:80", "u:p").await.unwrap();
    assert_eq!(reading.lines(), ["HEAD /v2/x/manifests/1"]);
}
