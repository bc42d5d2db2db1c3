//! `proxy` of nodes, pods and services: the request goes to the kubelet, the pod, or a ready endpoint.

use api::meta;
use api::status::Status;
use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::Value;

use super::kubelet::{Kubelet, Target};
use super::{headers, kubelet_of, splice};
use crate::ports::{Body, ConnectRequest};
use crate::server::Server;

/// Where a proxied request goes.
#[derive(Debug, PartialEq, Eq)]
struct Backend {
    target: Target,
    tls: bool,
}

/// `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    tls: bool,
    name: &'a str,
    port: &'a str,
}

pub async fn serve(kubelet: &Kubelet, server: &Server, asked: ConnectRequest) -> Result<Response<Body>, Status> {
    let plural = asked.resource.plural;
    let invalid = || Status::bad_request(format!("invalid {} request {:?}", plural.trim_end_matches('s'), asked.name));
    let named = split(&asked.name).ok_or_else(invalid)?;
    let backend = match plural {
        "nodes" => node(server, &named).await?,
        "services" => {
            let service = server.get(asked.resource, &asked.namespace, named.name).await?;
            let slices = match server.resource("discovery.k8s.io", "endpointslices") {
                Some(slices) => server.list(slices, &asked.namespace).await?,
                None => Vec::new(),
            };
            let why = || Status::unavailable(format!("no endpoints available for service {:?}", asked.name));
            endpoint(&service, &slices, &named).ok_or_else(why)?
        }
        _ => pod(&*server.get(asked.resource, &asked.namespace, named.name).await?, &named)?,
    };
    let query = asked.request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = format!("/{}{query}", rest(asked.request.uri().path(), !asked.namespace.is_empty()));
    if headers::upgrade(asked.request.headers()).is_some() && backend.tls {
        return splice::serve(kubelet, &backend.target, &path, asked.request).await;
    }
    let (head, body) = asked.request.into_parts();
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.uri_mut() = path.parse().map_err(|_| Status::bad_request("the path cannot be proxied"))?;
    *request.headers_mut() = headers::forwarded(&head.headers);
    let answer = match backend.tls {
        true => kubelet.send(&backend.target, request).await,
        false => kubelet.send_plain(&backend.target, request).await,
    };
    let answer = answer.map_err(|error| Status::unavailable(format!("error trying to reach service: {error}")))?;
    let kept = headers::forwarded(answer.headers());
    let mut response = answer.map(|body| body.map_err(Into::into).boxed_unsync());
    *response.headers_mut() = kept;
    Ok(response)
}

/// What follows `proxy/` in the path, escapes and all.
fn rest(path: &str, namespaced: bool) -> &str {
    // /api/v1/nodes/NAME/proxy/REST, /api/v1/namespaces/NAMESPACE/pods/NAME/proxy/REST
    let before = if namespaced { 8 } else { 6 };
    path.splitn(before + 1, '/').nth(before).unwrap_or_default()
}

fn split(id: &str) -> Option<Named<'_>> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => return None,
    };
    let tls = match scheme {
        "" | "http" => false,
        "https" => true,
        _ => return None,
    };
    (!name.is_empty()).then_some(Named { tls, name, port })
}

/// A node's proxy leads to its kubelet; another port of the node is reached without TLS unless the name says https.
async fn node(server: &Server, named: &Named<'_>) -> Result<Backend, Status> {
    let kubelet = kubelet_of(server, named.name).await?;
    let port = match named.port {
        "" => kubelet.port,
        port => port.parse().map_err(|_| Status::bad_request(format!("invalid node port {port:?}")))?,
    };
    let tls = named.tls || port == kubelet.port;
    Ok(Backend { target: Target { port, ..kubelet }, tls })
}

