//! What nft lists of the table, as far as a step is decided by it: names and elements.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::sync::Met;

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
        let sets = super::frame::sets().map(|name| (name.to_owned(), HashMap::new())).collect();
        Self { sets, chains: [super::frame::name(true)].into(), counters: BTreeSet::new() }
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
            let sum: &mut u64 = counters.entry(who.clone()).or_default();
            *sum = sum.saturating_add(packets.parse().unwrap_or_default());
        }
    }
    counters
}

/// The packets that a listing of one of the sets of dropped packets shows.
pub fn read_met(text: &str) -> Vec<Met> {
    let elements = text.split_once("elements = {").and_then(|(_, rest)| rest.split_once('}'));
    let elements = elements.map_or("", |(elements, _)| elements).split(',');
    elements.filter_map(|element| read_packet(element.trim())).collect()
}

/// `10.0.0.1 . 10.0.0.2 . 6 . 80 timeout 2m expires 1m59s996ms`; the time-out is not always told.
fn read_packet(element: &str) -> Option<Met> {
    let mut words = element.split_whitespace();
    let mut next = || words.find(|word| *word != ".");
    let (source, destination) = (next()?.parse().ok()?, next()?.parse().ok()?);
    let (protocol, port) = (next()?.parse().ok()?, next()?.parse().ok()?);
    let expires = words.skip_while(|word| *word != "expires").nth(1);
    Some(Met { source, destination, protocol, port, remembered: expires.map_or(0, milliseconds) })
}

fn milliseconds(text: &str) -> u64 {
    let (mut total, mut number, mut rest) = (0, 0_u64, text);
    while let Some(first) = rest.chars().next() {
        if let Some(digit) = first.to_digit(10) {
            number = number.saturating_mul(10).saturating_add(digit.into());
            rest = &rest[1..];
            continue;
        }
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let factor = match &rest[..unit] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => 0,
        };
        total = number.saturating_mul(factor).saturating_add(total);
        (number, rest) = (0, &rest[unit..]);
    }
    total
}

fn read_elements(text: &str) -> impl Iterator<Item = (String, String)> {
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(|text| {
        let (key, value) = text.split_once(" : ").unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    })
}
