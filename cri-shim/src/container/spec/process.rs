//! The process of a container: command, environment, working directory, limits.

use std::path::{Path, PathBuf};

use cri::v1;
use oci_spec::image::Config as ImageConfig;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, Process, Spec};

use super::{ContainerInput, HostFacts, SpecError, capabilities, empty_process, image_config, user};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TERM: &str = "TERM=xterm";

pub(super) fn of(
    input: &ContainerInput<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<Process, SpecError> {
    let (config, image) = (input.config, image_config(input.image));
    let mut process = empty_process();
    process.set_terminal(Some(config.tty));
    process.set_args(Some(command(config, &image)?));
    process.set_env(Some(environment(input, &image)?));
    process.set_cwd(working_directory(config, &image));
    process.set_user(user::of(security, &image, &input.gathered.accounts)?);
    process.set_capabilities(Some(capabilities::of(security, input.host)?));
    process.set_no_new_privileges(Some(security.no_new_privs));
    process.set_rlimits(rlimits(&input.handler.rlimits, input.host));
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    process.set_oom_score_adj(resources.map(|r| oom_score(r.oom_score_adj, input.host)));
    Ok(process)
}

/// The process that a running container gets for an exec: as its first one, with another command.
///
/// # Errors
/// Where the container's spec has no process, or the command is empty.
pub fn exec_process(container: &Spec, command: &[String], terminal: bool) -> Result<Process, SpecError> {
    let mut process = container.process().clone().ok_or(SpecError::Incomplete("process"))?;
    if command.is_empty() {
        return Err(SpecError::NoCommand);
    }
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(terminal));
    process.set_console_size(None);
    let env = process.env_mut().get_or_insert_default();
    if terminal && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push(TERM.into());
    }
    Ok(process)
}

/// CRI's `command` stands for the image's entrypoint and makes its Cmd void; `args` stand for the image's Cmd.
fn command(config: &v1::ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let mut words = config.command.clone();
    let mut arguments = config.args.clone();
    if words.is_empty() {
        words = image.entrypoint().clone().unwrap_or_default();
        // An image built with an entrypoint of [""] has none.
        if words == [""] {
            words.clear();
        }
        if arguments.is_empty() {
            arguments = image.cmd().clone().unwrap_or_default();
        }
    }
    words.append(&mut arguments);
    if words.is_empty() { Err(SpecError::NoCommand) } else { Ok(words) }
}

/// A later variable replaces an earlier one of its name, in its place.
fn environment(input: &ContainerInput<'_>, image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let mut all = vec![PATH.to_owned()];
    if input.config.tty {
        all.push(TERM.into());
    }
    let own = &input.sandbox.config.hostname;
    let hostname = if own.is_empty() { &input.host.hostname } else { own };
    put(&mut all, format!("HOSTNAME={hostname}"));
    for variable in image.env().iter().flatten() {
        put(&mut all, variable.clone());
    }
    for variable in &input.config.envs {
        let fault = |fault| SpecError::Environment { name: variable.key.clone(), fault };
        let value = std::str::from_utf8(&variable.value);
        let value = value.map_err(|_| fault("not UTF-8, which the runtime spec cannot carry"))?;
        if variable.key.is_empty() || variable.key.contains(['=', '\0']) || value.contains('\0') {
            return Err(fault("malformed: names are not empty and hold no =, neither part holds a NUL"));
        }
        put(&mut all, format!("{}={value}", variable.key));
    }
    Ok(all)
}

fn put(all: &mut Vec<String>, variable: String) {
    let name = |v: &str| v.split_once('=').map_or(v.len(), |(name, _)| name.len());
    let length = name(&variable);
    let same = all.iter_mut().find(|old| name(old) == length && old[..length] == variable[..length]);
    match same {
        Some(old) => *old = variable,
        None => all.push(variable),
    }
}

/// A relative one, which some images have, starts at the root.
fn working_directory(config: &v1::ContainerConfig, image: &ImageConfig) -> PathBuf {
    let of_image = image.working_dir().clone().unwrap_or_default();
    Path::new("/").join(if config.working_dir.is_empty() { of_image } else { config.working_dir.clone() })
}

