//! `bosun proxy` beside kube-proxy: the same Services and EndpointSlices to both, each on its own copy of a small network,
//! and the same connections from each place must meet the same fate, the same endpoints and the same source address.

mod api;
mod bed;
mod probe;
mod table;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::Objects;
use bed::{Bed, PLACES, Side};
use probe::{Fate, Protocol, fate};
use table::Row;
use tests::bed::{checkout, output, text};

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

/// PATH with `iptables` and its kin of that variant before all others.
fn path(multi: Option<&str>) -> String {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let Some(multi) = multi else { return path };
    let folder = std::env::temp_dir().join(format!("bosun-{multi}-{}", std::process::id()));
    let _ = std::fs::create_dir(&folder);
    for base in ["iptables", "ip6tables"] {
        for action in ["", "-save", "-restore"] {
            let _ = std::os::unix::fs::symlink(format!("/usr/sbin/{multi}"), folder.join(format!("{base}{action}")));
        }
    }
    format!("{}:{path}", folder.display())
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

struct Pair {
    objects: Arc<Objects>,
    beds: [Bed; 2],
}

fn compare(mode: &str, path: &str) {
    if let Some(why) = lacks() {
        return println!("SKIPPED: proxy-{mode}: {why}");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(mode, path, folder.path());
    let mut differences = pair.differences(mode, &table::first());
    for row in table::second() {
        pair.put(&row);
    }
    settle();
    differences.extend(pair.differences(mode, &table::second()));
    differences.extend(pair.flows());
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    pair.leave_nothing(path);
}

/// Longer than either side waits before it writes what it heard.
fn settle() {
    std::thread::sleep(Duration::from_millis(1500));
}

impl Pair {
    fn start(mode: &str, path: &str, folder: &Path) -> Self {
        let objects = Arc::new(Objects::default());
        let mut pair = Self { objects, beds: [Side::Upstream, Side::Bosun].map(|side| Bed::new(side, folder)) };
        for node in table::nodes() {
            pair.objects.put("nodes", node);
        }
        for row in table::first() {
            pair.put(&row);
        }
        for bed in &mut pair.beds {
            bed.start(&pair.objects, mode, path);
        }
        settle();
        pair
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
        let asked: Vec<(&Row, &str, SocketAddr, Protocol)> = rows
            .iter()
            .flat_map(|row| row.fronts().into_iter().map(move |(to, protocol)| (row, to, protocol)))
            .flat_map(|(row, to, protocol)| PLACES.map(|place| (row, place, to, protocol)))
            .collect();
        let [theirs, ours] = [0, 1].map(|side| self.fates(side, &asked));
        let mut differences = Vec::new();
        for (at, (row, place, to, protocol)) in asked.iter().enumerate() {
            let (theirs, ours) = (met(row, &theirs[&at]), met(row, &ours[&at]));
            if theirs == ours || known(mode, row, place, *to).is_some() {
                continue;
            }
            // Chance may have hidden an endpoint.
            let again = |side: usize, before: &Fate| {
                let more = fate(self.beds[side].place(place), *to, *protocol);
                met(row, &before.union(&more).cloned().collect())
            };
            let (theirs, ours) = (again(0, &theirs), again(1, &ours));
            if theirs != ours {
                differences
                    .push(format!("{}: {place} to {protocol:?} {to}: kube-proxy {theirs:?}, bosun {ours:?}", row.name));
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

    /// The fate of each question, by its place in the list; several at a time, because silence takes its time.
    fn fates(&self, side: usize, asked: &[(&Row, &str, SocketAddr, Protocol)]) -> BTreeMap<usize, Fate> {
        let next = Mutex::new(0..asked.len());
        let found = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    while let Some(at) = { next.lock().unwrap().next() } {
                        let (_, place, to, protocol) = asked[at];
                        let met = fate(self.beds[side].place(place), to, protocol);
                        found.lock().unwrap().insert(at, met);
                    }
                });
            }
        });
        found.into_inner().unwrap()
    }

    /// UDP flows that have begun, through the changes of their Service.
    fn flows(&self) -> Vec<String> {
        let vip: SocketAddr = "10.96.0.40:80".parse().unwrap();
        let port: SocketAddr = "192.0.2.1:30040".parse().unwrap();
        self.put(&table::flows(&["c"]));
        settle();
        let begin = |place: &'static str, to| {
            let open = |bed: &Bed| bed.place(place).run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
            (place, to, [&self.beds[0], &self.beds[1]].map(open))
        };
        let flows = [begin("client", vip), begin("a", vip), begin("client", port), begin("node1", vip)];
        let mut differences = Vec::new();
        let mut look = |what: &str, expected: Option<&str>| {
            for (place, to, sockets) in &flows {
                let [theirs, ours] = [&sockets[0], &sockets[1]].map(|socket| probe::ask(socket, *to));
                let same = match expected {
                    // kube-proxy leaves these flows as they are (kubernetes#139628); an end is what is right.
                    None => ours == "refused" || ours == "dropped",
                    Some(word) => ours == theirs && ours.starts_with(word),
                };
                if !same {
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
            settle();
            look(what, expected);
        }
        self.objects.delete("endpointslices", "default/flows-ipv4");
        self.objects.delete("services", "default/flows");
        settle();
        look("when the Service is gone", None);
        differences
    }

    /// What the proxy wrote goes by `--cleanup`, and when another backend takes over.
    fn leave_nothing(&mut self, path: &str) {
        let bed = &mut self.beds[1];
        for mode in ["nftables", "iptables"] {
            bed.stop();
            bed.start(&self.objects, mode, path);
            let rules = bed.rules("node1");
            assert_eq!(rules.contains("table ip bosun-proxy"), mode == "nftables", "{mode}: {rules}");
            assert_eq!(rules.contains(":BOSUN-SERVICES"), mode == "iptables", "{mode}: {rules}");
        }
        bed.stop();
        for node in ["node1", "node2"] {
            bed.clean(node, path);
            let rules = bed.rules(node);
            assert!(!rules.to_lowercase().contains("bosun"), "{rules}");
        }
    }
}

/// A fate as it is compared: of a client that stays, only that it does.
fn met(row: &Row, fate: &Fate) -> Fate {
    let answers = fate.iter().filter(|text| text.contains(" sees ")).count();
    match row.sticky && answers == 1 {
        true => Fate::from(["one of them".to_owned()]),
        false => fate.clone(),
    }
}

/// Why a difference is none, where that is known.
fn known(_mode: &str, _row: &Row, _place: &str, _to: SocketAddr) -> Option<&'static str> {
    None
}
