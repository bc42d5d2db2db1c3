//! The configuration file: what of KubeSchedulerConfiguration is supported, and the names of what is not.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Map, Value};

/// What the configuration says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub kubeconfig: Option<PathBuf>,
    pub scheduler_name: Option<String>,
}

/// Reads a KubeSchedulerConfiguration.
///
/// # Errors
/// Where it is no such YAML, or sets a field that is not supported; all of them are named.
pub fn parse(text: &str) -> anyhow::Result<Config> {
    let value: Value = serde_saphyr::from_str(text).context("parse the scheduler configuration")?;
    let fields = value.as_object().context("the scheduler configuration is no mapping")?;
    let kind = fields.get("kind").and_then(Value::as_str);
    let version = fields.get("apiVersion").and_then(Value::as_str);
    anyhow::ensure!(
        kind == Some("KubeSchedulerConfiguration") && version == Some("kubescheduler.config.k8s.io/v1"),
        "the scheduler configuration has to be a kubescheduler.config.k8s.io/v1 KubeSchedulerConfiguration"
    );
    let mut unsupported = others(fields, &["kind", "apiVersion", "clientConnection", "leaderElection", "profiles"], "");
    let connection = mapping(fields.get("clientConnection"));
    unsupported.extend(others(&connection, &["kubeconfig"], "clientConnection."));
    let election = mapping(fields.get("leaderElection"));
    if election.get("leaderElect").is_some_and(|elect| elect != false) {
        unsupported.push("leaderElection.leaderElect: true".into());
    }
    unsupported.extend(others(&election, &["leaderElect"], "leaderElection."));
    let profiles = fields.get("profiles").and_then(Value::as_array).cloned().unwrap_or_default();
    if profiles.len() > 1 {
        unsupported.push("profiles[1]".into());
    }
    let profile = mapping(profiles.first());
    unsupported.extend(others(&profile, &["schedulerName"], "profiles[0]."));
    anyhow::ensure!(unsupported.is_empty(), "the scheduler does not support {}", unsupported.join(", "));
    let text = |fields: &Map<String, Value>, key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
    Ok(Config {
        kubeconfig: text(&connection, "kubeconfig").map(PathBuf::from),
        scheduler_name: text(&profile, "schedulerName"),
    })
}

fn mapping(value: Option<&Value>) -> Map<String, Value> {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

fn others(fields: &Map<String, Value>, known: &[&str], prefix: &str) -> Vec<String> {
    fields.keys().filter(|key| !known.contains(&key.as_str())).map(|key| format!("{prefix}{key}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

    #[test]
    fn takes_what_it_knows_and_names_what_it_does_not() {
        let good = "clientConnection: {kubeconfig: /k}\nleaderElection: {leaderElect: false}\nprofiles: [{schedulerName: s}]\n";
        let expected = Config { kubeconfig: Some("/k".into()), scheduler_name: Some("s".into()) };
        assert_eq!(parse(&format!("{HEAD}{good}")).unwrap(), expected);
        let bad = "parallelism: 4\nprofiles: [{plugins: {}}]\n";
        let error = parse(&format!("{HEAD}{bad}")).unwrap_err().to_string();
        assert_eq!(error, "the scheduler does not support parallelism, profiles[0].plugins");
    }
}
