//! The registry relay: what containerd asks for in the node, fetched from where the host is.
//!
//! It runs in the host's network with a listener of the node's loopback, so it needs no rule and no port on the
//! host. It is an HTTP proxy (CONNECT, and absolute URLs), and a registry mirror for the host's loopback. Who does
//! not know the secret gets nothing: a pod in the node's network may reach the port.

mod forward;
mod request;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use clap::Args;

/// The name by which containerd's configuration says the host's loopback: not an address, because Go does not ask a
/// proxy for one.
pub const LOOPBACK: &str = "loopback.bosun.internal";
/// The header that carries the secret where no proxy is asked. Lower case, as it is compared.
pub const SECRET_HEADER: &str = "x-bosun-relay";
const SECRET_VARIABLE: &str = "BOSUN_RELAY_SECRET";
/// Connections at one time; containerd pulls a few layers of a few images.
const CONNECTIONS: usize = 256;

#[derive(Args)]
pub struct Options {
    /// The number of the open listener
    #[arg(long)]
    listener: RawFd,
}

/// What containerd knows and pods do not.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// # Errors
    /// Where the kernel gives no randomness.
    pub fn random() -> anyhow::Result<Self> {
        let mut bytes = [0; 16];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .context("read /dev/urandom")?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// # Errors
/// Where it was not started by a node.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let secret = std::env::var(SECRET_VARIABLE).with_context(|| format!("{SECRET_VARIABLE} is not set"))?;
    serve(&kernel::process::listener(options.listener)?, Secret(secret))
}

fn serve(listener: &TcpListener, secret: Secret) -> anyhow::Result<()> {
    let secret = Arc::new(secret);
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let (client, _) = listener.accept().context("accept a connection")?;
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (secret, guard) = (Arc::clone(&secret), Guard(Arc::clone(&open)));
        let work = move || {
            let _guard = guard;
            if let Err(error) = forward::converse(client, &secret) {
                eprintln!("{error:#}");
            }
        };
        std::thread::Builder::new().stack_size(128 << 10).spawn(work).context("start a thread")?;
    }
}

/// Counts a connection down, however its thread ends.
struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Both directions until both have ended.
fn join(client: TcpStream, server: TcpStream) -> anyhow::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let upward = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        // Either side may go first; the other learns it by the end of its stream.
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    })?;
    let (mut from_server, mut to_client) = (server, client);
    let _ = std::io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(std::net::Shutdown::Both);
    let _ = upward.join();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn relay() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener, Secret("s3cret".into())));
        address
    }

    /// A server that answers one request with what it was asked.
    fn registry() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).unwrap();
            let body = &buffer[..length];
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").unwrap();
            stream.write_all(body).unwrap();
        });
        port
    }

    fn ask(request: &str) -> String {
        let mut stream = TcpStream::connect(relay()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_mirror_of_loopback_registries_and_of_no_others() {
        let port = registry();
        let answer = ask(&format!(
            "GET /v2/a/manifests/1?ns=localhost%3A{port} HTTP/1.1\r\nHost: relay\r\nX-Bosun-Relay: s3cret\r\nAccept: x\r\n\r\n"
        ));
        let request = answer.split_once("\r\n\r\n").unwrap().1;
        assert!(request.starts_with("GET /v2/a/manifests/1 HTTP/1.1\r\n"), "{answer}");
        assert!(request.contains(&format!("Host: localhost:{port}\r\n")), "{answer}");
        assert!(!request.contains("s3cret"), "the secret must not leave: {answer}");
        let other = ask("GET /v2/a/manifests/1?ns=docker.io HTTP/1.1\r\nX-Bosun-Relay: s3cret\r\n\r\n");
        assert!(other.starts_with("HTTP/1.1 404"), "{other}");
    }

    #[test]
    fn a_proxy_for_those_who_know_the_secret() {
        let port = registry();
        let credentials = "Proxy-Authorization: Basic Ym9zdW46czNjcmV0\r\n";
        let url = format!("http://{LOOPBACK}:{port}/v2/?a=b");
        let answer = ask(&format!("HEAD {url} HTTP/1.1\r\n{credentials}\r\n"));
        assert!(answer.contains("HEAD /v2/?a=b HTTP/1.1\r\n"), "{answer}");
        assert!(!answer.contains("Proxy-Authorization"), "{answer}");
        assert!(ask(&format!("GET {url} HTTP/1.1\r\n\r\n")).starts_with("HTTP/1.1 407"));
        assert!(ask("GET /v2/?ns=localhost:1 HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 407"));
        let port = registry();
        let tunnel = ask(&format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{credentials}\r\nhello"));
        assert!(tunnel.starts_with("HTTP/1.1 200") && tunnel.ends_with("hello"), "{tunnel}");
        let refused = ask(&format!("CONNECT 127.0.0.1:1 HTTP/1.1\r\n{credentials}\r\n"));
        assert!(refused.starts_with("HTTP/1.1 502"), "{refused}");
    }
}
