//! Routing rules that look at a packet's source: which table says where it goes. Source: ip-rule(8).

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::real::{failed, malformed};
use super::{Error, Kernel, Result};

const NEWRULE: u16 = 32;
const DELRULE: u16 = 33;
const GETRULE: u16 = 34;

/// What is from `source` (`None` is everything) is routed by `table`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub source: Option<IpNetwork>,
    pub table: u32,
    /// Rules are tried from the lowest on. `None` lets the kernel put a new one before all but the local table's.
    pub priority: Option<u32>,
}

impl Kernel {
    /// The rules of both families that lead to a table.
    ///
    /// # Errors
    /// Where the kernel's table cannot be read.
    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        let read = self.0.dump(GETRULE, &RuleMessage::default()).and_then(|parts| {
            let parsed: io::Result<Vec<_>> =
                parts.iter().map(|part| RuleMessage::parse(part).map_err(malformed)).collect();
            Ok(parsed?.iter().filter_map(read_rule).collect())
        });
        read.map_err(failed("list", || "routing rules".into()))
    }

    /// # Errors
    /// [`Error::is_exists`] where the same rule is there.
    pub fn add_rule(&mut self, rule: Rule) -> Result<()> {
        self.0.act(NEWRULE, NLM_F_CREATE | NLM_F_EXCL, &message(rule)).map_err(failed("add", || about(rule)))
    }

    /// `false` where it was gone.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn delete_rule(&mut self, rule: Rule) -> Result<bool> {
        match self.0.act(DELRULE, 0, &message(rule)).map_err(failed("delete", || about(rule))) {
            Ok(()) => Ok(true),
            Err(error) if Error::is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = match rule.source {
        Some(IpNetwork::V6(_)) => AddressFamily::Inet6,
        _ => AddressFamily::Inet,
    };
    header.src_len = rule.source.map_or(0, |source| source.prefix());
    header.table = u8::try_from(rule.table).unwrap_or(0);
    header.action = RuleAction::ToTable;
    let attributes = &mut message.attributes;
    attributes.extend(rule.source.map(|source| RuleAttribute::Source(source.network())));
    attributes.push(RuleAttribute::Table(rule.table));
    attributes.extend(rule.priority.map(RuleAttribute::Priority));
    message
}

pub(super) fn read_rule(message: &RuleMessage) -> Option<Rule> {
    let any: IpAddr = match message.header.family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut rule = Rule { source: None, table: u32::from(message.header.table), priority: None };
    let mut source = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(ip) => source = Some(*ip),
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Priority(priority) => rule.priority = Some(*priority),
            _ => {}
        }
    }
    if source.is_some() || message.header.src_len > 0 {
        rule.source = Some(IpNetwork::new(source.unwrap_or(any), message.header.src_len).ok()?);
    }
    (message.header.action == RuleAction::ToTable).then_some(rule)
}

fn about(rule: Rule) -> String {
    match rule.source {
        Some(source) => format!("the rule for {source} to table {}", rule.table),
        None => format!("the rule to table {}", rule.table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Netns;

    #[test]
    fn rules_of_both_families_come_and_go() {
        if !crate::test::root("routing rules") {
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let mut network = netns.run(|| Kernel::open().unwrap()).unwrap();
        let before = network.rules().unwrap();
        assert!(before.iter().any(|rule| rule.table == 254 && rule.source.is_none()));
        for source in ["10.1.2.3/32", "fd00::3/128"] {
            let rule = Rule { source: Some(source.parse().unwrap()), table: 1000, priority: None };
            network.add_rule(rule).unwrap();
            let listed = network.rules().unwrap();
            let made = listed.iter().find(|other| other.source == rule.source).unwrap();
            assert_eq!(made.table, 1000);
            assert!(made.priority.is_some());
            assert!(network.delete_rule(*made).unwrap());
            assert!(!network.delete_rule(*made).unwrap());
        }
        assert_eq!(network.rules().unwrap(), before);
    }
}
