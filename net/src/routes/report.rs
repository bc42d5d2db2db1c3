//! What `bosun net routes` prints.

use std::collections::BTreeSet;
use std::fmt::Write;

use ipnetwork::IpNetwork;

use super::plan::{Problem, Row};
use crate::config::Mode;

/// The last decision, and what went wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub mode: Option<Mode>,
    pub rows: Vec<Row>,
    /// Why there is no decision yet.
    pub waiting: Option<Problem>,
    pub problems: BTreeSet<String>,
    /// What the kernel refused.
    pub failures: Vec<String>,
}

/// A table for a person; `present` are the prefixes that the kernel has routes to.
pub fn table(report: &Report, present: &BTreeSet<IpNetwork>) -> String {
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
    for row in &report.rows {
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
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    let unreachable: BTreeSet<String> =
        report.rows.iter().filter_map(|row| row.way.as_ref().err().map(ToString::to_string)).collect();
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
        let mut wrapped = row("10.244.3.0/24", "c", Ok(BTreeSet::from([hop("10.244.3.0", "flannel.1")])));
        wrapped.wrapped_to = Some("198.51.100.3".parse().unwrap());
        let problem = Problem::NotOnLink("d".into(), "203.0.113.4".parse().unwrap());
        let report = Report {
            mode: Some(Mode::VxlanCrossSubnet),
            rows: vec![
                row("10.244.2.0/24", "b", Ok(BTreeSet::from([hop("192.0.2.2", "eth0"), hop("192.0.2.3", "eth0")]))),
                wrapped,
                row("10.244.4.0/24", "d", Err(problem)),
            ],
            ..Report::default()
        };
        let text = table(&report, &BTreeSet::from(["10.244.2.0/24".parse().unwrap()]));
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
        assert!(table(&waiting, &BTreeSet::new()).starts_with("waiting: node a has no podCIDRs yet"));
    }
}
