//! Profiles from files (Localhost): the runtime spec's `linux.seccomp`, and Docker's superset of it, whose rules may
//! depend on the capabilities that a process holds. Sources: config-linux.md, moby's profiles/seccomp.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSyscall,
};
use serde::Deserialize;

/// The largest profile that is read, bytes.
const LARGEST: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("seccomp profile {0:?}: the path must be absolute")]
    NotAbsolute(PathBuf),
    #[error("cannot read seccomp profile {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("seccomp profile {} is malformed: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
}

/// A profile, before it is known which process it is for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    arch_map: Vec<Architecture>,
    #[serde(default)]
    flags: Vec<LinuxSeccompFilterFlag>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

/// An architecture and those whose programs its kernel runs too.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// An older form of `names`.
    #[serde(default)]
    name: String,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<Capability>,
    /// Names as Go has them.
    arches: Vec<String>,
    min_kernel: String,
}

impl Profile {
    /// # Errors
    /// Where the path is not absolute, the file cannot be read, or is no profile.
    pub fn read(path: &Path) -> Result<Self, ProfileError> {
        if !path.is_absolute() {
            return Err(ProfileError::NotAbsolute(path.into()));
        }
        let unreadable = |source| ProfileError::Read { path: path.into(), source };
        let metadata = fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() || metadata.len() > LARGEST {
            let reason = format!("it is not a regular file of at most {LARGEST} bytes");
            return Err(ProfileError::Malformed { path: path.into(), reason });
        }
        let bytes = fs::read(path).map_err(unreadable)?;
        Self::parse(&bytes).map_err(|reason| ProfileError::Malformed { path: path.into(), reason })
    }

    /// # Errors
    /// Where the bytes are no profile.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let profile: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        match profile.syscalls.iter().position(|r| r.name.is_empty() && r.names.is_empty()) {
            Some(at) => Err(format!("rule {at} names no system call")),
            None => Ok(profile),
        }
    }

    /// The filter for a process that holds these capabilities.
    pub fn resolve(&self, held: &Capabilities) -> LinuxSeccomp {
        let rules = self.syscalls.iter().filter(|r| r.counts(held)).map(Rule::to_oci).collect();
        let mut filter = LinuxSeccomp::default();
        filter.set_default_action(self.default_action).set_default_errno_ret(self.default_errno_ret);
        filter.set_architectures(some(self.architectures())).set_flags(some(self.flags.clone()));
        filter.set_listener_path(self.listener_path.clone()).set_listener_metadata(self.listener_metadata.clone());
        filter.set_syscalls(Some(rules));
        filter
    }

    fn architectures(&self) -> Vec<Arch> {
        let own = super::default::architectures().and_then(|all| all.first().copied());
        let mapped = self.arch_map.iter().find(|a| Some(a.architecture) == own);
        match mapped {
            Some(found) if self.architectures.is_empty() => {
                let others = found.sub_architectures.iter().flatten().copied();
                [found.architecture].into_iter().chain(others).collect()
            }
            _ => self.architectures.clone(),
        }
    }
}

fn some<T>(all: Vec<T>) -> Option<Vec<T>> {
    if all.is_empty() { None } else { Some(all) }
}

impl Rule {
    fn counts(&self, held: &Capabilities) -> bool {
        let included = self.includes.as_ref().is_none_or(|c| c.is_met(held));
        let excluded = self.excludes.as_ref().is_some_and(|c| c.touches(held));
        included && !excluded
    }

    fn to_oci(&self) -> LinuxSyscall {
        let mut rule = LinuxSyscall::default();
        let names = if self.name.is_empty() { self.names.clone() } else { vec![self.name.clone()] };
        rule.set_names(names).set_action(self.action).set_errno_ret(self.errno_ret);
        rule.set_args(self.args.clone().filter(|args| !args.is_empty()));
        rule
    }
}

impl Condition {
    /// All that is named holds. A least kernel always does: this program needs a newer one.
    fn is_met(&self, held: &Capabilities) -> bool {
        let architecture = self.arches.is_empty() || self.arches.iter().any(|a| a == go_architecture());
        architecture && self.caps.iter().all(|c| held.contains(c))
    }

    /// Anything that is named holds.
    fn touches(&self, held: &Capabilities) -> bool {
        let architecture = self.arches.iter().any(|a| a == go_architecture());
        architecture || !self.min_kernel.is_empty() || self.caps.iter().any(|c| held.contains(c))
    }
}

fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn resolved(profile: &str, held: &[Capability]) -> serde_json::Value {
        let held: Capabilities = held.iter().copied().collect();
        serde_json::to_value(Profile::parse(profile.as_bytes()).unwrap().resolve(&held)).unwrap()
    }

    #[test]
    fn a_plain_profile_stays_as_it_is() {
        let plain = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]}]
        });
        assert_eq!(resolved(&plain.to_string(), &[]), plain);
    }

    #[test]
    fn conditions_are_decided_by_the_capabilities() {
        let text = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}],
            "syscalls": [
                {"name": "read", "action": "SCMP_ACT_ALLOW", "args": []},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {"names": ["foreign"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["vax"]}}]
        })
        .to_string();
        let names = |held: &[Capability]| {
            let value = resolved(&text, held);
            let rules = value["syscalls"].as_array().unwrap().clone();
            rules.iter().map(|r| r["names"][0].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["read", "clone3", "ptrace"]);
        assert_eq!(names(&[Capability::SysAdmin]), ["read", "mount", "ptrace"]);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(resolved(&text, &[])["architectures"], json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]));
        }
    }

    #[test]
    fn files_that_are_no_profile_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            Profile::read(&path).map_err(|e| e.to_string())
        };
        assert!(read("good", r#"{"defaultAction": "SCMP_ACT_LOG"}"#).is_ok());
        assert!(read("empty", "").unwrap_err().contains("is malformed"));
        assert!(read("action", r#"{"defaultAction": "SCMP_ACT_FLY"}"#).unwrap_err().contains("SCMP_ACT_FLY"));
        let nameless = r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}"#;
        assert!(read("nameless", nameless).unwrap_err().ends_with("rule 0 names no system call"));
        assert!(
            Profile::read(&dir.path().join("none")).unwrap_err().to_string().starts_with("cannot read seccomp profile")
        );
        assert!(Profile::read(dir.path()).unwrap_err().to_string().contains("not a regular file"));
        assert!(matches!(Profile::read(Path::new("relative")), Err(ProfileError::NotAbsolute(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let _ = Profile::parse(&bytes);
        }
    }
}
