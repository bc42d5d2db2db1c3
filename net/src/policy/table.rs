//! The content of the table `bosun-policy` as it shall be, and the steps that lead the kernel there.
//!
//! Chains and sets are named by their content, so that a name that stands in the kernel is right, and a new process
//! finds out what differs by reading names and elements alone. Several parts of the plan may hold the same object;
//! it goes with the last of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;

use super::frame;
use super::listing::Listing;
use super::model::Protocol;

pub const TABLE: &str = "bosun-policy";

/// nftables takes comments up to 128 bytes.
const COMMENT: usize = 120;

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
    /// Whether the kernel has tables of family bridge.
    pub bridge: bool,
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

impl Default for Table {
    fn default() -> Self {
        let sets = frame::sets().map(|name| (name.into(), Set { holders: 1, ..Set::default() })).collect();
        Self { bridge: true, sets, chains: BTreeMap::new(), counters: BTreeMap::new(), touched: Touched::default() }
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
        if !found.chains.contains(&*frame::name(self.bridge)) {
            return None;
        }
        let mut edits = Edits::default();
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
        edits.sets.1 = found
            .sets
            .keys()
            .filter(|n| !self.sets.contains_key(&***n) && !frame::has(n))
            .map(|name| arc(name))
            .collect();
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
                write_elements(&mut script, verb, set, texts, self.bridge);
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
        edits.sets.0 = self.sets.keys().filter(|name| !frame::has(name)).cloned().collect();
        edits.chains.0 = self.chains.keys().cloned().collect();
        edits.counters.0 = self.counters.keys().cloned().collect();
        for (name, set) in &self.sets {
            for (element, held) in &set.elements {
                edits.element(name, element.to_string(), false, Some(held.value()));
            }
        }
        format!("{}{}", frame::script(self.bridge), self.script(&edits))
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

    /// Whether something that passed may be forbidden now: who is newly sent through a chain, or is in a set no more.
    pub fn may_forbid(&self) -> bool {
        self.added.keys().any(|set| frame::has(set)) || self.removed.keys().any(|set| !frame::has(set))
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

fn write_elements(script: &mut String, verb: &str, set: &str, texts: &[String], bridge: bool) {
    for family in frame::families(set, bridge) {
        let _ = writeln!(script, "{verb} element {family} {TABLE} {set} {{ {} }}", texts.join(", "));
    }
}

/// A text as a comment. The API's names need no more than this; nothing else gets out of the quotes.
pub fn comment(text: &str) -> String {
    let plain = |c: char| if c == ' ' || (c.is_ascii_graphic() && c != '"' && c != '\\') { c } else { '?' };
    let mut short: String = text.chars().take(COMMENT).map(plain).collect();
    if text.chars().nth(COMMENT).is_some() {
        short.push_str("...");
    }
    short
}
