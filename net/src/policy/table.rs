//! The content of the table `bosun-policy` as it shall be, and the steps that lead the kernel there.
//!
//! Chains and sets are named by their content, so that a name that stands in the kernel is right, and a new process
//! finds out what differs by reading names and elements alone. Several parts of the plan may hold the same object;
//! it goes with the last of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;

use super::model::Protocol;
use super::rules::short;

pub const TABLE: &str = "bosun-policy";

/// What a set or map holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    Address(IpAddr),
    /// An address twice: from a pod to itself.
    Itself(IpAddr),
    Port(IpAddr, Protocol, u16),
    Link(Arc<str>),
    LinkAddress(Arc<str>, IpAddr),
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => write!(f, "{ip}"),
            Self::Itself(ip) => write!(f, "{ip} . {ip}"),
            Self::Port(ip, protocol, port) => write!(f, "{ip} . {} . {port}", protocol.number()),
            Self::Link(link) => write!(f, "\"{link}\""),
            Self::LinkAddress(link, ip) => write!(f, "\"{link}\" . {ip}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    holders: u32,
    /// The chains that a map's holders want; the last one counts.
    values: Vec<Arc<str>>,
}

impl Held {
    /// The chain that the map leads to.
    pub fn value(&self) -> Option<&Arc<str>> {
        self.values.last()
    }
}

#[derive(Debug, Clone, Default)]
pub struct Set {
    holders: u32,
    /// As nft declares it; none for the sets of the frame.
    spec: Option<String>,
    pub elements: BTreeMap<Element, Held>,
}

#[derive(Debug, Clone)]
struct Chain {
    holders: u32,
    comment: String,
    lines: Vec<String>,
}

#[derive(Debug, Clone)]
struct Counter {
    holders: u32,
    comment: String,
}

/// What shall be, and what was changed of it since the last [`Table::settled`].
#[derive(Debug, Clone)]
pub struct Table {
    pub sets: BTreeMap<Arc<str>, Set>,
    chains: BTreeMap<Arc<str>, Chain>,
    counters: BTreeMap<Arc<str>, Counter>,
    touched: Touched,
}

/// What stood in the kernel of each object that was touched since.
#[derive(Debug, Clone, Default)]
struct Touched {
    sets: BTreeMap<Arc<str>, bool>,
    chains: BTreeMap<Arc<str>, bool>,
    counters: BTreeMap<Arc<str>, bool>,
    elements: BTreeMap<Arc<str>, BTreeMap<Element, Before>>,
}

/// Whether an element stood in the kernel, and which chain it led to.
type Before = Option<Option<Arc<str>>>;

/// The sets and maps that are always there, with their type and the families of table that have them.
const FRAME: [(&str, &str, &[&str]); 10] = [
    ("egress4", "map egress4 { type ipv4_addr : verdict; }", &["inet"]),
    ("egress6", "map egress6 { type ipv6_addr : verdict; }", &["inet"]),
    ("ingress4", "map ingress4 { type ipv4_addr : verdict; }", &["inet"]),
    ("ingress6", "map ingress6 { type ipv6_addr : verdict; }", &["inet"]),
    ("self4", "set self4 { type ipv4_addr . ipv4_addr; }", &["inet"]),
    ("self6", "set self6 { type ipv6_addr . ipv6_addr; }", &["inet"]),
    ("own4", "set own4 { type ifname . ipv4_addr; }", &["inet", "bridge"]),
    ("own6", "set own6 { type ifname . ipv6_addr; }", &["inet", "bridge"]),
    ("guarded", "set guarded { type ifname; }", &["inet", "bridge"]),
    ("isolated", "set isolated { type ifname; }", &["bridge"]),
];

impl Default for Table {
    fn default() -> Self {
        let sets = FRAME.iter().map(|(name, ..)| ((*name).into(), Set { holders: 1, ..Set::default() })).collect();
        Self { sets, chains: BTreeMap::new(), counters: BTreeMap::new(), touched: Touched::default() }
    }
}

impl Table {
    /// Holds a set. `true` where it was not there: the caller fills it.
    pub fn hold_set(&mut self, name: &Arc<str>, spec: impl FnOnce() -> String) -> bool {
        let set = self.sets.entry(name.clone()).or_default();
        set.holders += 1;
        if set.holders == 1 {
            set.spec = Some(spec());
            self.touched.sets.entry(name.clone()).or_insert(false);
        }
        set.holders == 1
    }

