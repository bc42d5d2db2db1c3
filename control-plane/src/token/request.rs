//! `serviceaccounts/token`: a TokenRequest is answered with a token in its status.

use api::meta;
use api::status::{FieldError, Status};
use api::time::format;
use serde_json::{Value, json};

use super::{Claims, Kubernetes, Reference, Tokens};
use crate::ports::Question;
use crate::server::Server;

/// The lifetime that admission asks for in pods' volumes; a token for the API server that asks for just this lives a
/// year, and says from when on it should have been renewed.
pub const POD_TOKEN_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;
const DEFAULT_SECONDS: i64 = 3600;
const KIND: &str = "TokenRequest.authentication.k8s.io";

impl Tokens {
    /// # Errors
    /// Where the request is invalid, or names what is not there.
    pub async fn answer(&self, server: &Server, question: Question) -> Result<Value, Status> {
        let Question { namespace, name, mut object, .. } = question;
        self.complete(&mut object)?;
        let account = get(server, "serviceaccounts", &namespace, &name).await?;
        same_account(&object, &namespace, &name, meta::uid(&account))?;
        let bound = bind(server, &object, &namespace, &name).await?;
        let kubernetes = Kubernetes { serviceaccount: reference(&account), namespace: namespace.clone(), ..bound };
        let (claims, expires) = self.claims(&object["spec"], kubernetes, server.now());
        let token = self.keys.encode(&claims).map_err(Status::internal)?;
        object["metadata"] = json!({
            "name": name, "namespace": namespace, "uid": account["metadata"]["uid"],
            "creationTimestamp": format(server.now()),
        });
        object["status"] = json!({"token": token, "expirationTimestamp": format(expires)});
        Ok(object)
    }

    /// Fills in what was left open, and judges the rest.
    fn complete(&self, request: &mut Value) -> Result<(), Status> {
        let spec = &mut request["spec"];
        if !spec.is_object() {
            *spec = json!({});
        }
        if spec["audiences"].as_array().is_none_or(Vec::is_empty) {
            spec["audiences"] = json!(self.audiences);
        }
        if spec["expirationSeconds"].is_null() {
            spec["expirationSeconds"] = DEFAULT_SECONDS.into();
        }
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or_default();
        let why = match seconds {
            ..600 => "may not specify a duration less than 10 minutes",
            600..=0x1_0000_0000 => return Ok(()),
            _ => "may not specify a duration larger than 2^32 seconds",
        };
        Err(Status::invalid(KIND, "", &[FieldError::invalid("spec.expirationSeconds", seconds, why)]))
    }

    /// The claims, and when the answer says that they expire.
    fn claims(&self, spec: &Value, mut kubernetes: Kubernetes, now: i64) -> (Claims, i64) {
        let aud: Vec<String> =
            spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
        let mut lifetime = seconds;
        let ours = aud.iter().all(|audience| self.audiences.contains(audience));
        if kubernetes.pod.is_some() && seconds == POD_TOKEN_SECONDS && ours {
            lifetime = EXTENDED_SECONDS;
            kubernetes.warnafter = Some(now + seconds);
        }
        let claims = Claims {
            aud,
            exp: now + lifetime,
            iat: now,
            iss: self.issuer.clone(),
            jti: crate::random::uid(),
            sub: super::claims::username(&kubernetes.namespace, &kubernetes.serviceaccount.name),
            kubernetes,
            nbf: now,
        };
        (claims, now + seconds)
    }
}

fn same_account(request: &Value, namespace: &str, name: &str, uid: &str) -> Result<(), Status> {
    for (field, wanted) in [("name", name), ("namespace", namespace)] {
        let given = text(request, &format!("/metadata/{field}"));
        if !given.is_empty() && given != wanted {
            let why = format!("must match the service account {field} if specified");
            return Err(Status::invalid(KIND, name, &[FieldError::invalid(format!("metadata.{field}"), given, why)]));
        }
    }
    let given = meta::uid(request);
    if !given.is_empty() && given != uid {
        let why =
            format!("the UID in the token request ({given}) does not match the UID of the service account ({uid})");
        return Err(Status::conflict(KIND, name, &why));
    }
    Ok(())
}

