//! What `bosun net routes` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::model::{Interface, Node};
use super::plan::{Learned, Model, Problem, Row, learned_row};
use crate::config::{Config, Mode};
use crate::speaker::PeerStatus;

/// What the last decision was made from.
#[derive(Debug)]
pub struct Ground {
    pub me: String,
    pub nodes: BTreeMap<String, Node>,
    pub config: Config,
    pub interfaces: Vec<Interface>,
}

/// The last decision, and what went wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub mode: Option<Mode>,
    pub rows: Vec<Row>,
    /// This node's nodes and interfaces, by which what BGP learnt is shown.
    pub ground: Option<Arc<Ground>>,
    /// Why there is no decision yet.
    pub waiting: Option<Problem>,
    pub problems: BTreeSet<String>,
    /// What the kernel refused.
    pub failures: Vec<String>,
}

/// A table of the BGP sessions for a person.
pub fn peers(peers: &[PeerStatus]) -> String {
    let mut lines = vec![
        ["PEER", "ADDRESS", "AS", "STATE", "FOR", "RECEIVED", "ACCEPTED", "SENT", "BFD", "LAST ERROR"]
            .map(str::to_owned),
    ];
    lines.extend(peers.iter().map(|peer| {
        let state = match peer.stale_for {
            Some(seconds) => format!("{:?}, its old routes for {seconds} s more", peer.state),
            None => format!("{:?}", peer.state),
        };
        [
            peer.name.clone(),
            peer.address.to_string(),
            peer.as_number.to_string(),
            state,
            duration(peer.uptime),
            peer.received.to_string(),
            peer.accepted.to_string(),
            peer.sent.to_string(),
            peer.bfd.map_or_else(|| "-".into(), |state| format!("{state:?}")),
            last_error(peer),
        ]
    }));
    aligned(&lines)
}

/// With its age, since a session that stands may have had it long ago.
fn last_error(peer: &PeerStatus) -> String {
    match (&peer.last_error, peer.last_error_ago) {
        (Some(words), Some(ago)) => format!("{} ago: {words}", duration(ago)),
        (words, _) => words.clone().unwrap_or_else(|| "-".into()),
    }
}

/// As kubectl says how old something is.
fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn aligned<const COLUMNS: usize>(lines: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// A table for a person; `present` are the prefixes that the kernel has routes to.
pub fn table(report: &Report, learned: &Learned, present: &BTreeSet<IpNetwork>) -> String {
    let mut text = String::new();
    let Some(mode) = report.mode.filter(|_| report.waiting.is_none()) else {
        let why = report
            .waiting
            .as_ref()
            .map_or_else(|| "nodes and configuration are not read yet".into(), ToString::to_string);
        return format!("waiting: {why}\n");
    };
    let _ = writeln!(text, "mode {}", mode.name());
    let mut lines = vec![["PREFIX", "NEXT HOP", "DEVICE", "SOURCE", "MTU", "KERNEL"].map(str::to_owned)];
    let mut rows = report.rows.clone();
    if let Some(ground) = &report.ground {
        let Ground { me, nodes, config, interfaces } = &**ground;
        let model = Model { me, nodes, config, interfaces, learned };
        let gateways = model.gateways();
        rows.extend(learned.iter().map(|(prefix, path)| learned_row(&model, &gateways, *prefix, path)));
    }
    for row in &rows {
        let kernel = if present.contains(&row.prefix) { "yes" } else { "no" };
        let line = |hop: &str, device: &str, kernel: &str| {
            let prefix = format!("{}/{}", row.prefix.network(), row.prefix.prefix());
            let mtu = if device == "-" { "-".into() } else { row.mtu.to_string() };
            [prefix, hop.into(), device.into(), row.source.clone(), mtu, kernel.into()]
        };
        match &row.way {
            Err(_) => lines.push(line("-", "-", "unreachable")),
            Ok(hops) => lines.extend(hops.iter().map(|hop| match row.wrapped_to {
                Some(remote) => line(&format!("vtep {remote}"), &hop.device, kernel),
                None => line(&hop.gateway.to_string(), &hop.device, kernel),
            })),
        }
    }
    text.push_str(&aligned(&lines));
    let unreachable: BTreeSet<String> =
        rows.iter().filter_map(|row| row.way.as_ref().err().map(ToString::to_string)).collect();
    for problem in report.problems.union(&unreachable).chain(&report.failures) {
        let _ = writeln!(text, "problem: {problem}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::state::Hop;
    use super::*;

    #[test]
    fn a_session_is_a_line() {
        let status = PeerStatus {
            name: "b".into(),
            address: "192.0.2.2".parse().unwrap(),
            as_number: 64512,
            state: bgp::session::State::Established,
            uptime: 7300,
            received: 3,
            accepted: 2,
            sent: 1,
            last_error: Some("hold timer expired".into()),
            last_error_ago: Some(7301),
            bfd: None,
            stale_for: None,
        };
        assert_eq!(
            peers(&[status]),
            "PEER  ADDRESS    AS     STATE        FOR  RECEIVED  ACCEPTED  SENT  BFD  LAST ERROR
b     192.0.2.2  64512  Established  2h   3         2         1     -    2h ago: hold timer expired
"
        );
    }

    #[test]
    fn each_prefix_has_its_line_and_each_problem_its_sentence() {
        let hop = |gateway: &str, device: &str| Hop {
            gateway: gateway.parse().unwrap(),
            device: device.into(),
            onlink: false,
        };
        let row = |prefix: &str, source: &str, way| Row {
            prefix: prefix.parse().unwrap(),
            source: source.into(),
            mtu: 1450,
            wrapped_to: None,
            way,
        };
        let mut wrapped = row("10.244.3.0/24", "c", Ok(BTreeSet::from([hop("10.244.3.0", "flannel.1")]).into()));
        wrapped.wrapped_to = Some("198.51.100.3".parse().unwrap());
        let problem = Problem::NotOnLink("d".into(), "203.0.113.4".parse().unwrap());
        let report = Report {
            mode: Some(Mode::VxlanCrossSubnet),
            rows: vec![
                row(
                    "10.244.2.0/24",
                    "b",
                    Ok(BTreeSet::from([hop("192.0.2.2", "eth0"), hop("192.0.2.3", "eth0")]).into()),
                ),
                wrapped,
                row("10.244.4.0/24", "d", Err(problem)),
            ],
            ..Report::default()
        };
        let text = table(&report, &Learned::new(), &BTreeSet::from(["10.244.2.0/24".parse().unwrap()]));
        assert_eq!(
            text,
            "mode vxlan-cross-subnet
PREFIX         NEXT HOP           DEVICE     SOURCE  MTU   KERNEL
10.244.2.0/24  192.0.2.2          eth0       b       1450  yes
10.244.2.0/24  192.0.2.3          eth0       b       1450  yes
10.244.3.0/24  vtep 198.51.100.3  flannel.1  c       1450  no
10.244.4.0/24  -                  -          d       -     unreachable
problem: node d (203.0.113.4) is not on a link of this node: choose mode vxlan-cross-subnet, vxlan or bgp
"
        );
        let waiting = Report { waiting: Some(Problem::NoPodCidrs("a".into())), ..Report::default() };
        assert!(table(&waiting, &Learned::new(), &BTreeSet::new()).starts_with("waiting: node a has no podCIDRs yet"));
    }
}
