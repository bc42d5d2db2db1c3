//! The echo program: an HTTP server that answers who it is and what it was asked, for demos and tests, and
//! the few tools that a test wants inside a container. It needs nothing but the kernel.
//!
//!     echo                  serve; PORT (8080), UDP_PORT (none)
//!     echo get URL          print what http://HOST[:PORT]/PATH answers; exit 1 unless 2xx
//!     echo sleep SECONDS    echo print WORD...    echo cat [FILE]    echo env    echo exit CODE
//!
//! Knobs of the server: START_DELAY_MS before it listens, LATENCY_MS before each answer (`?delay=MS` for one),
//! READY=false to start unready, READY_FILE to be ready only while that file exists, EXIT_AFTER seconds with
//! EXIT_CODE, TERM_DELAY_MS between SIGTERM and the end.
//!
//! Paths: `/` and any other answer JSON; `/healthz` 200; `/readyz` 200 or 503; `POST /ready?value=BOOL`;
//! `POST /exit?code=N`; `POST /latency?value=MS`.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

static READY: AtomicBool = AtomicBool::new(true);
static LATENCY_MS: AtomicU64 = AtomicU64::new(0);
/// 0 until SIGTERM or SIGINT came.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        [] | ["serve"] => serve(),
        ["get", url] => get(url),
        ["sleep", seconds] => sleep(seconds),
        ["print", words @ ..] => writeln!(io::stdout(), "{}", words.join(" ")),
        ["cat"] => io::copy(&mut io::stdin(), &mut io::stdout()).map(drop),
        ["cat", file] => std::fs::File::open(file).and_then(|mut f| io::copy(&mut f, &mut io::stdout())).map(drop),
        ["env"] => std::env::vars().try_for_each(|(name, value)| writeln!(io::stdout(), "{name}={value}")),
        ["exit", code] => exit(code.parse().unwrap_or(2)),
        _ => {
            eprintln!("usage: echo [serve | get URL | sleep SECONDS | print WORD... | cat [FILE] | env | exit CODE]");
            exit(2);
        }
    };
    if let Err(error) = done {
        eprintln!("echo {}: {error}", words.join(" "));
        exit(1);
    }
}

// --- signals: as PID 1 a program without handlers cannot be asked to end ------------------------------------------------

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
}

extern "C" fn remember(number: i32) {
    SIGNAL.store(number, SeqCst);
}

fn end_at_signals() {
    for number in [SIGINT, SIGTERM] {
        // SAFETY: the handler only stores into an atomic.
        unsafe { signal(number, remember as *const () as usize) };
    }
    std::thread::spawn(|| {
        while SIGNAL.load(SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("signal {}", SIGNAL.load(SeqCst));
        std::thread::sleep(Duration::from_millis(number_of("TERM_DELAY_MS").unwrap_or(0)));
        exit(0);
    });
}

fn sleep(seconds: &str) -> io::Result<()> {
    end_at_signals();
    let seconds: f64 = seconds.parse().map_err(io::Error::other)?;
    std::thread::sleep(Duration::try_from_secs_f64(seconds).map_err(io::Error::other)?);
    Ok(())
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

// --- the server -----------------------------------------------------------------------------------------------------------

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

fn serve() -> io::Result<()> {
    end_at_signals();
    READY.store(std::env::var("READY").as_deref() != Ok("false"), SeqCst);
    LATENCY_MS.store(number_of("LATENCY_MS").unwrap_or(0), SeqCst);
    if let Some(seconds) = number_of("EXIT_AFTER") {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(seconds));
            exit(number_of("EXIT_CODE").unwrap_or(0) as i32);
        });
    }
    std::thread::sleep(Duration::from_millis(number_of("START_DELAY_MS").unwrap_or(0)));
    if let Some(port) = number_of("UDP_PORT") {
        let socket = bound(port, |address| UdpSocket::bind(address))?;
        std::thread::spawn(move || answer_datagrams(&socket));
    }
    let port = number_of("PORT").unwrap_or(8080);
    let listener = bound(port, |address| TcpListener::bind(address))?;
    println!("listening on {port}");
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || drop(converse(&stream)));
    }
    Ok(())
}

