//! A BGP speaker with many routes: bosun's or BIRD, between a feeder and a sink of ours, which both sides meet alike.
//!
//! A speaker has received everything once it answers a ROUTE-REFRESH that was sent behind the last route: messages are
//! dealt with in their order. It answers with the one route that it has itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bgp::attributes::{AsPath, NextHop};
use bgp::message::update::{announce, end_of_rib};
use bgp::message::{Capabilities, Dialect, Open, frame};
use bgp::{Attributes, Family, Message, Prefix};
use kernel::netlink::{Address, Kernel, LinkChange, Network, VethEnd};
use kernel::netns::Netns;
use net::speaker::{Config, Event, Origination};
use serde_json::{Value, json};

use crate::memory::pss_mb;

const SPEAKER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const FEEDER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const SINK: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 3);
const AS: u32 = 64512;
/// The route that the speaker has itself.
const OWN: &str = "198.51.100.0/24";
/// So many routes share their attributes, as in the Internet's table.
const SHARED: u32 = 10;
/// The longest wait for one more message.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    Bosun,
    Bird,
}

/// One round: seconds until all routes were received, and until all were passed on; then memory in MB.
///
/// # Errors
/// Where the speaker cannot be run, or does not do it.
pub fn measure(side: Side, count: u32) -> anyhow::Result<Value> {
    let (own, theirs) = (Netns::anonymous()?, Netns::anonymous()?);
    join(&own, &theirs)?;
    let folder = tempfile::tempdir()?;
    let [feeder, sink] = [FEEDER, SINK].map(|address| theirs.run(|| TcpListener::bind((address, 179))));
    let (feeder, sink) = (feeder??, sink??);
    let mut speaker = Running(own.run(|| start(side, folder.path()))??);
    let (mut feeder, mut sink) = (Peer::accept(&feeder, 65001)?, Peer::accept(&sink, 65002)?);
    // The sink is told what the speaker has itself, so its session stands.
    feeder.routes(1)?;
    sink.routes(1)?;
    let routes = routes(count);
    let begin = Instant::now();
    let passed_on = std::thread::spawn(move || sink.routes(count).map(|()| begin.elapsed()));
    feeder.stream.write_all(&routes)?;
    feeder.stream.write_all(&Message::RouteRefresh(Family::Ipv4).encode(&DIALECT))?;
    feeder.routes(1).context("the speaker does not answer after the last route")?;
    let received = begin.elapsed();
    let passed_on = passed_on.join().map_err(|_| anyhow::anyhow!("the sink panicked"))??;
    std::thread::sleep(Duration::from_secs(2));
    let memory = pss_mb(Path::new(&format!("/proc/{}", speaker.0.id()))).context("the speaker has ended")?;
    ensure!(speaker.0.try_wait()?.is_none(), "the speaker has ended");
    Ok(json!({
        "received_s": received.as_secs_f64(),
        "passed_on_s": passed_on.as_secs_f64(),
        "pss_mb": memory,
    }))
}

/// `rounds` rounds, and the median of each figure.
///
/// # Errors
/// As [`measure`].
pub fn rounds(side: Side, count: u32, rounds: usize) -> anyhow::Result<Value> {
    let all: Vec<Value> = (0..rounds).map(|_| measure(side, count)).collect::<anyhow::Result<_>>()?;
    let median = |key: &str| {
        let mut values: Vec<f64> = all.iter().filter_map(|round| round[key].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).map(|value| (value * 1000.0).round() / 1000.0)
    };
    Ok(json!({
        "received_s": median("received_s"),
        "passed_on_s": median("passed_on_s"),
        "pss_mb": median("pss_mb"),
    }))
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn join(own: &Netns, theirs: &Netns) -> anyhow::Result<()> {
    let settle = |addresses: &[Ipv4Addr]| -> anyhow::Result<()> {
        let mut network = Kernel::open()?;
        for name in ["lo", "eth0"] {
            let link = network.link(name)?.context("no link")?.index;
            network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() })?;
            for address in addresses.iter().filter(|_| name == "eth0") {
                network.add_address(Address { link, net: format!("{address}/24").parse()? })?;
            }
        }
        Ok(())
    };
    own.run(|| -> anyhow::Result<()> {
        let end = VethEnd { name: "eth0", ..VethEnd::default() };
        Kernel::open()?.add_veth(end, end, Some(theirs.as_fd()), None)?;
        settle(&[SPEAKER])
    })??;
    theirs.run(|| settle(&[FEEDER, SINK]))?
}

fn start(side: Side, folder: &Path) -> anyhow::Result<Child> {
    match side {
        Side::Bosun => {
            let program = std::env::current_exe()?;
            Command::new(&program).arg("bgp-speaker").spawn().with_context(|| format!("run {}", program.display()))
        }
        Side::Bird => {
            let config = folder.join("bird.conf");
            std::fs::write(&config, bird_config())?;
            let mut bird = Command::new("bird");
            bird.arg("-f").arg("-c").arg(&config).arg("-s").arg(folder.join("ctl")).stderr(Stdio::inherit());
            bird.spawn().context("run bird (package bird2)")
        }
    }
}

