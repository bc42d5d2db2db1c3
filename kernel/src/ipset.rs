//! ipset: sets of addresses and ports that iptables asks. Source: ipset(8).

use std::path::Path;

use crate::exec;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run ipset (package ipset): {0}")]
    Start(exec::Error),
    #[error("ipset refused: {0}")]
    Refused(String),
}

/// The sets of the caller's network namespace.
pub trait Ipset: Send {
    /// Runs commands, one a line; what is there already, or gone already, is no error.
    ///
    /// # Errors
    /// ipset's, with its reason. The commands before the refused one are done.
    fn restore(&self, script: &str) -> Result<(), Error>;

    /// The names of all sets.
    ///
    /// # Errors
    /// ipset's.
    fn names(&self) -> Result<Vec<String>, Error>;
}

/// The program on PATH.
#[derive(Debug, Clone, Copy, Default)]
pub struct Program;

fn run(words: &[&str], script: &str) -> Result<String, Error> {
    let output = exec::run_with(Path::new("ipset"), words, script.as_bytes()).map_err(Error::Start)?;
    match output.success {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Error::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

impl Ipset for Program {
    fn restore(&self, script: &str) -> Result<(), Error> {
        run(&["restore", "-exist"], script).map(drop)
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        Ok(run(&["list", "-name"], "")?.lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_come_and_go() {
        if !crate::test::root("ipset") {
            return;
        }
        let netns = crate::netns::Netns::anonymous().unwrap();
        netns
            .run(|| {
                match Program.restore("create bosun-test hash:ip,port\nadd bosun-test 10.0.0.1,tcp:80\n") {
                    Err(error @ Error::Start(_)) => return println!("SKIPPED ipset: {error}"),
                    done => done.unwrap(),
                }
                Program.restore("add bosun-test 10.0.0.1,tcp:80\ndel bosun-test 10.0.0.2,tcp:80\n").unwrap();
                assert_eq!(Program.names().unwrap(), ["bosun-test"]);
                assert!(Program.restore("add nosuch 10.0.0.1,tcp:80\n").is_err());
                Program.restore("destroy bosun-test\n").unwrap();
                assert!(Program.names().unwrap().is_empty());
            })
            .unwrap();
    }
}
