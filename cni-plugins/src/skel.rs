//! The frame around every plugin: environment, standard input, version negotiation, error JSON, exit code.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use api::cni::{
    Attachment, CniArgs, Dns, Error, NetworkConfig, Success, VERSIONS, VersionInfo, code, is_identifier, negotiate,
};
use kernel::netlink::Mac;
use serde_json::Value;

use crate::veth;

/// One call of a plugin, checked.
#[derive(Debug, Clone, Default)]
pub struct Call {
    pub container_id: String,
    /// Path of the container's network namespace. DEL may come without.
    pub netns: Option<PathBuf>,
    pub ifname: String,
    pub args: CniArgs,
    /// Where plugins lie, colon-separated.
    pub path: String,
    pub config: NetworkConfig,
    /// The configuration as it came, for a plugin that this one calls.
    pub stdin: Vec<u8>,
}

impl Call {
    /// The previous plugin's result, which a chained plugin and every CHECK need.
    pub fn previous(&self) -> Result<Success, Error> {
        let previous = self.config.previous()?;
        previous.ok_or_else(|| Error::config("required prevResult is missing"))
    }

    /// The plugin's own keys of the configuration.
    pub fn own<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_value(Value::Object(self.config.rest.clone()))
            .map_err(|error| Error::config(format!("cannot read the configuration of {}: {error}", self.config.kind)))
    }

    /// The hardware address that the container's interface shall have: the runtime's word counts before that of
    /// `args.cni`, of `CNI_ARGS` and of the configuration.
    pub fn mac(&self, configured: &str) -> Result<Option<Mac>, Error> {
        let conventional = self.config.cni_args().and_then(|args| args.get("mac")).and_then(Value::as_str);
        let said =
            [Some(self.config.runtime_config.mac.as_str()), conventional, self.args.get("MAC"), Some(configured)];
        let said = said.into_iter().flatten().find(|mac| !mac.is_empty());
        said.map(str::parse).transpose().map_err(|error| Error::config(format!("mac: {error}")))
    }

    /// A resolver that the configuration names counts before the IPAM plugin's.
    pub fn override_dns(&self, result: &mut Success) {
        if self.config.dns != Dns::default() {
            result.dns = self.config.dns.clone();
        }
    }

    /// Whose an object of the kernel is, as written into its comment or alias: `CONTAINER/INTERFACE@NETWORK`.
    pub fn owner(&self) -> String {
        owner(&self.container_id, &self.ifname, &self.config.name)
    }
}

/// What nftables takes for a comment, in bytes.
const COMMENT: usize = 127;
/// What of it a network may have, so that there is room for sixteen digits.
const NETWORK: usize = COMMENT - 17;

/// See [`Call::owner`]. Where names are too long, digits stand for them.
pub fn owner(container: &str, ifname: &str, network: &str) -> String {
    let suffix = suffix(network);
    let text = format!("{container}/{ifname}{suffix}");
    if text.len() <= COMMENT {
        return text;
    }
    format!("{:016x}{suffix}", veth::digest(&text))
}

/// By which the things of a network are known.
fn suffix(network: &str) -> String {
    match network.len() > NETWORK - 1 {
        false => format!("@{network}"),
        true => format!("@{:016x}", veth::digest(network)),
    }
}

/// Tells the owners on that network that are none of the `valid` attachments: whose things GC removes.
pub fn gone_owners(network: &str, valid: &[Attachment]) -> impl Fn(&str) -> bool {
    let known: Vec<String> = valid.iter().map(|a| owner(&a.container_id, &a.ifname, network)).collect();
    let suffix = suffix(network);
    move |owner| owner.ends_with(&suffix) && !known.iter().any(|k| k == owner)
}

/// What a plugin does for each command. Only ADD has to be there; what a plugin leaves out succeeds.
pub trait Plugin: Sync {
    fn add(&self, call: &Call) -> Result<Success, Error>;
    fn del(&self, _call: &Call) -> Result<(), Error> {
        Ok(())
    }
    fn check(&self, _call: &Call) -> Result<(), Error> {
        Ok(())
    }
    fn gc(&self, _call: &Call) -> Result<(), Error> {
        Ok(())
    }
    fn status(&self, _call: &Call) -> Result<(), Error> {
        Ok(())
    }
}

