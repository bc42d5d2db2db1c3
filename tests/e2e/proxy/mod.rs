//! `bosun proxy` beside kube-proxy: the same Services and EndpointSlices to both, each on its own copy of a small network,
//! and the same connections from each place must meet the same fate, the same endpoints and the same source address.

mod bed;
mod guest;
mod known;
mod probe;
mod table;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bed::{Bed, PLACES, Side};
use guest::{IN_GUEST, is_worth_the_time};
pub use guest::{inside, ipvs, ipvs_host, is_guest};
use known::known;
use probe::{Fate, Protocol, fate};
use table::Row;
use tempfile::TempDir;
use tests::api_server::Objects;
use tests::bed::{checkout, eventually, output, text};

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

/// How pods' traffic is told from others', where it is not by the cluster's range.
pub fn pod_detection() {
    if let Some(why) = lacks() {
        return println!("SKIPPED: proxy-pod-detection: {why}");
    }
    let rows: Vec<Row> = table::first().into_iter().filter(|row| row.tells_pods_apart()).collect();
    for settings in [
        "detectLocalMode: NodeCIDR\n",
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: vetha}\n",
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let pair = Pair::start("nftables", &path(None), folder.path(), settings, &rows);
        let differences = pair.differences("nftables", &rows);
        assert!(differences.is_empty(), "{settings}{} differences:\n{}", differences.len(), differences.join("\n"));
    }
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
    let first = table::first();
    let mut pair = Pair::start(mode, path, folder.path(), "", &first);
    let mut differences = pair.differences(mode, &first);
    // A phase at a time, because the last word may be the time limit's.
    differences.iter().for_each(|difference| println!("{difference}"));
    let second: Vec<Row> =
        table::second().into_iter().filter(|row| !is_guest() || IN_GUEST.contains(&row.name)).collect();
    second.iter().for_each(|row| pair.put(row));
    pair.settle();
    differences.extend(pair.differences(mode, &second));
    differences.extend(pair.flows(mode));
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    pair.leave_nothing(mode, path);
}

impl Pair {
    fn start(mode: &str, path: &SearchPath, folder: &Path, settings: &str, rows: &[Row]) -> Self {
        let objects = Arc::new(Objects::default());
        let mut pair = Self { objects, beds: [Side::Upstream, Side::Bosun].map(|side| Bed::new(side, folder)) };
        for node in table::nodes() {
            pair.objects.put("nodes", node);
        }
        rows.iter().for_each(|row| pair.put(row));
        for bed in &mut pair.beds {
            bed.settings = settings.to_owned();
            bed.start(&pair.objects, mode, &path.text);
        }
        pair.settle();
        pair
    }

    /// Waits until both sides have written what they heard. A sync may have begun before the last of it came; the one
    /// after it has all.
    fn settle(&self) {
        for _ in 0..2 {
            let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            self.put(&table::marker());
            for (bed, node) in self.beds.iter().flat_map(|bed| ["node1", "node2"].map(|node| (bed, node))) {
                eventually(&format!("{:?} on {node} has synced", bed.side), Duration::from_secs(120), || {
                    bed.last_sync(node).filter(|at| *at > begin)
                });
            }
        }
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
            // Chance may have hidden an endpoint.
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
    fn flows(&self, mode: &str) -> Vec<String> {
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
                    Some(word) => ours.starts_with(word) && (ours == theirs || known::flow(mode, what, theirs)),
                };
                let mut answers = ask();
                // An error of the question before may wait in a socket.
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
            for (of, sign) in [
                ("nftables", "table ip bosun-proxy"),
                ("iptables", ":BOSUN-NODEPORTS"),
                ("ipvs", "kube-ipvs0"),
                ("ipvs", "bosun-vips-4"),
                ("ipvs", "TCP 10.96.0."),
            ] {
                assert_eq!(rules.contains(sign), mode == of, "in mode {mode}: {rules}");
            }
        }
        bed.stop();
        for node in ["node1", "node2"] {
            bed.clean(node, mode, &path.text);
            let rules = bed.rules(node);
            let left = ["bosun", "kube-ipvs0", "tcp 10.96.0."].iter().any(|sign| rules.to_lowercase().contains(sign));
            assert!(!left, "{rules}");
        }
    }
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
