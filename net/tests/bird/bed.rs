//! Two namespaces on one link: bosun's speaker in the one, BIRD in the other. Nothing outlives the test: the namespaces
//! have no names, the files are in a folder that goes, the processes are ended.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kernel::netlink::{Address, Kernel, LinkChange, Network, VethEnd};
use kernel::netns::Netns;
use kernel::sysctl;
use serde_json::{Value, json};

/// The environment that makes the test binary a speaker.
pub const SPEAKER: &str = "BOSUN_TEST_SPEAKER";
pub const OURS: &str = "10.99.0.1";
/// For a second speaker of ours, whose port is another.
pub const OTHER: &str = "10.99.0.3";
pub const OTHER_PORT: u16 = 1179;
pub const OURS6: &str = "fd99::1";
pub const BIRDS: &str = "10.99.0.2";
pub const BIRDS6: &str = "fd99::2";

pub struct Bed {
    pub ours: Netns,
    pub birds: Netns,
    folder: tempfile::TempDir,
    files: Cell<u32>,
}

impl Bed {
    /// `None`, said aloud, where the test cannot be run.
    pub fn new(what: &str) -> Option<Self> {
        if Command::new("bird").arg("--version").output().is_err() {
            eprintln!("SKIPPED {what}: no BIRD (package bird2)");
            return None;
        }
        let (Ok(ours), Ok(birds)) = (Netns::anonymous(), Netns::anonymous()) else {
            eprintln!("SKIPPED {what}: needs root");
            return None;
        };
        join(&ours, &birds);
        Some(Self { ours, birds, folder: tempfile::tempdir().unwrap(), files: Cell::new(0) })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.files.set(self.files.get() + 1);
        self.folder.path().join(format!("{name}-{}", self.files.get()))
    }

    /// BIRD with `config` beneath the usual.
    pub fn bird(&self, config: &str) -> Bird {
        let (file, socket) = (self.path("conf"), self.path("ctl"));
        let head = format!("log stderr all;\nrouter id {BIRDS};\nprotocol device {{ }}\nprotocol bfd {{ }}\n");
        std::fs::write(&file, head + config).unwrap();
        let mut bird = Bird { netns: Netns::open(self.birds_path()).unwrap(), file, socket, child: None };
        bird.start(false);
        bird
    }

    fn birds_path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.birds.as_fd().as_raw_fd())
    }

    /// Our speaker with this configuration.
    pub fn speaker(&self, config: &Value, restarting: bool) -> Speaker {
        self.start(&json!({"config": config, "restarting": restarting}))
    }

    /// Our speaker after one that had sessions with these.
    pub fn successor(&self, config: &Value, sessions: &[&str]) -> Speaker {
        self.start(&json!({"config": config, "restarting": true, "sessions": sessions}))
    }

    fn start(&self, how: &Value) -> Speaker {
        let spawn = || {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "speaker_process", "--nocapture"])
                .env(SPEAKER, "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut child = self.ours.run(spawn).unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut speaker = Speaker { child, input, output };
        speaker.ask(&json!({"start": how}));
        speaker
    }

    /// Cuts or mends the link, without a word to either side.
    pub fn cut(&self, cut: bool) {
        let change = || {
            let mut network = Kernel::open().unwrap();
            let link = network.link("eth0").unwrap().unwrap().index;
            network.change_link(link, LinkChange { up: Some(!cut), ..LinkChange::default() }).unwrap();
        };
        self.birds.run(change).unwrap();
    }
}

fn join(ours: &Netns, birds: &Netns) {
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let settle = |addresses: &[&str]| {
        let mut network = Kernel::open().unwrap();
        for (name, addresses) in [("lo", &[][..]), ("eth0", addresses)] {
            let link = network.link(name).unwrap().unwrap().index;
            network.change_link(link, up).unwrap();
            for address in addresses {
                let length = if address.contains(':') { 64 } else { 24 };
                network.add_address(Address { link, net: format!("{address}/{length}").parse().unwrap() }).unwrap();
            }
        }
    };
    // Addresses are used at once. A link that goes down and up keeps them.
    let prepare = || {
        for (name, value) in [("accept_dad", "0"), ("dad_transmits", "0"), ("keep_addr_on_down", "1")] {
            sysctl::write(&format!("net/ipv6/conf/default/{name}"), value).unwrap();
            sysctl::write(&format!("net/ipv6/conf/all/{name}"), value).unwrap();
        }
    };
    birds.run(prepare).unwrap();
    ours.run(|| {
        prepare();
        let end = VethEnd { name: "eth0", ..VethEnd::default() };
        Kernel::open().unwrap().add_veth(end, end, Some(birds.as_fd()), None).unwrap();
        settle(&[OURS, OTHER, OURS6]);
    })
    .unwrap();
    birds.run(|| settle(&[BIRDS, BIRDS6])).unwrap();
}

