//! `bosun proxy` beside kube-proxy: the same Services and EndpointSlices to both, each on its own copy of a small network,
//! and the same connections from each place must meet the same fate, the same endpoints and the same source address.

mod api;
mod bed;
mod probe;
mod table;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::Objects;
use bed::{Bed, PLACES, Side};
use probe::{Fate, Protocol, fate};
use table::Row;
use tempfile::TempDir;
use tests::bed::{checkout, output, text};
use tests::runner::{Case, run, verdict};

pub fn peers() -> PathBuf {
    std::env::var_os("BOSUN_PEERS").map_or_else(|| "/var/cache/bosun/peers".into(), PathBuf::from)
}

pub fn nftables() {
    compare("nftables", &path(None));
}

pub fn iptables_nft() {
    compare("iptables", &path(Some("xtables-nft-multi")));
}

pub fn iptables_legacy() {
    compare("iptables", &path(Some("xtables-legacy-multi")));
}

/// Says that this process is the one inside a machine whose kernel has IPVS.
const GUEST: &str = "BOSUN_TEST_PROXY_GUEST";

pub fn is_guest() -> bool {
    std::env::var_os(GUEST).is_some()
}

/// On a Linux kernel in user mode: see hack/uml.
///
/// Not in each run yet: kube-proxy is late in so slow a machine, and what is then its fault and what ours is not settled.
pub fn ipvs() {
    if std::env::var_os("BOSUN_LONG").is_none() {
        return println!(
            "SKIPPED: proxy-ipvs: its differences from kube-proxy are not all explained; hack/test --long runs it"
        );
    }
    if let Some(why) = lacks() {
        return println!("SKIPPED: proxy-ipvs: {why}");
    }
    let installed = output(checkout().join("hack/packages"), &["test", "uml"]);
    if !installed.status.success() {
        return println!("SKIPPED: proxy-ipvs: no machine with IPVS: {}", text(&installed.stderr).trim());
    }
    let mut guest = Command::new(checkout().join("hack/uml"));
    guest.args(["--memory", "2G", "--limit", "900"]).arg(std::env::current_exe().unwrap()).env(GUEST, "1");
    let status = guest.status().unwrap();
    assert!(status.success(), "in the guest: {status}");
}

/// What is told in the guest.
pub fn inside() -> ExitCode {
    for module in ["bridge", "veth", "dummy", "ip_vs", "ip_vs_rr"] {
        let loaded = output("modprobe", &[module]);
        assert!(loaded.status.success(), "modprobe {module}: {}", text(&loaded.stderr));
    }
    verdict(&run(&[Case::new("proxy-ipvs", || compare("ipvs", &path(Some("xtables-legacy-multi"))))]))
}

/// PATH with `iptables` and its kin of one variant before all others.
struct SearchPath {
    text: String,
    /// Goes with this value.
    _links: Option<TempDir>,
}

fn path(multi: Option<&str>) -> SearchPath {
    let text = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let Some(multi) = multi else { return SearchPath { text, _links: None } };
    let links = tempfile::tempdir().unwrap();
    for base in ["iptables", "ip6tables"] {
        for action in ["", "-save", "-restore"] {
            symlink(format!("/usr/sbin/{multi}"), links.path().join(format!("{base}{action}"))).unwrap();
        }
    }
    SearchPath { text: format!("{}:{text}", links.path().display()), _links: Some(links) }
}

/// Why the originals cannot be run, where they cannot.
fn lacks() -> Option<String> {
    if !kernel::process::has_capability(21).unwrap_or(false) {
        return Some("needs root".into());
    }
    if peers().join("kube-proxy").exists() {
        return None;
    }
    if Command::new("go").arg("version").output().is_err() {
        return Some("go is not on PATH, and hack/peers needs it to build kube-proxy".into());
    }
    let built = output(checkout().join("hack/peers"), &["kubernetes"]);
    assert!(built.status.success(), "hack/peers: {}", text(&built.stderr));
    None
}

/// What is asked for, where, at which address.
type Question<'a> = (&'a Row, &'static str, SocketAddr, Protocol);

struct Pair {
    objects: Arc<Objects>,
    beds: [Bed; 2],
}

