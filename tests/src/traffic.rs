//! Traffic between pods, by threads of the test: a socket that was made inside a pod's network namespace is the pod's.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::netns::Netns;

/// Whoever waits longer counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two requests, or two pieces of a transfer: the machine has other work too.
const PAUSE: Duration = Duration::from_millis(10);
const PIECE: usize = 128 << 10;

/// What became of one kind of traffic.
#[derive(Debug)]
pub struct Tally {
    pub what: String,
    /// Requests that were answered, or pieces that arrived.
    pub done: usize,
    /// The longest that one took.
    pub slowest: Duration,
    /// What failed, in words: nothing shall.
    pub failed: Vec<String>,
}

/// All that goes on until it is ended.
#[derive(Default)]
pub struct Traffic {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Traffic {
    /// One connection that carries data all the time, from a pod to an address of another, and each byte is looked at.
    pub fn transfer(&mut self, what: &str, from: &Netns, (to, address): (&Netns, IpAddr)) {
        let listener = to.run(|| TcpListener::bind((address, 0))).expect("the pod has a namespace");
        let listener = listener.expect("the pod listens");
        let port = listener.local_addr().expect("it is bound").port();
        let mut stream = from.connect(&[(address, port).into()], PATIENCE).expect("the one pod reaches the other");
        let (mut sink, _) = listener.accept().expect("it was connected to");
        sink.set_read_timeout(Some(PATIENCE)).expect("a socket takes a time-out");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket takes a time-out");
        let over = Arc::clone(&self.over);
        std::thread::spawn(move || {
            for number in (0..=u8::MAX).cycle() {
                // The sink says it where this fails.
                if over.load(Ordering::Relaxed) || stream.write_all(&vec![number; PIECE]).is_err() {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
        });
        let (mut expected, mut piece) = (0_u8, vec![0; PIECE]);
        self.repeat(what, move || {
            sink.read_exact(&mut piece)?;
            if piece.iter().any(|byte| *byte != expected) {
                return Err(io::Error::other("other bytes than were sent"));
            }
            expected = expected.wrapping_add(1);
            Ok(Duration::ZERO)
        });
    }

    /// Request after request to a server of the echo program over one connection.
    pub fn session(&mut self, what: &str, from: &Netns, to: SocketAddr) {
        let mut stream = from.connect(&[to], PATIENCE).expect("the server takes a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a time-out");
        self.repeat(what, move || ask(&mut stream, "keep-alive").map(|()| PAUSE));
    }

    /// A new connection for each request.
    pub fn connections(&mut self, what: &str, from: &Netns, to: SocketAddr) {
        let (inside, outside) = std::sync::mpsc::sync_channel(0);
        let over = Arc::clone(&self.over);
        let what = what.to_owned();
        let own = from.run(Netns::current).expect("the namespace is there").expect("/proc is mounted");
        self.threads.push(std::thread::spawn(move || {
            // A thread that has entered connects without a thread for each connection.
            inside.send(own.enter().is_ok()).expect("it is waited for");
            work(what, &over, move || {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                ask(&mut stream, "close").map(|()| PAUSE)
            })
        }));
        assert_eq!(outside.recv(), Ok(true), "the thread enters the namespace");
    }

    fn repeat(&mut self, what: &str, once: impl FnMut() -> io::Result<Duration> + Send + 'static) {
        let (what, over) = (what.to_owned(), Arc::clone(&self.over));
        self.threads.push(std::thread::spawn(move || work(what, &over, once)));
    }

    /// Ends it.
    ///
    /// # Panics
    /// Where anything failed, or something did not go on at all.
    pub fn end(self) -> Vec<Tally> {
        self.over.store(true, Ordering::Relaxed);
        let tallies: Vec<Tally> = self.threads.into_iter().map(|one| one.join().expect("no thread panics")).collect();
        for Tally { what, done, slowest, .. } in &tallies {
            println!("{what}: {done}, the slowest {} ms", slowest.as_millis());
        }
        let bad: Vec<&Tally> = tallies.iter().filter(|one| one.done < 10 || !one.failed.is_empty()).collect();
        assert!(bad.is_empty(), "{bad:#?}");
        tallies
    }
}

/// Does it until it is over, or until it has failed some times.
fn work(what: String, over: &AtomicBool, mut once: impl FnMut() -> io::Result<Duration>) -> Tally {
    let begin = Instant::now();
    let mut tally = Tally { what, done: 0, slowest: Duration::ZERO, failed: Vec::new() };
    while !over.load(Ordering::Relaxed) && tally.failed.len() < 5 {
        let asked = Instant::now();
        match once() {
            Ok(pause) => {
                tally.done += 1;
                tally.slowest = tally.slowest.max(asked.elapsed());
                std::thread::sleep(pause);
            }
            // The other end of a transfer ends when it is over.
            Err(_) if over.load(Ordering::Relaxed) => {}
            Err(error) => {
                tally.failed.push(format!("after {:.1} s: {error}", begin.elapsed().as_secs_f32()));
                std::thread::sleep(PAUSE);
            }
        }
    }
    tally
}

fn ask(stream: &mut TcpStream, connection: &str) -> io::Result<()> {
    stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: echo\r\nConnection: {connection}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 512];
    while !answer.ends_with(b"ok\n") {
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            size => answer.extend_from_slice(&chunk[..size]),
        }
    }
    match answer.starts_with(b"HTTP/1.1 200 ") {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())),
    }
}
