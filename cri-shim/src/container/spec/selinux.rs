//! SELinux contexts of containers and of their files. Sources: CRI's SELinuxOption; the SELinux notebook; containerd's CRI
//! plugin and go-selinux, whose answers these are but for one: a container that asks for a type or user without a level has
//! its pod's level, and not one that would keep it from its pod's files.

use std::path::{Path, PathBuf};

use cri::v1;
use oci_spec::runtime::Spec;
use sha2::{Digest, Sha256};

use super::{ContainerInput, HostFacts, SpecError, sandbox_security_of};

/// What a policy has for containers. Source: container-selinux, the file `contexts`; selabel_lxc(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxContexts {
    pub process: String,
    pub file: String,
}

impl SelinuxContexts {
    /// From lines such as `process = "system_u:system_r:container_t:s0"`; none, where the policy has none for containers.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once('='));
            let (_, value) = pairs.find(|(name, _)| name.trim() == key)?;
            Some(value.trim().trim_matches('"').to_owned()).filter(|value| !value.is_empty())
        };
        Some(Self { process: value("process")?, file: value("file")? })
    }

    /// Whether the policy has levels.
    pub(crate) fn have_levels(&self) -> bool {
        self.process.splitn(4, ':').count() == 4
    }
}

/// A context of a process and one of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labels {
    /// None for a privileged one, whose domain is then what the policy has for it, as spc_t.
    pub(crate) process: Option<String>,
    pub(crate) mount: String,
}

/// The labels of a container; none, where SELinux is off. `level` is the pod's, where its config names none.
pub(crate) fn labels(
    host: &HostFacts,
    security: &v1::LinuxContainerSecurityContext,
    sandbox: &v1::PodSandboxConfig,
    level: Option<&str>,
) -> Result<Option<Labels>, SpecError> {
    let Some(contexts) = &host.selinux else { return Ok(None) };
    let of_pod = sandbox_security_of(sandbox).selinux_options.unwrap_or_default();
    let level = Some(of_pod.level.as_str()).filter(|level| !level.is_empty()).or(level);
    let options = security.selinux_options.as_ref().unwrap_or(&of_pod);
    let labels = filled(contexts, options, level)?;
    Ok(Some(Labels { process: labels.process.filter(|_| !security.privileged), ..labels }))
}