    /// `true` where it is gone with that.
    pub fn release_set(&mut self, name: &Arc<str>) -> bool {
        let Some(set) = self.sets.get_mut(name) else { return false };
        set.holders -= 1;
        if set.holders > 0 {
            return false;
        }
        // Should it come again in the same step, the kernel has these elements still.
        let elements = self.sets.remove(name).map(|set| set.elements).unwrap_or_default();
        let touched = self.touched.elements.entry(name.clone()).or_default();
        elements.into_iter().for_each(|(element, mut held)| {
            touched.entry(element).or_insert(Some(held.values.pop()));
        });
        self.touched.sets.entry(name.clone()).or_insert(true);
        true
    }

    pub fn hold_chain(&mut self, name: &Arc<str>, content: impl FnOnce() -> (String, Vec<String>)) -> bool {
        if let Some(chain) = self.chains.get_mut(name) {
            chain.holders += 1;
            return false;
        }
        let (comment, lines) = content();
        self.chains.insert(name.clone(), Chain { holders: 1, comment, lines });
        self.touched.chains.entry(name.clone()).or_insert(false);
        true
    }

    pub fn release_chain(&mut self, name: &Arc<str>) -> bool {
        let Some(chain) = self.chains.get_mut(name) else { return false };
        chain.holders -= 1;
        if chain.holders > 0 {
            return false;
        }
        self.chains.remove(name);
        self.touched.chains.entry(name.clone()).or_insert(true);
        true
    }

    pub fn hold_counter(&mut self, name: &Arc<str>, comment: impl FnOnce() -> String) {
        if let Some(counter) = self.counters.get_mut(name) {
            counter.holders += 1;
            return;
        }
        self.counters.insert(name.clone(), Counter { holders: 1, comment: comment() });
        self.touched.counters.entry(name.clone()).or_insert(false);
    }

    pub fn release_counter(&mut self, name: &Arc<str>) {
        let Some(counter) = self.counters.get_mut(name) else { return };
        counter.holders -= 1;
        if counter.holders == 0 {
            self.counters.remove(name);
            self.touched.counters.entry(name.clone()).or_insert(true);
        }
    }

    /// Holds an element of a set, or of a map that leads to chain `value`.
    pub fn hold(&mut self, set: &Arc<str>, element: Element, value: Option<Arc<str>>) {
        let Some(own) = self.sets.get_mut(set) else { return };
        let before = own.elements.get(&element).map(|held| held.value().cloned());
        let held = own.elements.entry(element.clone()).or_default();
        held.holders += 1;
        held.values.extend(value);
        self.touched.elements.entry(set.clone()).or_default().entry(element).or_insert(before);
    }

    /// Gives up what [`Table::hold`] was asked for.
    pub fn release(&mut self, set: &Arc<str>, element: Element, value: Option<&Arc<str>>) {
        let Some(own) = self.sets.get_mut(set) else { return };
        let Some(held) = own.elements.get_mut(&element) else { return };
        let before = Some(held.value().cloned());
        held.holders -= 1;
        if let Some(at) = held.values.iter().position(|own| Some(own) == value) {
            held.values.remove(at);
        }
        if held.holders == 0 {
            own.elements.remove(&element);
        }
        self.touched.elements.entry(set.clone()).or_default().entry(element).or_insert(before);
    }

    /// What leads the kernel from the last settled state here.
    pub fn edits(&self) -> Edits {
        let mut edits = Edits::default();
        difference(&self.touched.sets, |name| self.sets.contains_key(name), &mut edits.sets);
        difference(&self.touched.chains, |name| self.chains.contains_key(name), &mut edits.chains);
        difference(&self.touched.counters, |name| self.counters.contains_key(name), &mut edits.counters);
        for (name, touched) in &self.touched.elements {
            let Some(set) = self.sets.get(name) else { continue };
            for (element, before) in touched {
                let now = set.elements.get(element).map(Held::value);
                if before.as_ref().map(Option::as_ref) != now {
                    edits.element(name, element.to_string(), before.is_some(), now);
                }
            }
        }
        edits
    }

