//! A process with all that it started, ended together. Source: proc(5) stat, setsid(2).

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use super::{Signal, kill, stat};

/// A process as the tree is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pid: u32,
    parent: u32,
    session: u32,
}

/// Kills `root` and its descendants, also those whose parents have ended meanwhile but that are still in a session which
/// one of them began. Looks again until none lives or `patience` has passed; returns how many are left.
///
/// `root` must be a process whose number is still its own: alive, or dead and not buried.
///
/// # Errors
/// Where /proc cannot be read, or a process may not be signalled.
pub fn kill_tree(root: u32, patience: Duration) -> io::Result<usize> {
    let begun = Instant::now();
    let mut known = BTreeSet::from([root]);
    loop {
        let living = tree(&mut known, &living()?);
        if living.is_empty() {
            return Ok(0);
        }
        if begun.elapsed() > patience {
            return Ok(living.len());
        }
        for pid in living {
            kill(pid, Signal::SIGKILL)?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Those of `all` that belong to the tree whose members so far are `known`, which grows by them.
fn tree(known: &mut BTreeSet<u32>, all: &[Entry]) -> Vec<u32> {
    loop {
        let before = known.len();
        let joins = |entry: &&Entry| known.contains(&entry.parent) || known.contains(&entry.session);
        let found: Vec<u32> = all.iter().filter(joins).map(|entry| entry.pid).collect();
        known.extend(found);
        if known.len() == before {
            return all.iter().map(|entry| entry.pid).filter(|pid| known.contains(pid)).collect();
        }
    }
}

/// All processes that are not dead.
fn living() -> io::Result<Vec<Entry>> {
    let entries = std::fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // One that goes while it is read is no longer of interest.
    Ok(pids.filter_map(|pid| parse(&stat(pid).ok()?)).collect())
}

/// `None` for what is dead, or is no line of the kernel's.
pub(super) fn parse(stat: &str) -> Option<Entry> {
    let (pid, _) = stat.split_once(' ')?;
    // The name may hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let dead = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    (!dead).then_some(Entry { pid: pid.parse().ok()?, parent, session })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_tree_is_descendants_and_sessions_that_they_began() {
        let entry = |pid, parent, session| Entry { pid, parent, session };
        let all = [
            entry(1, 0, 1),
            entry(10, 1, 10),
            entry(11, 10, 10),
            entry(12, 11, 12),
            entry(13, 1, 12),
            entry(20, 1, 20),
        ];
        let mut known = BTreeSet::from([10]);
        assert_eq!(tree(&mut known, &all), [10, 11, 12, 13]);
        // The one that was known is dead by now; what it started is still found.
        let later = [entry(1, 0, 1), entry(14, 1, 12), entry(20, 1, 20)];
        assert_eq!(tree(&mut known, &later), [14]);
    }

    #[test]
    fn a_line_is_read_past_any_name_and_the_dead_are_passed_over() {
        assert_eq!(parse("42 (a) b) S 7 42 9 0 -1"), Some(Entry { pid: 42, parent: 7, session: 9 }));
        assert_eq!(parse("42 (a) Z 7 42 9 0 -1"), None);
        assert_eq!(parse("garbage"), None);
    }

    /// A process chooses its own name, of any bytes.
    #[test]
    fn a_process_with_a_name_of_any_bytes_is_seen() {
        let script = "printf '\\377\\200' > /proc/self/task/$$/comm; echo ready; read wait";
        let mut shell =
            Command::new("bash").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(shell.stdout.take().unwrap()), &mut line).unwrap();
        let seen = living().unwrap().iter().any(|entry| entry.pid == shell.id());
        let identity = super::super::Identity::of(shell.id());
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert!(seen, "not among the living");
        identity.unwrap();
    }

    #[test]
    fn nothing_of_a_shells_children_is_left() {
        let script = "sleep 300 & setsid sleep 300 & echo ready; wait";
        let mut shell = Command::new("setsid").args(["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(shell.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "ready\n");
        let mut known = BTreeSet::from([shell.id()]);
        assert!(tree(&mut known, &living().unwrap()).len() >= 3);
        assert_eq!(kill_tree(shell.id(), Duration::from_secs(5)).unwrap(), 0);
        assert!(!shell.wait().unwrap().success());
        assert_eq!(tree(&mut known, &living().unwrap()), Vec::<u32>::new());
    }
}
