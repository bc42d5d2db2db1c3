//! One call of one plugin.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::cni::Success;
use kernel::exec::{Bounds, Finished, run_bounded};
use kernel::process::Ended;
use serde_json::{Map, Value};

use super::CniError;

/// More than any plugin has to say.
const OUTPUT: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Check,
    Del,
    Gc,
    Status,
}

impl Command {
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }

    /// Whether it is about one attachment.
    fn is_of_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Check | Self::Del)
    }
}

/// Whose attachment a call is about; empty for GC and STATUS.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Subject<'a> {
    pub container: &'a str,
    pub interface: &'a str,
    /// Empty where the namespace is gone (DEL only).
    pub netns: &'a str,
    pub args: &'a [(String, String)],
}

/// A plugin to be called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plugin<'a> {
    pub network: &'a str,
    /// Its type: the name of the program.
    pub kind: &'a str,
    pub dirs: &'a [PathBuf],
    pub timeout: Duration,
}

impl Plugin<'_> {
    pub fn find(&self) -> Result<PathBuf, CniError> {
        let found = self.dirs.iter().map(|dir| dir.join(self.kind)).find(|path| path.is_file());
        found.ok_or_else(|| CniError::Missing {
            network: self.network.to_owned(),
            plugin: self.kind.to_owned(),
            dirs: self.dirs.to_vec(),
        })
    }

    /// Runs it to its end and returns its standard output.
    pub fn call(
        &self,
        command: Command,
        subject: &Subject<'_>,
        stdin: &Map<String, Value>,
    ) -> Result<Vec<u8>, CniError> {
        let program = self.find()?;
        let environment = environment(command, subject, self.dirs);
        let pairs: Vec<(&str, &str)> = environment.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let input = serde_json::to_vec(stdin).map_err(|error| self.failed(command, error.to_string()))?;
        let begun = Instant::now();
        let finished = run_bounded(&program, &pairs, &input, Bounds { time: self.timeout, output: OUTPUT });
        let elapsed = begun.elapsed();
        tracing::debug!(plugin = self.kind, command = command.name(), ?elapsed, "called a CNI plugin");
        let finished = finished.map_err(|error| self.failed(command, error.to_string()))?;
        self.judge(command, finished)
    }

    fn judge(&self, command: Command, finished: Finished) -> Result<Vec<u8>, CniError> {
        match refusal(&finished) {
            None => Ok(finished.stdout),
            Some(Ok(source)) => Err(CniError::Plugin {
                network: self.network.to_owned(),
                plugin: self.kind.to_owned(),
                command: command.name(),
                source,
            }),
            Some(Err(said)) => Err(self.failed(command, format!("CNI plugin {:?} {said}", self.kind))),
        }
    }

    /// What ADD answered, in whatever version; one that does not say is in the `version` asked for.
    pub fn result(&self, version: &str, stdout: &[u8]) -> Result<Success, CniError> {
        let garbage = |error: &dyn std::fmt::Display| {
            self.failed(Command::Add, format!("CNI plugin {:?} gave no usable result: {error}", self.kind))
        };
        let mut value: Value = serde_json::from_slice(stdout).map_err(|error| garbage(&error))?;
        if let Some(map) = value.as_object_mut()
            && map.get("cniVersion").and_then(Value::as_str).unwrap_or_default().is_empty()
        {
            map.insert("cniVersion".to_owned(), version.into());
        }
        Success::parse(&value).map_err(|error| garbage(&error))
    }

    fn failed(&self, command: Command, reason: String) -> CniError {
        CniError::Run { network: self.network.to_owned(), command: command.name(), reason }
    }
}