/// What `boundObjectRef` leads to.
async fn bind(server: &Server, request: &Value, namespace: &str, account: &str) -> Result<Kubernetes, Status> {
    let reference_to = &request["spec"]["boundObjectRef"];
    if reference_to.is_null() {
        return Ok(Kubernetes::default());
    }
    let (version, kind) = (text(reference_to, "/apiVersion"), text(reference_to, "/kind"));
    let name = text(reference_to, "/name");
    let (plural, place) = match (version, kind) {
        ("v1", "Pod") => ("pods", namespace),
        ("v1", "Secret") => ("secrets", namespace),
        ("v1", "Node") => ("nodes", ""),
        _ => {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let what = format!("{group}/{version}, Kind={kind}");
            return Err(Status::bad_request(format!("cannot bind token to object of type {what}")));
        }
    };
    let object = get(server, plural, place, name).await?;
    let found = reference(&object);
    let claimed = text(reference_to, "/uid");
    if !claimed.is_empty() && claimed != found.uid {
        let why = format!(
            "the UID in the bound object reference ({claimed}) does not match the UID in record. The object might \
             have been deleted and then recreated"
        );
        return Err(Status::conflict(kind, name, &why));
    }
    Ok(match plural {
        "pods" if text(&object, "/spec/serviceAccountName") != account => {
            let why = format!(
                "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
            );
            return Err(Status::bad_request(why));
        }
        "pods" => Kubernetes { pod: Some(found), node: node_of(server, &object).await?, ..Kubernetes::default() },
        "secrets" => Kubernetes { secret: Some(found), ..Kubernetes::default() },
        _ => Kubernetes { node: Some(found), ..Kubernetes::default() },
    })
}

async fn node_of(server: &Server, pod: &Value) -> Result<Option<Reference>, Status> {
    let name = text(pod, "/spec/nodeName");
    if name.is_empty() {
        return Ok(None);
    }
    match get(server, "nodes", "", name).await {
        Ok(node) => Ok(Some(reference(&node))),
        Err(status) if status.code == 404 => Ok(Some(Reference { name: name.into(), uid: String::new() })),
        Err(status) => Err(status),
    }
}

async fn get(server: &Server, plural: &str, namespace: &str, name: &str) -> Result<std::sync::Arc<Value>, Status> {
    let resource = server.resource("", plural).ok_or_else(|| Status::not_found(plural, name))?;
    server.get(resource, namespace, name).await
}

fn reference(object: &Value) -> Reference {
    Reference { name: meta::name(object).into(), uid: meta::uid(object).into() }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let dir = tempfile::tempdir().unwrap();
        Tokens::new(super::super::keys::tests::keys(dir.path()), "issuer".into(), vec![])
    }

    #[test]
    fn open_fields_are_filled_and_short_lives_refused() {
        let mut request = json!({});
        tokens().complete(&mut request).unwrap();
        assert_eq!(request["spec"], json!({"audiences": ["issuer"], "expirationSeconds": 3600}));
        let refused = tokens().complete(&mut json!({"spec": {"expirationSeconds": 599}})).unwrap_err();
        assert_eq!(
            refused.message,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not \
             specify a duration less than 10 minutes"
        );
    }

    #[test]
    fn a_pods_token_outlives_its_answer() {
        let spec = json!({"audiences": ["issuer"], "expirationSeconds": POD_TOKEN_SECONDS});
        let pod = Kubernetes { pod: Some(Reference::default()), ..Kubernetes::default() };
        let (claims, expires) = tokens().claims(&spec, pod.clone(), 100);
        assert_eq!((claims.exp, claims.kubernetes.warnafter, expires), (100 + EXTENDED_SECONDS, Some(3707), 3707));
        let foreign = json!({"audiences": ["vault"], "expirationSeconds": POD_TOKEN_SECONDS});
        let (claims, expires) = tokens().claims(&foreign, pod, 100);
        assert_eq!((claims.exp, claims.kubernetes.warnafter, expires), (3707, None, 3707));
    }

    #[test]
    fn a_request_is_for_the_account_in_its_path() {
        let request = json!({"metadata": {"name": "b"}});
        assert_eq!(same_account(&request, "ns", "a", "u").unwrap_err().code, 422);
        let request = json!({"metadata": {"uid": "v"}});
        assert_eq!(same_account(&request, "ns", "a", "u").unwrap_err().code, 409);
        assert_eq!(same_account(&json!({}), "ns", "a", "u"), Ok(()));
    }
}