    /// The kernel is where this table is.
    pub fn settled(&mut self) {
        self.touched = Touched::default();
    }

    /// What leads the kernel here from what a listing shows. `None` where the frame is another's or absent.
    pub fn edits_from(&self, found: &Listing) -> Option<Edits> {
        if !found.chains.contains(&*frame_name()) {
            return None;
        }
        let mut edits = Edits::default();
        let frame = |name: &str| FRAME.iter().any(|(own, ..)| *own == name);
        for (name, set) in &self.sets {
            let theirs = found.sets.get(&**name);
            if theirs.is_none() {
                edits.sets.0.insert(name.clone());
            }
            let mut theirs = theirs.cloned().unwrap_or_default();
            for (element, held) in &set.elements {
                let text = element.to_string();
                let before = theirs.remove(&text);
                if before.as_deref() != Some(&verdict(held.value())) {
                    edits.element(name, text, before.is_some(), Some(held.value()));
                }
            }
            theirs.into_keys().for_each(|text| edits.element(name, text, true, None));
        }
        edits.sets.1 =
            found.sets.keys().filter(|n| !self.sets.contains_key(&***n) && !frame(n)).map(|name| arc(name)).collect();
        let own = |name: &&String| name.contains("gress");
        edits.chains.0 = self.chains.keys().filter(|name| !found.chains.contains(&***name)).cloned().collect();
        edits.chains.1 = found
            .chains
            .iter()
            .filter(own)
            .filter(|n| !self.chains.contains_key(n.as_str()))
            .map(|name| arc(name))
            .collect();
        edits.counters.0 = self.counters.keys().filter(|name| !found.counters.contains(&***name)).cloned().collect();
        edits.counters.1 = found
            .counters
            .iter()
            .filter(own)
            .filter(|n| !self.counters.contains_key(n.as_str()))
            .map(|name| arc(name))
            .collect();
        Some(edits)
    }

    /// The step in nft's words.
    pub fn script(&self, edits: &Edits) -> String {
        let mut script = String::new();
        for name in &edits.sets.0 {
            if let Some(spec) = self.sets.get(name).and_then(|set| set.spec.as_ref()) {
                let _ = writeln!(script, "add set inet {TABLE} {name} {{ {spec} }}");
            }
        }
        for name in &edits.counters.0 {
            let Some(counter) = self.counters.get(name) else { continue };
            let _ = writeln!(script, "add counter inet {TABLE} {name} {{ comment \"{}\"; }}", counter.comment);
        }
        // All declared before any is filled: they name each other.
        for name in &edits.chains.0 {
            let Some(chain) = self.chains.get(name) else { continue };
            let _ = writeln!(script, "add chain inet {TABLE} {name} {{ comment \"{}\"; }}", chain.comment);
        }
        for (name, chain) in edits.chains.0.iter().filter_map(|name| Some((name, self.chains.get(name)?))) {
            chain.lines.iter().for_each(|line| {
                let _ = writeln!(script, "add rule inet {TABLE} {name} {line}");
            });
        }
        for (verb, elements) in [("delete", &edits.removed), ("add", &edits.added)] {
            for (set, texts) in elements {
                write_elements(&mut script, verb, set, texts);
            }
        }
        for verb in ["flush", "delete"] {
            edits.chains.1.iter().for_each(|name| {
                let _ = writeln!(script, "{verb} chain inet {TABLE} {name}");
            });
        }
        for (kind, names) in [("set", &edits.sets.1), ("counter", &edits.counters.1)] {
            names.iter().for_each(|name| {
                let _ = writeln!(script, "delete {kind} inet {TABLE} {name}");
            });
        }
        script
    }

    /// The whole table in one transaction, in place of whatever had its name.
    pub fn whole(&self) -> String {
        let mut edits = Edits::default();
        let frame = |name: &str| FRAME.iter().any(|(own, ..)| *own == name);
        edits.sets.0 = self.sets.keys().filter(|name| !frame(name)).cloned().collect();
        edits.chains.0 = self.chains.keys().cloned().collect();
        edits.counters.0 = self.counters.keys().cloned().collect();
        for (name, set) in &self.sets {
            for (element, held) in &set.elements {
                edits.element(name, element.to_string(), false, Some(held.value()));
            }
        }
        format!("{}{}", frame_script(), self.script(&edits))
    }
}