/// The contexts with what `options` name; `level` where they name none.
fn filled(contexts: &SelinuxContexts, options: &v1::SeLinuxOption, level: Option<&str>) -> Result<Labels, SpecError> {
    let named = [("user", &options.user), ("role", &options.role), ("type", &options.r#type)];
    for (option, value) in named {
        if value.chars().any(|c| !(c.is_ascii_alphanumeric() || c == '_' || c == '.' || c == '-')) {
            return Err(SpecError::SelinuxOption { option, value: value.clone() });
        }
    }
    if !(options.level.is_empty() || is_level(&options.level)) {
        return Err(SpecError::SelinuxOption { option: "level", value: options.level.clone() });
    }
    let level = if options.level.is_empty() { level.unwrap_or_default() } else { &options.level };
    let fill = |context: &str, over: [&str; 4]| {
        let mut own = context.splitn(4, ':');
        let parts = over.map(|given| {
            let own = own.next().unwrap_or_default();
            if given.is_empty() { own } else { given }
        });
        // Without a level where the policy has none.
        parts.join(":").trim_end_matches(':').to_owned()
    };
    Ok(Labels {
        process: Some(fill(&contexts.process, [&options.user, &options.role, &options.r#type, level])),
        // Files have the object role and a type of their own.
        mount: fill(&contexts.file, [&options.user, "", "", level]),
    })
}

pub(crate) fn apply(spec: &mut Spec, labels: Labels) {
    if let Some(process) = spec.process_mut() {
        process.set_selinux_label(labels.process);
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_mount_label(Some(labels.mount));
    }
}

/// What has to be labelled before a container may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relabel {
    pub label: String,
    pub paths: Vec<PathBuf>,
}

impl Relabel {
    /// Labels everything. Blocks for as long as the folders are large.
    ///
    /// # Errors
    /// At the first file that the kernel refuses.
    pub fn run(&self) -> Result<(), kernel::selinux::Error> {
        self.paths.iter().try_for_each(|path| kernel::selinux::relabel(path, &self.label))
    }
}

/// Files and folders of the machine itself: their label is not for a request to change.
const OF_THE_MACHINE: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// What a container with this spec needs labelled: nothing where it has no label.
///
/// # Errors
/// Where a mount asks for a folder of the machine itself to be labelled.
pub fn relabel(input: &ContainerInput<'_>, spec: &Spec) -> Result<Option<Relabel>, SpecError> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().clone()).unwrap_or_default();
    if label.is_empty() {
        return Ok(None);
    }
    // Images are mounted with their label.
    let shows_image = |mount: &v1::Mount| mount.image.as_ref().is_some_and(|image| !image.image.is_empty());
    let asked = input.config.mounts.iter().zip(&input.gathered.mounts);
    let asked = asked.filter(|(mount, _)| mount.selinux_relabel && !shows_image(mount));
    let mut paths = Vec::new();
    for (mount, source) in asked {
        if OF_THE_MACHINE.iter().any(|own| source.path == Path::new(own)) {
            let reason = "a folder of the machine itself gets no other SELinux label: unset selinux_relabel";
            return Err(SpecError::Mount { path: mount.container_path.clone(), reason });
        }
        paths.push(source.path.clone());
    }
    let pod = input.sandbox;
    let own_shm = Some(pod.shm).filter(|shm| *shm != Path::new("/dev/shm"));
    let files = [Some(pod.hosts), Some(pod.hostname), Some(pod.resolv_conf), own_shm];
    paths.extend(files.into_iter().flatten().map(PathBuf::from));
    paths.extend(input.volumes.iter().map(|volume| volume.source.clone()));
    Ok(Some(Relabel { label, paths }))
}

/// `s0`, `s0-s15`, either with `:c1,c5.c9`. Source: the SELinux notebook, MLS and MCS ranges.
fn is_level(text: &str) -> bool {
    let number = |text: &str, letter: char, digits: usize| {
        let rest = text.strip_prefix(letter).unwrap_or_default();
        (1..=digits).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_digit())
    };
    let categories =
        |text: &str| text.split(',').all(|r| r.split('.').count() <= 2 && r.split('.').all(|c| number(c, 'c', 4)));
    let one = |text: &str| match text.split_once(':') {
        None => number(text, 's', 2),
        Some((sensitivity, of)) => number(sensitivity, 's', 2) && categories(of),
    };
    text.split('-').count() <= 2 && text.split('-').all(one)
}

/// A level for a pod that names none: two categories of 1024 that no level of `taken` has, first those that the pod's
/// id leads to. The same pod has the same level as long as those before it stay.
pub(crate) fn mcs_level(sandbox_id: &str, taken: &[String]) -> String {
    const CATEGORIES: u64 = 1024;
    const PAIRS: u64 = CATEGORIES * (CATEGORIES - 1) / 2;
    let digest = Sha256::digest(sandbox_id.as_bytes());
    let start = digest.iter().take(8).fold(0_u64, |n, byte| n << 8 | u64::from(*byte)) % PAIRS;
    let level = |pair: u64| {
        let (mut low, mut left) = (0, pair);
        while left >= CATEGORIES - 1 - low {
            left -= CATEGORIES - 1 - low;
            low += 1;
        }
        format!("s0:c{low},c{}", low + 1 + left)
    };
    let mut candidates = (0..PAIRS).map(|n| level((start + n) % PAIRS));
    candidates.find(|level| !taken.contains(level)).unwrap_or_else(|| level(start))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::selinux as contexts;
    use super::*;

    #[test]
    fn contexts_are_a_policys() {
        let text =
            "# process = \"no\"\nprocess = \"u:r:svirt_lxc_net_t:s0\"\ncontent = \"x\"\nfile = \"u:object_r:f:s0\"\n";
        let parsed = SelinuxContexts::parse(text).unwrap();
        assert_eq!((parsed.process.as_str(), parsed.file.as_str()), ("u:r:svirt_lxc_net_t:s0", "u:object_r:f:s0"));
        assert_eq!(SelinuxContexts::parse("process = \"u:r:t:s0\"\n"), None);
        assert_eq!(SelinuxContexts::parse(""), None);
    }

    #[test]
    fn a_privileged_container_has_files_with_a_label_and_the_pods_level_is_for_all() {
        let host = HostFacts { selinux: Some(contexts()), ..HostFacts::default() };
        let with = |pod: &str, own: Option<&str>, privileged| {
            let options = |level: &str| v1::SeLinuxOption { level: level.into(), ..Default::default() };
            let security =
                v1::LinuxSandboxSecurityContext { selinux_options: Some(options(pod)), ..Default::default() };
            let linux = v1::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
            let sandbox = v1::PodSandboxConfig { linux: Some(linux), ..Default::default() };
            let selinux_options = own.map(options);
            let security = v1::LinuxContainerSecurityContext { selinux_options, privileged, ..Default::default() };
            let made = labels(&host, &security, &sandbox, Some("s0:c1,c2")).unwrap().unwrap();
            (made.process.map(|label| label.replace("system_u:system_r:container_t:", "")), made.mount)
        };
        let of = |level: &str| format!("system_u:object_r:container_file_t:{level}");
        assert_eq!(with("", None, false), (Some("s0:c1,c2".into()), of("s0:c1,c2")));
        assert_eq!(with("s0:c3", Some(""), false), (Some("s0:c3".into()), of("s0:c3")));
        assert_eq!(with("s0:c3", Some("s0:c4"), false), (Some("s0:c4".into()), of("s0:c4")));
        assert_eq!(with("", None, true), (None, of("s0:c1,c2")));
        let off = labels(&HostFacts::default(), &Default::default(), &Default::default(), None);
        assert_eq!(off.unwrap(), None);
    }

    #[test]
    fn labels_take_what_is_asked_and_keep_the_rest() {
        let contexts = contexts();
        let options = |user: &str, role: &str, kind: &str, level: &str| v1::SeLinuxOption {
            user: user.into(),
            role: role.into(),
            r#type: kind.into(),
            level: level.into(),
        };
        let labels =
            |o: &v1::SeLinuxOption| filled(&contexts, o, Some("s0:c1,c2")).map(|l| (l.process.unwrap(), l.mount));
        assert_eq!(
            labels(&options("", "", "", "")).unwrap(),
            ("system_u:system_r:container_t:s0:c1,c2".into(), "system_u:object_r:container_file_t:s0:c1,c2".into())
        );
        assert_eq!(
            labels(&options("user_u", "r", "t_t", "s0:c4,c5")).unwrap(),
            ("user_u:r:t_t:s0:c4,c5".into(), "user_u:object_r:container_file_t:s0:c4,c5".into())
        );
        let no_levels = SelinuxContexts { process: "u:r:t".into(), file: "u:object_r:f".into() };
        assert!(contexts.have_levels() && !no_levels.have_levels());
        let plain = filled(&no_levels, &options("", "", "", ""), None).unwrap();
        assert_eq!((plain.process.as_deref(), plain.mount.as_str()), (Some("u:r:t"), "u:object_r:f"));
        assert!(labels(&options("user u", "", "", "")).is_err());
        assert!(labels(&options("", "", "", "wrong")).is_err());
    }

    #[test]
    fn levels() {
        for good in ["s0", "s0:c1", "s0:c1,c1023", "s0:c0.c1023", "s0-s15:c0.c3,c5"] {
            assert!(is_level(good), "{good}");
        }
        for bad in ["", "s", "c1", "s0:", "s0:c", "s0:c12345", "s0-s1-s2", "s0:c1.c2.c3", "s0 "] {
            assert!(!is_level(bad), "{bad}");
        }
        let first = mcs_level("abc", &[]);
        let second = mcs_level("abc", std::slice::from_ref(&first));
        assert!(is_level(&first) && is_level(&second) && first != second, "{first} {second}");
    }
}
