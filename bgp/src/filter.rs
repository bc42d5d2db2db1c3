//! Which routes come in and go out: rules with the fields of Calico's BGPFilter. The first rule that matches decides; where
//! none does, a route is accepted.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::attributes::{Attributes, Community};
use crate::prefix::{Family, Prefix};

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Filter {
    pub export_v4: Vec<Rule>,
    pub import_v4: Vec<Rule>,
    pub export_v6: Vec<Rule>,
    pub import_v6: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<Prefix>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_operator: Option<Operator>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_length: Option<Lengths>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The interface that leads to the next hop, by a pattern of BIRD's: `*` is any text, `?` any letter. A route of this
    /// node's own has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_type: Option<PeerType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communities: Option<Communities>,
    #[serde(default, rename = "asPathPrefix", skip_serializing_if = "Vec::is_empty")]
    pub as_path_prefix: Vec<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    pub action: Action,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<Operation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    Equal,
    NotEqual,
    In,
    NotIn,
}

/// Which lengths match: from `min`, by default the CIDR's own, to `max`, by default the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lengths {
    pub min: Option<u8>,
    pub max: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Routes that a peer told, not those of this node.
    RemotePeers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerType {
    #[serde(rename = "eBGP")]
    External,
    #[serde(rename = "iBGP")]
    Internal,
}

/// All of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Communities {
    pub values: Vec<Community>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Accept,
    Reject,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Operation {
    #[serde(rename = "addCommunity")]
    AddCommunity { value: Community },
    #[serde(rename = "prependASPath")]
    PrependAsPath { prefix: Vec<u32> },
    /// The metric of the kernel's route.
    #[serde(rename = "setPriority")]
    SetPriority { value: u32 },
}

/// A rule that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("{list}[{index}]: cidr and matchOperator must both be set or both be left out")]
    HalfMatch { list: &'static str, index: usize },
    #[error("{list}[{index}].cidr: {cidr} is not of {family}")]
    Family { list: &'static str, index: usize, cidr: Prefix, family: Family },
    #[error("{list}[{index}].prefixLength: needs a cidr")]
    LengthsWithoutCidr { list: &'static str, index: usize },
    #[error("{list}[{index}].operations: only for action Accept")]
    OperationsOfReject { list: &'static str, index: usize },
}

impl Filter {
    /// # Errors
    /// The first rule that cannot be meant.
    pub fn check(&self) -> Result<(), Invalid> {
        let lists = [
            ("exportV4", Family::Ipv4, &self.export_v4),
            ("importV4", Family::Ipv4, &self.import_v4),
            ("exportV6", Family::Ipv6, &self.export_v6),
            ("importV6", Family::Ipv6, &self.import_v6),
        ];
        for (list, family, rules) in lists {
            for (index, rule) in rules.iter().enumerate() {
                rule.check(list, index, family)?;
            }
        }
        Ok(())
    }
}

/// The filters of a peer, in their order, as one list for each family and direction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    export: [Vec<Rule>; 2],
    import: [Vec<Rule>; 2],
}

impl Rules {
    pub fn new(filters: &[Filter]) -> Self {
        let joined = |list: fn(&Filter) -> &Vec<Rule>| filters.iter().flat_map(list).cloned().collect();
        Self {
            export: [joined(|filter| &filter.export_v4), joined(|filter| &filter.export_v6)],
            import: [joined(|filter| &filter.import_v4), joined(|filter| &filter.import_v6)],
        }
    }

    pub fn export(&self, family: Family) -> &[Rule] {
        &self.export[family as usize]
    }

    pub fn import(&self, family: Family) -> &[Rule] {
        &self.import[family as usize]
    }

    pub fn same_import(&self, other: &Self) -> bool {
        self.import == other.import
    }

    /// Whether routes that were accepted may be rejected by other interfaces.
    pub fn import_by_interface(&self) -> bool {
        self.import.iter().flatten().any(|rule| rule.interface.is_some())
    }
}

/// A route as a rule sees it.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub prefix: Prefix,
    pub attributes: &'a Attributes,
    pub priority: Option<u32>,
    /// Told by a peer.
    pub remote: bool,
    pub peer: PeerType,
    pub links: &'a Links,
}

/// The prefixes that are on a link of this node, and the interface's name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Links(Vec<(Prefix, Box<str>)>);

impl Links {
    pub fn new(links: impl IntoIterator<Item = (Prefix, Box<str>)>) -> Self {
        let mut links: Vec<_> = links.into_iter().collect();
        // The longest prefix first.
        links.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.length()));
        Self(links)
    }

    /// Empty where no link leads there.
    fn interface(&self, address: IpAddr) -> &str {
        let host = Prefix::new(address, Family::of(address).bits());
        let link = self.0.iter().find(|(prefix, _)| host.is_some_and(|host| prefix.contains(&host)));
        link.map_or("", |(_, name)| name)
    }
}