pub struct Bird {
    netns: Netns,
    file: std::path::PathBuf,
    socket: std::path::PathBuf,
    child: Option<Child>,
}

impl Bird {
    pub fn start(&mut self, restarting: bool) {
        let spawn = || {
            let mut command = Command::new("bird");
            command.arg("-f").arg("-c").arg(&self.file).arg("-s").arg(&self.socket);
            if restarting {
                command.arg("-R");
            }
            command.stderr(Stdio::from(log(&self.file))).spawn().unwrap()
        };
        let child = self.netns.run(spawn).unwrap();
        self.child = Some(child);
        eventually("BIRD listens to birdc", || self.ask("show status").contains("up and running"));
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn ask(&self, words: &str) -> String {
        let output = Command::new("birdc").arg("-s").arg(&self.socket).args(words.split(' ')).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What BIRD wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file.with_extension("log")).unwrap_or_default()
    }

    /// How many routes it has that protocol `ours` told.
    pub fn learned(&self) -> usize {
        let text = self.ask("show route count protocol ours");
        text.lines().filter_map(|line| line.split(' ').next()?.parse::<usize>().ok()).sum()
    }
}

fn log(file: &Path) -> std::fs::File {
    std::fs::OpenOptions::new().create(true).append(true).open(file.with_extension("log")).unwrap()
}

impl Drop for Bird {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("BIRD said last:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        self.kill();
    }
}

/// Our speaker in a process of its own, which can be killed.
pub struct Speaker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Speaker {
    pub fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.input, "{request}").unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the speaker has ended");
            // The harness of the test binary has its own to say.
            if let Some((_, answer)) = line.split_once("answer ") {
                return serde_json::from_str(answer).unwrap();
            }
        }
    }

    /// The status of the only peer.
    pub fn peer(&mut self) -> Value {
        self.ask(&json!("peers"))[0].clone()
    }

    /// What the kernel would have: next hops by prefix, and whether the table was said to be complete.
    pub fn table(&mut self) -> Value {
        self.ask(&json!("table"))
    }

    pub fn hops(&mut self, prefix: &str) -> Value {
        self.table()["routes"][prefix].clone()
    }

    pub fn originate(&mut self, prefixes: &[&str]) {
        self.ask(&json!({"originate": {"prefixes": prefixes}}));
    }

    pub fn established(&mut self) {
        eventually_with("the session stands", || {
            let peer = self.peer();
            (peer["state"] == "Established", peer.to_string())
        });
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    eventually_with(what, || (holds(), String::new()));
}

/// Waits up to a minute; `holds` also says how things are.
pub fn eventually_with(what: &str, mut holds: impl FnMut() -> (bool, String)) {
    let begin = Instant::now();
    loop {
        let (met, state) = holds();
        if met {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "not in a minute: {what} {state}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A BGP protocol of BIRD's named `ours`, by IPv4, with what is usual and `more`.
pub fn bgp(local_as: u32, peer_as: u32, more: &str) -> String {
    format!(
        "protocol bgp ours {{
            local {BIRDS} as {local_as}; neighbor {OURS} as {peer_as};
            direct; connect retry time 1; connect delay time 1; error wait time 1, 2; error forget time 1;
            ipv4 {{ import all; export all; next hop self; }};
            ipv6 {{ import all; export all; next hop self; }};
            {more}
        }}\n"
    )
}

/// Static routes of BIRD's.
pub fn routes<'a>(prefixes: impl IntoIterator<Item = &'a str>) -> String {
    let mut families = [String::new(), String::new()];
    for prefix in prefixes {
        writeln!(families[usize::from(prefix.contains(':'))], "route {prefix} blackhole;").unwrap();
    }
    let [four, six] = families;
    format!("protocol static four {{ ipv4; {four} }}\nprotocol static six {{ ipv6; {six} }}\n")
}

/// The configuration of the second speaker, with one peer.
pub fn other(asn: u32, peer_ip: &str) -> Value {
    let peer = json!({"name": "only", "peerIP": peer_ip, "asNumber": asn, "sourceAddress": OTHER});
    json!({"asNumber": asn, "routerId": OTHER, "listenPort": OTHER_PORT, "addresses": [OTHER], "peers": [peer]})
}

/// Our configuration with BIRD as the only peer.
pub fn ours(local_as: u32, peer_as: u32, more: Value) -> Value {
    let mut peer = json!({"name": "bird", "peerIP": BIRDS, "asNumber": peer_as});
    peer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"asNumber": local_as, "routerId": OURS, "addresses": [OURS, OURS6], "peers": [peer]})
}
