//! What the table `filter` lacks of a container's rules, and what it has of rules that are nobody's any more: scripts
//! for iptables-restore, from what iptables-save says.
//!
//! ```text
//! FORWARD                ▶ CNI-ISOLATION-STAGE-1, then ▶ CNI-FORWARD, before everything else
//! CNI-FORWARD            ▶ the administrator's chain; answers to the container, and all from it, pass
//! CNI-ISOLATION-STAGE-1  from a bridge to elsewhere ▶ CNI-ISOLATION-STAGE-2; isolated: within it, drop
//! CNI-ISOLATION-STAGE-2  to a bridge, drop
//! ```

use std::net::IpAddr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    SameBridge,
    Isolated,
}

/// The rules of one container, in one family.
pub struct Wanted<'a> {
    pub ips: &'a [IpAddr],
    /// Written into the comment of its rules.
    pub owner: &'a str,
    pub admin_chain: &'a str,
    pub bridge: Option<(Policy, &'a str)>,
}

/// A rule as a list of words; its comment apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    chain: String,
    words: Vec<String>,
    comment: String,
}

impl Rule {
    fn new(chain: &str, words: &str, comment: &str) -> Self {
        Self { chain: chain.into(), words: words.split(' ').map(str::to_owned).collect(), comment: comment.into() }
    }

    /// From a line of iptables-save.
    fn read(line: &str) -> Option<Self> {
        let mut words = split(line.strip_prefix("-A ")?);
        let chain = words.first().cloned()?;
        words.remove(0);
        let mut comment = String::new();
        if let Some(at) = words.iter().position(|word| word == "--comment") {
            comment = words.get(at + 1)?.clone();
            // `-m comment --comment TEXT`
            words.drain(at.saturating_sub(2)..at + 2);
        }
        Some(Self { chain, words, comment })
    }

    /// With the verb `-A`, `-I` or `-D`.
    fn line(&self, verb: &str) -> String {
        let comment = self.comment.replace(['"', '\\'], "");
        format!("{verb} {} {} -m comment --comment \"{comment}\"\n", self.chain, self.words.join(" "))
    }
}

/// Words, of which those in quotation marks may hold spaces.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
            c => word.push(c),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

const FORWARD: &str = "CNI-FORWARD";
const STAGE_ONE: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_TWO: &str = "CNI-ISOLATION-STAGE-2";

/// The script that adds what is missing, `None` where nothing is.
pub fn missing(table: &str, wanted: &Wanted<'_>) -> Option<String> {
    let present: Vec<Rule> = table.lines().filter_map(Rule::read).collect();
    let mut script = String::new();
    let mut chains = Vec::new();
    if !wanted.ips.is_empty() {
        chains.extend([FORWARD, wanted.admin_chain]);
    }
    if wanted.bridge.is_some() {
        chains.extend([STAGE_ONE, STAGE_TWO]);
    }
    for chain in chains {
        let is_there = table.lines().any(|line| line.starts_with(&format!(":{chain} ")));
        if !is_there {
            // Fails where another made it meanwhile; a declaration would empty it.
            script.push_str(&format!("-N {chain}\n"));
        }
    }
    let has = |rule: &Rule| present.iter().any(|other| other.chain == rule.chain && other.words == rule.words);
    for (verb, rule) in rules(wanted) {
        let is_there = match rule.comment == wanted.owner {
            true => present.contains(&rule),
            false => has(&rule),
        };
        if !is_there {
            script.push_str(&rule.line(verb));
        }
    }
    (!script.is_empty()).then(|| format!("*filter\n{script}COMMIT\n"))
}