/// The variables of the specification; the plugin has ours beside them, because many look for `PATH` or proxies.
fn environment(command: Command, subject: &Subject<'_>, dirs: &[PathBuf]) -> Vec<(&'static str, String)> {
    let path: Vec<String> = dirs.iter().map(|dir: &PathBuf| display(dir)).collect();
    let mut variables = vec![("CNI_COMMAND", command.name().to_owned()), ("CNI_PATH", path.join(":"))];
    // Set in any case: what we were started with must not show through.
    let given = |value: String| if command.is_of_attachment() { value } else { String::new() };
    let args: Vec<String> = subject.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    variables.extend([
        ("CNI_CONTAINERID", given(subject.container.to_owned())),
        ("CNI_NETNS", given(subject.netns.to_owned())),
        ("CNI_IFNAME", given(subject.interface.to_owned())),
        ("CNI_ARGS", given(args.join(";"))),
    ]);
    variables
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// Why a plugin failed: its error, or what is known where it gave none.
fn refusal(finished: &Finished) -> Option<Result<api::cni::Error, String>> {
    if finished.ended.is_success() {
        return None;
    }
    if let Ok(error) = serde_json::from_slice::<api::cni::Error>(&finished.stdout)
        && !(error.msg.is_empty() && error.code == 0)
    {
        return Some(Ok(error));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let said = [text(&finished.stderr), text(&finished.stdout)].into_iter().find(|said| !said.is_empty());
    let how = match finished.ended {
        Ended::Code(code) => format!("ended with exit code {code}"),
        Ended::Signal(signal) => format!("was killed by signal {signal}"),
    };
    Some(Err(said.map_or_else(|| format!("{how} and said nothing"), |said| format!("{how}: {said}"))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLUGIN: Plugin<'static> = Plugin { network: "pods", kind: "bridge", dirs: &[], timeout: Duration::ZERO };

    #[test]
    fn the_environment_is_that_of_the_specification() {
        let args = [("IgnoreUnknown".to_owned(), "1".to_owned()), ("K8S_POD_NAME".to_owned(), "web".to_owned())];
        let subject = Subject { container: "abc", interface: "eth0", netns: "/run/ns/net", args: &args };
        let dirs = [PathBuf::from("/a"), PathBuf::from("/b")];
        let expected = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_PATH", "/a:/b"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_NETNS", "/run/ns/net"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web"),
        ];
        assert_eq!(environment(Command::Add, &subject, &dirs), expected.map(|(key, value)| (key, value.to_owned())));
        let status = environment(Command::Status, &subject, &dirs);
        assert_eq!(status.iter().filter(|(_, value)| value.is_empty()).count(), 4);
    }

    #[test]
    fn a_refusal_is_the_plugins_own_words_where_it_has_any() {
        let ended = |ended, stdout: &str, stderr: &str| {
            let finished = Finished { ended, stdout: stdout.into(), stderr: stderr.into() };
            PLUGIN.judge(Command::Add, finished).map(|_| ()).map_err(|error| (error.code(), error.to_string()))
        };
        assert_eq!(ended(Ended::Code(0), "{}", "noise"), Ok(()));
        let json = r#"{"cniVersion":"1.0.0","code":11,"msg":"busy","details":"come back"}"#;
        assert_eq!(
            ended(Ended::Code(1), json, "noise"),
            Err((Some(11), r#"network "pods": CNI plugin "bridge" failed ADD: busy: come back"#.to_owned()))
        );
        let bare = |ended_by, stdout, stderr| ended(ended_by, stdout, stderr).unwrap_err();
        assert_eq!(
            bare(Ended::Code(2), "{}", "panic: oh\n"),
            (None, r#"network "pods": ADD: CNI plugin "bridge" ended with exit code 2: panic: oh"#.to_owned())
        );
        assert_eq!(
            bare(Ended::Signal(9), "", ""),
            (None, r#"network "pods": ADD: CNI plugin "bridge" was killed by signal 9 and said nothing"#.to_owned())
        );
    }

    #[test]
    fn a_result_without_a_version_is_in_the_one_asked_for() {
        let result = PLUGIN.result("1.0.0", br#"{"ips":[{"address":"10.0.0.2/24"}]}"#).unwrap();
        assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/24");
        let error = PLUGIN.result("1.0.0", b"hello").unwrap_err().to_string();
        assert!(
            error.starts_with(r#"network "pods": ADD: CNI plugin "bridge" gave no usable result: expected"#),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn any_output_is_a_result_or_an_error(
            bytes in any::<Vec<u8>>(), json in "[{}\\[\\]\":,a-z0-9.]*", code in 0..3
        ) {
            for bytes in [bytes, json.into_bytes()] {
                let _ = PLUGIN.result("1.1.0", &bytes);
                let finished = Finished { ended: Ended::Code(code), stdout: bytes, stderr: Vec::new() };
                prop_assert_eq!(PLUGIN.judge(Command::Add, finished).is_ok(), code == 0);
            }
        }
    }
}