/// Does one call from beginning to end.
pub fn run(
    plugin: &dyn Plugin,
    environment: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
) -> ExitCode {
    let mut input = Vec::new();
    let read = stdin.read_to_end(&mut input);
    let asked = serde_json::from_slice::<Value>(&input)
        .ok()
        .and_then(|value| value.get("cniVersion").and_then(Value::as_str).map(str::to_owned));
    let outcome = match read {
        Ok(_) => answer(plugin, environment, input),
        Err(error) => Err(Error::new(code::IO_FAILURE, format!("cannot read the configuration: {error}"))),
    };
    let (text, exit) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value.to_string(), ExitCode::SUCCESS),
        Err(mut error) => {
            // An error in a version that the caller may not know is still best told in the version it asked in.
            error.cni_version = asked.unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned());
            error.msg = one_line(&error.msg);
            (serde_json::to_string(&error).unwrap_or_default(), ExitCode::FAILURE)
        }
    };
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => exit,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A message quotes the configuration, or another plugin, and those may say anything.
fn one_line(message: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    message.chars().map(shown).collect()
}

fn answer(
    plugin: &dyn Plugin,
    environment: &dyn Fn(&str) -> Option<String>,
    input: Vec<u8>,
) -> Result<Option<Value>, Error> {
    let command = environment("CNI_COMMAND").unwrap_or_default();
    if command == "VERSION" {
        let value: Value = serde_json::from_slice(&input).unwrap_or_default();
        let asked = value.get("cniVersion").and_then(Value::as_str).unwrap_or(VERSIONS[VERSIONS.len() - 1]);
        return serde_json::to_value(VersionInfo::ours(asked)).map(Some).map_err(Error::internal);
    }
    let call = parse(&command, environment, input)?;
    let version = call.config.cni_version.clone();
    let since = |needed: &str| {
        let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
        match place(&version) >= place(needed) {
            true => Ok(()),
            false => Err(Error::new(code::INCOMPATIBLE_VERSION, format!("config version does not allow {command}"))),
        }
    };
    match command.as_str() {
        "ADD" => plugin.add(&call)?.render(&version).map(Some),
        "DEL" => plugin.del(&call).map(|()| None),
        "CHECK" => since("0.4.0").and_then(|()| plugin.check(&call)).map(|()| None),
        "GC" => since("1.1.0").and_then(|()| plugin.gc(&call)).map(|()| None),
        "STATUS" => since("1.1.0").and_then(|()| plugin.status(&call)).map(|()| None),
        other => Err(Error::new(code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND: {other}"))),
    }
}

/// The variables that each command cannot do without.
fn required(command: &str) -> &'static [&'static str] {
    match command {
        "ADD" | "CHECK" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
        "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
        "GC" | "STATUS" => &["CNI_PATH"],
        _ => &[],
    }
}

fn parse(command: &str, environment: &dyn Fn(&str) -> Option<String>, stdin: Vec<u8>) -> Result<Call, Error> {
    let bad = |msg: String| Error::new(code::INVALID_ENVIRONMENT, msg);
    let given = |key: &str| environment(key).filter(|value| !value.is_empty());
    if command.is_empty() {
        return Err(bad("required env variables [CNI_COMMAND] missing".into()));
    }
    let missing: Vec<&str> = required(command).iter().copied().filter(|key| given(key).is_none()).collect();
    if !missing.is_empty() {
        return Err(bad(format!("required env variables [{}] missing", missing.join(","))));
    }
    let undecodable = |error| Error::new(code::DECODING_FAILURE, format!("cannot decode the configuration: {error}"));
    let mut value: Value = serde_json::from_slice(&stdin).map_err(undecodable)?;
    drop_nulls(&mut value);
    let config: NetworkConfig = serde_json::from_value(value).map_err(undecodable)?;
    negotiate(&config.cni_version)?;
    if !is_identifier(&config.name) {
        return Err(Error::config(format!("invalid network name {:?}", config.name)));
    }
    let call = Call {
        container_id: given("CNI_CONTAINERID").unwrap_or_default(),
        netns: given("CNI_NETNS").map(PathBuf::from),
        ifname: given("CNI_IFNAME").unwrap_or_default(),
        args: CniArgs::parse(&given("CNI_ARGS").unwrap_or_default())?,
        path: given("CNI_PATH").unwrap_or_default(),
        config,
        stdin,
    };
    if required(command).contains(&"CNI_CONTAINERID") {
        if !is_identifier(&call.container_id) {
            return Err(bad(format!("invalid CNI_CONTAINERID {:?}", call.container_id)));
        }
        if !is_interface_name(&call.ifname) {
            return Err(bad(format!("invalid CNI_IFNAME {:?}", call.ifname)));
        }
    }
    Ok(call)
}

/// A key whose value is null is as good as absent, to the reference too.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// What the kernel takes for an interface's name.
fn is_interface_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() < 16
        && !matches!(text, "." | "..")
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Echo;
    impl Plugin for Echo {
        fn add(&self, call: &Call) -> Result<Success, Error> {
            call.config.previous().map(Option::unwrap_or_default)
        }
    }

    fn called(environment: &[(&str, &str)], stdin: &Value) -> (Value, bool) {
        let mut out = Vec::new();
        let find = |key: &str| environment.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned());
        let exit = run(&Echo, &find, &mut stdin.to_string().as_bytes(), &mut out);
        (serde_json::from_slice(&out).unwrap_or_default(), exit == ExitCode::SUCCESS)
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "a1"),
        ("CNI_NETNS", "/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt"),
    ];

    #[test]
    fn the_answer_is_in_the_version_asked_for() {
        let (value, ok) = called(&ADD, &json!({"cniVersion": "0.3.1", "name": "n", "type": "echo"}));
        assert_eq!((value, ok), (json!({"cniVersion": "0.3.1", "dns": {}}), true));
        let (value, _) = called(&[("CNI_COMMAND", "VERSION")], &json!({"cniVersion": "0.4.0"}));
        assert_eq!(value["supportedVersions"], json!(VERSIONS));
    }

    /// However long the names are, GC finds what is a network's, and DEL only its own.
    #[test]
    fn owners_fit_into_a_comment_and_are_told_apart() {
        assert_eq!(owner("c1", "eth0", "net"), "c1/eth0@net");
        for network in ["n".repeat(3), "n".repeat(60), "n".repeat(110), "n".repeat(200)] {
            let attachment = |container_id: String| Attachment { container_id, ifname: "éth0".into() };
            let [one, other] = ["a", "b"].map(|last| attachment("0".repeat(120) + last));
            let owner = |a: &Attachment| owner(&a.container_id, &a.ifname, &network);
            assert!(owner(&one).len() <= COMMENT, "{}", owner(&one));
            assert_ne!(owner(&one), owner(&other));
            let is_gone = gone_owners(&network, std::slice::from_ref(&one));
            assert_eq!([is_gone(&owner(&one)), is_gone(&owner(&other))], [false, true]);
            assert!(!is_gone(&super::owner("c", "eth0", "others")));
        }
    }

    #[test]
    fn failures_are_json_with_a_code() {
        let config = json!({"cniVersion": "1.1.0", "name": "n", "type": "echo"});
        let cases = [
            (vec![("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a"), ("CNI_PATH", "/")], config.clone(), 4),
            (ADD.to_vec(), json!({"cniVersion": "9.9.9", "name": "n"}), 1),
            (ADD.to_vec(), json!({"cniVersion": "1.0.0", "name": "../n"}), 7),
            (ADD.to_vec(), json!("text"), 6),
            (vec![("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/")], json!({"cniVersion": "1.0.0", "name": "n"}), 1),
        ];
        for (environment, config, code) in cases {
            let (value, ok) = called(&environment, &config);
            assert_eq!((value["code"].as_u64(), ok), (Some(code), false), "{value}");
        }
        // What it quotes may have lines of its own.
        let (value, _) = called(&ADD, &json!({"cniVersion": "1.1.0", "name": "n", "prevResult": "a\nb\u{1b}c"}));
        let message = value["msg"].as_str().unwrap_or_default();
        assert!(!message.is_empty() && !message.contains(char::is_control), "{message:?}");
        assert_eq!(one_line("é: a\nb"), "é: a\\nb");
        let (value, _) = called(&[("CNI_COMMAND", "ADD"), ("CNI_PATH", "/")], &config);
        assert_eq!(value["msg"], "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing");
    }
}