fn arc(name: &str) -> Arc<str> {
    name.into()
}

fn difference(
    touched: &BTreeMap<Arc<str>, bool>,
    now: impl Fn(&Arc<str>) -> bool,
    (added, removed): &mut (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>),
) {
    for (name, before) in touched {
        let changed = match (before, now(name)) {
            (false, true) => &mut *added,
            (true, false) => &mut *removed,
            _ => continue,
        };
        changed.insert(name.clone());
    }
}

/// A step: what to add and what to remove of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    sets: (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>),
    chains: (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>),
    counters: (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>),
    removed: BTreeMap<Arc<str>, Vec<String>>,
    added: BTreeMap<Arc<str>, Vec<String>>,
}

impl Edits {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn element(&mut self, set: &Arc<str>, text: String, before: bool, now: Option<Option<&Arc<str>>>) {
        if before {
            self.removed.entry(set.clone()).or_default().push(text.clone());
        }
        if let Some(value) = now {
            let value = verdict(value);
            let text = if value.is_empty() { text } else { format!("{text} : {value}") };
            self.added.entry(set.clone()).or_default().push(text);
        }
    }
}

fn verdict(chain: Option<&Arc<str>>) -> String {
    chain.map(|name| format!("goto {name}")).unwrap_or_default()
}

fn write_elements(script: &mut String, verb: &str, set: &str, texts: &[String]) {
    let families = FRAME.iter().find(|(name, ..)| *name == set).map_or(&["inet"][..], |(.., families)| families);
    for family in families {
        let _ = writeln!(script, "{verb} element {family} {TABLE} {set} {{ {} }}", texts.join(", "));
    }
}

/// What `nft list table inet bosun-policy` and its like of the bridge family say: names and elements.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Listing {
    pub sets: HashMap<String, HashMap<String, String>>,
    pub chains: BTreeSet<String>,
    pub counters: BTreeSet<String>,
}

impl Listing {
    /// The table with nothing in it.
    #[cfg(test)]
    pub fn bare() -> Self {
        let sets = FRAME.iter().map(|(name, ..)| ((*name).to_owned(), HashMap::new())).collect();
        Self { sets, chains: [frame_name()].into(), counters: BTreeSet::new() }
    }

    /// This one of family inet beside that of family bridge. `None` where they do not hold the same.
    pub fn beside(mut self, bridge: Self) -> Option<Self> {
        for (name, elements) in bridge.sets {
            match self.sets.get(&name) {
                Some(own) if *own == elements => {}
                Some(_) => return None,
                None => drop(self.sets.insert(name, elements)),
            }
        }
        Some(self)
    }

    pub fn read(text: &str) -> Self {
        let mut listing = Self::default();
        let mut set: Option<String> = None;
        let mut elements: Option<String> = None;
        for line in text.lines().map(str::trim) {
            if let Some(open) = &mut elements {
                open.push_str(line);
            } else if let Some(first) = line.strip_prefix("elements = {").filter(|_| set.is_some()) {
                elements = Some(first.to_owned());
            }
            if let Some(whole) = elements.as_ref().and_then(|text| text.strip_suffix('}')) {
                let own = set.as_ref().and_then(|name| listing.sets.get_mut(name));
                own.into_iter().for_each(|own| own.extend(read_elements(whole)));
                elements = None;
                continue;
            }
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["set" | "map", name, "{"] => {
                    listing.sets.entry(name.to_owned()).or_default();
                    set = Some(name.to_owned());
                }
                ["chain", name, "{"] => {
                    set = None;
                    listing.chains.insert(name.to_owned());
                }
                ["counter", name, "{"] => {
                    set = None;
                    listing.counters.insert(name.to_owned());
                }
                _ => {}
            }
        }
        listing
    }
}

/// Packets of each counter that a listing shows, by its comment, or its name where it has none.
pub fn read_counters(text: &str) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    let mut who = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("counter ").and_then(|rest| rest.strip_suffix(" {")) {
            who = name.to_owned();
        } else if let Some(comment) = line.strip_prefix("comment \"").and_then(|rest| rest.strip_suffix('"')) {
            who = comment.to_owned();
        } else if let Some(packets) = line.strip_prefix("packets ").and_then(|rest| rest.split(' ').next()) {
            *counters.entry(who.clone()).or_default() += packets.parse::<u64>().unwrap_or_default();
        }
    }
    counters
}

