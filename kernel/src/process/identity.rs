//! A process as something that can be written down and found again.

use std::io;

use serde::{Deserialize, Serialize};

use super::stat;

/// A process of this boot. A number alone may belong to another process by now; number, start and boot together
/// never do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// In the PID namespace of whoever asks with this value.
    pub pid: u32,
    /// Clock ticks since the machine started (proc(5), stat, field 22).
    pub start_time: u64,
    /// /proc/sys/kernel/random/boot_id.
    pub boot: String,
}

impl Identity {
    /// The calling process as the mounted /proc numbers it: the host's number, for a process in a PID namespace
    /// of its own that has not mounted its own /proc yet.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn own() -> io::Result<Self> {
        Self::parse(&stat("self")?)
    }

    /// # Errors
    /// Where no such process is.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::parse(&stat(pid)?)
    }

    /// Whether the process lives. One that is dead and not buried yet does not.
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = stat(self.pid) else { return false };
        let dead = fields(&stat).is_none_or(|(_, rest)| matches!(rest.split(' ').next(), Some("Z" | "X")));
        !dead && Self::parse(&stat).is_ok_and(|now| now == *self)
    }

    fn parse(stat: &str) -> io::Result<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let (pid, start_time) = numbers(stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, start_time, boot })
    }
}

/// The number and what follows the name, which may hold spaces and parentheses.
fn fields(stat: &str) -> Option<(&str, &str)> {
    let (pid, _) = stat.split_once(' ')?;
    let (_, rest) = stat.rsplit_once(") ")?;
    Some((pid, rest))
}

pub(super) fn numbers(stat: &str) -> Option<(u32, u64)> {
    let (pid, rest) = fields(stat)?;
    // The state is field 3, the start time field 22.
    Some((pid.parse().ok()?, rest.split(' ').nth(19)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a) b) (c) S 1 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 777 1 2";
        assert_eq!(numbers(stat), Some((42, 777)));
    }

    #[test]
    fn lives_until_dead_even_if_not_buried() {
        let own = Identity::own().unwrap();
        assert!(own.is_alive());
        assert!(!Identity { start_time: own.start_time + 1, ..own }.is_alive());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        assert!(identity.is_alive());
        child.kill().unwrap();
        while identity.is_alive() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(Identity::of(child.id()).is_ok(), "a zombie still has its entry");
        child.wait().unwrap();
    }
}