fn compare(mode: &str, path: &SearchPath) {
    if let Some(why) = lacks() {
        return println!("SKIPPED: proxy-{mode}: {why}");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(mode, path, folder.path());
    let mut differences = pair.differences(mode, &table::first());
    // A phase at a time, because the last word may be the time limit's.
    differences.iter().for_each(|difference| println!("{difference}"));
    let second: Vec<Row> =
        table::second().into_iter().filter(|row| !is_guest() || IN_GUEST.contains(&row.name)).collect();
    second.iter().for_each(|row| pair.put(row));
    pair.settle();
    differences.extend(pair.differences(mode, &second));
    differences.extend(pair.flows());
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    pair.leave_nothing(mode, path);
}

impl Pair {
    fn start(mode: &str, path: &SearchPath, folder: &Path) -> Self {
        let objects = Arc::new(Objects::default());
        let mut pair = Self { objects, beds: [Side::Upstream, Side::Bosun].map(|side| Bed::new(side, folder)) };
        for node in table::nodes() {
            pair.objects.put("nodes", node);
        }
        for row in table::first() {
            pair.put(&row);
        }
        for bed in &mut pair.beds {
            bed.start(&pair.objects, mode, &path.text);
        }
        pair.settle();
        pair
    }

    /// Waits until both sides have most likely written what they heard; who asks afterwards asks again before it judges.
    fn settle(&self) {
        // A sync of kube-proxy's takes seconds in a machine in user mode.
        std::thread::sleep(Duration::from_millis(if is_guest() { 10_000 } else { 1200 }));
    }

    fn put(&self, row: &Row) {
        self.objects.put("services", row.service());
        for slice in row.slices() {
            self.objects.put("endpointslices", slice);
        }
    }

    /// What meets another fate on one bed than on the other, in words.
    fn differences(&self, mode: &str, rows: &[Row]) -> Vec<String> {
        let begun = Instant::now();
        let asked: Vec<Question<'_>> = rows
            .iter()
            .flat_map(|row| row.fronts().into_iter().map(move |(to, protocol)| (row, to, protocol)))
            .flat_map(|(row, to, protocol)| PLACES.map(|place| (row, place, to, protocol)))
            .filter(|question| !is_guest() || is_worth_the_time(question))
            .collect();
        let [theirs, ours] = std::thread::scope(|scope| {
            [0, 1]
                .map(|side| {
                    scope.spawn({
                        let asked = &asked;
                        move || self.fates(side, asked)
                    })
                })
                .map(|side| side.join().unwrap())
        });
        let mut differences = Vec::new();
        for (at, (row, place, to, protocol)) in asked.iter().enumerate() {
            let same = |theirs: &Fate, ours: &Fate| {
                let (theirs, ours) = (met(row, theirs), met(row, ours));
                theirs == ours || known(mode, (row, place, *to), &theirs, &ours)
            };
            let (mut theirs, mut ours) = (theirs[&at].clone(), ours[&at].clone());
            // Chance may have hidden an endpoint, and a proxy that is late another answer.
            for _ in 0..3 {
                if same(&theirs, &ours) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(500));
                let again = |side: usize| self.beds[side].place(place).run(|| fate(*to, *protocol)).unwrap();
                (theirs, ours) = (again(0), again(1));
            }
            if !same(&theirs, &ours) {
                let what = format!("{}: {place} to {protocol:?} {to}", row.name);
                differences.push(format!("{what}: kube-proxy {theirs:?}, bosun {ours:?}"));
            }
        }
        for row in rows {
            for (node, ip) in [("node1", [192, 0, 2, 1]), ("node2", [192, 0, 2, 2])] {
                let Some(port) = row.health() else { continue };
                let says = |bed: &Bed| probe::health(bed.place(node), (ip, port).into());
                let [theirs, ours] = [&self.beds[0], &self.beds[1]].map(says);
                if theirs != ours {
                    differences.push(format!("{}: health on {node}: kube-proxy {theirs}, bosun {ours}", row.name));
                }
            }
        }
        println!("{mode}: {} questions to each side in {:.1?}", asked.len(), begun.elapsed());
        differences
    }

    /// The fate of each question, by its place in the list; several at a time, because silence takes its time. A thread
    /// stays at its place, because entering a namespace takes longer than asking.
    fn fates(&self, side: usize, asked: &[Question<'_>]) -> BTreeMap<usize, Fate> {
        let found = Mutex::new(BTreeMap::new());
        let (found, bed) = (&found, &self.beds[side]);
        std::thread::scope(|scope| {
            for (place, share) in PLACES.iter().flat_map(|place| (0..4).map(move |share| (*place, share))) {
                let own =
                    asked.iter().enumerate().filter(move |(_, question)| question.1 == place).skip(share).step_by(4);
                let ask = move || {
                    for (at, (_, _, to, protocol)) in own {
                        let met = fate(*to, *protocol);
                        found.lock().unwrap().insert(at, met);
                    }
                };
                scope.spawn(move || bed.place(place).run(ask).unwrap());
            }
        });
        found.lock().unwrap().clone()
    }

    /// UDP flows that have begun, through the changes of their Service.
    fn flows(&self) -> Vec<String> {
        let vip: SocketAddr = "10.96.0.40:80".parse().unwrap();
        let port: SocketAddr = "192.0.2.1:30040".parse().unwrap();
        self.put(&table::flows(&["c"]));
        self.settle();
        let begin = |place: &'static str, to| {
            let open = |bed: &Bed| bed.place(place).run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
            (place, to, [&self.beds[0], &self.beds[1]].map(open))
        };
        let flows = [begin("client", vip), begin("a", vip), begin("client", port), begin("node1", vip)];
        let mut differences = Vec::new();
        let mut look = |what: &str, expected: Option<&str>| {
            for (place, to, sockets) in &flows {
                let ask = || [&sockets[0], &sockets[1]].map(|socket| probe::ask(socket, *to));
                let same = |[theirs, ours]: &[String; 2]| match expected {
                    // kube-proxy leaves these flows as they are (kubernetes#139628); an end is what is right.
                    None => !ours.contains(" sees "),
                    Some(word) => ours == theirs && ours.starts_with(word),
                };
                let mut answers = ask();
                // An error of the question before may wait in a socket, and kube-proxy may be late.
                for _ in 0..8 {
                    if same(&answers) {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(500));
                    answers = ask();
                }
                if !same(&answers) {
                    let [theirs, ours] = answers;
                    differences.push(format!("flow of {place} to {to}, {what}: kube-proxy {theirs}, bosun {ours}"));
                }
            }
        };
        look("at first", Some("c"));
        let steps: [(&str, &'static [&'static str], Option<&str>); 5] = [
            ("with one more endpoint", &["a", "c"], Some("c")),
            ("while its endpoint ends", &["a", "c ending"], Some("c")),
            ("when its endpoint is gone", &["a"], Some("a")),
            ("without endpoints", &[], None),
            ("with an endpoint again", &["d"], Some("d")),
        ];
        for (what, endpoints, expected) in steps {
            self.put(&table::flows(endpoints));
            self.settle();
            look(what, expected);
        }
        self.objects.delete("endpointslices", "default/flows-ipv4");
        self.objects.delete("services", "default/flows");
        self.settle();
        look("when the Service is gone", None);
        differences
    }

    /// What the proxy wrote goes by `--cleanup`, and when another backend takes over.
    fn leave_nothing(&mut self, mode: &str, path: &SearchPath) {
        let bed = &mut self.beds[1];
        // A kernel has either both of these or, in user mode, IPVS.
        let modes = [if mode == "ipvs" { "ipvs" } else { "nftables" }, "iptables", mode];
        for mode in modes {
            bed.stop();
            bed.start(&self.objects, mode, &path.text);
            let rules = bed.rules("node1");
            for (of, sign) in
                [("nftables", "table ip bosun-proxy"), ("iptables", ":BOSUN-NODEPORTS"), ("ipvs", "kube-ipvs0")]
            {
                assert_eq!(rules.contains(sign), mode == of, "in mode {mode}: {rules}");
            }
        }
        bed.stop();
        for node in ["node1", "node2"] {
            bed.clean(node, &path.text);
            let rules = bed.rules(node);
            assert!(!rules.to_lowercase().contains("bosun") && !rules.contains("kube-ipvs0"), "{rules}");
        }
    }
}