/// What can be set: a score below our own needs CAP_SYS_RESOURCE. Source: proc_pid_oom_score_adj(5).
pub(crate) fn oom_score(wanted: i64, host: &HostFacts) -> i32 {
    let wanted = i32::try_from(wanted.clamp(-1000, 1000)).unwrap_or_default();
    if host.may_raise() { wanted } else { wanted.max(host.oom_score_adj) }
}

/// What can be set: a limit above our own hard one needs CAP_SYS_RESOURCE. Source: getrlimit(2).
fn rlimits(wanted: &[PosixRlimit], host: &HostFacts) -> Option<Vec<PosixRlimit>> {
    let clamp = |limit: &PosixRlimit| {
        let most = if host.may_raise() { None } else { host.hard_limit(limit.typ()) };
        let hard = limit.hard().min(most.unwrap_or(u64::MAX));
        let clamped = PosixRlimitBuilder::default().typ(limit.typ()).hard(hard).soft(limit.soft().min(hard));
        // Every field is set, so that it can be built.
        clamped.build().unwrap_or(*limit)
    };
    if wanted.is_empty() { None } else { Some(wanted.iter().map(clamp).collect()) }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::PosixRlimitType;

    use super::*;

    fn words(all: &[&str]) -> Vec<String> {
        all.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn commands_by_the_table_of_kubernetes() {
        let image = |entrypoint: &[&str], cmd: &[&str]| {
            let mut image = ImageConfig::default();
            image.set_entrypoint(Some(words(entrypoint))).set_cmd(Some(words(cmd)));
            image
        };
        let run = |command_: &[&str], args: &[&str], image: &ImageConfig| {
            let config = v1::ContainerConfig { command: words(command_), args: words(args), ..Default::default() };
            command(&config, image).map_err(|e| e.to_string())
        };
        let both = image(&["/ep-1"], &["foo", "bar"]);
        assert_eq!(run(&[], &[], &both), Ok(words(&["/ep-1", "foo", "bar"])));
        assert_eq!(run(&["/ep-2"], &[], &both), Ok(words(&["/ep-2"])));
        assert_eq!(run(&[], &["zoo"], &both), Ok(words(&["/ep-1", "zoo"])));
        assert_eq!(run(&["/ep-2"], &["zoo"], &both), Ok(words(&["/ep-2", "zoo"])));
        assert_eq!(run(&[], &[], &image(&[""], &["sh"])), Ok(words(&["sh"])));
        assert!(run(&[], &[], &image(&[], &[])).unwrap_err().starts_with("no command"));
    }

    #[test]
    fn a_variable_replaces_its_own_name_only() {
        let mut all = words(&["A=1", "AB=2"]);
        put(&mut all, "A=3".into());
        put(&mut all, "B=4=5".into());
        put(&mut all, "B".into());
        assert_eq!(all, words(&["A=3", "AB=2", "B"]));
    }

    #[test]
    fn scores_and_limits_are_clamped_without_the_capability() {
        let poor = HostFacts {
            oom_score_adj: 5,
            hard_limits: [(PosixRlimitType::RlimitNofile as u8, 20_000)].into(),
            ..HostFacts::default()
        };
        let rich = HostFacts { capabilities: [oci_spec::runtime::Capability::SysResource].into(), ..poor.clone() };
        assert_eq!([oom_score(-999, &poor), oom_score(900, &poor), oom_score(-999, &rich)], [5, 900, -999]);
        assert_eq!([oom_score(-5000, &rich), oom_score(5000, &rich)], [-1000, 1000]);
        let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(30_000_u64);
        let limit = limit.hard(1_u64 << 20).build().unwrap();
        let clamped = |host| rlimits(&[limit], host).map(|l| (l[0].soft(), l[0].hard()));
        assert_eq!(clamped(&poor), Some((20_000, 20_000)));
        assert_eq!(clamped(&rich), Some((30_000, 1 << 20)));
        assert_eq!(rlimits(&[], &poor), None);
    }

    #[test]
    fn working_directories_are_absolute() {
        let mut image = ImageConfig::default();
        image.set_working_dir(Some("app".into()));
        let of = |dir: &str| {
            working_directory(&v1::ContainerConfig { working_dir: dir.into(), ..Default::default() }, &image)
        };
        assert_eq!(of(""), Path::new("/app"));
        assert_eq!(of("/srv"), Path::new("/srv"));
    }
}
