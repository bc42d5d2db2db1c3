//! Pressure stall information of a group. Source: the kernel's Documentation/accounting/psi.rst.

use super::usage::file_of;
use super::{Cgroups, Result};

/// Time for which tasks waited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10, 60 and 300 seconds.
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    /// Since the group was made, microseconds.
    pub total_micros: u64,
}

/// Stalls for want of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Some task waited.
    pub some: Stall,
    /// All tasks that were not idle waited.
    pub full: Stall,
}

/// `None` where it is not accounted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressures {
    pub cpu: Option<Pressure>,
    pub memory: Option<Pressure>,
    pub io: Option<Pressure>,
}

pub(super) fn read(cgroups: &Cgroups, path: &str) -> Result<Pressures> {
    if !cgroups.is_v2() {
        return Ok(Pressures::default());
    }
    let one = |name: &str| Ok(parse(&file_of(cgroups, path, name, &format!("{name}.pressure"))?));
    Ok(Pressures { cpu: one("cpu")?, memory: one("memory")?, io: one("io")? })
}

/// Kernels before 5.13 tell no `full` of the CPU: zero.
fn parse(text: &str) -> Option<Pressure> {
    let mut lines = text.lines().filter_map(line);
    let some = lines.find(|(kind, _)| *kind == "some")?.1;
    let full = text.lines().filter_map(line).find(|(kind, _)| *kind == "full").map(|(_, stall)| stall);
    Some(Pressure { some, full: full.unwrap_or_default() })
}

fn line(text: &str) -> Option<(&str, Stall)> {
    let (kind, rest) = text.split_once(' ')?;
    let mut stall = Stall::default();
    for (key, value) in rest.split(' ').filter_map(|pair| pair.split_once('=')) {
        match key {
            "avg10" => stall.avg10 = value.parse().ok()?,
            "avg60" => stall.avg60 = value.parse().ok()?,
            "avg300" => stall.avg300 = value.parse().ok()?,
            "total" => stall.total_micros = value.parse().ok()?,
            _ => {}
        }
    }
    Some((kind, stall))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_read_and_nothing_else_is() {
        let text =
            "some avg10=1.50 avg60=0.20 avg300=0.01 total=12345\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=99\n";
        let some = Stall { avg10: 1.5, avg60: 0.2, avg300: 0.01, total_micros: 12_345 };
        let full = Stall { avg10: 0.5, total_micros: 99, ..Stall::default() };
        assert_eq!(parse(text), Some(Pressure { some, full }));
        assert_eq!(parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n").unwrap().full, Stall::default());
        assert_eq!(parse(""), None);
        assert_eq!(parse("some avg10=x"), None);
    }
}