/// Whether a text is of a pattern with `*` and `?`.
fn is_like(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|at| is_like(rest, &text[at..])),
        (Some((b'?', pattern)), Some((_, text))) => is_like(pattern, text),
        (Some((a, pattern)), Some((b, text))) => a == b && is_like(pattern, text),
        _ => false,
    }
}

/// What a list of rules says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Reject,
    /// As it is.
    Accept,
    /// With the operations of the rule of this index.
    Change(usize),
}

/// Asks the rules in their order.
pub fn judge(rules: &[Rule], subject: &Subject<'_>) -> Verdict {
    match rules.iter().position(|rule| rule.matches(subject)) {
        None => Verdict::Accept,
        Some(index) if rules[index].action == Action::Reject => Verdict::Reject,
        Some(index) if rules[index].operations.is_empty() => Verdict::Accept,
        Some(index) => Verdict::Change(index),
    }
}

impl Rule {
    fn check(&self, list: &'static str, index: usize, family: Family) -> Result<(), Invalid> {
        if self.cidr.is_some() != self.match_operator.is_some() {
            return Err(Invalid::HalfMatch { list, index });
        }
        if self.prefix_length.is_some() && self.cidr.is_none() {
            return Err(Invalid::LengthsWithoutCidr { list, index });
        }
        if self.action == Action::Reject && !self.operations.is_empty() {
            return Err(Invalid::OperationsOfReject { list, index });
        }
        match self.cidr {
            Some(cidr) if cidr.family() != family => Err(Invalid::Family { list, index, cidr, family }),
            _ => Ok(()),
        }
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        let communities = self.communities.as_ref();
        self.matches_prefix(subject.prefix)
            && (self.source.is_none() || subject.remote)
            && self.interface.as_ref().is_none_or(|pattern| {
                let interface = subject.links.interface(subject.attributes.next_hop.address);
                is_like(pattern.as_bytes(), interface.as_bytes())
            })
            && self.peer_type.is_none_or(|kind| kind == subject.peer)
            && communities.is_none_or(|wanted| wanted.values.iter().all(|value| subject.attributes.has(*value)))
            && self.priority.is_none_or(|priority| subject.priority == Some(priority))
            && subject
                .attributes
                .as_path
                .numbers()
                .take(self.as_path_prefix.len())
                .eq(self.as_path_prefix.iter().copied())
    }

    fn matches_prefix(&self, prefix: Prefix) -> bool {
        let (Some(cidr), Some(operator)) = (self.cidr, self.match_operator) else { return true };
        let lengths = self.prefix_length.unwrap_or_default();
        let within = || {
            let length = prefix.length();
            cidr.contains(&prefix)
                && lengths.min.is_none_or(|min| min <= length)
                && lengths.max.is_none_or(|max| length <= max)
        };
        match operator {
            Operator::Equal => prefix == cidr,
            Operator::NotEqual => prefix != cidr,
            Operator::In => within(),
            Operator::NotIn => !within(),
        }
    }

