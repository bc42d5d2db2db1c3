//! Mode ipvs, on a Linux kernel in user mode that has IPVS: see hack/uml. This program starts itself again in there.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Once};

use kernel::ipvs::{Ipvs, Kernel, Manner, Server, Timeouts};
use kernel::netns::Netns;
use tests::api_server::Objects;
use tests::bed::{checkout, output, text};
use tests::runner::{Case, run, verdict};

use super::bed::{Bed, Side, serve};
use super::probe::{Fate, Protocol, fate, http};
use super::{Question, SearchPath, compare, lacks, path, table};

/// Says that this process is the one inside, and which case it is to tell.
const GUEST: &str = "BOSUN_TEST_PROXY_GUEST";

pub fn is_guest() -> bool {
    std::env::var_os(GUEST).is_some()
}

/// Not in each run: both proxies on one slow CPU take their time.
pub fn ipvs() {
    if std::env::var_os("BOSUN_LONG").is_none() {
        return println!("SKIPPED: proxy-ipvs: takes minutes; hack/test --long runs it");
    }
    match lacks() {
        Some(why) => println!("SKIPPED: proxy-ipvs: {why}"),
        None => start("proxy-ipvs", "900"),
    }
}

/// What of IPVS is the host's, without kube-proxy.
pub fn ipvs_host() {
    if !kernel::process::has_capability(21).unwrap_or(false) {
        return println!("SKIPPED: proxy-ipvs-host: needs root");
    }
    start("proxy-ipvs-host", "300");
}

fn start(case: &str, limit: &str) {
    let installed = output(checkout().join("hack/packages"), &["test", "uml"]);
    if !installed.status.success() {
        return println!("SKIPPED: {case}: no machine with IPVS: {}", text(&installed.stderr).trim());
    }
    let mut guest = Command::new(checkout().join("hack/uml"));
    guest.args(["--memory", "2G", "--limit", limit]).arg(std::env::current_exe().unwrap()).env(GUEST, case);
    let status = guest.status().unwrap();
    assert!(status.success(), "in the guest: {status}");
}

/// What is told in the guest.
pub fn inside() -> ExitCode {
    for module in ["bridge", "veth", "dummy", "ip_vs", "ip_vs_rr"] {
        let loaded = output("modprobe", &[module]);
        assert!(loaded.status.success(), "modprobe {module}: {}", text(&loaded.stderr));
    }
    let path = path(Some("xtables-legacy-multi"));
    verdict(&run(&[match std::env::var(GUEST).unwrap().as_str() {
        "proxy-ipvs-host" => Case::new("proxy-ipvs-host", || host(&path)),
        _ => Case::new("proxy-ipvs", || compare("ipvs", &path)),
    }]))
}

/// Rows that a machine in user mode, which is slow, sees change.
pub const IN_GUEST: [&str; 4] = ["plain", "none", "local-far", "sticky"];

/// Whether a machine in user mode asks this too.
pub fn is_worth_the_time((row, place, to, protocol): &Question<'_>) -> bool {
    let udp = ["plain", "local-near"].contains(&row.name);
    let far = ["10.244.1.1", "127.0.0.1"].iter().all(|ip| to.ip().to_string() != **ip);
    ["client", "node1", "a", "c"].contains(place) && far && (udp || *protocol == Protocol::Tcp)
}

/// Somebody else's virtual server in an excluded range, and one in none.
const EXCLUDED: &str = "192.0.2.70:80";
const FORSAKEN: &str = "172.16.0.1:80";