fn pod(pod: &Value, named: &Named<'_>) -> Result<Backend, Status> {
    let host = pod["status"]["podIP"].as_str().unwrap_or_default();
    let routable = host.parse::<std::net::IpAddr>().is_ok_and(|ip| {
        !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || host.starts_with("169.254."))
    });
    if !routable {
        return Err(Status::bad_request("address not allowed"));
    }
    let ports =
        || pod["spec"]["containers"].as_array().into_iter().flatten().filter_map(|c| c["ports"].as_array()).flatten();
    let port = match named.port {
        "" => ports().find_map(|port| port["containerPort"].as_u64()).unwrap_or(if named.tls { 443 } else { 80 }),
        name => name
            .parse()
            .ok()
            .or_else(|| ports().find(|port| port["name"] == name)?["containerPort"].as_u64())
            .ok_or_else(|| Status::bad_request(format!("no port {name:?} in pod {}", meta::name(pod))))?,
    };
    let port = u16::try_from(port).map_err(|_| Status::bad_request(format!("invalid port {port}")))?;
    Ok(Backend { target: Target { host: host.to_owned(), port }, tls: named.tls })
}

/// The first ready endpoint of the service's port.
fn endpoint(service: &Value, slices: &[Value], named: &Named<'_>) -> Option<Backend> {
    let ports = service["spec"]["ports"].as_array()?;
    let number = named.port.parse::<u64>().ok();
    let wanted = |port: &&Value| match named.port {
        "" => ports.len() == 1,
        name => port["name"] == name || number.is_some_and(|number| port["port"] == number),
    };
    let port = ports.iter().find(wanted)?;
    let name = port["name"].as_str().unwrap_or_default();
    let of_service = |slice: &&Value| meta::label(slice, "kubernetes.io/service-name") == Some(meta::name(service));
    slices.iter().filter(of_service).find_map(|slice| {
        let port = slice["ports"].as_array()?.iter().find(|port| port["name"].as_str().unwrap_or_default() == name)?;
        let ready = |endpoint: &&Value| endpoint["conditions"]["ready"] != false;
        let host = slice["endpoints"].as_array()?.iter().find(ready)?["addresses"][0].as_str()?;
        let port = port["port"].as_u64().and_then(|port| u16::try_from(port).ok())?;
        Some(Backend { target: Target { host: host.to_owned(), port }, tls: named.tls })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn backend(host: &str, port: u16, tls: bool) -> Backend {
        Backend { target: Target { host: host.into(), port }, tls }
    }

    #[test]
    fn names_carry_scheme_and_port() {
        assert_eq!(split("web"), Some(Named { tls: false, name: "web", port: "" }));
        assert_eq!(split("https:web:8443"), Some(Named { tls: true, name: "web", port: "8443" }));
        assert_eq!(split("ftp:web:21"), None);
        assert_eq!(split(""), None);
    }

    #[test]
    fn the_rest_of_the_path_stays_as_it_is() {
        assert_eq!(rest("/api/v1/nodes/n1/proxy/logs/a%20b/", false), "logs/a%20b/");
        assert_eq!(rest("/api/v1/namespaces/ns/pods/proxy/proxy/x", true), "x");
        assert_eq!(rest("/api/v1/namespaces/ns/pods/p/proxy", true), "");
    }

    #[test]
    fn pods_are_reached_at_their_first_port_and_never_on_loopback() {
        let object = json!({"status": {"podIP": "10.244.0.5"}, "spec": {"containers": [{"ports": [{"containerPort": 8080, "name": "web"}]}]}});
        assert_eq!(pod(&object, &split("p").unwrap()), Ok(backend("10.244.0.5", 8080, false)));
        assert_eq!(pod(&object, &split("p:web").unwrap()), Ok(backend("10.244.0.5", 8080, false)));
        assert_eq!(pod(&object, &split("https:p:1").unwrap()), Ok(backend("10.244.0.5", 1, true)));
        let local = json!({"status": {"podIP": "127.0.0.1"}});
        assert_eq!(pod(&local, &split("p").unwrap()).unwrap_err().message, "address not allowed");
    }

    #[test]
    fn services_lead_to_ready_endpoints() {
        let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
        let slice = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.244.0.5"], "conditions": {"ready": false}},
                {"addresses": ["10.244.0.6"], "conditions": {"ready": true}},
            ],
        });
        let slices = [slice];
        assert_eq!(endpoint(&service, &slices, &split("web").unwrap()), Some(backend("10.244.0.6", 8080, false)));
        assert_eq!(endpoint(&service, &slices, &split("web:80").unwrap()), Some(backend("10.244.0.6", 8080, false)));
        assert_eq!(endpoint(&service, &slices, &split("web:81").unwrap()), None);
    }
}