    /// Applies the operations to a route and its priority.
    pub fn apply(&self, attributes: &mut Attributes, priority: &mut Option<u32>) {
        for operation in &self.operations {
            match operation {
                Operation::AddCommunity { value } => attributes.add(*value),
                Operation::PrependAsPath { prefix } => attributes.as_path = attributes.as_path.prepended(prefix),
                Operation::SetPriority { value } => *priority = Some(*value),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::{AsPath, NextHop};

    fn rules(json: &str) -> Vec<Rule> {
        serde_json::from_str(json).unwrap()
    }

    fn net(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn verdict(rules: &[Rule], prefix: &str) -> Verdict {
        let mut attributes = Attributes::new(NextHop::of([192, 0, 2, 1].into()));
        attributes.as_path = AsPath::sequence(&[65001, 65002]);
        attributes.add("65001:7".parse().unwrap());
        let prefix = prefix.parse().unwrap();
        let links = Links::new([(net("192.0.0.0/8"), "wide".into()), (net("192.0.2.0/24"), "eth0".into())]);
        let kind = PeerType::External;
        let subject =
            Subject { prefix, attributes: &attributes, priority: None, remote: true, peer: kind, links: &links };
        judge(rules, &subject)
    }

    #[test]
    fn prefixes_match_by_operator_and_length() {
        let within = rules(
            r#"[{"cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"min": 16, "max": 24}, "action": "Accept"},
                {"action": "Reject"}]"#,
        );
        let cases = [("10.0.0.0/8", false), ("10.1.0.0/16", true), ("10.1.2.0/24", true), ("10.1.2.0/25", false)];
        for (prefix, accepted) in cases {
            assert_eq!(verdict(&within, prefix) == Verdict::Accept, accepted, "{prefix}");
        }
        for (operator, own, inner, other) in [
            ("Equal", true, false, false),
            ("NotEqual", false, true, true),
            ("In", true, true, false),
            ("NotIn", false, false, true),
        ] {
            let one =
                rules(&format!(r#"[{{"cidr": "10.0.0.0/8", "matchOperator": "{operator}", "action": "Reject"}}]"#));
            let rejects = |prefix| verdict(&one, prefix) == Verdict::Reject;
            let met = (rejects("10.0.0.0/8"), rejects("10.1.0.0/16"), rejects("11.0.0.0/8"));
            assert_eq!(met, (own, inner, other), "{operator}");
        }
    }

    #[test]
    fn the_first_match_decides_and_may_change_the_route() {
        let list = rules(
            r#"[{"peerType": "iBGP", "action": "Reject"},
                {"asPathPrefix": [65002], "action": "Reject"},
                {"communities": {"values": ["65001:8"]}, "action": "Reject"},
                {"communities": {"values": ["65001:7"]}, "asPathPrefix": [65001, 65002], "source": "RemotePeers",
                 "action": "Accept", "operations": [{"addCommunity": {"value": "1:2:3"}},
                 {"prependASPath": {"prefix": [9, 9]}}, {"setPriority": {"value": 512}}]}]"#,
        );
        assert_eq!(verdict(&list, "10.0.0.0/8"), Verdict::Change(3));
        let (mut attributes, mut priority) = (Attributes::new(NextHop::of([192, 0, 2, 1].into())), None);
        list[3].apply(&mut attributes, &mut priority);
        assert_eq!((attributes.as_path.to_string(), priority), ("9 9".to_owned(), Some(512)));
        assert_eq!(*attributes.large_communities, [[1, 2, 3]]);
        assert_eq!(verdict(&[], "10.0.0.0/8"), Verdict::Accept);
    }

    #[test]
    fn an_interface_matches_by_pattern_and_the_nearest_link() {
        for (pattern, matches) in
            [("eth0", true), ("eth*", true), ("e?h?", true), ("*", true), ("*0*", true), ("wide", false), ("et", false)]
        {
            let list = rules(&format!(r#"[{{"interface": "{pattern}", "action": "Reject"}}]"#));
            assert_eq!(verdict(&list, "10.0.0.0/8") == Verdict::Reject, matches, "{pattern}");
        }
        let elsewhere = Links::default();
        assert_eq!(elsewhere.interface([192, 0, 2, 1].into()), "");
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let filter = |json| serde_json::from_str::<Filter>(json).unwrap().check().unwrap_err().to_string();
        assert_eq!(
            filter(r#"{"exportV4": [{"cidr": "fd00::/8", "matchOperator": "In", "action": "Accept"}]}"#),
            "exportV4[0].cidr: fd00::/8 is not of IPv4"
        );
        assert_eq!(
            filter(r#"{"importV6": [{"cidr": "fd00::/8", "action": "Accept"}]}"#),
            "importV6[0]: cidr and matchOperator must both be set or both be left out"
        );
        let unknown = serde_json::from_str::<Filter>(r#"{"exportV4": [{"device": "eth0", "action": "Accept"}]}"#);
        assert!(unknown.unwrap_err().to_string().starts_with("unknown field `device`"));
    }
}