fn bird_config() -> String {
    let peer = |name: &str, address, asn, export: &str| {
        format!(
            "protocol bgp {name} {{ local {SPEAKER} as {AS}; neighbor {address} as {asn}; connect delay time 1;
             ipv4 {{ import all; export {export}; next hop self; }}; }}\n"
        )
    };
    format!(
        "router id {SPEAKER};\nprotocol device {{ }}\nprotocol static {{ ipv4; route {OWN} blackhole; }}\n{}{}",
        peer("feeder", FEEDER, 65001, "where source = RTS_STATIC"),
        peer("sink", SINK, 65002, "all")
    )
}

/// Runs bosun's speaker until it is ended, in a process like `bosun net`: two threads, two pools of memory, and freed memory
/// given back, which `bosun` does every 15 s.
///
/// # Errors
/// Where it cannot begin.
pub fn speaker() -> anyhow::Result<Value> {
    kernel::process::few_pools();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::spawn(async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                kernel::process::give_memory_back();
            }
        });
        speak().await
    })
}

async fn speak() -> anyhow::Result<Value> {
    let own =
        json!([{"exportV4": [{"cidr": OWN, "matchOperator": "Equal", "action": "Accept"}, {"action": "Reject"}]}]);
    let config: Config = serde_json::from_value(json!({"asNumber": AS, "routerId": SPEAKER, "peers": [
        {"name": "feeder", "peerIP": FEEDER, "asNumber": 65001, "families": ["IPv4"], "filters": own},
        {"name": "sink", "peerIP": SINK, "asNumber": 65002, "families": ["IPv4"]},
    ]}))?;
    let (handle, mut events) = net::speaker::start(config, net::speaker::Predecessor::None).await?;
    handle.originate(&[Origination { prefix: OWN.parse()?, next_hop: None, communities: Vec::new() }]);
    // BIRD puts nothing into the kernel here either.
    while let Some(event) = events.recv().await {
        drop::<Event>(event);
    }
    Ok(json!({}))
}

const DIALECT: Dialect =
    Dialect { four_octet_as: true, extended_next_hop: false, extended_message: false, external: true };

/// A session, from the side that is no speaker but sends and counts.
struct Peer {
    stream: TcpStream,
    input: Vec<u8>,
    /// Announced, and not yet asked for.
    met: u32,
}

impl Peer {
    fn accept(listener: &TcpListener, asn: u32) -> anyhow::Result<Self> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let address = match listener.local_addr()?.ip() {
            std::net::IpAddr::V4(address) => address,
            std::net::IpAddr::V6(address) => anyhow::bail!("{address} is not IPv4"),
        };
        let capabilities =
            Capabilities { families: vec![Family::Ipv4], route_refresh: true, ..Capabilities::default() };
        let open = Open::new(asn, 240, address, capabilities);
        let mut peer = Self { stream, input: Vec::new(), met: 0 };
        for message in [Message::Open(open), Message::Keepalive] {
            peer.stream.write_all(&message.encode(&Dialect::BEFORE))?;
        }
        Ok(peer)
    }

    /// Reads until so many more prefixes were announced.
    fn routes(&mut self, count: u32) -> anyhow::Result<()> {
        let mut chunk = vec![0; 256 * 1024];
        while self.met < count {
            let read = self.stream.read(&mut chunk).context("read from the speaker")?;
            ensure!(read > 0, "the speaker closed the session after {} prefixes", self.met);
            self.input.extend_from_slice(&chunk[..read]);
            self.messages()?;
        }
        self.met -= count;
        Ok(())
    }

    fn messages(&mut self) -> anyhow::Result<()> {
        let mut at = 0;
        let refused = |told| anyhow::anyhow!("a malformed message: {told}");
        while let Some(length) = frame(&self.input[at..], &DIALECT).map_err(refused)? {
            let Some(bytes) = self.input.get(at..at + length) else { break };
            match Message::decode(bytes, &DIALECT).map_err(refused)? {
                Message::Update(update) => {
                    let announced: usize = update.announced.iter().map(|one| one.prefixes.len()).sum();
                    self.met += u32::try_from(announced)?;
                }
                Message::Notification(told) => anyhow::bail!("the speaker said {told}"),
                _ => {}
            }
            at += length;
        }
        self.input.drain(..at);
        Ok(())
    }
}

/// UPDATEs of `count` prefixes and End-of-RIB.
fn routes(count: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let prefixes: Vec<Prefix> =
        (0..count).filter_map(|index| Prefix::new(Ipv4Addr::from(0x0b00_0000 + (index << 8)).into(), 24)).collect();
    for (index, group) in (0_u32..).zip(prefixes.chunks(SHARED as usize)) {
        // Paths of four hops, each another.
        let path = AsPath::sequence(&[65001, 100_000 + index % 5000, 200_000 + index % 977, 300_000 + index]);
        let attributes = Attributes { as_path: path, ..Attributes::new(NextHop::of(FEEDER.into())) };
        let _fits = announce(&attributes, group, &DIALECT, &mut out);
    }
    end_of_rib(Family::Ipv4, &mut out);
    out
}
