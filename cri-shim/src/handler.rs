//! Runtime handlers: the OCI runtimes that a pod may ask for by name.

use std::path::{Path, PathBuf};

use crate::container::spec::{Handler as Ability, HostFacts};
use crate::containerd::runc;

/// An OCI runtime under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    pub name: String,
    /// A path, or a name that containerd's shim looks up in its PATH.
    pub program: PathBuf,
    /// What it can do, as far as specs depend on it.
    pub ability: Ability,
}

/// All handlers; the first is what a pod gets that asks for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handlers(Vec<Handler>);

/// Why a list of handlers cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("runtime handler {0:?} must be NAME=PROGRAM, as crun=/usr/bin/crun")]
    Form(String),
    #[error("runtime handler {0:?} is given twice")]
    Twice(String),
}

impl Handlers {
    /// Reads `NAME=PROGRAM` for each. Where none is given: `runc`, and `crun` if a folder of `path` has it.
    ///
    /// # Errors
    /// Where one has another form, or a name comes twice.
    pub fn parse(given: &[String], path: &[PathBuf]) -> Result<Self, Error> {
        let mut all: Vec<Handler> = Vec::new();
        for text in given {
            let parts = text.split_once('=').filter(|(name, program)| !name.is_empty() && !program.is_empty());
            let (name, program) = parts.ok_or_else(|| Error::Form(text.clone()))?;
            if all.iter().any(|handler| handler.name == name) {
                return Err(Error::Twice(name.to_owned()));
            }
            all.push(Handler::new(name, program.into()));
        }
        if all.is_empty() {
            all.push(Handler::new("runc", "runc".into()));
            let crun = path.iter().map(|dir| dir.join("crun")).find(|program| program.is_file());
            all.extend(crun.map(|program| Handler::new("crun", program)));
        }
        Ok(Self(all))
    }

    /// The handler of this name; the first for the empty name.
    pub fn find(&self, name: &str) -> Option<&Handler> {
        if name.is_empty() { self.0.first() } else { self.0.iter().find(|handler| handler.name == name) }
    }

    /// Asks each program what it can do. Blocks.
    pub fn ask(&mut self, host: &HostFacts) {
        for handler in &mut self.0 {
            handler.ability = Ability::probe(&handler.name, &handler.program.to_string_lossy(), host);
        }
    }

    pub fn all(&self) -> &[Handler] {
        &self.0
    }
}

impl Handler {
    fn new(name: &str, program: PathBuf) -> Self {
        Self { name: name.to_owned(), program, ability: Ability { name: name.to_owned(), ..Ability::default() } }
    }

    /// What containerd's shim is told of it. The state of each runtime lies apart: they do not read each other's.
    pub fn options(&self, state: &Path, systemd_cgroup: bool) -> runc::Options {
        runc::Options {
            binary_name: self.program.to_string_lossy().into_owned(),
            root: state.join("runtimes").join(&self.name).to_string_lossy().into_owned(),
            systemd_cgroup,
            ..runc::Options::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_ones_in_order_or_what_is_there() {
        let given = ["crun=/usr/bin/crun".to_owned(), "runc=runc".to_owned()];
        let handlers = Handlers::parse(&given, &[]).unwrap();
        assert_eq!(handlers.find("").unwrap().name, "crun");
        assert_eq!(handlers.find("runc").unwrap().program, PathBuf::from("runc"));
        assert_eq!(handlers.find("kata"), None);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Handlers::parse(&[], &[dir.path().into()]).unwrap().all().len(), 1);
        std::fs::write(dir.path().join("crun"), "").unwrap();
        assert_eq!(Handlers::parse(&[], &[dir.path().into()]).unwrap().all()[1].name, "crun");
    }

    #[test]
    fn other_forms_are_refused() {
        let parse = |given: &[&str]| {
            Handlers::parse(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), &[]).unwrap_err()
        };
        assert_eq!(parse(&["crun"]), Error::Form("crun".into()));
        assert_eq!(parse(&["=x"]), Error::Form("=x".into()));
        assert_eq!(parse(&["a=b", "a=c"]), Error::Twice("a".into()));
    }
}
