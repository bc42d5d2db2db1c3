//! One connection of the relay.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::request::{Head, Route};
use super::{Secret, join};

/// A registry that cannot be reached shall show as an error of the pull, and soon.
const DIAL: Duration = Duration::from_secs(3);
const HEAD_LIMIT: usize = 64 << 10;

/// # Errors
/// What to write into the log; the client has its answer.
pub fn converse(mut client: TcpStream, secret: &Secret) -> anyhow::Result<()> {
    let Some((text, rest)) = read_head(&mut client)? else { return Ok(()) };
    let route = Head::parse(&text).map_or(Route::Refuse("400 Bad Request"), |head| head.route(secret));
    let (authority, head) = match route {
        Route::Refuse(status) => return answer(client, status),
        Route::Tunnel { authority } => (authority, None),
        Route::Forward { authority, head } => (authority, Some(head)),
    };
    let mut server = match dial(&authority) {
        Ok(server) => server,
        Err(error) => {
            let said = format!("the host cannot reach {authority}: {error:#}");
            // Go shows a proxy's reason phrase and no more, so that the pod's Event says what happened.
            answer(client, &format!("502 {said}"))?;
            anyhow::bail!("{said}");
        }
    };
    match head {
        Some(head) => server.write_all(head.as_bytes())?,
        None => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?,
    }
    server.write_all(&rest)?;
    join(client, server)
}

/// The head, and what came after it. Nothing where the client went away.
fn read_head(client: &mut TcpStream) -> anyhow::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), rest)));
        }
        anyhow::ensure!(bytes.len() < HEAD_LIMIT, "a request's head is longer than {HEAD_LIMIT} bytes");
        match client.read(&mut buffer)? {
            0 => return Ok(None),
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    }
}

fn answer(mut client: TcpStream, status: &str) -> anyhow::Result<()> {
    let status: String = status.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    write!(client, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    client.shutdown(std::net::Shutdown::Write)?;
    // Unread bytes of a body would reset the connection before the client has read the answer.
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    let _ = std::io::copy(&mut client.take(1 << 20), &mut std::io::sink());
    Ok(())
}

/// The first of the name's addresses that answers, all within one time.
fn dial(authority: &str) -> anyhow::Result<TcpStream> {
    let deadline = Instant::now() + DIAL;
    let mut last = None;
    for address in resolve(authority)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("no answer within {}s", DIAL.as_secs()), Into::into))
}

/// The resolver has no time limit of its own, so it works on a thread that nobody waits for any longer.
fn resolve(authority: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let (send, receive) = mpsc::channel();
    let name = authority.to_owned();
    std::thread::Builder::new().spawn(move || {
        // Nobody listens any more where it took too long.
        let _ = send.send(name.to_socket_addrs().map(Vec::from_iter));
    })?;
    let resolved = receive.recv_timeout(DIAL).with_context(|| format!("no name server answers for {authority}"))?;
    Ok(resolved?)
}