/// The life of a proxy in mode ipvs on one host: what it leaves alone, which ports it opens, and that it goes without a
/// trace.
fn host(path: &SearchPath) {
    let folder = tempfile::tempdir().unwrap();
    let mut bed = Bed::new(Side::Bosun, folder.path());
    bed.ipvs = "excludeCIDRs: [192.0.2.64/26], tcpTimeout: 77s, udpTimeout: 33s".into();
    let objects = Arc::new(Objects::default());
    table::nodes().into_iter().for_each(|node| objects.put("nodes", node));
    let wanted = ["plain", "node-port", "local-near", "both-families", "external"];
    for row in table::first().iter().filter(|row| wanted.contains(&row.name)) {
        objects.put("services", row.service());
        row.slices().into_iter().for_each(|slice| objects.put("endpointslices", slice));
    }
    let in_node = |bed: &Bed, work: &(dyn Fn(&mut Kernel) + Sync)| {
        bed.place("node1").run(|| work(&mut Kernel::open().unwrap())).unwrap();
    };
    let foreign = |address: &str| Server { protocol: 6, address: address.parse().unwrap() };
    let mut kept = traces(&bed);
    assert!(kept.is_empty(), "a fresh host: {kept:?}");
    in_node(&bed, &|ipvs| {
        for address in [EXCLUDED, FORSAKEN] {
            ipvs.set_server(&foreign(address), &Manner { scheduler: "rr".into(), persistence: None }).unwrap();
        }
    });
    kept.push(format!("TCP {EXCLUDED}"));

    for _ in 0..2 {
        bed.start(&objects, "ipvs", &path.text);
        serves(&bed);
        opens_nothing(&bed);
        let found = traces(&bed);
        assert!(found.contains(&kept[0]) && !found.contains(&format!("TCP {FORSAKEN}")), "{found:?}");
        in_node(&bed, &|ipvs| {
            let timeouts = ipvs.timeouts().unwrap();
            assert_eq!((timeouts.tcp, timeouts.udp), (77, 33));
            ipvs.set_timeouts(&Timeouts { tcp: 900, ..Timeouts::default() }).unwrap();
        });
        bed.stop();
        bed.start(&objects, "iptables", &path.text);
        serves(&bed);
        let found: Vec<String> = traces(&bed).into_iter().filter(|trace| !trace.contains("BOSUN-")).collect();
        assert_eq!(found, kept, "of mode ipvs, in mode iptables");
        bed.stop();
    }
    bed.start(&objects, "ipvs", &path.text);
    bed.stop();
    bed.clean("node1", "ipvs", &path.text);
    assert_eq!(traces(&bed), kept, "after --cleanup");
}

/// What a proxy may have left on node1: rules, chains, sets, virtual servers, addresses of the link.
fn traces(bed: &Bed) -> Vec<String> {
    let is_rule = |line: &&str| line.starts_with("-A") || (line.starts_with(':') && line.contains(" - ["));
    let is_other = |line: &&str| ["TCP ", "UDP ", "bosun-"].iter().any(|sign| line.starts_with(sign));
    let rules = bed.rules("node1");
    let lines = rules.lines().filter(|line| is_rule(line) || is_other(line) || line.contains("kube-ipvs0"));
    lines.map(str::to_owned).collect()
}

/// A Service's address leads to its endpoints.
fn serves(bed: &Bed) {
    for (place, to) in [("client", "10.96.0.11:80"), ("a", "10.96.0.11:80"), ("client", "192.0.2.1:30013")] {
        let to: SocketAddr = to.parse().unwrap();
        let met = bed.place(place).run(|| fate(to, Protocol::Tcp)).unwrap();
        assert!(met.iter().all(|text| text.contains(" sees ")) && met.len() > 1, "{place} to {to}: {met:?}");
    }
}

const VIPS: [&str; 4] = ["10.96.0.11", "203.0.113.15", "198.51.100.33", "fd00:96::32"];

/// What listens on the host does not answer at Services' addresses, on ports that are no Service's.
fn opens_nothing(bed: &Bed) {
    static SERVED: Once = Once::new();
    SERVED.call_once(|| {
        serve(bed.place("node1"), "host", 9999);
        VIPS.iter().for_each(|ip| echo(bed.place("node1"), SocketAddr::new(ip.parse().unwrap(), 9998)));
    });
    let ask = |place: &str, ip: &str, (protocol, port): (Protocol, u16)| -> Fate {
        let to = SocketAddr::new(ip.parse().unwrap(), port);
        bed.place(place).run(|| fate(to, protocol)).unwrap()
    };
    for place in ["client", "a", "c", "node1"] {
        let own = ask(place, "192.0.2.1", (Protocol::Tcp, 9999));
        assert!(own.iter().all(|text| text.starts_with("host sees ")), "{place} to node1: {own:?}");
        for (ip, what) in VIPS.iter().flat_map(|ip| [(ip, (Protocol::Tcp, 9999)), (ip, (Protocol::Udp, 9998))]) {
            let met = ask(place, ip, what);
            assert!(!met.iter().any(|text| text.contains("host")), "{place} to {ip} {what:?}: {met:?}");
        }
    }
    // But load balancers may ask for the health of what they lead to.
    let (status, _) = http(bed.place("client"), "203.0.113.15:31015".parse().unwrap(), "/").unwrap();
    assert_eq!(status, 200);
}

/// Answers on UDP at one address, which a wildcard socket would not answer from.
fn echo(netns: &Netns, at: SocketAddr) {
    let socket = netns.run(|| UdpSocket::bind(at).unwrap()).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(b"host", from);
        }
    });
}
