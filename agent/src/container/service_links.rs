//! The environment variables that name the Services of a pod's namespace.

use std::collections::BTreeMap;

/// What is kept of a Service with a cluster IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceLink {
    pub name: String,
    pub cluster_ip: String,
    pub ports: Vec<LinkPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPort {
    pub name: String,
    pub protocol: String,
    pub port: i32,
}

/// The variables for these Services, in Docker's link format and Kubernetes' own.
pub fn variables(services: &[ServiceLink]) -> BTreeMap<String, String> {
    services.iter().flat_map(variables_of).collect()
}

fn variables_of(service: &ServiceLink) -> Vec<(String, String)> {
    let Some(first) = service.ports.first() else { return Vec::new() };
    let prefix = env_name(&service.name);
    let ip = &service.cluster_ip;
    let mut out = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.clone()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
        (format!("{prefix}_PORT"), url(first, ip)),
    ];
    for port in &service.ports {
        if !port.name.is_empty() {
            out.push((format!("{prefix}_SERVICE_PORT_{}", env_name(&port.name)), port.port.to_string()));
        }
        let base = format!("{prefix}_PORT_{}_{}", port.port, port.protocol.to_uppercase());
        out.push((base.clone(), url(port, ip)));
        out.push((format!("{base}_PROTO"), port.protocol.to_lowercase()));
        out.push((format!("{base}_PORT"), port.port.to_string()));
        out.push((format!("{base}_ADDR"), ip.clone()));
    }
    out
}

fn url(port: &LinkPort, ip: &str) -> String {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_string() };
    format!("{}://{host}:{}", port.protocol.to_lowercase(), port.port)
}

fn env_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_service_with_two_ports() {
        let port = |name: &str, port| LinkPort { name: name.into(), protocol: "TCP".into(), port };
        let service = ServiceLink {
            name: "my-web".into(),
            cluster_ip: "10.96.0.7".into(),
            ports: vec![port("http", 80), port("", 81)],
        };
        let lines: Vec<String> = variables(&[service]).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            lines,
            [
                "MY_WEB_PORT=tcp://10.96.0.7:80",
                "MY_WEB_PORT_80_TCP=tcp://10.96.0.7:80",
                "MY_WEB_PORT_80_TCP_ADDR=10.96.0.7",
                "MY_WEB_PORT_80_TCP_PORT=80",
                "MY_WEB_PORT_80_TCP_PROTO=tcp",
                "MY_WEB_PORT_81_TCP=tcp://10.96.0.7:81",
                "MY_WEB_PORT_81_TCP_ADDR=10.96.0.7",
                "MY_WEB_PORT_81_TCP_PORT=81",
                "MY_WEB_PORT_81_TCP_PROTO=tcp",
                "MY_WEB_SERVICE_HOST=10.96.0.7",
                "MY_WEB_SERVICE_PORT=80",
                "MY_WEB_SERVICE_PORT_HTTP=80",
            ]
        );
    }
}
