//! iptables: scripts to `iptables-restore --noflush`, and what the tables hold.
//!
//! Sources: iptables(8), iptables-restore(8). The programs stand for both kernel interfaces, legacy and nf_tables; which
//! of them the plain names mean is the machine's choice (Debian's alternatives).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::exec;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

/// Which of the kernel's two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Variant {
    /// What `iptables` means on this machine.
    #[default]
    Default,
    Legacy,
    Nft,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run {program} (package iptables): {source}")]
    Start { program: String, source: exec::Error },
    #[error("{program} refused: {reason}")]
    Refused { program: String, reason: String },
}

impl Error {
    /// Whether this machine has no such program.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Start { source, .. } if source.source.kind() == std::io::ErrorKind::NotFound)
    }
}

/// The tables of the caller's network namespace.
pub trait Iptables: Send + Sync {
    /// Applies `script`, each of its tables whole or not at all. Chains that it does not declare stay as they are.
    ///
    /// # Errors
    /// Where the program cannot be run or refuses, with its reason.
    fn restore(&self, family: Family, script: &str) -> Result<(), Error>;

    /// A table in the form that [`Iptables::restore`] reads; empty where nobody made it yet.
    ///
    /// # Errors
    /// Where the program cannot be run or the kernel has no such table.
    fn save(&self, family: Family, table: &str) -> Result<String, Error>;

    /// The rules of one chain.
    ///
    /// # Errors
    /// Where there is no such chain.
    fn chain(&self, family: Family, table: &str, chain: &str) -> Result<String, Error>;
}

/// The programs on PATH.
///
/// [`Variant::Legacy`] makes a table as soon as it is asked for it, so that here it is asked only for those that are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Programs(pub Variant);

/// How long a program may wait for another that holds the tables' lock, in seconds.
const LOCK_WAIT: &str = "10";

impl Programs {
    /// Those of the interface that `iptables` stands for on this machine.
    ///
    /// # Errors
    /// Where there is none.
    pub fn of_machine() -> Result<Self, Error> {
        let version = Self(Variant::Default).run(Family::V4, "", &["--version"], "")?;
        Ok(Self(if version.contains("nf_tables") { Variant::Nft } else { Variant::Legacy }))
    }

    /// `action` is `-restore`, `-save` or nothing.
    fn run(self, family: Family, action: &str, words: &[&str], script: &str) -> Result<String, Error> {
        let base = if family == Family::V4 { "iptables" } else { "ip6tables" };
        let variant = match self.0 {
            Variant::Default => "",
            Variant::Legacy => "-legacy",
            Variant::Nft => "-nft",
        };
        let program = format!("{base}{variant}{action}");
        let done = exec::run_with(Path::new(&program), words, script.as_bytes());
        let output = done.map_err(|source| Error::Start { program: program.clone(), source })?;
        if output.success {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Refused { program, reason: reason(&String::from_utf8_lossy(&output.stderr), script) })
    }
}

/// The first line of a report, with the line of the script that it names.
fn reason(report: &str, script: &str) -> String {
    let text = report.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim();
    let number = report.split("line").skip(1).find_map(|rest| {
        let digits: String = rest.trim_start_matches([':', ' ']).chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().ok()
    });
    let line = number.and_then(|number| script.lines().nth(number.checked_sub(1)?)).unwrap_or_default();
    let line: String = line.chars().take(200).collect();
    if line.is_empty() { text.to_owned() } else { format!("{text}: {line}") }
}

impl Iptables for Programs {
    fn restore(&self, family: Family, script: &str) -> Result<(), Error> {
        self.run(family, "-restore", &["--noflush", "-w", LOCK_WAIT], script).map(drop)
    }

    fn save(&self, family: Family, table: &str) -> Result<String, Error> {
        let names = if family == Family::V4 { "ip_tables_names" } else { "ip6_tables_names" };
        let made = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        if self.0 == Variant::Legacy && !made.lines().any(|name| name == table) {
            return Ok(String::new());
        }
        self.run(family, "-save", &["-t", table], "")
    }

    fn chain(&self, family: Family, table: &str, chain: &str) -> Result<String, Error> {
        self.run(family, "", &["-w", LOCK_WAIT, "-t", table, "-S", chain], "")
    }
}

type Tables = BTreeMap<(Family, String), BTreeMap<String, Vec<String>>>;

