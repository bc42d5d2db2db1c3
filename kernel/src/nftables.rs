//! nftables: a script to `nft -f -`, which the kernel takes as one transaction, whole or not at all.
//!
//! Source: nft(8). The text form is the stable interface; what the parts write is made by their renderers.

mod messages;

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{Emitable, NlasIterator};

use crate::netlink::socket::Socket;

pub use messages::{Element, Elements, Family, Key, Part, Value, Verb};

/// Why a transaction or a listing failed. The kernel's state is then as it was before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run nft (package nftables): {0}")]
    Start(io::Error),
    #[error("cannot talk to nft or the kernel: {0}")]
    Pipe(io::Error),
    /// Something named in the script is not there.
    #[error("nft refused: {0}")]
    Missing(String),
    /// Something the script creates is there with other content.
    #[error("nft refused: {0}")]
    Exists(String),
    #[error("nft refused: {0}")]
    Refused(String),
}

/// What applies scripts to the rules of the caller's network namespace.
pub trait Nftables: Send + Sync {
    /// Applies `script` in one transaction.
    ///
    /// # Errors
    /// Where nft cannot be run or the transaction was refused, with nft's reason.
    fn apply(&self, script: &str) -> Result<(), Error>;

    /// Changes elements in one transaction, in the order given.
    ///
    /// # Errors
    /// As of [`Self::apply`].
    fn change(&self, changes: &[Elements<'_>]) -> Result<(), Error> {
        self.apply(&changes.iter().map(ToString::to_string).collect::<String>())
    }

    /// Whether the chain is there.
    ///
    /// # Errors
    /// As of [`Self::list`].
    fn has_chain(&self, family: Family, table: &str, chain: &str) -> Result<bool, Error> {
        match self.list(&format!("list chain {family} {table} {chain}")) {
            Ok(_) => Ok(true),
            Err(Error::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Runs a `list` command and returns its text, `list table ip x` for instance.
    ///
    /// # Errors
    /// [`Error::Missing`] where there is no such object.
    fn list(&self, command: &str) -> Result<String, Error>;
}

/// The `nft` program on PATH, and the kernel itself for what is asked often.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nft;

impl Nftables for Nft {
    fn apply(&self, script: &str) -> Result<(), Error> {
        run(script).map(|_| ())
    }

    fn change(&self, changes: &[Elements<'_>]) -> Result<(), Error> {
        /// More does not fit one message, and is worth a program's start.
        const MOST: usize = 500;
        match changes.iter().map(|change| change.elements.len()).sum::<usize>() {
            ..=MOST => messages::change(changes),
            _ => self.apply(&changes.iter().map(ToString::to_string).collect::<String>()),
        }
    }

    fn has_chain(&self, family: Family, table: &str, chain: &str) -> Result<bool, Error> {
        messages::has_chain(family, table, chain)
    }

    fn list(&self, command: &str) -> Result<String, Error> {
        run(command)
    }
}

fn run(script: &str) -> Result<String, Error> {
    // Numeric output, so that a listing says the same on every machine.
    let mut child = Command::new("nft")
        .args(["-n", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::Start)?;
    // nft reads all of its input before it writes, so that this cannot block on a full pipe.
    let wrote = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(Error::Pipe)?;
    if output.status.success() {
        wrote.map_err(Error::Pipe)?;
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(refusal(&String::from_utf8_lossy(&output.stderr)))
}

/// The first error line of nft's report tells the cause; those after it are often its echo.
fn refusal(report: &str) -> Error {
    let mut lines = report.lines().filter(|line| !line.trim().is_empty());
    let first =
        lines.find(|line| line.contains("Error:")).or_else(|| report.lines().next()).unwrap_or("no reason given");
    let reason = first.split_once("Error:").map_or(first, |(_, reason)| reason).trim();
    let source = report.lines().skip_while(|line| *line != first).nth(1).unwrap_or_default().trim();
    let shown: String = source.chars().take(200).collect();
    let text = if shown.is_empty() { reason.to_owned() } else { format!("{reason}: {shown}") };
    if reason.contains("No such file or directory") {
        Error::Missing(text)
    } else if reason.contains("File exists") {
        Error::Exists(text)
    } else {
        Error::Refused(text)
    }
}

/// A socket that tells which generation the rules of its network namespace are at: a number that each transaction,
/// whoever makes it, replaces by another. Source: linux/netfilter/nf_tables.h, `NFT_MSG_GETGEN`.
#[derive(Debug)]
pub struct Generations(Socket);

impl Generations {
    /// # Errors
    /// Where the kernel gives no netfilter socket.
    pub fn open() -> io::Result<Self> {
        Socket::open(netlink_sys::protocols::NETLINK_NETFILTER).map(Self)
    }

    /// # Errors
    /// Where the kernel has no nftables.
    pub fn current(&mut self) -> io::Result<u32> {
        const GET: u16 = 10 << 8 | 16;
        let answer = self.0.get(GET, &AnyFamily)?;
        generation(&answer.unwrap_or_default())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer without a generation"))
    }
}

/// A `nfgenmsg` that asks for no family.
struct AnyFamily;

impl Emitable for AnyFamily {
    fn buffer_len(&self) -> usize {
        4
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

/// The number of the ruleset in the kernel's answer.
pub fn generation(answer: &[u8]) -> Option<u32> {
    const ID: u16 = 1;
    let mut attributes = NlasIterator::new(answer.get(4..)?).filter_map(Result::ok);
    let id = attributes.find(|attribute| attribute.kind() == ID)?;
    Some(u32::from_be_bytes(id.value().try_into().ok()?))
}

/// Remembers scripts, refuses on request.
#[derive(Debug, Default)]
pub struct Fake {
    /// Scripts in the order in which they were applied.
    pub applied: Mutex<Vec<String>>,
    /// The next `apply` calls that shall fail, each with its reason.
    pub refuse: Mutex<Vec<String>>,
    /// What `list` answers; `None` is [`Error::Missing`].
    pub listing: Mutex<Option<String>>,
}

impl Nftables for Fake {
    fn apply(&self, script: &str) -> Result<(), Error> {
        if let Some(reason) = self.refuse.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Err(Error::Refused(reason));
        }
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).push(script.to_owned());
        Ok(())
    }

    fn list(&self, command: &str) -> Result<String, Error> {
        let listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        listing.ok_or_else(|| Error::Missing(command.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_and_where() {
        let report = "/dev/stdin:1:18-20: Error: No such file or directory\nlist table ip foo\n                 ^^^\n";
        let error = refusal(report);
        assert!(matches!(error, Error::Missing(_)));
        assert_eq!(error.to_string(), "nft refused: No such file or directory: list table ip foo");
    }

    #[test]
    fn a_transaction_is_whole_or_nothing() {
        if !crate::test::root("nftables") {
            return;
        }
        let netns = crate::netns::Netns::anonymous().unwrap();
        netns
            .run(|| {
                Nft.apply("add table ip one\nadd set ip one s { type ipv4_addr; }\nadd element ip one s { 10.0.0.1 }")
                    .unwrap();
                let refused = Nft.apply("add table ip two\nadd element ip one nosuch { 10.0.0.1 }").unwrap_err();
                assert!(matches!(refused, Error::Missing(_)), "{refused}");
                assert!(matches!(Nft.list("list table ip two"), Err(Error::Missing(_))));
                assert!(Nft.list("list set ip one s").unwrap().contains("10.0.0.1"));

                let mut generations = Generations::open().unwrap();
                let before = generations.current().unwrap();
                assert_eq!(generations.current().unwrap(), before);
                Nft.apply("add table ip three").unwrap();
                assert_ne!(generations.current().unwrap(), before);
            })
            .unwrap();
    }
}