/// Rows that a machine in user mode, which is slow, sees change.
const IN_GUEST: [&str; 4] = ["plain", "none", "local-far", "sticky"];

/// Whether a machine in user mode asks this too.
fn is_worth_the_time((row, place, to, protocol): &Question<'_>) -> bool {
    let udp = ["plain", "local-near"].contains(&row.name);
    let far = ["10.244.1.1", "127.0.0.1"].iter().all(|ip| to.ip().to_string() != **ip);
    ["client", "node1", "a", "c"].contains(place) && far && (udp || *protocol == Protocol::Tcp)
}

/// A fate as it is compared: of a client that stays, only that it does; the kernel limits how often it says refused.
fn met(row: &Row, fate: &Fate) -> Fate {
    let mut met = fate.clone();
    if met.contains("refused") {
        met.remove("dropped");
    }
    match row.sticky && met.len() == 1 && met.iter().all(|text| text.contains(" sees ")) {
        true => Fate::from(["one of them".to_owned()]),
        false => met,
    }
}

/// Whether a difference is kube-proxy's, and meant.
fn known(mode: &str, (row, place, to): (&Row, &str, SocketAddr), theirs: &Fate, ours: &Fate) -> bool {
    let itself = |text: &&String| text.starts_with(&format!("{place} sees "));
    // Where external traffic stays on the node, a pod that asks another node may be led to itself. kube-proxy's modes
    // nftables and ipvs lose what comes back, its iptables mode and bosun do not.
    let hairpin =
        mode != "iptables" && row.is_local() && theirs.contains("dropped") && ours.iter().any(|text| itself(&text));
    // What has no endpoints is refused; kube-proxy's iptables mode forgets the node's own packets to addresses that are
    // not the cluster's.
    let external = mode == "iptables"
        && place.starts_with("node")
        && to.ip().to_string().starts_with("203.0.113.")
        && theirs.iter().all(|text| text == "dropped")
        && ours.iter().all(|text| text == "refused" || text.starts_with("Operation not permitted"));
    // What the node itself sends to such a Service is masqueraded in kube-proxy's other modes, not in ipvs: there the
    // endpoint sees the Service's address, and one on another node cannot answer.
    let own = mode == "ipvs" && place.starts_with("node") && row.is_local() && !ours.contains("dropped");
    // kube-proxy's mode ipvs refuses what the policy leaves no endpoint, the other modes drop it.
    let inside = mode == "ipvs" && row.is_local_inside() && refusal(theirs, "refused") && refusal(ours, "dropped");
    hairpin || external || own || inside
}

fn refusal(fate: &Fate, word: &str) -> bool {
    fate.iter().all(|text| text == word)
}