/// On all addresses of both families where the kernel has both.
fn bound<T>(port: u64, bind: impl Fn((&'static str, u16)) -> io::Result<T>) -> io::Result<T> {
    let port = u16::try_from(port).map_err(io::Error::other)?;
    bind(("::", port)).or_else(|_| bind(("0.0.0.0", port)))
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let text = format!("{} {}\n", pod_name(), String::from_utf8_lossy(&buffer[..length]).trim_end());
        drop(socket.send_to(text.as_bytes(), from));
    }
}

fn converse(stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        println!("{} {} from {}", request.method, request.path, peer(stream));
        let asked = request.query.get("delay").and_then(|ms| ms.parse().ok());
        std::thread::sleep(Duration::from_millis(asked.unwrap_or_else(|| LATENCY_MS.load(SeqCst))));
        let (status, body) = answer(&request, &peer(stream));
        let kind = if body.starts_with('{') { "application/json" } else { "text/plain" };
        let close = request.headers.iter().any(|(n, v)| n == "connection" && v.eq_ignore_ascii_case("close"));
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        let connection = if close { "Connection: close\r\n" } else { "" };
        let mut out = stream;
        out.write_all(format!("{head}{connection}\r\n{body}").as_bytes())?;
        if close {
            break;
        }
    }
    Ok(())
}

fn peer(stream: &TcpStream) -> String {
    stream.peer_addr().map(|address| address.to_string()).unwrap_or_default()
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.take(16 << 10).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        reader.take(16 << 10).read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = request.headers.iter().find(|(name, _)| name == "content-length");
    let length = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    reader.take(u64::min(length, 1 << 20)).read_to_end(&mut request.body)?;
    Ok(Some(request))
}

fn answer(request: &Request, from: &str) -> (&'static str, String) {
    let value = request.query.get("value").map(String::as_str);
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/healthz") => ("200 OK", "ok\n".into()),
        ("GET", "/readyz") if is_ready() => ("200 OK", "ok\n".into()),
        ("GET", "/readyz") => ("503 Service Unavailable", "not ready\n".into()),
        ("POST", "/ready") => set(value.and_then(|v| v.parse().ok()), &READY, AtomicBool::store),
        ("POST", "/latency") => set(value.and_then(|v| v.parse().ok()), &LATENCY_MS, AtomicU64::store),
        ("POST", "/exit") => exit(request.query.get("code").and_then(|code| code.parse().ok()).unwrap_or(0)),
        _ => ("200 OK", description(request, from)),
    }
}

fn set<T, A>(value: Option<T>, knob: &A, store: fn(&A, T, std::sync::atomic::Ordering)) -> (&'static str, String) {
    match value {
        Some(value) => {
            store(knob, value, SeqCst);
            ("200 OK", "ok\n".into())
        }
        None => ("400 Bad Request", "want ?value=\n".into()),
    }
}

fn is_ready() -> bool {
    let file = std::env::var_os("READY_FILE");
    READY.load(SeqCst) && file.is_none_or(|file| std::path::Path::new(&file).exists())
}

fn pod_name() -> String {
    let named = std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME"));
    named.or_else(|_| std::fs::read_to_string("/etc/hostname").map(|name| name.trim().to_owned())).unwrap_or_default()
}

fn description(request: &Request, from: &str) -> String {
    let headers = object(request.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let variables: Vec<(String, String)> = std::env::vars().collect();
    let variables = object(variables.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    format!(
        "{{\"pod\":{},\"method\":{},\"path\":{},\"from\":{},\"headers\":{headers},\"body\":{},\"env\":{variables}}}\n",
        quoted(&pod_name()),
        quoted(&request.method),
        quoted(&request.path),
        quoted(from),
        quoted(&String::from_utf8_lossy(&request.body)),
    )
}

fn object<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let pairs: Vec<String> = pairs.map(|(name, value)| format!("{}:{}", quoted(name), quoted(value))).collect();
    format!("{{{}}}", pairs.join(","))
}

/// A JSON string (RFC 8259, section 7).
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

// --- the client -----------------------------------------------------------------------------------------------------------

fn get(url: &str) -> io::Result<()> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) && host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut stream = connect(&address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    io::stdout().write_all(body.as_bytes())?;
    match head.split_whitespace().nth(1) {
        Some(status) if status.starts_with('2') => Ok(()),
        status => Err(io::Error::other(format!("status {}", status.unwrap_or("missing")))),
    }
}

/// Addresses only where the name is one: a static glibc cannot resolve names without the shared one.
fn connect(address: &str) -> io::Result<TcpStream> {
    let address: std::net::SocketAddr = address.parse().map_err(io::Error::other)?;
    TcpStream::connect_timeout(&address, Duration::from_secs(5))
}