/// Tables in memory: chains with their rules, by what scripts declare, append, insert and delete.
#[derive(Debug, Default)]
pub struct Fake {
    pub tables: Mutex<Tables>,
    /// Scripts in the order in which they were applied.
    pub applied: Mutex<Vec<String>>,
    /// The next `restore` calls that shall fail, each with its reason.
    pub refuse: Mutex<Vec<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Iptables for Fake {
    fn restore(&self, family: Family, script: &str) -> Result<(), Error> {
        let refused = |reason: String| Error::Refused { program: "iptables-restore".into(), reason };
        if let Some(reason) = locked(&self.refuse).pop() {
            return Err(refused(reason));
        }
        let mut tables = locked(&self.tables);
        let mut next = tables.clone();
        let mut table = String::new();
        for line in script.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
                continue;
            }
            let chains = next.entry((family, table.clone())).or_default();
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            let missing = || refused(format!("no such chain: {line}"));
            match word {
                "COMMIT" => {}
                "-A" => chains.get_mut(chain).ok_or_else(missing)?.push(rule.to_owned()),
                "-I" => chains.entry(chain.to_owned()).or_default().insert(0, rule.to_owned()),
                "-D" => chains.get_mut(chain).ok_or_else(missing)?.retain(|other| other != rule),
                "-X" => {
                    let used = format!("-j {chain}");
                    if chains.values().flatten().any(|rule| rule.ends_with(&used)) {
                        return Err(refused(format!("in use: {chain}")));
                    }
                    drop(chains.remove(chain).ok_or_else(missing)?);
                }
                _ if line.starts_with(':') => drop(chains.insert(word[1..].to_owned(), Vec::new())),
                _ => return Err(refused(format!("what is {line:?}"))),
            }
        }
        *tables = next;
        locked(&self.applied).push(script.to_owned());
        Ok(())
    }

    fn save(&self, family: Family, table: &str) -> Result<String, Error> {
        let tables = locked(&self.tables);
        let chains = tables.get(&(family, table.to_owned()));
        let mut text = format!("*{table}\n");
        for name in chains.iter().flat_map(|chains| chains.keys()) {
            text.push_str(&format!(":{name} - [0:0]\n"));
        }
        for (name, rules) in chains.into_iter().flatten() {
            rules.iter().for_each(|rule| text.push_str(&format!("-A {name} {rule}\n")));
        }
        Ok(text + "COMMIT\n")
    }

    fn chain(&self, family: Family, table: &str, chain: &str) -> Result<String, Error> {
        let tables = locked(&self.tables);
        let rules = tables.get(&(family, table.to_owned())).and_then(|chains| chains.get(chain));
        let rules = rules.ok_or_else(|| Error::Refused { program: "iptables".into(), reason: "no chain".into() })?;
        Ok(rules.iter().map(|rule| format!("-A {chain} {rule}\n")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_line() {
        let script = "*nat\n-A X -j NOSUCH\nCOMMIT\n";
        let said =
            "iptables-restore v1.8.9 (nf_tables): Couldn't load target `NOSUCH'\n\nError occurred at line: 2\nTry";
        assert!(reason(said, script).ends_with("`NOSUCH': -A X -j NOSUCH"));
        assert_eq!(reason("iptables-restore: line 3 failed", script), "iptables-restore: line 3 failed: COMMIT");
        assert_eq!(reason("", ""), "no reason given");
    }

    #[test]
    fn both_variants_keep_what_a_script_does_not_name() {
        if !crate::test::root("iptables") {
            return;
        }
        for variant in [Variant::Legacy, Variant::Nft] {
            let tables = Programs(variant);
            let netns = crate::netns::Netns::anonymous().unwrap();
            netns
                .run(|| {
                    for family in [Family::V4, Family::V6] {
                        match tables.restore(family, "*filter\n:ONE - [0:0]\n-A ONE -j RETURN\nCOMMIT\n") {
                            Err(error) if error.is_absent() => return println!("SKIPPED {variant:?}: {error}"),
                            done => done.unwrap(),
                        }
                        tables.restore(family, "*filter\n:TWO - [0:0]\n-A TWO -j ONE\nCOMMIT\n").unwrap();
                        let saved = tables.save(family, "filter").unwrap();
                        assert!(saved.contains("-A ONE -j RETURN") && saved.contains("-A TWO -j ONE"), "{saved}");
                        assert!(tables.chain(family, "filter", "TWO").unwrap().contains("-A TWO -j ONE"));
                        assert!(tables.chain(family, "filter", "THREE").is_err());
                        let refused = tables.restore(family, "*filter\n-A NONE -j ONE\nCOMMIT\n").unwrap_err();
                        assert!(
                            refused.to_string().contains("-A NONE -j ONE") || refused.to_string().contains("line"),
                            "{refused}"
                        );
                    }
                })
                .unwrap();
        }
    }
}
