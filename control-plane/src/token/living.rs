//! A token holds while what it is bound to lives: its service account, and its pod, secret or node.

use api::meta;
use serde_json::Value;

use super::{Kubernetes, Reference, TokenError};
use crate::server::Server;

/// What is being deleted counts as living for this many seconds after its time.
const LEEWAY: i64 = 60;

pub async fn check(server: &Server, bound: &Kubernetes) -> Result<(), TokenError> {
    // A pod's token names its node for information; only a token of the node itself is bound to it.
    let node = bound.node.as_ref().filter(|_| bound.pod.is_none());
    let bonds: [(&'static str, &'static str, &str, Option<&Reference>); 4] = [
        ("service account", "serviceaccounts", &bound.namespace, Some(&bound.serviceaccount)),
        ("secret", "secrets", &bound.namespace, bound.secret.as_ref()),
        ("pod", "pods", &bound.namespace, bound.pod.as_ref()),
        ("node", "nodes", "", node),
    ];
    for (what, plural, namespace, reference) in bonds {
        let Some(reference) = reference else { continue };
        let resource = server.resource("", plural).ok_or(TokenError::Invalidated)?;
        match server.get(resource, namespace, &reference.name).await {
            Ok(object) => judge(what, &object, reference, server.now())?,
            Err(status) if status.code == 404 => return Err(TokenError::Invalidated),
            Err(status) => return Err(TokenError::Unknown(status)),
        }
    }
    Ok(())
}

fn judge(what: &'static str, object: &Value, claimed: &Reference, now: i64) -> Result<(), TokenError> {
    let found = meta::uid(object);
    if found != claimed.uid {
        return Err(TokenError::Uid { what, found: found.into(), claimed: claimed.uid.clone() });
    }
    match meta::deletion_time(object) {
        Some(at) if at < now - LEEWAY => Err(TokenError::Invalidated),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_object_must_be_the_same_and_not_long_deleted() {
        let claimed = Reference { name: "p".into(), uid: "u".into() };
        let at = |object: Value, now| judge("pod", &object, &claimed, now);
        let pod = json!({"metadata": {"uid": "u"}});
        let dying = json!({"metadata": {"uid": "u", "deletionTimestamp": "1970-01-01T00:01:40Z"}});
        assert_eq!(at(pod, 1_000_000), Ok(()));
        assert_eq!(at(dying.clone(), 160), Ok(()));
        assert_eq!(at(dying, 161), Err(TokenError::Invalidated));
        assert!(matches!(at(json!({"metadata": {"uid": "v"}}), 0), Err(TokenError::Uid { .. })));
    }
}
