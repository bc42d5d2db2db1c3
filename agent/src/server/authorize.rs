//! Who may do what: the API server says, about `nodes` of this node's name.

use std::time::Duration;

use http::{Method, StatusCode};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

use super::auth::{Cache, User, cached, remember};
use super::respond::Refusal;
use crate::config::{Authorization, AuthorizationMode};

/// What a request needs: the verb, on one of the subresources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    pub verb: &'static str,
    /// The finest first; any of them is enough.
    pub subresources: Vec<&'static str>,
}

/// The kubelet's mapping (KEP-2862): what has no subresource of its own needs `proxy`, and `proxy` still opens what got
/// a finer one.
pub(super) fn needed(method: &Method, path: &str) -> Needed {
    let verb = match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresources = match first {
        "stats" => vec!["stats"],
        "metrics" => vec!["metrics"],
        "logs" => vec!["log"],
        "checkpoint" => vec!["checkpoint"],
        "statusz" => vec!["statusz"],
        "flagz" => vec!["flagz"],
        "pods" | "runningpods" => vec!["pods", "proxy"],
        "healthz" => vec!["healthz", "proxy"],
        "configz" => vec!["configz", "proxy"],
        _ => vec!["proxy"],
    };
    Needed { verb, subresources }
}

/// The text of a refusal.
pub(super) fn forbidden(user: &str, needed: &Needed) -> String {
    let subresources = needed.subresources.join(" ");
    format!("Forbidden (user={user}, verb={}, resource=nodes, subresource(s)=[{subresources}])\n", needed.verb)
}

type Question = (User, &'static str, &'static str);

pub(super) struct Authorizer {
    client: kube::Client,
    node: String,
    mode: AuthorizationMode,
    allowed_life: Duration,
    denied_life: Duration,
    cache: Cache<Question, bool>,
}

impl Authorizer {
    pub(super) fn new(client: kube::Client, config: &Authorization, node: &str) -> Self {
        Self {
            client,
            node: node.into(),
            mode: config.mode,
            allowed_life: config.webhook.cache_authorized_ttl,
            denied_life: config.webhook.cache_unauthorized_ttl,
            cache: Cache::default(),
        }
    }

    /// # Errors
    /// 403 for a user who may not, 500 where the API server cannot be asked.
    pub(super) async fn authorize(&self, user: &User, method: &Method, path: &str) -> Result<(), Refusal> {
        if self.mode == AuthorizationMode::AlwaysAllow {
            return Ok(());
        }
        let needed = needed(method, path);
        for subresource in &needed.subresources {
            match self.ask(user, needed.verb, subresource).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!("ask whether {} may {} nodes/{subresource}: {error}", user.name, needed.verb);
                    let message = format!(
                        "Authorization error (user={}, verb={}, resource=nodes, subresource={subresource})\n",
                        user.name, needed.verb
                    );
                    return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message));
                }
            }
        }
        Err(Refusal::new(StatusCode::FORBIDDEN, forbidden(&user.name, &needed)))
    }

    async fn ask(&self, user: &User, verb: &'static str, subresource: &'static str) -> kube::Result<bool> {
        let question = (user.clone(), verb, subresource);
        if let Some(known) = cached(&self.cache, &question) {
            return Ok(known);
        }
        let attributes = ResourceAttributes {
            verb: Some(verb.into()),
            version: Some("v1".into()),
            resource: Some("nodes".into()),
            subresource: Some(subresource.into()),
            name: Some(self.node.clone()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let allowed = api.create(&PostParams::default(), &review).await?.status.is_some_and(|s| s.allowed);
        remember(&self.cache, question, allowed, if allowed { self.allowed_life } else { self.denied_life });
        Ok(allowed)
    }
}