fn read_elements(text: &str) -> impl Iterator<Item = (String, String)> {
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(|text| {
        let (key, value) = text.split_once(" : ").unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    })
}

/// A chain whose name says which frame stands.
fn frame_name() -> String {
    format!("frame-{}", short(&frame_body()))
}

fn frame_script() -> String {
    let replace = ["inet", "bridge"].map(|f| format!("add table {f} {TABLE}\ndelete table {f} {TABLE}\n")).concat();
    format!("{replace}{}add chain inet {TABLE} {}\n", frame_body(), frame_name())
}

/// The hooks, in this order of a packet's way:
///
/// - `bridge prerouting -300` and `inet prerouting -300` (raw): a pod's link takes only what its own addresses send.
///   The first sees the ports of a bridge, the second routed links; both come before any translation of addresses.
/// - `bridge forward 0`: what a bridge floods or sends by link-local addresses names no pod as its destination, and
///   policies would not see it; a pod that is isolated for ingress gets by its bridge only what is sent to it.
/// - `inet forward 0` (filter): after the translation of a Service's address (prerouting, -100), so that the
///   destination is the pod, and before masquerading (postrouting, 100), so that the source still is. By br_netfilter
///   it sees the traffic inside one bridge too. What the node itself sends to its pods, and they to it, never passes
///   here: upstream documents that it is always allowed.
/// - `inet output 0`: IPVS sends on from here what came in from elsewhere, translated.
///
/// Neighbour discovery passes: without it no address of IPv6 is reached on a bridge. Flows that were allowed when they
/// began go on until they end, whatever policies come later.
fn frame_body() -> String {
    let sets = |family: &str| -> String {
        let own = FRAME.iter().filter(|(.., families)| families.contains(&family));
        own.map(|(_, spec, _)| format!("  {spec}\n")).collect()
    };
    let spoofed = "drop comment \"a pod sent from an address that is not its own\"";
    // Reports of multicast listeners, router and neighbour solicitation, neighbour advertisement.
    let discovery = "icmpv6 type { 131, 132, 133, 135, 136, 143 }";
    format!(
        "table inet {TABLE} {{
{}  counter dropped-spoofed {{ }}
  chain spoof {{
    type filter hook prerouting priority -300; policy accept;
    iifname @guarded goto own
  }}
  chain own {{
    iifname . ip saddr @own4 return
    iifname . ip6 saddr @own6 return
    ip6 saddr {{ ::, fe80::/10 }} {discovery} return
    counter name dropped-spoofed {spoofed}
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    ct state established,related accept
    {discovery} accept
    goto leave
  }}
  chain output {{
    type filter hook output priority 0; policy accept;
    ct state established,related accept
    fib saddr type local accept
    goto leave
  }}
  chain leave {{
    ip saddr . ip daddr @self4 accept
    ip6 saddr . ip6 daddr @self6 accept
    ip saddr vmap @egress4
    ip6 saddr vmap @egress6
    goto arrive
  }}
  chain arrive {{
    ip daddr vmap @ingress4
    ip6 daddr vmap @ingress6
    accept
  }}
}}
table bridge {TABLE} {{
{}  counter dropped-spoofed {{ }}
  counter dropped-flooded {{ }}
  chain spoof {{
    type filter hook prerouting priority -300; policy accept;
    iifname @guarded goto own
  }}
  chain own {{
    iifname . ip saddr @own4 return
    iifname . arp saddr ip @own4 return
    iifname . ip6 saddr @own6 return
    ip6 saddr {{ ::, fe80::/10 }} {discovery} return
    arp saddr ip 0.0.0.0 return
    counter name dropped-spoofed {spoofed}
  }}
  chain deliver {{
    type filter hook forward priority 0; policy accept;
    oifname @isolated goto unicast
  }}
  chain unicast {{
    oifname . ip daddr @own4 return
    oifname . ip6 daddr @own6 return
    meta protocol arp return
    {discovery} return
    counter name dropped-flooded drop comment \"sent to no address of a pod that is isolated for ingress\"
  }}
}}
",
        sets("inet"),
        sets("bridge"),
    )
}