/// Every rule with its verb, in the order in which they are added. Insertions come out in the reverse order.
fn rules(wanted: &Wanted<'_>) -> Vec<(&'static str, Rule)> {
    const COMMENT: &str = "CNI firewall plugin rules";
    let mut rules = Vec::new();
    if !wanted.ips.is_empty() {
        rules.push(("-I", Rule::new("FORWARD", &format!("-j {FORWARD}"), COMMENT)));
        let admin = format!("-j {}", wanted.admin_chain);
        rules.push(("-I", Rule::new(FORWARD, &admin, "CNI firewall plugin admin overrides")));
    }
    for ip in wanted.ips {
        let net = format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
        let answers = format!("-d {net} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
        rules.push(("-A", Rule::new(FORWARD, &answers, wanted.owner)));
        rules.push(("-A", Rule::new(FORWARD, &format!("-s {net} -j ACCEPT"), wanted.owner)));
    }
    if let Some((policy, bridge)) = wanted.bridge {
        const ISOLATION: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";
        rules.push(("-I", Rule::new("FORWARD", &format!("-j {STAGE_ONE}"), ISOLATION)));
        let leaving = format!("-i {bridge} ! -o {bridge} -j {STAGE_TWO}");
        rules.push(("-I", Rule::new(STAGE_ONE, &leaving, ISOLATION)));
        if policy == Policy::Isolated {
            rules.push(("-I", Rule::new(STAGE_ONE, &format!("-i {bridge} -o {bridge} -j DROP"), ISOLATION)));
        }
        rules.push(("-I", Rule::new(STAGE_TWO, &format!("-o {bridge} -j DROP"), ISOLATION)));
    }
    rules
}

/// The script that removes the rules of the owners that are gone, `None` where there are none.
pub fn obsolete(table: &str, gone: impl Fn(&str) -> bool) -> Option<String> {
    let own = table.lines().filter_map(Rule::read).filter(|rule| rule.chain == FORWARD && gone(&rule.comment));
    let script: String = own.map(|rule| rule.line("-D")).collect();
    (!script.is_empty()).then(|| format!("*filter\n{script}COMMIT\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";

    #[test]
    fn only_what_is_missing_is_added() {
        let ips = ["10.0.0.2".parse().unwrap()];
        let wanted = Wanted { ips: &ips, owner: "a/eth0@n", admin_chain: "CNI-ADMIN", bridge: None };
        let script = missing(EMPTY, &wanted).unwrap();
        assert_eq!(
            script,
            "*filter
-N CNI-FORWARD
-N CNI-ADMIN
-I FORWARD -j CNI-FORWARD -m comment --comment \"CNI firewall plugin rules\"
-I CNI-FORWARD -j CNI-ADMIN -m comment --comment \"CNI firewall plugin admin overrides\"
-A CNI-FORWARD -d 10.0.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT -m comment --comment \"a/eth0@n\"
-A CNI-FORWARD -s 10.0.0.2/32 -j ACCEPT -m comment --comment \"a/eth0@n\"
COMMIT
"
        );
        let saved = "*filter
:FORWARD DROP [0:0]
:CNI-ADMIN - [0:0]
:CNI-FORWARD - [0:0]
-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD
-A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN
-A CNI-FORWARD -d 10.0.0.2/32 -m comment --comment a/eth0@n -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A CNI-FORWARD -s 10.0.0.2/32 -m comment --comment \"a/eth0@n\" -j ACCEPT
COMMIT";
        assert_eq!(missing(saved, &wanted), None);
        let other = Wanted { owner: "b/eth0@n", ..wanted };
        assert_eq!(missing(saved, &other).unwrap().lines().count(), 4, "the same address, of another container");
        assert_eq!(
            obsolete(saved, |owner| owner == "a/eth0@n").unwrap(),
            "*filter
-D CNI-FORWARD -d 10.0.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT -m comment --comment \"a/eth0@n\"
-D CNI-FORWARD -s 10.0.0.2/32 -j ACCEPT -m comment --comment \"a/eth0@n\"
COMMIT
"
        );
        assert_eq!(obsolete(saved, |owner| owner == "c/eth0@n"), None);
    }

    #[test]
    fn isolation_is_asked_before_leave_is_given() {
        let ips = ["fd00::2".parse().unwrap()];
        let bridge = Some((Policy::Isolated, "cni0"));
        let wanted = Wanted { ips: &ips, owner: "a/eth0@n", admin_chain: "MINE", bridge };
        let script = missing(EMPTY, &wanted).unwrap();
        let at = |text: &str| script.find(text).unwrap_or_else(|| panic!("{text} is not in {script}"));
        assert!(at("-I FORWARD -j CNI-ISOLATION-STAGE-1") > at("-I FORWARD -j CNI-FORWARD"));
        at("-I CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 -j CNI-ISOLATION-STAGE-2");
        at("-I CNI-ISOLATION-STAGE-1 -i cni0 -o cni0 -j DROP");
        at("-I CNI-ISOLATION-STAGE-2 -o cni0 -j DROP");
        at("-s fd00::2/128 -j ACCEPT");
    }
}
